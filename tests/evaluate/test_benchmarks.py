"""Published files in their published schemas, written here; nothing of the real sets."""

import base64
import collections
import csv
import json
import os
import pickle
import zlib

import pytest
from conftest import SHARED_DATA, run, write_rows
from fake_hub import hub

from tinyr1.common.errors import UserError
from tinyr1.data.published import file_rows
from tinyr1.evaluate.benchmarks import load_benchmark
from tinyr1.evaluate.tasks import choice_order, make_prompts
from tinyr1.graders.grading import grade
from tinyr1.model.tokenizer import Tokenizer
from tinyr1.record import ProgramTests


def aime_rows(count=30, **changes):
    return [
        {"id": 60 + i, "problem": f"Find ${i}+0$.", "answer": f"{i:03d}"} | changes
        for i in range(count)
    ]


def gpqa_file(path, count=198):
    with open(path, "w", newline="", encoding="utf-8-sig") as file:
        wrong = [f"Incorrect Answer {i}" for i in (1, 2, 3)]
        header = ["Record ID", "Question", "Correct Answer", *wrong, "High-level domain", "Canary"]
        writer = csv.DictWriter(file, header)
        writer.writeheader()
        for i in range(count):
            row = {"Record ID": f"rec{i}", "Question": f' Which is {i}?\nLook, "well". '}
            row |= {
                "Correct Answer": f"right {i}",
                "High-level domain": ["Physics", "Biology"][i % 2],
            }
            row |= {name: f"wrong {i} {j}" for j, name in enumerate(wrong)}
            row["Incorrect Answer 3"] = row["Incorrect Answer 2"]  # equal wrong options exist
            writer.writerow(row)
    return path


def hidden(tests):
    """Private tests as published: base64 of zlib of a pickle of JSON text."""
    return base64.b64encode(zlib.compress(pickle.dumps(json.dumps(tests)))).decode()


def lcb_row(i, date="2024-09-01T00:00:00", private=None, functional=False):
    kind = "functional" if functional else "stdin"
    tests = [{"input": "1 2\n", "output": "3\n", "testtype": kind}]
    return {
        "question_title": "t",
        "question_content": "Print A+B.",
        "platform": "atcoder",
        "question_id": f"abc{i}",
        "contest_id": "abc",
        "contest_date": date,
        "starter_code": "class Solution:\n" if functional else "",
        "difficulty": ["easy", "medium", "hard"][i % 3],
        "public_test_cases": json.dumps(tests),
        "private_test_cases": hidden(tests) if private is None else private,
        "metadata": json.dumps({"func_name": "add"} if functional else {}),
    }


def test_aime_in_any_of_its_forms(tmp_path):
    write_rows(tmp_path / "aime24.jsonl", aime_rows())
    rows = load_benchmark("aime24", tmp_path, "tinyr1")
    assert len(rows) == 30
    assert (rows[7].answer, rows[7].id, rows[7].task) == ("7", "67", "aime24")
    other = tmp_path / "other"
    other.mkdir()
    renamed = [
        {"ID": r["id"], "Problem": r["problem"], "Answer": int(r["answer"])} for r in aime_rows()
    ]
    write_rows(other / "AIME_2024.jsonl", renamed)
    assert [r.answer for r in load_benchmark("aime24", other, "r1")] == [r.answer for r in rows]
    several = tmp_path / "several"
    (several / "aimo-validation-aime").mkdir(parents=True)
    both = aime_rows(url="https://x/2024_AIME_I") + aime_rows(url="https://x/2023_AIME_I")
    write_rows(several / "aimo-validation-aime" / "aime24.jsonl", both)
    assert len(load_benchmark("aime24", several, "tinyr1")) == 30
    (several / "aimo-validation-aime").rename(several / "AI-MO")  # its files have a name, too
    assert len(load_benchmark("aime24", several, "tinyr1")) == 30
    (several / "AI-MO" / "aime24.jsonl").rename(several / "AI-MO" / "test.jsonl")
    with pytest.raises(UserError, match="nothing for --tasks aime24"):
        load_benchmark("aime24", several, "tinyr1")
    (several / "AI-MO").rename(several / "datasets--AI-MO--aimo-validation-aime")
    assert len(load_benchmark("aime24", several, "tinyr1")) == 30


