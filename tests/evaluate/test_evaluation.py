"""evaluate.py from tasks to report, and its exits."""

import json
import math
import shutil

import pytest
from conftest import call, checked, make_checkpoint, run, strongest_sandbox, task_rows, write_rows
from safetensors.torch import load_file, save_file

from tinyr1.common.log import Log
from tinyr1.evaluate import run as evaluation_module
from tinyr1.evaluate.options import EvalConfig
from tinyr1.evaluate.run import grade_samples
from tinyr1.evaluate.scores import summarise
from tinyr1.evaluate.tasks import choice_order
from tinyr1.lab.world import DOMAINS, World, task_row
from tinyr1.record import Grade, Sample


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    return write_rows(tmp_path_factory.mktemp("tasks") / "tasks.jsonl", task_rows(9))


def evaluate(*arguments, **options):
    return run("evaluate.py", *arguments, "--sandbox", "rlimits", **options)


@pytest.fixture(scope="module")
def evaluated(tiny, tasks, tmp_path_factory):
    out = tmp_path_factory.mktemp("eval") / "out"
    done = evaluate(
        tiny, "--task-file", tasks, "--out", out, "--preset", "plain", "--trials", 2,
        "--max-tokens", 30, "--max-model-len", 200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "pass@1" in done.stderr
    return out


def test_everything_promised_is_there(evaluated):
    samples = [json.loads(x) for x in (evaluated / "samples.jsonl").read_text().splitlines()]
    grades = [json.loads(x) for x in (evaluated / "grades.jsonl").read_text().splitlines()]
    keys = {(s["task"], s["id"], s["trial"]) for s in samples}
    assert len(keys) == len(samples) == len(grades) == 18
    results = json.loads((evaluated / "results.json").read_text())
    assert set(results["tasks"]) == set(DOMAINS)
    for field in ("temperature", "top_p", "template", "preset", "seed", "engine", "dtype", "torch"):
        assert field in results["settings"], field
    assert "| math | 3 | 6 |" in (evaluated / "report.md").read_text()
    assert "<table>" in (evaluated / "report.html").read_text()


def test_each_column_says_by_which_rule_it_counts(evaluated, tmp_path):
    results = json.loads((evaluated / "results.json").read_text())
    assert list(results["rules"]) == ["pass_at_1"]
    assert results["rules"]["pass_at_1"] in (evaluated / "report.md").read_text()
    tasks = write_rows(tmp_path / "t.jsonl", [MATH500])
    sample = {"task": "math500", "id": "1", "trial": 0, "text": "\\boxed{5}", "token_count": 9}
    samples = write_rows(tmp_path / "s.jsonl", [sample | {"finish_reason": "stop"}])
    for name, asked, said in (
        ("plain", [], "compares with --symbolic, which was not asked"),
        (
            "asked",
            ["--symbolic", "--also-grade", "released"],
            "With math-verify: the exact rules, or",
        ),
    ):
        if asked:
            pytest.importorskip("math_verify")
        out = tmp_path / name
        done = evaluate("--regrade", samples, "--task-file", tasks, "--out", out, *asked)
        assert done.returncode == 0, done.stderr
        assert said in (out / "report.md").read_text()
    rules = json.loads((tmp_path / "asked" / "results.json").read_text())["rules"]
    assert list(rules) == ["pass_at_1", "pass_at_1_symbolic", "pass_at_1_released"]


SHUFFLED = {
    "task": "g", "id": "1", "kind": "choice", "prompt": "?", "choices": ["p", "q", "r", "s"],
    "answer": "A", "shuffle": True,
}  # fmt: skip
MATH500 = {"task": "math500", "id": "1", "kind": "math", "prompt": "?", "answer": "5"}


def test_shuffled_options_without_their_order_are_refused_or_said(tmp_path):
    tasks = write_rows(tmp_path / "t.jsonl", [SHUFFLED])
    (row,) = checked([SHUFFLED])

    def samples(name, order_of):
        rows = []
        for trial in range(8):
            letter = row.in_order(order_of(trial)).answer
            rows.append(
                {"task": "g", "id": "1", "trial": trial, "text": f"\\boxed{{{letter}}}",
                 "token_count": 9, "finish_reason": "stop"}
            )  # fmt: skip
        return write_rows(tmp_path / name, rows)

    listed = samples("listed.jsonl", lambda trial: (0, 1, 2, 3))
    seeded = samples("seeded.jsonl", lambda trial: choice_order(row, 7, trial))

    def regrade(file, *options):
        out = tmp_path / "out"
        done = evaluate("--regrade", file, "--task-file", tasks, "--out", out, *options)
        return done, out / "results.json"

    refused, _ = regrade(listed)
    assert refused.returncode == 2
    assert "listed.jsonl:1: id='1': choice_order: missing" in refused.stderr
    assert "--choice-order says" in refused.stderr
    for file, options in (
        (listed, ["--choice-order", "listed"]),
        (seeded, ["--choice-order", "seeded", "--seed", 7]),
    ):
        done, results = regrade(file, *options)
        assert done.returncode == 0, done.stderr
        figures = json.loads(results.read_text())
        assert figures["tasks"]["g"]["pass_at_1"] == 1
        assert figures["settings"]["choice_order"] == options[1]
    done, results = regrade(seeded, "--choice-order", "listed")
    assert json.loads(results.read_text())["tasks"]["g"]["pass_at_1"] < 1


def test_a_missing_think_open_that_decides_is_refused(tmp_path):
    tasks = write_rows(tmp_path / "t.jsonl", [MATH500])
    base = {"task": "math500", "id": "1", "token_count": 9, "finish_reason": "stop"}
    rows = [
        base | {"trial": 0, "text": "a</think>\\boxed{5}"},
        base | {"trial": 1, "text": "let me try \\boxed{5}, no"},
    ]

    def regrade(rows):
        file = write_rows(tmp_path / "s.jsonl", rows)
        return evaluate("--regrade", file, "--task-file", tasks, "--out", tmp_path / "out")

    for order in (rows, rows[::-1]):
        done = regrade(order)
        assert done.returncode == 2
        assert "s.jsonl:2: id='1': think_open: missing" in done.stderr
    assert regrade([row | {"think_open": True} for row in rows]).returncode == 0
    grades = (tmp_path / "out" / "grades.jsonl").read_text().splitlines()
    reasons = [json.loads(line)["reason"] for line in grades]
    assert reasons == ["", "unfinished_thinking"]


def test_rerun_samples_nothing_and_other_settings_are_refused(evaluated, tiny, tasks):
    before = (evaluated / "samples.jsonl").read_bytes()
    arguments = [tiny, "--task-file", tasks, "--out", evaluated, "--preset", "plain"]
    arguments += ["--trials", 2, "--max-model-len", 200, "--max-tokens"]
    assert evaluate(*arguments, 30).returncode == 0
    assert (evaluated / "samples.jsonl").read_bytes() == before
    refused = evaluate(*arguments, 31)
    assert refused.returncode == 2
    assert "max_tokens=31" in refused.stderr


def test_regrade_gives_the_same_verdicts(evaluated, tasks, tmp_path):
    done = evaluate(
        "--regrade", evaluated / "samples.jsonl", "--task-file", tasks, "--out", tmp_path / "r"
    )
    assert done.returncode == 0, done.stderr
    mine = (tmp_path / "r" / "grades.jsonl").read_text().splitlines()
    assert sorted(mine) == sorted((evaluated / "grades.jsonl").read_text().splitlines())


def test_regrade_in_place_keeps_the_settings_and_names_what_is_missing(evaluated, tasks, tmp_path):
    """Of a copy of a run, with one sample less."""
    out = tmp_path / "copy"
    shutil.copytree(evaluated, out)
    lines = (out / "samples.jsonl").read_text().splitlines(keepends=True)
    kept = [line for line in lines if json.loads(line)["id"] != json.loads(lines[0])["id"]]
    (out / "samples.jsonl").write_text("".join(kept))
    done = evaluate("--regrade", out / "samples.jsonl", "--task-file", tasks, "--out", out)
    assert done.returncode == 0, done.stderr
    before = json.loads((evaluated / "results.json").read_text())["settings"]
    after = json.loads((out / "results.json").read_text())["settings"]
    assert after == before | {"regraded": True}
    assert "of 9 questions have no sample" in done.stderr


def test_settings_bind_samples_and_nothing_else(tiny, tasks, tmp_path):
    """A run that failed before its first sample may be begun with other settings."""
    arguments = [tiny, "--task-file", tasks, "--out", tmp_path / "out", "--preset", "plain"]
    arguments += ["--limit", 1, "--max-model-len", 200, "--max-tokens", 5]
    gone = ["--engine", "openai", "--base-url", "http://127.0.0.1:1/v1", "--model-name", "m"]
    begun = tmp_path / "out" / "sampling.json"
    begun.parent.mkdir()
    begun.write_text(json.dumps({"engine": "vllm"}))
    assert evaluate(*arguments).returncode == 0
    assert json.loads(begun.read_text())["engine"] == "torch"
    assert evaluate(*arguments, *gone).returncode == 2  # now they bind


def test_compare_prints_paired_differences(evaluated):
    done = evaluate("--compare", evaluated, evaluated)
    assert done.returncode == 0, done.stderr
    assert "(+0.0 ± 0.0; 0 up, 0 down)" in done.stdout


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("results.json", {"tasks": {"m": {"pass_at_1": "x", "question_se": 0}}}, "no tasks with"),
        ("results.json", {"tasks": {"m": {"pass_at_1": 1}}}, "no tasks with pass_at_1 and quest"),
        ("results.json", {"tasks": []}, "no tasks with"),
        ("results.json", {"tasks": {"m": {"pass_at_1": math.nan, "question_se": 0}}}, "no tasks"),
        ("grades.jsonl", {"correct": True}, "grades.jsonl:1: expected task, id and correct"),
        ("grades.jsonl", {"task": "m", "id": 1, "correct": True}, "expected task, id and correct"),
        ("grades.jsonl", {"task": "m", "id": "1", "correct": 1}, "expected task, id and correct"),
    ],
)
def test_what_is_no_evaluation_cannot_be_compared(evaluated, tmp_path, file, content, message):
    shutil.copytree(evaluated, tmp_path / "copy")
    (tmp_path / "copy" / file).write_text(json.dumps(content) + "\n")
    done = call("evaluate.py", "--compare", evaluated, tmp_path / "copy")
    assert done.returncode == 2
    assert message in done.stderr


