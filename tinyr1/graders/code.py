"""Programs (LiveCodeBench): a reply's last block, run against every test in the sandbox.

A test is standard input and expected output, or with `fn_name` one JSON argument a line and one
JSON result. The comparison happens here; the program never sees what is expected.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from decimal import Decimal, InvalidOperation
from typing import Any, NamedTuple

from tinyr1.graders.sandbox import Outcome, Sandbox
from tinyr1.record import TaskRow

TIMEOUT_S = 6.0  # a test, as in LiveCodeBench
_REASONS = {"output_limit": "runtime_error"}


class Judge(NamedTuple):
    """How what a program gives is compared with what is expected, and what it is given."""

    equal_values: Callable[[str, str], bool]  # JSON results of a function: produced, expected
    equal_output: Callable[[str, str], bool]  # what it prints
    integer_keys: bool = False  # arguments' keys that read as integers are integers


def grade_program(program: str, row: TaskRow, sandbox: Sandbox, judge: Judge | None = None) -> str:
    """Run all tests of a task row; returns "" when every one passes, else why the first failed.

    Results are compared as LiveCodeBench does, or by another `judge`.
    """
    judge = judge or EXACT
    tests = row.tests
    assert tests is not None  # TaskRow checks that code has some
    timeout_s = row.timeout_s or TIMEOUT_S
    # Without a limit of its own a row gets a second more a test, and five, to start and to compare.
    budget_s = row.timeout_total_s or (timeout_s + 1) * len(tests.inputs) + 5
    for given, expected in zip(tests.inputs, tests.outputs, strict=True):
        if budget_s <= 0:
            return "timeout"
        seconds = min(timeout_s, budget_s)
        outcome = sandbox.run(
            program, given, tests.fn_name, seconds, integer_keys=judge.integer_keys
        )
        budget_s -= outcome.seconds
        equal = judge.equal_output if tests.fn_name is None else judge.equal_values
        reason = _verdict(outcome, expected, equal)
        if reason:
            return reason
    return ""


def _verdict(outcome: Outcome, expected: str, equal: Callable[[str, str], bool]) -> str:
    if outcome.status != "ok":
        return _REASONS.get(outcome.status, outcome.status)
    return "" if equal(outcome.stdout, expected) else "wrong_answer"


def _equal_values(produced: str, expected: str) -> bool:
    """Compare two JSON values as LiveCodeBench does: 3.0 is 3, and True is 1."""
    try:
        values = (
            json.loads(text, parse_int=_integer, parse_float=_float)
            for text in (produced, expected)
        )
        return _same(*values)
    except (ValueError, RecursionError):  # no JSON, too long a number, too deep
        return False


def _integer(digits: str) -> int | Decimal:
    """Read digits of any number: Python's own conversion ends at 4,300."""
    return int(digits) if len(digits) < 4000 else Decimal(digits)


def _float(text: str) -> float | Decimal:
    """Beyond the range of floats as it is: infinity would equal any other."""
    return value if math.isfinite(value := float(text)) else Decimal(text)


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(_same(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_same(a[k], b[k]) for k in a)
    return a == b


def equal_output(produced: str, expected: str) -> bool:
    """Equal line by line after stripping, or as equal decimals; no tolerance."""
    lines, wanted = produced.strip().split("\n"), expected.strip().split("\n")
    if len(lines) != len(wanted):
        return False
    return all(
        a.strip() == b.strip() or _equal_decimals(a, b) for a, b in zip(lines, wanted, strict=True)
    )


def _equal_decimals(a: str, b: str) -> bool:
    x, y = a.split(), b.split()
    if len(x) != len(y):
        return False
    try:
        return [Decimal(v) for v in x] == [Decimal(v) for v in y]
    except InvalidOperation:
        return False


# ---------------------------------------------------------------- as APPS' and TACO's judges


TOLERANCE = Decimal("1e-6")


def _set_values(produced: str, expected: str) -> bool:
    """`_equal_values`, or the one in a list of one, or decimals within the tolerance."""
    if _equal_values(produced, expected) or _equal_values(produced, f"[{expected}]"):
        return True
    try:
        a, b = (json.loads(text, parse_float=Decimal) for text in (produced, expected))
        return _near(a, b) or _near(a, [b])
    except (ValueError, RecursionError):
        return False


def _near(a: Any, b: Any) -> bool:
    """`_same`, but within the tolerance where a decimal is expected."""
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_near, a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_near(a[k], b[k]) for k in a)
    if isinstance(b, Decimal) and isinstance(a, (Decimal, int)):
        return _close(Decimal(a), b)
    return _same(a, b)


def _set_output(produced: str, expected: str) -> bool:
    """`equal_output`, or word by word within the tolerance where decimals are expected."""
    if equal_output(produced, expected):
        return True
    said, wanted = produced.split(), expected.split()
    return len(said) == len(wanted) and all(map(_close_words, said, wanted))


def _close_words(a: str, b: str) -> bool:
    try:
        return a == b or ("." in b and _close(Decimal(a), Decimal(b)))
    except InvalidOperation:
        return False


def _close(a: Decimal, b: Decimal) -> bool:
    try:
        return abs(a - b) <= TOLERANCE * max(Decimal(1), abs(b))
    except ArithmeticError:  # not a number, or beyond all exponents
        return False


EXACT = Judge(_equal_values, equal_output)
AS_THE_SETS = Judge(_set_values, _set_output)
