"""Programs (LiveCodeBench): a reply's last block, run against every test in the sandbox.

A test is standard input and expected output, or with `fn_name` one JSON argument a line and one
JSON result. The comparison happens here; the program never sees what is expected.
"""

from __future__ import annotations

import json
import math
from decimal import Decimal, InvalidOperation
from typing import Any

from tinyr1.graders.sandbox import Outcome, Sandbox
from tinyr1.record import TaskRow

TIMEOUT_S = 6.0  # a test, as in LiveCodeBench
_REASONS = {"output_limit": "runtime_error"}


def grade_program(program: str, row: TaskRow, sandbox: Sandbox) -> str:
    """Run all tests of a task row; returns "" when every one passes, else why the first failed."""
    tests = row.tests
    assert tests is not None  # TaskRow checks that code has some
    timeout_s = row.timeout_s or TIMEOUT_S
    # Without a limit of its own a row gets a second more a test, and five, to start and to compare.
    budget_s = row.timeout_total_s or (timeout_s + 1) * len(tests.inputs) + 5
    for given, expected in zip(tests.inputs, tests.outputs, strict=True):
        if budget_s <= 0:
            return "timeout"
        outcome = sandbox.run(program, given, tests.fn_name, min(timeout_s, budget_s))
        budget_s -= outcome.seconds
        reason = _verdict(outcome, expected, tests.fn_name is not None)
        if reason:
            return reason
    return ""


def _verdict(outcome: Outcome, expected: str, is_value: bool) -> str:
    if outcome.status != "ok":
        return _REASONS.get(outcome.status, outcome.status)
    equal = _equal_values if is_value else equal_output
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
