"""Graders against the shared cases (where present) and the project's own."""

import json

import pytest

from conftest import SHARED_DATA
from tinyr1.graders import grade

CASES = SHARED_DATA / "grading_cases"
needs_cases = pytest.mark.skipif(not CASES.exists(), reason="the shared grading cases are absent")


def rows(name):
    return [json.loads(line) for line in (CASES / name).read_text().splitlines()]


def verdict(kind, response, answer, **options):
    row = {"task": "t", "id": "1", "kind": kind, "prompt": "?", "answer": answer}
    return grade(row, response, **options)


@needs_cases
def test_math_cases_core_all_right_and_no_false_accept():
    wrong, missed = [], []
    for row in rows("math_cases.jsonl"):
        got = verdict("math", row["response"], row["gold"]).correct
        if got != row["expected"]:
            if row["level"] == "extended" and row["expected"]:
                missed.append(row["id"])
            else:
                wrong.append((row["id"], row["gold"], row["response"][-60:]))
    assert not wrong
    assert len(missed) <= 14, missed  # symbolic work that the exact rules leave out
