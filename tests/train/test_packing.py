"""Packing: nothing split, nothing lost, nothing predicted across documents."""

import random
from itertools import pairwise

import numpy as np
import pytest

from tinyr1.record import Pack
from tinyr1.train.packing import epoch_packs, make_batch, plan_packs

DOCUMENTS = [
    (np.array([10, 11, 12, 13]), np.array([False, False, True, True])),
    (np.array([20, 21, 22]), np.array([False, True, True])),
    (np.array([30, 31]), np.array([False, False])),  # no target
]


def test_hand_worked_best_fit_decreasing():
    # 7 and 6 open packs of room 3 and 4; 4 fits the second best, 3 the first, 2 opens a third.
    assert plan_packs([3, 7, 2, 6, 4], 10) == [[1, 0], [3, 4], [2]]


@pytest.mark.parametrize("seed", range(20))
def test_plan_keeps_every_document_whole_and_within_capacity(seed):
    rng = random.Random(seed)
    capacity = rng.randint(5, 300)
    lengths = [rng.randint(1, capacity) for _ in range(rng.randint(0, 200))]
    packs = plan_packs(lengths, capacity)
    assert sorted(i for pack in packs for i in pack) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in pack) <= capacity for pack in packs)
    assert plan_packs(lengths, capacity) == packs
    # No two packs could be one: best fit would have put the documents of one into the other.
    fills = sorted(sum(lengths[i] for i in pack) for pack in packs)
    assert all(a + b > capacity for a, b in pairwise(fills))


def test_each_document_went_where_it_left_the_least_room():
    rng = random.Random(5)
    lengths = [rng.randint(1, 50) for _ in range(300)]
    room = {}
    for i in sorted(range(300), key=lambda i: (-lengths[i], i)):
        packs = plan_packs(lengths, 50)
        home = next(n for n, pack in enumerate(packs) if i in pack)
        fits = [left for left in room.values() if left >= lengths[i]]
        before = room.get(home, 50)
        assert before == (min(fits) if fits else 50)
        room[home] = before - lengths[i]
        if len(room) > 40:
            break


# Means of 4957, 7528 and 3259 tokens: maths, coding and science, each with a long tail.
@pytest.mark.parametrize(("mu", "sigma"), [(8.25, 0.8), (8.9, 0.75), (7.75, 0.85)])
def test_fills_a_reasoning_corpus_almost_completely(mu, sigma):
    rng = random.Random(0)
    lengths = [min(16384, max(200, int(rng.lognormvariate(mu, sigma)))) for _ in range(5000)]
    packs = plan_packs(lengths, 16384)
    assert sum(lengths) / (len(packs) * 16384) > 0.985


@pytest.mark.parametrize("length", [0, 11, -1])
def test_impossible_lengths_are_refused(length):
    with pytest.raises(ValueError, match=r"lengths\[1\]"):
        plan_packs([3, length], 10)


def test_epochs_differ_but_repeat_exactly():
    lengths = [random.Random(1).randint(5, 40) for _ in range(100)]
    first = epoch_packs(lengths, 64, "neat", seed=1, epoch=0)
    assert first == epoch_packs(lengths, 64, "neat", seed=1, epoch=0)
    second = epoch_packs(lengths, 64, "neat", seed=1, epoch=1)
    assert {p.documents for p in first} != {p.documents for p in second}
    assert len(first) == len(second)
    rows = epoch_packs(lengths, 64, "none", seed=1, epoch=0)
    assert sorted(p.documents[0] for p in rows) == list(range(100))


def test_batch_layout_by_hand():
    packs = [Pack((0, 1), 7), Pack((2,), 2)]
    batch = make_batch(packs, DOCUMENTS.__getitem__, "neat", multiple=12)
    assert batch.tokens.tolist() == [10, 11, 12, 13, 20, 21, 22, 30, 31, 0, 0, 0]
    assert batch.positions.tolist() == [0, 1, 2, 3, 0, 1, 2, 0, 1, 0, 1, 2]
    assert batch.cu_seqlens.tolist() == [0, 4, 7, 9, 12]
    # Row 1 predicts token 12, row 2 token 13, row 4 token 21, row 5 token 22; never 13 -> 20.
    assert batch.target_rows.tolist() == [1, 2, 4, 5]
    assert batch.targets.tolist() == [12, 13, 21, 22]
    assert (batch.max_len, batch.token_count) == (4, 9)


def test_naive_packing_is_one_causal_sequence_with_the_same_targets():
    packs = [Pack((0, 1), 7), Pack((2,), 2)]
    neat = make_batch(packs, DOCUMENTS.__getitem__, "neat")
    naive = make_batch(packs, DOCUMENTS.__getitem__, "naive")
    assert naive.cu_seqlens.tolist() == [0, 7, 9]
    assert naive.positions.tolist() == [0, 1, 2, 3, 4, 5, 6, 0, 1]
    assert naive.target_rows.tolist() == neat.target_rows.tolist()


@pytest.mark.parametrize(
    ("weighting", "expected"),
    [("token", [1, 1, 1, 1]), ("sequence", [0.5] * 4), ("pack", [0.25] * 4)],
)
def test_weights(weighting, expected):
    batch = make_batch([Pack((0, 1), 7)], DOCUMENTS.__getitem__, "neat", weighting)
    assert batch.weights.tolist() == expected


def test_a_rank_without_packs_gets_a_batch_of_padding():
    batch = make_batch([], DOCUMENTS.__getitem__, "neat")
    assert (batch.tokens.tolist(), len(batch.targets), batch.cu_seqlens.tolist()) == (
        [0],
        0,
        [0, 1],
    )
