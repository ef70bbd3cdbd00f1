"""Error bars for pass@1 (the paper's Tables 1 and 2 give none).

The unit is the question: trials of one question are averaged first, and the standard error is
that of the mean over questions. Two models are compared by their paired per-question differences.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple


class Estimate(NamedTuple):
    """A mean over questions and its standard errors, as fractions (not percent)."""

    mean: float
    question_se: float  # how far another set of such questions would move the mean
    sampling_se: float  # how far another run on the same questions would move it
    questions: int
    trials: int


def mean(values: Sequence[float]) -> float:
    """Arithmetic mean; 0 for no values."""
    return math.fsum(values) / len(values) if values else 0.0


def percentile(ordered: Sequence[int], p: int) -> int:
    """The smallest of ascending values that p percent of them do not exceed (nearest rank)."""
    return ordered[max(0, -(-p * len(ordered) // 100) - 1)]


def standard_error(values: Sequence[float]) -> float:
    """sqrt(sum (x - mean)^2 / (n (n - 1))); 0 where n < 2."""
    n = len(values)
    if n < 2:
        return 0.0
    centre = mean(values)
    return math.sqrt(math.fsum((x - centre) ** 2 for x in values) / (n * (n - 1)))


def pass_at_1(outcomes: Mapping[str, Sequence[bool]]) -> Estimate:
    """pass@1 from each question's trials: mean over questions of the share of right trials."""
    shares = [mean([float(x) for x in trials]) for trials in outcomes.values()]
    # Bessel's correction needs two trials; with one the variance within a question is unknown.
    noise = [
        share * (1 - share) / (len(trials) - 1)
        for share, trials in zip(shares, outcomes.values(), strict=True)
        if len(trials) > 1
    ]
    sampling = math.sqrt(math.fsum(noise)) / len(shares) if shares else 0.0
    trial_count = sum(len(t) for t in outcomes.values())
    return Estimate(mean(shares), standard_error(shares), sampling, len(shares), trial_count)


def pass_at_k(outcomes: Mapping[str, Sequence[bool]], k: int) -> float:
    """Mean over questions of the chance that k of a question's trials hold a right one.

    Unbiased (Chen et al., arXiv 2107.03374): 1 - C(n - c, k) / C(n, k) for c of n right.
    """
    return mean(
        [1 - math.comb(len(x) - sum(x), k) / math.comb(len(x), k) for x in outcomes.values()]
    )


def ks(trials: int) -> list[int]:
    """1, 2, 4, ... up to the number of trials, and that number."""
    powers = [2**i for i in range(trials.bit_length()) if 2**i <= trials]
    return powers if powers[-1] == trials else [*powers, trials]


def majority(votes: Sequence[tuple[str | None, bool]]) -> bool:
    """True where the most frequent answer of (answer, is right) is right.

    No answer is no vote; of equally frequent ones the first seen wins.
    """
    counts: dict[str, int] = {}
    right: dict[str, bool] = {}
    for answer, correct in votes:
        if answer is not None:
            counts[answer] = counts.get(answer, 0) + 1
            right[answer] = correct
    return bool(counts) and right[max(counts, key=lambda answer: counts[answer])]


def flips(a: Mapping[str, Sequence[bool]], b: Mapping[str, Sequence[bool]]) -> tuple[int, int]:
    """Questions on which a is better than b, and worse, by their share of right trials."""
    differences = [
        mean([float(x) for x in a[k]]) - mean([float(x) for x in b[k]]) for k in a if k in b
    ]
    return sum(d > 0 for d in differences), sum(d < 0 for d in differences)


def paired_difference(
    a: Mapping[str, Sequence[bool]], b: Mapping[str, Sequence[bool]]
) -> tuple[float, float]:
    """Mean and standard error of (a - b) over the questions that both answered."""
    common = [k for k in a if k in b]
    differences = [mean([float(x) for x in a[k]]) - mean([float(x) for x in b[k]]) for k in common]
    return mean(differences), standard_error(differences)