def test_arrays_and_tables_of_questions_and_answers(tmp_path):
    (tmp_path / "aimo-validation-aime.json").write_text(json.dumps(aime_rows(url="2024"), indent=1))
    assert len(load_benchmark("aime24", tmp_path, "tinyr1")) == 30
    lines = "".join(f'{i},"What is {i}?","{i}"\n' for i in range(500))
    (tmp_path / "math_500_test.csv").write_text(",Question,Answer\n" + lines)
    rows = load_benchmark("math500", tmp_path, "tinyr1")
    assert (rows[3].prompt, rows[3].answer) == ("What is 3?", "3")
    (tmp_path / "aime25").mkdir()
    (tmp_path / "aime25" / "dataset_info.json").write_text('{"a":\n1}')  # is about the files
    write_rows(tmp_path / "aime25" / "aime2025-I.jsonl", aime_rows(15))
    write_rows(tmp_path / "aime25" / "aime2025-II.jsonl", aime_rows(15, id=None))
    assert len(load_benchmark("aime25", tmp_path, "tinyr1")) == 30


def test_functional_tests_without_their_function_are_refused(tmp_path):
    row = lcb_row(0, functional=True) | {"metadata": "{}", "private_test_cases": "[]"}
    write_rows(tmp_path / "livecodebench.jsonl", [row])
    with pytest.raises(UserError, match=r"livecodebench.jsonl:1: metadata: no func_name"):
        load_benchmark("livecodebench", tmp_path, "tinyr1")


def test_parquet_as_published(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    rows = [
        {"problem": f"p{i}", "answer": r"\frac{1}{2}", "subject": "Algebra", "level": 1 + i % 5,
         "unique_id": f"test/{i}.json"} for i in range(500)
    ]  # fmt: skip
    (tmp_path / "MATH-500").mkdir()
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "MATH-500" / "test.parquet")
    loaded = load_benchmark("math500", tmp_path, "tinyr1")
    assert (loaded[3].difficulty, loaded[3].subject) == ("level 4", "Algebra")


def test_a_benchmark_from_the_hub(tmp_path, tiny):
    """The real `datasets` against a small hub, from the command line."""
    pytest.importorskip("datasets")
    with hub("math-ai/aime25", "test", aime_rows(), tmp_path / "cache") as names:
        done = run(
            "evaluate.py", tiny, "--tasks", "aime25", "--show-prompts", env=os.environ | names
        )
        assert done.returncode == 0, done.stderr
        assert len(done.stdout.splitlines()) == 30 * 16
        done = run(
            "evaluate.py", tiny, "--tasks", "aime24", "--show-prompts", env=os.environ | names
        )
        assert done.returncode == 2
        assert done.stderr.startswith("error: --data: not given; HuggingFaceH4/aime_2024: cannot")


def test_line_ends_within_a_field_are_plain(tmp_path):
    file = gpqa_file(tmp_path / "gpqa_diamond.csv")
    file.write_bytes(file.read_bytes().replace(b"?\nLook", b"?\r\nLook"))
    rows = load_benchmark("gpqa_diamond", tmp_path, "tinyr1")
    assert rows[3].prompt == ' Which is 3?\nLook, "well". '


def test_long_fields_are_read_and_half_a_pair_is_refused(tmp_path):
    with open(tmp_path / "long.csv", "w", newline="") as file:
        csv.writer(file).writerows([["a"], ["x" * 200_000]])
    assert [len(row["a"]) for _, row in file_rows(tmp_path / "long.csv")] == [200_000]
    rows = [{"problem": "\ud800", "answer": "1", "url": "2024"}]
    write_rows(tmp_path / "aime24.jsonl", rows)
    with pytest.raises(UserError, match=r"aime24.jsonl:1: prompt: no text"):
        load_benchmark("aime24", tmp_path, "tinyr1")


