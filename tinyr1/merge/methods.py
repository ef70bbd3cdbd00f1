"""Merge methods by their command-line names, each a function of whole tensors.

    METHODS["linear"].fn([a, b], None, MergeParams(weights=(1.0, 3.0)), generator) -> Tensor

Names, parameters and defaults are mergekit's, so that its users find what they know; the formulas
are the papers'. W are the models, W0 the base, t_i = W_i - W0 the task vectors, w_i the weights
(1 each unless given). Arithmetic is in float32 (float64 for float64 inputs); the result has the
first tensor's dtype. The spherical methods take angles between whole tensors, of which float32
leaves little where models differ by 1e-4: multislerp is off by a percent of such a change, as
mergekit's is. `arcee_fusion` is section 2.2 of the paper (fusion.py); the others are what
its Figure 2 compares it with, and what people ask for beside it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

import torch
from torch import Tensor

from tinyr1.common.by_name import ByName, each, plain
from tinyr1.common.config import check_range, flag
from tinyr1.common.errors import UserError
from tinyr1.merge.fusion import EPSILON, LAMBDA, FusionOptions, Quantiles, fuse, wide_dtype


@dataclass(frozen=True)
class MergeParams:
    """Options of the methods; each reads its own. None is the method's default."""

    lam: float | ByName | None = None
    """Lambda (by default 1.5 for arcee_fusion, 1 for task vectors); by name: --lam 1.5 mlp=1."""
    arithmetic: Literal["exact", "mergekit", "paper"] = "exact"
    """Arithmetic of Arcee Fusion: without rounding noise, as mergekit 0.1.5, or literally."""
    quantiles: Quantiles = "all"
    """arcee_fusion: quartiles of all elements; or of those changed, where these are a minority."""
    weights: tuple[float, ...] | ByName = ()
    """One weight a model (by default 1 each); by tensor name: --weights 1 1 mlp=1,3."""
    normalize: bool | None = None
    """Divide by the sum of weights, or --no-normalize (linear, multislerp, ties, della do)."""
    density: float = 1.0
    """Share of each task vector that is kept (ties, dare, della, breadcrumbs)."""
    rescale: bool | None = None
    """Scale thinned task vectors back to their norm, or --no-rescale (dare and della do)."""
    gamma: float = 0.01
    """Share of largest changes that breadcrumbs drops."""
    epsilon: float | None = None
    """della: spread of the keeping probability (0.15); ram: smallest change that counts (1e-5)."""
    eps: float = EPSILON
    """Added to both softmaxes (arcee_fusion), to norms that divide (multislerp)."""
    t: float | ByName = 0.5
    """slerp: 0 is the first model, 1 the second; nearswap: threshold; by name: --t 0.5 mlp=0.3."""
    select_topk: float = 1.0
    """Share of most varying elements that sce keeps."""
    max_iter: int = 10
    """karcher: most steps to the mean."""
    tol: float = 1e-5
    """karcher: a step so short is the last."""
    r: float = 0.1
    """ramplus_tl: how much a model's own changes are reinforced."""
    alpha: float = 0.2
    """ramplus_tl: largest ratio of shared to own changes that counts."""
    filter_wise: bool = False
    """model_stock: one interpolation ratio a row."""
    nuslerp_flatten: bool = True
    """nuslerp: one arc for the whole tensor, not one a vector."""
    nuslerp_row_wise: bool = False
    """nuslerp without flattening: vectors of the first dimension, not of the last."""
    scale: float = 1.0
    """passthrough: factor."""

    def __post_init__(self) -> None:
        for f in fields(self):
            for value in each(getattr(self, f.name)):
                numbers = value if isinstance(value, tuple) else (value,)
                if any(isinstance(n, float) and not abs(n) <= 1e6 for n in numbers):
                    shown = " ".join(map(str, numbers))
                    raise UserError(f"{flag(f.name)}={shown}: expected between -1e6 and 1e6")
        check_range(self, 1e-12, math.inf, "eps")
        check_range(self, 0, 1, "density", "gamma", "select_topk")

    def at(self, name: str) -> MergeParams:
        """The options of one tensor, in which nothing depends on its name any more."""
        varied = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{k: v.at(name) for k, v in varied.items() if isinstance(v, ByName)})

    def fusion_options(self, generator: torch.Generator | None = None) -> FusionOptions:
        """The part that Arcee Fusion reads, of one tensor and resolved."""
        return FusionOptions(plain(self.lam), self.eps, self.quantiles, generator)

    def weights_for(self, count: int) -> tuple[float, ...]:
        """One weight a model: those given, or 1 each."""
        return plain(self.weights) or (1.0,) * count


