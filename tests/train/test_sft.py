"""Training against itself: one rank and two, resumed and uninterrupted, packed and one by one."""

import dataclasses
import gzip
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT, call, make_checkpoint, metrics, run, training_rows, write_rows
from safetensors.torch import save_file

from tinyr1.common.errors import RunStopped, UserError
from tinyr1.common.files import owned
from tinyr1.common.log import Log
from tinyr1.common.ranks import Ranks, StopSignal
from tinyr1.model.config import Qwen2Config
from tinyr1.model.qwen2 import Qwen2, parameter_count
from tinyr1.model.tokenizer import Tokenizer
from tinyr1.model.weights import Checkpoint
from tinyr1.train import saver as checkpoint
from tinyr1.train import space
from tinyr1.train.corpus import Rendering, build_corpus
from tinyr1.train.flops import TrainingFlops, peak_tflops
from tinyr1.train.options import TrainConfig
from tinyr1.train.plan import Plan, prepare
from tinyr1.train.sft import forward, train_step
from tinyr1.train.sft import train as run_sft

QUIET = Log(quiet=True)
SMALL = "--batch-size 4 --seq-len 128 --lr 1e-3 --warmup-ratio 0 --optim-dtype fp32 --quiet"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    return write_rows(folder / "train.jsonl", training_rows(30))


def train(tiny, data, out, *extra, recipe="coding", ranks=1, real=False):
    arguments = ["--model", tiny, "--data", data, "--out", out, *SMALL.split(), *extra]
    return run("train.py", recipe, *arguments, ranks=ranks, real=real)


def weights(folder):
    checkpoint = Checkpoint(folder)
    return {name: checkpoint.tensor(name).clone() for name in checkpoint.specs}


def largest_difference(a, b):
    return max(float((a[n].double() - b[n].double()).abs().max()) for n in a)


class Said(Log):
    """A log that keeps what it is told."""

    def __init__(self):
        super().__init__(quiet=True)
        self.lines = []

    def say(self, text):
        self.lines.append(text)

    def warn(self, text):
        self.lines.append(text)


@pytest.fixture(scope="module")
def one_rank(tiny, data, tmp_path_factory):
    """An uninterrupted run of one process: two epochs."""
    out = tmp_path_factory.mktemp("one") / "run"
    done = train(tiny, data, out, "--epochs", "2")
    assert done.returncode == 0, done.stderr
    return out


def test_run_leaves_what_is_promised(one_rank, tiny):
    rows = metrics(one_rank)
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
    for key in ("loss", "grad_norm", "lr", "tokens", "target_tokens", "tokens_per_s"):
        assert all(math.isfinite(row[key]) for row in rows), key
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert (one_rank / "loss.png").stat().st_size > 1000
    model = Qwen2.from_pretrained(one_rank)
    assert model(torch.zeros(1, 3, dtype=torch.int64)).isfinite().all()
    assert largest_difference(weights(one_rank), weights(tiny)) > 1e-3
    assert not list(one_rank.rglob("*.partial"))
    assert (one_rank / "tokenizer.json").read_bytes() == (tiny / "tokenizer.json").read_bytes()
    steps = {p.name for p in (one_rank / "checkpoints").iterdir()}
    assert steps == {f"step-{len(rows):06d}"}


def test_every_token_of_an_epoch_is_trained_once(one_rank, data):
    rows = metrics(one_rank)
    cache = next((one_rank / "cache").glob("*/meta.json"))
    meta = json.loads(cache.read_text())
    for epoch in (1, 2):
        mine = [row for row in rows if row["epoch"] == epoch]
        assert sum(row["tokens"] for row in mine) == meta["tokens"]
        assert sum(row["target_tokens"] for row in mine) == meta["target_tokens"]
    assert meta["documents"] == 30


def test_two_ranks_equal_one(one_rank, tiny, data, tmp_path):
    done = train(tiny, data, tmp_path / "run", "--epochs", "2", ranks=2, real=True)
    assert done.returncode == 0, done.stderr
    pairs = list(zip(metrics(one_rank), metrics(tmp_path / "run"), strict=True))
    # float32 sums in another order; the difference grows with the steps.
    assert max(abs(a["loss"] - b["loss"]) for a, b in pairs) < 1e-5
    assert abs(pairs[0][0]["loss"] - pairs[0][1]["loss"]) < 1e-6
    assert abs(pairs[0][0]["grad_norm"] - pairs[0][1]["grad_norm"]) < 1e-5
    assert largest_difference(weights(one_rank), weights(tmp_path / "run")) < 1e-4


def test_two_ranks_equal_one_with_16_bit_moments(tiny, data, tmp_path):
    """What the rounding adds to an element does not depend on the rank that holds it."""
    extra = ["--max-steps", "8", "--optim-dtype", "bf16"]
    for ranks in (1, 2):
        done = train(tiny, data, tmp_path / f"run{ranks}", *extra, ranks=ranks)
        assert done.returncode == 0, done.stderr
    one, two = metrics(tmp_path / "run1"), metrics(tmp_path / "run2")
    assert max(abs(a["loss"] - b["loss"]) for a, b in zip(one, two, strict=True)) < 1e-5


def test_the_sums_of_a_run_that_ends_within_an_epoch(tiny, data, tmp_path):
    config = TrainConfig(model=tiny, data=(data,), seq_len=128, batch_size=4, cache_dir=tmp_path)
    for max_steps in (1, 3, 7, 0):
        config = dataclasses.replace(config, max_steps=max_steps, epochs=3)
        plan = prepare(config, QUIET).plan
        packs = [pack for step in range(1, plan.total_steps + 1) for pack in plan.packs(step)]
        assert plan.total(lambda p: p.token_count) == sum(p.token_count for p in packs)
        assert plan.total(plan.pack_flops) == pytest.approx(sum(map(plan.pack_flops, packs)))
    assert plan.packs_per_epoch % 4  # the last step of an epoch is a short one


def test_only_whole_checkpoints_of_ours_count(one_rank, tiny, data, tmp_path):
    shutil.copytree(one_rank, tmp_path / "run")
    folder = tmp_path / "run" / "checkpoints"
    (step,) = (p for p in folder.iterdir() if p.name == f"step-{len(metrics(one_rank)):06d}")
    shutil.copytree(step, folder / "step-000001-kept-by-hand")
    shutil.copytree(step, folder / "step-7")
    (folder / "step-000099.partial").mkdir()
    done = train(tiny, data, tmp_path / "run", "--epochs", "3")
    assert done.returncode == 0, done.stderr
    names = {path.name for path in folder.iterdir()}
    assert {"step-000001-kept-by-hand", "step-7"} <= names
    assert not [name for name in names if name.endswith(".partial")]


