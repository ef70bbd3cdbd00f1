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
    """
    if temperature == 0:
        return logits.argmax(-1)
    scaled = logits.float() / temperature
    size = scaled.shape[-1]
    total = scaled.logsumexp(-1, keepdim=True)
    drawn = torch.empty(len(scaled), dtype=torch.int64, device=scaled.device)
    rows = torch.arange(len(scaled), device=scaled.device)
    count = min(top_k or TOP_CANDIDATES, size)
    while True:
        values, ids = scaled.topk(count)
        if top_k:
            total = values.logsumexp(-1, keepdim=True)
        # Over all words, though only the largest are here: `total` is the whole row's.
        probability = (values - total).exp()
        mass = probability.cumsum(-1)
        kept = torch.where(mass - probability < top_p, probability, 0.0).double().cumsum(-1)
        threshold = u.to(kept)[:, None] * kept[:, -1:]
        index = (kept <= threshold).sum(-1, keepdim=True).clamp(max=count - 1)
        drawn[rows] = ids.gather(1, index)[:, 0]
        # Rows whose nucleus goes on beyond these candidates are drawn again, with more of them.
        wide = mass[:, -1] < top_p
        if top_k or count == size or not bool(wide.any()):
            return drawn
        rows, u, scaled, total = rows[wide], u[wide], scaled[wide], total[wide]
        count = min(16 * count, size)
