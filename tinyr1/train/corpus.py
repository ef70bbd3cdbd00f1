"""Records to tokens, once: a memory-mapped cache that every rank and every later run maps.

CACHE/<key>/ holds tokens.bin (int32) and is_target.bin (one byte a token), of each document where
it begins, how many targets it has and its id (offsets.npy, target_counts.npy, ids.json), and
meta.json. The key hashes all that decides the tokens: data, tokenizer, template, length limit.
Over-long examples are dropped and counted, never cut: a cut one has no </think> and no EOS.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tokenize
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tinyr1.common.errors import UserError
from tinyr1.common.files import (
    fsync_directory,
    fsync_file,
    hash_files,
    hash_json,
    locked,
    read_json,
    read_object,
    write_json,
)
from tinyr1.common.log import Log
from tinyr1.common.threads import in_threads
from tinyr1.model.chat import TemplateName, ThinkIn, render, with_system
from tinyr1.model.records import read_records
from tinyr1.model.tokenizer import Tokenizer
from tinyr1.record import Example, Message, Record

# What reading a damaged cache raises; numpy reads the header of a .npy as Python.
# fmt: off
UNREADABLE = (
    UserError, OSError, EOFError, ValueError, TypeError, KeyError, IndexError,
    SyntaxError, tokenize.TokenError,
)
# fmt: on


class Corpus:
    """Tokenised training documents: `read(i)` gives tokens and target mask of document i."""

    def __init__(self, folder: Path) -> None:
        self.key = folder.name
        self.meta: dict[str, Any] = read_object(folder / "meta.json")
        self.ids: list[str] = read_json(folder / "ids.json")
        self._offsets: np.ndarray = np.load(folder / "offsets.npy")
        self._tokens = np.memmap(folder / "tokens.bin", dtype=np.int32, mode="r")
        self._is_target = np.memmap(folder / "is_target.bin", dtype=np.bool_, mode="r")
        self.lengths: list[int] = np.diff(self._offsets).tolist()
        self.target_counts: list[int] = np.load(folder / "target_counts.npy").tolist()

    def __len__(self) -> int:
        return len(self.lengths)

    def is_consistent(self) -> bool:
        """True where the files have the documents, tokens and targets that meta.json counts."""
        meta = self.meta
        documents = {len(self), len(self.ids), len(self.target_counts), meta["documents"]}
        tokens = {sum(self.lengths), len(self._tokens), len(self._is_target), meta["tokens"]}
        targets = {sum(self.target_counts), meta["target_tokens"]}
        alike = all(len(counts) == 1 for counts in (documents, tokens, targets))
        return alike and min(self.lengths) > 0 and {"dropped_over_long", "longest"} <= meta.keys()

    def read(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        """Tokens (int32) and target mask (bool) of document i; views of the mapped files."""
        part = slice(self._offsets[i], self._offsets[i + 1])
        return self._tokens[part], self._is_target[part]


class Rendering(NamedTuple):
    """The rules by which a row of a training file becomes tokens, or is too long."""

    tokenizer: Tokenizer
    max_len: int
    template: TemplateName = "deepseek_r1"
    think_in: ThinkIn = "target"
    require_think: bool = True

    def example(self, record: Record) -> Example:
        """The record's tokens; ValueError where a message has a marker of the template."""
        return render(self.tokenizer, record.messages, self.template, self.think_in)


def build_corpus(data: tuple[Path, ...], rendering: Rendering, cache_dir: Path, log: Log) -> Corpus:
    """Tokenise the union of the files, or map what an earlier run tokenised.

    Several processes may call this at once: one works under a file lock, the others wait.
    Raises UserError naming file and line of a row that breaks the contract.
    """
    r = rendering
    key = hash_json(
        {
            "version": 3,
            "data": hash_files(list(data)),
            "tokenizer": [r.tokenizer.fingerprint(), *r.tokenizer.end_markers],
            "template": [r.template, r.think_in, r.require_think, system_of(r)],
            "max_len": r.max_len,
        }
    )[:16]
    folder = cache_dir / key
    with locked(cache_dir / f"{key}.lock"):
        corpus = _mapped(folder)
        if corpus is None:
            # A folder that cannot be read whole is made again: it holds nothing but what can be
            # made again.
            shutil.rmtree(folder, ignore_errors=True)
            partial = cache_dir / f"{key}.partial"
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            try:
                _tokenise(partial, data, rendering, log)
            except UserError:  # the repaired file will have another key
                shutil.rmtree(partial, ignore_errors=True)
                raise
            for file in partial.iterdir():
                fsync_file(file)
            fsync_directory(partial)
            os.replace(partial, folder)
            fsync_directory(cache_dir)
            corpus = Corpus(folder)
    return corpus


def system_of(r: Rendering) -> str:
    """The system message of conversations that have none."""
    found = with_system(r.tokenizer, (Message("user", ""),), r.template)
    return found[0].content if len(found) > 1 else ""


def _mapped(folder: Path) -> Corpus | None:
    """The cache if it can be read and its files agree; one that was damaged is made again."""
    try:
        corpus = Corpus(folder)
        return corpus if corpus.is_consistent() else None
    except UNREADABLE:
        return None


def _tokenise(folder: Path, data: tuple[Path, ...], rendering: Rendering, log: Log) -> None:
    def example(place: tuple[Path, int, Record | ValueError]) -> tuple[str, np.ndarray, np.ndarray]:
        path, number, record = place
        try:
            if isinstance(record, ValueError):
                raise record
            tokens, is_target = rendering.example(record)
        except ValueError as error:
            raise UserError(f"{path}:{number}: {error}") from None
        name = record.id or f"{path.name}:{number}"
        return name, np.asarray(tokens, dtype=np.int32), np.asarray(is_target, dtype=np.bool_)

    # Our threads take whole rows; the library's own would take turns on each.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    offsets = [0]
    target_counts = []
    ids = []
    dropped = 0
    longest = 0
    rows = ((path, *row) for path in data for row in read_records(path, rendering.require_think))
    with (
        open(folder / "tokens.bin", "wb") as tokens_file,
        open(folder / "is_target.bin", "wb") as target_file,
        contextlib.closing(in_threads(example, rows)) as examples,
    ):
        for name, tokens, is_target in log.bar(examples, desc="tokenising", unit="row"):
            longest = max(longest, len(tokens))
            # Never cut: the end of a cut example, its </think> and EOS, is what it teaches best.
            if len(tokens) > rendering.max_len:
                dropped += 1
                continue
            tokens.tofile(tokens_file)
            is_target.tofile(target_file)
            offsets.append(offsets[-1] + len(tokens))
            target_counts.append(int(is_target[1:].sum()))
            ids.append(name)
    if not ids:
        names = ", ".join(str(p) for p in data)
        if not dropped:
            raise UserError(f"{names}: no rows")
        raise UserError(
            f"{names}: no row left to train on ({dropped} longer than --seq-len "
            f"{rendering.max_len}, the longest has {longest} tokens)"
        )
    np.save(folder / "offsets.npy", np.asarray(offsets, dtype=np.int64))
    np.save(folder / "target_counts.npy", np.asarray(target_counts, dtype=np.int64))
    write_json(folder / "ids.json", ids)
    write_json(
        folder / "meta.json",
        {
            "documents": len(ids),
            "dropped_over_long": dropped,
            "longest": longest,
            "tokens": offsets[-1],
            "target_tokens": sum(target_counts),
        },
    )
