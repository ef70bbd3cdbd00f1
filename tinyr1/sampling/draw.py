"""Drawing tokens: temperature, top-k, top-p and random numbers that depend on nothing but a key.

Paper section 3.1.2: temperature 0.6, top-p 0.95, no greedy decoding.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

TOP_CANDIDATES = 128  # sorted at first; sixteen times as many where the nucleus is wider


def uniforms(keys: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """One number in [0, 1) for each (key, position), by SplitMix64. uint64 in, float64 out."""
    with np.errstate(over="ignore"):
        x = keys + (positions.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        x ^= x >> np.uint64(31)
    return (x >> np.uint64(11)).astype(np.float64) * 2.0**-53


def draw(logits: Tensor, u: Tensor, temperature: float, top_p: float, top_k: int = 0) -> Tensor:
    """One token a row: temperature, then top-k, then top-p, then the inverse of the CDF at u.

    logits (B, V), u (B,) in [0, 1) -> (B,) int64. Temperature 0 is greedy. Top-p keeps a token
    while the mass before it is below p. Only the largest logits of a row are sorted, and more of
    them where its nucleus reaches beyond these, so the result is exact.

    The CDF runs through the tokens by id: logits that differ in their last bits between two shapes
    of a matrix product change the places of neighbours in an order by probability, and with them
    what u means; by id, u means another token only if it lies within those bits of a border.
    """
    if temperature == 0:
        return logits.argmax(-1)
    scaled = logits.float() / temperature
    size = scaled.shape[-1]
    total = scaled.logsumexp(-1, keepdim=True)
    if top_p >= 1 and not top_k:
        return _inverse((scaled - total).double().exp(), u)
    drawn = torch.empty(len(scaled), dtype=torch.int64, device=scaled.device)
    rows = torch.arange(len(scaled), device=scaled.device)
    count = min(top_k or TOP_CANDIDATES, size)
    while True:
        values, ids = scaled.topk(count)
        if top_k:
            total = values.logsumexp(-1, keepdim=True)
        ids, by_id = ids.sort(-1)
        values = values.gather(-1, by_id)
        # Over all words, though only the largest are here: `total` is the whole row's.
        probability = (values - total).double().exp()
        probability, ranks = probability.sort(dim=-1, descending=True, stable=True)
        mass = probability.cumsum(-1)
        nucleus = torch.where(mass - probability < top_p, probability, 0.0)
        index = _inverse(torch.zeros_like(nucleus).scatter(-1, ranks, nucleus), u)
        drawn[rows] = ids.gather(-1, index[:, None])[:, 0]
        # Rows whose nucleus goes on beyond these candidates are drawn again, with more of them.
        wide = mass[:, -1] < top_p
        if top_k or count == size or not bool(wide.any()):
            return drawn
        rows, u, scaled, total = rows[wide], u[wide], scaled[wide], total[wide]
        count = min(16 * count, size)


def _inverse(weights: Tensor, u: Tensor) -> Tensor:
    """Where the running sum of `weights` (B, N), not normalised, first exceeds u times all; (B,).

    A column of weight 0 is never drawn.
    """
    sums = weights.cumsum(-1)
    found = (sums <= u.to(sums)[:, None] * sums[:, -1:]).sum(-1)
    last = sums.shape[-1] - 1 - (weights.flip(-1) > 0).to(torch.uint8).argmax(-1)
    return torch.minimum(found, last)
