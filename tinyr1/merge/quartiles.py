"""Exact order statistics of more values than one wants to sort or to hold.

    order_statistics(parts, count, quartile_ranks(count), sample) -> [Q1, median, Q3]

A sample tells in which narrow bracket of values each rank must lie. One pass over all values
counts those below the bracket and collects those inside it, a few percent; the answer is then
looked up among these. The counts prove it: where a bracket turns out to miss its rank, it is
widened and the pass repeated. So the result depends neither on the sample nor on how the values
are cut into parts. Values are not negative, and zeros, of which there may be very many, are
counted and never collected.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

Parts = Callable[[], Iterable[Tensor]]  # all values, part after part, as often as it is called


def quartile_ranks(count: int) -> list[int]:
    """Ranks floor(q * (count - 1)) of the three quartiles among `count` sorted values."""
    return [int(q * (count - 1)) for q in (0.25, 0.5, 0.75)]


def order_statistics(
    parts: Parts, count: int, ranks: Sequence[int], sample: np.ndarray
) -> list[float]:
    """sorted(values)[rank] for each rank of `count` values, none below 0 or NaN.

    `parts` yields them all, or all but zeros. `sample` is any non-empty selection of
    the values; the more even, the less there is to collect.
    """
    if len(sample) == count:
        return [float(value) for value in np.partition(sample, ranks)[list(ranks)]]
    found: dict[int, float] = {}
    margin = 3 * math.isqrt(len(sample)) // 2 + 1  # three standard deviations of a rank
    while missing := sorted(set(ranks) - set(found)):
        brackets = _brackets(sample, [rank * len(sample) // count for rank in missing], margin)
        found_inside = [np.empty(0, sample.dtype)]
        zeros = count  # those that are not yielded
        for values in parts():
            zeros -= values.numel()
            found_inside.append(_collect(values, brackets))
        collected = np.concatenate(found_inside)
        for rank, bracket in zip(missing, brackets, strict=True):
            bracket.below += zeros
            value = bracket.value(rank, collected)
            if value is not None:
                found[rank] = value
        margin *= 4
    return [found[rank] for rank in ranks]


@dataclass
class _Bracket:
    """[low, high], how many values are below it, and, of a single point, how many equal it."""

    low: float
    high: float
    first: bool  # below it there are only zeros
    below: int = 0
    equal: int = 0

    def value(self, rank: int, collected: np.ndarray) -> float | None:
        """The value of that rank, or None if it is outside."""
        place = rank - self.below
        if place < 0 and self.first:
            return 0.0
        if self.low == self.high:
            return self.low if 0 <= place < self.equal else None
        inside = collected[(collected >= self.low) & (collected <= self.high)]
        return float(np.partition(inside, place)[place]) if 0 <= place < len(inside) else None


def _brackets(sample: np.ndarray, middles: list[int], margin: int) -> list[_Bracket]:
    """Around each of `middles`, the values `margin` ranks below and above it in `sample`."""
    places = [(middle - margin, middle + margin) for middle in middles]
    inside = sorted({i for pair in places for i in pair if 0 <= i < len(sample)})
    bits = sample.view(f"i{sample.itemsize}")  # sorted as integers in half the time
    ordered = np.partition(bits, inside).view(sample.dtype) if inside else sample
    smallest = float(np.finfo(sample.dtype).smallest_subnormal)
    low = (max(float(ordered[i]), smallest) if i >= 0 else smallest for i, _ in places)
    high = (float(ordered[i]) if i < len(sample) else math.inf for _, i in places)
    return [_Bracket(a, b, a == smallest) for a, b in zip(low, high, strict=True)]


def _collect(values: Tensor, brackets: Sequence[_Bracket]) -> np.ndarray:
    """Count one part against the brackets; returns the values inside those wider than a point."""
    array = as_array(values)
    wanted = None
    for bracket in brackets:
        inside = array >= bracket.low
        bracket.below += values.numel() - count_true(inside)
        inside ^= array > bracket.high
        if bracket.low == bracket.high:
            bracket.equal += count_true(inside)
        else:
            wanted = inside if wanted is None else wanted | inside
    return np.empty(0, np.float32) if wanted is None else pick(array, wanted)


# Comparing, counting and picking: on a CPU numpy is five to eight times as fast as torch, and sees
# the same memory (docs/benchmarks/merge.md). Both know the same operators.

Array = Any  # a numpy array, or a tensor on another device


def as_array(values: Tensor) -> Array:
    """The values as numpy sees them, or on another device the tensor itself."""
    return values.numpy() if values.device.type == "cpu" else values


def as_host(values: Array | Tensor) -> np.ndarray:
    """The values in the host's memory."""
    return values.cpu().numpy() if isinstance(values, Tensor) else values


def differing(a: Tensor, b: Tensor) -> Array:
    """A mask of the elements of which the bits differ; both tensors have one dtype."""
    whole = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[a.itemsize]
    return as_array(a.view(whole)) != as_array(b.view(whole))


def count_true(mask: Array) -> int:
    """The number of true elements."""
    return int(mask.sum()) if isinstance(mask, Tensor) else int(np.count_nonzero(mask))


def pick(values: Array, mask: Array) -> np.ndarray:
    """The values where `mask` is true, flat, on the host."""
    if isinstance(values, Tensor):
        return values[mask].cpu().numpy()
    return values.ravel()[np.flatnonzero(mask)]
