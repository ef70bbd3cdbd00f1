"""Reading published sets row by row: parquet and jsonl files, folders of them, or the hub."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tinyr1.errors import UserError
from tinyr1.files import read_jsonl

BATCH = 64  # rows of a parquet file that are in memory at once
Place = tuple[str, int, dict[str, Any]]


def files_of(source: str) -> list[Path] | None:
    """The files that a source names; None where it is no path but a name on the hub."""
    path = Path(source)
    if path.is_dir():
        found = sorted(p for p in path.rglob("*") if p.suffix in (".parquet", ".jsonl"))
        if not found:
            raise UserError(f"--source={source}: no .parquet or .jsonl file in it")
        return found
    if path.exists():
        if path.suffix not in (".parquet", ".jsonl"):
            raise UserError(f"--source={source}: expected .parquet or .jsonl")
        return [path]
    if path.suffix in (".parquet", ".jsonl") or source.count("/") != 1 or source.startswith("."):
        raise UserError(f"--source={source}: no such file, and no name on the hub (owner/name)")
    return None


def read_rows(source: str, config: str | None) -> Iterator[Place]:
    """(where, number from 1, row) of every row, a few in memory at a time."""
    files = files_of(source)
    if files is None:
        yield from _hub(source, config)
        return
    for file in files:
        if file.suffix == ".jsonl":
            for number, row in read_jsonl(file):
                if not isinstance(row, dict):
                    raise UserError(f"{file}:{number}: expected a JSON object")
                yield str(file), number, row
        else:
            yield from _parquet(file)


def _parquet(file: Path) -> Iterator[Place]:
    try:
        import pyarrow
        import pyarrow.parquet as parquet
    except ImportError:
        raise UserError(f"{file}: parquet needs pip install 'tinyr1[data]'") from None
    try:
        with parquet.ParquetFile(file) as opened:
            number = 0
            for batch in opened.iter_batches(batch_size=BATCH):
                for row in batch.to_pylist():
                    number += 1
                    yield str(file), number, row
    except (pyarrow.ArrowInvalid, pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{file}: cannot be read ({error}); download it again") from None


def _hub(name: str, config: str | None) -> Iterator[Place]:
    try:
        from datasets import load_dataset
    except ImportError:
        raise UserError(f"--source={name}: the hub needs pip install 'tinyr1[data]'") from None
    try:
        rows = load_dataset(name, config, split="train", streaming=True)
        for number, row in enumerate(rows, 1):
            yield name, number, dict(row)
    except Exception as error:  # of a dozen kinds: offline, gated, renamed
        raise UserError(f"--source={name}: cannot be loaded ({error}); give a download") from None


def identity(source: str, config: str | None) -> dict[str, Any]:
    """What a source was, for FILE.meta.json: names, sizes and hashes of files, or hub name."""
    files = files_of(source)
    if files is None:
        return {"hub": source, "config": config}
    described: list[dict[str, Any]] = []
    for file in files:
        with open(file, "rb") as opened:
            digest = hashlib.file_digest(opened, "sha256").hexdigest()
        described.append({"file": file.name, "bytes": file.stat().st_size, "sha256": digest})
    return {"files": described}