def test_show_prompts_needs_no_model(tasks):
    done = evaluate("--show-prompts", "--task-file", tasks, "--preset", "r1")
    lines = [json.loads(x) for x in done.stdout.splitlines()]
    assert len(lines) == 9
    assert set(lines[0]) == {"task", "id", "trial", "prompt"}
    assert lines[0]["prompt"].endswith("<｜Assistant｜><think>\n")


def test_show_prompts_with_a_model_uses_its_template(tiny, tasks):
    done = evaluate(tiny, "--show-prompts", "--task-file", tasks, "--preset", "plain")
    line = json.loads(done.stdout.splitlines()[0])
    assert line["prompt"].startswith("<｜begin▁of▁sentence｜><｜User｜>")
    assert line["prompt"].endswith("<｜Assistant｜>")


def test_another_model_is_not_taken_for_the_first(evaluated, tasks, tmp_path):
    other = make_checkpoint(tmp_path / "tiny0", seed=9)
    done = evaluate(
        other, "--task-file", tasks, "--out", evaluated, "--preset", "plain", "--trials", 2,
        "--max-tokens", 30, "--max-model-len", 200,
    )  # fmt: skip
    assert done.returncode == 2
    assert "were made with" in done.stderr


def test_regrade_refuses_a_trial_twice(evaluated, tasks, tmp_path):
    text = (evaluated / "samples.jsonl").read_text()
    (tmp_path / "twice.jsonl").write_text(text + text.splitlines()[0] + "\n")
    done = evaluate(
        "--regrade", tmp_path / "twice.jsonl", "--task-file", tasks, "--out", tmp_path / "r"
    )
    assert done.returncode == 2
    assert "this trial came before" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "MODEL, --tasks or --task-file, --out: required; or --ask, --compare"),
        ("{tiny} --tasks aime24", "--out: required"),
        ("{tiny} --out x", "--tasks or --task-file: required"),
        ("{tiny} --out x --task-file nowhere.jsonl", "nowhere.jsonl: no such file"),
        ("nowhere --out x --task-file {tasks}", "nowhere: no such directory"),
        ("{tiny} --out x --task-file {tasks} --max-model-len 5", "the prompt has"),
        ("{tiny} --out x --task-file {tasks} --top-p 2", "--top-p=2.0"),
        ("{tiny} --out x --task-file {tasks} --template qwen", "template=qwen"),
        ("--regrade {tasks} --task-file {tasks} --out x", "tasks.jsonl:1: text=None"),
        ("--regrade strange.jsonl --task-file {tasks} --out x", "choice_order=[1, 0, 2, 3]"),
        ("--regrade mixed.jsonl --task-file {tasks} --out x", "expected a list of numbers"),
        ("--regrade half.jsonl --task-file {tasks} --out x", "half.jsonl:1: text: no text"),
        ("{tiny} --out x --task-file marked.jsonl", "task=math id=1: "),
        ("{tiny} --out x --tasks ,", "--tasks=,: no name"),
        ("few --out x --task-file {tasks}", "few: the tokenizer has the id"),
        ("{tiny} --ask \udcff", "--ask=\\udcff: expected UTF-8 text"),
        ("--compare other other", "other/grades.jsonl:1: expected task, id and correct"),
        ("{tiny} --out x --task-file nowhere.jsonl --replicas 2", "nowhere.jsonl: no such file"),
        ("{tiny} --out x --task-file {tasks} --temperature 1e-300", "--temperature=1e-300"),
        ("{tiny} --out x --task-file {tasks} --chunk-timeout 1e300", "--chunk-timeout=1e+300"),
        ("{tiny} --out x --task-file {tasks} --stop-token-ids -5", "--stop-token-ids=(-5,)"),
        ("--regrade minus.jsonl --task-file {tasks} --out x", "minus.jsonl:1: token_count=-7"),
        ("--regrade text.jsonl --task-file {tasks} --out x", "text.jsonl:1: think_open='false'"),
        ("--compare no no", "no: results.json is not an evaluation's"),
        ("{tiny} --ask a --stop \udcff", "--stop=\\udcff: expected UTF-8 text"),
        ("--compare {tiny}", "at least two"),
        ("{tiny} --no-such-option", "no-such-option"),
    ],
)
def test_bad_arguments_exit_2_without_traceback(tiny, tasks, tmp_path, arguments, message):
    row = json.loads(tasks.read_text().splitlines()[0])
    sample = {"task": row["task"], "id": row["id"], "trial": 0, "text": "5", "token_count": 1}
    sample |= {"finish_reason": "stop"}
    write_rows(tmp_path / "strange.jsonl", [sample | {"choice_order": [1, 0, 2, 3]}])
    write_rows(tmp_path / "mixed.jsonl", [sample | {"choice_order": [1, "0"]}])
    (tmp_path / "half.jsonl").write_text(json.dumps(sample | {"text": "\ud800"}))
    write_rows(
        tmp_path / "marked.jsonl", [row | {"task": "math", "id": "1", "prompt": "<｜User｜>"}]
    )
    write_rows(tmp_path / "minus.jsonl", [sample | {"token_count": -7}])
    write_rows(tmp_path / "text.jsonl", [sample | {"think_open": "false"}])
    few = shutil.copytree(tiny, tmp_path / "few")
    config = json.loads((few / "config.json").read_text()) | {"vocab_size": 64}
    (few / "config.json").write_text(json.dumps(config))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "results.json").write_text('{"tasks": {}}')
    row_of_text = '{"task": "math", "id": "1", "correct": "no"}\n'  # and yet true, to Python
    (tmp_path / "other" / "grades.jsonl").write_text(row_of_text)
    (tmp_path / "no").mkdir()
    (tmp_path / "no" / "results.json").write_text('{"tasks": {"math": {}}}')
    filled = arguments.format(tiny=tiny, tasks=tasks).split()
    done = call("evaluate.py", *filled, "--sandbox", "rlimits", cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr


def test_teachers_answers_grade_as_right_and_its_slips_as_wrong():
    """The laboratory's teacher against the graders, in every domain."""
    import random

    world, rng = World(3), random.Random(3)
    rows, samples, slips = [], [], []
    for i in range(60):
        problem = world.problem(DOMAINS[i % 3], rng)
        rows.append(task_row(problem, str(i)))
        for kind, text in (
            (samples, world.answer(problem, rng)),
            (samples, world.hasty_answer(problem, rng)),
            (slips, world.answer(problem, rng, habit=True)),
        ):
            kind.append(Sample(problem.domain, str(i), len(kind), text, 9, "stop"))
    config = EvalConfig(sandbox="rlimits")
    rows = checked(rows)
    grades = grade_samples(rows, samples, config, Log(quiet=True))
    assert all(g.correct for g in grades), [g for g in grades if not g.correct]
    tasks = summarise(samples, grades)
    assert tasks["math"]["pass_at_1"] == 1
    assert tasks["math"]["thinks"] == 0.5
    wrong = [g for g in grade_samples(rows, slips, config, Log(quiet=True)) if not g.correct]
    assert {g.task for g in wrong} == set(DOMAINS)
    assert 0.2 < len(wrong) / len(slips) < 0.9


def test_identical_answers_are_graded_once(monkeypatch):
    from tinyr1.evaluate import run as evaluation

    calls = []
    original = evaluation.grade
    monkeypatch.setattr(evaluation, "grade", lambda *a, **k: calls.append(a) or original(*a, **k))
    rows = checked(task_rows(1, ("math",)))
    samples = [Sample("math", "q-0", t, "x</think>\\boxed{1}", 3, "stop") for t in range(16)]
    grades = grade_samples(rows, samples, EvalConfig(), Log(quiet=True))
    assert len(calls) == 1
    assert [g.trial for g in grades] == list(range(16))


def test_verdicts_do_not_depend_on_jobs_and_equal_programs_run_once(tmp_path, monkeypatch):
    tests = {"inputs": ["1 2\n"], "outputs": ["3\n"], "fn_name": None}
    row = {"task": "c", "id": "1", "kind": "code", "prompt": "?", "tests": tests}
    programs = ["print(sum(map(int, input().split())))", "print(4)", "1/0", "print("]
    samples = [
        Sample("c", "1", trial, f"<think>{trial}</think>so\n```python\n{program}\n```", 9, "stop")
        for trial, program in enumerate(programs * 3)
    ]
    runs = []
    original = evaluation_module.grade
    monkeypatch.setattr(
        evaluation_module, "grade", lambda *a, **k: runs.append(a[1]) or original(*a, **k)
    )
    verdicts = []
    for jobs in (1, 4):
        config = EvalConfig(jobs=jobs, sandbox=strongest_sandbox())
        verdicts.append(grade_samples(checked([row]), samples, config, Log(quiet=True)))
    assert verdicts[0] == verdicts[1]
    reasons = ["", "wrong_answer", "runtime_error", "compile_error"] * 3
    assert [g.reason for g in verdicts[0]] == reasons
    assert len(runs) == 2 * len(programs)


def test_votes_are_values_of_the_trials_that_every_question_has():
    def graded(name, answers, right="2"):
        rows.append({"task": "math", "id": name, "kind": "math", "prompt": "?", "answer": right})
        for trial, answer in enumerate(answers):
            samples.append(Sample("math", name, trial, f"\\boxed{{{answer}}}", 9, "stop"))

    def figures_of(rows, samples):
        rows = checked(rows)
        grades = grade_samples(rows, samples, EvalConfig(sandbox="rlimits"), Log(quiet=True))
        return summarise(samples, grades, rows)["math"]

    rows, samples = [], []
    graded("1", ["2", "0.5", "1/2", "\\frac12"])  # one half has three votes
    figures = figures_of(rows, samples)
    assert (figures["pass_at_1"], figures["maj_at_k"]) == (0.25, {"4": 0.0})
    rows, samples = [], []
    graded("1", ["3"])
    graded("2", ["3", "2", "2"])
    figures = figures_of(rows, samples)
    assert (figures["pass_at_k"], figures["maj_at_k"]) == ({"1": pytest.approx(1 / 3)}, {"1": 0})
    tests = {"inputs": [""], "outputs": [""]}
    rows[1] |= {"kind": "code", "tests": tests}  # whichever of the rows it is
    grades = [Grade("math", s.id, s.trial, False, s.text, "wrong_answer") for s in samples]
    assert summarise(samples, grades, checked(rows))["math"]["maj_at_k"] == {}


def test_regrading_is_the_same_whatever_order_the_samples_have(tasks, tmp_path):
    rows = [json.loads(line) for line in tasks.read_text().splitlines()]
    row = next(row for row in rows if row["kind"] == "math")
    samples = [
        {"task": row["task"], "id": row["id"], "trial": i, "text": f"\\boxed{{{i}}}",
         "token_count": 5, "finish_reason": "stop"} for i in range(3)
    ]  # fmt: skip
    written = []
    for name, order in (("a", samples), ("b", samples[::-1])):
        file = write_rows(tmp_path / f"{name}.jsonl", order)
        done = evaluate("--regrade", file, "--task-file", tasks, "--out", tmp_path / name)
        assert done.returncode == 0, done.stderr
        written.append(
            [(tmp_path / name / f).read_bytes() for f in ("grades.jsonl", "results.json")]
        )
    assert written[0] == written[1]


def test_weights_that_are_no_numbers_get_no_score(tiny, tasks, tmp_path):
    broken = shutil.copytree(tiny, tmp_path / "broken")
    tensors = load_file(broken / "model.safetensors")
    tensors["model.layers.0.self_attn.q_proj.weight"][:] = float("nan")
    save_file(tensors, broken / "model.safetensors")
    done = evaluate(
        broken, "--task-file", tasks, "--out", tmp_path / "out", "--preset", "plain",
        "--max-tokens", 5,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.strip().endswith(
        "stopped: the model's logits are not finite; python -m tinyr1.check looks why"
    )
