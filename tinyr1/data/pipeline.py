"""Source rows to a training file: converted, cleaned, verified, compared, counted.

Rows go through one at a time; what stays in memory is a hash of each question that was kept. The
file appears under its name when it is whole, its waterfall and provenance beside it, and every row
that was not used in FILE.rejected.jsonl with the reason. Until then both grow in FILE.work, where
the same command finds them after an interruption.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from tinyr1.answer import last_box
from tinyr1.corpus import in_threads
from tinyr1.data.clean import LETTERS, Draft, Dropped, check, check_normal_form
from tinyr1.data.compare import Comparison
from tinyr1.errors import UserError
from tinyr1.files import fsync_directory, hash_files, owned, read_json, read_jsonl, write_json
from tinyr1.graders import grade
from tinyr1.log import Log
from tinyr1.record import Record
from tinyr1.sandbox import Level

SAVE_EVERY = 5.0  # seconds between points that an interrupted run can go on from


@dataclass
class Steps:
    """What is done to a draft after its conversion."""

    verify: Callable[[Draft], bool] | None = None
    token_count: Callable[[Draft], int] | None = None
    max_tokens: int = 16384
    comparison: Comparison = field(default_factory=Comparison)


@dataclass
class Waterfall:
    """How many rows came in, why which were dropped, how many came out."""

    rows_in: int = 0
    rows_out: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    tokens: int = 0

    def lines(self) -> list[str]:
        """For people: what is left after each reason, in the order of the steps."""
        left = self.rows_in
        lines = [f"rows in                  {left:>9,}"]
        for reason, count in self.dropped.items():
            left -= count
            lines.append(f"- {reason:<22} {count:>9,}  leaves {left:,}")
        return [*lines, f"rows out                 {self.rows_out:>9,}"]


class Outputs:
    """FILE.work/: rows kept, rows rejected, and how far both are safely on disk.

    Opened again with the same `key`, it goes on where progress.json says; else it begins anew.
    """

    def __init__(self, work: Path, key: str) -> None:
        self.counts = Waterfall()
        self._work, self._key, self._saved = work, key, time.monotonic()
        self._progress = work / "progress.json"
        before = read_json(self._progress) if self._progress.exists() else {}
        ends = (0, 0)
        if before.get("key") == key:
            self.counts = Waterfall(**before["counts"])
            ends = before["ends"]
        self._files = [
            _opened(work / name, end)
            for name, end in zip(("kept.jsonl", "rejected.jsonl"), ends, strict=True)
        ]

    def kept(self) -> Iterator[dict[str, Any]]:
        """Records that an interrupted run has kept."""
        for _, row in read_jsonl(self._work / "kept.jsonl"):
            yield row

    def keep(self, record: dict[str, Any], tokens: int) -> None:
        self.counts.rows_out += 1
        self.counts.tokens += tokens
        self._write(0, record)

    def reject(self, row: str, reason: str, shared: str) -> None:
        self.counts.dropped[reason] = self.counts.dropped.get(reason, 0) + 1
        self._write(1, {"row": row, "reason": reason} | ({"shared": shared} if shared else {}))

    def _write(self, which: int, row: dict[str, Any]) -> None:
        self.counts.rows_in += 1
        self._files[which].write((json.dumps(row, ensure_ascii=False) + "\n").encode())
        if time.monotonic() - self._saved > SAVE_EVERY:
            self._save()

    def _save(self) -> None:
        for file in self._files:
            file.flush()
            os.fsync(file.fileno())
        ends = [file.tell() for file in self._files]
        write_json(self._progress, {"key": self._key, "counts": asdict(self.counts), "ends": ends})
        self._saved = time.monotonic()

    def finish(self, out: Path) -> None:
        """Everything under its final name; FILE.work is removed."""
        self._save()
        for file, target in zip(
            self._files, (out, out.with_suffix(".rejected.jsonl")), strict=True
        ):
            os.replace(file.name, target)
        fsync_directory(out.parent)
        self.close()
        shutil.rmtree(self._work)

    def close(self) -> None:
        for file in self._files:
            file.close()


def _opened(path: Path, end: int) -> BinaryIO:
    """A file to append to, cut to what is known to be whole."""
    file = open(path, "ab")  # noqa: SIM115 - lives as long as Outputs
    file.truncate(end)
    file.seek(end)
    return file


def build(
    places: Iterable[tuple[str, int, dict[str, Any]]],
    convert: Callable[[dict[str, Any]], Draft],
    out: Path,
    steps: Steps,
    key: str,
    log: Log,
) -> Waterfall:
    """Write FILE.jsonl and FILE.rejected.jsonl; returns the counts. The order is the sources'.

    A run that was interrupted goes on if its `key` (of sources and options) is the same.
    """

    def prepare(place: tuple[str, int, dict[str, Any]]) -> tuple[str, Draft | str, int]:
        where, number, row = place
        name = f"{Path(where).name}:{number}"
        try:
            return (name, *_prepare(row, convert, steps))
        except Dropped as reason:
            return name, str(reason), 0
        except KeyError as error:
            raise UserError(f"{where}: row {number}: no column {error}; other schema?") from None

    with owned(work := out.with_suffix(".work")), closing(Outputs(work, key)) as outputs:
        for record in outputs.kept():
            steps.comparison.add(question_of(record))
        done = outputs.counts.rows_in
        if done:
            log.say(f"{out}: goes on after {done:,} rows")
        made_rows = in_threads(prepare, itertools.islice(places, done, None))
        for name, made, tokens in log.bar(made_rows, desc="rows", unit="row", initial=done):
            if isinstance(made, str):
                outputs.reject(name, made, "")
                continue
            record = record_of(made, name)
            question = question_of(record)
            reason, shared = steps.comparison.against(question)
            if reason:
                outputs.reject(name, reason, shared)
                continue
            steps.comparison.add(question)
            outputs.keep(record, tokens)
        outputs.finish(out)
        return outputs.counts


def question_of(record: dict[str, Any]) -> str:
    """What the user says in a line that `record_of` made."""
    return record["question"] if "question" in record else record["messages"][0]["content"]


def _prepare(
    row: dict[str, Any], convert: Callable[[dict[str, Any]], Draft], steps: Steps
) -> tuple[Draft, int]:
    draft = convert(row)
    if draft.thought is None:
        if not draft.question.strip():
            raise Dropped("empty_question")
        return draft, 0
    if "literal_content" not in draft.meta:
        check(draft)
    if steps.verify and not steps.verify(draft):
        raise Dropped("wrong_answer")
    tokens = steps.token_count(draft) if steps.token_count else 0
    if tokens > steps.max_tokens:
        raise Dropped("too_long")
    return draft, tokens


def record_of(draft: Draft, name: str) -> dict[str, Any]:
    """A line of a training file, or of a file of questions for the teacher."""
    row: dict[str, Any] = {"id": draft.id or name, "domain": draft.domain}
    user = {"role": "user", "content": draft.question.strip()}
    if draft.thought is None:
        row |= {"question": user["content"]}
    else:
        content = draft.meta.get("literal_content") or draft.content()
        row |= {"messages": [user, {"role": "assistant", "content": content}]}
    row["source"] = draft.source
    if draft.answer is not None:
        row["answer"] = draft.answer
    if draft.tests is not None:
        row["tests"] = draft.tests
    meta = {k: v for k, v in draft.meta.items() if k != "literal_content" and v is not None}
    return row | ({"meta": meta} if meta else {})


def write_meta(out: Path, counts: Waterfall, about: dict[str, Any]) -> None:
    """FILE.meta.json: the waterfall and where everything came from."""
    values = {
        "rows_in": counts.rows_in,
        "rows_out": counts.rows_out,
        "dropped": dict(counts.dropped),
        "tokens": counts.tokens,
        "sha256": hash_files([out]),
    }
    write_json(out.with_suffix(".meta.json"), values | about)


def is_right(draft: Draft, sandbox: Level = "namespaces") -> bool:
    """Whether a solution is right; true where nothing is known that it could be compared with."""
    row: dict[str, Any] = {"task": draft.domain, "id": draft.id, "prompt": draft.question}
    if draft.tests:
        row |= {"kind": "code", "tests": draft.tests}
    elif draft.answer and draft.answer in LETTERS:
        row |= {"kind": "choice", "answer": draft.answer}
    elif draft.answer and last_box(draft.solution):
        row |= {"kind": "math", "answer": draft.answer}
    else:
        return True
    return grade(row, draft.content(), sandbox=sandbox).correct


def check_file(path: Path) -> Iterator[tuple[int, Record | ValueError]]:
    """(line, record, or how the line breaks the contract) of a training file."""
    for number, row in read_jsonl(path):
        try:
            record = Record.from_json(row)
            if not record.id:
                raise ValueError("id: missing")
            for message in record.messages:
                if message.role == "assistant":
                    check_normal_form(message.content)
            yield number, record
        except ValueError as error:
            yield number, error