def test_losses_are_those_of_transformers(tiny, data, tmp_path):
    """Eight steps of transformers' model and torch's AdamW, one document at a time."""
    transformers = pytest.importorskip("transformers")
    done = train(tiny, data, tmp_path / "run", "--max-steps", "8")
    assert done.returncode == 0, done.stderr
    plan = plan_of(tiny, data, tmp_path, max_steps=8, batch_size=4)
    model = transformers.Qwen2ForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    groups = [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": 0.01},
        {"params": [p for p in model.parameters() if p.ndim == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95), eps=1e-8)
    steps = metrics(tmp_path / "run")
    assert len(steps) == 8
    for row in steps:
        packs, loss_sum = plan.packs(row["step"]), 0.0
        total = plan.total_weight(packs)
        for document in (d for p in packs for d in p.documents):
            tokens, is_target = (torch.as_tensor(np.array(x)) for x in plan.corpus.read(document))
            labels = torch.where(is_target, tokens, -100).long()[None]
            mean = model(input_ids=tokens[None].long(), labels=labels, use_cache=False).loss
            part = mean * int(is_target[1:].sum()) / total
            part.backward()
            loss_sum += part.item()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        assert row["loss"] == pytest.approx(loss_sum, rel=1e-5)
        assert row["grad_norm"] == pytest.approx(float(norm), rel=1e-3)


def test_second_call_does_nothing(one_rank, tiny, data):
    before = (one_rank / "model.safetensors").stat().st_mtime_ns
    arguments = [
        "--model",
        tiny,
        "--data",
        data,
        "--out",
        one_rank,
        *SMALL.split(),
        "--epochs",
        "2",
    ]
    arguments.remove("--quiet")
    done = run("train.py", "coding", *arguments)
    assert done.returncode == 0
    assert "already trained" in done.stderr
    assert (one_rank / "model.safetensors").stat().st_mtime_ns == before


@pytest.mark.parametrize("optim", ["fp32", "bf16"])
def test_resumed_run_equals_uninterrupted_to_the_bit(tiny, data, tmp_path, optim):
    extra = ["--optim-dtype", optim, "--epochs", "2"]
    whole = train(tiny, data, tmp_path / "whole", *extra)
    assert whole.returncode == 0, whole.stderr
    first = train(tiny, data, tmp_path / "parts", *extra, "--max-steps", "3")
    assert first.returncode == 0, first.stderr
    # A killed process may have written metrics beyond its last checkpoint.
    with open(tmp_path / "parts" / "metrics.jsonl", "a") as file:
        file.write('{"step": 4, "loss": 0.0, "lr": 0.0}\n{"step": 5, "lo')
    second = train(tiny, data, tmp_path / "parts", *extra)
    assert second.returncode == 0, second.stderr
    assert largest_difference(weights(tmp_path / "whole"), weights(tmp_path / "parts")) == 0
    expected = [(r["step"], r["loss"], r["grad_norm"]) for r in metrics(tmp_path / "whole")]
    assert [(r["step"], r["loss"], r["grad_norm"]) for r in metrics(tmp_path / "parts")] == expected


def test_resume_at_another_world_size(one_rank, tiny, data, tmp_path):
    first = train(tiny, data, tmp_path / "run", "--epochs", "2", "--max-steps", "3", ranks=2)
    assert first.returncode == 0, first.stderr
    second = train(tiny, data, tmp_path / "run", "--epochs", "2")
    assert second.returncode == 0, second.stderr
    assert largest_difference(weights(one_rank), weights(tmp_path / "run")) < 1e-4


def test_sigterm_saves_and_exits_0_and_the_same_command_continues(tiny, data, tmp_path):
    out = tmp_path / "run"
    command = [sys.executable, ROOT / "train.py", "coding", "--model", tiny, "--data", data]
    command += ["--out", out, *SMALL.split(), "--epochs", "400"]
    process = subprocess.Popen([str(c) for c in command], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if epochs_so_far(out)[-1:] > [1]:
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert not (out / "config.json").exists()
    done = len(metrics(out))
    assert [p.name for p in (out / "checkpoints").iterdir()] == [f"step-{done:06d}"]
    command[command.index("400")] = str(epochs_so_far(out)[-1] + 1)
    again = run(*[str(c) for c in command[1:]])
    assert again.returncode == 0, again.stderr
    rows = metrics(out)
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
    assert len(rows) > done
    command[command.index("--epochs") + 1] = "1"
    less = run(*[str(c) for c in command[1:]])
    assert less.returncode == 2
    assert f"its checkpoints go to step {len(rows)}" in less.stderr


def epochs_so_far(out):
    path = out / "metrics.jsonl"
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    return [json.loads(line)["epoch"] for line in lines]


def plan_of(tiny, data, folder, **options):
    values = {"model": tiny, "data": (data,), "seq_len": 128, "batch_size": 3, **options}
    config = TrainConfig(**values)
    rendering = Rendering(Tokenizer(tiny), max_len=128)
    corpus = build_corpus((data,), rendering, folder, Log(quiet=True))
    return Plan(corpus, config, TrainingFlops.of(Qwen2Config.from_pretrained(tiny)))


def step_of(tiny, plan, packs, learning_rate=0.0):
    """Loss and gradients of one step, in float64."""
    model = Qwen2.from_pretrained(tiny).double()
    grads = {}
    optimizer = torch.optim.SGD(model.parameters(), lr=learning_rate)
    original = optimizer.step

    def keep(*_):
        grads.update({n: p.grad.clone() for n, p in model.named_parameters()})
        return original()

    optimizer.step = keep
    batches = plan.batches(packs, Ranks())
    stats = train_step(model, batches, plan.total_weight(packs), optimizer, Ranks(), 1e9)
    return stats, grads


def test_packed_step_equals_documents_one_by_one(tiny, data, tmp_path):
    plan = plan_of(tiny, data, tmp_path)
    packs = plan.packs(1)
    packed, packed_grads = step_of(tiny, plan, packs)
    documents = [d for p in packs for d in p.documents]
    model = Qwen2.from_pretrained(tiny).double()
    total = sum(plan.corpus.target_counts[d] for d in documents)
    loss = torch.zeros((), dtype=torch.float64)
    for document in documents:
        tokens, is_target = (torch.from_numpy(x.copy()) for x in plan.corpus.read(document))
        logits = model(tokens[None].long())[0, :-1]
        wanted = torch.where(is_target[1:], tokens[1:].long(), -100)
        loss = loss + torch.nn.functional.cross_entropy(logits, wanted, reduction="sum")
    (loss / total).backward()
    # The summed loss is kept in float32; the gradients are float64 but for the logits' float32.
    assert packed.loss == pytest.approx(float(loss.detach()) / total, rel=1e-6)
    expected = {n: p.grad for n, p in model.named_parameters()}
    assert max(float((packed_grads[n] - expected[n]).abs().max()) for n in expected) < 1e-7


@pytest.mark.parametrize("weighting", ["token", "sequence", "pack"])
def test_accumulation_does_not_change_the_gradient(tiny, data, tmp_path, weighting):
    one = plan_of(tiny, data, tmp_path, loss_weighting=weighting, micro_batch_size=1)
    all_at_once = plan_of(tiny, data, tmp_path, loss_weighting=weighting, micro_batch_size=8)
    packs = one.packs(1)
    (a, grads_a), (b, grads_b) = step_of(tiny, one, packs), step_of(tiny, all_at_once, packs)
    assert a.loss == pytest.approx(b.loss, rel=1e-6)
    assert max(float((grads_a[n] - grads_b[n]).abs().max()) for n in grads_a) < 1e-7


def test_weightings_give_each_its_vote(tiny, data, tmp_path):
    """By definition: token, sequence and pack means of the same per-token losses."""
    plans = {
        w: plan_of(tiny, data, tmp_path, loss_weighting=w) for w in ("token", "sequence", "pack")
    }
    packs = plans["token"].packs(1)
    model = Qwen2.from_pretrained(tiny)
    per_pack = []
    for pack in packs:
        losses = []
        for document in pack.documents:
            tokens, is_target = (
                torch.from_numpy(x.copy()) for x in plans["token"].corpus.read(document)
            )
            with torch.no_grad():
                logits = model(tokens[None].long()).detach()[0, :-1]
            each = torch.nn.functional.cross_entropy(logits, tokens[1:].long(), reduction="none")
            losses.append(each[is_target[1:]])
        per_pack.append(losses)
    everything = [x for losses in per_pack for x in losses]
    expected = {
        "token": torch.cat(everything).mean(),
        "sequence": torch.stack([x.mean() for x in everything]).mean(),
        "pack": torch.stack([torch.cat(x).mean() for x in per_pack]).mean(),
    }
    for weighting, plan in plans.items():
        stats, _ = step_of(tiny, plan, packs)
        assert stats.loss == pytest.approx(float(expected[weighting]), rel=1e-5), weighting


def test_a_step_that_is_not_finite_changes_nothing(tiny, data, tmp_path):
    plan = plan_of(tiny, data, tmp_path)
    model = Qwen2.from_pretrained(tiny)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[0, 0] = math.inf
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    packs = plan.packs(1)
    batches = plan.batches(packs, Ranks())
    stats = train_step(model, batches, plan.total_weight(packs), optimizer, Ranks(), 1.0)
    assert not stats.updated
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())
    assert all(p.grad is None for p in model.parameters())


def test_non_finite_run_stops_with_exit_1_naming_records(tiny, data, tmp_path):
    done = train(tiny, data, tmp_path / "run", "--lr", "1e30", "--epochs", "3")
    assert done.returncode == 1
    assert "non-finite steps in a row; records row-" in done.stderr
    assert "Traceback" not in done.stderr
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line, parse_constant=pytest.fail) for line in lines]  # no NaN in JSON
    assert rows[-1]["loss"] is None
    assert (tmp_path / "run" / "loss.png").exists()
    # Steps that changed nothing are not kept: nothing was saved here but what came before.
    assert not list((tmp_path / "run").glob("checkpoints/step-*"))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{", "bad.jsonl:3: not valid JSON"),
        ('{"id": "x", "domain": "math", "messages": []}', "bad.jsonl:3: messages"),
        ("[" * 100_000, "bad.jsonl:3: not valid JSON"),
        (
            '{"domain": "math", "messages": [{"role": "user", "content": "half \\ud83d"}]}',
            "bad.jsonl:3: messages: no text",
        ),
        (
            '{"domain": "math", "messages": [{"role": "user", "content": "q"}, '
            '{"role": "assistant", "content": "no thought"}]}',
            "bad.jsonl:3: assistant message has 0 <think>",
        ),
    ],
)
def test_bad_training_row_names_file_and_line(tiny, tmp_path, row, message):
    path = write_rows(tmp_path / "bad.jsonl", training_rows(2))
    path.write_text(path.read_text() + row + "\n")
    arguments = ["--model", tiny, "--data", path, "--out", tmp_path / "run", *SMALL.split()]
    done = call("train.py", "coding", *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1  # one plain line


def test_over_long_rows_are_dropped_and_counted_never_cut(tiny, data, tmp_path):
    def corpus(max_len):
        rendering = Rendering(Tokenizer(tiny), max_len)
        return build_corpus((data,), rendering, tmp_path, Log(quiet=True))

    whole = corpus(999)
    limit = sorted(whole.lengths)[-8] - 1
    cut = corpus(limit)
    kept = [n for n in whole.lengths if n <= limit]
    assert cut.lengths == kept
    assert cut.meta["dropped_over_long"] == 30 - len(kept) > 0
    with pytest.raises(UserError, match="no row left to train on"):
        corpus(3)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["coding"], 2, "--model, --data, --out: required"),
        (["coding", "--model", "{tiny}", "--out", "x"], 2, "--data: required"),
        (["coding", "--model", "missing", "--data", "d", "--out", "x"], 2, "missing: no such dir"),
        (["coding", "--model", "{tiny}", "--data", "d", "--out", "x"], 2, "d: no such file"),
        (["no_such_recipe"], 2, "recipe=no_such_recipe"),
        (["coding", "--lr", "-1"], 2, "--lr=-1.0"),
        (["coding", "--clip-norm", "0"], 2, "--clip-norm=0.0"),
        (["coding", "--model", "{tiny}", "--data", "{data}", "--out", "{tiny}"], 2, "is --model"),
        (["coding", "--learning-rate", "1"], 2, "learning-rate"),
        (["coding", "--template", "qwen", "--model", "{tiny}", "--data", "{data}", "--out", "x"],
         2, "template=qwen"),
    ],
)  # fmt: skip
def test_bad_arguments_exit_2_without_traceback(tiny, data, tmp_path, arguments, code, message):
    filled = [a.format(tiny=tiny, data=data) for a in arguments]
    done = call("train.py", *filled, cwd=tmp_path)
    assert done.returncode == code
    assert message in done.stderr


