"""Files that survive a crash: written beside, fsynced, renamed; journals that tolerate a torn tail.

Nothing of this project appears half-written under its final name, and a process killed at any
moment leaves files that the next run can continue from.
"""

from __future__ import annotations

import contextlib
import fcntl
import gzip
import hashlib
import io
import json
import math
import os
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO, TypeVar

from tinyr1.common.errors import UserError, needs

T = TypeVar("T")


def real(path: Path) -> Path:
    """Follow a path's links to its end; unlike Path.resolve, a circle of them is no error."""
    return Path(os.path.realpath(path))


def fsync_directory(path: Path) -> None:
    """Make a rename inside `path` durable."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def fsync_file(path: Path) -> None:
    """Make the content of `path` durable, whoever wrote it."""
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def write_atomic(path: Path, data: str | bytes) -> None:
    """Replace `path` by `data`: a reader sees the old content or the new, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with naming(path), open(temporary, "wb") as file:  # the name that people know
            file.write(_encoded(data) if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
            os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    # Without it a crash may lose the rename, though not the content.
    fsync_directory(path.parent)


def remove_torn(folder: Path) -> None:
    """Remove what processes that were killed in `write_atomic` left in a folder."""
    for torn in folder.glob(".*.partial"):
        torn.unlink()


def _encoded(text: str) -> bytes:
    """UTF-8; of a file name that is none, the odd bytes as JSON would write them: \\udcff."""
    return text.encode(errors="backslashreplace")


def finite(value: float) -> float | None:
    """The value, or None for NaN and infinity, which JSON does not know."""
    return value if math.isfinite(value) else None


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    write_atomic(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write one JSON object a line, atomically."""
    write_atomic(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def read_json(path: Path) -> Any:
    """Read a JSON file; UserError names the file when it is missing or malformed."""
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{path}: no such file") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON ({error})") from None


def read_text(path: Path) -> str:
    """A text file; UserError where it is none."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        said = error.strerror if isinstance(error, OSError) else f"not UTF-8 text ({error})"
        raise UserError(f"{path}: {str(said).lower()}") from None


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON file that must hold an object; UserError where it does not."""
    value = read_json(path)
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected a JSON object")
    return value


def read_jsonl(path: Path) -> Iterator[tuple[int, Any]]:
    """Yield (line number from 1, value) for each non-empty line; UserError names the line.

    A .json file may be one array instead; its values count as lines. Either may be packed: .gz, or
    .zst (which needs pyarrow).
    """
    for number, value in json_lines(path):
        if isinstance(value, ValueError):
            raise UserError(f"{path}:{number}: {value}")
        yield number, value


def json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """`read_jsonl`, but a line that is no JSON is a ValueError in its value's place."""
    try:
        if is_array(path):
            yield from enumerate(_array(path), 1)
            return
        with _opened_text(path) as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    try:
                        value = json.loads(line)
                    except (ValueError, RecursionError) as error:
                        if number == 1 and json_suffix(path) == ".json":
                            error = f"{error}; expected an array, or an object a line"
                        value = ValueError(f"not valid JSON ({error})")
                    yield number, value
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise UserError(f"{path}: a directory, expected a .jsonl file") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error})") from None
    except (EOFError, zlib.error, gzip.BadGzipFile, _Broken) as error:
        raise UserError(f"{path}: cannot be unpacked ({error}); download it again") from None


PACKED = (".gz", ".zst")


def json_suffix(path: Path) -> str:
    """The end of a name in small letters, without that of a packed file: .json of x.JSON.gz."""
    ends = [end.lower() for end in path.suffixes]
    return ends[-2] if len(ends) > 1 and ends[-1] in PACKED else path.suffix.lower()


class _Broken(Exception):
    """A packed file that its library cannot unpack."""


def _opened_text(path: Path) -> TextIO:
    """A text file, unpacked as its name says."""
    match path.suffix.lower():
        case ".gz":
            return gzip.open(path, "rt", encoding="utf-8-sig")
        case ".zst":
            return io.TextIOWrapper(io.BufferedReader(_Unzstd(path)), encoding="utf-8-sig")
        case _:
            return open(path, encoding="utf-8-sig")