def test_gpqa_orders_are_seeded_recorded_and_uniform(tmp_path, tiny):
    gpqa_file(tmp_path / "gpqa_diamond.csv")
    rows = load_benchmark("gpqa_diamond", tmp_path, "tinyr1")
    assert rows[0].prompt.startswith(" Which")  # not stripped, as sent
    tokenizer = Tokenizer(tiny)
    prompts = make_prompts(rows, tokenizer, "deepseek_r1", "tinyr1", None, True, seed=3)
    assert len(prompts) == 4 * 198
    again = make_prompts(rows[5:], tokenizer, "deepseek_r1", "tinyr1", 6, True, seed=3)
    known = {p.key: p for p in prompts}
    assert all(known[p.key] == p for p in again if p.trial < 4)  # whatever else is asked
    letters = collections.Counter()
    for prompt in prompts:
        row = rows[int(prompt.id[3:])]
        ordered = row.in_order(prompt.choice_order)
        letters[ordered.answer] += 1
        place = "ABCD".index(ordered.answer)
        assert ordered.choices[place] == f"right {prompt.id[3:]}"
        assert tuple(ordered.choices) == tuple(row.choices[i] for i in prompt.choice_order)
        text = f"so </think> \\boxed{{{ordered.answer}}}"
        assert grade(ordered, text).correct
    assert len({p.choice_order for p in prompts}) == 24
    assert all(abs(letters[x] - 198) < 5 * (792 * 0.1875) ** 0.5 for x in "ABCD")
    assert choice_order(rows[0], 3, 0) != choice_order(rows[0], 4, 0) or (
        choice_order(rows[1], 3, 0) != choice_order(rows[1], 4, 0)
    )
    with pytest.raises(ValueError, match="choice_order"):
        rows[0].in_order((0, 1, 2, 2))


def test_gpqa_is_graded_by_the_order_of_each_trial(tmp_path):
    gpqa_file(tmp_path / "gpqa_diamond.csv")
    orders = [[0, 1, 2, 3], [3, 2, 1, 0], [1, 0, 3, 2]]
    samples = [
        {"task": "gpqa_diamond", "id": "rec7", "trial": t, "text": r"x</think>\boxed{A}",
         "token_count": 5, "finish_reason": "stop", "choice_order": order}
        for t, order in enumerate(orders)
    ]  # fmt: skip
    file = write_rows(tmp_path / "samples.jsonl", samples)
    done = run(
        "evaluate.py", "--regrade", file, "--tasks", "gpqa_diamond", "--data", tmp_path,
        "--out", tmp_path / "out", "--limit", 8,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    grades = [json.loads(x) for x in (tmp_path / "out" / "grades.jsonl").read_text().splitlines()]
    assert [g["correct"] for g in grades] == [True, False, False]
    page = (tmp_path / "out" / "report.md").read_text()
    assert "DeepSeek-R1-Distill-Llama-70B" in page
    assert "not run here" in page
    results = json.loads((tmp_path / "out" / "results.json").read_text())["tasks"]["gpqa_diamond"]
    assert results["pass_at_k"] == {"1": pytest.approx(1 / 3), "2": pytest.approx(2 / 3), "3": 1.0}
    assert results["maj_at_k"] == {"3": 1.0}  # three different options: the first seen wins


def test_livecodebench_window_tests_and_limits(tmp_path):
    dates = ["2024-07-31", "2024-08-01T00:00:00", "2025-02-01T00:00:00", "2025-02-02"]
    (tmp_path / "code_generation_lite").mkdir()
    first = [lcb_row(i, date, functional=i == 1) for i, date in enumerate(dates)]
    write_rows(tmp_path / "code_generation_lite" / "test.jsonl", first)
    with pytest.raises(UserError, match="2 rows, expected 279"):
        load_benchmark("livecodebench", tmp_path, "tinyr1")
    window = ("2024-08-01", "2025-02-02")
    rows = load_benchmark("livecodebench", tmp_path, "tinyr1", window)
    assert [r.id for r in rows] == ["abc1", "abc2", "abc3"]
    assert rows[0].tests.fn_name == "add"
    assert rows[1].tests == ProgramTests(("1 2\n",) * 2, ("3\n",) * 2)
    assert (rows[0].timeout_s, rows[0].timeout_total_s) == (18.0, 60.0)
    assert load_benchmark("livecodebench", tmp_path, "r1", window)[0].timeout_s is None
    write_rows(
        tmp_path / "code_generation_lite" / "test2.jsonl", [lcb_row(i) for i in range(10, 287)]
    )
    assert len(load_benchmark("livecodebench", tmp_path, "tinyr1")) == 279
    with pytest.raises(UserError, match="--lcb-start"):
        load_benchmark("livecodebench", tmp_path, "tinyr1", ("August", "2025-01-01"))


class Evil:
    def __reduce__(self):
        return print, ("executed",)


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (pickle.dumps(Evil()), "a pickle that asks for builtins.print"),
        (pickle.dumps(["not", "text"]), "a list, expected text"),
        (pickle.dumps("{}"), "expected a list"),
        (b"no pickle", "private tests"),
    ],
)
def test_hostile_private_tests_are_refused(tmp_path, capsys, payload, message):
    text = base64.b64encode(zlib.compress(payload)).decode()
    write_rows(tmp_path / "livecodebench.jsonl", [lcb_row(1, private=text)])
    with pytest.raises(UserError, match=message):
        load_benchmark("livecodebench", tmp_path, "tinyr1")
    assert "executed" not in capsys.readouterr().out


