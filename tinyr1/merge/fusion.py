"""Arcee Fusion (paper section 2.2): keep Left, and take from Right what changed most.

  1. importance   S = |R - L| * KL(softmax(R row) || softmax(L row)), a row being the last dimension
  2. threshold    median(S) + lambda * (Q3 - Q1), over all elements of the tensor
  3. selection    Right's element where S >= threshold, else Left's

Two experts of one model differ by so little that in bfloat16, and even in float32, a KL divergence
computed term by term is rounding noise, negative in half of the rows. So there are three
arithmetics (docs/decisions/0001):
  exact      the formula above in a form that cannot cancel; Right's bits are copied (the default)
  mergekit   mergekit 0.1.5's order of operations in the model's dtype, noise included
  paper      equations 1 to 4 to the letter

`ExactFusion` reads its two tensors a few rows at a time, three times over, and never holds them:
the same code merges a tensor in memory and one of 1.5 GB in a mapped file.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from tinyr1.common.threads import one_core
from tinyr1.merge.quartiles import (
    as_array,
    as_host,
    count_true,
    differing,
    order_statistics,
    quartile_ranks,
)
from tinyr1.model.rows import Rows, all_finite, matrix_shape, row_parts

# Shapes: N rows of the last dimension W. A tensor of any rank is seen as (N, W).
EPSILON = 1e-8  # the paper's, added to both softmaxes
LAMBDA = 1.5  # the paper's theta (section 3.1.1), lambda of equation 3
SAMPLE_ELEMENTS = 1 << 13  # at least so many scores tell where the quartiles lie
SAMPLE_STRIDE = 61  # of larger tensors one element in so many, or a million in all
# Changes t beyond which a fourth, fifth, sixth moment counts. The k-th one adds (k - 1) E[t^k] / k!
# to the KL: at most 2 (k - 1) |t|^(k-2) / k! of the second one's E[t^2] / 2, and twice that where
# the first one takes half of it away. So below these limits t^2 / 2 <= 1e-5 and 2 t^3 / 15 <= 4e-6
# are left out, and of a seventh, up to 1/8, where the series ends, some 1e-7.
FAR = (1 / 224, 1 / 32, 1 / 32)
MERGEKIT_SAMPLE = 1_000_000  # elements from which mergekit estimates the quartiles
Quantiles = Literal["all", "changed"]


class NonFiniteError(ValueError):
    """An input holds NaN or infinity."""


class FusionStats(NamedTuple):
    """A fusion's effect on one tensor."""

    threshold: float
    quartiles: tuple[float, float, float]
    changed: int  # elements in which Right differs from Left
    taken: int  # of these, the elements that are now Right's
    max_change: float  # the largest |result - Left|
    collapsed: bool  # threshold 0: most elements are equal, so everything that differs is taken


class FusionOptions(NamedTuple):
    """Options of all three arithmetics; `generator` draws mergekit's sample of large tensors."""

    lam: float = LAMBDA
    epsilon: float = EPSILON
    quantiles: Quantiles = "all"
    generator: torch.Generator | None = None


def arcee_fusion(
    left: Tensor, right: Tensor, *, lam: float = LAMBDA, arithmetic: str = "exact"
) -> Tensor:
    """Fuse one pair of tensors of any rank; the result has Left's dtype.

    Raises ValueError for different shapes, an unknown arithmetic, or NaN and infinity.
    """
    return fuse(left, right, FusionOptions(lam), arithmetic)[0]


def fuse(
    left: Tensor, right: Tensor, options: FusionOptions, arithmetic: str = "exact"
) -> tuple[Tensor, FusionStats]:
    """`arcee_fusion` with all options, and with its figures."""
    left, right = left.detach(), right.detach()
    if arithmetic not in ARITHMETICS:
        raise ValueError(f"arithmetic={arithmetic!r}: expected one of {', '.join(ARITHMETICS)}")
    if not left.is_floating_point():
        raise ValueError(f"dtype={left.dtype}: expected a floating type")
    if left.shape != right.shape:
        raise ValueError(f"shapes differ: {list(left.shape)} and {list(right.shape)}")
    if not left.numel():
        return left.clone(), FusionStats(0.0, (0.0, 0.0, 0.0), 0, 0, 0.0, False)
    return ARITHMETICS[arithmetic](left, right, options)