def test_a_model_that_no_run_made_is_not_written_over(tiny, data, tmp_path):
    other = shutil.copytree(tiny, tmp_path / "other")
    before = {p: p.read_bytes() for p in other.iterdir()}
    done = train(tiny, data, other)
    assert done.returncode == 2
    assert (
        done.stderr
        == f"error: --out={other}: holds a model that no run made; choose another place\n"
    )
    assert {p: p.read_bytes() for p in other.iterdir()} == before


def test_other_settings_on_resume_are_refused_by_name(one_rank, tiny, data):
    done = train(tiny, data, one_rank, "--epochs", "2", "--lr", "0.5")
    assert done.returncode == 2
    assert "lr=0.5" in done.stderr
    refused = train(tiny, data, one_rank, "--no-resume")
    assert refused.returncode == 2
    assert "not empty" in refused.stderr


def test_resume_with_another_model_or_other_data_is_refused(one_rank, data, tmp_path):
    other = make_checkpoint(tmp_path / "other", seed=5)
    refused = train(other, data, one_rank, "--epochs", "2")
    assert refused.returncode == 2
    assert "--model=other: not what the checkpoints in" in refused.stderr
    assert "were made from (" in refused.stderr
    rows = write_rows(tmp_path / "other.jsonl", training_rows(30, seed=8))
    refused = train(one_rank.parent / "none", rows, one_rank)
    assert refused.returncode == 2


