"""Source files in the published schemas, written here; every reason for which a row is dropped."""

import json
import os
import random
import re
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT, call, make_checkpoint, run, strongest_sandbox, write_rows
from fake_hub import COMMIT, hub

from tinyr1.common.files import hash_json
from tinyr1.common.log import Log
from tinyr1.data import coding, conversations, math, pipeline, science
from tinyr1.data.clean import (
    check,
    check_question,
    from_markers,
    loops,
    mixes_languages,
    normalized,
    split_thought,
)
from tinyr1.data.compare import Comparison, Contamination, NearDuplicates
from tinyr1.data.draft import REASONS, Draft, Dropped, Selection
from tinyr1.data.sources import Place
from tinyr1.data.verify import is_right
from tinyr1.model.chat import ASSISTANT, BOS, USER
from tinyr1.record import ProgramTests

GOOD = "<think>\nOne and one.\n</think>\n\nIt is \\boxed{2}."
MARKED = (
    "<|begin_of_thought|>\n\nI print.\n\n<|end_of_thought|>\n\n<|begin_of_solution|>\n\n"
    "```python\nprint(1)\n```\n\n<|end_of_solution|>"
)


def math_row(i=0, **changes):
    return {
        "problem": f"Find the sum of {i} and {i + 1} apples in a basket.",
        "answer": str(2 * i + 1),
        "question_type": "math-word-problem",
        "source": "olympiads",
        "uuid": f"u{i}",
        "generations": [f"<think>\nAdd {i}.\n</think>\n\nIt is \\boxed{{{2 * i + 1}}}."],
        "is_reasoning_complete": [True],
        "correctness_math_verify": [True],
        "finish_reasons": None,
    } | changes


def openr1(row, **want):
    """The first draft of a row of OpenR1."""
    return math.openr1(row, Selection("math", **want))[0]


def openthoughts(row, domain="coding", **want):
    return coding.openthoughts(row, Selection(domain, **want))[0]


def chat(row, domain="coding", **want):
    return conversations.chat(row, Selection(domain, **want))[0]


def s1(row, **want):
    return science.s1(row, Selection("science", **want))[0]


def build(rows, out, convert=None, about=None, **steps):
    """The pipeline on rows of OpenR1 in memory."""
    want = Selection("math")
    places = [Place("file", i, row) for i, row in enumerate(rows, 1)]
    return pipeline.build(
        places,
        convert or (lambda place: math.openr1(place.row, want)),
        out,
        pipeline.Steps(**steps),
        about or {},
        Log(quiet=True),
    )


def reason(function, *arguments, **options):
    with pytest.raises(Dropped) as error:
        function(*arguments, **options)
    return str(error.value)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"question_type": "MCQ"}, "question_type"),
        ({"answer": "proof"}, "no_reference_answer"),
        ({"answer": None}, "no_reference_answer"),
        ({"is_reasoning_complete": None}, "reasoning_incomplete"),
        ({"is_reasoning_complete": []}, "reasoning_incomplete"),
        ({"finish_reasons": ["length"]}, "cut_off"),
        ({"correctness_math_verify": [False]}, "not_verified"),
        ({"correctness_math_verify": [None]}, "not_verified"),
        ({"correctness_math_verify": None}, "not_verified"),
        ({"generations": [], "is_reasoning_complete": [True]}, "reasoning_incomplete"),
        ({"generations": ["no tags"]}, "no_think"),
        ({"generations": ["<think>never"]}, "unfinished_thinking"),
        ({"generations": [GOOD + GOOD]}, "several_thoughts"),
        ({"generations": ["Well. " + GOOD]}, "text_before_thinking"),
    ],
)
def test_math_predicates(changes, expected):
    assert reason(openr1, math_row(**changes)) == expected
    assert openr1(math_row()).content().startswith("<think>\nAdd 0.\n</think>\n\nIt is")


