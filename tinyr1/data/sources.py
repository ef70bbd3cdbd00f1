"""Reading published sets row by row: files, folders of them, or the hub."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from tinyr1.common.errors import UserError, needs
from tinyr1.common.files import hash_file, real
from tinyr1.data.published import (
    SUFFIXES,
    Row,
    file_rows,
    hub_rows,
    is_about_others,
    is_data,
    newest_commit,
)

SPLITS = {"train": "train", "test": "test", "validation": "validation", "valid": "validation"}
SPLITS |= {"val": "validation", "dev": "validation", "eval": "validation"}
# Of a file: train-00000-of-00007, train.jsonl, math_train.jsonl; of a folder: its whole name.
_SHARD = re.compile(rf"((?:{'|'.join(SPLITS)})(?:_[a-z]+)*)-\d{{5}}-of-\d{{5}}\b")
_NAMED = re.compile(rf"(?:^|.*[-_.])({'|'.join(SPLITS)})(?:-\d+)?(?:\.[a-z.]+)?")
KINDS = f"{', '.join(SUFFIXES)} (.jsonl and .json also .gz or .zst)"


class Place(NamedTuple):
    """A row of a source, and where it lies."""

    where: str  # a file, or a set on the hub
    number: int  # from 1
    row: Row
    origin: str = ""  # the source's name, for the record's provenance
    is_whole: bool = False  # all of the source's rows are wanted, whatever they are about


@dataclass(frozen=True)
class Source:
    """Files, or a set on the hub at one commit.

    `files` maps names by which rows are known (of a folder, its own and the path in it) to files.
    """

    name: str
    files: dict[str, Path] = field(default_factory=dict)
    config: str | None = None
    revision: str = ""
    split: str = "train"
    is_whole: bool = False
    unread: tuple[str, ...] = ()  # files of the folder that are not read, each with the reason

    @property
    def is_hub(self) -> bool:
        return not self.files

    @property
    def origin(self) -> str:
        """What was read, by name: the set on the hub, the folder, the file."""
        return self.name if self.is_hub else _name_of(Path(self.name))

    def rows(self) -> Iterator[Place]:
        """Every row, a few in memory at a time."""
        if not self.files:
            what = f"--source={self.name}"
            rows = hub_rows(what, self.name, self.config, self.split, self.revision, True)
            for number, row in rows:
                yield Place(self.name, number, row, self.origin, self.is_whole)
        for name, file in self.files.items():
            for number, row in file_rows(file):
                yield Place(name, number, row, self.origin, self.is_whole)

    def identity(self) -> dict[str, Any]:
        """Describe it for FILE.meta.json: sizes and hashes of files, or the hub's commit."""
        if not self.files:
            about = {"hub": self.name, "config": self.config, "revision": self.revision}
            about |= {"split": self.split} if self.split != "train" else {}
            return about | self._how()
        described: list[dict[str, Any]] = []
        for name, file in self.files.items():
            about = {"file": name, "bytes": file.stat().st_size, "sha256": hash_file(file)}
            described.append(about)
        return {"files": described} | self._how()

    def _how(self) -> dict[str, Any]:
        """What is read of it, and what is not."""
        whole = {"whole": True} if self.is_whole else {}
        return whole | ({"not_read": list(self.unread)} if self.unread else {})


def _name_of(path: Path) -> str:
    """A file's or folder's own name; of what lies in the hub's cache, the set's."""
    for part in real(path.parent).joinpath(path.name).parts:
        if part.startswith("datasets--"):
            return part.removeprefix("datasets--").replace("--", "/")
    return path.name if path.name not in ("", "..") else real(path).name


def open_sources(
    names: Sequence[str],
    out: Path,
    config: str | None = None,
    revision: str | None = None,
    split: str | None = None,
    whole: Sequence[str] = (),
) -> list[Source]:
    """Find each name: a file, a folder, or a set on the hub at its newest commit.

    `whole` are further names, all of whose rows are wanted. What a run to `out` writes is never
    read. UserError for a name that is none of the three, and for options of other kinds of source.
    """
    hub = (config, revision, split or "train")
    sources = [_open(name, out, *hub) for name in names]
    sources += [replace(_open(name, out, *hub), is_whole=True) for name in whole]
    if (config or revision) and not any(source.is_hub for source in sources):
        option = "--hub-config" if config else "--revision"
        raise UserError(f"{option}: of a set on the hub, and --source names local files")
    if split and all(Path(source.name).is_file() for source in sources):
        raise UserError("--split: of a folder or a set on the hub, and --source names files")
    labels = Counter(label for source in sources for label in source.files)
    if max(labels.values(), default=0) > 1:  # rows must be told apart by name and number
        sources = [
            replace(source, files={f"{i}/{label}": file for label, file in source.files.items()})
            for i, source in enumerate(sources, 1)
        ]
    return sources


def _open(name: str, out: Path, config: str | None, revision: str | None, split: str) -> Source:
    path = Path(name)
    if path.is_dir():
        return _open_folder(name, out, split)
    if path.exists():
        if not is_data(path):
            raise UserError(f"--source={name}: expected {KINDS}")
        if is_output(path, out):
            raise UserError(f"--source={name}: --out={out} would write it; choose another --out")
        return Source(name, {path.name: path})
    if is_data(path) or name.count("/") != 1 or name.startswith((".", "/")):
        raise UserError(f"--source={name}: no such file, and no name on the hub (owner/name)")
    needs("datasets", "data", f"--source={name}")
    commit = newest_commit(f"--source={name}", name, revision)
    return Source(name, config=config, revision=commit, split=split)


def _open_folder(name: str, out: Path, split: str) -> Source:
    """The data files of a folder that are of the split, or of none; `save_to_disk`'s, too."""
    folder = Path(name)
    inside = _name_of(folder)
    found: dict[str, Path] = {}
    unread: list[str] = []
    splits: set[str] = set()
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        at = file.relative_to(folder)
        if any(part.startswith(".") for part in at.parts):
            continue
        its_split = _split_of(at)
        if is_output(file, out):
            unread.append(f"{at} (an output of this command)")
        elif not is_data(file):
            unread.append(f"{at} (no data format)")
        elif is_about_others(file):
            unread.append(f"{at} (one JSON object, no rows)")
        elif its_split and its_split != SPLITS.get(split, split):
            splits.add(its_split)
            unread.append(f"{at} (of the split {its_split})")
        else:
            found[f"{inside}/{at.as_posix()}"] = file
    if not found and splits:
        raise UserError(
            f"--source={name}: no file of the split {split}; --split names one of "
            f"{', '.join(sorted(splits))}"
        )
    if not found:
        raise UserError(f"--source={name}: no data file in it; expected {KINDS}")
    return Source(name, found, split=split, unread=tuple(unread))


def _split_of(path: Path) -> str:
    """The split that a file's name or one of its folders' says; "" for none."""
    name = path.name.lower()
    if shard := _SHARD.match(name):
        return SPLITS.get(shard[1], shard[1])
    if named := _NAMED.fullmatch(name):
        return SPLITS[named[1]]
    folders = [part.lower() for part in path.parts[:-1] if part.lower() in SPLITS]
    return SPLITS[folders[-1]] if folders else ""


def is_output(path: Path, out: Path) -> bool:
    """True for a file that a run to `out` (of this program, or of a teacher) writes."""
    made = {real(out), *(real(out.with_suffix(s)) for s in (".rejected.jsonl", ".meta.json"))}
    whole = real(path)
    return whole in made or real(out.with_suffix(".partial")) in whole.parents
