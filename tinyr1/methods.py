"""Merge methods by their command-line names, each a function of whole tensors.

    METHODS["linear"].fn([a, b], None, MergeParams(weights=(1.0, 3.0)), generator) -> Tensor

Accumulation is in float32 (float64 for float64 inputs); the result has the first tensor's dtype.
`arcee_fusion` is section 2.2 of the paper; the others are what Figure 2 compares it with.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tinyr1.fusion import arcee_fusion


@dataclass(frozen=True)
class MergeParams:
    """Options of the methods; each reads its own."""

    weights: tuple[float, ...] = ()
    lam: float = 1.0
    normalize: bool = True

    def weights_for(self, count: int) -> tuple[float, ...]:
        """One weight a model: those given, or 1 each."""
        return self.weights or (1.0,) * count


MergeFn = Callable[[Sequence[Tensor], "Tensor | None", MergeParams, torch.Generator], Tensor]


@dataclass(frozen=True)
class MergeMethod:
    """A merge method: its function, whether it needs --base, and how many models it takes."""

    fn: MergeFn
    needs_base: bool = False
    min_models: int = 2
    max_models: int | None = None


def _wide(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _arcee(
    tensors: Sequence[Tensor], base: Tensor | None, params: MergeParams, generator: torch.Generator
) -> Tensor:
    """Arcee Fusion: the first model is Left, the second Right."""
    left, right = tensors
    return arcee_fusion(left, right, lam=params.lam)


def _linear(
    tensors: Sequence[Tensor], base: Tensor | None, params: MergeParams, generator: torch.Generator
) -> Tensor:
    """sum w_i W_i, over sum w_i unless --no-normalize (model soups, arXiv 2203.05482)."""
    weights = params.weights_for(len(tensors))
    total = sum(weights) if params.normalize else 1.0
    mixed = torch.zeros_like(_wide(tensors[0]))
    for weight, tensor in zip(weights, tensors, strict=True):
        mixed += _wide(tensor) * (weight / total)
    return mixed.to(tensors[0].dtype)


def _task_arithmetic(
    tensors: Sequence[Tensor], base: Tensor | None, params: MergeParams, generator: torch.Generator
) -> Tensor:
    """W_base + lambda * sum w_i (W_i - W_base) (task arithmetic, arXiv 2212.04089)."""
    assert base is not None
    origin = _wide(base)
    change = torch.zeros_like(origin)
    for weight, tensor in zip(params.weights_for(len(tensors)), tensors, strict=True):
        change += (_wide(tensor) - origin) * weight
    return (origin + params.lam * change).to(tensors[0].dtype)


def _passthrough(
    tensors: Sequence[Tensor], base: Tensor | None, params: MergeParams, generator: torch.Generator
) -> Tensor:
    """A copy of the first model."""
    return tensors[0]


METHODS: dict[str, MergeMethod] = {
    "arcee_fusion": MergeMethod(_arcee, max_models=2),
    "linear": MergeMethod(_linear),
    "task_arithmetic": MergeMethod(_task_arithmetic, needs_base=True, min_models=1),
    "passthrough": MergeMethod(_passthrough, min_models=1),
}
