"""Error bars against closed forms and a bootstrap."""

import itertools
import math
import random

import pytest

from tinyr1.evaluate.stats import (
    flips,
    ks,
    majority,
    mean,
    paired_difference,
    pass_at_1,
    pass_at_k,
    percentile,
    standard_error,
)


def test_paper_cell_375_of_480():
    outcomes = {str(q): [True] * 16 for q in range(20)}
    outcomes |= {str(q): [True] * 5 + [False] * 11 for q in range(20, 29)}
    outcomes["29"] = [True] * 10 + [False] * 6
    estimate = pass_at_1(outcomes)
    assert estimate.mean == 375 / 480
    assert (estimate.questions, estimate.trials) == (30, 480)


def test_closed_forms():
    assert pass_at_1({"a": [True], "b": [False]}).question_se == pytest.approx(0.5)
    one = pass_at_1({"a": [True, False, True]})
    assert (one.mean, one.question_se) == (2 / 3, 0.0)
    assert pass_at_1({}).mean == 0
    # Binomial: n questions, one trial each.
    n, k = 300, 120
    share = k / n
    estimate = pass_at_1({str(i): [i < k] for i in range(n)})
    assert estimate.question_se == pytest.approx(math.sqrt(share * (1 - share) / (n - 1)))
    assert estimate.sampling_se == 0  # one trial says nothing about noise within a question


def test_sampling_error_is_the_spread_over_reruns():
    rng = random.Random(0)
    chances = [rng.random() for _ in range(40)]

    def run():
        return {str(i): [rng.random() < c for _ in range(8)] for i, c in enumerate(chances)}

    runs = [pass_at_1(run()) for _ in range(400)]
    means = [r.mean for r in runs]
    spread = standard_error(means) * math.sqrt(len(means))
    predicted = math.sqrt(sum(r.sampling_se**2 for r in runs) / len(runs))
    assert predicted == pytest.approx(spread, rel=0.15)  # 400 runs: about 4 % noise


def test_question_error_equals_a_bootstrap():
    rng = random.Random(1)
    outcomes = {str(i): [rng.random() < 0.4 for _ in range(4)] for i in range(60)}
    shares = [sum(t) / 4 for t in outcomes.values()]
    means = [sum(rng.choices(shares, k=60)) / 60 for _ in range(4000)]
    spread = standard_error(means) * math.sqrt(len(means))
    assert pass_at_1(outcomes).question_se == pytest.approx(spread, rel=0.06)


def test_paired_error_is_smaller_on_correlated_answers():
    rng = random.Random(2)
    a = {str(i): [rng.random() < 0.5] for i in range(200)}
    b = {k: [v[0] or rng.random() < 0.1] for k, v in a.items()}
    difference, error = paired_difference(b, a)
    unpaired = math.hypot(pass_at_1(a).question_se, pass_at_1(b).question_se)
    assert difference > 0
    assert error < unpaired / 2
    assert paired_difference(a, a) == (0, 0)


def test_pass_at_k_and_majority_by_brute_force():
    rng = random.Random(0)
    outcomes = {str(i): [rng.random() < 0.3 for _ in range(6)] for i in range(20)}
    for k in (1, 2, 3, 6):
        brute = [
            mean([float(any(part)) for part in itertools.combinations(trials, k)])
            for trials in outcomes.values()
        ]
        assert pass_at_k(outcomes, k) == pytest.approx(mean(brute))
    assert pass_at_k(outcomes, 1) == pytest.approx(pass_at_1(outcomes).mean)
    assert [ks(n) for n in (1, 2, 4, 6, 16)] == [
        [1],
        [1, 2],
        [1, 2, 4],
        [1, 2, 4, 6],
        [1, 2, 4, 8, 16],
    ]
    assert majority([("7", False), ("", True), ("", True)])
    assert not majority([("7", False), ("", True)])  # equal: the first seen wins
    assert not majority([(None, False), (None, False)])
    assert majority([(None, False), (None, False), ("", True)])


def test_flips():
    a = {"1": [True, True], "2": [False, True], "3": [True, False]}
    b = {"1": [True, False], "2": [True, True], "3": [True, False], "4": [True]}
    assert flips(a, b) == (1, 1)


def test_percentiles_are_nearest_ranks():
    assert [percentile(range(1, 21), p) for p in (5, 50, 95, 100)] == [1, 10, 19, 20]
    assert percentile([7], 5) == percentile([7], 95) == 7
