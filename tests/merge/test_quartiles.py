"""Exact order statistics against sorting."""

import numpy as np
import pytest
import torch

from tinyr1.merge import quartiles
from tinyr1.merge.quartiles import order_statistics, quartile_ranks


def values_of(kind, count):
    generator = torch.Generator().manual_seed(1)
    noise = torch.rand(count, generator=generator)
    return {
        "distinct": noise,
        "ties": (noise * 7).floor(),
        "mostly zero": torch.where(noise < 0.6, 0.0, noise),
        "one value": torch.ones(count),
        "sorted": noise.sort().values,
        "infinite": torch.where(noise > 0.8, torch.inf, noise),
    }[kind]


@pytest.mark.parametrize(
    "kind", ["distinct", "ties", "mostly zero", "one value", "sorted", "infinite"]
)
@pytest.mark.parametrize("sampled", [1, 3, 100, 3000])
def test_equals_sorting_whatever_the_sample(kind, sampled):
    values = values_of(kind, 3000)
    ranks = quartile_ranks(len(values))
    expected = [float(np.sort(values.numpy())[rank]) for rank in ranks]
    for sample in (values[:: 3000 // sampled], values[:sampled]):  # an even one and a bad one
        found = order_statistics(lambda: iter(values.split(271)), 3000, ranks, sample.numpy())
        assert found == expected


def test_many_zeros_are_counted_but_not_collected(monkeypatch):
    """Where a quartile lies just above them, its bracket would hold them all."""
    values = torch.cat([torch.zeros(249_000), torch.rand(751_000) + 1e-3])
    collected = []
    pick = quartiles.pick
    monkeypatch.setattr(
        quartiles, "pick", lambda *pair: collected.append(pick(*pair)) or collected[-1]
    )
    ranks = [*quartile_ranks(len(values)), 248_999]
    found = order_statistics(lambda: iter([values]), len(values), ranks, values[::61].numpy())
    assert found == [float(values.sort().values[rank]) for rank in ranks]
    assert max(map(len, collected)) < 100_000


def test_quartile_ranks_by_hand():
    assert quartile_ranks(1) == [0, 0, 0]
    assert quartile_ranks(5) == [1, 2, 3]
    assert quartile_ranks(8) == [1, 3, 5]