def test_math_flags_are_lists_beside_the_generations():
    texts = [f"<think>{'x' * n}</think>\\boxed{{1}}" for n in (9, 5, 3)]
    row = math_row(
        generations=texts,
        is_reasoning_complete=[True, True, True],
        correctness_math_verify=[False, True],  # shorter: the third is not verified
    )
    assert openr1(row).meta["generation"] == 1
    # Verified ones come first, whatever else is admitted.
    admitted = math.openr1(row, Selection("math", require_verified=False))
    assert [draft.meta["generation"] for draft in admitted] == [1, 0, 2]
    assert [draft.meta["verified_by"] for draft in admitted] == ["math_verify", None, None]
    admitted = math.openr1(row, Selection("math", require_verified=False, prefer="shortest"))
    assert [draft.meta["generation"] for draft in admitted] == [1, 2, 0]
    assert reason(openr1, row, sources=("aops_forum",)) == "source"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"question": " "}, "empty_question"),
        ({"thought": "\n"}, "empty_thought"),
        ({"solution": ""}, "empty_solution"),
        ({"solution": "<|end_of_solution|> \\boxed{1}"}, "leaked_marker"),
        ({"thought": "a </think> b"}, "leaked_marker"),
        ({"solution": "<|im_end|> \\boxed{1}"}, "leaked_chat_token"),
        ({"question": "<｜User｜>hi"}, "leaked_chat_token"),
        ({"solution": "2"}, "no_boxed_answer"),
        ({"solution": "\\boxed{ }"}, "no_boxed_answer"),
        ({"domain": "coding"}, "no_code_block"),
        ({"thought": "Wait, let me check again. " * 60}, "repetition_loop"),
        ({"thought": "a" * 4000}, "repetition_loop"),
        ({"thought": "We add " + "一个苹果" * 9}, "language_mixing"),
        ({"domain": "science", "answer": "B", "solution": "Who knows."}, "no_letter"),
    ],
)
def test_reasons_of_cleaning(changes, expected):
    draft = Draft("1", "math", "What is 1+1?", "One and one.", "\\boxed{2}", "s")
    check(draft)
    assert reason(check, Draft(**(vars(draft) | changes))) == expected


def test_long_honest_texts_are_no_loops():
    text = " ".join(f"Step {i}: we take {i * i} and add {i % 7}." for i in range(900))
    assert not loops(text)
    assert not mixes_languages("Let α be a root.", "Then α, β and γ; so naïve Erdős works. " * 30)
    assert not mixes_languages("求和", "求和等于二。" * 50)


def test_tables_and_symbols_are_neither_loops_nor_languages():
    rng = random.Random(0)
    grid = "\n".join(" ".join(rng.choices("01", k=20)) for _ in range(12))
    assert not loops("The table is\n" + grid)
    assert not loops("dp = " + "0 " * 90)
    assert loops("So we try again. " + "But wait, what if it is not so? " * 30)
    assert loops("Let me see: " + "no, " * 400)
    assert not mixes_languages("What is 𝑥?", "Then 𝑥 + 𝑦 = 3 µm. " * 40)


def test_malformed_rows_are_dropped_by_reason_and_kept_aside(tmp_path):
    rows = [
        math_row(1, problem=None),
        math_row(2, generations="no list"),
        math_row(3, problem="Half a pair: \ud83d"),
        math_row(4, generations=["<think>a</think> b", GOOD], is_reasoning_complete=[1, True]),
        math_row(5, generations=["Well. " + GOOD, GOOD], is_reasoning_complete=[True] * 2,
                 correctness_math_verify=[True] * 2),
        math_row(6, generations=[None, GOOD], is_reasoning_complete=[True] * 2,
                 correctness_math_verify=[True] * 2),
        math_row(7, finish_reasons=5),
    ]  # fmt: skip
    out = tmp_path / "math.jsonl"
    done = data("math", "--source", write_rows(tmp_path / "a.jsonl", rows), "--out", out)
    assert done.returncode == 0, done.stderr
    kept = [json.loads(line) for line in out.read_text().splitlines()]
    # The first of both is not well-formed.
    assert [row["meta"]["generation"] for row in kept] == [1, 1]
    aside = out.with_suffix(".rejected.jsonl").read_text().splitlines()
    expected = ["empty_question", "malformed", "malformed", "no_boxed_answer", "malformed"]
    assert [json.loads(line)["reason"] for line in aside] == expected
    assert json.loads(aside[0])["messages"][1]["content"].startswith("<think>")
    order = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("- ")]
    assert order == sorted(order, key=REASONS.index)


def test_every_reason_is_documented():
    used = set[str]()
    for path in (ROOT / "tinyr1").rglob("*.py"):
        used |= set(re.findall(r'Dropped\(\s*"(\w+)"', path.read_text()))
    assert used - {"x"} <= set(REASONS)
    formats = (ROOT / "docs" / "formats.md").read_text()
    assert not [name for name in REASONS if f"`{name}`" not in formats]


