"""Cross-entropy over a large vocabulary without ever holding all logits.

At 16,384 tokens and 152,064 words the logits alone would take 9.3 GiB in float32, and their
gradient as much again. Here a chunk of rows goes forward and at once backward; what is kept are
the gradients with respect to the hidden states and the weight, of the sizes of their inputs.

Shapes: Y targets, D model, V vocab.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

CHUNK_ELEMENTS = 1 << 27  # 512 MiB of float32 logits at a time


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        weights: Tensor,
        rows: int,
        needs_grad: bool,
    ) -> Tensor:
        hidden_grad = torch.empty_like(hidden) if needs_grad else None
        weight_grad: Tensor | None = None
        loss = torch.zeros((), dtype=torch.float32, device=hidden.device)
        for start in range(0, len(hidden), rows):
            part = slice(start, start + rows)
            h, y, w = hidden[part], targets[part, None], weights[part, None]
            logits = (h @ weight.T).float()  # (rows, V); the softmax takes its place
            target = logits.gather(1, y)
            largest = logits.amax(-1, keepdim=True)
            torch.softmax(logits, -1, out=logits)
            # log sum exp(logits) = largest logit - log of its probability
            loss += ((largest - logits.amax(-1, keepdim=True).log() - target) * w).sum()
            if hidden_grad is None:
                continue
            # d loss / d logits = w * (softmax - one_hot); w goes where fewer elements are
            grad = logits.scatter_add_(1, y, torch.full_like(w, -1.0)).to(hidden.dtype)
            hidden_grad[part] = (grad @ weight).mul_(w)
            weighted = (h * w).to(h.dtype)
            if weight_grad is None:  # in float32: in bfloat16 late chunks would be rounded away
                weight_grad = (grad.T @ weighted).float()
            else:
                weight_grad += grad.T @ weighted
        if hidden_grad is not None:
            if weight_grad is None:  # no rows
                weight_grad = torch.zeros_like(weight)
            ctx.gradients = (hidden_grad, weight_grad.to(weight.dtype))
        return loss

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden_grad, weight_grad = ctx.gradients
        del ctx.gradients  # scaled in place, so good for one backward pass only
        hidden_grad *= grads[0]
        weight_grad *= grads[0]
        return hidden_grad, weight_grad, None, None, None, None


def cross_entropy_sum(
    hidden: Tensor, weight: Tensor, targets: Tensor, weights: Tensor | None = None
) -> Tensor:
    """Sum over rows of `weights * cross_entropy(hidden @ weight.T, targets)`, a float32 scalar.

    hidden (Y, D), weight (V, D), targets (Y,) int64, weights (Y,) float32 or None for ones.
    No rows give exactly 0 with zero gradients, so a batch of padding alone does no harm.
    """
    if weights is None:
        weights = torch.ones(len(targets), dtype=torch.float32, device=hidden.device)
    rows = max(1, CHUNK_ELEMENTS // weight.shape[0])
    needs_grad = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
    return _ChunkedCrossEntropy.apply(  # pyright: ignore
        hidden, weight, targets, weights, rows, needs_grad
    )
