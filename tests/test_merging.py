"""Merging checkpoints: faults first, the same bits on every way to the result, resumable."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from conftest import ROOT, make_checkpoint, run
from safetensors.torch import load_file, save_file

from tinyr1 import merging
from tinyr1.diff import diff_tensors
from tinyr1.errors import UserError
from tinyr1.files import owned
from tinyr1.fusion import arcee_fusion
from tinyr1.log import Log
from tinyr1.merging import MergeConfig, run_merge
from tinyr1.weights import Checkpoint


@pytest.fixture(scope="module")
def experts(tmp_path_factory):
    """Three models near one another, as experts of one initial model are."""
    folder = tmp_path_factory.mktemp("experts")
    paths = {}
    base = None
    for i, name in enumerate(("base", "math", "science", "coding")):
        paths[name] = make_checkpoint(folder / name, seed=0)
        tensors = load_file(paths[name] / "model.safetensors")
        base = base or {k: v.clone() for k, v in tensors.items()}
        generator = torch.Generator().manual_seed(i)
        for key in tensors:
            noise = torch.randn(tensors[key].shape, generator=generator)
            tensors[key] = base[key] + (1e-2 * noise if i else 0)
        save_file(tensors, paths[name] / "model.safetensors")
    return paths


def merge(*arguments, **options):
    return run("merge.py", *arguments, **options)


def tensors_of(folder):
    checkpoint = Checkpoint(folder)
    return {name: checkpoint.tensor(name).clone() for name in checkpoint.specs}


def file_hashes(folder):
    return {
        p.name: hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.iterdir())
        if p.is_file()
    }


def test_merge_equals_fusion_of_each_tensor(experts, tmp_path):
    done = merge(experts["science"], experts["math"], tmp_path / "out")
    assert done.returncode == 0, done.stderr
    left, right = tensors_of(experts["science"]), tensors_of(experts["math"])
    merged = tensors_of(tmp_path / "out")
    report = json.loads((tmp_path / "out" / "merge_report.json").read_text())
    assert merged.keys() == left.keys() == report["tensors"].keys()
    for name, tensor in merged.items():
        assert torch.equal(tensor, arcee_fusion(left[name], right[name]))
        entry = report["tensors"][name]
        assert entry["sha256"] == hashlib.sha256(tensor.numpy().tobytes()).hexdigest()
        taken = float(((tensor == right[name]) & (left[name] != right[name])).float().mean())
        assert entry["share_taken"] == pytest.approx(taken)
    shares = [entry["share_taken"] for entry in report["tensors"].values()]
    assert 0.02 < sum(shares) / len(shares) < 0.3
    assert (tmp_path / "out" / "tokenizer.json").exists()
    assert not (tmp_path / "out.partial").exists()
    assert str(tmp_path) not in json.dumps(report)  # the same report wherever it is made


def test_then_equals_two_merges_through_disk(experts, tmp_path):
    one_pass = [experts["science"], experts["math"], tmp_path / "a", "--then", experts["coding"]]
    assert merge(*one_pass).returncode == 0
    assert merge(experts["science"], experts["math"], tmp_path / "mid").returncode == 0
    assert merge(experts["coding"], tmp_path / "mid", tmp_path / "b").returncode == 0
    a, b = tensors_of(tmp_path / "a"), tensors_of(tmp_path / "b")
    assert all(torch.equal(a[name], b[name]) for name in a)
    entry = next(
        iter(json.loads((tmp_path / "a" / "merge_report.json").read_text())["tensors"].values())
    )
    assert len(entry["steps"]) == 2


def test_then_rounds_the_intermediate_as_disk_would(experts, tmp_path):
    low = tmp_path / "low"
    shutil.copytree(experts["science"], low)
    tensors = {k: v.bfloat16() for k, v in load_file(low / "model.safetensors").items()}
    save_file(tensors, low / "model.safetensors")
    args = [low, experts["math"], tmp_path / "a", "--then", experts["coding"]]
    assert merge(*args).returncode == 0
    assert merge(low, experts["math"], tmp_path / "mid").returncode == 0
    assert merge(experts["coding"], tmp_path / "mid", tmp_path / "b").returncode == 0
    a, b = tensors_of(tmp_path / "a"), tensors_of(tmp_path / "b")
    assert all(torch.equal(a[n], b[n]) and a[n].dtype == torch.float32 for n in a)
    assert tensors_of(tmp_path / "mid")["model.norm.weight"].dtype == torch.bfloat16


@pytest.mark.parametrize("arithmetic", ["mergekit", "paper"])
def test_other_arithmetics_through_the_command_line(experts, tmp_path, arithmetic):
    args = [experts["science"], experts["math"], tmp_path / "out", "--arithmetic", arithmetic]
    done = merge(*args)
    assert done.returncode == 0, done.stderr
    left, right = tensors_of(experts["science"]), tensors_of(experts["math"])
    for name, tensor in tensors_of(tmp_path / "out").items():
        assert torch.equal(tensor, arcee_fusion(left[name], right[name], arithmetic=arithmetic))
    report = json.loads((tmp_path / "out" / "merge_report.json").read_text())
    assert report["merge"]["arithmetic"] == arithmetic


def test_rerun_is_bit_identical_and_a_finished_merge_is_not_overwritten(experts, tmp_path):
    for name in ("a", "b"):
        assert merge(experts["science"], experts["math"], tmp_path / name).returncode == 0
    assert file_hashes(tmp_path / "a") == file_hashes(tmp_path / "b")
    again = merge(experts["science"], experts["math"], tmp_path / "a")
    assert again.returncode == 2
    assert "not empty" in again.stderr


@pytest.mark.parametrize("count", [1, 7])
def test_killed_merge_continues_to_the_same_bits(experts, tmp_path, monkeypatch, count):
    def config(out):
        return MergeConfig(
            (experts["science"], experts["math"], tmp_path / out), shard_size=6e-5, quiet=True
        )

    run_merge(config("whole"), Log(quiet=True))
    monkeypatch.setattr(merging, "SYNC_BYTES", 1)
    original, calls = merging.merge_tensor, []

    def dies(merge, name):
        calls.append(name)
        if len(calls) == count + 1:
            raise KeyboardInterrupt
        return original(merge, name)

    monkeypatch.setattr(merging, "merge_tensor", dies)
    with pytest.raises(KeyboardInterrupt):
        run_merge(config("out"), Log(quiet=True))
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(merging, "merge_tensor", original)
    seen = []
    monkeypatch.setattr(merging, "merge_tensor", lambda m, n: seen.append(n) or original(m, n))
    run_merge(config("out"), Log(quiet=True))
    assert not set(seen) & set(calls[:count])  # what was done is not done again
    assert file_hashes(tmp_path / "out") == file_hashes(tmp_path / "whole")
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 1


@pytest.mark.parametrize("moment", ["copy_side_files", "write_json", "fsync_directory"])
def test_a_merge_that_died_while_finishing_continues_to_the_same_bits(
    experts, tmp_path, monkeypatch, moment
):
    """The shards have their names by then, the directory has not."""

    def config(out):
        return MergeConfig((experts["science"], experts["math"], tmp_path / out), quiet=True)

    run_merge(config("whole"), Log(quiet=True))
    monkeypatch.setattr(merging, "SYNC_BYTES", 1)
    original = getattr(merging, moment)

    def dies(*arguments):
        if moment != "write_json" or arguments[0].name == "merge_report.json":
            raise OSError(28, "No space left on device")
        original(*arguments)

    monkeypatch.setattr(merging, moment, dies)
    with pytest.raises(OSError, match="No space"):
        run_merge(config("out"), Log(quiet=True))
    monkeypatch.setattr(merging, moment, original)
    if moment != "fsync_directory":
        run_merge(config("out"), Log(quiet=True))
    assert file_hashes(tmp_path / "out") == file_hashes(tmp_path / "whole")


def test_a_shard_that_vanished_is_merged_again(experts, tmp_path, monkeypatch):
    def config(out):
        return MergeConfig(
            (experts["science"], experts["math"], tmp_path / out), shard_size=6e-5, quiet=True
        )

    run_merge(config("whole"), Log(quiet=True))
    monkeypatch.setattr(merging, "SYNC_BYTES", 1)
    original = merging.copy_side_files
    monkeypatch.setattr(merging, "copy_side_files", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run_merge(config("out"), Log(quiet=True))
    sorted((tmp_path / "out.partial").glob("*.safetensors"))[0].unlink()
    monkeypatch.setattr(merging, "copy_side_files", original)
    run_merge(config("out"), Log(quiet=True))
    assert file_hashes(tmp_path / "out") == file_hashes(tmp_path / "whole")


def test_two_merges_into_one_place(experts, tmp_path):
    with owned(tmp_path / "out.partial"):
        done = merge(experts["science"], experts["math"], tmp_path / "out")
    assert done.returncode == 2
    assert "another process is writing" in done.stderr


def test_kill_9_at_a_random_moment(experts, tmp_path):
    command = [sys.executable, ROOT / "merge.py", experts["science"], experts["math"]]
    command += [tmp_path / "out", "--quiet"]
    process = subprocess.Popen([str(c) for c in command], start_new_session=True)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (tmp_path / "out.partial").exists():
        time.sleep(0.001)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert merge(experts["science"], experts["math"], tmp_path / "out").returncode == 0
    assert merge(experts["science"], experts["math"], tmp_path / "whole").returncode == 0
    assert file_hashes(tmp_path / "out") == file_hashes(tmp_path / "whole")


def test_unfinished_merge_of_other_inputs_is_refused(experts, tmp_path):
    partial = tmp_path / "out.partial"
    partial.mkdir()
    (partial / "merge_state.json").write_text("{}")
    done = merge(experts["science"], experts["math"], tmp_path / "out")
    assert done.returncode == 2
    assert "unfinished merge of other inputs" in done.stderr


def test_linear_and_task_arithmetic(experts, tmp_path):
    names = ("math", "science", "coding")
    models = [experts[n] for n in names]
    parts = [tensors_of(m) for m in models]
    base = tensors_of(experts["base"])
    assert merge(*models, tmp_path / "mean", "--method", "linear").returncode == 0
    weighted = ["--method", "linear", "--weights", "0.5", "0.3", "0.4", "--no-normalize"]
    assert merge(*models, tmp_path / "sum", *weighted).returncode == 0
    arithmetic = ["--method", "task_arithmetic", "--base", experts["base"], "--lam", "0.7"]
    assert merge(*models, tmp_path / "task", *arithmetic).returncode == 0
    for name in base:
        stack = torch.stack([p[name].double() for p in parts])
        expected = {
            "mean": stack.mean(0),
            "sum": (stack * torch.tensor([0.5, 0.3, 0.4]).view(3, *[1] * base[name].ndim)).sum(0),
            "task": base[name] + 0.7 * (stack - base[name].double()).sum(0),
        }
        for folder, tensor in expected.items():
            difference = tensors_of(tmp_path / folder)[name].double() - tensor
            assert difference.abs().max() < 1e-6, (folder, name)


@pytest.mark.parametrize(
    "options",
    [
        "--method ties --base {base} --density 0.3",
        "--method della --base {base} --density 0.5 --epsilon 0.2 --seed 3",
        "--method slerp --t 0.25",
        "--method nuslerp --base {base} --weights 0.6 0.2",
    ],
)
def test_other_methods_through_the_command_line(experts, tmp_path, options):
    arguments = options.format(**experts).split()
    for out in ("a", "b"):
        done = merge(experts["math"], experts["science"], tmp_path / out, *arguments)
        assert done.returncode == 0, done.stderr
    a, left = tensors_of(tmp_path / "a"), tensors_of(experts["math"])
    assert file_hashes(tmp_path / "a") == file_hashes(tmp_path / "b")
    assert all(not torch.equal(a[name], left[name]) for name in a)


def test_density_that_della_cannot_keep_is_refused(experts, tmp_path):
    done = merge(
        experts["math"], experts["science"], tmp_path / "out",
        "--method", "della", "--base", experts["base"], "--density", "0.1",
    )  # fmt: skip
    assert done.returncode == 2
    assert "density 0.1 -+ epsilon 0.15" in done.stderr


def test_all_faults_are_listed_at_once(experts, tmp_path):
    bad = tmp_path / "bad"
    shutil.copytree(experts["math"], bad)
    tensors = load_file(bad / "model.safetensors")
    del tensors["model.norm.weight"]
    tensors["model.embed_tokens.weight"] = torch.zeros(5, 48)
    tensors["extra"] = torch.zeros(1)
    save_file(tensors, bad / "model.safetensors")
    config = json.loads((bad / "config.json").read_text())
    (bad / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    done = merge(experts["science"], bad, tmp_path / "out")
    assert done.returncode == 2
    for fault in ("model.norm.weight: missing", "shape [5, 48]", "extra: not in", "tie_word_emb"):
        assert fault in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("{math} {out}", "1 models given"),
        ("{math} {science} {coding} {out}", "3 models given"),
        ("{math} {science} {out} --base {base}", "--base: has no meaning"),
        ("{math} {out} --method task_arithmetic", "--base: is required"),
        ("{math} {science} {out} --method linear --weights 1", "--weights: 1 given for 2"),
        ("{math} {science} {out} --method linear --weights 1 -1", "sum to 0"),
        ("{math} {science} {out} --weights 1 1", "--weights: has no meaning"),
        ("{math} {science} {out} --method linear --normalize --no-normalize", "choose one"),
        ("{math} {science} {out} --method dare_ties --base {base} --density 2", "--density=2.0"),
        ("{math} {science} {out} --method linear --arithmetic paper", "--arithmetic: has no"),
        ("{math} {science} {out} --method linear --then {coding}", "--then"),
        ("{math} {science} {math}/out", "lies in the input"),
        ("{math} {science} {math}", "lies in the input"),
        ("{math} nowhere {out}", "nowhere: no such directory"),
    ],
)
def test_bad_arguments(experts, tmp_path, arguments, message):
    filled = arguments.format(**experts, out=tmp_path / "out").split()
    done = merge(*filled)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_nan_is_refused_by_tensor_name_or_copied_from_left(experts, tmp_path):
    bad = tmp_path / "bad"
    shutil.copytree(experts["math"], bad)
    tensors = load_file(bad / "model.safetensors")
    tensors["model.norm.weight"][3] = float("nan")
    save_file(tensors, bad / "model.safetensors")
    config = MergeConfig((experts["science"], bad, tmp_path / "out"))
    with pytest.raises(UserError, match=r"model.norm.weight: NaN or infinity"):
        run_merge(config, Log(quiet=True))
    done = merge(experts["science"], bad, tmp_path / "kept", "--allow-nonfinite")
    assert done.returncode == 0, done.stderr
    left = tensors_of(experts["science"])["model.norm.weight"]
    assert torch.equal(tensors_of(tmp_path / "kept")["model.norm.weight"], left)
    report = json.loads((tmp_path / "kept" / "merge_report.json").read_text())
    assert report["tensors"]["model.norm.weight"]["flags"] == ["nonfinite_input"]


def test_diff_by_hand(tmp_path):
    a, b = torch.tensor([3.0, 4.0, 0.0, 0.0]), torch.tensor([3.0, 4.0, 0.0, 12.0])
    d = diff_tensors(a, b)
    assert (d.share_changed, d.relative_norm, d.largest) == (0.25, 12 / 5, 12)
    assert d.cosine == pytest.approx(5 / 13)
    assert diff_tensors(a, a) == (0, 0, pytest.approx(1), 0)
    assert diff_tensors(a[:0], a[:0]).cosine == 1
    assert diff_tensors(a * 0, a * 0).relative_norm == 0
    assert diff_tensors(a * 0, a).relative_norm == float("inf")


def test_diff_through_the_command_line(experts):
    done = merge("--diff", experts["base"], experts["math"])
    assert done.returncode == 0, done.stderr
    lines = done.stdout.strip().splitlines()
    assert len(lines) == 2 + len(Checkpoint(experts["base"]).specs)
    assert any("layers.0.mlp.up_proj.weight | 100.00 |" in line for line in lines)
    assert merge("--diff", experts["base"]).returncode == 2


def test_dry_run_writes_nothing(experts, tmp_path):
    done = merge(experts["science"], experts["math"], tmp_path / "out", "--dry-run")
    assert done.returncode == 0
    assert "method: arcee_fusion" in done.stdout
    assert not list(tmp_path.iterdir())


def test_identical_models_collapse_and_say_so(experts, tmp_path):
    near = tmp_path / "near"
    shutil.copytree(experts["math"], near)
    tensors = load_file(near / "model.safetensors")
    tensors["model.norm.weight"][0] += 0.5
    save_file(tensors, near / "model.safetensors")
    assert merge(experts["math"], near, tmp_path / "out").returncode == 0
    report = json.loads((tmp_path / "out" / "merge_report.json").read_text())["tensors"]
    assert report["model.norm.weight"]["flags"] == ["threshold_collapsed"]
    others = [e for n, e in report.items() if n != "model.norm.weight"]
    assert all(e["flags"] == [] and e["share_changed"] == 0 for e in others)
    assert torch.equal(
        tensors_of(tmp_path / "out")["model.norm.weight"], tensors["model.norm.weight"]
    )
