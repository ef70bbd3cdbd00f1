"""Looking for questions that came before, or that stand in an evaluation."""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tinyr1.common.errors import UserError, needs
from tinyr1.common.files import read_jsonl
from tinyr1.data.clean import CHAT_TOKENS, compact, normalized, words

COMMON = 50  # test questions that have a phrase; in more it weighs nothing


@dataclass
class Comparison:
    """Questions that were kept, and those that must not be."""

    deduplicate: bool = True
    near_duplicates: NearDuplicates | None = None
    contamination: Contamination | None = None
    _kept: set[bytes] = field(default_factory=set)

    def against(self, question: str) -> tuple[str, dict[str, Any]]:
        """Reason for which a question is dropped ("" for none), and what was found."""
        if self.contamination and (match := self.contamination.match(question)):
            return "contaminated", asdict(match)
        if self.deduplicate and _key(question) in self._kept:
            return "duplicate", {}
        if self.near_duplicates and self.near_duplicates.seen(question):
            return "near_duplicate", {}
        return "", {}

    def add(self, question: str) -> None:
        """Remember a question that is kept: sixteen bytes of it, or a sketch."""
        self._kept.add(_key(question))
        if self.near_duplicates:
            self.near_duplicates.add(question)


def _key(question: str) -> bytes:
    return hashlib.blake2b(normalized(question).encode(errors="replace"), digest_size=16).digest()


@dataclass(frozen=True)
class Match:
    """What a question shares with a test question: its longest phrase, and how much of the test."""

    task_row: str
    shared: str
    overlap: float  # share of the test question, weighted


class Contamination:
    """Test questions, and whether a question holds so much of one that it must not be trained on.

    A phrase is `ngram` words in a row. It weighs 1 / the number of test questions that have it, and
    nothing where more than COMMON have it: such is how tests are written, and no evidence
    (decision 0017). A question is contaminated where the phrases that it shares with a test
    question weigh at least `overlap` of all that this has, and are as many as ten words in a row
    have, or three quarters of a shorter question's, rare enough to weigh a third of their number.
    With `overlap` 0 any one phrase will do: s1's and open-r1's rule, for eight words.
    Questions of fewer words than a phrase are compared whole, but for case and spacing.
    """

    def __init__(self, files: Sequence[Path], ngram: int = 5, overlap: float = 0.3) -> None:
        self._ngram, self._overlap = ngram, overlap
        self._least = max(1, 11 - ngram) if overlap else 1
        self._whole: dict[str, str] = {}
        self._names: list[str] = []
        self._phrases: list[set[tuple[str, ...]]] = []  # of each test question
        self._having: dict[tuple[str, ...], list[int]] = defaultdict(list)
        for file in files:
            for number, row in read_jsonl(file):
                text = row.get("prompt") if isinstance(row, dict) else None
                if not isinstance(text, str):
                    raise UserError(f"{file}:{number}: no prompt; expected rows of a task file")
                for token in CHAT_TOKENS:  # of evaluate.py --show-prompts
                    text = text.replace(token, " ")
                self._add(text, f"{row.get('task', file.stem)}/{row.get('id', number)}")
        if overlap:
            rare = {p: tests for p, tests in self._having.items() if len(tests) <= COMMON}
            self._having = defaultdict(list, rare)
            self._phrases = [phrases & rare.keys() for phrases in self._phrases]
        self._all = [self._weight(phrases) for phrases in self._phrases]

    def _add(self, text: str, name: str) -> None:
        whole = compact(text)
        if whole in self._whole:  # another trial of it, or another file's
            return
        self._whole[whole] = name
        said = words(text)
        phrases = {phrase for _, phrase in _grams(said, self._ngram)}
        for phrase in phrases:
            self._having[phrase].append(len(self._names))
        self._names.append(name)
        self._phrases.append(phrases)

    def _weight(self, phrases: Collection[tuple[str, ...]]) -> float:
        return sum(1 / len(self._having[phrase]) for phrase in phrases)

    def _needed(self, test: int) -> int:
        """How many phrases are evidence: ten words in a row, three quarters of a short question."""
        return min(self._least, math.ceil(0.75 * len(self._phrases[test])))

    def match(self, question: str) -> Match | None:
        """The test question that most of is in a question; None where that is not enough."""
        whole = compact(question)
        if whole in self._whole:
            return Match(self._whole[whole], question.strip(), 1.0)
        said = words(question)
        places = [(i, p) for i, p in _grams(said, self._ngram) if p in self._having]
        shared: dict[int, set[tuple[str, ...]]] = defaultdict(set)
        for _, phrase in places:
            for test in self._having[phrase]:
                shared[test].add(phrase)
        best, found = 0.0, None
        for test, phrases in shared.items():
            if len(phrases) < (needed := self._needed(test)):
                continue
            weight = self._weight(phrases)
            overlap = weight / self._all[test]
            is_rare = not self._overlap or weight >= needed / 3
            if is_rare and overlap >= self._overlap and overlap > best:
                best, found = overlap, test
        if found is None:
            return None
        at = [i for i, phrase in places if phrase in shared[found]]
        return Match(self._names[found], _longest(said, at, self._ngram), round(best, 3))


def _longest(said: Sequence[str], at: Sequence[int], ngram: int) -> str:
    """The longest passage of phrases that begin at these places, one after the other."""
    best = run = (at[0], at[0])
    for place in at[1:]:
        run = (run[0], place) if place == run[1] + 1 else (place, place)
        best = max(best, run, key=lambda passage: passage[1] - passage[0])
    return " ".join(said[best[0] : best[1] + ngram])


def _grams(said: Sequence[str], n: int) -> Iterator[tuple[int, tuple[str, ...]]]:
    """(place, n words in a row) of a text."""
    return ((i, tuple(said[i : i + n])) for i in range(len(said) - n + 1))


class NearDuplicates:
    """Questions that share most of their five-word pieces with one seen before (MinHash)."""

    def __init__(self, threshold: float) -> None:
        library = needs("datasketch", "data", "--near-duplicates")
        self._make = library.MinHash
        self._index = library.MinHashLSH(threshold=threshold, num_perm=128)
        self._count = 0

    def seen(self, question: str) -> bool:
        return bool(self._index.query(self._sketch(question)))

    def add(self, question: str) -> None:
        self._index.insert(str(self._count), self._sketch(question))
        self._count += 1

    def _sketch(self, question: str) -> Any:
        said = normalized(question).split()  # with the operators: they tell formulas apart
        pieces = {" ".join(said[i : i + 5]) for i in range(max(1, len(said) - 4))}
        sketch = self._make(num_perm=128)
        sketch.update_batch([piece.encode() for piece in pieces])
        return sketch
