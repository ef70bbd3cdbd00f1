"""Reading published sets row by row: parquet and jsonl files, folders of them, or the hub."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinyr1.errors import UserError
from tinyr1.files import read_jsonl

BATCH = 64  # rows of a parquet file that are Python objects at once
SUFFIXES = (".parquet", ".jsonl")
Place = tuple[str, int, dict[str, Any]]


@dataclass(frozen=True)
class Source:
    """Files, or a set on the hub at one commit."""

    name: str
    files: tuple[Path, ...] = ()
    config: str | None = None
    revision: str = ""

    def rows(self) -> Iterator[Place]:
        """(where, number from 1, row) of every row, a few in memory at a time."""
        if not self.files:
            yield from self._hub_rows()
        for file in self.files:
            yield from _jsonl_rows(file) if file.suffix == ".jsonl" else _parquet_rows(file)

    def identity(self) -> dict[str, Any]:
        """What this was, for FILE.meta.json: sizes and hashes of files, or the hub's commit."""
        if not self.files:
            return {"hub": self.name, "config": self.config, "revision": self.revision}
        described: list[dict[str, Any]] = []
        for file in self.files:
            with open(file, "rb") as opened:
                digest = hashlib.file_digest(opened, "sha256").hexdigest()
            described.append({"file": file.name, "bytes": file.stat().st_size, "sha256": digest})
        return {"files": described}

    def _hub_rows(self) -> Iterator[Place]:
        from datasets import load_dataset

        try:
            rows = load_dataset(
                self.name, self.config, split="train", streaming=True, revision=self.revision
            )
            for number, row in enumerate(rows, 1):
                yield self.name, number, dict(row)
        except Exception as error:  # of a dozen kinds: gated, no such configuration, cut off
            raise _not_loaded(self.name, error) from None


def open_source(name: str, config: str | None = None, revision: str | None = None) -> Source:
    """The source that `name` is: a file, a folder, or a set on the hub.

    The commit of a set is looked up once. UserError for what is none of these.
    """
    path = Path(name)
    if path.is_dir():
        found = tuple(sorted(p for p in path.rglob("*") if p.suffix in SUFFIXES))
        if not found:
            raise UserError(f"--source={name}: no .parquet or .jsonl file in it")
        return Source(name, found)
    if path.exists():
        if path.suffix not in SUFFIXES:
            raise UserError(f"--source={name}: expected .parquet or .jsonl")
        return Source(name, (path,))
    if path.suffix in SUFFIXES or name.count("/") != 1 or name.startswith((".", "/")):
        raise UserError(f"--source={name}: no such file, and no name on the hub (owner/name)")
    try:
        import datasets  # noqa: F401  # pyright: ignore[reportUnusedImport]
        from huggingface_hub import HfApi
    except ImportError:
        raise UserError(f"--source={name}: the hub needs pip install 'tinyr1[data]'") from None
    try:
        commit = HfApi().dataset_info(name, revision=revision).sha
    except Exception as error:  # of a dozen kinds: offline, gated, renamed
        raise _not_loaded(name, error) from None
    return Source(name, config=config, revision=commit or revision or "main")


def _not_loaded(name: str, error: Exception) -> UserError:
    why = " ".join(str(error).split())[:200]
    return UserError(f"--source={name}: cannot be loaded ({why}); give downloaded files instead")


def _jsonl_rows(file: Path) -> Iterator[Place]:
    for number, row in read_jsonl(file):
        if not isinstance(row, dict):
            raise UserError(f"{file}:{number}: expected a JSON object")
        yield str(file), number, row


def _parquet_rows(file: Path) -> Iterator[Place]:
    try:
        import pyarrow
        import pyarrow.parquet as parquet
    except ImportError:
        raise UserError(f"{file}: parquet needs pip install 'tinyr1[data]'") from None
    try:
        with parquet.ParquetFile(file) as opened:
            number = 0
            # A reader over the whole file keeps every row group that it has passed.
            for group in range(opened.num_row_groups):
                for batch in opened.iter_batches(batch_size=BATCH, row_groups=[group]):
                    for row in batch.to_pylist():
                        number += 1
                        yield str(file), number, row
    except (pyarrow.ArrowInvalid, pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{file}: cannot be read ({error}); download it again") from None
