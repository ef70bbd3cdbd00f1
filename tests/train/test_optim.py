"""Schedules by hand, AdamW's low-memory variant against torch's, stochastic rounding on average."""

import pytest
import torch
from torch import nn

from tinyr1.train.optim import (
    LowMemoryAdamW,
    learning_rate,
    make_optimizer,
    parameter_groups,
    stochastic_round,
)


def test_schedules_by_hand():
    assert learning_rate(7, 100, 1.0, "constant", 0.07) == 1.0  # and not the 8th step

    def rates(schedule, warmup):
        return [round(learning_rate(s, 10, 1.0, schedule, warmup), 4) for s in range(1, 11)]

    assert rates("constant", 0.0) == [1.0] * 10
    assert rates("constant", 0.2) == [0.5] + [1.0] * 9
    assert rates("linear", 0.2) == [0.5, 1.0, 1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125]
    cosine = rates("cosine", 0.0)
    assert cosine[0] == 1.0
    assert cosine[5] == 0.5
    assert 0 < cosine[-1] < 0.03  # the last step still learns


def test_only_matrices_decay():
    model = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3), nn.Embedding(4, 3))
    decayed, kept = parameter_groups(model, 0.1)
    assert {tuple(p.shape) for p in decayed["params"]} == {(3, 3), (4, 3)}
    assert {tuple(p.shape) for p in kept["params"]} == {(3,)}
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.1, 0.0)


def train(optimizer_of, steps=30):
    torch.manual_seed(0)
    model = nn.Linear(16, 8)
    optimizer = optimizer_of(model)
    x, y = torch.randn(64, 16), torch.randn(64, 8)
    for _ in range(steps):
        loss = (model(x) - y).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.weight.detach().clone()


SETTINGS = {"lr": 1e-2, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.01}


def test_float32_moments_equal_torchs_adamw():
    ours = train(
        lambda m: LowMemoryAdamW(
            parameter_groups(m, 0.01), 1e-2, (0.9, 0.95), 1e-8, moments=torch.float32
        )
    )
    theirs = train(
        lambda m: torch.optim.AdamW(parameter_groups(m, 0.01), lr=1e-2, betas=(0.9, 0.95))
    )
    assert (ours - theirs).abs().max() < 1e-6


def test_bfloat16_moments_stay_close_and_repeat_exactly():
    low = train(lambda m: make_optimizer(m, **SETTINGS, moments=torch.bfloat16))
    again = train(lambda m: make_optimizer(m, **SETTINGS, moments=torch.bfloat16))
    full = train(lambda m: make_optimizer(m, **SETTINGS, moments=torch.float32))
    start = train(lambda m: make_optimizer(m, **SETTINGS, moments=torch.float32), steps=0)
    assert torch.equal(low, again)
    assert (low - full).norm() < 0.05 * (full - start).norm()


def test_stochastic_rounding_is_right_on_average_and_a_neighbour_always():
    x = torch.tensor([1.0 + 2.0**-9, -3.1415926, 1e-30, 0.0, 257.3])
    draws = torch.stack([stochastic_round(x, torch.bfloat16, n, 5 * n) for n in range(20000)])
    draws = draws.double()
    nearest = x.bfloat16().double()
    spacing = (x.double().abs() * 2.0**-7).clamp(min=1e-300)
    assert ((draws - x.double()).abs() <= spacing).all()
    # The standard error of the mean is below spacing / 2 / sqrt(20000).
    assert ((draws.mean(0) - x.double()).abs() <= spacing * 0.02).all()
    assert (nearest - x.double()).abs()[0] > 0  # rounding to nearest would be off
    once = torch.full((100_000,), 1.0 + 2.0**-9)  # a quarter of the way up: of many elements, too
    up = stochastic_round(once, torch.bfloat16, 7) > 1
    assert abs(float(up.float().mean()) - 0.25) < 0.005
    assert abs(float((up[1:] & up[:-1]).float().mean()) - 0.0625) < 0.005  # neighbours apart


def test_the_bits_of_an_element_do_not_depend_on_where_a_parameter_is_cut():
    x = torch.randn(1000)
    whole = stochastic_round(x, torch.bfloat16, 3)
    parts = [
        stochastic_round(x[:400], torch.bfloat16, 3),
        stochastic_round(x[400:], torch.bfloat16, 3, 400),
    ]
    assert torch.equal(torch.cat(parts), whole)
    assert not torch.equal(stochastic_round(x, torch.bfloat16, 4), whole)
    far = stochastic_round(x, torch.bfloat16, 3, (1 << 31) - 500)  # over the edge of 32 bits
    assert torch.equal(far[500:], stochastic_round(x[500:], torch.bfloat16, 3, 1 << 31))


@pytest.mark.parametrize("value", [1.5, -2.0])
def test_representable_numbers_are_kept(value):
    x = torch.full((1000,), value)
    assert (stochastic_round(x, torch.bfloat16, 1) == value).all()
