"""Reading a training file: the one check, that of `train.py` and of `tinyr1.data inspect`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tinyr1.common.errors import UserError
from tinyr1.common.files import json_lines
from tinyr1.record import CONVERT, Record

TABLES = (".parquet", ".arrow", ".csv")


def read_records(
    path: Path, require_think: bool = True
) -> Iterator[tuple[int, Record | ValueError]]:
    """(line, record, or how the line breaks the contract) of a training file (docs/formats.md).

    UserError where the file cannot be read.
    """
    if path.suffix.lower() in TABLES:
        raise UserError(f"{path}: no JSON lines; {CONVERT}")
    for number, value in json_lines(path):
        if isinstance(value, ValueError):
            yield number, value
            continue
        try:
            yield number, Record.from_json(value, require_think)
        except ValueError as error:
            yield number, error
