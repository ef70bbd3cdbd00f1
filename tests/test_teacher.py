"""A teacher's answers become training records, whatever shape they come in."""

import json
import shutil

import pytest
from conftest import call, run, write_rows
from fake_server import fake_server

from tinyr1.common.log import Log
from tinyr1.data.draft import Dropped
from tinyr1.record import Record, Sample
from tinyr1.teacher import Question, TeacherConfig, load_questions, select, usable

pytest.importorskip("httpx")

ROW = {"id": "q1", "domain": "science", "question": "Which?", "answer": "B", "source": "s1"}
QUESTION = Question.from_json(ROW)
SEED = ("--seed", 2)  # with which the random model closes some of its thoughts


def sample(text, trial=0, tokens=5, finish="stop"):
    return Sample("science", "q1", trial, text, tokens, finish)


@pytest.mark.parametrize(
    ("text", "options", "expected"),
    [
        ("<think>\nHm.\n</think>\n\nIt is \\boxed{B}.", {}, None),
        ("Hm.\n</think>\n\nIt is \\boxed{B}.", {}, None),  # the opening tag was the prompt's
        ("It is B.", {}, "no_think"),
        ("<think>Hm", {}, "unfinished_thinking"),
        ("<think></think>B", {}, "empty_thought"),
        ("<think>Hm.</think>", {}, "empty_solution"),
        ("<think>Hm.</think>\\boxed{C}", {}, None),  # wrong answers stay unless asked
        ("<think>Hm.</think>\\boxed{C}", {"reject_wrong": True}, "wrong_answer"),
        ("<think>Hm.</think>\\boxed{B}", {"reject_wrong": True}, None),
    ],
)
def test_shapes_and_reasons(text, options, expected):
    config = TeacherConfig(**options)
    if expected is None:
        assert (
            usable(QUESTION, sample(text), config)
            .content()
            .startswith("<think>\nHm.\n</think>\n\n")
        )
    else:
        with pytest.raises(Dropped, match=expected):
            usable(QUESTION, sample(text), config)
    with pytest.raises(Dropped, match="cut_off"):
        usable(QUESTION, sample("<think>Hm.</think>B", finish="length"), TeacherConfig())


def test_rejection_sampling_keeps_what_was_asked_for():
    samples = [
        sample("<think>Hm.</think>\\boxed{C}", 0, 9),
        sample("<think>Long.</think>\\boxed{B}", 1, 30),
        sample("<think>Short.</think>\\boxed{B}", 2, 20),
    ]
    for keep, trials in (("first", [1]), ("shortest", [2]), ("all", [1, 2])):
        config = TeacherConfig(n=3, keep=keep, reject_wrong=True)
        kept, rejected = select([QUESTION], samples, config)
        assert [draft.meta["trial"] for draft in kept] == trials
        reasons = [row["reason"] for row in rejected]
        assert reasons.count("wrong_answer") == 1
        assert reasons.count("not_needed") == 2 - len(trials)


def teacher(*arguments):
    return run("-m", "tinyr1.teacher", *arguments)


def test_over_http_resumed_within_a_budget_and_trained_on(tiny, tmp_path):
    rows = [{"id": str(i), "domain": "science", "question": f"Name {i}?"} for i in range(6)]
    questions = write_rows(tmp_path / "q.jsonl", rows)
    out = tmp_path / "answers.jsonl"
    with fake_server(tiny) as server:
        arguments = ["--questions", questions, "--out", out, "--engine", "openai", "--api", "chat"]
        arguments += ["--base-url", server.url, "--model-name", "r1", "--max-tokens", 60]
        arguments += ["--n", 4, "--keep", "all", "--slots", 2, "--price", 1000, *SEED]
        first = teacher(*arguments, "--budget-tokens", 100)
        assert first.returncode == 0, first.stderr
        meta = json.loads(out.with_suffix(".meta.json").read_text())
        assert 0 < meta["answers"] < 24
        assert meta["answers"] + meta["answers_missing"] == 24
        asked = len(server.seen)
        done = teacher(*arguments)
        assert done.returncode == 0, done.stderr
        assert len(server.seen) == 24 > asked  # nothing was asked twice
    meta = json.loads(out.with_suffix(".meta.json").read_text())
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert meta["answers"] == 24
    assert meta["cost"] == pytest.approx(meta["tokens"] / 1000, abs=0.006)
    assert len(lines) + sum(meta["dropped"].values()) == 24
    for line in lines:
        record = Record.from_json(line)
        assert record.id.split("/")[0] in {row["id"] for row in rows}
    other = teacher(*arguments, "--temperature", 0.3)
    assert other.returncode == 2
    assert "temperature=0.3" in other.stderr


