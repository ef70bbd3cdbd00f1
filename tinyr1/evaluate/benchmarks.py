"""The benchmarks as they are published: their files become rows of a task file.

Paper section 3.1.2: AIME 2024, LiveCodeBench from August 2024 to February 2025, GPQA-Diamond; here
also AIME 2025 and MATH-500. Users bring the files; nothing of them is shipped or printed.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import pickle
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from tinyr1.common.errors import UserError
from tinyr1.common.files import json_suffix
from tinyr1.data.published import (
    SUFFIXES,
    Row,
    file_rows,
    hub_rows,
    is_about_others,
    is_data,
)
from tinyr1.record import TaskRow

LCB_WINDOW = ("2024-08-01", "2025-02-01")  # the paper's
LCB_PRESET_LIMITS = {"tinyr1": (18.0, 60.0)}  # seconds a test and in all, as the paper's runs had


@dataclass(frozen=True)
class Benchmark:
    """A benchmark: names of its files, its place on the hub, and the rows that it must have."""

    names: tuple[str, ...]  # beginnings of file and folder names, letters and digits only
    hub: tuple[str, str | None, str]  # data set, configuration, split
    rows: int
    convert: Callable[[Row, int], Row | None]


def load_benchmark(
    name: str, data: Path | None, preset: str, window: tuple[str, str] = LCB_WINDOW
) -> list[TaskRow]:
    """Rows of a built-in task, from files under `data` or, without it, from the hub.

    Raises UserError where files are missing, a field is, or the number of rows is not the known
    one.
    """
    if name not in BENCHMARKS:
        raise UserError(f"--tasks={name}: expected some of {', '.join(BENCHMARKS)}")
    benchmark = BENCHMARKS[name]
    source = _files(name, benchmark, data) if data else _hub(*benchmark.hub)
    per_test, in_all = (None, None)
    if name == "livecodebench":
        per_test, in_all = LCB_PRESET_LIMITS.get(preset, (None, None))
    rows: list[TaskRow] = []
    read = 0
    places: dict[str, None] = {}
    for place, raw in source:
        places[re.sub(r":( row)? ?\d+$", "", place)] = None
        try:
            fields = benchmark.convert(raw, read)
            if fields is None:  # of another year
                continue
            read += 1
            if name == "livecodebench" and not _in_window(fields["date"], window):
                continue
            limits = {"timeout_s": per_test, "timeout_total_s": in_all}
            rows.append(TaskRow.from_json(fields | {"task": name} | limits))
        except (KeyError, ValueError, TypeError, RecursionError, zlib.error) as error:
            said = f"field {error} is missing" if isinstance(error, KeyError) else str(error)
            raise UserError(f"{place}: {said}; is this a file of {name}?") from None
    expected = benchmark.rows if name != "livecodebench" or window == LCB_WINDOW else len(rows)
    if len(rows) != expected or not rows:
        raise UserError(
            f"--tasks={name}: {len(rows)} rows, expected {expected}{_read_from(places)}; another "
            "release or a part of the set can be evaluated as a --task-file"
        )
    if len({row.id for row in rows}) != len(rows):
        raise UserError(f"--tasks={name}: some ids appear twice{_read_from(places)}")
    return rows


def _read_from(places: Iterable[str]) -> str:
    files = list(places)
    if not files:
        return ""
    return f" in {', '.join(files[:4])}" + (f" and {len(files) - 4} more" if files[4:] else "")


# ---------------------------------------------------------------- where rows come from


DEPTH = 5  # levels below --data that are looked into


def _plain(name: str) -> str:
    """A name without its case and punctuation, and without what the hub's cache puts before it."""
    name = re.sub(r"^datasets--[^-]+(?:-[^-]+)*?--", "", name)
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _files(name: str, benchmark: Benchmark, data: Path) -> Iterator[tuple[str, Row]]:
    """Rows of the benchmark's files below DATA."""
    if not data.is_dir():
        wrong = "a file, expected a directory" if data.exists() else "no such directory"
        raise UserError(f"--data={data}: {wrong}")
    files = _named(data, benchmark.names)
    if not files:
        raise UserError(
            f"--data={data}: nothing for --tasks {name}: expected {', '.join(SUFFIXES)}, or a "
            f"folder of them, whose name begins with {' or '.join(benchmark.names)}"
        )
    for file in files:
        for number, row in file_rows(file):
            is_lines = json_suffix(file) in (".jsonl", ".json")
            yield f"{file}:{number}" if is_lines else f"{file}: row {number}", row


def _named(data: Path, names: tuple[str, ...]) -> list[Path]:
    """The data files with such a name, or in folders with one, that lie highest below `data`."""
    level = [data]
    for _ in range(DEPTH):
        below = sorted(path for folder in level for path in _inside(folder))
        named = [path for path in below if _plain(path.name).startswith(names)]
        files = [path for path in named if not path.is_dir()]
        for folder in (path for path in named if path.is_dir()):
            inside = sorted(folder.rglob("*"))
            files += [p for p in inside if not _is_hidden(p.relative_to(folder))]
        if found := [p for p in files if is_data(p) and not is_about_others(p)]:
            return found
        level = [path for path in below if path.is_dir() and not path.name.startswith(".")]
    return []


def _inside(folder: Path) -> list[Path]:
    """What lies in a folder; nothing where it may not be looked into."""
    with contextlib.suppress(PermissionError):
        return list(folder.iterdir())
    return []


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _hub(name: str, configuration: str | None, split: str) -> Iterator[tuple[str, Row]]:
    what = f"--data: not given; {name}"
    for number, row in hub_rows(what, name, configuration, split):
        yield f"{name}: row {number}", row