def test_an_export_that_was_cut_off_is_done_again(tiny, data, tmp_path):
    out = tmp_path / "run"
    assert train(tiny, data, out, "--max-steps", "2").returncode == 0
    exported = weights(out)
    (out / "config.json").unlink()  # what is written last
    (out / "model.safetensors").write_bytes(b"half")
    assert train(tiny, data, out, "--max-steps", "2").returncode == 0
    assert largest_difference(weights(out), exported) == 0
    assert train(tiny, data, out, "--max-steps", "3").returncode == 0
    assert largest_difference(weights(out), exported) > 0


def test_other_types_and_exports_that_were_cut_off_are_made_on_resume(tiny, data, tmp_path):
    out, extra = tmp_path / "run", ("--max-steps", "2", "--export-every", "1", "--keep", "2")
    assert train(tiny, data, out, *extra, "--save-every", "1").returncode == 0
    step = out / "exports" / "step-000001"
    exported = weights(step)
    # As if kill -9 had come in the export of step 1: its checkpoint is whole, what follows is not.
    (step / "config.json").unlink()
    os.replace(step / "model.safetensors", step / "model.safetensors.partial")
    shutil.rmtree(out / "checkpoints" / "step-000002")
    (out / "config.json").unlink()
    assert train(tiny, data, out, *extra).returncode == 0
    assert largest_difference(weights(step), exported) == 0
    assert not list(out.rglob("*.partial"))
    before = weights(out)
    done = train(tiny, data, out, *extra, "--export-dtype", "bf16")
    assert done.returncode == 0, done.stderr
    assert {w.dtype for w in weights(out).values()} == {torch.bfloat16}
    assert largest_difference(weights(out), before) < 1e-2


def test_a_signal_in_the_last_step_costs_no_evaluation(tiny, data, tmp_path, monkeypatch):
    """An earlier step's is left out: it is made again by nobody, but nothing rests on it."""

    class Stopped(StopSignal):
        def __init__(self):
            super().__init__()
            self.requested = True

    monkeypatch.setattr("tinyr1.train.sft.StopSignal", Stopped)
    config = TrainConfig(
        model=tiny, data=(data,), out=tmp_path / "run", max_steps=2, batch_size=4, seq_len=128,
        eval_data=(data,), eval_every=1,
    )  # fmt: skip
    for _ in range(2):
        run_sft(config, QUIET, Ranks())
    rows = metrics(tmp_path / "run")
    assert ["eval_loss" in row for row in rows] == [False, True]
    assert (tmp_path / "run" / "config.json").exists()


def test_an_old_checkpoint_loses_its_name_before_its_files(one_rank, tiny, data, tmp_path):
    shutil.copytree(one_rank, tmp_path / "run")
    (step,) = (tmp_path / "run" / "checkpoints").iterdir()
    removed = []

    def dies(path, *_, **__):
        removed.append(path.name)
        if path.exists():
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint.shutil, "rmtree", dies)
        with pytest.raises(KeyboardInterrupt):
            checkpoint._remove(step)
    assert removed == [f"{step.name}.old.partial"] * 2
    assert checkpoint.completed_steps(tmp_path / "run") == []


def test_what_a_kill_left_beside_is_removed_on_resume(one_rank, tiny, data, tmp_path):
    """An older checkpoint that was to go, and files of `write_atomic`."""
    out = shutil.copytree(one_rank, tmp_path / "run")
    (step,) = (out / "checkpoints").iterdir()
    shutil.copytree(step, out / "checkpoints" / "step-000001")
    (out / ".tokenizer.json.99.partial").touch()
    (out / "config.json").unlink()
    done = train(tiny, data, out, "--epochs", "2", "--keep", "1")
    assert done.returncode == 0, done.stderr
    assert [p.name for p in (out / "checkpoints").iterdir()] == [step.name]
    assert not [*out.glob(".*")]


def test_what_gloo_says_of_this_machine_is_not_another_ranks(tiny, data, tmp_path):
    environment = os.environ | {"GLOO_SOCKET_IFNAME": "nonesuch"}
    arguments = ["--model", tiny, "--data", data, "--out", tmp_path / "run", *SMALL.split()]
    done = run("train.py", "coding", *arguments, env=environment)
    assert done.returncode != 0
    assert "another rank" not in done.stderr
    assert "nonesuch" in done.stderr


def test_only_what_says_that_a_peer_has_gone_is_another_ranks():
    with pytest.raises(RunStopped, match="another rank has ended"), Ranks().listening():
        raise RuntimeError("[pair.cc:553] Connection closed by peer [127.0.0.1]:2345")
    with pytest.raises(RuntimeError, match="out of memory"), Ranks().listening():
        raise RuntimeError("CUDA out of memory")


def damage_shard(step, change):
    (shard,) = step.glob("__0_*")
    shard.write_bytes(change(shard.read_bytes()))


def change_meta(folder, **changes):
    meta = json.loads((folder / "meta.json").read_text())
    (folder / "meta.json").write_text(json.dumps(meta | changes))


DAMAGES = {
    "bytes": lambda step: damage_shard(step, lambda b: b[:999] + bytes([b[999] ^ 1]) + b[1000:]),
    "short": lambda step: damage_shard(step, lambda b: b[:-7]),
    "no shard": lambda step: next(step.glob("__0_*")).unlink(),
    "empty .metadata": lambda step: (step / ".metadata").write_bytes(b""),
    "no .metadata": lambda step: (step / ".metadata").unlink(),
    "cut meta": lambda step: os.truncate(step / "meta.json", 100),
    "no meta": lambda step: (step / "meta.json").unlink(),
    "other meta": lambda step: (step / "meta.json").write_text('{"settings": []}'),
    "odd step": lambda step: change_meta(step, step="4"),
    "odd files": lambda step: change_meta(step, files={".metadata": 5}),
    "no hashes": lambda step: change_meta(step, files=None),
    "meta is a folder": lambda step: [(step / "meta.json").unlink(), (step / "meta.json").mkdir()],
}
SAID = {
    "bytes": "its bytes have changed",
    "short": " bytes of ",
    "no shard": ".distcp: missing",
    "empty .metadata": ".metadata: 0 bytes of ",
    "no .metadata": ".metadata: missing",
    "cut meta": "meta.json: not valid JSON",
    "no meta": "meta.json: no such file",
    "other meta": "meta.json: no settings",
    "odd step": "meta.json: of step 4, a copy of another",
    "odd files": "meta.json: files without sizes and hashes",
    "no hashes": "meta.json: no hashes of the files (an earlier version made it)",
    "meta is a folder": "meta.json: is a directory",
}


@pytest.fixture(scope="module")
def two_checkpoints(tiny, data, tmp_path_factory):
    out = tmp_path_factory.mktemp("two") / "run"
    assert train(tiny, data, out, "--max-steps", "4", "--save-every", "2").returncode == 0
    assert checkpoint.completed_steps(out) == [2, 4]
    return out


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(
    two_checkpoints, tiny, data, tmp_path, damage
):
    out = shutil.copytree(two_checkpoints, tmp_path / "run")
    step = out / "checkpoints" / "step-000004"
    DAMAGES[damage](step)
    arguments = ["coding", "--model", tiny, "--data", data, "--out", out, *SMALL.split()]
    done = call("train", *arguments, "--max-steps", "4")
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if "warning" in line]
    assert line.startswith(f"warning: {step}: ")
    assert SAID[damage] in line
    assert line.endswith("; set aside, step-000002 is used")
    assert (out / "checkpoints" / "step-000004.damaged").is_dir()
    assert largest_difference(weights(out), weights(two_checkpoints)) == 0
    for path in (out / "checkpoints").glob("step-00000?"):
        DAMAGES[damage](path)
    done = call("train", *arguments, "--max-steps", "4")
    assert done.returncode == 2
    assert "no checkpoint can be used: restore one, or move" in done.stderr
    assert checkpoint.completed_steps(out) == [2, 4]  # nothing begins anew by itself


