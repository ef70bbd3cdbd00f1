"""Checkpoints on disk: Hugging Face directories of safetensors, read and written tensor by tensor.

    checkpoint = Checkpoint(path)          # one file or many, through mmap
    checkpoint.check(shapes, tied=False)   # every fault of names, shapes and dtypes at once
    with CheckpointWriter(out, specs) as writer:
        writer.write(name, tensor)         # in any order; visible only when all are written

    with checkpoint.mapped(name) as rows:  # some rows at a time, letting go of those behind
        writer.write_parts(name, (rows[part] for part in parts))

Neither side ever holds more than one tensor. The safetensors format: 8 bytes little-endian header
length, a JSON header with dtype, shape and offsets of each tensor, then the bytes.
"""

from __future__ import annotations

import hashlib
import json
import math
import mmap
import os
import re
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from tinyr1.errors import UserError
from tinyr1.files import fsync_directory, naming, read_object, write_atomic, write_json

SAMPLE_BYTES = 1 << 16
CHUNK_ELEMENTS = 1 << 19  # so many are read at a time: what is made of them stays near the core
MAP_NORESERVE = 0x4000  # Linux; the mmap module names it from Python 3.13 on
INDEX_NAME = "model.safetensors.index.json"
SHARD_NAME = re.compile(r"[^/\0\ud800-\udfff]+\.safetensors")
OUR_SHARDS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors")
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
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
CODES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float64}
# What some models keep beside their weights; nothing is computed with these.
CODES |= {"I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8}
CODES |= {"U8": torch.uint8, "BOOL": torch.bool}
FLOATING = ("BF16", "F16", "F32", "F64")
CODE_OF = {dtype: code for code, dtype in CODES.items()}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}  # of options


def dtype_name(dtype: torch.dtype) -> str:
    """As config.json has it: bfloat16."""
    return str(dtype).removeprefix("torch.")


