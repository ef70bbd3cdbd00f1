"""Decontamination: what shares a test question's words, and what only its manner of speaking."""

import json
import re

import pytest
from conftest import call, write_rows

from tinyr1.data.clean import compact
from tinyr1.data.compare import Contamination

ENDING = "where m and n are relatively prime positive integers. Find m + n."
# Written for this test, in the manner of a competition.
TESTS = [
    f"A baker cuts a round cake with nine straight cuts through its top, no three of which meet in "
    f"a point. Each piece is iced red or white with equal chance, apart from the others. The "
    f"probability that no two red pieces share an edge is m/n, {ENDING}",
    f"Two trains leave a town at noon on tracks that meet at a right angle. The first runs 30 "
    f"miles an hour, the second 40. They are 100 miles apart after m/n hours, {ENDING}",
    f"A fair coin is thrown until heads have come up five times more than tails. The expected "
    f"number of tails before that is m/n, {ENDING}",
    "Let S be the set of lattice points inside a circle of radius 12 about the origin. Find the "
    "remainder when the number of triangles with corners in S is divided by 1000.",
    "What is the greatest common divisor of 30 and 45?",
    "Solve x+1=2.",
]


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    rows = [{"task": "t", "id": i, "prompt": text} for i, text in enumerate(TESTS)]
    return [write_rows(tmp_path_factory.mktemp("tasks") / "t.jsonl", rows)]


@pytest.mark.parametrize(
    "question",
    [
        f"A bag holds five red balls. The probability that two are red is m/n, {ENDING}",
        "Find the remainder when the number of subsets of {1, ..., 20} is divided by 1000.",
        "What is the greatest common divisor of 3339, 2961, and 1491?",
        "Let S be the set of lattice points inside a square of side 7. How many are primitive?",
        "Solve x-1=2.",
        "Solve 3 x = 12.",
        "",
    ],
)
def test_a_manner_of_speaking_is_no_evidence(tasks, question):
    assert Contamination(tasks).match(question) is None


@pytest.mark.parametrize("number", range(len(TESTS)))
def test_a_test_question_is_found_whatever_was_done_to_it(tasks, number):
    found = Contamination(tasks)
    text = TESTS[number]
    changed = [text, text.upper()]
    changed.append(text.replace(" ", "  ").replace("+", " + ").replace("m/n", "$m/n$"))
    if len(text.split()) > 5:
        changed.append(f"Solve this, and box the answer. {text} Explain every step.")
    if len(text.split()) > 12:
        changed.append(re.sub(r"\d+", "7", text))
        changed.append(text.replace("baker", "cook").replace("trains", "cars").replace("S", "T"))
    for other in changed:
        match = found.match(other)
        assert match is not None, other
        assert match.task_row == f"t/{number}"
        assert match.overlap > 0.3


def test_the_exact_rule_is_an_option(tasks):
    exact = Contamination(tasks, ngram=8, overlap=0)
    question = f"A bag holds five red balls. The chance is m/n, {ENDING}"
    assert exact.match(question).shared.startswith("is m n where m and n are relatively prime")
    assert Contamination(tasks).match(question) is None


def test_a_test_question_that_is_a_common_phrase_is_no_evidence(tmp_path):
    rows = [{"id": 0, "prompt": "Find the value of x."}]
    for count in (9, 60):
        rows += [
            {"id": f"{count}-{i}", "prompt": f"A farmer has {i} cows. Find the value of x."}
            for i in range(count)
        ]
        found = Contamination([write_rows(tmp_path / "t.jsonl", rows)])
        assert found.match("A baker sells bread to five people; find the value of x.") is None
        assert found.match("find the  value of X").overlap == 1.0


def test_scripts_without_spaces(tmp_path):
    text = "某商店将进价为八元的商品按每件十元售出，每天可售出二百件，求最大利润。"
    found = Contamination([write_rows(tmp_path / "t.jsonl", [{"id": 1, "prompt": text}])])
    assert found.match(f"请回答：{text}谢谢").overlap == 1.0
    assert found.match("某商店卖出三十件衣服，求总收入。") is None


def test_trials_of_one_question_are_one(tmp_path):
    """A phrase in 16 prompts of one question is not a common phrase."""
    rows = [{"task": "t", "id": 1, "trial": i, "prompt": TESTS[0]} for i in range(16)]
    found = Contamination([write_rows(tmp_path / "t.jsonl", rows)])
    assert found.match(f"Well: {TESTS[0]} So?").overlap == 1.0


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Solve x + 1 = 2", "solve x+1=2."),
        ("Find $f( 3 )$", "Find f(3)"),
        ("\\frac{1}{2}\\, dx", "\\frac{ 1 }{ 2 } dx"),
    ],
)
def test_spacing_only(one, other):
    assert compact(one) == compact(other)
    assert compact("Sort 1 2 3") != compact("Sort 12 3")


def test_the_commonest_phrases_are_printed(tmp_path, tasks):
    content = "<think>\na\n</think>\n\n\\boxed{1}"
    rows = [{"question": f"{i}: {TESTS[0]}", "answer": content} for i in range(3)]
    rows += [{"question": TESTS[1], "answer": content}, {"question": "Why?", "answer": content}]
    source, out = write_rows(tmp_path / "a.jsonl", rows), tmp_path / "out.jsonl"
    done = call(
        "tinyr1.data.__main__", "math", "--source", source, "--out", out, "--decontaminate",
        tasks[0], "--quiet",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "- contaminated                   4" in done.stdout
    assert re.search(r"\n\s+3  a baker cuts a round cake", done.stdout)
    meta = json.loads(out.with_suffix(".meta.json").read_text())
    assert list(meta["phrases"].values()) == [3, 1]
    rejected = json.loads(out.with_suffix(".rejected.jsonl").read_text().splitlines()[0])
    assert (rejected["task_row"], rejected["overlap"]) == ("t/0", 1.0)
