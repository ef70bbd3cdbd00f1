"""AdamW and the learning-rate schedules of the recipes (paper section 3.1.1).

torch's fused AdamW keeps both moments in float32: at 32B on eight 80 GB cards that does not fit
beside accumulated gradients. `LowMemoryAdamW` keeps them in bfloat16 with stochastic rounding,
which leaves the moments right on average where rounding to nearest would freeze them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn

from tinyr1.train.parallel import first_row, local_part

Schedule = Literal["constant", "cosine", "linear"]
SLICE = 1 << 22  # elements that are updated at once: some 120 MB of temporaries


def learning_rate(
    step: int, total_steps: int, peak: float, schedule: Schedule, warmup_ratio: float
) -> float:
    """The rate of step 1..total_steps: linear warm-up, then constant, or down towards 0."""
    warmup = math.ceil(round(warmup_ratio * total_steps, 6))  # 0.07 * 100 is a little over 7
    if step <= warmup:
        return peak * step / max(warmup, 1)
    progress = (step - 1 - warmup) / max(total_steps - warmup, 1)
    if schedule == "cosine":
        return peak * 0.5 * (1 + math.cos(math.pi * progress))
    if schedule == "linear":
        return peak * (1 - progress)
    return peak


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices decay; biases and norms, whose size has a meaning of its own, do not."""
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    return [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]


def make_optimizer(
    model: nn.Module,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    moments: torch.dtype,
) -> torch.optim.Optimizer:
    """AdamW with moments of the given dtype."""
    groups = parameter_groups(model, weight_decay)
    if moments == torch.float32:
        return torch.optim.AdamW(groups, lr=lr, betas=betas, eps=eps, fused=True)
    return LowMemoryAdamW(groups, lr=lr, betas=betas, eps=eps, moments=moments)


class Place(NamedTuple):
    """What the random bits of an update depend on."""

    step: int
    parameter: int  # its number
    first: int  # number of the first element in the whole parameter


class LowMemoryAdamW(torch.optim.Optimizer):
    """AdamW (arXiv 1711.05101) whose moments are stored in a 16-bit type.

    The update is computed in float32; only what is kept between steps is rounded. The bits that
    the rounding adds are a hash of the step, the moment and the element's place in the whole
    parameter: a resumed run equals an uninterrupted one, and sharding changes nothing.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float = 0.0,
        moments: torch.dtype = torch.bfloat16,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, defaults)
        self.moments = moments

    def load_state_dict(self, state_dict: Any) -> None:
        """torch casts the moments to their parameter's type: back to the one they are kept in."""
        super().load_state_dict(state_dict)
        for state in self.state.values():
            for name in ("exp_avg", "exp_avg_sq"):
                state[name] = state[name].to(self.moments)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore
        number = 0
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group, number)
                number += 1

    def _update(self, parameter: Tensor, group: dict[str, Any], number: int) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.tensor(0.0)
            state["exp_avg"] = torch.zeros_like(parameter, dtype=self.moments)
            state["exp_avg_sq"] = torch.zeros_like(parameter, dtype=self.moments)
        state["step"] = state["step"] + 1
        step = int(state["step"])
        # Shards are independent elementwise work: below this line only local tensors appear, and
        # only slices of them, or the temporaries of an embedding would be the peak of the run.
        kept = (parameter, state["exp_avg"], state["exp_avg_sq"])
        value, stored_m, stored_v = (local_part(tensor).view(-1) for tensor in kept)
        grad = local_part(cast("Tensor", parameter.grad)).reshape(-1)
        flat = (value, grad, stored_m, stored_v)
        first = first_row(parameter) * math.prod(parameter.shape[1:])
        for start in range(0, len(value), SLICE):
            parts = [tensor[start : start + SLICE] for tensor in flat]
            self._update_slice(parts, group, Place(step, number, first + start))

    def _update_slice(self, parts: list[Tensor], group: dict[str, Any], place: Place) -> None:
        value, grad, stored_m, stored_v = parts
        step, number, first = place
        beta1, beta2 = group["betas"]
        grad = grad.float()
        m = stored_m.float().lerp_(grad, 1 - beta1)
        v = stored_v.float().mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
        value.mul_(1 - group["lr"] * group["weight_decay"])
        denominator = (v / (1 - beta2**step)).sqrt_().add_(group["eps"])
        value.addcdiv_(m, denominator, value=-group["lr"] / (1 - beta1**step))
        for which, (stored, exact) in enumerate(((stored_m, m), (stored_v, v))):
            seed = (step * 1_000_003 + 2 * number + which) & 0x7FFFFFFF
            stored.copy_(stochastic_round(exact, self.moments, seed, first))


def stochastic_round(x: Tensor, dtype: torch.dtype, seed: int, first: int = 0) -> Tensor:
    """Round float32 to bfloat16 up or down at random, right on average.

    bfloat16 is float32 without its lower 16 bits: adding 16 random bits before cutting them off
    carries into the kept part exactly with the probability that the fraction asks for. The bits of
    element i are a hash of `seed` and `first` + i.
    """
    if dtype != torch.bfloat16:
        return x.to(dtype)
    index = torch.arange(x.numel(), dtype=torch.int32, device=x.device)
    index += (first + (1 << 31)) % (1 << 32) - (1 << 31)  # as 32 bits have it, with a sign
    noise = hash_bits(index, seed) & 0xFFFF
    bits = (x.contiguous().view(torch.int32) + noise.view(x.shape)) & -65536  # clear the lower half
    return bits.view(torch.float32).to(torch.bfloat16)


def hash_bits(index: Tensor, seed: int) -> Tensor:
    """32 random-looking bits of each int32 index: two rounds of multiply and xor-shift."""
    x = index.clone()  # products that do not fit wrap around, as they should
    for factor, shift in ((0x7FEB352D, 15), (0x46CA68B5, 16)):
        x.bitwise_xor_(seed)
        x.bitwise_xor_(_shifted(x, 16)).mul_(factor)
        x.bitwise_xor_(_shifted(x, shift))
    return x


def _shifted(x: Tensor, shift: int) -> Tensor:
    """x >> shift as if x were unsigned: torch's shift draws copies of the sign bit in."""
    return (x >> shift) & (0xFFFFFFFF >> shift)
