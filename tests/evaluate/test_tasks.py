"""Prompts to the byte, and task rows checked by field."""

import json
import math

import pytest
from conftest import GOLDEN, checked, task_rows, write_rows

from tinyr1.common.errors import UserError
from tinyr1.evaluate.tasks import load_task_file, make_prompts, prompt_text
from tinyr1.model.tokenizer import Tokenizer

GOLDENS = GOLDEN / "grading" / "prompt_goldens.jsonl"
MATH = {"task": "aime24", "id": "1", "kind": "math", "prompt": "Find $1+1$.", "answer": "2"}
GPQA = {
    "task": "gpqa", "id": "1", "kind": "choice", "prompt": "Which is a metal?",
    "choices": ["Iron", "Neon", "Argon", "Krypton"], "answer": "A",
}  # fmt: skip
TESTS = {"inputs": ["1 2\n"], "outputs": ["3\n"], "fn_name": None}
CODE = {"task": "lcb", "id": "1", "kind": "code", "prompt": "Print A+B.", "tests": TESTS}
STARTER = CODE | {"starter_code": "class Solution:\n    def f(self, a: int) -> int:\n        "}


def text_of(row, preset, template_opens):
    return prompt_text(
        make_prompts(checked([row]), None, "deepseek_r1", preset, 1, template_opens)[0]
    )


@pytest.mark.parametrize(
    ("golden", "row", "preset", "template_opens"),
    [
        ("tinyr1-aime24", MATH, "tinyr1", True),
        ("r1-recommended-math", MATH, "r1", False),
        ("tinyr1-gpqa (template before 2025-02)", GPQA, "tinyr1", False),
        ("tinyr1-gpqa (template since 2025-02)", GPQA, "tinyr1", True),
        ("tinyr1-lcb stdin (template before 2025-02)", CODE, "tinyr1", False),
        ("tinyr1-lcb functional (template before 2025-02)", STARTER, "tinyr1", False),
        ("tinyr1-lcb stdin (template since 2025-02)", CODE, "tinyr1", True),
        ("tinyr1-lcb functional (template since 2025-02)", STARTER, "tinyr1", True),
    ],
)
def test_prompts_equal_the_goldens(golden, row, preset, template_opens):
    rendered = {
        g["preset"]: g["rendered"] for g in map(json.loads, GOLDENS.read_text().splitlines())
    }
    assert text_of(row, preset, template_opens) == rendered[golden]


@pytest.mark.parametrize("preset", ["tinyr1", "r1", "plain"])
@pytest.mark.parametrize("row", [MATH, GPQA, CODE, STARTER])
def test_token_prompts_are_the_text_prompts(tiny, preset, row):
    tokenizer = Tokenizer(tiny)
    for opens in (True, False):
        prompt = make_prompts(checked([row]), tokenizer, "deepseek_r1", preset, 1, opens)[0]
        text = prompt_text(prompt)
        assert tokenizer.decode_raw(list(prompt.tokens)) == text
        assert prompt.think_open == text.endswith("<think>\n")


def test_braces_in_a_problem_survive():
    row = MATH | {"prompt": "Let $S=\\{1,{2}\\}$ and {x}."}
    assert "Let $S=\\{1,{2}\\}$ and {x}." in text_of(row, "tinyr1", True)


def test_every_preset_shows_what_an_answer_is_graded_by():
    functional = CODE | {"tests": TESTS | {"inputs": ["1\n2\n"], "fn_name": "add"}}
    for preset in ("tinyr1", "r1", "plain"):
        shown = text_of(GPQA, preset, True)
        places = [shown.index(option) for option in GPQA["choices"]]
        assert places == sorted(places)
        assert "def add(x1, x2):" in text_of(functional, preset, True)  # two lines, two arguments
        start = functional | {"starter_code": "def add(a, b):"}
        assert "def add(a, b):" in text_of(start, preset, True)
    named = functional | {"prompt": "Write add(a, b)."}
    assert text_of(named, "plain", True).count("add") == 1
    assert "def add" in text_of(functional | {"prompt": "To add numbers."}, "plain", True)
    shuffled = checked([GPQA | {"shuffle": True}])
    for prompt in make_prompts(shuffled, None, "deepseek_r1", "plain", 4, True):
        (row,) = shuffled
        right = f"{row.in_order(prompt.choice_order).answer}) Iron"
        assert right in prompt_text(prompt)


