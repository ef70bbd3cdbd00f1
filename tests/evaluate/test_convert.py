"""Samples of other harnesses, written here in their schemas, become samples.jsonl."""

import json

import pytest
from conftest import call, write_rows

from tinyr1.common.errors import UserError
from tinyr1.common.log import Log
from tinyr1.evaluate.convert import ConvertConfig, convert

MATH = [
    {"task": "m", "id": "test/algebra/1.json", "kind": "math", "prompt": "What is $1+1$?",
     "answer": "2"},
    {"task": "m", "id": "test/algebra/2.json", "kind": "math", "prompt": "What is $1+1$? Then +1?",
     "answer": "3"},
]  # fmt: skip
CHOICE = {
    "task": "g", "id": "rec1", "kind": "choice", "prompt": "Which is\na metal?",
    "choices": ["Iron", "Neon", "Iron oxide", "Neon"], "answer": "A", "shuffle": True,
}  # fmt: skip
TESTS = {"inputs": ["1\n"], "outputs": ["1\n"], "fn_name": None}
CODE = {
    "task": "c",
    "id": "2828",
    "kind": "code",
    "prompt": "Print what\nyou read.",
    "tests": TESTS,
}


@pytest.fixture
def converted(tmp_path):
    def run(rows, *files, **options):
        tasks = write_rows(tmp_path / "tasks.jsonl", rows)
        config = ConvertConfig(files=files, task_file=tasks, quiet=True, **options)
        return convert(config, Log(quiet=True))

    return run


def parquet(path, rows):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet as module

    module.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def lcb(path, **changes):
    row = {
        "question_title": "Echo", "question_content": "Print what\nyou read.",
        "platform": "leetcode",
        "question_id": "2828", "contest_id": "1", "contest_date": "2024-09-01T00:00:00",
        "starter_code": "", "difficulty": "easy",
        "output_list": ["t</think>\n```python\nprint(input())\n```", "t</think>\nno code"],
        "code_list": ["print(input())", ""], "graded_list": [True, False], "pass@1": 0.5,
        "metadata": ["{}", "{}"],
    }  # fmt: skip
    path.write_text(json.dumps([row | changes]))
    return path


def lm_eval(path, rows):
    return write_rows(
        path,
        [
            {
                "doc_id": i, "doc": doc, "target": "x",
                "arguments": {"gen_args_0": {"arg_0": prompt, "arg_1": {"until": []}}},
                "resps": [texts], "filtered_resps": texts[:1], "filter": name, "metrics": ["em"],
                "doc_hash": "", "prompt_hash": "", "target_hash": "", "exact_match": 0.0,
            }
            for i, (doc, prompt, texts) in enumerate(rows)
            for name in ("none", "strict")
        ],
    )  # fmt: skip


def test_livecodebench(converted, tmp_path):
    samples = converted([CODE], lcb(tmp_path / "x_eval_all.json"))
    assert [(s.id, s.trial, s.token_count) for s in samples] == [("2828", 0, 0), ("2828", 1, 0)]
    file = lcb(tmp_path / "y.json", output_list=["t</think>\n```\nA\n```", "let me see"])
    with pytest.raises(UserError, match=r"1 texts close a thought .*, 1 have no tag .*; yes or no"):
        converted([CODE], file)  # a thought that never ended, or a plain answer?
    assert [s.think_open for s in converted([CODE], file, think_open="yes")] == [True, True]
    assert [s.think_open for s in converted([CODE], file, think_open="no")] == [False, False]


def test_lighteval(converted, tmp_path):
    rows = [
        {
            "doc": {
                "query": f"Solve it.\n\n{row['prompt']}", "choices": [row["answer"]], "id": str(i),
                "gold_index": 0, "task_name": "m|0", "generation_size": 3,
            },
            "metric": {"pass@1": 1.0},
            "model_response": {
                "input": f"<|user|>Solve it.\n\n{row['prompt']}<|assistant|><think>\n",
                "text": [f"a</think>\\boxed{{{row['answer']}}}", "b"],
                "output_tokens": [[1, 2], [1, 2, 3]],
            },
        }
        for i, row in enumerate(MATH)
    ]  # fmt: skip
    samples = converted(MATH, parquet(tmp_path / "details_m.parquet", rows))
    assert [(s.id, s.trial) for s in samples] == [(r["id"], t) for r in MATH for t in (0, 1)]
    assert [s.finish_reason for s in samples[:2]] == ["stop", "length"]
    assert [s.token_count for s in samples[:2]] == [2, 3]
    assert all(s.think_open for s in samples)