Models = list[Tensor]
MergeFn = Callable[[Models, Tensor, MergeParams, torch.Generator], Tensor]


@dataclass(frozen=True)
class MergeMethod:
    """A merge method, the options that it reads, whether it needs --base, and how many models."""

    wide: MergeFn  # on float32 or float64 (see own_dtype), with every option resolved
    options: tuple[str, ...] = ()  # fields of MergeParams
    defaults: Mapping[str, Any] = field(default_factory=dict)  # of those that are None if not given
    needs_base: bool = False
    min_models: int = 2
    max_models: int | None = None
    takes_base: bool = False  # has a meaning with a base, but works without
    elementwise: bool = False  # an element depends on the same element of the inputs only
    own_dtype: bool = False  # computed in the tensors' dtype: its rounding may be part of it
    copies_made: tuple[int, int] = (0, 0)  # of a tensor in float32: in any case, and a model

    def copies(self, model_count: int) -> int:
        """Float32 copies of a tensor that are held at the peak, the inputs among them."""
        fixed, each = self.copies_made
        return fixed + each * model_count + model_count + self.needs_base

    def resolve(self, params: MergeParams) -> MergeParams:
        """`params` with this method's defaults where nothing was given."""
        usual = {f.name: f.default for f in fields(params)} | dict(self.defaults)
        changes: dict[str, Any] = {}
        for name, default in usual.items():
            value = getattr(params, name)
            if value is None:
                changes[name] = default
            elif isinstance(value, ByName) and value.default is None:
                changes[name] = replace(value, default=default)
        return replace(params, **changes)

    def fn(
        self,
        tensors: Sequence[Tensor],
        base: Tensor | None,
        params: MergeParams,
        generator: torch.Generator,
    ) -> Tensor:
        """Merge whole tensors of one shape; the result has the first one's dtype."""
        return self.unrounded(tensors, base, params, generator).to(tensors[0].dtype)

    def unrounded(
        self,
        tensors: Sequence[Tensor],
        base: Tensor | None,
        params: MergeParams,
        generator: torch.Generator,
    ) -> Tensor:
        """`fn` as it is computed, in float32 or float64 (unless `own_dtype`)."""
        wide = tensors[0].dtype if self.own_dtype else wide_dtype(tensors[0])
        origin = (
            torch.zeros((), dtype=wide, device=tensors[0].device) if base is None else base.to(wide)
        )
        return self.wide([t.to(wide) for t in tensors], origin, self.resolve(params), generator)


# ---------------------------------------------------------------- averages and spheres


def linear(models: Models, base: Tensor, p: MergeParams, generator: torch.Generator) -> Tensor:
    """sum w_i W_i, over sum w_i unless --no-normalize (model soups, arXiv 2203.05482)."""
    weights = p.weights_for(len(models))
    total = sum(weights) if p.normalize else 1.0
    mixed = models[0] * (weights[0] / total)
    for weight, model in zip(weights[1:], models[1:], strict=True):
        mixed += model * (weight / total)
    return mixed


def slerp(models: Models, base: Tensor, p: MergeParams, generator: torch.Generator) -> Tensor:
    """Along the great circle from the first model (t = 0) to the second (t = 1).

    (sin((1 - t) a) W_0 + sin(t a) W_1) / sin a with a the angle between the flattened tensors;
    linear where they are nearly parallel.
    """
    first, second = models
    cosine = _cosine(first, second)
    # sin a is nearly 0: the arc is a straight line, and its formula a division of noise.
    t = plain(p.t)
    if abs(cosine) > 0.9995:
        return (1 - t) * first + t * second
    return _arc(first, second, t, math.acos(cosine))


