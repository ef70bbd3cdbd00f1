"""Rows of published data sets, a few at a time: JSON, CSV, parquet, or a set on the hub."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tinyr1.common.errors import UserError, needs
from tinyr1.common.files import read_jsonl

BATCH = 64  # rows of a parquet file that are Python objects at once
Row = dict[str, Any]


def file_rows(file: Path) -> Iterator[tuple[int, Row]]:
    """(number from 1, row) of a .jsonl or .json (the line's number), .csv or .parquet file.

    UserError where it cannot be read.
    """
    if file.suffix.lower() in (".jsonl", ".json"):
        for number, row in read_jsonl(file):
            if not isinstance(row, dict):
                raise UserError(f"{file}:{number}: expected a JSON object")
            yield number, row
        return
    try:
        yield from enumerate(
            _csv_rows(file) if file.suffix.lower() == ".csv" else _parquet_rows(file), 1
        )
    except (ValueError, csv.Error) as error:
        raise UserError(f"{file}: cannot be read ({_line(error)}); download it again") from None


def _csv_rows(file: Path) -> Iterator[Row]:
    csv.field_size_limit(1 << 30)
    with open(file, encoding="utf-8-sig") as opened:  # line ends in a field become "\n", too
        yield from csv.DictReader(opened)


def _parquet_rows(file: Path) -> Iterator[Row]:
    arrow = needs("pyarrow", "data", f"{file}")
    parquet = needs("pyarrow.parquet", "data", f"{file}")
    try:
        with parquet.ParquetFile(file) as opened:
            # A reader over the whole file keeps every row group that it has passed.
            for group in range(opened.num_row_groups):
                for batch in opened.iter_batches(batch_size=BATCH, row_groups=[group]):
                    yield from batch.to_pylist()
    except (arrow.ArrowException, OSError) as error:
        raise ValueError(error) from None


def hub_rows(
    what: str,
    name: str,
    config: str | None,
    split: str,
    revision: str | None = None,
    streaming: bool = False,
) -> Iterator[tuple[int, Row]]:
    """(number from 1, row) of a set on the hub; UserError, for `what`, if it cannot be loaded."""
    datasets = needs("datasets", "data", what)
    try:
        rows = datasets.load_dataset(
            name, config, split=split, revision=revision, streaming=streaming
        )
        for number, row in enumerate(rows, 1):
            yield number, dict(row)
    except Exception as error:  # of a dozen kinds: offline, gated, renamed, cut off
        raise _not_loaded(what, error) from None


def newest_commit(what: str, name: str, revision: str | None) -> str:
    """The commit that a set on the hub has now, or that a branch or tag of it has."""
    hub = needs("huggingface_hub", "data", what)
    try:
        return hub.HfApi().dataset_info(name, revision=revision).sha or revision or "main"
    except Exception as error:  # as above
        raise _not_loaded(what, error) from None


def _not_loaded(what: str, error: Exception) -> UserError:
    why = f"{type(error).__name__}: {_line(error)}"  # some have no text
    return UserError(f"{what}: cannot be loaded from the hub ({why}); give downloaded files")


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