# ---------------------------------------------------------------- exact


class ExactFusion:
    """The formula at the top of this file, free of rounding noise; slice it for merged rows.

    Making one reads both tensors twice: for the KL of each row, and for the quartiles of the
    scores. Slicing it is the third pass. It has rows itself, so it can be the Right of another:
    that is how merges are chained without a model in between.

    Scores are kept in float32 relative to the largest row KL, since float32 ends at 1e-45; a
    power of two changes no comparison. `device` is where chunks are computed.
    """

    def __init__(
        self,
        left: Rows,
        right: Rows,
        shape: tuple[int, ...],
        options: FusionOptions,
        device: torch.device | str = "cpu",
    ) -> None:
        self.left = left
        self.right = right
        self.device = torch.device(device)
        self.parts = row_parts(shape)
        shape_2d = matrix_shape(shape)
        self.count = math.prod(shape)
        self.changed = 0
        self._taken: dict[int, int] = {}  # elements of each part
        self._unchanged: set[int] = set()  # parts, by their first row: Left's as they are
        step = max(part.stop - part.start for part in self.parts)
        dtype = wide_dtype(self.left[slice(0, 1)])
        self._scratch = torch.empty(2, step, shape_2d[1], dtype=dtype, device=self.device).unbind()
        self._spread = np.zeros(shape_2d[0], as_host(self._scratch[0][:0]).dtype)
        kl, sampled = self._measure(shape_2d, options.epsilon)
        unit = 2.0 ** max(math.frexp(float(kl.max()))[1], -1000)
        self._kl = (kl / unit).astype(self._spread.dtype)
        self._kl_column = torch.from_numpy(self._kl)[:, None].to(self.device)
        # Scores by the very operation of `_scores`: a sample must be some of them, to the bit.
        sample = np.concatenate([sizes * self._kl[rows] for rows, sizes in sampled])
        low, median, high = self._quartiles(sample, options.quantiles)
        self._threshold = float(self._kl.dtype.type(median + options.lam * (high - low)))
        self.threshold = self._threshold * unit
        self.quartiles = (low * unit, median * unit, high * unit)

    def _pair(self, part: slice) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """Rows of Left, of Right rounded to Left's dtype, and two buffers of their shape."""
        left = self.left[part].to(self.device)
        q, t = self._scratch
        scratch = (q, t) if len(left) == len(q) else (q[: len(left)], t[: len(left)])
        return left, self.right[part].to(left), scratch

    def _measure(
        self, shape: tuple[int, int], epsilon: float
    ) -> tuple[np.ndarray, list[tuple[np.ndarray, np.ndarray]]]:
        """KL of each row (N,) float64; for some elements, part by part, their rows and |R - L|."""
        # A prime meets every column of the usual widths.
        stride = max(1, min(SAMPLE_STRIDE, self.count // SAMPLE_ELEMENTS), self.count >> 20)
        places = np.arange(0, self._scratch[0].numel(), stride) // shape[1]  # rows of the sample
        kl = np.zeros(shape[0])
        samples: list[tuple[np.ndarray, np.ndarray]] = []
        for part in self.parts:
            left, right, scratch = self._pair(part)
            changed = count_true(differing(left, right))
            self.changed += changed
            if changed:
                kl[part], self._spread[part] = row_kl(left, right, epsilon, scratch)
                sizes = as_host(abs(as_array(scratch[1]).reshape(-1)[::stride]))  # of R - L
            elif all_finite(left):
                self._unchanged.add(part.start)
                sizes = np.zeros(-(-left.numel() // stride), np.float32)
            else:
                raise NonFiniteError("NaN or infinity in both inputs")
            samples.append((part.start + places[: len(sizes)], sizes))
        if not np.isfinite(kl).all():
            raise NonFiniteError("NaN or infinity in an input, or in the difference")
        return kl, samples

    def _scores(self, part: slice) -> tuple[Tensor, Tensor, Tensor]:
        """Rows of both, and |R - L| * KL relative to the largest KL."""
        left, right, (scores, size) = self._pair(part)
        size.copy_(right).sub_(scores.copy_(left)).abs_()
        return left, right, torch.mul(size, self._kl_column[part], out=scores)

    def _all_scores(self) -> Iterator[Tensor]:
        """The scores part by part, but for those of parts without any change, which are zeros."""
        for part in self.parts:
            if part.start not in self._unchanged:
                yield self._scores(part)[-1]

    def _quartiles(self, sample: np.ndarray, quantiles: Quantiles) -> list[float]:
        """sorted[floor(q * (n - 1))] of all scores, or of those of the elements that differ."""
        if not self.changed:
            return [0.0, 0.0, 0.0]
        # Those of equal elements are 0: sorted, they come first.
        skipped = self.count - self.changed if quantiles == "changed" else 0
        ranks = [skipped + rank for rank in quartile_ranks(self.count - skipped)]
        return order_statistics(self._all_scores, self.count, ranks, sample)

    def __getitem__(self, part: slice, /) -> Tensor:
        """The merged rows of one of `parts`: every element has Left's bits or Right's."""
        if part.start in self._unchanged:
            return self.left[part]
        left, right, scores = self._scores(part)
        take = as_array(scores) >= self._threshold
        taken = take if self._threshold > 0 else differing(left, right)
        self._taken[part.start] = count_true(taken)
        return select(torch.as_tensor(take), right, left)

    @property
    def stats(self) -> FusionStats:
        """The figures so far; complete once every part has been asked for."""
        taken = sum(self._taken.values())
        reached = self._spread * self._kl >= self._threshold  # by a row's largest change
        return FusionStats(
            self.threshold,
            self.quartiles,
            self.changed,
            taken,
            float(np.max(self._spread, where=reached, initial=0)),
            self.threshold <= 0 < taken,
        )


def exact_fusion(left: Tensor, right: Tensor, options: FusionOptions) -> tuple[Tensor, FusionStats]:
    """`ExactFusion` of tensors in memory."""
    shape = matrix_shape(tuple(left.shape))
    with one_core():
        fusion = ExactFusion(left.reshape(shape), right.reshape(shape), shape, options, left.device)
        merged = torch.cat([fusion[part] for part in fusion.parts])
    return merged.view(left.shape), fusion.stats


def select(take: Tensor, right: Tensor, left: Tensor) -> Tensor:
    """Right's bits where `take`, else Left's: torch.where, three times as fast."""
    whole = {2: torch.int16, 4: torch.int32, 8: torch.int64}[left.itemsize]
    bits, other = left.view(whole), right.view(whole)
    mask = take.to(whole).neg_()  # all ones where taken
    return (bits ^ other).bitwise_and_(mask).bitwise_xor_(bits).view(left.dtype)


def row_kl(
    left: Tensor, right: Tensor, epsilon: float = EPSILON, scratch: tuple[Tensor, ...] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """KL(softmax(R) + eps || softmax(L) + eps) of each row of (N, W) -> (N,) float64, >= 0.

    With it comes the largest |R - L| of each row.

    q is the softmax of L; that of R is p = q e^t / E[e^t] with t = R - L, where E is the mean
    under q. So (without eps) KL = E[e^t t] / E[e^t] - log E[e^t]. Both are sums of the moments of
    t, which float32 gives to some 1e-7 of their size; what cancels is the first moment, exactly:

        E[e^t] - 1 = sum of E[t^k] / k!,    E[e^t t] = sum of E[t^k] / (k - 1)!

    The means are taken under q - eps, of mass 1 - W eps, which is eps to first order. Rows for
    which this is not good for 1e-5 (large or tiny changes, a shift of the whole row, which changes
    no softmax, probabilities near eps) go by `closed_row_kl`. A row whose R - L is not finite gets
    NaN.
    `scratch`, two times (N, W), is where it is computed; t is left in the second.
    """
    if scratch is None:
        scratch = torch.empty(2, *left.shape, dtype=wide_dtype(left), device=left.device).unbind()
    q, t = scratch
    t.copy_(right).sub_(q.copy_(left))
    torch.softmax(q, -1, out=q)
    # What follows on the host are a few numbers a row.
    spread = np.maximum(as_host(t.amax(-1)), -as_host(t.amin(-1)))
    # eps / q enters to first order only, so its square must be below 1e-6: q > 1024 eps. Changes
    # under 2^-40 would bring q t^2 near the smallest normal float32, 2^-126.
    regular = (spread < 1 / 8) & (spread > 2**-40) & (as_host(q.amin(-1)) > 1024 * epsilon)
    last = 3 + sum(bool(spread.max() > reach) for reach in FAR)
    power = q.sub_(epsilon).mul_(t)
    sums = [power.sum(-1), *(power.mul_(t).sum(-1) for _ in range(1, last))]
    moments = [as_host(moment).astype(np.float64) for moment in sums]
    grown, tilted = np.zeros((2, len(spread)))  # E[e^t] - 1 and E[e^t t]
    with np.errstate(all="ignore"):  # of rows that are not regular
        for k, moment in enumerate(moments, 1):
            counted = moment if k <= 3 else np.where(spread > FAR[k - 4], moment, 0.0)
            grown += counted / math.factorial(k)
            tilted += counted / math.factorial(k - 1)
        # E[t]^2 is taken from E[t^2]: more than half of it, and the difference would be noise.
        regular &= moments[0] ** 2 < 0.5 * moments[1]
        mass = 1 - epsilon * left.shape[-1]
        series = mass * (tilted / (mass + grown) - np.log1p(grown / mass))
        kl = np.where(regular, series, 0.0)
    others = np.flatnonzero(~regular & (spread != 0))  # NaN among them
    # Some at a time: the closed form makes a dozen temporaries in float64.
    some = max(1, (1 << 16) // left.shape[-1])
    for rows in (others[i : i + some] for i in range(0, len(others), some)):
        index = torch.from_numpy(rows).to(left.device)
        kl[rows] = as_host(closed_row_kl(left[index].double(), right[index].double(), epsilon))
    kl[~np.isfinite(spread)] = np.nan
    return kl, spread


def wide_dtype(tensor: Tensor) -> torch.dtype:
    """The dtype that a tensor is computed in: float32, or float64 if it is that."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def closed_row_kl(left: Tensor, right: Tensor, epsilon: float = EPSILON) -> Tensor:
    """`row_kl` for float64 rows of any content.

    With p, q the softmaxes of R and L and u = (p - q) / (q + eps),

        KL = sum (q + eps) * h(u),    h(u) = (1 + u) log(1 + u) - u >= 0,

    because sum (p - q) = 0. No term can be negative, and p - q comes without cancellation from
    d = R - L: p - q = q * expm1(d - c) with c = log sum q exp(d).
    """
    q = left.softmax(-1)
    d = right - left
    near = d.abs().amax(-1, keepdim=True) < 1
    small = torch.where(near, d, 0.0)
    c = (q * small.expm1()).sum(-1, keepdim=True).log1p()
    difference = torch.where(near, q * (small - c).expm1(), right.softmax(-1) - q)
    weight = q + epsilon
    return (weight * relative_entropy(difference / weight)).sum(-1)


def relative_entropy(u: Tensor) -> Tensor:
    """h(u) = (1 + u) log(1 + u) - u for u > -1; by its series near 0, where the form cancels."""
    series = torch.zeros_like(u)
    for k in range(12, 1, -1):  # sum over k >= 2 of (-u)^k / (k (k - 1)), by Horner's rule
        series = series * -u + 1.0 / (k * (k - 1))
    series = series * u * u
    grown = 1 + u.clamp(min=-1)
    closed = torch.special.xlogy(grown, grown) - u
    return torch.where(u.abs() < 0.02, series, closed).clamp(min=0)


# ---------------------------------------------------------------- mergekit


def mergekit_fusion(
    left: Tensor, right: Tensor, options: FusionOptions
) -> tuple[Tensor, FusionStats]:
    """mergekit 0.1.5, operation by operation in the tensors' own dtype.

    Its rounding is part of it: the KL may be negative, and the sum of Left and a rounded
    difference need not be Right. Above a million elements the quartiles are a random sample's.
    """
    right = _checked(left, right)
    a, b = (left, right) if left.ndim else (left[None], right[None])
    p, q = b.softmax(-1) + options.epsilon, a.softmax(-1) + options.epsilon
    kl = (p * (p / q).log()).sum(-1, keepdim=True)
    scores = (b - a).abs() * kl
    values = scores.flatten() if options.quantiles == "all" else scores[a != b]
    if len(values) > MERGEKIT_SAMPLE:
        generator = options.generator or torch.Generator().manual_seed(0)
        values = values[torch.randint(0, len(values), (MERGEKIT_SAMPLE,), generator=generator)]
    ordered = values.sort().values if len(values) else scores.new_zeros(1)
    q1, median, q3 = (ordered[rank] for rank in quartile_ranks(len(ordered)))
    threshold = median + options.lam * (q3 - q1)
    take = scores >= threshold
    result = (a + (b - a) * take.float()).to(left.dtype).view(left.shape)
    quartiles = (float(q1), float(median), float(q3))
    return result, _stats(left, right, result, quartiles, float(threshold))


# ---------------------------------------------------------------- paper


def paper_fusion(left: Tensor, right: Tensor, options: FusionOptions) -> tuple[Tensor, FusionStats]:
    """Equations 1 to 4 as they are printed, in float64.

    One softmax over the flattened tensor and so one KL(L || R) (equations 1 and 2), the signed
    score KL * (L - R), Tukey's hinges as quartiles, and a strict threshold: the ceiling of
    equation 4 is 0 at S = THR. It is clamped at 1, or it would go beyond Right.
    """
    right = _checked(left, right)
    a, b = left.flatten().double(), right.flatten().double()
    x, y = a.softmax(0) + options.epsilon, b.softmax(0) + options.epsilon
    scores = (x * (x / y).log()).sum() * (a - b)
    values = scores if options.quantiles == "all" else scores[a != b]
    quartiles = tukey_hinges(values if len(values) else scores.new_zeros(1))
    threshold = quartiles[1] + options.lam * (quartiles[2] - quartiles[0])
    take = (scores - threshold).clamp(min=0).ceil().clamp(max=1) > 0
    result = torch.where(take.view(left.shape), right, left)
    return result, _stats(left, right, result, quartiles, threshold)


def tukey_hinges(scores: Tensor) -> tuple[float, float, float]:
    """Medians of the lower half, of all and of the upper half; an odd middle is in both halves."""
    ordered = scores.flatten().sort().values
    half = (len(ordered) + 1) // 2

    def median(part: Tensor) -> float:
        return float((part[(len(part) - 1) // 2] + part[len(part) // 2]) / 2)

    return median(ordered[:half]), median(ordered), median(ordered[-half:])


def _checked(left: Tensor, right: Tensor) -> Tensor:
    """Right in Left's dtype; ValueError for NaN and infinity."""
    right = right.to(left.dtype)  # where it may become infinite
    if not (all_finite(left) and all_finite(right)):
        raise NonFiniteError("NaN or infinity in an input")
    return right


def _stats(
    left: Tensor,
    right: Tensor,
    result: Tensor,
    quartiles: tuple[float, float, float],
    threshold: float,
) -> FusionStats:
    moved = (result.double() - left.double()).abs()
    changed, taken = int((left != right).sum()), int((result != left).sum())
    # A threshold of 0 or less means something only where scores are never negative.
    return FusionStats(threshold, quartiles, changed, taken, float(moved.max()), False)


# Float32 copies of a tensor that an arithmetic holds at its peak; `exact` streams.
COPIES = {"exact": 0, "mergekit": 14, "paper": 21}
Arithmetic = Callable[[Tensor, Tensor, FusionOptions], tuple[Tensor, FusionStats]]
ARITHMETICS: dict[str, Arithmetic] = {
    "exact": exact_fusion,
    "mergekit": mergekit_fusion,
    "paper": paper_fusion,
}