def test_no_tests_and_damaged_files_are_refused(tmp_path):
    row = lcb_row(1, private=hidden([])) | {"public_test_cases": "[]"}
    write_rows(tmp_path / "livecodebench.jsonl", [row])
    with pytest.raises(UserError, match="no tests: every program would pass"):
        load_benchmark("livecodebench", tmp_path, "tinyr1")
    write_rows(tmp_path / "livecodebench.jsonl", [lcb_row(1, private="%%%")])
    with pytest.raises(UserError, match=r"livecodebench.jsonl:1: .*is this a file of live"):
        load_benchmark("livecodebench", tmp_path, "tinyr1")
    write_rows(tmp_path / "aime24.jsonl", [{"problem": "x"}])
    with pytest.raises(UserError, match="field 'answer' is missing"):
        load_benchmark("aime24", tmp_path, "tinyr1")
    write_rows(tmp_path / "aime24.jsonl", aime_rows(29))
    with pytest.raises(UserError, match="29 rows, expected 30"):
        load_benchmark("aime24", tmp_path, "tinyr1")
    with pytest.raises(UserError, match="--tasks=aime26"):
        load_benchmark("aime26", tmp_path, "tinyr1")
    with pytest.raises(UserError, match="no such directory"):
        load_benchmark("aime24", tmp_path / "nowhere", "tinyr1")


@pytest.mark.skipif(not (SHARED_DATA / "aime24.jsonl").exists(), reason="the AIME files are absent")
def test_aime_as_it_is_and_every_gold_grades_as_itself():
    for name in ("aime24", "aime25"):
        for row in load_benchmark(name, SHARED_DATA, "tinyr1"):
            assert grade(row, f"x</think>\\boxed{{{row.answer}}}").correct
            assert not grade(row, f"x</think>\\boxed{{{int(row.answer) + 1}}}").correct
    done = run(
        "evaluate.py", "--show-prompts", "--tasks", "aime24, aime25", "--data", SHARED_DATA,
        "--limit", 2, "--trials", 3,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(lines) == 12
    assert {line["task"] for line in lines} == {"aime24", "aime25"}