def test_a_run_does_not_read_what_it_writes(tmp_path):
    folder = tmp_path / "all"
    folder.mkdir()
    write_rows(folder / "a.jsonl", [math_row(i) for i in range(4)])
    out = folder / "out.jsonl"
    for _ in range(2):
        assert data("math", "--source", folder, "--out", out, "--quiet").returncode == 0
        assert json.loads(out.with_suffix(".meta.json").read_text())["rows_in"] == 4
    done = data("math", "--source", folder / "a.jsonl", "--out", folder / "a.jsonl")
    assert done.returncode == 2
    assert "choose another --out" in done.stderr
    assert len((folder / "a.jsonl").read_text().splitlines()) == 4
    before = out.read_bytes()
    for name in ("out.jsonl", "out.rejected.jsonl", "out.meta.json"):
        done = data("math", "--source", folder, "--out", out, "--decontaminate", folder / name)
        assert done.returncode == 2
        assert "would write it" in done.stderr
    none = write_rows(tmp_path / "none.jsonl", [math_row(1, answer="proof")])
    done = data("math", "--source", none, "--out", out, "--quiet")
    assert done.returncode == 2
    assert "no row is left" in done.stderr
    assert out.read_bytes() == before  # what was there stays
    other = tmp_path / "other"
    other.mkdir()
    row = {"question": "Why so?", "solution": "", "cot_type": "science"}
    for i, place in enumerate((folder, other)):
        write_rows(place / "t.jsonl", [row | {"question": f"Why {i}?"}])
    names = [folder / "t.jsonl", other / "t.jsonl"]
    done = data("science", "--source", *names, "--out", out, "--questions-only", "--quiet")
    assert done.returncode == 0, done.stderr
    ids = {json.loads(line)["id"] for line in out.read_text().splitlines()}
    assert len(ids) == 2


def test_what_can_be_verified():
    assert science.short_answer("(B)") == "B"
    assert science.short_answer("Thus \\boxed{4}.") == "4"
    assert science.short_answer("-3.5") == "-3.5"
    assert science.short_answer("Six times seven is 42.") is None
    draft = Draft("1", "science", "q", "t", "It is \\boxed{42}.", "s")
    assert is_right(draft) is None
    assert is_right(Draft(**(vars(draft) | {"answer": "42"}))) is True
    assert is_right(Draft(**(vars(draft) | {"answer": "B"}))) is False


def test_the_four_markers():
    assert from_markers(MARKED) == ("I print.", "```python\nprint(1)\n```", "")
    assert from_markers(f"Well. {MARKED} Done.")[2].split() == ["Well.", "Done."]
    assert reason(from_markers, MARKED.replace("<|end_of_thought|>", "")) == "broken_markers"
    assert split_thought("thought\n</think>\n\nanswer") == (
        "thought",
        "answer",
    )  # tag in the prompt


def test_coding_rows_of_both_configurations():
    tests = json.dumps({"inputs": [[1, [2]]], "outputs": [[3]], "fn_name": "add"})
    row = {
        "problem": "Add.", "deepseek_reasoning": "r", "deepseek_solution": "```python\nx\n```",
        "domain": "code", "source": "CODECHEF", "test_cases": tests, "starter_code": "def add():",
    }  # fmt: skip
    draft = openthoughts(row)
    assert draft.question.endswith("final solution.Add.\ndef add():")
    assert draft.tests == ProgramTests(("1\n[2]",), ("3",), "add")
    stdin = json.dumps({"inputs": ["1\n"], "outputs": ["2\n"]})
    draft = openthoughts(row | {"test_cases": stdin, "starter_code": None})
    assert draft.tests == ProgramTests(("1\n",), ("2\n",))
    assert "take stdin as input" in draft.question
    for broken in (None, "", "no json", "[]", '{"inputs": [1]}', "[" * 100_000):
        assert openthoughts(row | {"test_cases": broken}).tests is None
    assert reason(openthoughts, row | {"domain": "math"}) == "domain"
    turns = [
        {"from": "user", "value": coding.FUNCTION + " Print 1."},
        {"from": "assistant", "value": MARKED},
    ]
    draft = chat({"system": "four markers", "conversations": turns})
    assert draft.solution == "```python\nprint(1)\n```"
    other = [{"from": "user", "value": "Why?"}, turns[1]]
    assert reason(chat, {"conversations": other}) == "domain"
    assert reason(chat, {"conversations": [*turns, *turns]}) == "not_one_turn"