def nuslerp(models: Models, base: Tensor, p: MergeParams, generator: torch.Generator) -> Tensor:
    """`slerp` with t = w_1 / (w_0 + w_1); with a base, of the task vectors.

    Without flattening, each vector of the last dimension goes its own arc, or each of the first
    with `nuslerp_row_wise`.
    """
    w0, w1 = p.weights_for(2)
    t = w1 / (w0 + w1) if abs(w0 + w1) > 1e-6 else 0.5
    first, second = models[0] - base, models[1] - base
    axes = tuple(range(first.ndim)) if p.nuslerp_flatten else (0 if p.nuslerp_row_wise else -1,)
    norms = [
        torch.linalg.vector_norm(v, dim=axes, keepdim=True).clamp(min=1e-7) for v in (first, second)
    ]
    cosine = (first / norms[0] * (second / norms[1])).sum(axes, keepdim=True).clamp(-1, 1)
    parallel = 1 - cosine.square() <= 1e-16
    # Where it is not used the angle is a harmless one: torch.where computes both sides.
    angle = torch.where(parallel, math.pi / 2, cosine.acos())
    arc = ((1 - t) * angle).sin() * first + (t * angle).sin() * second
    return base + torch.where(parallel, (1 - t) * first + t * second, arc / angle.sin())


def _cosine(a: Tensor, b: Tensor) -> float:
    norms = float(a.norm()) * float(b.norm())
    return min(1.0, max(-1.0, float((a * b).sum()) / norms)) if norms > 0 else 1.0


def _arc(a: Tensor, b: Tensor, t: float, angle: float) -> Tensor:
    return (math.sin((1 - t) * angle) * a + math.sin(t * angle) * b) / math.sin(angle)


def multislerp(models: Models, base: Tensor, p: MergeParams, generator: torch.Generator) -> Tensor:
    """A barycentre on the sphere: to the tangent space at the weighted mean direction and back.

    Directions x_i of W_i (of t_i with a base), m the direction of sum w_i x_i, v = sum w_i (x_i -
    <x_i, m> m); the result is (m cos|v| + v sin|v| / |v|) times the weighted mean of the norms.
    """
    if len(models) == 1:
        return models[0]
    raw = p.weights_for(len(models))
    weights = [w / sum(raw) for w in raw] if p.normalize else list(raw)
    vectors = [model - base for model in models]
    norms = [float(v.norm()) for v in vectors]
    units = [v / (n + p.eps) for v, n in zip(vectors, norms, strict=True)]
    mean = _weighted_sum(units, weights)
    length = float(mean.norm())
    # Opposite directions have no mean. Two of them leave the straight line; of more, any choice
    # would be arbitrary.
    if length < p.eps:
        if len(models) == 2:
            return base + _weighted_sum(vectors, weights)
        raise ValueError("the directions cancel: their weighted sum is zero; change --weights")
    mean = mean / length
    tangent = _weighted_sum([u - (u * mean).sum() * mean for u in units], weights)
    angle = float(tangent.norm()) + p.eps
    point = mean * math.cos(angle) + tangent * (math.sin(angle) / angle)
    return base + point * sum(w * n for w, n in zip(weights, norms, strict=True))