def test_what_a_server_refuses_is_missing_and_asked_again(tiny, tmp_path):
    rows = [{"id": str(i), "domain": "science", "question": f"Name {i}?"} for i in range(4)]
    questions = write_rows(tmp_path / "q.jsonl", rows)
    out = tmp_path / "answers.jsonl"
    with fake_server(tiny) as server:
        arguments = ["--questions", questions, "--out", out, "--engine", "openai", "--api", "chat"]
        arguments += ["--base-url", server.url, "--model-name", "r1", "--max-tokens", 60]
        arguments += SEED
        server.faults = [None, 400]
        done = teacher(*arguments, "--slots", 1)
        assert done.returncode == 1, done.stderr
        assert "HTTP 400" in done.stderr
        assert "1 answers are missing" in done.stderr
        assert "Traceback" not in done.stderr
        meta = json.loads(out.with_suffix(".meta.json").read_text())
        assert (meta["answers"], meta["answers_missing"]) == (3, 1)
        done = teacher(*arguments, "--slots", 1)
        assert done.returncode == 0, done.stderr
        assert len(server.seen) == 5
        # Nothing that is fit for training: what an earlier call wrote stays, all of it.
        beside = [out, out.with_suffix(".meta.json"), out.with_suffix(".rejected.jsonl")]
        before = [path.read_bytes() for path in beside]
        shutil.rmtree(out.with_suffix(".work"))
        done = teacher(*arguments, "--max-tokens", 1)
        assert done.returncode == 1
        reasons = out.with_suffix(".work") / "rejected.jsonl"
        assert f"no answer is fit for training, so it stays as it was; see {reasons}" in done.stderr
        assert "cut_off" in reasons.read_text()
        assert [path.read_bytes() for path in beside] == before


def test_files_put_together_are_one(tmp_path, capsys):
    """Ids that two sets have both are kept apart; what stands twice is asked once."""
    other = ROW | {"question": "Who?"}
    file = write_rows(tmp_path / "q.jsonl", [ROW, other, ROW, other, ROW | {"id": "q2"}])
    questions = load_questions(file, Log())
    assert [q.text for q in questions] == ["Which?", "Who?", "Which?"]
    assert [q.id for q in questions][::2] == ["q1", "q2"]
    assert questions[1].id.startswith("q1-")
    assert "2 rows have an id and question that came before" in capsys.readouterr().err
    assert load_questions(file, Log(quiet=True)) == questions
    unknown = ROW | {"answer": None, "question": "Which? "}
    write_rows(file, [unknown, ROW])
    (question,) = load_questions(file, Log(quiet=True))
    assert question.answer == "B"  # what either row knows


def test_a_local_model_and_bad_questions(tiny, tmp_path):
    questions = write_rows(tmp_path / "q.jsonl", [ROW])
    common = ["--max-tokens", 20, "--max-model-len", 100, "--quiet"]
    done = teacher(tiny, "--questions", questions, "--out", tmp_path / "o.jsonl", *common)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "o.meta.json").read_text())["answers"] == 1
    for row, message in (
        ([], "q.jsonl: no questions"),
        (["text"], "q.jsonl:1: expected a JSON object"),
        ({"id": "1", "domain": "x", "question": "?"}, "q.jsonl:1: domain='x'"),
        ({"id": "1", "domain": "math", "question": " "}, "q.jsonl:1: question=' '"),
        ({"domain": "math", "question": "?"}, "q.jsonl:1: id=None"),
        ({"id": None, "domain": "math", "question": "?"}, "q.jsonl:1: id=None"),
        ({"id": "1", "domain": "coding", "question": "?", "tests": {"inputs": [1]}}, ":1: tests:"),
    ):
        write_rows(questions, row if isinstance(row, list) else [row])
        arguments = ["--questions", questions, "--out", tmp_path / "o.jsonl", *common]
        done = call("tinyr1.teacher", tiny, *arguments)
        assert done.returncode == 2
        assert message in done.stderr
    write_rows(questions, [ROW])
    kept = write_rows(tmp_path / "kept.jsonl", [ROW])
    before = kept.read_bytes()
    done = teacher(tiny, "--questions", questions, "--out", kept, *common)
    assert done.returncode == 1  # nothing is fit for training
    assert "so it stays as it was; see" in done.stderr
    assert kept.read_bytes() == before
    rejected = write_rows(tmp_path / "o.rejected.jsonl", [ROW])
    for name, more in ((rejected, ()), ("nowhere.jsonl", ("--replicas", 2))):
        arguments = ["--questions", name, "--out", tmp_path / "o.jsonl", *common, *more]
        done = call("tinyr1.teacher", tiny, *arguments)
        assert done.returncode == 2
        assert len(done.stderr.splitlines()) == 1
    assert rejected.read_text() == json.dumps(ROW) + "\n"
    done = call("tinyr1.teacher", "--questions", questions, "--out", tmp_path / "o.jsonl")
    assert done.returncode == 2