class _Unzstd(io.RawIOBase):
    """The bytes within a .zst file."""

    def __init__(self, path: Path) -> None:
        self._arrow = needs("pyarrow", "data", f"{path}")
        self._file = self._arrow.input_stream(str(path), compression="zstd")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            part = self._file.read(len(buffer))
        except (OSError, self._arrow.ArrowException) as error:
            raise _Broken(error) from None
        buffer[: len(part)] = part
        return len(part)

    def close(self) -> None:
        self._file.close()
        super().close()


def is_array(path: Path) -> bool:
    """True for a .json file that begins as an array."""
    if json_suffix(path) != ".json":
        return False
    try:
        with _opened_text(path) as file:
            return file.read(1000).lstrip()[:1] == "["
    except (OSError, UnicodeDecodeError, EOFError, zlib.error, _Broken):
        return False  # which reading it says


def _array(path: Path) -> list[Any]:
    try:
        with _opened_text(path) as file:
            return json.load(file)
    except (json.JSONDecodeError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON ({error})") from None


def read_rows(path: Path, from_json: Callable[[Any], T]) -> Iterator[tuple[int, T]]:
    """`read_jsonl` with each line made into a checked row, whose ValueError gets file and line."""
    for number, line in read_jsonl(path):
        try:
            row = from_json(line)
        except ValueError as error:
            raise UserError(f"{path}:{number}: {error}") from None
        yield number, row


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """An OSError from within says `path`: a file descriptor has no name of its own."""
    try:
        yield
    except OSError as error:
        error.filename = str(path)
        raise


class Journal:
    """An append-only JSONL file. Each row is on disk when `append` returns.

    A row that a crash cut short is removed when the journal is opened again. UserError where a
    row is no JSON object with `fields` of these types.
    """

    def __init__(self, path: Path, **fields: type | tuple[type, ...]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.rows: list[dict[str, Any]] = []
        kept = 0
        for line in path.read_bytes().split(b"\n")[:-1] if path.exists() else ():
            try:
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise ValueError("expected a JSON object")
                for field, kind in fields.items():
                    if not isinstance(row.get(field), kind):
                        raise ValueError(f"{field}={row.get(field)!r}")
            except (ValueError, RecursionError) as error:
                raise UserError(
                    f"{path}: damaged after byte {kept} ({error}); move it away to start anew"
                ) from None
            self.rows.append(row)
            kept += len(line) + 1
        self._file = open(path, "ab")  # noqa: SIM115 - lives as long as the journal
        if path.stat().st_size > kept:
            self._file.truncate(kept)

    def append(self, *rows: dict[str, Any]) -> None:
        with naming(self.path):
            for row in rows:
                self._file.write(_encoded(json.dumps(row, ensure_ascii=False) + "\n"))
            self._file.flush()
            os.fsync(self._file.fileno())

    def close(self) -> None:
        with naming(self.path):  # it writes what an `append` could not
            self._file.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on `path` (made if missing); waits for the holder, frees on exit."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def owned(folder: Path) -> Iterator[None]:
    """Hold `folder` for this process; UserError when another one writes into it.

    What a process that was killed in `write_atomic` left there is removed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    fd = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{folder}: another process is writing into it; wait for it") from None
        remove_torn(folder)
        yield
    finally:
        os.close(fd)


def hash_files(paths: list[Path]) -> str:
    """SHA-256 over the contents of `paths` in order; UserError where one is no file on a disk."""
    digest = hashlib.sha256()
    for path in paths:
        if not path.is_file():  # a pipe would be empty when it is read again
            wrong = "expected a file" if path.exists() else "no such file"
            raise UserError(f"{path}: {wrong}")
        with open(path, "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def hash_file(path: Path) -> str:
    """SHA-256 of a file, as `sha256sum` prints it."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_json(value: Any) -> str:
    """SHA-256 of a JSON value with sorted keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
