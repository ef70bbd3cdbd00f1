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
import mmap
import re
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from tinyr1.common.errors import UserError
from tinyr1.common.files import read_object
from tinyr1.model.places import check_directory, located, why_no_weights
from tinyr1.model.rows import MappedRows, TensorSpec, all_finite, row_parts

SAMPLE_BYTES = 1 << 16
MAP_NORESERVE = 0x4000  # Linux; the mmap module names it from Python 3.13 on
INDEX_NAME = "model.safetensors.index.json"
SHARD_NAME = re.compile(r"[^/\0\ud800-\udfff]+\.safetensors")
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
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


class Checkpoint:
    """A Hugging Face directory: `specs` and `shards` by tensor name; the data stay in the files."""

    def __init__(self, path: Path) -> None:
        check_directory(path)
        self.path = path = located(path)
        self.specs: dict[str, TensorSpec] = {}
        self.shards: dict[str, str] = {}
        self.unsupported: dict[str, str] = {}  # dtype codes that are none of CODES
        self.dropped: dict[str, str] = {}  # tensors that are not to be seen, and why
        self.notes: list[str] = []  # what is odd about the files, and no error
        self._open_files: dict[str, Any] = {}
        self._maps: dict[str, mmap.mmap] = {}
        self._offsets: dict[str, int] = {}  # of a tensor's first byte in its shard
        self.files = self._shard_names()
        for shard in self.files:
            self._read_header(shard)
        self._check_index()

    def _shard_names(self) -> list[str]:
        """The files that transformers would load: the single one before those of an index."""
        single = self.path / "model.safetensors"
        if single.exists() and self._index_is_stale():
            self.notes.append(f"{self.path / INDEX_NAME}: not read: {single.name} lies beside it")
        if single.exists():
            return [single.name]
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
        raise UserError(f"{self.path}: {why_no_weights(self.path, INDEX_NAME)}")

    def _index_is_stale(self) -> bool:
        """True for an index that names other files than the single one."""
        if not (self.path / INDEX_NAME).exists():
            return False
        try:
            shards = set(read_object(self.path / INDEX_NAME)["weight_map"].values())
        except (UserError, KeyError, AttributeError, TypeError):
            return True
        return shards != {"model.safetensors"}

    def _check_index(self) -> None:
        """A tensor that the index promises must be in the shard that it names."""
        if self.files == ["model.safetensors"]:
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
        if twice := [name for name in names if name in self.shards]:
            raise UserError(
                f"{self.path}: {twice[0]}: is in {self.shards[twice[0]]} and in {shard}; remove "
                "the shard that belongs to another checkpoint"
            )
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

    def mapped(
        self, name: str, window: int = 1 << 24, start: int = 0, stop: int | None = None
    ) -> MappedRows:
        """The tensor as rows of its last dimension, to be read in passes from first to last.

        With `start` and `stop`, of the first dimension only these.
        """
        spec = self.specs[name]
        offset = self._offsets[name]
        if (start, stop) != (0, None):
            first, *others = spec.shape
            offset += start * spec.byte_count // first
            spec = spec._replace(shape=((first if stop is None else stop) - start, *others))
        return MappedRows(self._maps[self.shards[name]], offset, spec, window)

    def is_finite(self, name: str) -> bool:
        """True for a tensor without NaN and infinity; reads all of it."""
        with self.mapped(name) as rows:
            parts = row_parts(self.specs[name].shape)
            return all(all_finite(rows[part]) for part in parts)

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
        """Describe a tied model's head that is not a copy of its embedding; "" for none."""
        if not {HEAD, EMBEDDING} <= self.specs.keys() - self.unsupported.keys():
            return ""
        if self.same_bytes(HEAD, EMBEDDING):
            return ""
        head, embedding = self.specs[HEAD], self.specs[EMBEDDING]
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
            self.drop(HEAD, "a copy of the embedding")

    def drop(self, name: str, why: str) -> None:
        """Leave a tensor out, as if it were not in the files."""
        self.dropped[name] = why
        del self.specs[name], self.shards[name]

    def same_bytes(self, one: str, other: str) -> bool:
        """True for two tensors of one shape, dtype and content."""
        if self.specs[one] != self.specs[other]:
            return False
        with self.mapped(one) as a, self.mapped(other) as b:
            pairs = ((a[part], b[part]) for part in row_parts(self.specs[one].shape))
            # Bytes, because NaN is equal to nothing.
            return all(torch.equal(x.view(torch.uint8), y.view(torch.uint8)) for x, y in pairs)

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
