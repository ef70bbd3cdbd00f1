"""Writing a checkpoint: Hugging Face directories of safetensors, tensor by tensor, in any order.

    with CheckpointWriter(out, specs) as writer:
        writer.write(name, tensor)         # visible only when all are written
        writer.write_parts(name, (rows[part] for part in parts))

It never holds more than one tensor, or a few of its rows. The safetensors format: 8 bytes
little-endian header length, a JSON header with dtype, shape and offsets of each tensor, the bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from tinyr1.common.files import fsync_directory, naming, read_object, write_atomic, write_json
from tinyr1.model.places import side_files
from tinyr1.model.rows import TensorSpec
from tinyr1.model.weights import CODE_OF, INDEX_NAME, dtype_name

OUR_SHARDS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors")


class CheckpointWriter:
    """Writes a checkpoint of known tensors, in any order, into shards laid out beforehand.

    Shards have their full size from the start under a name ending in `.partial`; `finish` fsyncs
    and renames them and writes the index last. With `resume`, shards of the right size that an
    earlier process left (under either name) stay as they are and are listed in `kept`: the caller
    knows which of their tensors are valid. All other shards are new and hold zeros. Nothing on
    disk changes before `open`, which the first write calls.

    `layout` names the shard of each tensor; without it, shards are filled up to `max_shard_bytes`.
    """

    def __init__(
        self,
        out: Path,
        specs: Mapping[str, TensorSpec],
        max_shard_bytes: int = 5 * 10**9,
        resume: bool = False,
        layout: Mapping[str, str] | None = None,
    ) -> None:
        self.out = out
        self.specs = dict(specs)
        self.shards: dict[str, str] = {}
        self.kept: set[str] = set()
        self._offsets: dict[str, int] = {}
        self._files: dict[str, int] = {}
        self._headers: dict[str, bytes] = {}
        self._sizes: dict[str, int] = {}
        groups = _split(self.specs, max_shard_bytes)
        if layout is None:
            single = ["model.safetensors"]
            many = [
                f"model-{i:05d}-of-{len(groups):05d}.safetensors" for i in range(1, len(groups) + 1)
            ]
            shards = single if len(groups) == 1 else many
            layout = {n: s for s, names in zip(shards, groups, strict=True) for n in names}
        for shard in dict.fromkeys(layout.values()):
            self._lay_out(shard, [name for name in self.specs if layout[name] == shard])
            if resume and any(
                path.exists() and path.stat().st_size == self._sizes[shard]
                for path in (out / f"{shard}.partial", out / shard)
            ):
                self.kept.add(shard)

    def _lay_out(self, shard: str, names: list[str]) -> None:
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        offset = 0
        for name in names:
            spec = self.specs[name]
            end = offset + spec.byte_count
            header[name] = {
                "dtype": CODE_OF[spec.dtype],
                "shape": list(spec.shape),
                "data_offsets": [offset, end],
            }
            self.shards[name], self._offsets[name] = shard, offset
            offset = end
        text = json.dumps(header, separators=(",", ":")).encode()
        # Padding of the header is spaces, as the format wants them.
        text += b" " * (-len(text) % 8)  # tensor data start at a multiple of 8
        data_start = 8 + len(text)
        for name in names:
            self._offsets[name] += data_start
        self._headers[shard] = struct.pack("<Q", len(text)) + text
        self._sizes[shard] = data_start + offset

    def open(self) -> None:
        """Make the shards that are not kept, and open all. Threads may write once it returned."""
        if self._files:
            return
        self.out.mkdir(parents=True, exist_ok=True)
        for shard, size in self._sizes.items():
            path, renamed = self.out / f"{shard}.partial", self.out / shard
            keep = shard in self.kept
            if keep and renamed.exists() and not path.exists():
                os.replace(renamed, path)  # an earlier `finish` did not get to its end
            fd = os.open(path, os.O_RDWR | os.O_CREAT | (0 if keep else os.O_TRUNC), 0o644)
            self._files[shard] = fd
            if not keep:
                with naming(path):
                    os.pwrite(fd, self._headers[shard], 0)
                    # A file of its full size from the start: threads write where they like, holes
                    # read as zeros.
                    os.truncate(fd, size)

    def write(self, name: str, tensor: Tensor) -> str:
        """Write one tensor; it must have the planned shape and dtype. Returns its SHA-256."""
        assert tuple(tensor.shape) == self.specs[name].shape, (name, tensor.shape)
        return self.write_parts(name, [tensor])

    def write_parts(self, name: str, parts: Iterable[Tensor]) -> str:
        """Write one tensor from its parts in order; returns the SHA-256 of its bytes."""
        self.open()
        spec = self.specs[name]
        digest = hashlib.sha256()
        fd = self._files[self.shards[name]]
        start = self._offsets[name]
        done = 0
        for part in parts:
            assert part.dtype == spec.dtype, (name, part.dtype, spec.dtype)
            if not part.numel():
                continue
            data = part.contiguous().view(-1).view(torch.uint8).numpy().data
            digest.update(data)
            stop = done + len(data)
            assert stop <= spec.byte_count, (name, stop)
            with naming(self.out / self.shards[name]):
                while done < stop:  # one call writes at most 2 GiB
                    done += os.pwrite(fd, data[done - stop :], start + done)
        assert done == spec.byte_count, (name, done, spec.byte_count)
        return digest.hexdigest()

    def sync(self) -> None:
        """Make everything written so far durable."""
        self.open()
        for shard, fd in self._files.items():
            with naming(self.out / shard):
                os.fsync(fd)

    def finish(self) -> None:
        """Give the shards their names; the index comes last, so it never names a missing file."""
        self.sync()
        self.close()
        stale = {path for path in self.out.iterdir() if OUR_SHARDS.fullmatch(path.name)}
        stale |= set(self.out.glob(INDEX_NAME))
        for shard in dict.fromkeys(self.shards.values()):
            os.replace(self.out / f"{shard}.partial", self.out / shard)
            stale.discard(self.out / shard)
        for path in stale:  # of an earlier export with another number of shards
            path.unlink()
        if set(self.shards.values()) != {"model.safetensors"}:
            total = sum(spec.byte_count for spec in self.specs.values())
            index = {"metadata": {"total_size": total}, "weight_map": self.shards}
            write_json(self.out / INDEX_NAME, index)
        fsync_directory(self.out)

    def close(self) -> None:
        for shard, fd in self._files.items():
            if fd >= 0:
                os.close(fd)
                self._files[shard] = -1

    def __enter__(self) -> CheckpointWriter:
        self.open()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        if kind is None:
            self.finish()
        else:
            self.close()


def _split(specs: Mapping[str, TensorSpec], max_bytes: int) -> list[list[str]]:
    """Names in order, cut into groups of at most `max_bytes` (a larger tensor goes alone)."""
    groups: list[list[str]] = [[]]
    size = 0
    for name, spec in specs.items():
        if groups[-1] and size + spec.byte_count > max_bytes:
            groups.append([])
            size = 0
        groups[-1].append(name)
        size += spec.byte_count
    return groups


def copy_side_files(
    source: Path,
    out: Path,
    dtype: torch.dtype,
    end_token: int | None = None,
    changes: Mapping[str, Any] = {},
) -> list[str]:
    """Copy all that belongs to a model but its weights, and config.json with its dtype set.

    `end_token` becomes one of the ids at which generation_config.json stops, `changes` are made in
    config.json. Returns the names of files that are too large to go along.
    """
    found, large = side_files(source)
    for name in found:
        write_atomic(out / name, (source / name).read_bytes())
    if end_token is not None:
        file = out / "generation_config.json"
        generation = read_object(file) if file.exists() else {}
        stops = generation.get("eos_token_id")
        stops = [] if stops is None else stops if isinstance(stops, list) else [stops]
        if end_token not in stops:
            write_json(file, generation | {"eos_token_id": [*stops, end_token]})
    config = read_object(source / "config.json") | dict(changes)
    write_json(out / "config.json", _with_dtype(config, dtype_name(dtype)))  # last: now it is whole
    return [str(name) for name in large]


def _with_dtype(config: dict[str, Any], name: str) -> dict[str, Any]:
    """A config with its dtype set, and those of the parts of a composite one that have one."""
    keys = ("dtype", "torch_dtype")  # the old name and the new one

    def renamed(part: dict[str, Any]) -> dict[str, Any]:
        return {
            key: name if key in keys else renamed(value) if isinstance(value, dict) else value
            for key, value in part.items()
        }

    config = renamed(config)
    return config if config.keys() & set(keys) else config | {"torch_dtype": name}