def test_a_checkpoint_from_elsewhere_is_not_used(two_checkpoints, tiny, data, tmp_path):
    out = shutil.copytree(two_checkpoints, tmp_path / "run")
    other = tmp_path / "other"
    done = train(tiny, data, other, "--max-steps", "4", "--save-every", "2", "--lr", "0.1")
    assert done.returncode == 0, done.stderr
    newest = out / "checkpoints" / "step-000004"
    for source in (out / "checkpoints" / "step-000002", other / "checkpoints" / "step-000004"):
        shutil.rmtree(newest)
        shutil.copytree(source, newest)
        arguments = ["coding", "--model", tiny, "--data", data, "--out", out, *SMALL.split()]
        done = call("train", *arguments, "--max-steps", "4")
        assert done.returncode == 0, done.stderr
        said = "a copy of another" if source.name == "step-000002" else "other settings than those"
        assert said in done.stderr
        assert largest_difference(weights(out), weights(two_checkpoints)) == 0


def test_the_cause_is_said_before_the_symptom(one_rank, tiny, data):
    """Fewer steps and another rate: the rate is the cause."""
    done = train(tiny, data, one_rank, "--epochs", "1", "--lr", "0.5")
    assert done.returncode == 2
    assert done.stderr.startswith("error: --lr=0.5: ")


def test_a_fault_is_said_by_one_rank(tiny, data, tmp_path):
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"messages": []}\n')
    done = train(tiny, broken, tmp_path / "run", ranks=2, real=True)
    assert done.returncode != 0
    assert done.stderr.count("broken.jsonl:1: messages: expected") == 1


def test_weights_that_are_not_finite_are_refused_by_name(tiny, data, tmp_path):
    folder = shutil.copytree(tiny, tmp_path / "model")
    tensors = weights(folder)
    name = "model.layers.1.mlp.up_proj.weight"
    tensors[name][0, 0] = math.nan
    save_file(tensors, folder / "model.safetensors")
    done = train(folder, data, tmp_path / "run", "--max-steps", "1")
    assert done.returncode == 2
    assert f"not finite: {name}" in done.stderr
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_run_whose_last_step_was_skipped_exports_nothing(tiny, data, tmp_path):
    # The first step makes weights of 1e38, the second one's loss is not finite.
    done = train(tiny, data, tmp_path / "run", "--max-steps", "2", "--lr", "1e38")
    assert done.returncode == 1
    assert "at the last step, 2 of 2: it changed nothing, so nothing is exported" in done.stderr
    assert not (tmp_path / "run" / "config.json").exists()
    # Of a model whose first loss is infinite no step succeeds.
    folder = shutil.copytree(tiny, tmp_path / "model")
    tensors = {name: tensor * 1e30 for name, tensor in weights(folder).items()}
    save_file(tensors, folder / "model.safetensors")
    done = train(folder, data, tmp_path / "one", "--max-steps", "1")
    assert done.returncode == 1
    assert "at the last step, 1 of 1: it changed nothing" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "one" / "config.json").exists()
    assert not checkpoint.completed_steps(tmp_path / "one")  # nothing was made


def test_each_held_out_file_has_its_loss(tiny, data, tmp_path):
    long = training_rows(1, seed=3)[0]
    long["messages"][1]["content"] = long["messages"][1]["content"].replace(
        "\n", " so" * 200 + "\n", 1
    )
    files = [
        write_rows(tmp_path / "math.jsonl", training_rows(5, seed=3)),
        write_rows(tmp_path / "coding.jsonl", [*training_rows(7, seed=4), long]),
    ]
    arguments = ["coding", "--model", tiny, "--data", data, "--out", tmp_path / "run"]
    arguments += [word for word in SMALL.split() if word != "--quiet"]
    done = call("train", *arguments, "--max-steps", 1, "--eval-data", *files)
    assert done.returncode == 0, done.stderr
    assert "held out, coding: 7 examples; 1 longer than 128 dropped" in done.stderr
    row = metrics(tmp_path / "run")[-1]
    assert {"eval_loss", "eval_loss.math", "eval_loss.coding"} <= row.keys()
    low, high = sorted((row["eval_loss.math"], row["eval_loss.coding"]))
    assert low < row["eval_loss"] < high


@pytest.mark.parametrize(
    "name", ["offsets.npy", "target_counts.npy", "ids.json", "meta.json", "tokens.bin"]
)
@pytest.mark.parametrize(
    "content", [b"", b"{}", b"x" * 3000, b"\x93NUMPY\x01\x00v\x00{'descr': (<i8', " + b" " * 200]
)
def test_a_damaged_cache_is_made_again(tiny, data, tmp_path, name, content):
    rendering = Rendering(Tokenizer(tiny), max_len=128)
    whole = build_corpus((data,), rendering, tmp_path, QUIET)
    tokens = [whole.read(i)[0].tolist() for i in range(len(whole))]
    (tmp_path / whole.key / name).write_bytes(content)
    again = build_corpus((data,), rendering, tmp_path, QUIET)
    assert [again.read(i)[0].tolist() for i in range(len(again))] == tokens
    assert (again.ids, again.meta, again.target_counts) == (
        whole.ids,
        whole.meta,
        whole.target_counts,
    )


def test_what_is_tokenised_once_is_mapped_afterwards(tiny, data, tmp_path):
    rendering = Rendering(Tokenizer(tiny), max_len=128)
    folder = tmp_path / build_corpus((data,), rendering, tmp_path, QUIET).key
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    again = build_corpus((data,), rendering, tmp_path, QUIET)
    assert folder.name == again.key
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_a_cache_holds_nothing_that_is_refused_now(tiny, data, tmp_path):
    folder = shutil.copytree(tiny, tmp_path / "model")
    build_corpus((data,), Rendering(Tokenizer(folder), 128), tmp_path, QUIET)
    generation = folder / "generation_config.json"
    ends = json.loads(generation.read_text())["eos_token_id"]
    unknown = Tokenizer(folder).special("<think>")
    generation.write_text(json.dumps({"eos_token_id": [ends, unknown]}))
    with pytest.raises(UserError, match="contains '<think>'"):
        build_corpus((data,), Rendering(Tokenizer(folder), 128), tmp_path, QUIET)


