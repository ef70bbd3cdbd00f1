"""math-verify in its killable process, and the released rules: columns of their own."""

import importlib.util
import json
import time

import pytest
from conftest import GOLDEN, run, write_rows

from tinyr1.graders.grading import also_released, also_symbolic, grade
from tinyr1.graders.released import (
    released_choice,
    released_equal,
    released_number,
    released_program,
)
from tinyr1.graders.symbolic import SymbolicJudge
from tinyr1.record import TaskRow

needs_math_verify = pytest.mark.skipif(
    importlib.util.find_spec("math_verify") is None, reason="math-verify is not installed"
)


@pytest.fixture(scope="module")
def judge():
    with SymbolicJudge() as judge:
        yield judge


def row_of(answer):
    return {"task": "t", "id": "1", "kind": "math", "prompt": "?", "answer": answer}


@needs_math_verify
@pytest.mark.parametrize(
    ("reference", "answer", "exact", "symbolic"),
    [
        (r"\log_2 8", "3", False, True),
        (r"\sqrt{2}-1", r"\frac{1}{1+\sqrt{2}}", False, True),
        ("x^2+2x+1", "(x+1)^2", True, True),
        (r"\frac{1}{2}", "0.5", True, True),
        (r"\sqrt{8}", r"3\sqrt{2}", False, False),
        ("1e-7", "2e-7", False, False),  # numbers: math-verify would round them to 0
        ("7", "8", False, False),
    ],
)
def test_math_verify_is_asked_where_the_rules_refuse(judge, reference, answer, exact, symbolic):
    row = row_of(reference)
    verdict = also_symbolic(
        TaskRow.from_json(row), grade(row, rf"x</think>\boxed{{{answer}}}"), judge
    )
    assert (verdict.correct, verdict.symbolic) == (exact, symbolic)
    assert not also_symbolic(TaskRow.from_json(row), grade(row, "no box"), judge).symbolic


@needs_math_verify
def test_hostile_answers_end_in_time_and_run_nothing(judge, tmp_path, monkeypatch):
    monkeypatch.setattr("tinyr1.graders.symbolic.TIMEOUT_S", 1.0)
    canary = tmp_path / "canary"
    hostile = [
        "9^{9^{9^{9^{9}}}}",
        r"\prod_{i=1}^{10^{9}} i",
        f"__import__('os').system('touch {canary}')",
        "((((" * 500,
        "\x00\ud800",
    ]
    started = time.monotonic()
    assert not any(judge.equal("x+y", text) for text in hostile)
    assert time.monotonic() - started < 120  # five starts on a busy machine, not for ever
    assert not canary.exists()
    assert judge.equal(r"\sqrt{8}", r"2\sqrt{2}")  # a killed process was replaced


@needs_math_verify
def test_symbolic_column_on_the_extended_cases(judge):
    """More right ones than the exact rules find; the false accepts are what the column is for."""
    lines = (GOLDEN / "grading" / "math_cases.jsonl").read_text().splitlines()
    cases = [c for c in map(json.loads, lines) if c["level"] == "extended"]
    found = {"exact": 0, "symbolic": 0, "false": 0}
    for case in cases:
        row = row_of(case["gold"])
        verdict = also_symbolic(TaskRow.from_json(row), grade(row, case["response"]), judge)
        right = case["expected"] in (True, "correct")
        found["exact"] += right and verdict.correct
        found["symbolic"] += right and bool(verdict.symbolic)
        found["false"] += not right and bool(verdict.symbolic)
    assert found["symbolic"] > found["exact"]
    assert found["false"] <= 3


def test_released_rules_accept_what_they_accept():
    assert released_choice("I choose B, since a metal conducts") == "A"  # the article
    assert released_choice("none") is None
    assert released_number("so \\boxed{12}. Then $3$") == "12"
    assert released_number("\\boxed{12") == "12"  # never closed
    assert released_number("the answer is 1,234 or so 5") == "5"
    assert released_number("no number") is None
    assert released_equal("28", "0.28")
    assert released_equal("100000", "100001")
    assert not released_equal("28", "29")
    assert released_program("```\na\n```\ntext\n```python\nb\n```") == "b"
    assert released_program("```python\na") is None


def test_released_column(tmp_path):
    tasks = [row_of("28"), {"task": "g", "id": "1", "kind": "choice", "prompt": "?", "answer": "A"}]
    samples = [
        {"task": "t", "id": "1", "trial": 0, "text": "x</think>It is 0.28", "token_count": 3},
        {
            "task": "g",
            "id": "1",
            "trial": 0,
            "text": r"x</think>\boxed{B} a fact",
            "token_count": 3,
        },
    ]
    samples = [s | {"finish_reason": "stop"} for s in samples]
    files = [write_rows(tmp_path / f"{n}.jsonl", r) for n, r in (("t", tasks), ("s", samples))]
    done = run(
        "evaluate.py", "--regrade", files[1], "--task-file", files[0], "--out", tmp_path / "out",
        "--also-grade", "released",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    grades = [json.loads(x) for x in (tmp_path / "out" / "grades.jsonl").read_text().splitlines()]
    assert [(g["correct"], g["released"]) for g in grades] == [(False, True), (False, True)]
    assert "by the released rules %" in (tmp_path / "out" / "report.md").read_text()
    row = row_of("28")
    assert not also_released(TaskRow.from_json(row), grade(row, "29"), "29", "rlimits").released