def test_lighteval_before_its_columns_had_types(converted, tmp_path):
    rows = [
        {
            "example": f"{row['prompt']}\n", "full_prompt": f"user: {row['prompt']}\n",
            "predictions": str([f"it's \\boxed{{{row['answer']}}}"]), "gold": str(["2"]),
            "input_tokens": "[[1]]", "cont_tokens": "[[1, 2, 3, 4]]", "specifics": "{}",
        }
        for row in MATH
    ]  # fmt: skip
    samples = converted(MATH, parquet(tmp_path / "details.parquet", rows))
    assert [s.text for s in samples] == [r"it's \boxed{2}", r"it's \boxed{3}"]
    assert [(s.token_count, s.think_open) for s in samples] == [(4, False)] * 2


def test_lm_evaluation_harness_and_the_order_of_options(converted, tmp_path):
    def asked(*order):
        options = " ".join(f"({x}) {o}" for x, o in zip("ABCD", order, strict=True))
        return f"Q: Which is a metal?\nOptions: {options}\nA:"

    doc = {"Question": "Which is\na metal?", "choice1": "Neon", "answer": "(C)"}
    first = asked("Neon", "Iron oxide", "Iron", "Neon")
    file = lm_eval(tmp_path / "samples_g.jsonl", [(doc, first, ["(C)", "(A)"])])
    again = lm_eval(
        tmp_path / "samples_h.jsonl", [(doc, asked("Iron", *CHOICE["choices"][1:]), ["x"])]
    )
    samples = converted([CHOICE], file, again)
    assert [(s.trial, s.text) for s in samples] == [(0, "(C)"), (1, "(A)"), (2, "x")]
    assert [s.choice_order for s in samples] == [(1, 2, 0, 3)] * 2 + [(0, 1, 2, 3)]
    unseen = lm_eval(tmp_path / "samples_i.jsonl", [(doc, asked(*"pqrs"), ["x"])])
    with pytest.raises(UserError, match=r"samples_i.jsonl:1: id='rec1': the prompt does not"):
        converted([CHOICE], unseen)


def asked(question, *options, label="({})"):
    listed = " ".join(f"{label.format(x)} {o}" for x, o in zip("ABCDEFGHIJ", options, strict=False))
    return f"Choose 1 of the options.\n{question}\nChoices: {listed}\nA:"


@pytest.mark.parametrize(
    ("choices", "shown", "order"),
    [
        (["e", "a", "i", "o"], ["a", "e", "o", "i"], (1, 0, 3, 2)),
        (["D", "A", "B", "C"], ["C", "D", "A", "B"], (3, 0, 1, 2)),
        (["4", "3", "2", "1"], ["1", "4", "3", "2"], (3, 0, 1, 2)),
        (["1", "1.5", "1.5 m", "2"], ["1.5 m", "1.5", "2", "1"], (2, 1, 3, 0)),
        (["2-[methyl]ane", "b", "c", "d"], ["b", "2-ane", "c", "d"], (1, 0, 2, 3)),
        (["a", "b"], ["b", "a"], (1, 0)),
    ],
)
@pytest.mark.parametrize("label", ["({})", "{}.", "{})", "{}:"])
@pytest.mark.parametrize("shuffle", [True, False])
def test_options_are_found_behind_their_letters(
    converted, tmp_path, choices, shown, order, label, shuffle
):
    row = CHOICE | {"choices": choices, "shuffle": shuffle}
    prompt = asked(row["prompt"], *shown, label=label)
    file = lm_eval(tmp_path / "samples_g.jsonl", [({"Question": row["prompt"]}, prompt, ["A"])])
    (sample,) = converted([row], file)
    assert sample.choice_order == order


def test_which_question_it_was(converted, tmp_path):
    same = [CHOICE | {"id": "a"}, CHOICE | {"id": "b", "choices": ["p", "q", "r", "s"]}]
    prompt = asked(CHOICE["prompt"], "s", "r", "q", "p")
    file = lm_eval(tmp_path / "s.jsonl", [({"Question": CHOICE["prompt"]}, prompt, ["A"])])
    assert [s.id for s in converted(same, file)] == ["b"]  # by its options
    same[1]["choices"] = CHOICE["choices"]
    with pytest.raises(UserError, match="several questions of the tasks have this text"):
        converted(same, file)
    # An example before the question is not the question.
    few = f"{MATH[1]['prompt']}\n3\n\n{MATH[0]['prompt']}\n"
    rows = [{"full_prompt": few, "predictions": ["2"]}]
    assert converted(MATH, write_rows(tmp_path / "t.jsonl", rows))[0].id == MATH[0]["id"]
    other = [({"problem": "Another?", "unique_id": MATH[0]["id"]}, few, ["2"])]
    with pytest.raises(UserError, match="its question is another one among the tasks"):
        converted(MATH, lm_eval(tmp_path / "u.jsonl", other), partial=True)
    crossed = [({"problem": MATH[1]["prompt"], "unique_id": MATH[0]["id"]}, "", ["2"])]
    with pytest.raises(UserError, match=r"its text is that of id='test/algebra/2.json'"):
        converted(MATH, lm_eval(tmp_path / "v.jsonl", crossed))


