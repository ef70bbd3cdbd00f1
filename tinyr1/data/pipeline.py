"""Source rows to a training file: read, cleaned, verified, compared, named, counted.

Rows go through one at a time; what stays in memory is a hash of each question that was kept. The
file appears under its name when it is whole, its waterfall and provenance beside it, and every row
that was not used in FILE.rejected.jsonl with the reason. Until then both grow in FILE.partial,
where the same command finds them after an interruption.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import operator
import os
import shutil
import time
from collections import Counter
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
from tinyr1.data.clean import check, check_question
from tinyr1.data.compare import Comparison
from tinyr1.data.draft import REASONS, Draft, Dropped, plain
from tinyr1.data.sources import Place

# A row's drafts, best first: the first that passes every check is used. Raises Dropped.
Convert = Callable[[Place], "list[Draft]"]
PHRASES = 20  # commonest matched phrases that FILE.meta.json keeps
FORMAT = 2  # of what an interrupted run has left; another is begun anew
SAVE_EVERY = 5.0  # seconds between points that an interrupted run can go on from


@dataclass
class Steps:
    """The steps that a draft goes through after its conversion."""

    verify: Callable[[Draft], bool | None] | None = None
    token_count: Callable[[Draft], int] | None = None
    max_tokens: int = 16384
    comparison: Comparison = field(default_factory=Comparison)
    keep: frozenset[str] = frozenset()  # reasons that are none
    generations: int | None = 1  # of a row that are used (None: all that pass)


@dataclass
class Waterfall:
    """Counts of the rows that came in, were dropped by reason, and came out."""

    rows_in: int = 0
    rows_out: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    tokens: int = 0
    unverified: int = 0  # kept although nothing was known to verify them by
    verified_by: dict[str, int] = field(default_factory=dict)  # of the rows out, where a set says
    rows_used: int = 0  # of which the rows out were made
    cut: dict[str, int] = field(default_factory=dict)  # what rows had and their records have not
    phrases: dict[str, int] = field(default_factory=dict)  # shared with test questions

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
        if self.rows_out > self.rows_used:
            lines.append(f"  from {self.rows_used:,} rows: several generations of some")
        for what, count in sorted(self.cut.items()):
            lines.append(f"  cut: {what}, {count:,} rows")
        if self.phrases:
            lines.append("commonest phrases shared with test questions:")
            lines += [f"  {count:>7,}  {phrase[:100]}" for phrase, count in self.commonest(5)]
        return lines

    def commonest(self, n: int) -> list[tuple[str, int]]:
        """Phrases shared with test questions, with how many rows had each as their longest."""
        return Counter(self.phrases).most_common(n)


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
        before = {}
        if self._progress.exists():
            with contextlib.suppress(UserError):  # damaged: begun anew
                before = read_object(self._progress)
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

    def keep(self, row: _Examined, records: list[dict[str, Any]]) -> None:
        """Count a row and write the records that were made of it."""
        counts = self.counts
        counts.rows_in += 1
        counts.rows_used += 1
        for passed, record in zip(row.passed, records, strict=True):
            counts.rows_out += 1
            counts.tokens += passed.tokens
            counts.unverified += passed.unverified
            verifier = record.get("meta", {}).get("verified_by")
            if isinstance(verifier, str):
                counts.verified_by[verifier] = counts.verified_by.get(verifier, 0) + 1
            for what in passed.draft.cut:
                counts.cut[what] = counts.cut.get(what, 0) + 1
        self._write(0, *records)

    def reject(self, row: str, reason: str, found: dict[str, Any]) -> None:
        """Count a row; `found` is what goes into the side file with its name and the reason."""
        counts = self.counts
        counts.rows_in += 1
        counts.dropped[reason] = counts.dropped.get(reason, 0) + 1
        if phrase := found.get("shared"):
            counts.phrases[phrase] = counts.phrases.get(phrase, 0) + 1
        self._write(1, {"row": row, "reason": reason} | found)

    def _write(self, which: int, *rows: dict[str, Any]) -> None:
        for row in rows:
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
            values["phrases"] = dict(self.counts.commonest(PHRASES))
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
    places: Iterable[Place],
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

    def examine(place: Place) -> _Examined:
        try:
            return _examine_row(place, convert, steps)
        except KeyError as error:
            where = f"{place.where}: row {place.number}"
            raise UserError(f"{where}: no column {error}; other schema?") from None

    work = out.with_suffix(".partial")
    names = _Names()
    with owned(work), closing(Outputs(work, hash_json([FORMAT, about]))) as outputs:
        for record in outputs.kept():
            steps.comparison.add(question_of(record))
            names.used.add(record["id"])
        done = outputs.counts.rows_in
        if done:
            log.say(f"{out}: goes on after {done:,} rows")
        # Rows are examined on all cores, but compared and written in their order: what is a
        # duplicate must not depend on which thread was faster.
        examined = in_threads(examine, itertools.islice(places, done, None))
        for row in log.bar(examined, desc="rows", unit="row", initial=done):
            if not row.passed:
                outputs.reject(row.where, row.reason, row.found)
                continue
            drafts = [passed.draft for passed in row.passed]
            question = drafts[0].question.strip()
            reason, found = steps.comparison.against(question)
            if reason:
                outputs.reject(row.where, reason, record_of(drafts[0]) | found)
                continue
            steps.comparison.add(question)
            name = names.new(drafts[0])
            if steps.generations == 1:
                records = [record_of(drafts[0], name)]
            else:
                records = [record_of(draft, f"{name}/{i}") for i, draft in enumerate(drafts)]
            names.used.update(record["id"] for record in records)
            outputs.keep(row, records)
        outputs.finish(out, about)
        return outputs.counts


class _Names:
    """Ids for records: the set's own where it is new, else a hash of source and question."""

    def __init__(self) -> None:
        self.used: set[str] = set()
        self._next: dict[str, int] = {}  # number for the next record of a hash

    def new(self, draft: Draft) -> str:
        """One that no record before has; the same from whatever file the row was read."""
        if draft.id and self._is_new(draft.id):
            return draft.id
        name = hash_json([draft.source, draft.question.strip()])[:16]
        for number in itertools.count(self._next.get(name, 1)):
            self._next[name] = number + 1
            numbered = name if number == 1 else f"{name}-{number}"
            if self._is_new(numbered):
                return numbered
        raise AssertionError("numbers do not end")

    def _is_new(self, name: str) -> bool:
        return name not in self.used and f"{name}/0" not in self.used


