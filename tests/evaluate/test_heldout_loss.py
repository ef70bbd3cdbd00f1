"""Held-out loss as a command: against logits, by hand, and as training reports it."""

import json
import math

import pytest
import torch
from conftest import call, make_checkpoint, metrics, training_rows, write_rows
from torch.nn import functional as F

from tinyr1.evaluate.loss import DocumentLoss, losses_table, per_target, summary
from tinyr1.model.chat import render
from tinyr1.model.qwen2 import Qwen2
from tinyr1.model.tokenizer import Tokenizer
from tinyr1.record import Record


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("heldout")
    return [
        write_rows(folder / f"{domain}.jsonl", training_rows(12, (domain,), seed=3))
        for domain in ("math", "coding")
    ]


def test_loss_is_that_of_the_logits(tiny, files, tmp_path):
    done = call("evaluate.py", tiny, "--loss", *files, "--out", tmp_path / "a")
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "a" / "losses.json").read_text())
    assert set(record["files"]) == {"math.jsonl", "coding.jsonl"}
    model, tokenizer = Qwen2.from_pretrained(tiny).double(), Tokenizer(tiny)
    nats, targets = [], []
    for line in files[0].read_text().splitlines():
        messages = Record.from_json(json.loads(line)).messages
        tokens, is_target = render(tokenizer, messages, "deepseek_r1")
        with torch.no_grad():
            logits = model(torch.tensor(tokens)[None])[0]
        each = F.cross_entropy(logits[:-1], torch.tensor(tokens[1:]), reduction="none")
        nats.append(float(each[torch.tensor(is_target[1:])].sum()))
        targets.append(sum(is_target[1:]))
    found = record["files"]["math.jsonl"]
    assert found["targets"] == sum(targets)
    assert found["loss"] == pytest.approx(sum(nats) / sum(targets), rel=1e-6)
    rows = [json.loads(x) for x in (tmp_path / "a" / "losses.jsonl").read_text().splitlines()]
    assert [row["nats"] for row in rows[:12]] == pytest.approx(nats, rel=1e-5)
    assert f"{found['loss']:.4f} ± {found['loss_se']:.4f}" in done.stdout


def test_loss_is_what_training_reports(tiny, files, tmp_path):
    line = ["coding", "--model", tiny, "--data", files[1], "--out", tmp_path / "run"]
    line += ["--eval-data", files[0], "--max-steps", 1, "--batch-size", 4, "--seq-len", 256]
    assert call("train", *line).returncode == 0
    (row,) = metrics(tmp_path / "run")
    done = call("evaluate.py", tmp_path / "run", "--loss", files[0], "--out", tmp_path / "a")
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "a" / "losses.json").read_text())["files"]["math.jsonl"]
    assert found["loss"] == pytest.approx(row["eval_loss"], rel=1e-5)


def test_comparison_is_paired(tiny, files, tmp_path):
    other = make_checkpoint(tmp_path / "other", seed=5)
    for name, model in (("a", tiny), ("b", other)):
        assert (
            call("evaluate.py", model, "--loss", *files, "--out", tmp_path / name).returncode == 0
        )
    done = call("evaluate.py", "--compare", tmp_path / "a", tmp_path / "b")
    assert done.returncode == 0, done.stderr
    a, b = (
        [json.loads(x) for x in (tmp_path / n / "losses.jsonl").read_text().splitlines()]
        for n in ("a", "b")
    )
    pairs = [(x, y) for x, y in zip(a, b, strict=True) if x["file"] == "math.jsonl"]
    targets = [x["targets"] for x, _ in pairs]
    differences = [y["nats"] - x["nats"] for x, y in pairs]
    ratio = sum(differences) / sum(targets)
    left_out = [  # the jackknife's error, an estimate of another kind
        (sum(differences) - d) / (sum(targets) - n)
        for d, n in zip(differences, targets, strict=True)
    ]
    middle = sum(left_out) / len(left_out)
    squares = sum((x - middle) ** 2 for x in left_out)
    error = math.sqrt(squares * (len(pairs) - 1) / len(pairs))
    cell = done.stdout.splitlines()[-1].split("|")[2]
    change, told = cell.split("(")[1].rstrip(") ").split(" ± ")
    assert float(change) == pytest.approx(ratio, abs=6e-5)
    assert float(told) == pytest.approx(error, rel=0.1, abs=6e-5)
    one = ["--compare", tmp_path / "a", tiny]
    assert "no such file" in call("evaluate.py", *one).stderr


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("losses.json", '{"files": {"f": {"loss": "low"}}}', "no files with sha256, loss, loss_se"),
        (
            "losses.jsonl",
            '{"file": "f", "row": 1, "nats": "x", "targets": 1}\n',
            "losses.jsonl:1: ",
        ),
        ("losses.jsonl", "[]\n", "losses.jsonl:1: not a document's loss"),
    ],
)
def test_damaged_losses_are_one_line(tmp_path, name, text, said):
    files = {"f": {"sha256": "a", "loss": 1.0, "loss_se": 0.1}}
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "losses.json").write_text(json.dumps({"files": files}))
        (tmp_path / folder / "losses.jsonl").write_text("")
    (tmp_path / "b" / name).write_text(text)
    done = call("evaluate.py", "--compare", tmp_path / "a", tmp_path / "b")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert said in done.stderr


def test_errors_by_hand():
    assert per_target([2.0, 6.0], [1, 3]) == (2.0, 0.0)  # each document has 2 nats a target
    loss, error = per_target([1.0, 3.0], [1, 1])
    assert (loss, error) == (2.0, 1.0)  # as of the mean of 1 and 3
    assert per_target([1.0], [1]) == (1.0, None)
    assert summary([DocumentLoss("f", 1, 1.0, 1)])["document_se"] is None
    found = summary([DocumentLoss("f", 1, 1.0, 1), DocumentLoss("f", 2, 9.0, 3)])
    assert (found["loss"], found["document_loss"], found["document_se"]) == (2.5, 2.0, 1.0)


def test_other_files_of_one_name_are_not_paired():
    files = {"f": {"loss": 1.0, "loss_se": 0.1, "sha256": "a"}}
    others = {"f": {"loss": 2.0, "loss_se": 0.1, "sha256": "b"}}
    documents = [DocumentLoss("f", 1, 1.0, 1), DocumentLoss("f", 2, 1.0, 1)]
    table = losses_table({"x": (files, documents), "y": (others, documents)})
    assert table.rows[1] == ["y", "2.0000 ± 0.1000"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("--loss {math}", "MODEL: required"),
        ("{tiny} --loss nowhere.jsonl", "nowhere.jsonl"),
        ("{tiny} --loss {math} {math}", "two files have one name"),
        ("{tiny} --loss {math} --max-model-len 3", "no document of at most 3 tokens"),
        ("{tiny} --loss {bad}", "bad.jsonl:1: "),
        ("{tiny} --loss {math} --template qwen", "<|im_start|>"),
    ],
)
def test_bad_input_is_one_line(tiny, files, tmp_path, arguments, said):
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"messages": []}\n')
    line = arguments.format(tiny=tiny, math=files[0], bad=bad).split()
    done = call("evaluate.py", *line)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert said in done.stderr