# ---------------------------------------------------------------- what a row is


def _first(raw: Row, *names: str) -> Any:
    """The first of these fields that is there."""
    for name in names:
        if raw.get(name) not in (None, ""):
            return raw[name]
    raise KeyError(names[0])


def _aime(year: int) -> Callable[[Row, int], Row | None]:
    def convert(raw: Row, number: int) -> Row | None:
        text = f"{raw.get('url', '')} {raw.get('source', '')} {raw.get('year', '')}"
        years = re.findall(r"20\d\d", text)
        if years and str(year) not in years:  # a file of several years
            return None
        given = _first(raw, "answer", "Answer")
        if isinstance(given, float) and given.is_integer():  # of a table
            given = int(given)
        answer = int(str(given).strip())  # '073', '73' and 73
        if not 0 <= answer <= 999:
            raise ValueError(f"answer={answer}: expected 0 to 999")
        problem = str(_first(raw, "problem", "question", "Problem", "Question"))
        names = [raw.get(field) for field in ("id", "ID")]
        if re.search(r"\d$", str(raw.get("source") or "")):  # aime_2025_I-1, not the set's name
            names.append(raw["source"])
        name = str(next((name for name in names if name not in (None, "")), number))
        return {"id": name, "kind": "math", "prompt": problem, "answer": str(answer)}

    return convert


def _math500(raw: Row, number: int) -> Row:
    return {
        "id": str(raw.get("unique_id") or number),
        "kind": "math",
        "prompt": str(_first(raw, "problem", "question", "Question", "Problem")),
        "answer": str(_first(raw, "answer", "Answer")),
        "subject": raw.get("subject"),
        "difficulty": None if raw.get("level") is None else f"level {raw['level']}",
    }


def _gpqa(raw: Row, number: int) -> Row:
    wrong = [str(_first(raw, f"Incorrect Answer {i}")) for i in (1, 2, 3)]
    return {
        "id": str(_first(raw, "Record ID")),
        "kind": "choice",
        "prompt": str(_first(raw, "Question")),
        "choices": [str(_first(raw, "Correct Answer")), *wrong],
        "answer": "A",
        "shuffle": True,  # each trial sees an order of its own
        "subject": raw.get("High-level domain"),
    }


def _livecodebench(raw: Row, number: int) -> Row:
    tests = _decode_tests(raw["public_test_cases"]) + _decode_tests(raw["private_test_cases"])
    if not tests:
        raise ValueError("no tests: every program would pass")
    metadata = json.loads(raw.get("metadata") or "{}")
    if not isinstance(metadata, dict):
        raise ValueError(f"metadata={metadata!r}: expected an object")
    functional = {test.get("testtype") == "functional" for test in tests}
    if functional == {True} and not metadata.get("func_name"):
        raise ValueError("metadata: no func_name, and its tests are functional")
    date = str(_first(raw, "contest_date"))
    _day(date)
    return {
        "id": str(_first(raw, "question_id")),
        "kind": "code",
        "prompt": str(_first(raw, "question_content")),
        "starter_code": raw.get("starter_code") or "",
        "tests": {
            "inputs": [str(test["input"]) for test in tests],
            "outputs": [str(test["output"]) for test in tests],
            "fn_name": metadata.get("func_name"),
        },
        "date": date,
        "subject": raw.get("platform"),
        "difficulty": raw.get("difficulty"),
    }


class _TextOnly(pickle.Unpickler):
    """A pickle may name any function to be called while it is read; this one may name none."""

    def find_class(self, module_name: str, global_name: str) -> Any:
        raise ValueError(f"private tests: a pickle that asks for {module_name}.{global_name}")


def _decode_tests(text: str) -> list[Row]:
    """Tests as JSON, or as base64 of zlib of a pickle of JSON text."""
    try:
        tests = json.loads(text)
    except ValueError:
        data = zlib.decompress(base64.b64decode(text, validate=True))
        try:
            payload = _TextOnly(io.BytesIO(data)).load()
        except Exception as error:  # a damaged pickle may raise anything
            raise ValueError(f"private tests: {error}") from None
        if not isinstance(payload, str):
            raise ValueError(f"private tests: a {type(payload).__name__}, expected text") from None
        tests = json.loads(payload)
    if not isinstance(tests, list):
        raise ValueError("tests: expected a list")
    return tests


def _in_window(date: str, window: tuple[str, str]) -> bool:
    """True for a contest from the first day to the last, both at midnight, as published."""
    try:
        first, last = _day(window[0]), _day(window[1])
    except ValueError as error:
        raise UserError(f"--lcb-start, --lcb-end: {error}") from None
    return first <= _day(date) <= last


def _day(text: str) -> datetime:
    """A day and perhaps a time, in the zone in which it was published."""
    return datetime.fromisoformat(text).replace(tzinfo=None)


BENCHMARKS = {
    "aime24": Benchmark(
        ("aime24", "aime2024", "aimevalidation", "aimovalidationaime"),
        ("HuggingFaceH4/aime_2024", None, "train"),
        30,
        _aime(2024),
    ),
    "aime25": Benchmark(("aime25", "aime2025"), ("math-ai/aime25", None, "test"), 30, _aime(2025)),
    "math500": Benchmark(("math500",), ("HuggingFaceH4/MATH-500", None, "test"), 500, _math500),
    "gpqa_diamond": Benchmark(
        ("gpqadiamond",), ("Idavidrein/gpqa", "gpqa_diamond", "train"), 198, _gpqa
    ),
    "livecodebench": Benchmark(
        ("livecodebench", "codegenerationlite"),
        ("livecodebench/code_generation_lite", "release_v5", "test"),
        279,
        _livecodebench,
    ),
}
