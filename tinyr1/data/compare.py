"""Looking for questions that came before, or that stand in an evaluation."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tinyr1.common.errors import UserError, needs
from tinyr1.common.files import read_jsonl
from tinyr1.data.clean import CHAT_TOKENS, normalized, words

NGRAM = 8  # words, as in s1's decontamination


@dataclass
class Comparison:
    """Questions that were kept, and those that must not be."""

    deduplicate: bool = True
    near_duplicates: NearDuplicates | None = None
    contamination: Contamination | None = None
    _kept: set[bytes] = field(default_factory=set)

    def against(self, question: str) -> tuple[str, dict[str, str]]:
        """Reason for which a question is dropped ("" for none), and what was found."""
        if self.contamination and (match := self.contamination.match(question)):
            return "contaminated", {"task_row": match[0], "shared": match[1]}
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
                for token in CHAT_TOKENS:  # of evaluate.py --show-prompts
                    text = text.replace(token, " ")
                said = words(text)
                self._whole[normalized(text)] = name
                for gram in _grams(said):
                    self._grams.setdefault(gram, name)

    def match(self, question: str) -> tuple[str, str] | None:
        """(row, what they share) of the first match."""
        said = words(question)
        whole = normalized(question)
        if whole in self._whole:
            return self._whole[whole], question.strip()
        for gram in _grams(said):
            if gram in self._grams:
                return self._grams[gram], " ".join(gram)
        return None


def _grams(said: Sequence[str]) -> Iterator[tuple[str, ...]]:
    return (tuple(said[i : i + NGRAM]) for i in range(len(said) - NGRAM + 1))


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
