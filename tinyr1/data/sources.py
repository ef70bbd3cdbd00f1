"""Reading published sets row by row: parquet and jsonl files, folders of them, or the hub."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tinyr1.common.errors import UserError, needs
from tinyr1.common.files import hash_file, real
from tinyr1.data.published import file_rows, hub_rows, newest_commit

SUFFIXES = (".parquet", ".jsonl")
Place = tuple[str, int, dict[str, Any]]


@dataclass(frozen=True)
class Source:
    """Files, or a set on the hub at one commit.

    `files` maps names by which rows are known (of a folder, its own and the path in it) to files.
    """

    name: str
    files: dict[str, Path] = field(default_factory=dict)
    config: str | None = None
    revision: str = ""

    @property
    def is_hub(self) -> bool:
        return not self.files

    def rows(self) -> Iterator[Place]:
        """(file or set, number from 1, row) of every row, a few in memory at a time."""
        if not self.files:
            for number, row in hub_rows(
                f"--source={self.name}", self.name, self.config, "train", self.revision, True
            ):
                yield self.name, number, row
        for name, file in self.files.items():
            for number, row in file_rows(file):
                yield name, number, row

    def identity(self) -> dict[str, Any]:
        """Describe it for FILE.meta.json: sizes and hashes of files, or the hub's commit."""
        if not self.files:
            return {"hub": self.name, "config": self.config, "revision": self.revision}
        described: list[dict[str, Any]] = []
        for name, file in self.files.items():
            about = {"file": name, "bytes": file.stat().st_size, "sha256": hash_file(file)}
            described.append(about)
        return {"files": described}


def open_sources(
    names: Sequence[str], out: Path, config: str | None = None, revision: str | None = None
) -> list[Source]:
    """Find each name: a file, a folder, or a set on the hub at its newest commit.

    What a run to `out` writes is never read. UserError for a name that is none of the three.
    """
    sources = [_open(name, out, config, revision) for name in names]
    labels = Counter(label for source in sources for label in source.files)
    if max(labels.values(), default=0) > 1:  # rows must be told apart by name and number
        sources = [
            replace(source, files={f"{i}/{label}": file for label, file in source.files.items()})
            for i, source in enumerate(sources, 1)
        ]
    return sources


def _open(name: str, out: Path, config: str | None, revision: str | None) -> Source:
    path = Path(name)
    if path.is_dir():
        found = sorted(p for p in path.rglob("*") if p.suffix in SUFFIXES and not is_output(p, out))
        if not found:
            raise UserError(f"--source={name}: no .parquet or .jsonl file in it")
        inside = real(path).name
        return Source(name, {f"{inside}/{p.relative_to(path).as_posix()}": p for p in found})
    if path.exists():
        if path.suffix not in SUFFIXES:
            raise UserError(f"--source={name}: expected .parquet or .jsonl")
        if is_output(path, out):
            raise UserError(f"--source={name}: --out={out} would write it; choose another --out")
        return Source(name, {path.name: path})
    if path.suffix in SUFFIXES or name.count("/") != 1 or name.startswith((".", "/")):
        raise UserError(f"--source={name}: no such file, and no name on the hub (owner/name)")
    needs("datasets", "data", f"--source={name}")
    return Source(name, config=config, revision=newest_commit(f"--source={name}", name, revision))


def is_output(path: Path, out: Path) -> bool:
    """True for a file that a run to `out` (of this program, or of a teacher) writes."""
    made = {real(out), *(real(out.with_suffix(s)) for s in (".rejected.jsonl", ".meta.json"))}
    whole = real(path)
    return whole in made or real(out.with_suffix(".partial")) in whole.parents