def test_a_recorded_limit_tells_what_was_cut_off(converted, tmp_path, tiny):
    file = lm_eval(tmp_path / "samples_m.jsonl", [({"problem": MATH[0]["prompt"]}, "", ["1 2 3"])])
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    for row in rows:
        row["arguments"]["gen_args_0"]["arg_1"]["max_gen_toks"] = 2
    write_rows(file, rows)
    assert converted(MATH, file, tokenizer=tiny)[0].finish_reason == "length"


def test_nothing_is_overwritten(tmp_path):
    tasks = write_rows(tmp_path / "tasks.jsonl", MATH)
    file = lm_eval(tmp_path / "samples_m.jsonl", [({"problem": MATH[0]["prompt"]}, "", ["x"])])
    before = file.read_bytes()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "sampling.json").write_text("{}")
    for out in (file, tmp_path / "run" / "samples.jsonl"):
        done = call("tinyr1.evaluate.convert", file, "--task-file", tasks, "--out", out)
        assert done.returncode == 2
        assert "would overwrite samples" in done.stderr
    assert file.read_bytes() == before


def test_what_is_not_among_the_tasks_is_an_error_or_left_out(converted, tmp_path):
    rows = [({"problem": row["prompt"]}, "", ["x"]) for row in [*MATH, {"prompt": "Other?"}]]
    file = lm_eval(tmp_path / "samples_m.jsonl", rows)
    with pytest.raises(UserError, match=r"samples_m.jsonl:5: 'Other\?': no such question"):
        converted(MATH, file)
    assert len(converted(MATH, file, partial=True)) == 2
    with pytest.raises(UserError, match="no samples of these tasks"):
        converted([CODE], file, partial=True)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "p", "answer": 3}, "expected the columns of one of .*found answer, prompt"),
        ({"doc": [], "resps": [["x"]]}, "doc: expected an object, found list"),
        ({"doc": {}, "resps": [[[-1.0, True]]]}, "resps: expected lists of texts"),
        ({"doc": {}, "model_response": {"text": []}}, "text: empty"),
        ({"doc": {}, "model_response": {"text": 5}}, "text: expected a list of texts"),
        ({"full_prompt": "", "predictions": "[__import__('os')]"}, "'': no such question"),
    ],
)  # fmt: skip
def test_other_files_are_refused_in_a_line(converted, tmp_path, row, message):
    file = write_rows(tmp_path / "other.jsonl", [row])
    with pytest.raises(UserError, match=f"other.jsonl:1: {message}"):
        converted(MATH, file)


def test_tokens_are_counted_on_request(converted, tmp_path, tiny):
    file = lm_eval(tmp_path / "samples_m.jsonl", [({"problem": MATH[0]["prompt"]}, "", ["1 2"])])
    assert converted(MATH, file)[0].token_count == 0
    assert converted(MATH, file, tokenizer=tiny)[0].token_count > 1


def test_the_command_and_the_regrading_of_what_it_wrote(tmp_path):
    tasks = write_rows(tmp_path / "tasks.jsonl", MATH)
    rows = [({"problem": r["prompt"]}, "", [rf"\boxed{{{r['answer']}}}"]) for r in MATH]
    file = lm_eval(tmp_path / "samples_m.jsonl", rows)
    out = tmp_path / "samples.jsonl"
    done = call("tinyr1.evaluate.convert", file, "--task-file", tasks, "--out", out)
    assert done.returncode == 0, done.stderr
    assert "token counts are not in these files" in done.stderr
    assert f"{out}: 2 samples of 2 questions" in done.stderr
    graded = call("evaluate.py", "--regrade", out, "--task-file", tasks, "--out", tmp_path / "r")
    assert graded.returncode == 0, graded.stderr
    results = json.loads((tmp_path / "r" / "results.json").read_text())
    assert results["tasks"]["m"]["pass_at_1"] == 1.0
    wrong = call("evaluate.py", "--regrade", file, "--task-file", tasks, "--out", tmp_path / "r")
    assert wrong.returncode == 2
    assert "python -m tinyr1.evaluate.convert reads" in wrong.stderr
    for missing in (["--task-file", tasks, "--out", out], [file, "--out", out], [file]):
        assert call("tinyr1.evaluate.convert", *missing).returncode == 2