def test_what_one_rank_meets_is_no_traceback_on_the_others(tiny, data, tmp_path):
    arguments = ("--max-steps", "2")
    assert train(tiny, data, tmp_path / "run", *arguments).returncode == 0
    (tmp_path / "run" / "config.json").unlink()
    (tmp_path / "run" / "metrics.jsonl").write_text('{"step": "one"}\n')
    done = train(tiny, data, tmp_path / "run", *arguments, ranks=2)
    assert "metrics.jsonl: damaged after byte 0 (step='one')" in done.stderr
    ours = done.stderr.partition("torch/distributed/elastic")[0]  # then torchrun's own
    assert "Traceback" not in ours, ours


def test_full_disk_is_one_line_and_exit_1(tiny, data, tmp_path):
    arguments = f"--model {tiny} --data {data} --out {tmp_path / 'run'} {SMALL} --max-steps 1"
    command = f"ulimit -f 100; exec {sys.executable} {ROOT / 'train.py'} coding {arguments}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1, done.stderr
    assert done.stderr.startswith("stopped: saving")
    assert "Traceback" not in done.stderr
    assert not list((tmp_path / "run" / "checkpoints").glob("step-000001"))


def test_saving_in_the_background_changes_nothing(one_rank, tiny, data, tmp_path):
    extra = ["--epochs", "2", "--save-every", "1", "--keep", "3", "--export-every", "2"]
    done = train(tiny, data, tmp_path / "run", *extra, ranks=2)
    assert done.returncode == 0, done.stderr
    rows, others = metrics(tmp_path / "run"), metrics(one_rank)
    assert max(abs(a["loss"] - b["loss"]) for a, b in zip(rows, others, strict=True)) < 1e-5
    steps = sorted(p.name for p in (tmp_path / "run" / "checkpoints").iterdir())
    assert steps == [f"step-{len(rows) - i:06d}" for i in (2, 1, 0)]
    # What was written beside the training of the next step is the state of its own step.
    shutil.copytree(tmp_path / "run", tmp_path / "back")
    for name in steps[1:]:
        shutil.rmtree(tmp_path / "back" / "checkpoints" / name)
    again = train(tiny, data, tmp_path / "back", *extra, ranks=2)
    assert again.returncode == 0, again.stderr
    assert [r["loss"] for r in metrics(tmp_path / "back")] == [r["loss"] for r in rows]
    assert largest_difference(weights(tmp_path / "back"), weights(tmp_path / "run")) == 0
    exported = sorted(p.name for p in (tmp_path / "run" / "exports").iterdir())
    assert exported == [f"step-{step:06d}" for step in range(2, len(rows), 2)]
    assert Qwen2.from_pretrained(tmp_path / "run" / "exports" / exported[0])


def test_kill_9_and_resume_at_another_world_size(one_rank, tiny, data, tmp_path):
    out = tmp_path / "run"
    arguments = ["--model", tiny, "--data", data, "--out", out, *SMALL.split()]
    arguments += ["--epochs", "2", "--save-every", "1"]
    command = [sys.executable, ROOT / "train.py", "coding", *arguments]
    process = subprocess.Popen([str(part) for part in command], start_new_session=True)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not list(out.glob("checkpoints/step-*/meta.json")):
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    done = train(tiny, data, out, "--epochs", "2", "--save-every", "1", ranks=2)
    assert done.returncode == 0, done.stderr
    rows, others = metrics(out), metrics(one_rank)
    assert max(abs(a["loss"] - b["loss"]) for a, b in zip(rows, others, strict=True)) < 1e-5
    assert not list(out.rglob("*.partial"))


def test_two_runs_into_one_place(tiny, data, tmp_path):
    with owned(tmp_path / "run"):
        done = train(tiny, data, tmp_path / "run", "--max-steps", "1")
    assert done.returncode == 2
    assert "another process is writing" in done.stderr


