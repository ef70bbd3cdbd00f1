"""Source rows to a training file: converted, cleaned, verified, compared, counted.

Rows go through one at a time; what stays in memory is a hash of each question that was kept. The
file appears under its name when it is whole, its waterfall and provenance beside it, and every row
that was not used in FILE.rejected.jsonl with the reason. Until then both grow in FILE.partial,
where the same command finds them after an interruption.
"""

from __future__ import annotations

import itertools
import json
import operator
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from tinyr1.common.errors import UserError
from tinyr1.common.files import (
    fsync_directory,
    hash_file,
    hash_json,
    owned,
    read_jsonl,
    read_object,
    write_json,
)
from tinyr1.common.log import Log
from tinyr1.common.threads import in_threads
from tinyr1.data.clean import REASONS, Draft, Dropped, check, check_normal_form, check_question
from tinyr1.data.compare import Comparison
from tinyr1.graders.answer import last_box
from tinyr1.graders.grading import grade
from tinyr1.graders.sandbox import Level
from tinyr1.record import LETTERS, Kind, Record, TaskRow

# A row as one draft, or as several of which the first that passes every check is used.
Convert = Callable[[dict[str, Any]], "Draft | list[Draft]"]
SAVE_EVERY = 5.0  # seconds between points that an interrupted run can go on from


@dataclass
class Steps:
    """The steps that a draft goes through after its conversion."""

    verify: Callable[[Draft], bool | None] | None = None
    token_count: Callable[[Draft], int] | None = None
    max_tokens: int = 16384
    comparison: Comparison = field(default_factory=Comparison)


@dataclass
class Waterfall:
    """Counts of the rows that came in, were dropped by reason, and came out."""

    rows_in: int = 0
    rows_out: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    tokens: int = 0
    unverified: int = 0  # kept although nothing was known to verify them by
    verified_by: dict[str, int] = field(default_factory=dict)  # of the rows out, where a set says

    def lines(self) -> list[str]:
        """For people: what is left after each reason, in the order in which rows meet them."""
        left = self.rows_in
        lines = [f"rows in                  {left:>9,}"]
        for reason, count in sorted(self.dropped.items(), key=lambda x: REASONS.index(x[0])):
            left -= count
            lines.append(f"- {reason:<22} {count:>9,}  leaves {left:,}")
        lines.append(f"rows out                 {self.rows_out:>9,}")
        for verifier, count in sorted(self.verified_by.items()):
            lines.append(f"  verified by {verifier:<12} {count:>8,}")
        return lines


class Outputs:
    """FILE.partial/: rows kept, rows rejected, and how far both are safely on disk.

    Opened again with the same `key`, it goes on where progress.json says; else it begins anew.
    """

    def __init__(self, work: Path, key: str) -> None:
        self.counts = Waterfall()
        self._work = work
        self._key = key
        self._saved = time.monotonic()
        self._progress = work / "progress.json"
        before = read_object(self._progress) if self._progress.exists() else {}
        ends = (0, 0)
        paths = (work / "kept.jsonl", work / "rejected.jsonl")
        sizes = [path.stat().st_size if path.exists() else 0 for path in paths]
        if before.get("key") == key and all(map(operator.ge, sizes, before["ends"])):
            self.counts = Waterfall(**before["counts"])
            ends = before["ends"]
        self._files = [_opened(path, end) for path, end in zip(paths, ends, strict=True)]

    def kept(self) -> Iterator[dict[str, Any]]:
        """Records that an interrupted run has kept."""
        for _, row in read_jsonl(self._work / "kept.jsonl"):
            yield row

    def keep(self, row: _Examined) -> None:
        self.counts.rows_out += 1
        self.counts.tokens += row.tokens
        self.counts.unverified += row.unverified
        if verifier := row.record.get("meta", {}).get("verified_by"):
            by = self.counts.verified_by
            by[verifier] = by.get(verifier, 0) + 1
        self._write(0, row.record)

    def reject(self, row: str, reason: str, found: dict[str, Any]) -> None:
        """Count a row; `found` is what goes into the side file with its name and the reason."""
        self.counts.dropped[reason] = self.counts.dropped.get(reason, 0) + 1
        self._write(1, {"row": row, "reason": reason} | found)

    def _write(self, which: int, row: dict[str, Any]) -> None:
        self.counts.rows_in += 1
        line = json.dumps(row, ensure_ascii=False) + "\n"
        self._files[which].write(line.encode(errors="replace"))  # half a surrogate pair, as "?"
        if time.monotonic() - self._saved > SAVE_EVERY:
            self._save()

    def _save(self) -> None:
        for file in self._files:
            file.flush()
            os.fsync(file.fileno())
        ends = [file.tell() for file in self._files]
        write_json(self._progress, {"key": self._key, "counts": asdict(self.counts), "ends": ends})
        self._saved = time.monotonic()

    def finish(self, out: Path, about: dict[str, Any]) -> None:
        """Everything under its final name; FILE.partial is removed.

        Where no row is left and a FILE is there already, it stays as it is, and so do those beside
        it: what became of the rows of this run is in FILE.partial.
        """
        self._save()
        kept, rejected = self._files
        if not self.counts.rows_out and out.exists():
            return
        if self.counts.rows_out:
            values = asdict(self.counts) | {"sha256": hash_file(Path(kept.name))}
            write_json(out.with_suffix(".meta.json"), values | about)
            os.replace(kept.name, out)
        os.replace(rejected.name, out.with_suffix(".rejected.jsonl"))
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
    convert: Convert,
    out: Path,
    steps: Steps,
    about: dict[str, Any],
    log: Log,
) -> Waterfall:
    """Write FILE.jsonl and FILE.rejected.jsonl; returns the counts. The order is the sources'.

    `about` goes into FILE.meta.json: where everything came from. A run that was interrupted goes
    on if that is the same.
    """

    def examine(place: tuple[str, int, dict[str, Any]]) -> _Examined:
        where, number, row = place
        try:
            return _examine_row(row, f"{where}:{number}", convert, steps)
        except KeyError as error:
            raise UserError(f"{where}: row {number}: no column {error}; other schema?") from None

    work = out.with_suffix(".partial")
    with owned(work), closing(Outputs(work, hash_json(about))) as outputs:
        for record in outputs.kept():
            steps.comparison.add(question_of(record))
        done = outputs.counts.rows_in
        if done:
            log.say(f"{out}: goes on after {done:,} rows")
        # Rows are examined on all cores, but compared and written in their order: what is a
        # duplicate must not depend on which thread was faster.
        examined = in_threads(examine, itertools.islice(places, done, None))
        for row in log.bar(examined, desc="rows", unit="row", initial=done):
            if row.reason:
                outputs.reject(row.name, row.reason, row.record)
                continue
            question = question_of(row.record)
            reason, found = steps.comparison.against(question)
            if reason:
                outputs.reject(row.name, reason, row.record | found)
                continue
            steps.comparison.add(question)
            outputs.keep(row)
        outputs.finish(out, about)
        return outputs.counts