def question_of(record: dict[str, Any]) -> str:
    """The user's words in a line that `record_of` made."""
    if "question" in record:
        return record["question"]
    return next(m["content"] for m in record["messages"] if m["role"] == "user")


class _Passed(NamedTuple):
    """A draft that passed every check of itself."""

    draft: Draft
    tokens: int
    unverified: bool


class _Examined(NamedTuple):
    """A row after all that can be said of it alone."""

    where: str
    passed: list[_Passed]
    reason: str  # where none passed: why the first did not
    found: dict[str, Any]  # what is known of such a row


def _examine_row(place: Place, convert: Convert, steps: Steps) -> _Examined:
    """A row with those of its drafts that pass every check, as many as are wanted."""
    name = f"{place.where}:{place.number}"
    try:
        drafts = convert(place)
    except Dropped as why:
        row = place.row
        found = {"id": row.get("uuid") or row.get("id"), "text": why.text}
        found["question"] = row.get("problem") or row.get("question")
        return _Examined(name, [], why.reason, {k: v for k, v in plain(found).items() if v})
    except (TypeError, AttributeError, ValueError):  # a field of another type than published
        return _Examined(name, [], "malformed", {})
    passed: list[_Passed] = []
    fault: Dropped | None = None
    for draft in drafts:
        try:
            passed.append(_check_draft(draft, steps))
        except Dropped as why:
            fault = fault or why
        if len(passed) == steps.generations:
            break
    if passed:
        return _Examined(name, passed, "", {})
    assert fault is not None  # there is at least one draft
    return _Examined(name, [], fault.reason, record_of(drafts[0]))


def _check_draft(draft: Draft, steps: Steps) -> _Passed:
    """A draft with its tokens, and whether it could not be verified. Raises Dropped."""
    try:
        f"{draft.system}{draft.question}{draft.thought}{draft.solution}".encode()
        tests = draft.tests.to_json() if draft.tests else None
        json.dumps([draft.id, draft.source, draft.answer, tests], ensure_ascii=False).encode()
    except UnicodeEncodeError:  # half a surrogate pair
        raise Dropped("malformed") from None
    if draft.thought is None:
        check_question(draft.question)
        return _Passed(draft, 0, False)
    check(draft, steps.keep)
    right = steps.verify(draft) if steps.verify else True
    if right is False:
        raise Dropped("wrong_answer")
    tokens = steps.token_count(draft) if steps.token_count else 0
    if tokens > steps.max_tokens:
        raise Dropped("too_long")
    return _Passed(draft, tokens, right is None)


def record_of(draft: Draft, name: str = "") -> dict[str, Any]:
    """A line of a training file, or of a file of questions for the teacher."""
    row: dict[str, Any] = {"id": name or draft.id, "domain": draft.domain}
    user = {"role": "user", "content": draft.question.strip()}
    meta = dict(draft.meta)
    tests = draft.tests.to_json() if draft.tests else None
    if draft.thought is None:
        row |= {"question": user["content"]}
    else:
        system = [{"role": "system", "content": draft.system}] if draft.system else []
        row |= {"messages": [*system, user, {"role": "assistant", "content": draft.content()}]}
        meta["tests"] = tests  # in meta: no loader of training files need know its shape
    row["source"] = "/".join(name for name in (draft.origin, draft.source) if name)
    if draft.answer is not None:
        row["answer"] = draft.answer
    if draft.thought is None and tests:
        row["tests"] = tests
    meta = {k: v for k, v in plain(meta).items() if v is not None}
    return row | ({"meta": meta} if meta else {})
