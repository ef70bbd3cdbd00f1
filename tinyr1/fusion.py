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
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

EPSILON = 1e-8  # the paper's, added to both softmaxes
CHUNK_ELEMENTS = 1 << 18  # rows are scored in chunks that stay in cache
MERGEKIT_SAMPLE = 1_000_000  # elements from which mergekit estimates the quartiles


class FusionStats(NamedTuple):
    """What a fusion did to one tensor."""

    threshold: float
    quartiles: tuple[float, float, float]
    taken: int  # elements that are Right's and differ from Left's
    collapsed: bool  # threshold 0: most elements are equal, so everything that differs is taken


Fusion = tuple[
    Tensor, Tensor, tuple[float, float, float], float
]  # result, mask, quartiles, threshold


def arcee_fusion(
    left: Tensor, right: Tensor, *, lam: float = 1.5, arithmetic: str = "exact"
) -> Tensor:
    """Fuse one pair of tensors of any rank; the result has Left's dtype.

    Raises ValueError for different shapes, an unknown arithmetic, or NaN and infinity.
    """
    return fuse(left, right, lam, arithmetic)[0]


def fuse(
    left: Tensor,
    right: Tensor,
    lam: float = 1.5,
    arithmetic: str = "exact",
    generator: torch.Generator | None = None,
) -> tuple[Tensor, FusionStats]:
    """`arcee_fusion` with its figures. `generator` draws mergekit's sample of large tensors."""
    if arithmetic not in ARITHMETICS:
        raise ValueError(f"arithmetic={arithmetic!r}: expected one of {', '.join(ARITHMETICS)}")
    if left.shape != right.shape:
        raise ValueError(f"shapes differ: {list(left.shape)} and {list(right.shape)}")
    if not (bool(left.isfinite().all()) and bool(right.isfinite().all())):
        raise ValueError("NaN or infinity in an input")
    if not left.numel():
        return left.clone(), FusionStats(0.0, (0.0, 0.0, 0.0), 0, False)
    right = right.to(left.dtype)
    generator = generator or torch.Generator().manual_seed(0)
    result, take, quartiles, threshold = ARITHMETICS[arithmetic](left, right, lam, generator)
    taken = int((take & (left != right)).sum())
    collapsed = arithmetic == "exact" and threshold <= 0 and taken > 0
    return result, FusionStats(threshold, quartiles, taken, collapsed)


# ---------------------------------------------------------------- exact


def exact_fusion(left: Tensor, right: Tensor, lam: float, generator: torch.Generator) -> Fusion:
    """The formula at the top of this file, free of rounding noise."""
    scores = importance(left, right)
    quartiles = exact_quartiles(scores)
    threshold = quartiles[1] + lam * (quartiles[2] - quartiles[0])
    take = scores >= threshold
    return torch.where(take, right, left), take, quartiles, threshold


def importance(left: Tensor, right: Tensor) -> Tensor:
    """Scores S of a pair, float64, in the pair's shape (equation 2 with |R - L|)."""
    width = left.shape[-1] if left.ndim else 1
    l_rows, r_rows = left.reshape(-1, width), right.reshape(-1, width)
    scores = torch.empty(l_rows.shape, dtype=torch.float64, device=left.device)
    step = max(1, CHUNK_ELEMENTS // width)
    for start in range(0, len(l_rows), step):
        part = slice(start, start + step)
        a, b = l_rows[part].double(), r_rows[part].double()
        torch.mul((b - a).abs(), row_kl(a, b)[:, None], out=scores[part])
    return scores.view(left.shape)


def row_kl(left: Tensor, right: Tensor) -> Tensor:
    """KL(softmax(R) + eps || softmax(L) + eps) of each row of (N, W) float64 -> (N,), >= 0.

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
    weight = q + EPSILON
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


def exact_quartiles(scores: Tensor) -> tuple[float, float, float]:
    """sorted[floor(q * (n - 1))] for q = 1/4, 1/2, 3/4, over all elements."""
    values = scores.flatten().cpu().numpy()
    ranks = [int(np.floor(q * (len(values) - 1))) for q in (0.25, 0.5, 0.75)]
    ordered = np.partition(values, ranks)
    return float(ordered[ranks[0]]), float(ordered[ranks[1]]), float(ordered[ranks[2]])


# ---------------------------------------------------------------- mergekit


def mergekit_fusion(left: Tensor, right: Tensor, lam: float, generator: torch.Generator) -> Fusion:
    """mergekit 0.1.5, operation by operation in the tensors' own dtype.

    Its rounding is part of it: the KL may be negative, and the sum of Left and a rounded
    difference need not be Right. Above a million elements the quartiles are a random sample's.
    """
    left, right = (left, right) if left.ndim else (left[None], right[None])
    p, q = right.softmax(-1) + EPSILON, left.softmax(-1) + EPSILON
    kl = (p * (p / q).log()).sum(-1, keepdim=True)
    scores = (right - left).abs() * kl
    values = scores.flatten()
    if len(values) > MERGEKIT_SAMPLE:
        values = values[torch.randint(0, len(values), (MERGEKIT_SAMPLE,), generator=generator)]
    ordered = values.sort().values
    q1, median, q3 = (ordered[int(f * (len(ordered) - 1))] for f in (0.25, 0.5, 0.75))
    threshold = median + lam * (q3 - q1)
    take = scores >= threshold
    result = (left + (right - left) * take.float()).to(left.dtype)
    quartiles = (float(q1), float(median), float(q3))
    return result, take, quartiles, float(threshold)


# ---------------------------------------------------------------- paper


def paper_fusion(left: Tensor, right: Tensor, lam: float, generator: torch.Generator) -> Fusion:
    """Equations 1 to 4 as they are printed, in float64.

    One softmax over the flattened tensor and so one KL(L || R) (equation 1 and 2), the signed
    score KL * (L - R), Tukey's hinges as quartiles, and a strict threshold: the ceiling of
    equation 4 is 0 at S = THR. It is clamped at 1, or it would go beyond Right.
    """
    l_values, r_values = left.flatten().double(), right.flatten().double()
    x, y = l_values.softmax(0) + EPSILON, r_values.softmax(0) + EPSILON
    scores = (x * (x / y).log()).sum() * (l_values - r_values)
    quartiles = tukey_hinges(scores)
    threshold = quartiles[1] + lam * (quartiles[2] - quartiles[0])
    take = ((scores - threshold).clamp(min=0).ceil().clamp(max=1) > 0).view(left.shape)
    return torch.where(take, right, left), take, quartiles, threshold


def tukey_hinges(scores: Tensor) -> tuple[float, float, float]:
    """Medians of the lower half, of all and of the upper half; an odd middle is in both halves."""
    ordered = scores.flatten().sort().values
    half = (len(ordered) + 1) // 2

    def median(part: Tensor) -> float:
        return float((part[(len(part) - 1) // 2] + part[len(part) // 2]) / 2)

    return median(ordered[:half]), median(ordered), median(ordered[-half:])


ARITHMETICS: dict[str, Callable[[Tensor, Tensor, float, torch.Generator], Fusion]] = {
    "exact": exact_fusion,
    "mergekit": mergekit_fusion,
    "paper": paper_fusion,
}