def question_of(record: dict[str, Any]) -> str:
    """The user's words in a line that `record_of` made."""
    return record["question"] if "question" in record else record["messages"][0]["content"]


class _Examined(NamedTuple):
    """A row after all that can be said of it alone."""

    name: str
    reason: str  # "" where it may be kept
    record: dict[str, Any]  # the line to write; of a rejected row, what is known
    tokens: int = 0
    unverified: bool = False


def _examine_row(row: dict[str, Any], name: str, convert: Convert, steps: Steps) -> _Examined:
    """A row with the first of its drafts that passes every check; the reason is the first one's."""
    try:
        found = convert(row)
        drafts = found if isinstance(found, list) else [found]
    except Dropped as why:
        question = row.get("problem") or row.get("question")
        found = {"id": row.get("uuid") or row.get("id"), "question": question, "text": why.text}
        return _Examined(name, why.reason, {k: v for k, v in found.items() if v})
    except (TypeError, AttributeError, ValueError):  # a field of another type than published
        return _Examined(name, "malformed", {})
    rejected: _Examined | None = None
    for draft in drafts:
        record = record_of(draft, name)
        try:
            tokens, unverified = _check_draft(draft, steps)
        except Dropped as why:
            rejected = rejected or _Examined(name, why.reason, record)
        else:
            return _Examined(name, "", record, tokens, unverified)
    assert rejected is not None  # there is at least one draft
    return rejected


def _check_draft(draft: Draft, steps: Steps) -> tuple[int, bool]:
    """Tokens of a draft, and whether it could not be verified. Raises Dropped."""
    try:
        f"{draft.question}{draft.thought}{draft.solution}".encode()
    except UnicodeEncodeError:  # half a surrogate pair
        raise Dropped("malformed") from None
    if draft.thought is None:
        check_question(draft.question)
        return 0, False
    check(draft)
    right = steps.verify(draft) if steps.verify else True
    if right is False:
        raise Dropped("wrong_answer")
    tokens = steps.token_count(draft) if steps.token_count else 0
    if tokens > steps.max_tokens:
        raise Dropped("too_long")
    return tokens, right is None


def record_of(draft: Draft, name: str) -> dict[str, Any]:
    """A line of a training file, or of a file of questions for the teacher."""
    row: dict[str, Any] = {"id": draft.id or name, "domain": draft.domain}
    user = {"role": "user", "content": draft.question.strip()}
    if draft.thought is None:
        row |= {"question": user["content"]}
    else:
        row |= {"messages": [user, {"role": "assistant", "content": draft.content()}]}
    row["source"] = draft.source
    if draft.answer is not None:
        row["answer"] = draft.answer
    if draft.tests is not None:
        row["tests"] = draft.tests.to_json()
    meta = {k: v for k, v in draft.meta.items() if v is not None}
    return row | ({"meta": meta} if meta else {})


def is_right(draft: Draft, sandbox: Level = "namespaces") -> bool | None:
    """True for a right solution; None where nothing is known that it could be compared with."""
    kind: Kind
    if draft.tests:
        kind = "code"
    elif draft.answer and draft.answer in LETTERS:
        kind = "choice"
    elif draft.answer and (draft.domain == "math" or last_box(draft.solution)):
        kind = "math"
    else:
        return None
    answer = draft.answer or ""
    row = TaskRow(draft.domain, draft.id, kind, draft.question, answer, tests=draft.tests)
    return grade(row, draft.content(), sandbox=sandbox).correct


def check_file(path: Path) -> Iterator[tuple[int, Record | ValueError]]:
    """(line, record, or how the line breaks the contract) of a training file."""
    for number, line in enumerate(_lines(path), 1):
        if not line.strip():
            continue
        try:
            record = Record.from_json(json.loads(line))
            if not record.id:
                raise ValueError("id: missing")
            for message in record.messages:
                if message.role == "assistant":
                    check_normal_form(message.content)
            yield number, record
        except ValueError as error:
            yield number, error
        except RecursionError:
            yield number, ValueError("nested too deeply")


def _lines(path: Path) -> Iterator[bytes]:
    try:
        with open(path, "rb") as file:
            yield from file
    except OSError as error:
        raise UserError(f"{path}: {(error.strerror or str(error)).lower()}") from None