def test_more_options_than_four():
    row = GPQA | {"choices": list("pqrstuvwxy"), "answer": "J"}
    text = text_of(row, "tinyr1", False)
    assert "the letter choice (A, B, C, D, E, F, G, H, I, or J) as your final" in text
    assert text.endswith("I) x, J) y<｜Assistant｜>")
    assert "I) x\nJ) y" in text_of(row, "r1", False)
    (checked_row,) = checked([row])
    assert checked_row.in_order([9, *range(9)]).answer == "A"


def test_trials_by_preset():
    def trials(row, preset, given=None):
        return len(make_prompts(checked([row]), None, "deepseek_r1", preset, given, True))

    assert [trials(r, "tinyr1") for r in (MATH, GPQA, CODE)] == [16, 4, 4]
    assert trials(MATH, "r1") == trials(MATH, "plain") == 1
    assert trials(MATH, "tinyr1", 3) == 3
    second = make_prompts(checked([MATH]), None, "deepseek_r1", "plain", 2, True)[1]
    assert second.key == ("aime24", "1", 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "essay"}, "kind='essay'"),
        ({"prompt": ""}, "prompt=''"),
        ({"answer": " "}, "answer=' '"),
        ({"kind": "choice", "answer": "K"}, "answer='K'"),
        ({"kind": "choice", "answer": "E", "choices": [*"abcd"]}, "answer='E'"),
        ({"answer": True}, "answer=True"),
        ({"kind": "choice", "answer": "A", "choices": ["a"]}, "choices"),
        ({"kind": "code"}, "tests"),
        ({"kind": "choice", "answer": "A", "choices": [1, 2, 3, 4]}, "choices"),
        ({"kind": "choice", "answer": "A", "shuffle": True}, "shuffle=True"),
        ({"kind": "choice", "answer": "A", "choices": [*"abcd"], "shuffle": "no"}, "shuffle='no'"),
        ({"id": None}, "id: missing"),
        ({"id": "\ud800"}, "id: no text"),
        ({"subject": "\ud800"}, "subject: no text"),
        ({"timeout_s": "6s"}, "timeout_s='6s'"),
        ({"timeout_s": True}, "timeout_s=True"),
        ({"timeout_s": 1e300}, "timeout_s=1e+300"),
        ({"timeout_total_s": math.inf}, "timeout_total_s=inf"),
        ({"timeout_s": 10**400}, "timeout_s=1000"),
        ({"kind": "code", "tests": TESTS | {"outputs": []}}, "1 inputs but 0 outputs"),
        ({"kind": "code", "tests": TESTS | {"inputs": [], "outputs": []}}, "non-empty"),
        ({"kind": "code", "tests": TESTS | {"inputs": [1]}}, "must be a string"),
        ({"kind": "code", "tests": TESTS | {"fn_name": ""}}, "fn_name=''"),
        ({"kind": "code", "tests": TESTS | {"fn_name": 5}}, "fn_name=5"),
    ],
)
def test_broken_rows_name_file_line_and_field(tmp_path, change, message):
    path = write_rows(tmp_path / "tasks.jsonl", [GPQA, MATH | change])
    with pytest.raises(UserError) as error:
        load_task_file(path)
    assert "tasks.jsonl:2" in str(error.value)
    assert message in str(error.value)


def test_duplicates_and_empty_files_are_refused(tmp_path):
    with pytest.raises(UserError, match="appears twice"):
        load_task_file(write_rows(tmp_path / "a.jsonl", [MATH, MATH]))
    with pytest.raises(UserError, match="no rows"):
        load_task_file(write_rows(tmp_path / "b.jsonl", []))
    assert len(load_task_file(write_rows(tmp_path / "c.jsonl", task_rows(6)))) == 6
