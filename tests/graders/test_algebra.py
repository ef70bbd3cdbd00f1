"""Expressions against floating point: what is read is worth what was written."""

import math
import random
from fractions import Fraction

import pytest

from tinyr1.graders.algebra import read

VALUES = {"x": 1.37, "y": 0.61, "a": 2.9, r"\pi": math.pi}


class Written:
    """An expression as LaTeX, and its worth in floating point."""

    def __init__(self, latex, worth, is_sum=False):
        self.latex, self.worth, self.is_sum = latex, worth, is_sum

    @property
    def factor(self):
        return f"({self.latex})" if self.is_sum else self.latex


def write(rng, depth):
    if depth == 0 or rng.random() < 0.15:
        if rng.random() < 0.5:
            number = rng.randint(1, 12)
            return Written(f"({number})", number)
        name = rng.choice(list(VALUES))
        return Written(f"{name} ", VALUES[name])
    a, b = write(rng, depth - 1), write(rng, depth - 1)
    form = rng.choice(["sum", "difference", "product", "times", "frac", "slash", "power", "root"])
    match form:
        case "sum":
            return Written(f"{a.latex} + {b.latex}", a.worth + b.worth, is_sum=True)
        case "difference":
            return Written(f"{a.latex} - {b.factor}", a.worth - b.worth, is_sum=True)
        case "product":
            return Written(f"({a.latex})({b.latex})", a.worth * b.worth)
        case "times":
            return Written(f"({a.factor} * {b.factor})", a.worth * b.worth)
        case "frac" if b.worth:
            return Written(rf"\frac{{{a.latex}}}{{{b.latex}}}", a.worth / b.worth)
        case "slash" if b.worth:
            return Written(f"(({a.latex})/({b.latex}))", a.worth / b.worth)
        case "power" if abs(a.worth) < 1e3:
            count = rng.randint(0, 3)
            return Written(f"({a.latex})^{count}", a.worth**count)
        case _ if a.worth > 0:
            return Written(rf"\sqrt{{{a.latex}}}", math.sqrt(a.worth))
        case _:
            return a


def worth(value):
    """What was read, in floating point; an atom that is a sum has a text that reads back."""
    if isinstance(value, Fraction):
        return float(value)
    return sum(
        float(coefficient) * math.prod(_atom(atom) ** float(e) for atom, e in product)
        for product, coefficient in value.terms
    )


def _atom(atom):
    if atom.isdigit():
        return float(atom)
    return VALUES[atom] if atom in VALUES else worth(read(atom))


@pytest.mark.parametrize("seed", range(20))
def test_what_is_read_is_worth_what_was_written(seed):
    rng = random.Random(seed)
    seen = 0
    for _ in range(100):
        written = write(rng, rng.randint(1, 4))
        value = read(written.latex)
        if value is None:  # too many terms, or a root that it leaves alone
            continue
        seen += 1
        assert worth(value) == pytest.approx(written.worth, rel=1e-9, abs=1e-9), written.latex
    assert seen > 60
