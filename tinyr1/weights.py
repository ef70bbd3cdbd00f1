"""Checkpoints on disk: Hugging Face directories of safetensors, read and written tensor by tensor.

    checkpoint = Checkpoint(path)          # one file or many, through mmap
    checkpoint.check(shapes, tied=False)   # every fault of names, shapes and dtypes at once
    with CheckpointWriter(out, specs) as writer:
        writer.write(name, tensor)         # in any order; visible only when all are written

Neither side ever holds more than one tensor. The safetensors format: 8 bytes little-endian header
length, a JSON header with dtype, shape and offsets of each tensor, then the bytes.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from tinyr1.errors import UserError
from tinyr1.files import fsync_directory, read_json, write_atomic, write_json

SAMPLE_BYTES = 1 << 16
INDEX_NAME = "model.safetensors.index.json"
SIDE_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "generation_config.json",
    "chat_template.jinja",
    "chat_template.json",
)
DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float64}
DTYPE_CODES = {dtype: code for code, dtype in DTYPES.items()}


class TensorSpec(NamedTuple):
    """What a file says of a tensor before any byte of it is read."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def byte_count(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class Checkpoint:
    """A Hugging Face directory: `specs` and `shards` by tensor name; the data stay in the files."""

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_dir():
            raise UserError(f"{path}: no such directory; expected a Hugging Face checkpoint")
        self.specs: dict[str, TensorSpec] = {}
        self.shards: dict[str, str] = {}
        self.unsupported: dict[str, str] = {}  # dtype codes that are no floating type of ours
        self._open_files: dict[str, Any] = {}
        for shard in self._shard_names():
            self._read_header(shard)
        self._check_index()

    def _shard_names(self) -> list[str]:
        if (self.path / INDEX_NAME).exists():
            weight_map = read_json(self.path / INDEX_NAME).get("weight_map")
            if not isinstance(weight_map, dict):
                raise UserError(f"{self.path / INDEX_NAME}: weight_map: missing")
            return sorted(set(weight_map.values()))
        if (self.path / "model.safetensors").exists():
            return ["model.safetensors"]
        raise UserError(f"{self.path}: neither model.safetensors nor {INDEX_NAME} in it")

    def _check_index(self) -> None:
        """A tensor that the index promises must be in the shard that it names."""
        if not (self.path / INDEX_NAME).exists():
            return
        for name, shard in read_json(self.path / INDEX_NAME)["weight_map"].items():
            if self.shards.get(name) != shard:
                raise UserError(f"{self.path / INDEX_NAME}: {name} is not in {shard}")

    def _read_header(self, shard: str) -> None:
        try:
            file = safe_open(self.path / shard, framework="pt")
        except FileNotFoundError:
            raise UserError(f"{self.path / shard}: no such file, but the index names it") from None
        except SafetensorError as error:
            raise UserError(f"{self.path / shard}: damaged safetensors file ({error})") from None
        self._open_files[shard] = file
        for name in file.keys():  # noqa: SIM118 - safe_open is no mapping
            view = file.get_slice(name)
            code = view.get_dtype()
            if code not in DTYPES:
                self.unsupported[name] = code
            dtype = DTYPES.get(code, torch.float32)
            self.specs[name] = TensorSpec(tuple(view.get_shape()), dtype)
            self.shards[name] = shard

    def tensor(self, name: str) -> Tensor:
        """The whole tensor, backed by the mapped file where possible."""
        return self._open_files[self.shards[name]].get_tensor(name)

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows start..stop of the first dimension; only these bytes are read."""
        return self._open_files[self.shards[name]].get_slice(name)[start:stop]

    def dtype_faults(self) -> list[str]:
        """One line for each tensor of a type that no model here has."""
        kinds = ", ".join(DTYPES)
        return [
            f"{n}: dtype {code}, expected one of {kinds}" for n, code in self.unsupported.items()
        ]

    def fingerprint(self) -> str:
        """A hash that another training of the same model changes, and copying files does not.

        It covers config.json, the size of each shard and samples of its bytes: reading 65 GB to
        the end would take longer than it is worth.
        """
        digest = hashlib.sha256((self.path / "config.json").read_bytes())
        for shard in sorted(set(self.shards.values())):
            path = self.path / shard
            size = path.stat().st_size
            digest.update(f"{shard} {size}".encode())
            with open(path, "rb") as file:
                for i in range(17):
                    file.seek(max(0, size - SAMPLE_BYTES) * i // 16)
                    digest.update(file.read(SAMPLE_BYTES))
        return digest.hexdigest()

    def check(self, shapes: Mapping[str, tuple[int, ...]], tied: bool) -> None:
        """UserError listing every missing, unexpected, misshapen or non-floating tensor.

        With a tied head, a copy of the head in the file is allowed and ignored.
        """
        allowed = {"lm_head.weight"} if tied else set[str]()
        faults = [f"{name}: missing" for name in shapes if name not in self.specs]
        faults += self.dtype_faults()
        for name, spec in self.specs.items():
            if name not in shapes:
                if name not in allowed:
                    faults.append(f"{name}: not a tensor of this model")
            elif spec.shape != shapes[name]:
                faults.append(f"{name}: shape {list(spec.shape)}, expected {list(shapes[name])}")
        if faults:
            lines = "\n  ".join(faults)
            raise UserError(f"{self.path}: tensors do not fit config.json:\n  {lines}")


class CheckpointWriter:
    """Writes a checkpoint of known tensors, in any order, into shards laid out beforehand.

    Shards have their full size from the start under a name ending in `.partial`; `finish` fsyncs
    and renames them and writes the index last. With `resume`, shards of the right size that an
    earlier process left (under either name) stay as they are and are listed in `kept`: the caller
    knows which of their tensors are valid. All other shards are new and hold zeros.
    """

    def __init__(
        self,
        out: Path,
        specs: Mapping[str, TensorSpec],
        max_shard_bytes: int = 5 * 10**9,
        resume: bool = False,
    ) -> None:
        out.mkdir(parents=True, exist_ok=True)
        self.out = out
        self.specs = dict(specs)
        self.shards: dict[str, str] = {}
        self.kept: set[str] = set()
        self._offsets: dict[str, int] = {}
        self._files: dict[str, int] = {}
        groups = _split(self.specs, max_shard_bytes)
        for i, names in enumerate(groups, 1):
            many = f"model-{i:05d}-of-{len(groups):05d}.safetensors"
            self._lay_out("model.safetensors" if len(groups) == 1 else many, names, resume)

    def _lay_out(self, shard: str, names: list[str], resume: bool) -> None:
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        offset = 0
        for name in names:
            spec = self.specs[name]
            end = offset + spec.byte_count
            header[name] = {
                "dtype": DTYPE_CODES[spec.dtype],
                "shape": list(spec.shape),
                "data_offsets": [offset, end],
            }
            self.shards[name], self._offsets[name] = shard, offset
            offset = end
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)  # tensor data start at a multiple of 8
        data_start = 8 + len(text)
        for name in names:
            self._offsets[name] += data_start
        path, renamed = self.out / f"{shard}.partial", self.out / shard
        if resume and renamed.exists() and not path.exists():
            os.replace(renamed, path)  # an earlier `finish` did not get to its end
        keep = resume and path.exists() and path.stat().st_size == data_start + offset
        fd = os.open(path, os.O_RDWR | os.O_CREAT | (0 if keep else os.O_TRUNC), 0o644)
        self._files[shard] = fd
        if keep:
            self.kept.add(shard)
        else:
            os.pwrite(fd, struct.pack("<Q", len(text)) + text, 0)
            os.truncate(fd, data_start + offset)

    def write(self, name: str, tensor: Tensor) -> bytes:
        """Write one tensor; it must have the planned shape and dtype. Returns its bytes."""
        spec = self.specs[name]
        assert tuple(tensor.shape) == spec.shape, (name, tensor.shape, spec.shape)
        assert tensor.dtype == spec.dtype, (name, tensor.dtype, spec.dtype)
        data = (
            tensor.contiguous().view(-1).view(torch.uint8).numpy().data if tensor.numel() else b""
        )
        fd, offset, done = self._files[self.shards[name]], self._offsets[name], 0
        while done < len(data):  # one call writes at most 2 GiB
            done += os.pwrite(fd, data[done:], offset + done)
        return bytes(data) if not len(data) else data  # pyright: ignore

    def sync(self) -> None:
        """Make everything written so far durable."""
        for fd in self._files.values():
            os.fsync(fd)

    def finish(self) -> None:
        """Give the shards their names; the index comes last, so it never names a missing file."""
        self.sync()
        self.close()
        stale = set(self.out.glob("model*.safetensors")) | set(self.out.glob(INDEX_NAME))
        for shard in dict.fromkeys(self.shards.values()):
            os.replace(self.out / f"{shard}.partial", self.out / shard)
            stale.discard(self.out / shard)
        for path in stale:  # of an earlier export with another number of shards
            path.unlink()
        if len(self._files) > 1:
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


def copy_side_files(source: Path, out: Path, dtype: torch.dtype) -> None:
    """Copy tokenizer, generation config and chat template, and config.json with its dtype set."""
    for name in SIDE_FILES:
        if (source / name).exists():
            write_atomic(out / name, (source / name).read_bytes())
    config = read_json(source / "config.json")
    key = "dtype" if "dtype" in config and "torch_dtype" not in config else "torch_dtype"
    config[key] = str(dtype).removeprefix("torch.")
    write_json(out / "config.json", config)  # last: a directory with it is complete
