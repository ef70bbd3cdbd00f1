"""Source rows to a training file: converted, cleaned, verified, compared, counted.

Rows go through one at a time; what stays in memory is a hash of each question that was kept. The
file appears under its name when it is whole, its waterfall and provenance beside it, and every row
that was not used in FILE.rejected.jsonl with the reason.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tinyr1.corpus import in_threads
from tinyr1.data.clean import Draft, Dropped, check, words
from tinyr1.errors import UserError
from tinyr1.files import fsync_directory, hash_files, read_jsonl, write_json
from tinyr1.log import Log
from tinyr1.record import Record

NGRAM = 8  # words, as in s1's decontamination


@dataclass
class Steps:
    """What is done to a draft after its conversion."""

    verify: Callable[[Draft], bool] | None = None
    token_count: Callable[[Draft], int] | None = None
    max_tokens: int = 16384
    deduplicate: bool = True
    near_duplicates: NearDuplicates | None = None
    contamination: Contamination | None = None


@dataclass
class Waterfall:
    """How many rows came in, why which were dropped, how many came out."""

    rows_in: int = 0
    rows_out: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    tokens: int = 0

    def lines(self) -> list[str]:
        """For people: what is left after each reason, in the order of the steps."""
        left = self.rows_in
        lines = [f"rows in                  {left:>9,}"]
        for reason, count in self.dropped.items():
            left -= count
            lines.append(f"- {reason:<22} {count:>9,}  leaves {left:,}")
        return [*lines, f"rows out                 {self.rows_out:>9,}"]


class Contamination:
    """Questions of evaluations, and whether a text shares eight words in a row with one."""

    def __init__(self, files: Sequence[Path]) -> None:
        self._grams: dict[tuple[str, ...], str] = {}
        self._whole: dict[str, str] = {}
        for file in files:
            for number, row in read_jsonl(file):
                text = row.get("prompt") if isinstance(row, dict) else None
                if not isinstance(text, str):
                    raise UserError(f"{file}:{number}: no prompt; expected rows of a task file")
                name = f"{row.get('task', file.stem)}/{row.get('id', number)}"
                said = words(text)
                self._whole[" ".join(said)] = name
                for gram in _grams(said):
                    self._grams.setdefault(gram, name)

    def match(self, question: str) -> tuple[str, str] | None:
        """(row, what they share) of the first match."""
        said = words(question)
        whole = " ".join(said)
        if whole in self._whole:
            return self._whole[whole], whole
        for gram in _grams(said):
            if gram in self._grams:
                return self._grams[gram], " ".join(gram)
        return None


def _grams(said: Sequence[str]) -> Iterator[tuple[str, ...]]:
    return (tuple(said[i : i + NGRAM]) for i in range(len(said) - NGRAM + 1))


class NearDuplicates:
    """Questions that share most of their five-word pieces with one seen before (MinHash)."""

    def __init__(self, threshold: float) -> None:
        try:
            from datasketch import MinHash, MinHashLSH
        except ImportError:
            raise UserError("--near-duplicates: needs pip install 'tinyr1[data]'") from None
        self._make, self._index = MinHash, MinHashLSH(threshold=threshold, num_perm=128)
        self._count = 0

    def seen(self, question: str) -> bool:
        said = words(question)
        pieces = {" ".join(said[i : i + 5]) for i in range(max(1, len(said) - 4))}
        sketch = self._make(num_perm=128)
        sketch.update_batch([piece.encode() for piece in pieces])
        if self._index.query(sketch):
            return True
        self._index.insert(str(self._count), sketch)
        self._count += 1
        return False


def build(
    places: Iterable[tuple[str, int, dict[str, Any]]],
    convert: Callable[[dict[str, Any]], Draft],
    out: Path,
    steps: Steps,
    log: Log,
) -> Waterfall:
    """Write FILE.jsonl and FILE.rejected.jsonl; returns the counts. The order is the sources'."""
    counts, seen = Waterfall(), set[bytes]()
    rejected = out.with_suffix(".rejected.jsonl")
    temporary = [path.with_name(f".{path.name}.partial") for path in (out, rejected)]
    out.parent.mkdir(parents=True, exist_ok=True)

    def prepare(place: tuple[str, int, dict[str, Any]]) -> tuple[str, Draft | str, int]:
        where, number, row = place
        name = f"{Path(where).name}:{number}"
        try:
            return (name, *_prepare(row, convert, steps))
        except Dropped as reason:
            return name, str(reason), 0
        except KeyError as error:
            raise UserError(f"{where}: row {number}: no column {error}; other schema?") from None

    with open(temporary[0], "w", encoding="utf-8") as kept, open(temporary[1], "w") as left_out:
        for name, made, tokens in log.bar(in_threads(prepare, places), desc="rows", unit="row"):
            counts.rows_in += 1
            reason, shared = (made, "") if isinstance(made, str) else _compare(made, seen, steps)
            if reason:
                counts.dropped[reason] += 1
                row = {"row": name, "reason": reason} | ({"shared": shared} if shared else {})
                left_out.write(json.dumps(row, ensure_ascii=False) + "\n")
                continue
            assert isinstance(made, Draft)
            kept.write(json.dumps(record_of(made, name), ensure_ascii=False) + "\n")
            counts.rows_out += 1
            counts.tokens += tokens
        for file in (kept, left_out):
            file.flush()
            os.fsync(file.fileno())
    for source, target in zip(temporary, (out, rejected), strict=True):
        os.replace(source, target)
    fsync_directory(out.parent)
    return counts


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


def _compare(draft: Draft, seen: set[bytes], steps: Steps) -> tuple[str, str]:
    """("", "") for a row that is kept; else the reason, and what it shares with an evaluation."""
    if steps.contamination and (match := steps.contamination.match(draft.question)):
        return "contaminated", f"{match[0]}: {match[1]}"
    key = hashlib.blake2b(" ".join(words(draft.question)).encode(), digest_size=16).digest()
    if steps.deduplicate:
        if key in seen:
            return "duplicate", ""
        seen.add(key)
    if steps.near_duplicates and steps.near_duplicates.seen(draft.question):
        return "near_duplicate", ""
    return "", ""


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


def check_file(path: Path) -> Iterator[tuple[int, Record]]:
    """(line, record) of a training file; UserError naming the first line that breaks it."""
    for number, row in read_jsonl(path):
        try:
            yield number, Record.from_json(row)
        except ValueError as error:
            raise UserError(f"{path}:{number}: {error}") from None