class TensorSpec(NamedTuple):
    """What a file says of a tensor before any byte of it is read."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def element_count(self) -> int:
        return math.prod(self.shape)

    @property
    def byte_count(self) -> int:
        return self.element_count * self.dtype.itemsize

    @property
    def is_floating(self) -> bool:
        return self.dtype.is_floating_point


class Checkpoint:
    """A Hugging Face directory: `specs` and `shards` by tensor name; the data stay in the files."""

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_dir():
            raise UserError(f"{path}: no such directory; expected a Hugging Face checkpoint")
        self.specs: dict[str, TensorSpec] = {}
        self.shards: dict[str, str] = {}
        self.unsupported: dict[str, str] = {}  # dtype codes that are none of CODES
        self.dropped: list[str] = []  # tensors in the files that are not to be seen
        self._open_files: dict[str, Any] = {}
        self._maps: dict[str, mmap.mmap] = {}
        self._offsets: dict[str, int] = {}  # of a tensor's first byte in its shard
        self.files = self._shard_names()
        for shard in self.files:
            self._read_header(shard)
        self._check_index()

    def _shard_names(self) -> list[str]:
        if (self.path / INDEX_NAME).exists():
            weight_map = read_object(self.path / INDEX_NAME).get("weight_map")
            if not isinstance(weight_map, dict):
                raise UserError(f"{self.path / INDEX_NAME}: weight_map: missing")
            for name, shard in weight_map.items():
                if not (isinstance(shard, str) and SHARD_NAME.fullmatch(shard)):
                    raise UserError(
                        f"{self.path / INDEX_NAME}: {name}: {shard!r}: no file name; "
                        "expected NAME.safetensors"
                    )
            return sorted(set(weight_map.values()))
        if (self.path / "model.safetensors").exists():
            return ["model.safetensors"]
        raise UserError(f"{self.path}: neither model.safetensors nor {INDEX_NAME} in it")

    def _check_index(self) -> None:
        """A tensor that the index promises must be in the shard that it names."""
        if not (self.path / INDEX_NAME).exists():
            return
        for name, shard in read_object(self.path / INDEX_NAME)["weight_map"].items():
            if self.shards.get(name) != shard:
                raise UserError(f"{self.path / INDEX_NAME}: {name} is not in {shard}")

    def _read_header(self, shard: str) -> None:
        try:
            raw = open(self.path / shard, "rb")  # noqa: SIM115 - closed by the `with` below
        except FileNotFoundError:
            raise UserError(f"{self.path / shard}: no such file, but the index names it") from None
        with raw:
            try:
                file = safe_open(self.path / shard, framework="pt")
            except SafetensorError as error:
                text = f"{self.path / shard}: damaged safetensors file ({error})"
                raise UserError(text) from None
            self._open_files[shard] = file
            (header_len,) = struct.unpack("<Q", raw.read(8))
            header = json.loads(raw.read(header_len))
            # Private and writable for torch's sake, who warns of buffers that are not; nobody
            # writes. Unreserved, or a file larger than memory could not be mapped so.
            flags, prot = mmap.MAP_PRIVATE | MAP_NORESERVE, mmap.PROT_READ | mmap.PROT_WRITE
            self._maps[shard] = mmap.mmap(raw.fileno(), 0, flags=flags, prot=prot)
        names = [name for name in header if name != "__metadata__"]
        for name in sorted(names, key=lambda name: header[name]["data_offsets"]):
            self._offsets[name] = 8 + header_len + header[name]["data_offsets"][0]
            view = file.get_slice(name)
            code = view.get_dtype()
            if code not in CODES:
                self.unsupported[name] = code
            dtype = CODES.get(code, torch.float32)  # of an unsupported one nothing is read
            self.specs[name] = TensorSpec(tuple(view.get_shape()), dtype)
            self.shards[name] = shard

    def tensor(self, name: str) -> Tensor:
        """The whole tensor, backed by the mapped file where possible."""
        return self._open_files[self.shards[name]].get_tensor(name)

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows start..stop of the first dimension; only these bytes are read."""
        return self._open_files[self.shards[name]].get_slice(name)[start:stop]

    def mapped(self, name: str, window: int = 1 << 24) -> MappedRows:
        """The tensor as rows of its last dimension, to be read in passes from first to last."""
        file = self._maps[self.shards[name]]
        return MappedRows(file, self._offsets[name], self.specs[name], window)

    def is_finite(self, name: str) -> bool:
        """Whether a tensor has neither NaN nor infinity; reads all of it."""
        with self.mapped(name) as rows:
            parts = row_parts(self.specs[name].shape)
            return all(bool(rows[part].isfinite().all()) for part in parts)

    def dtype_faults(self) -> list[str]:
        """One line for each tensor that is none of floating numbers."""
        codes = {n: CODE_OF[spec.dtype] for n, spec in self.specs.items()} | self.unsupported
        return [
            f"{name}: dtype {code}, expected one of {', '.join(FLOATING)}"
            for name, code in codes.items()
            if code not in FLOATING
        ]

    def fingerprint(self) -> str:
        """A hash that another training of the same model changes, and copying files does not.

        It covers config.json, the size of each shard and samples of its bytes: reading 65 GB to
        the end would take longer than it is worth.
        """
        digest = hashlib.sha256((self.path / "config.json").read_bytes())
        for shard in self.files:
            path = self.path / shard
            size = path.stat().st_size
            digest.update(f"{shard} {size}".encode())
            with open(path, "rb") as file:
                for i in range(17):
                    file.seek(max(0, size - SAMPLE_BYTES) * i // 16)
                    digest.update(file.read(SAMPLE_BYTES))
        return digest.hexdigest()

    def spare_head_fault(self) -> str:
        """What is wrong with the copy of the embedding that a tied model may have for a head."""
        if not {HEAD, EMBEDDING} <= self.specs.keys() - self.unsupported.keys():
            return ""
        head, embedding = self.specs[HEAD], self.specs[EMBEDDING]
        if head == embedding:
            with self.mapped(HEAD) as a, self.mapped(EMBEDDING) as b:
                pairs = ((a[part], b[part]) for part in row_parts(head.shape))
                # Bytes, because NaN is equal to nothing.
                if all(torch.equal(x.view(torch.uint8), y.view(torch.uint8)) for x, y in pairs):
                    return ""
        found = [f"{dtype_name(spec.dtype)} {list(spec.shape)}" for spec in (head, embedding)]
        return (
            f"{HEAD}: is not {EMBEDDING} ({found[0]} and {found[1]}), which config.json says with "
            "tie_word_embeddings=true; set that to false, or remove the tensor"
        )

    def drop_spare_head(self) -> None:
        """Leave out a tied model's copy of the embedding; UserError where it is another tensor."""
        if fault := self.spare_head_fault():
            raise UserError(f"{self.path}: {fault}")
        if {HEAD, EMBEDDING} <= self.specs.keys() - self.unsupported.keys():
            self.dropped = [HEAD]
            del self.specs[HEAD], self.shards[HEAD]

    def check(self, shapes: Mapping[str, tuple[int, ...]], tied: bool) -> None:
        """UserError listing every missing, unexpected, misshapen or non-floating tensor.

        A tied model may have a copy of its embedding for a head, and nothing else.
        """
        faults = [f"{name}: missing" for name in shapes if name not in self.specs]
        faults += self.dtype_faults()
        if tied and (fault := self.spare_head_fault()):
            faults.append(fault)
        for name, spec in self.specs.items():
            if name not in shapes:
                if not (tied and name == HEAD):
                    faults.append(f"{name}: not a tensor of this model")
            elif spec.shape != shapes[name]:
                faults.append(f"{name}: shape {list(spec.shape)}, expected {list(shapes[name])}")
        if faults:
            lines = "\n  ".join(faults)
            raise UserError(f"{self.path}: tensors do not fit config.json:\n  {lines}")


class MappedRows:
    """A tensor in a mapped file, seen as (N, W): `rows[start:stop]` is backed by the file itself.

    At most about `window` bytes of it are resident: pages further behind the reader are let go,
    and all of them when the `with` block ends. They stay in the system's cache.
    """

    def __init__(self, file: mmap.mmap, offset: int, spec: TensorSpec, window: int) -> None:
        self._file, self._offset, self._dtype = file, offset, spec.dtype
        self.shape = matrix_shape(spec.shape)
        self._row_bytes = self.shape[1] * spec.dtype.itemsize
        self._window = window
        self._held = (0, 0)  # first and last byte, in the file, of what may be resident

    def __getitem__(self, part: slice, /) -> Tensor:
        count = part.stop - part.start
        start = self._offset + part.start * self._row_bytes
        stop = start + count * self._row_bytes
        if start < self._held[0] or stop > self._held[0] + self._window:
            self.release()
            self._held = (start, start)
        self._held = (self._held[0], max(stop, self._held[1]))
        if start == stop:
            return torch.empty(count, self.shape[1], dtype=self._dtype)
        if start % self._dtype.itemsize:  # of a writer that did not pad its header
            return torch.frombuffer(bytearray(self._file[start:stop]), dtype=self._dtype).view(
                count, -1
            )
        return torch.frombuffer(
            self._file, dtype=self._dtype, count=count * self.shape[1], offset=start
        ).view(count, -1)

    def release(self) -> None:
        """Let go of all pages that may be resident."""
        start, stop = self._held
        if stop > start:
            start -= start % mmap.PAGESIZE
            self._file.madvise(mmap.MADV_DONTNEED, start, stop - start)
        self._held = (0, 0)

    def __enter__(self) -> MappedRows:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def matrix_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    """(N, W) of a tensor of any rank: W is its last dimension, N the rows of it."""
    width = shape[-1] if shape else 1
    return (math.prod(shape) // width if width else 0), width


def row_parts(shape: tuple[int, ...]) -> list[slice]:
    """Slices of whole rows that cover a tensor, each of about CHUNK_ELEMENTS."""
    rows, width = matrix_shape(shape)
    step = max(1, CHUNK_ELEMENTS // max(width, 1))
    return [slice(start, min(start + step, rows)) for start in range(0, rows, step)]


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
                    os.truncate(fd, size)

    def write(self, name: str, tensor: Tensor) -> str:
        """Write one tensor; it must have the planned shape and dtype. Returns its SHA-256."""
        assert tuple(tensor.shape) == self.specs[name].shape, (name, tensor.shape)
        return self.write_parts(name, [tensor])

    def write_parts(self, name: str, parts: Iterable[Tensor]) -> str:
        """Write one tensor from its parts in order; returns the SHA-256 of its bytes."""
        self.open()
        spec, digest = self.specs[name], hashlib.sha256()
        fd, start, done = self._files[self.shards[name]], self._offsets[name], 0
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


def copy_side_files(source: Path, out: Path, dtype: torch.dtype) -> None:
    """Copy tokenizer, generation config and chat template, and config.json with its dtype set."""
    for name in SIDE_FILES:
        if (source / name).is_file():
            write_atomic(out / name, (source / name).read_bytes())
    config = read_object(source / "config.json")
    for key in {"dtype", "torch_dtype"} & config.keys() or {"torch_dtype"}:  # old name and new
        config[key] = dtype_name(dtype)
    write_json(out / "config.json", config)  # last: a directory with it is complete