def test_preview_shows_targets(tiny, data, tmp_path):
    done = run(
        "train.py", "coding", "--model", tiny, "--data", data, "--preview",
        "--seq-len", "128", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert ">><think>" in done.stdout
    assert "<｜end▁of▁sentence｜><<" in done.stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("packing", ["naive", "none"])
@pytest.mark.parametrize("checkpointing", ["full", "selective"])
def test_other_packings_and_checkpointing(tiny, data, tmp_path, packing, checkpointing):
    plain = ["--packing", packing, "--epochs", "1", "--max-steps", "2"]
    assert train(tiny, data, tmp_path / "plain", *plain).returncode == 0
    extra = ["--activation-checkpointing", checkpointing, "--export-dtype", "bf16"]
    done = train(tiny, data, tmp_path / "run", *plain, *extra)
    assert done.returncode == 0, done.stderr
    assert Checkpoint(tmp_path / "run").specs["model.norm.weight"].dtype == torch.bfloat16
    pairs = zip(metrics(tmp_path / "plain"), metrics(tmp_path / "run"), strict=True)
    assert all(abs(a["loss"] - b["loss"]) < 1e-6 for a, b in pairs)  # recomputed, not changed


def test_untied_model_on_one_and_two_ranks(data, tmp_path):
    """Embedding and head are FSDP units of their own; an odd vocabulary is cut unevenly."""
    model = make_checkpoint(tmp_path / "untied", tied=False)
    assert Checkpoint(model).specs["lm_head.weight"].shape[0] % 2 == 1
    for ranks in (1, 2):
        done = train(model, data, tmp_path / str(ranks), "--max-steps", "3", ranks=ranks)
        assert done.returncode == 0, done.stderr
    pairs = zip(metrics(tmp_path / "1"), metrics(tmp_path / "2"), strict=True)
    assert all(abs(a["loss"] - b["loss"]) < 1e-5 for a, b in pairs)
    assert largest_difference(weights(tmp_path / "1"), weights(tmp_path / "2")) < 1e-4


@pytest.mark.parametrize("tied", [True, False])
def test_bf16_compute_stays_near_fp32_with_fp32_master_weights(data, tmp_path, tied):
    model = make_checkpoint(tmp_path / "model", tied=tied)
    extra = ["--max-steps", "2", "--loss-weighting", "sequence", "--export-dtype", "fp32"]
    for dtype in ("fp32", "bf16"):
        done = train(model, data, tmp_path / dtype, *extra, "--dtype", dtype)
        assert done.returncode == 0, done.stderr
    low, full = metrics(tmp_path / "bf16")[0], metrics(tmp_path / "fp32")[0]
    assert low["loss"] == pytest.approx(full["loss"], rel=0.005)  # 8 bits of mantissa, averaged
    assert low["loss"] != full["loss"]
    trained = weights(tmp_path / "bf16")["model.layers.0.mlp.up_proj.weight"]
    assert not torch.equal(trained, trained.bfloat16().float())  # the master has more bits


def test_predicted_operations_are_those_that_torch_counts(tiny, data, tmp_path):
    """torch counts attention without its causal mask, so twice ours; the rest to the operation."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    plan = plan_of(tiny, data, tmp_path)
    packs = plan.packs(1)
    model = Qwen2.from_pretrained(tiny)
    (batch,) = plan_of(tiny, data, tmp_path, micro_batch_size=9).batches(packs, Ranks())
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        forward(model, batch, torch.device("cpu"))
    lengths = [plan.corpus.lengths[d] for p in packs for d in p.documents]
    targets = len(batch.targets)
    flops = plan.flops
    unmasked = dataclasses.replace(flops, per_square=2 * flops.per_square)
    # The loss computes the head's gradient beside it: two more products with its weight.
    head = flops.per_target * targets
    forward_only = (unmasked.of_sequences(lengths, targets) - head) / 3
    assert counter.get_total_flops() - head == pytest.approx(forward_only, rel=1e-6)


def test_packs_are_dealt_so_that_ranks_finish_together(tiny, data, tmp_path):
    plan = plan_of(tiny, data, tmp_path, micro_batch_size=2)
    packs = [p for step in (1, 2, 3) for p in plan.packs(step)]
    dealt = plan.deal(packs, 2)
    assert sorted(p for hands in dealt for hand in hands for p in hand) == sorted(packs)
    assert all(len(hand) <= 2 for hands in dealt for hand in hands)
    assert len(dealt) == -(-len(packs) // 4)

    assert plan.deal(packs, 2) == dealt
    assert plan.deal(packs[:1], 2) == [[packs[:1], []]]


def test_dealing_by_cost_leaves_ranks_little_to_wait_for():
    """Eight ranks, 96 packs a step, lengths as reasoning data have them, a 32B model's costs."""
    rng = random.Random(0)
    lengths = [min(16384, max(200, int(rng.lognormvariate(8.2, 0.8)))) for _ in range(3000)]
    corpus = SimpleNamespace(lengths=lengths, target_counts=[n * 9 // 10 for n in lengths])
    config = TrainConfig(seq_len=16384, batch_size=96)
    flops = TrainingFlops(per_token=6 * 31e9, per_target=6 * 0.78e9, per_square=6 * 64 * 5120)
    plan = Plan(corpus, config, flops)

    def waiting(micro_steps):
        costs = [[sum(map(plan.pack_flops, hand)) for hand in hands] for hands in micro_steps]
        return 1 - sum(map(sum, costs)) / sum(8 * max(c) for c in costs)

    packs = plan.packs(1)
    as_they_come = [[[p] for p in packs[i : i + 8]] for i in range(0, 96, 8)]
    assert waiting(plan.deal(packs, 8)) < 0.01 < 0.02 < waiting(as_they_come)


def test_peak_of_known_cards():
    assert peak_tflops("NVIDIA H800") == peak_tflops("NVIDIA H100 80GB HBM3") == 989
    assert peak_tflops("NVIDIA H100 PCIe") == 756
    assert peak_tflops("NVIDIA H100 NVL") == peak_tflops("NVIDIA H200 NVL") == 835
    assert peak_tflops("some other card") is None


def test_held_out_loss(tiny, data, tmp_path):
    held_out = write_rows(tmp_path / "held.jsonl", training_rows(7, seed=5))
    extra = ["--epochs", "1", "--eval-data", held_out, "--eval-every", "2"]
    done = train(tiny, data, tmp_path / "one", *extra)
    assert done.returncode == 0, done.stderr
    two = train(tiny, data, tmp_path / "two", *extra, ranks=2)
    assert two.returncode == 0, two.stderr
    rows, others = metrics(tmp_path / "one"), metrics(tmp_path / "two")
    evaluated = [row["step"] for row in rows if "eval_loss" in row]
    assert evaluated == sorted({*range(2, len(rows) + 1, 2), len(rows)})
    for a, b in zip(rows, others, strict=True):
        assert a.get("eval_loss", 0) == pytest.approx(b.get("eval_loss", 0), rel=1e-5)
    # The finished model, document by document.
    model = Qwen2.from_pretrained(tmp_path / "one")
    total, count = 0.0, 0
    rendering = Rendering(Tokenizer(tiny), max_len=128)
    corpus = build_corpus((held_out,), rendering, tmp_path, Log(quiet=True))
    for i in range(len(corpus)):
        tokens, is_target = (torch.as_tensor(np.array(part)) for part in corpus.read(i))
        logits = model(tokens[None].long()).detach()[0, :-1]
        losses = torch.nn.functional.cross_entropy(logits, tokens[1:].long(), reduction="none")
        total += float(losses[is_target[1:]].sum())
        count += int(is_target[1:].sum())
    assert rows[-1]["eval_loss"] == pytest.approx(total / count, rel=1e-4)


@pytest.mark.parametrize(
    "option", [["--replicate", "2"], ["--cpu-offload"], ["--offload-checkpoints"]]
)
def test_other_ways_to_shard_train_the_same(one_rank, tiny, data, tmp_path, option):
    done = train(tiny, data, tmp_path / "run", "--epochs", "2", *option, ranks=2)
    assert done.returncode == 0, done.stderr
    pairs = list(zip(metrics(one_rank), metrics(tmp_path / "run"), strict=True))
    assert max(abs(a["loss"] - b["loss"]) for a, b in pairs) < 1e-5
    assert largest_difference(weights(one_rank), weights(tmp_path / "run")) < 1e-4


def test_worlds_that_cannot_share_the_work_are_refused(tiny, data, tmp_path):
    done = train(tiny, data, tmp_path / "run", "--replicate", "2")
    assert done.returncode == 2
    assert "--replicate=2: does not divide 1 ranks" in done.stderr
    done = train(tiny, data, tmp_path / "run", "--batch-size", "1", ranks=2)
    assert done.returncode != 0  # torchrun's own
    assert "--batch-size=1: leaves some of 2 ranks without any work" in done.stderr
    options = ["--offload-checkpoints", "--activation-checkpointing", "none"]
    done = train(tiny, data, tmp_path / "run", *options)
    assert done.returncode == 2
    assert "--offload-checkpoints: needs --activation-checkpointing full" in done.stderr


def test_an_end_of_answer_that_stops_nothing_is_warned_of(tiny, data, tmp_path):
    model = shutil.copytree(tiny, tmp_path / "model")
    config = json.loads((model / "tokenizer_config.json").read_text())
    (model / "tokenizer_config.json").write_text(json.dumps(config | {"eos_token": None}))
    (model / "generation_config.json").write_text("{}")
    prepare(TrainConfig(model=model, data=(data,), cache_dir=tmp_path / "c"), said := Said())
    assert "names as a stop" in said.lines[0]


def test_an_evaluation_and_an_export_in_a_step_without_a_checkpoint(tiny, data, tmp_path):
    out = tmp_path / "run"
    more = ["--eval-data", data, "--eval-every", 2, "--export-every", 2, "--save-every", 100]
    done = train(tiny, data, out, "--max-steps", 3, *more)
    assert done.returncode == 0, done.stderr
    assert (out / "exports" / "step-000002" / "config.json").exists()


def test_a_plain_messages_file_and_a_chatml_model_in_one_attempt(tiny, tmp_path):
    """Nothing but messages, no thoughts; a Qwen2.5-like base, whose tokenizer ends elsewhere."""
    folder = shutil.copytree(tiny, tmp_path / "model")
    text = (folder / "tokenizer.json").read_text()
    for ours, theirs in (("<｜User｜>", "<|im_start|>"), ("<｜Assistant｜>", "<|im_end|>")):
        text = text.replace(ours, theirs)
    (folder / "tokenizer.json").write_text(text)
    template = "{{ '<|im_start|>system\\nBe kind.<|im_end|>\\n' }}{{ messages }}"
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": template}))
    talk = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]
    data = write_rows(tmp_path / "mine.jsonl", [{"messages": talk}] * 20)
    arguments = ["own", "--model", folder, "--data", data, "--seq-len", 64, "--max-steps", 2]
    done = call("train", *arguments, "--preview")
    assert done.returncode == 0, done.stderr
    assert "Be kind." in done.stdout
    done = call("train", *arguments, "--out", tmp_path / "out", "--quiet")
    assert done.returncode == 0, done.stderr
    stops = json.loads((tmp_path / "out" / "generation_config.json").read_text())["eos_token_id"]
    assert Tokenizer(folder).special("<|im_end|>") in stops
    done = run("-m", "tinyr1.check", tmp_path / "out")
    assert done.returncode == 0, done.stderr + done.stdout
    assert json.loads((tmp_path / "out" / "train_config.json").read_text())["recipe"] == "own"


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"conversations": []}, "(it has conversations); python -m tinyr1.data science"),
        ({"instruction": "a", "output": "b"}, "(it has instruction); python -m tinyr1.data"),
        ({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a",
          "reasoning_content": "t"}]}, "a thought in reasoning_content; python -m tinyr1.data"),
        ({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
         "--no-require-think takes answers without thoughts"),
    ],
)  # fmt: skip
def test_other_forms_are_refused_with_the_command_that_converts_them(tiny, tmp_path, row, said):
    data = write_rows(tmp_path / "mine.jsonl", [row])
    done = call("train", "math", "--model", tiny, "--data", data, "--out", tmp_path / "out")
    assert done.returncode == 2
    assert f"{data}:1: messages" in done.stderr or f"{data}:1: assistant" in done.stderr
    assert said in done.stderr