def _weighted_sum(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    total = torch.zeros_like(tensors[0])
    for tensor, weight in zip(tensors, weights, strict=True):
        total += tensor * weight
    return total


def karcher(models: Models, base: Tensor, p: MergeParams, generator: torch.Generator) -> Tensor:
    """The Riemannian (Karcher) mean of the directions, with equal votes, times the mean norm.

    Repeatedly step along the mean of the logarithms (a / sin a) (x_i - cos a m).
    """
    tolerance = p.tol
    norms = [float(m.norm()) for m in models]
    units = [m / n for m, n in zip(models, norms, strict=True) if n > tolerance]
    if not units or len(models) == 1:
        return models[0] if len(models) == 1 else torch.zeros_like(models[0])
    share = 1 / len(units)
    mean = _weighted_sum(units, [share] * len(units))
    mean = mean / mean.norm() if float(mean.norm()) >= tolerance else units[0]
    for _ in range(p.max_iter):
        step = torch.zeros_like(mean)
        for unit in units:
            cosine = min(1.0, max(-1.0, float((mean * unit).sum())))
            angle = math.acos(cosine)
            if angle >= tolerance:
                step += share * (angle / math.sin(angle)) * (unit - cosine * mean)
        length = float(step.norm())
        if length < tolerance:
            break
        mean = math.cos(length) * mean + math.sin(length) * (step / length)
        mean = mean / mean.norm()
    return mean * (sum(norms) / len(models))


# ---------------------------------------------------------------- task vectors


def _task_vectors(models: Models, base: Tensor, weights: Sequence[float]) -> Tensor:
    """w_i t_i stacked, (models, ...)."""
    return torch.stack([(m - base) * w for m, w in zip(models, weights, strict=True)])


def _combine(
    vectors: Tensor, weights: Sequence[float], base: Tensor, p: MergeParams, elect: bool
) -> Tensor:
    """W0 + lambda * sum of weighted task vectors, over the sum of the weights if p.normalize.

    With `elect` only vectors that agree with the sign of the sum count (TIES), element by element.
    """
    shape = (-1, *[1] * base.ndim)
    weight = base.new_tensor(weights).view(shape).expand(vectors.shape)
    # Two models that moved an element in opposite directions cancel each other in a sum; here the
    # side with the larger total has it alone.
    if elect:
        sign = torch.where(vectors.sum(0) >= 0, 1.0, -1.0)
        agrees = vectors.sign() == sign
        vectors, weight = vectors * agrees, weight * agrees
    change = vectors.sum(0)
    if p.normalize:
        divisor = weight.sum(0)
        # 0 where no vector counts (its change is 0, too), or where weights of both signs cancel.
        change = change / torch.where(divisor.abs() < 1e-8, 1.0, divisor)
    return base + plain(p.lam) * change


def _restored(kept: Tensor, vector: Tensor) -> Tensor:
    """Scale what was kept of a vector to the L1 norm that the vector had."""
    before, after = float(vector.abs().sum()), float(kept.abs().sum())
    return kept * (before / after) if min(before, after) >= 1e-7 else kept


def _magnitude_ranks(vector: Tensor) -> Tensor:
    """Rank of each element by |value|, 0 for the smallest, in the vector's shape."""
    order = vector.abs().flatten().argsort()
    ranks = torch.empty_like(order)
    ranks[order] = torch.arange(len(order), device=order.device)
    return ranks.view(vector.shape)


def task_arithmetic(
    models: Models, base: Tensor, p: MergeParams, generator: torch.Generator
) -> Tensor:
    """W0 + lambda * sum w_i t_i (arXiv 2212.04089)."""
    weights = p.weights_for(len(models))
    vectors = _task_vectors(models, base, weights)
    return _combine(vectors, weights, base, p, elect=False)


Sparsify = Callable[[Tensor, MergeParams, torch.Generator], Tensor]


def sparse_method(sparsify: Sparsify, elect: bool) -> MergeFn:
    """Thin out each task vector, then combine as task arithmetic does, or as TIES with `elect`.

    With p.rescale a thinned vector is scaled back to its former L1 norm.
    """

    def merge(models: Models, base: Tensor, p: MergeParams, generator: torch.Generator) -> Tensor:
        weights = p.weights_for(len(models))
        thinned: Models = []
        for model in models:
            vector = model - base
            kept = vector if p.density >= 1 else sparsify(vector, p, generator)
            thinned.append((_restored(kept, vector) if p.rescale else kept) + base)
        vectors = _task_vectors(thinned, base, weights)
        return _combine(vectors, weights, base, p, elect)

    return merge


def trim(vector: Tensor, p: MergeParams, generator: torch.Generator) -> Tensor:
    """Keep the `density` share of largest magnitude (TIES, arXiv 2306.01708)."""
    n = vector.numel()
    # Ranks, not a threshold: of equal magnitudes a threshold would keep all or none.
    kept = max(1, int(p.density * n)) if p.density > 0 else 0
    return vector * (_magnitude_ranks(vector) >= n - kept)


def drop(vector: Tensor, p: MergeParams, generator: torch.Generator) -> Tensor:
    """Keep each element with probability `density` (DARE, arXiv 2311.03099)."""
    # Drawn on the CPU, so that a GPU drops the same elements.
    chance = torch.rand(vector.shape, generator=generator).to(vector.device)
    return vector * (chance < p.density)


def drop_by_rank(vector: Tensor, p: MergeParams, generator: torch.Generator) -> Tensor:
    """Keep with probability density -+ epsilon, rising with the rank of |value| in its row
    (DELLA, arXiv 2406.11617)."""
    epsilon = p.epsilon
    assert epsilon is not None  # resolved
    if not 0 < p.density - epsilon <= p.density + epsilon < 1:
        raise ValueError(f"density {p.density} -+ epsilon {epsilon} must lie within 0 and 1")
    rows = vector if vector.ndim > 1 else vector.view(1, -1)
    rank = rows.abs().argsort(1).argsort(1).float()
    spread = rank / max(rows.shape[1] - 1, 1)
    chance = torch.rand(rows.shape, generator=generator).to(rows.device)
    kept = chance < (p.density - epsilon) + 2 * epsilon * spread
    return vector * kept.view(vector.shape)


def drop_outliers(vector: Tensor, p: MergeParams, generator: torch.Generator) -> Tensor:
    """Drop the `gamma` share of largest magnitude, then the smallest, down to `density`
    (model breadcrumbs, arXiv 2312.06795)."""
    n = vector.numel()
    kept = int(p.density * n)
    lowest = max(0, n - kept - int(p.gamma * n))
    ranks = _magnitude_ranks(vector)
    return vector * ((ranks >= lowest) & (ranks < lowest + kept))


def sce(models: Models, base: Tensor, p: MergeParams, generator: torch.Generator) -> Tensor:
    """Select by variance, calculate weights, erase minority signs (FuseChat, arXiv 2408.07990).

    Keep the `select_topk` share of elements in which task vectors vary most; weigh each vector by
    its mean square; average those that agree with the sign of the sum.
    """
    vectors = torch.stack([m - base for m in models])
    if p.select_topk < 1:
        variance = vectors.var(0, unbiased=False).flatten()
        # The share is of what varies at all: of two experts, many elements are equal.
        count = int(int(variance.count_nonzero()) * p.select_topk)
        mask = torch.zeros_like(variance)
        mask[variance.topk(count).indices] = 1
        vectors = vectors * mask.view(base.shape)
    squares = vectors.square().reshape(len(models), -1).mean(1)
    total = float(squares.sum())
    weights = squares / total if total >= 1e-6 else torch.full_like(squares, 1 / len(models))
    sign = torch.where(vectors.sum(0) >= 0, 1.0, -1.0)
    weight = weights.view(-1, *[1] * base.ndim) * (vectors.sign() == sign)
    return base + (vectors * weight).sum(0) / weight.sum(0).clamp(min=1e-6)


def ram(models: Models, base: Tensor, p: MergeParams, generator: torch.Generator) -> Tensor:
    """Changes that only one model made are added, shared ones averaged (arXiv 2601.13572)."""
    return base + _reinforced(models, base, p, boost=0.0)


def ramplus_tl(models: Models, base: Tensor, p: MergeParams, generator: torch.Generator) -> Tensor:
    """`ram`, a model's own changes scaled by 1 + r min(shared / own, alpha), tensor by tensor."""
    return base + _reinforced(models, base, p, boost=p.r)


def _reinforced(models: Models, base: Tensor, p: MergeParams, boost: float) -> Tensor:
    vectors = torch.stack([m - base for m in models])
    assert p.epsilon is not None  # resolved
    # An average over all models would dilute what a single one learnt.
    changed = vectors.abs() > p.epsilon
    count = changed.sum(0)
    vectors = vectors * changed
    own = (changed & (count == 1)).reshape(len(models), -1).sum(1)
    shared = (changed & (count > 1)).reshape(len(models), -1).sum(1)
    scale = 1 + boost * (shared / own.clamp(min=1)).clamp(max=p.alpha)
    alone = vectors * (count == 1) * scale.view(-1, *[1] * base.ndim)
    return (alone + vectors * (count > 1) / count.clamp(min=1)).sum(0)


def model_stock(models: Models, base: Tensor, p: MergeParams, generator: torch.Generator) -> Tensor:
    """t mean(W_i) + (1 - t) W0 with t = n c / (1 + (n - 1) c), c the mean cosine of the task
    vectors (arXiv 2403.19522), or of each row of theirs with `filter_wise`."""
    axes = (-1,) if p.filter_wise else tuple(range(base.ndim))
    vectors = [m - base for m in models]
    norms = [torch.linalg.vector_norm(v, dim=axes, keepdim=True) for v in vectors]
    n = len(models)
    cosines = [
        (
            (vectors[i] * vectors[j]).sum(axes, keepdim=True)
            / (norms[i] * norms[j]).clamp(min=1e-6)
        ).clamp(-1, 1)
        for i in range(n)
        for j in range(i + 1, n)
    ]
    c = torch.stack(cosines).mean(0)
    divisor = 1 + (n - 1) * c
    opposed = divisor.abs() < 1e-6  # the base, rather than a change amplified without bound
    t = torch.where(opposed, 0.0, n * c / torch.where(opposed, 1.0, divisor))
    return t * (sum(models, torch.zeros_like(base)) / n) + (1 - t) * base


def nearswap(models: Models, base: Tensor, p: MergeParams, generator: torch.Generator) -> Tensor:
    """From the first model towards the second by min(1, t / |difference|): near elements swap."""
    first, second = models
    weight = (plain(p.t) / (first - second).abs().clamp(min=1e-6)).clamp(max=1)
    return weight * second + (1 - weight) * first


def _arcee(models: Models, base: Tensor, p: MergeParams, generator: torch.Generator) -> Tensor:
    """Arcee Fusion: the first model is Left, the second Right."""
    return fuse(models[0], models[1], p.fusion_options(generator), p.arithmetic)[0]


def _passthrough(
    models: Models, base: Tensor, p: MergeParams, generator: torch.Generator
) -> Tensor:
    """The first model times `scale`."""
    return models[0] * p.scale


_TASK = ("weights", "lam", "normalize")
_ADDED = {"lam": 1.0, "normalize": False}  # task vectors are summed
_AVERAGED = {"lam": 1.0, "normalize": True}


def _sparse(
    sparsify: Sparsify, defaults: Mapping[str, Any], *options: str, elect: bool = False
) -> MergeMethod:
    """A task-vector method that thins out, with its defaults and further options."""
    return MergeMethod(
        sparse_method(sparsify, elect),
        (*_TASK, "rescale", *options),
        defaults,
        needs_base=True,
        min_models=1,
        copies_made=(9, 5) if elect else (8, 3),
    )


DEFAULT_METHOD = "arcee_fusion"
METHODS: dict[str, MergeMethod] = {
    "arcee_fusion": MergeMethod(
        _arcee,
        ("lam", "eps", "arithmetic", "quantiles"),
        {"lam": LAMBDA},
        max_models=2,
        own_dtype=True,
    ),
    "linear": MergeMethod(linear, ("weights", "normalize"), {"normalize": True}, elementwise=True),
    "slerp": MergeMethod(slerp, ("t",), max_models=2, copies_made=(6, 0)),
    "nuslerp": MergeMethod(
        nuslerp,
        ("weights", "nuslerp_flatten", "nuslerp_row_wise"),
        max_models=2,
        takes_base=True,
        copies_made=(10, 0),
    ),
    "multislerp": MergeMethod(
        multislerp,
        ("weights", "normalize", "eps"),
        {"normalize": True},
        takes_base=True,
        copies_made=(4, 4),
    ),
    "karcher": MergeMethod(karcher, ("max_iter", "tol"), copies_made=(4, 2)),
    "task_arithmetic": MergeMethod(
        task_arithmetic, _TASK, _ADDED, needs_base=True, min_models=1, elementwise=True
    ),
    "ties": _sparse(trim, _AVERAGED | {"rescale": False}, "density", elect=True),
    "dare_linear": _sparse(drop, _ADDED | {"rescale": True}, "density"),
    "dare_ties": _sparse(drop, _ADDED | {"rescale": True}, "density", elect=True),
    "della": _sparse(
        drop_by_rank,
        _AVERAGED | {"rescale": True, "epsilon": 0.15},
        "density",
        "epsilon",
        elect=True,
    ),
    "della_linear": _sparse(
        drop_by_rank, _ADDED | {"rescale": True, "epsilon": 0.15}, "density", "epsilon"
    ),
    "breadcrumbs": _sparse(drop_outliers, _ADDED | {"rescale": False}, "density", "gamma"),
    "breadcrumbs_ties": _sparse(
        drop_outliers, _ADDED | {"rescale": False}, "density", "gamma", elect=True
    ),
    "sce": MergeMethod(sce, ("select_topk",), needs_base=True, min_models=1, copies_made=(6, 4)),
    "ram": MergeMethod(
        ram, ("epsilon",), {"epsilon": 1e-5}, needs_base=True, min_models=1, elementwise=True
    ),
    "ramplus_tl": MergeMethod(
        ramplus_tl,
        ("epsilon", "r", "alpha"),
        {"epsilon": 1e-5},
        needs_base=True,
        min_models=1,
        copies_made=(7, 5),
    ),
    "model_stock": MergeMethod(model_stock, ("filter_wise",), needs_base=True, copies_made=(5, 2)),
    "nearswap": MergeMethod(nearswap, ("t",), max_models=2, elementwise=True),
    "passthrough": MergeMethod(_passthrough, ("scale",), min_models=1, elementwise=True),
}
