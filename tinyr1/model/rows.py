"""A tensor of any rank seen as rows of its last dimension, some at a time.

    shape (2, 3, 5) -> 6 rows of 5

Merging and checking read tensors that are larger than what may be in memory, so they ask for a few
rows after the other: of a tensor, or of a mapped file (`MappedRows`), which is the same to them.
"""

from __future__ import annotations

import math
import mmap
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

CHUNK_ELEMENTS = 1 << 19  # so many are read at a time: what is made of them stays near the core


class TensorSpec(NamedTuple):
    """A tensor's shape and dtype, as a file's header states them."""

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


class MappedRows:
    """A tensor in a mapped file, seen as (N, W): `rows[start:stop]` is backed by the file itself.

    At most about `window` bytes of it are resident: pages further behind the reader are let go,
    and all of them when the `with` block ends. They stay in the system's cache.
    """

    def __init__(self, file: mmap.mmap, offset: int, spec: TensorSpec, window: int) -> None:
        self._file = file
        self._offset = offset
        self._dtype = spec.dtype
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


class Rows(Protocol):
    """A tensor seen as a matrix (N, W) of which some rows are asked for at a time."""

    def __getitem__(self, part: slice, /) -> Tensor: ...


# Of a floating type: the integer of its size, all bits but the sign's, and infinity's bits.
_BITS = {
    torch.bfloat16: (torch.int16, 0x7FFF, 0x7F80),
    torch.float16: (torch.int16, 0x7FFF, 0x7C00),
    torch.float32: (torch.int32, 0x7FFFFFFF, 0x7F800000),
    torch.float64: (torch.int64, 0x7FFFFFFFFFFFFFFF, 0x7FF0000000000000),
}


def all_finite(x: Tensor) -> bool:
    """True for a tensor without NaN and infinity, by its bits: a twentieth of `isfinite`'s time."""
    if x.dtype not in _BITS or not x.numel():
        return True
    integer, magnitude, infinity = _BITS[x.dtype]
    return int((x.view(integer) & magnitude).max()) < infinity