def test_science_rows():
    row = {
        "question": "Why is it blue?",
        "solution": "A",
        "cot_type": "science",
        "source_type": "x",
    }
    assert s1(row, questions_only=True).thought is None
    assert s1(row).thought is None
    answered = row | {"deepseek_thinking_trajectory": "t", "deepseek_attempt": "A"}
    assert s1(answered).content() == "<think>\nt\n</think>\n\nA"
    assert s1(answered, questions_only=True).thought is None
    assert reason(s1, row | {"cot_type": "math"}) == "domain"
    mathematics = row | {"cot_type": "math"}
    draft = s1(mathematics, cot_types=(), questions_only=True)
    assert draft.question.startswith("Why")
    puzzle = {
        "domain": "puzzle",
        "problem": "p",
        "deepseek_reasoning": "r",
        "deepseek_solution": "s",
    }
    assert openthoughts(puzzle, "science").meta == {"domain": "puzzle"}
    assert reason(openthoughts, puzzle | {"domain": "code"}, "science") == "domain"
    for question, expected in ((coding.BOXED + " 1+1", "domain"), ("Why?", None)):
        turns = [{"from": "user", "value": question}, {"from": "assistant", "value": MARKED}]
        if expected:
            assert reason(chat, {"conversations": turns}, "science") == expected
        else:
            assert chat({"conversations": turns}, "science").thought == "I print."


def test_contamination_and_near_duplicates(tmp_path):
    text = "In a village of nine houses every owner paints one door each day until none is left."
    task = {"task": "aime24", "id": "7", "kind": "math", "prompt": text, "answer": "1"}
    tasks = [write_rows(tmp_path / "t.jsonl", [task])]
    contamination = Contamination(tasks)
    assert contamination.match(text.upper() + "!").task_row == "aime24/7"
    part = "We know: nine houses, every owner paints one door each day until all is red."
    match = contamination.match(part)
    assert match.shared == "nine houses every owner paints one door each day until"
    assert match.overlap == round(6 / 13, 3)
    kept = Comparison(contamination=contamination)
    assert kept.against(text.upper())[0] == "contaminated"
    kept.add("Solve x + 1 = 2.")
    assert kept.against("solve  X + 1 = 2")[0] == "duplicate"
    for other in ("Solve x - 1 = 2.", "Solve x + 1 < 2.", "Solve x + 12."):
        assert kept.against(other)[0] == ""
    assert contamination.match("nine houses every owner paints one door each") is None
    exact = Contamination(tasks, ngram=8, overlap=0)
    assert exact.match("nine houses every owner paints one door each").shared.endswith("each")
    assert exact.match("nine houses every owner paints one door twice a day") is None
    near = NearDuplicates(0.7)
    assert not near.seen(text)
    near.add(text)
    assert near.seen(text.replace("left", "right"))
    assert not near.seen("A train leaves the station at noon and never comes back again.")


