"""Exact order statistics of more values than one wants to sort or to hold.

    order_statistics(parts, count, quartile_ranks(count), sample) -> [Q1, median, Q3]

A sample tells in which narrow bracket of values each rank must lie. One pass over all values
counts those below the bracket and collects those inside it, a few percent; the answer is then
looked up among these. The counts prove it: where a bracket turns out to miss its rank, it is
widened and the pass repeated. So the result depends neither on the sample nor on how the values
are cut into parts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

Parts = Callable[[], Iterable[Tensor]]  # all values, part after part, as often as it is called


def quartile_ranks(count: int) -> list[int]:
    """Ranks floor(q * (count - 1)) of the three quartiles among `count` sorted values."""
    return [int(q * (count - 1)) for q in (0.25, 0.5, 0.75)]


def order_statistics(parts: Parts, count: int, ranks: Sequence[int], sample: Tensor) -> list[float]:
    """sorted(values)[rank] for each rank, where `parts` yields `count` values, none of them NaN.

    `sample` is any non-empty selection of the values; the more even, the less there is to collect.
    """
    guesses = sample.cpu().numpy()
    if len(guesses) == count:
        return [float(value) for value in np.partition(guesses, ranks)[list(ranks)]]
    found: dict[int, float] = {}
    margin = math.isqrt(2 * len(guesses)) + 1  # about three standard deviations of a rank
    while missing := sorted(set(ranks) - set(found)):
        brackets = _brackets(guesses, [rank * len(guesses) // count for rank in missing], margin)
        collected = np.concatenate([_collect(values, brackets) for values in parts()])
        for rank, bracket in zip(missing, brackets, strict=True):
            value = bracket.value(rank, collected)
            if value is not None:
                found[rank] = value
        margin *= 4
    return [found[rank] for rank in ranks]


@dataclass
class _Bracket:
    """[low, high], and how many values are below it and within it."""

    low: float
    high: float
    below: int = 0
    within: int = 0

    def value(self, rank: int, collected: np.ndarray) -> float | None:
        """The value of that rank, or None if it is outside."""
        if not self.below <= rank < self.below + self.within:
            return None
        if self.low == self.high:
            return self.low
        inside = collected[(collected >= self.low) & (collected <= self.high)]
        place = rank - self.below
        return float(np.partition(inside, place)[place])


def _brackets(guesses: np.ndarray, middles: list[int], margin: int) -> list[_Bracket]:
    """Around each of `middles`, the values `margin` ranks below and above it in `guesses`."""
    places = [(middle - margin, middle + margin) for middle in middles]
    inside = sorted({i for pair in places for i in pair if 0 <= i < len(guesses)})
    ordered = np.partition(guesses, inside) if inside else guesses
    low = (float(ordered[i]) if i >= 0 else -math.inf for i, _ in places)
    high = (float(ordered[i]) if i < len(guesses) else math.inf for _, i in places)
    return [_Bracket(a, b) for a, b in zip(low, high, strict=True)]


def _collect(values: Tensor, brackets: Sequence[_Bracket]) -> np.ndarray:
    """Count one part into the brackets; returns the values inside those wider than a point."""
    wanted = torch.zeros_like(values, dtype=torch.bool)
    for bracket in brackets:
        inside = at_least(values, bracket.low)
        bracket.below += values.numel() - count_true(inside)
        inside ^= at_least(values, bracket.high, strictly=True)
        bracket.within += count_true(inside)
        if bracket.low < bracket.high:
            wanted |= inside
    return pick(values, wanted)


# Comparing and picking: numpy is five to eight times as fast as torch on a CPU, and sees the same
# memory (docs/benchmarks/merge.md).


def at_least(values: Tensor, bound: float, strictly: bool = False) -> Tensor:
    """values >= bound, or > with `strictly`, as a bool tensor."""
    if values.device.type != "cpu":
        return values > bound if strictly else values >= bound
    array = values.numpy()
    return torch.from_numpy(array > bound if strictly else array >= bound)


def differing(a: Tensor, b: Tensor) -> Tensor:
    """Where the bits of two tensors of one dtype differ, as a bool tensor."""
    whole = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[a.itemsize]
    a, b = a.view(whole), b.view(whole)
    return a != b if a.device.type != "cpu" else torch.from_numpy(a.numpy() != b.numpy())


def count_true(mask: Tensor) -> int:
    """The number of true elements."""
    return int(mask.sum()) if mask.device.type != "cpu" else int(np.count_nonzero(mask.numpy()))


def pick(values: Tensor, mask: Tensor) -> np.ndarray:
    """The values where `mask` is true, flat."""
    if values.device.type != "cpu":
        return values[mask].cpu().numpy()
    return values.numpy().ravel()[np.flatnonzero(mask.numpy())]