def test_files_of_other_kinds(tiny, data, tmp_path):
    """JSON arrays and packed lines are read; tables and GGUF are refused with what to do."""
    rows = training_rows(8)
    array = tmp_path / "a.json"
    array.write_text(json.dumps(rows))
    packed = tmp_path / "a.jsonl.gz"
    packed.write_bytes(gzip.compress("".join(json.dumps(r) + "\n" for r in rows).encode()))
    common = ["--out", tmp_path / "out", *SMALL.split(), "--max-steps", 1]
    lines = []
    for file in (array, packed):
        done = call("train", "coding", "--model", tiny, "--data", file, *common[2:],
                    "--dry-run", "--world-size", 1)  # fmt: skip
        lines.append(next(x for x in done.stdout.splitlines() if x.startswith("data: ")))
    assert lines[0] == lines[1]
    table = tmp_path / "a.parquet"
    table.write_bytes(b"PAR1")
    done = call("train", "coding", "--model", tiny, "--data", table, *common)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "a.parquet: no JSON lines; python -m tinyr1.data" in done.stderr
    (tmp_path / "q4.gguf").write_bytes(b"GGUF")
    for model in (tmp_path / "q4.gguf", tmp_path):
        done = call("train", "coding", "--model", model, "--data", data, *common)
        assert done.returncode == 2
        assert "GGUF is not read" in done.stderr
    done = call("train", "--model", tiny, "--data", data, *common)
    assert done.returncode == 2
    assert "RECIPE: required, one of coding, math, math_released," in done.stderr


def test_moments_stay_in_their_type_after_a_resume(tiny, data, tmp_path):
    """torch casts what it loads to the parameters' type, at twice the memory."""
    out = tmp_path / "run"
    arguments = ("--optim-dtype", "bf16", "--save-every", "1", "--keep", "9")
    assert train(tiny, data, out, "--max-steps", "2", *arguments).returncode == 0
    assert train(tiny, data, out, "--max-steps", "4", *arguments).returncode == 0
    sizes = [
        sum(path.stat().st_size for path in (out / "checkpoints" / f"step-{step:06d}").glob("__*"))
        for step in (2, 4)
    ]
    assert sizes[0] == pytest.approx(sizes[1], rel=0.02)


def test_a_disk_that_a_torn_checkpoint_fills_is_not_full(tiny, tmp_path, monkeypatch):
    config = TrainConfig(model=tiny, keep=1)
    model = Qwen2Config.from_pretrained(tiny)
    torn = tmp_path / "checkpoints" / "step-000004.partial"
    torn.mkdir(parents=True)
    needed = space.state_bytes(model, config) + 2 * parameter_count(model)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(space.shutil, "disk_usage", lambda _: usage._replace(free=needed - 1000))
    with pytest.raises(UserError, match=r"MB are free there; a checkpoint takes \d"):
        space.check_disk(model, config, tmp_path, QUIET)
    (torn / "__0_0.distcp").write_bytes(b"x" * 1000)
    space.check_disk(model, config, tmp_path, QUIET)


def test_the_export_stops_where_answers_end(tiny, data, tmp_path):
    """Whatever the tokenizer says: `generate` reads the generation config alone."""
    for number, content in enumerate((None, '{"eos_token_id": null}', '{"eos_token_id": 150}')):
        folder = shutil.copytree(tiny, tmp_path / f"model{number}")
        (folder / "generation_config.json").unlink(missing_ok=True)
        if content:
            (folder / "generation_config.json").write_text(content)
        out = tmp_path / f"out{number}"
        assert train(folder, data, out, "--max-steps", "1").returncode == 0
        stops = json.loads((out / "generation_config.json").read_text())["eos_token_id"]
        end = Tokenizer(tiny).special("<｜end▁of▁sentence｜>")
        assert stops == ([150, end] if number == 2 else [end])


def test_the_state_before_a_last_step_that_was_skipped_is_saved(tiny, data, tmp_path):
    out = tmp_path / "run"
    done = train(tiny, data, out, "--max-steps", "2", "--lr", "1e38")
    assert done.returncode == 1
    assert checkpoint.completed_steps(out) == [1]


def test_marks_of_the_template_in_a_system_message_are_refused(tiny, data):
    arguments = ["coding", "--model", tiny, "--data", data, *SMALL.split(), "--preview"]
    for text, said in (("Be <｜User｜> nice", "the system message contains"), (" ", "blank")):
        done = call("train", *arguments, "--system", text)
        assert done.returncode == 2
        assert said in done.stderr
    done = call("train", *arguments, "--eval-data", data, data)
    assert "given twice" in done.stderr


def test_plans_and_usage_are_printed_by_one_rank(tiny, data, tmp_path):
    done = train(tiny, data, tmp_path / "run", "--preview", ranks=2, real=True)
    assert done.stdout.count("== pack 0") == 1
    done = train(tiny, data, tmp_path / "run", "--nonsense", ranks=2, real=True)
    assert done.stderr.count("--nonsense") == 1


def test_a_system_message_of_ones_own(tiny, data, tmp_path):
    arguments = ["coding", "--model", tiny, "--data", data, *SMALL.split(), "--preview"]
    assert "Be brief." not in call("train", *arguments).stdout
    assert "Be brief." in call("train", *arguments, "--system", "Be brief.").stdout