def data(*arguments, **options):
    return run("-m", "tinyr1.data", *arguments, **options)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A math file from parquet and jsonl, with one row for each of several reasons."""
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    folder = tmp_path_factory.mktemp("built")
    rows = [math_row(i) for i in range(20)]
    rows.append(math_row(3, uuid="again", problem="find the SUM of 3 and 4 apples in a basket"))
    rows.append(math_row(50, question_type="proof"))
    rows.append(math_row(51, problem="One two three four five six seven eight nine ten."))
    source = folder / "source"
    source.mkdir()
    parquet.write_table(pyarrow.Table.from_pylist(rows), source / "a.parquet", row_group_size=7)
    wrong = [
        math_row(60, answer="7"),
        math_row(61, generations=["<think>" + "x y " * 3000 + "</think>\\boxed{123}"]),
    ]
    write_rows(source / "b.jsonl", wrong)
    task = {"task": "t", "id": "1", "prompt": "Count: two three four five six seven eight nine"}
    tasks = write_rows(folder / "tasks.jsonl", [task])
    model = make_checkpoint(folder / "model")
    out = folder / "math.jsonl"
    done = data(
        "math", "--source", source, "--out", out, "--decontaminate", tasks, "--verify",
        "--tokenizer", model, "--max-tokens", 300, "--quiet",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return out, done, model


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"answer": float("nan")}, "no_reference_answer"),
        ({"answer": "None"}, "no_reference_answer"),
        ({"problem": 5}, "malformed"),
        ({"problem": ["a"]}, "malformed"),
        ({"problem": {"text": "a"}}, "malformed"),
        ({"correctness_math_verify": ["perhaps"]}, "malformed"),
        ({"correctness_math_verify": {"0": True}}, "malformed"),
        ({"correctness_math_verify": [None, None]}, "not_verified"),
        ({"finish_reasons": ["length"]}, "cut_off"),
    ],
)
def test_missing_is_missing_and_types_are_read_or_refused(changes, expected):
    assert reason(openr1, math_row(**changes)) == expected


@pytest.mark.parametrize(
    "changes",
    [
        {"correctness_math_verify": [1]},
        {"correctness_math_verify": ["True"]},
        {"correctness_math_verify": "[True, True]"},
        {"correctness_math_verify": "[true]"},
        {"is_reasoning_complete": "[1]"},
        {"finish_reasons": ["eos"]},
        {"finish_reasons": float("nan"), "correctness_llama": float("nan")},
        {"answer": 1},
    ],
)
def test_what_means_one_thing_is_read(changes):
    if "finish_reasons" in changes and changes["finish_reasons"] != changes["finish_reasons"]:
        changes = changes | {"finish_reasons": None}
    assert openr1(math_row(**changes)).answer == "1"


def test_text_that_is_not_there_is_no_text():
    assert openr1(math_row(problem=None)).question == ""
    assert openr1(math_row(problem="NaN")).question == ""
    row = {"id": 1, "domain": "code", "problem": float("nan"), "test_cases": {"inputs": ["1"],
           "outputs": ["1"]}, "deepseek_reasoning": "null", "deepseek_solution": "x"}  # fmt: skip
    assert reason(openthoughts, row) == "empty_question"  # not the instruction alone
    draft = openthoughts(row | {"problem": "Print."})
    assert draft.question.endswith("definition.Print.")
    assert draft.thought == ""
    assert draft.tests == ProgramTests(("1",), ("1",))  # parsed already


def test_options_of_the_hub_are_refused_with_files(tmp_path):
    source = write_rows(tmp_path / "a.jsonl", [math_row()])
    for option in ("--hub-config", "--revision"):
        done = call("tinyr1.data.__main__", "math", "--source", source, "--out",
                    tmp_path / "o.jsonl", option, "x")  # fmt: skip
        assert done.returncode == 2
        assert f"{option}: of a set on the hub" in done.stderr


def test_a_row_is_tried_generation_by_generation(tmp_path):
    """A first one that fails a check costs nothing; what a judge alone has verified is named."""
    good = "<think>\nAdd.\n</think>\n\nIt is \\boxed{1}."
    bad = {
        "a loop": f"<think>{'so on and on ' * 500}</think>\\boxed{{1}}",
        "no box": "<think>a</think>It is 1.",
        "a leak": "<think>a<|im_end|></think>\\boxed{1}",
        "no tags": "\\boxed{1}",
        "long": f"<think>{' '.join(map(str, range(3000)))}</think>\\boxed{{1}}",
        "wrong": "<think>a</think>\\boxed{7}",
    }
    rows = [
        math_row(i, answer="1", generations=[text, good], is_reasoning_complete=[True] * 2,
                 correctness_math_verify=[True] * 2)
        for i, text in enumerate(bad.values())
    ]  # fmt: skip
    judged = {"correctness_math_verify": [False], "correctness_llama": [True]}
    rows.append(math_row(90, answer="1", generations=[good]) | judged)
    rows.append(math_row(91, answer="1", generations=[bad["no box"]] * 2,
                         is_reasoning_complete=[True] * 2, correctness_math_verify=[True] * 2)
    )  # fmt: skip
    out = tmp_path / "out.jsonl"
    counts = build(
        rows,
        out,
        verify=is_right,
        token_count=lambda draft: len(draft.content().split()),
        max_tokens=1000,
    )
    kept = [json.loads(line)["meta"] for line in out.read_text().splitlines()]
    assert [row["generation"] for row in kept] == [1] * len(bad) + [0]
    assert counts.verified_by == {"math_verify": len(bad), "llama": 1}
    assert any("verified by llama" in line for line in counts.lines())
    assert counts.dropped == {"no_boxed_answer": 1}


def test_hashes_are_those_of_sha256sum(built):
    import hashlib

    out, _, _ = built
    meta = json.loads(out.with_suffix(".meta.json").read_text())
    assert meta["sha256"] == hashlib.sha256(out.read_bytes()).hexdigest()


def test_waterfall_provenance_and_rejected_rows(built):
    out, done, _ = built
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    meta = json.loads(out.with_suffix(".meta.json").read_text())
    assert (meta["rows_in"], meta["rows_out"]) == (25, 20) == (25, len(rows))
    expected = {"duplicate": 1, "question_type": 1, "contaminated": 1, "wrong_answer": 1}
    assert meta["dropped"] == expected | {"repetition_loop": 1}
    assert {f["file"] for f in meta["sources"][0]["files"]} == {
        "source/a.parquet",
        "source/b.jsonl",
    }
    assert meta["tokens"] > 0
    rejected = out.with_suffix(".rejected.jsonl").read_text().splitlines()
    assert len(rejected) == 5
    assert any("two three four five six seven eight nine" in line for line in rejected)
    assert "rows in                         25" in done.stdout
    assert "58k of OpenR1-Math" in done.stdout
    assert (rows[0]["id"], rows[0]["answer"]) == ("u0", "1")
    assert "warning" not in done.stderr
    assert str(out.parent) not in json.dumps(meta)


def test_a_run_that_keeps_nothing_leaves_an_earlier_ones_files(built, tmp_path):
    out = shutil.copytree(built[0].parent, tmp_path / "copy") / built[0].name
    beside = [out, out.with_suffix(".meta.json"), out.with_suffix(".rejected.jsonl")]
    before = [path.read_bytes() for path in beside]
    source = write_rows(tmp_path / "nothing.jsonl", [math_row(50, question_type="proof")])
    done = data("math", "--source", source, "--out", out, "--quiet")
    assert done.returncode == 2
    assert f"no row is left; see {out.with_suffix('.partial')}/rejected.jsonl" in done.stderr
    assert [path.read_bytes() for path in beside] == before
    assert "question_type" in (out.with_suffix(".partial") / "rejected.jsonl").read_text()


def test_the_output_trains_and_is_inspected(built, tmp_path):
    out, _, model = built
    done = run(
        "train.py", "math", "--model", model, "--data", out, "--out", tmp_path / "run",
        "--seq-len", 300, "--batch-size", 4, "--max-steps", 1, "--quiet",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    done = data("inspect", out, "--tokenizer", model, "--quiet")
    assert done.returncode == 0, done.stderr
    assert "20 records, all well-formed" in done.stdout
    assert "</think>" in done.stdout
    assert out.with_suffix(".lengths.png").stat().st_size > 1000
    broken = tmp_path / "broken.jsonl"
    broken.write_text(out.read_text() + '{"domain": "math", "messages": []}\n')
    done = data("inspect", broken, "--quiet")
    assert done.returncode == 2
    assert "broken.jsonl:21: messages" in done.stderr
    row = json.loads(out.read_text().splitlines()[0])
    content = row["messages"][1]["content"]
    loose = row["messages"][1] | {"content": content.replace("\n", "")}
    write_rows(broken, [row, row | {"messages": [row["messages"][0], loose]}, row | {"id": ""}])
    done = data("inspect", broken, "--quiet")
    assert done.returncode == 0, done.stderr
    assert "warning: 1 records: white space around the thought" in done.stdout
    assert "warning: 1 records: no id" in done.stdout
    plain = row["messages"][1] | {"content": "It is 1."}
    write_rows(broken, [row, {"messages": [row["messages"][0], plain]}])
    for command in (("inspect", broken), ("inspect", broken, "--no-require-think")):
        done = data(*command, "--quiet")
        assert done.returncode == (0 if len(command) == 3 else 2)
    assert "broken.jsonl:2: assistant message has 0 <think>" in data("inspect", broken).stderr
    broken.write_text("[" * 100_000 + "\n")
    done = data("inspect", broken, "--quiet")
    assert done.returncode == 2
    assert "broken.jsonl:1: not valid JSON" in done.stderr


def test_an_interrupted_run_goes_on_and_writes_the_same(tmp_path, monkeypatch):
    rows = [math_row(i % 40) if i % 7 else math_row(i, answer="proof") for i in range(90)]
    monkeypatch.setattr(pipeline, "SAVE_EVERY", 0.0)

    def make(name, convert, key="k"):
        comparison = Comparison(near_duplicates=NearDuplicates(0.9))
        return build(rows, tmp_path / name, convert, {"key": key}, comparison=comparison)

    def reads(place):
        return math.openr1(place.row, Selection("math"))

    whole = make("whole.jsonl", reads)
    seen = []

    def dies(place):
        seen.append(place.number)
        if len(seen) == 60:
            raise RuntimeError("power cut")
        return reads(place)

    with pytest.raises(RuntimeError):
        make("cut.jsonl", dies)
    work = tmp_path / "cut.partial"
    assert not (tmp_path / "cut.jsonl").exists()
    done = json.loads((work / "progress.json").read_text())["counts"]["rows_in"]
    assert 30 < done < 60
    with open(work / "kept.jsonl", "a") as torn:
        torn.write('{"id": "half a li')
    shutil.copytree(work, tmp_path / "other.partial")
    again = []
    counts = make("cut.jsonl", lambda place: again.append(0) or reads(place))
    assert len(again) == 90 - done
    assert counts == whole
    assert not work.exists()
    assert counts.dropped["no_reference_answer"] == 13
    for end in (".jsonl", ".rejected.jsonl"):
        assert (tmp_path / f"cut{end}").read_text() == (tmp_path / f"whole{end}").read_text()
    half_done = shutil.copytree(tmp_path / "other.partial", tmp_path / "lost.partial")
    (half_done / "kept.jsonl").unlink()  # as after a crash between two renames
    assert make("lost.jsonl", reads) == whole
    assert make("other.jsonl", reads, key="other options") == whole  # from the beginning
    assert (tmp_path / "other.jsonl").read_text() == (tmp_path / "whole.jsonl").read_text()


def test_programs_are_verified_in_the_sandbox(tmp_path):
    tests = json.dumps({"inputs": ["1 2\n"], "outputs": ["3\n"]})
    base = {"domain": "code", "deepseek_reasoning": "r", "source": "X", "test_cases": tests}
    programs = ["print(sum(map(int, input().split())))", "print(4)"]
    rows = [
        base | {"problem": f"Add {i}.", "deepseek_solution": f"```python\n{p}\n```"}
        for i, p in enumerate(programs)
    ]
    source = write_rows(tmp_path / "meta.jsonl", rows)
    out = tmp_path / "coding.jsonl"
    done = data(
        "coding", "--source", source, "--out", out, "--verify", "--sandbox", strongest_sandbox()
    )
    assert done.returncode == 0, done.stderr
    assert "--decontaminate was not given" in done.stderr
    assert json.loads(out.with_suffix(".meta.json").read_text())["dropped"] == {"wrong_answer": 1}


def test_questions_for_the_teacher(tmp_path):
    row = {"question": "Why?", "solution": "A", "cot_type": "science", "source_type": "x"}
    source = write_rows(tmp_path / "s1.jsonl", [row])
    out = tmp_path / "q.jsonl"
    done = data("science", "--source", source, "--out", out, "--quiet")
    assert done.returncode == 2
    assert "no row is left" in done.stderr
    assert "--questions-only is for the teacher" in done.stderr
    arguments = ["science", "--source", source, "--out", out, "--quiet", "--questions-only"]
    assert data(*arguments).returncode == 0
    (line,) = [json.loads(x) for x in out.read_text().splitlines()]
    assert line == {
        "id": hash_json(["x", "Why?"])[:16], "domain": "science", "question": "Why?",
        "source": "s1.jsonl/x", "answer": "A", "meta": {"reference": "A"},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "COMMAND: required; expected one of math, coding"),
        (["essay"], "essay: no such command; expected one of math, coding, science, inspect"),
        (["math", "--out", "x.jsonl"], "--source: required"),
        (["math", "--source", "nowhere.parquet", "--out", "x.jsonl"], "no such file"),
        (["math", "--source", "{torn}", "--out", "{out}"], "cannot be read"),
        (["math", "--source", "{empty}", "--out", "{out}"], "no data file in it"),
        (
            ["math", "--source", "{other}", "--out", "{out}"],
            "no schema has the columns text; known are OpenR1-Math",
        ),
        (["coding", "--source", "{other}", "--out", "{out}", "--cot-types", "x"], "--cot-types"),
        (["math", "--source", "{other}", "--out", "{out}", "--max-tokens", "5"], "--tokenizer"),
        (
            ["coding", "--source", "{other}", "--out", "{out}"],
            "--columns question=... thinking=... answer=...",
        ),
        (["math", "--source", "{other}", "--out", "{out}", "--near-duplicates", "2"], "--near-dup"),
        (["inspect"], "FILE"),
        (["inspect", "nowhere.jsonl"], "no such file"),
    ],
)
def test_bad_input_is_one_line(tmp_path, arguments, message):
    pytest.importorskip("pyarrow")
    (tmp_path / "torn.parquet").write_bytes(b"PAR1 and then nothing")
    (tmp_path / "empty").mkdir()
    write_rows(tmp_path / "other.jsonl", [{"text": "x"}])
    names = {"torn": tmp_path / "torn.parquet", "empty": tmp_path / "empty"}
    names |= {"other": tmp_path / "other.jsonl", "out": tmp_path / "out.jsonl"}
    done = call("tinyr1.data.__main__", *(a.format(**names) for a in arguments))
    assert done.returncode == 2
    assert message in done.stderr
    assert not (tmp_path / "out.meta.json").exists() or "no row is left" in done.stderr


def test_a_set_on_the_hub(tmp_path):
    """The real `datasets` against a small hub; its commit is in the provenance."""
    pytest.importorskip("datasets")
    out = tmp_path / "math.jsonl"
    with hub("owner/name", "train", [math_row(i) for i in range(9)], tmp_path / "cache") as names:
        env = os.environ | names
        done = data("math", "--source", "owner/name", "--out", out, "--quiet", env=env)
        assert done.returncode == 0, done.stderr
        source = json.loads(out.with_suffix(".meta.json").read_text())["sources"]
        assert source == [{"hub": "owner/name", "config": None, "revision": COMMIT}]
        assert len(out.read_text().splitlines()) == 9
        done = data("math", "--source", "owner/missing", "--out", out, "--quiet", env=env)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert "--source=owner/missing: cannot be loaded" in done.stderr


def test_memory_stays_flat(tmp_path):
    """Ten times the rows, the same peak."""
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    peaks = []
    for count in (200, 2000):
        file = tmp_path / f"{count}.parquet"
        rows = [
            math_row(
                i,
                generations=[
                    "<think>" + " ".join(f"{i}a{j}" for j in range(2500)) + "</think>\\boxed{1}"
                ],
            )
            for i in range(200)
        ]
        table = pyarrow.Table.from_pylist(rows)
        with parquet.ParquetWriter(file, table.schema) as writer:
            for _ in range(count // 200):
                writer.write_table(table, row_group_size=100)
        code = (
            "import resource, sys; from tinyr1.data.__main__ import main; main();"
            "print('PEAK', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
        )
        command = [sys.executable, "-c", code, "math", "--source", str(file), "--no-deduplicate"]
        command += ["--out", str(tmp_path / "out.jsonl"), "--quiet"]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == 0, done.stderr
        peaks.append(int(done.stdout.split("PEAK ")[1]))
    assert peaks[1] < peaks[0] + 60_000  # KiB; the file is 30 MB larger, its rows 300 MB


@pytest.mark.parametrize(
    ("one", "other"),
    [("Compute 5!", "Compute 5"), ("f' at 1", "f at 1"), ("Sort 1 2 3", "Sort 12 3")],
)
def test_questions_that_mean_something_else_are_no_duplicates(one, other):
    assert normalized(one) != normalized(other)
    assert normalized("What  is\nthis?") == normalized("what is this")


def test_what_evaluate_shows_can_be_decontaminated_against(tmp_path):
    tasks = tmp_path / "tasks.jsonl"
    shown = {"task": "t", "id": "1", "trial": 0, "prompt": f"{BOS}{USER}Why so?{ASSISTANT}"}
    tasks.write_text(json.dumps(shown))
    assert Contamination((tasks,)).match("why so?") is not None  # shorter than eight words
    assert Contamination((tasks,)).match("Why not?") is None


def test_marks_that_are_left_are_said(tmp_path):
    good = {"id": "1", "domain": "math", "source": "s", "messages": []}
    for leak in ("<|end_of_solution|>", "<|im_end|>"):
        content = f"<think>\nHm.\n</think>\n\nSo {leak} it is."
        said = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": content}]
        file = tmp_path / "leak.jsonl"
        file.write_text(json.dumps(good | {"messages": said}))
        done = data("inspect", file)
        assert done.returncode == 0
        assert f"warning: 1 records: an answer has {leak} in it" in done.stdout


def test_questions_for_the_teacher_are_checked():
    for question, reason in ((" ", "empty_question"), ("a <|im_end|> b", "leaked_chat_token")):
        with pytest.raises(Dropped, match=reason):
            check_question(question)
