"""Arcee Fusion (paper section 2.2): keep Left, and take from Right what changed most.

  1. importance   S = |R - L| * KL(softmax(R row) || softmax(L row)), a row being the last dimension
  2. threshold    median(S) + lambda * (Q3 - Q1), over all elements of the tensor
  3. selection    Right's element where S >= threshold, else Left's

This is the `exact` arithmetic (docs/decisions/0001): the formula without the rounding noise. Two
experts of one model differ by so little that in bfloat16, and even in float32, a KL divergence
computed term by term is noise and negative in half of the rows. The forms used here have no
cancellation and cannot go negative. Right's bits are copied, so no element is new.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

EPSILON = 1e-8  # the paper's, added to both softmaxes
CHUNK_ELEMENTS = 1 << 18  # rows are scored in chunks that stay in cache


class FusionStats(NamedTuple):
    """What a fusion did to one tensor."""

    threshold: float
    quartiles: tuple[float, float, float]
    taken: int  # elements that are Right's and differ from Left's
    collapsed: bool  # threshold 0: most elements are equal, so everything that differs is taken


def arcee_fusion(
    left: Tensor, right: Tensor, *, lam: float = 1.5, arithmetic: str = "exact"
) -> Tensor:
    """Fuse one pair of tensors of any rank; the result has Left's dtype.

    Raises ValueError for different shapes, an unknown arithmetic, or NaN and infinity.
    """
    if arithmetic != "exact":
        raise ValueError(f"arithmetic={arithmetic!r}: expected 'exact'")
    return fuse(left, right, lam)[0]


def fuse(left: Tensor, right: Tensor, lam: float = 1.5) -> tuple[Tensor, FusionStats]:
    """`arcee_fusion` with its figures."""
    if left.shape != right.shape:
        raise ValueError(f"shapes differ: {list(left.shape)} and {list(right.shape)}")
    if not (bool(left.isfinite().all()) and bool(right.isfinite().all())):
        raise ValueError("NaN or infinity in an input")
    right = right.to(left.dtype)
    scores = importance(left, right)
    quartiles = exact_quartiles(scores)
    threshold = quartiles[1] + lam * (quartiles[2] - quartiles[0])
    take = scores >= threshold
    taken = int((take & (left != right)).sum())
    collapsed = threshold <= 0 and taken > 0
    stats = FusionStats(threshold, quartiles, taken, collapsed)
    return torch.where(take, right, left), stats


def importance(left: Tensor, right: Tensor) -> Tensor:
    """Scores S of a pair, float64, in the pair's shape (equation 2 with |R - L|)."""
    if not left.numel():
        return torch.zeros(left.shape, dtype=torch.float64)
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
    """sorted[floor(q * (n - 1))] for q = 1/4, 1/2, 3/4, over all elements; zeros for none."""
    values = scores.flatten().cpu().numpy()
    if not len(values):
        return 0.0, 0.0, 0.0
    ranks = [int(np.floor(q * (len(values) - 1))) for q in (0.25, 0.5, 0.75)]
    ordered = np.partition(values, ranks)
    return float(ordered[ranks[0]]), float(ordered[ranks[1]]), float(ordered[ranks[2]])
