"""Rows of published data sets, a few at a time: JSON, CSV, parquet, Arrow, or a set on the hub."""

from __future__ import annotations

import csv
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tinyr1.common.errors import UserError, needs
from tinyr1.common.files import is_array, json_suffix, read_jsonl

BATCH = 64  # rows of a parquet file that are Python objects at once
PATIENCE = 20.0  # seconds of silence after which it is said that the hub is silent
SUFFIXES = (".jsonl", ".json", ".csv", ".parquet", ".arrow")  # the first two also .gz and .zst
_BESIDE = ("dataset_dict.json", "dataset_info.json", "dataset_infos.json", "state.json")
Row = dict[str, Any]


def is_data(file: Path) -> bool:
    """True for a name that `file_rows` knows."""
    end = json_suffix(file)
    return end in (".jsonl", ".json") or (end == file.suffix.lower() and end in SUFFIXES)


def is_about_others(file: Path) -> bool:
    """True for a .json file of one object over several lines, or one that the library `datasets`
    writes beside rows: it is about other files."""
    if file.name in _BESIDE:
        return True
    if file.suffix.lower() != ".json" or not file.is_file() or is_array(file):
        return False
    with open(file, "rb") as opened:
        line = opened.readline(1 << 20)
    first = line.strip()
    is_whole = len(line) < 1 << 20  # else a row of a megabyte
    return first[:1] == b"{" and is_whole and not (first.endswith(b"}") and len(first) > 2)


def file_rows(file: Path) -> Iterator[tuple[int, Row]]:
    """(number from 1, row) of a file: .jsonl or .json (the line's number), packed ones too, .csv,
    .parquet or .arrow.

    UserError where it cannot be read.
    """
    end = json_suffix(file)
    if end in (".jsonl", ".json"):
        for number, row in read_jsonl(file):
            if not isinstance(row, dict):
                raise UserError(f"{file}:{number}: expected a JSON object")
            yield number, row
        return
    readers = {".csv": _csv_rows, ".arrow": _arrow_rows}
    try:
        yield from enumerate(readers.get(end, _parquet_rows)(file), 1)
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: not UTF-8 text ({error})") from None
    except (ValueError, csv.Error) as error:
        raise UserError(f"{file}: cannot be read ({_line(error)}); download it again") from None


def _csv_rows(file: Path) -> Iterator[Row]:
    csv.field_size_limit(1 << 30)
    with open(file, encoding="utf-8-sig") as opened:  # line ends in a field become "\n", too
        yield from csv.DictReader(opened, strict=True)  # a quote that nothing closes is said


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


def _arrow_rows(file: Path) -> Iterator[Row]:
    """Of a file that `save_to_disk` or Feather has written: a stream, or a file with an index."""
    arrow = needs("pyarrow", "data", f"{file}")
    try:
        with arrow.memory_map(str(file)) as opened:
            is_indexed = opened.read(6) == b"ARROW1"
            opened.seek(0)
            read = arrow.ipc.open_file(opened) if is_indexed else arrow.ipc.open_stream(opened)
            batches = map(read.get_batch, range(read.num_record_batches)) if is_indexed else read
            for batch in batches:
                for start in range(0, batch.num_rows, BATCH):
                    yield from batch.slice(start, BATCH).to_pylist()
    except (arrow.ArrowException, OSError) as error:
        raise ValueError(error) from None


# ---------------------------------------------------------------- the hub


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def hub_rows(
    what: str,
    name: str,
    config: str | None,
    split: str,
    revision: str | None = None,
    streaming: bool = False,
    say: Callable[[str], None] = _say,
) -> Iterator[tuple[int, Row]]:
    """(number from 1, row) of a set on the hub; UserError, for `what`, if it cannot be loaded.

    Where it is silent for PATIENCE seconds, that is said; its libraries' own patience is longer.
    """
    datasets = needs("datasets", "data", what)

    def rows() -> Iterator[Any]:
        yield from datasets.load_dataset(
            name, config, split=split, revision=revision, streaming=streaming
        )

    try:
        for number, row in enumerate(_watched(rows(), what, say), 1):
            yield number, dict(row)
    except Exception as error:  # of a dozen kinds: offline, gated, renamed, cut off
        raise _not_loaded(what, name, error) from None


def newest_commit(what: str, name: str, revision: str | None) -> str:
    """The commit that a set on the hub has now, or that a branch or tag of it has."""
    hub = needs("huggingface_hub", "data", what)
    try:
        about = hub.HfApi().dataset_info(name, revision=revision, timeout=PATIENCE)
        return about.sha or revision or "main"
    except Exception as error:  # as above
        raise _not_loaded(what, name, error) from None


def _watched(rows: Iterator[Any], what: str, say: Callable[[str], None]) -> Iterator[Any]:
    """The same rows; a thread looks how long the next one is waited for."""
    asked: list[float] = []  # since when, while a row is waited for
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(PATIENCE / 10):
            if asked and time.monotonic() - asked[0] > PATIENCE:
                say(f"{what}: nothing has come from the hub for {PATIENCE:.0f} s; Ctrl-C ends it")
                asked[:] = [time.monotonic() + 2 * PATIENCE]  # again in a minute

    threading.Thread(target=look, daemon=True).start()
    try:
        while True:
            asked[:] = [time.monotonic()]
            try:
                row = next(rows)
            except StopIteration:
                return
            asked.clear()
            yield row
    finally:
        ended.set()


def _not_loaded(what: str, name: str, error: Exception) -> UserError:
    why = f"{type(error).__name__}: {_line(error)}"  # some have no text
    if "gated" in why.lower():
        return UserError(
            f"{what}: is gated: accept its terms at https://huggingface.co/datasets/{name}, then "
            f"`hf auth login`, or set HF_TOKEN ({why})"
        )
    return UserError(f"{what}: cannot be loaded from the hub ({why}); give downloaded files")


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
