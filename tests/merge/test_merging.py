"""Merging checkpoints: faults first, the same bits on every way to the result, resumable."""

import hashlib
import json
import math
import operator
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from conftest import ROOT, call, make_checkpoint, run
from safetensors.torch import load_file, save_file

from tinyr1.common.by_name import ByName
from tinyr1.common.config import parse
from tinyr1.common.errors import UserError
from tinyr1.common.files import owned
from tinyr1.common.log import Log
from tinyr1.merge import run as merging
from tinyr1.merge.configs import config_differences
from tinyr1.merge.diff import diff_rows
from tinyr1.merge.fusion import arcee_fusion
from tinyr1.merge.methods import METHODS, MergeParams
from tinyr1.merge.options import MergeConfig
from tinyr1.merge.run import run_merge
from tinyr1.model import places
from tinyr1.model.weights import Checkpoint


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


QUIET = Log(quiet=True)


def merge(*arguments, **options):
    """The command as a user types it."""
    return run("merge.py", *arguments, **options)


def merged(*arguments):
    """The same in this process, which is faster; raises what the command would print."""
    run_merge(parse(MergeConfig, [str(argument) for argument in arguments]), QUIET)


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
    merged(*one_pass)
    merged(experts["science"], experts["math"], tmp_path / "mid")
    merged(experts["coding"], tmp_path / "mid", tmp_path / "b")
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
    merged(*args)
    merged(low, experts["math"], tmp_path / "mid")
    merged(experts["coding"], tmp_path / "mid", tmp_path / "b")
    a, b = tensors_of(tmp_path / "a"), tensors_of(tmp_path / "b")
    assert all(torch.equal(a[n], b[n]) and a[n].dtype == torch.float32 for n in a)
    assert tensors_of(tmp_path / "mid")["model.norm.weight"].dtype == torch.bfloat16


@pytest.mark.parametrize("arithmetic", ["mergekit", "paper"])
def test_other_arithmetics_through_the_command_line(experts, tmp_path, arithmetic):
    args = [experts["science"], experts["math"], tmp_path / "out", "--arithmetic", arithmetic]
    merged(*args)
    left, right = tensors_of(experts["science"]), tensors_of(experts["math"])
    for name, tensor in tensors_of(tmp_path / "out").items():
        assert torch.equal(tensor, arcee_fusion(left[name], right[name], arithmetic=arithmetic))
    report = json.loads((tmp_path / "out" / "merge_report.json").read_text())
    assert report["merge"]["arithmetic"] == arithmetic


def test_rerun_is_bit_identical_and_a_finished_merge_is_not_overwritten(experts, tmp_path):
    for name in ("a", "b"):
        merged(experts["science"], experts["math"], tmp_path / name)
    assert file_hashes(tmp_path / "a") == file_hashes(tmp_path / "b")
    again = merge(experts["science"], experts["math"], tmp_path / "a")
    assert again.returncode == 2
    assert "not an empty directory" in again.stderr


@pytest.mark.parametrize("count", [1, 7])
def test_killed_merge_continues_to_the_same_bits(experts, tmp_path, monkeypatch, count):
    def config(out):
        return MergeConfig(
            (experts["science"], experts["math"], tmp_path / out),
            shard_size=6e-5,
            threads=1,
            quiet=True,
        )

    run_merge(config("whole"), Log(quiet=True))
    monkeypatch.setattr(merging, "SYNC_BYTES", 1)
    original, calls = merging.merge_tensor, []

    def dies(merge, name, writer, done):
        calls.append(name)
        if len(calls) == count + 1:
            raise KeyboardInterrupt
        return original(merge, name, writer, done)

    monkeypatch.setattr(merging, "merge_tensor", dies)
    with pytest.raises(KeyboardInterrupt):
        run_merge(config("out"), Log(quiet=True))
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(merging, "merge_tensor", original)
    seen = []
    monkeypatch.setattr(
        merging, "merge_tensor", lambda m, n, *a: seen.append(n) or original(m, n, *a)
    )
    run_merge(config("out"), Log(quiet=True))
    assert not set(seen) & set(calls[:count])  # what was done is not done again
    assert file_hashes(tmp_path / "out") == file_hashes(tmp_path / "whole")
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 1


@pytest.mark.parametrize(
    "moment", ["copy_side_files", "write_json", "os.replace", "fsync_directory"]
)
def test_a_merge_that_died_while_finishing_continues_to_the_same_bits(
    experts, tmp_path, monkeypatch, moment
):
    """The shards have their names by then, the directory has not."""

    def config(out):
        return MergeConfig((experts["science"], experts["math"], tmp_path / out), quiet=True)

    run_merge(config("whole"), Log(quiet=True))
    monkeypatch.setattr(merging, "SYNC_BYTES", 1)
    original = operator.attrgetter(moment)(merging)
    last = {"write_json": "merge_report.json", "os.replace": "out.partial"}.get(moment)

    def dies(*arguments, **options):
        if last in (None, arguments[0].name):
            raise OSError(28, "No space left on device")
        original(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(f"tinyr1.merge.run.{moment}", dies)
        with pytest.raises(OSError, match="No space"):
            run_merge(config("out"), Log(quiet=True))
    if moment != "fsync_directory":
        monkeypatch.setattr(merging, "merge_tensor", lambda *_: 1 / 0)  # all are done
        run_merge(config("out"), Log(quiet=True))
    assert file_hashes(tmp_path / "out") == file_hashes(tmp_path / "whole")


def test_what_a_merge_leaves_before_its_first_tensor_is_no_part_of_another(
    experts, tmp_path, monkeypatch
):
    pair = experts["science"], experts["math"], tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(merging, "merge_tensor", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run_merge(MergeConfig(pair, shard_size=6e-5), QUIET)
    assert len([*(tmp_path / "out.partial").glob("model-*.safetensors.partial")]) > 2
    run_merge(MergeConfig(pair), QUIET)
    assert not [*(tmp_path / "out").glob("*.partial")]


def test_a_shard_that_vanished_is_merged_again(experts, tmp_path, monkeypatch):
    def config(out):
        return MergeConfig(
            (experts["science"], experts["math"], tmp_path / out), shard_size=6e-5, quiet=True
        )

    run_merge(config("whole"), Log(quiet=True))
    monkeypatch.setattr(merging, "SYNC_BYTES", 1)
    original = merging.copy_side_files
    monkeypatch.setattr(merging, "copy_side_files", lambda *_, **__: 1 / 0)
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
    merged(experts["science"], experts["math"], tmp_path / "out")
    merged(experts["science"], experts["math"], tmp_path / "whole")
    assert file_hashes(tmp_path / "out") == file_hashes(tmp_path / "whole")


def test_unfinished_merge_of_other_inputs_is_refused(experts, tmp_path):
    partial = tmp_path / "out.partial"
    partial.mkdir()
    (partial / "merge_state.json").write_text("{}")
    (partial / "merge_journal.jsonl").write_text('{"name": "w"}\n')
    done = merge(experts["science"], experts["math"], tmp_path / "out")
    assert done.returncode == 2
    assert "unfinished merge of other inputs" in done.stderr
    (tmp_path / "other.partial").mkdir()
    (tmp_path / "other.partial" / "thesis.tex").write_text("of somebody")
    with pytest.raises(UserError, match="is no unfinished merge"):
        merged(experts["science"], experts["math"], tmp_path / "other")


def test_linear_and_task_arithmetic(experts, tmp_path):
    names = ("math", "science", "coding")
    models = [experts[n] for n in names]
    parts = [tensors_of(m) for m in models]
    base = tensors_of(experts["base"])
    merged(*models, tmp_path / "mean", "--method", "linear")
    weighted = ["--method", "linear", "--weights", "0.5", "0.3", "0.4", "--no-normalize"]
    merged(*models, tmp_path / "sum", *weighted)
    arithmetic = ["--method", "task_arithmetic", "--base", experts["base"], "--lam", "0.7"]
    merged(*models, tmp_path / "task", *arithmetic)
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
        merged(experts["math"], experts["science"], tmp_path / out, *arguments)
    a, left = tensors_of(tmp_path / "a"), tensors_of(experts["math"])
    assert file_hashes(tmp_path / "a") == file_hashes(tmp_path / "b")
    assert all(not torch.equal(a[name], left[name]) for name in a)


def test_density_that_della_cannot_keep_is_refused(experts, tmp_path):
    options = ["--method", "della", "--base", experts["base"], "--density", "0.1"]
    with pytest.raises(UserError, match=r"density 0.1 -\+ epsilon 0.15"):
        merged(experts["math"], experts["science"], tmp_path / "out", *options)


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
        (
            "{math} {out}",
            "2 paths given, --method arcee_fusion takes 2 models and then OUT; OUT is missing",
        ),
        ("{math} {science} {coding} {out}", "4 paths given"),
        ("{math} {science} {out} --base {base}", "--base: has no meaning"),
        ("{math} {out} --method task_arithmetic", "--base: is required"),
        ("{math} {science} {out} --method linear --weights 1", "--weights: 1 given for 2"),
        ("{math} {science} {out} --method linear --weights 1 -1", "sum to 0"),
        ("{math} {science} {out} --weights 1 1", "--weights: has no meaning"),
        ("{math} {science} {out} --method dare_ties --base {base} --density 2", "--density=2.0"),
        ("{math} {science} {out} --method linear --arithmetic paper", "--arithmetic: has no"),
        ("{math} {science} {out} --method linear --then {coding}", "--then: has no"),
        ("{math} {science} {out} --method linear --density 0.5", "--density: has no"),
        ("{math} {science} {out} --method multislerp --weights 1 -1", "sum to 0"),
        ("{math} {science} {base}/out --method ties --base {base}", "lies in the input"),
        ("{math} {science} {out} --eps 0", "--eps=0.0"),
        ("{math} {science} {out} --device cuda", "no CUDA device"),
        ("{math} {science} {out} --method slerp --quantiles changed", "--quantiles: has no"),
        ("{math} {science} {math}/out", "lies in the input"),
        ("{math} {science} {math}", "lies in the input"),
        ("{math} nowhere {out}", "nowhere: no such directory"),
        ("{math} nowhere {out} --then nope", "nope: no such directory"),  # all of them at once
        ("{math} {science} /", "expected a directory that can be made"),
        ("{math} {science} {out} --lam nan", "--lam=nan"),
        ("{math} {science} {out} --method linear --weights nan 1", "--weights=nan"),
        ("{math} {science} {out} --shard-size inf", "--shard-size=inf"),
        ("{math} {science} {out} --save {out}", "--save: goes with --diff"),
        ("{math} {science} {out} --threads 2 --device cuda", "--threads=2: --device cuda"),
        ("{math} {science} {out} --diff {math} {science}", "leave the other paths out"),
    ],
)
def test_bad_arguments(experts, tmp_path, arguments, message):
    filled = arguments.format(**experts, out=tmp_path / "out").split()
    with pytest.raises(UserError, match=re.escape(message)):
        merged(*filled)


def test_nan_is_refused_by_tensor_name_or_copied_from_left(experts, tmp_path):
    bad = tmp_path / "bad"
    shutil.copytree(experts["math"], bad)
    tensors = load_file(bad / "model.safetensors")
    tensors["model.norm.weight"][3] = float("nan")
    tensors["model.embed_tokens.weight"][5, 2] = float("inf")
    save_file(tensors, bad / "model.safetensors")
    for options in ([], ["--method", "linear"]):
        with pytest.raises(UserError, match="NaN or infinity in inputs") as error:
            merged(experts["science"], bad, tmp_path / "out", *options)
        assert "bad: model.norm.weight" in str(error.value)
        assert "bad: model.embed_tokens.weight" in str(error.value)  # all of them at once
    # What the message advises works, with what the refused merge left.
    done = merge(experts["science"], bad, tmp_path / "out", "--allow-nonfinite")
    assert done.returncode == 0, done.stderr
    (tmp_path / "out").rename(tmp_path / "kept")
    left = tensors_of(experts["science"])["model.norm.weight"]
    assert torch.equal(tensors_of(tmp_path / "kept")["model.norm.weight"], left)
    report = json.loads((tmp_path / "kept" / "merge_report.json").read_text())
    assert report["tensors"]["model.norm.weight"]["flags"] == ["nonfinite_input"]


def test_a_chain_with_nan_equals_merges_through_disk(experts, tmp_path):
    bad = tmp_path / "bad"
    shutil.copytree(experts["math"], bad)
    tensors = load_file(bad / "model.safetensors")
    tensors["model.norm.weight"][3] = float("nan")
    save_file(tensors, bad / "model.safetensors")
    allow = "--allow-nonfinite"
    merged(experts["science"], bad, tmp_path / "one", "--then", experts["coding"], allow)
    merged(experts["science"], bad, tmp_path / "mid", allow)
    merged(experts["coding"], tmp_path / "mid", tmp_path / "two", allow)
    one, two = tensors_of(tmp_path / "one"), tensors_of(tmp_path / "two")
    assert all(torch.equal(one[name], two[name]) for name in one)
    report = json.loads((tmp_path / "one" / "merge_report.json").read_text())
    assert report["tensors"]["model.norm.weight"]["steps"][0] == {"flags": ["nonfinite_input"]}


def small_checkpoint(folder, **tensors):
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "any"}')
    save_file(tensors, folder / "model.safetensors")
    return folder


def test_an_input_that_would_be_written_over_is_refused(experts, tmp_path):
    shutil.copytree(experts["math"], tmp_path / "x.partial")
    with pytest.raises(UserError, match="lies in the input"):
        merged(tmp_path / "x.partial", experts["science"], tmp_path / "x")


def tied_checkpoint(folder, seed, head=None):
    """A tied model of one embedding, with a copy of it (or `head`) or without one (False)."""
    embedding = torch.randn(40, 8, generator=torch.Generator().manual_seed(seed))
    tensors = {"model.embed_tokens.weight": embedding}
    if head is not False:
        tensors["lm_head.weight"] = embedding.clone() if head is None else head
    small_checkpoint(folder, **tensors)
    config = {"model_type": "any", "tie_word_embeddings": True}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("method", ["arcee_fusion", "linear", "dare_ties", "della"])
def test_the_copy_of_a_tied_head_is_left_out(tmp_path, method):
    """Merged on its own it would be another than the embedding, by other random numbers."""
    a, b, c = (tied_checkpoint(tmp_path / name, i) for i, name in enumerate("abc"))
    options = ["--method", method]
    if method in ("dare_ties", "della"):
        options += ["--base", c, "--density", "0.5"]
    merged(a, b, tmp_path / "out", *options)
    assert list(tensors_of(tmp_path / "out")) == ["model.embed_tokens.weight"]
    without = [tied_checkpoint(tmp_path / f"{name}2", i, False) for i, name in enumerate("ab")]
    merged(without[0], b, tmp_path / "mixed", *options)  # one has the copy, one does not
    for name, tensor in tensors_of(tmp_path / "mixed").items():
        assert torch.equal(tensor, tensors_of(tmp_path / "out")[name])
    alone = tied_checkpoint(tmp_path / "d", 1, torch.zeros(40, 8))
    with pytest.raises(UserError, match=r"lm_head.weight: is not model.embed_tokens.weight"):
        merged(a, alone, tmp_path / "none", *options)


def test_a_picture_that_cannot_be_drawn_costs_no_model(tmp_path, monkeypatch):
    a, b = (small_checkpoint(tmp_path / n, **{"$5^$": torch.randn(9)}) for n in ("$4^$", "b"))
    merged(a, b, tmp_path / "out")
    assert (tmp_path / "out" / "merge.png").exists()
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)  # a broken installation
    merged(a, b, tmp_path / "again")
    assert (tmp_path / "again" / "config.json").exists()
    assert "merge.png" not in (tmp_path / "again" / "README.md").read_text()


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({"weight_map": {"w": "../b/model.safetensors"}}, "no file name"),
        ({"weight_map": {"w": 3}}, "no file name"),
        ({}, "weight_map: missing"),
        ([], "expected a JSON object"),
    ],
)
def test_indexes_that_lead_elsewhere_are_refused(tmp_path, index, message):
    a = small_checkpoint(tmp_path / "a", w=torch.zeros(3))
    b = small_checkpoint(tmp_path / "b", w=torch.ones(3))
    (a / "model.safetensors").rename(a / "model-00001-of-00001.safetensors")
    (a / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=message):
        merged(a, b, tmp_path / "out")


def test_other_methods_round_once_to_the_outputs_dtype(tmp_path):
    torch.manual_seed(0)
    x, y = torch.randn(3, 8, 10).bfloat16(), torch.randn(3, 8, 10).bfloat16()
    a, b = small_checkpoint(tmp_path / "a", w=x), small_checkpoint(tmp_path / "b", w=y)
    merged(a, b, tmp_path / "out", "--method", "linear", "--dtype", "fp32")
    expected = (x.double() + y.double()) / 2
    assert (tensors_of(tmp_path / "out")["w"] - expected).abs().max() < 1e-6
    low = small_checkpoint(tmp_path / "low", w=torch.ones(4).half())
    high = small_checkpoint(tmp_path / "high", w=torch.full((4,), 1e6))
    with pytest.raises(UserError, match=r"w: values beyond the range of torch\.float16"):
        merged(low, high, tmp_path / "inf", "--method", "linear")
    for method in ("nuslerp", "model_stock"):  # tensors of more than two dimensions
        base = ["--base", str(a)] if method == "model_stock" else []
        merged(a, b, tmp_path / method, "--method", method, *base)


def test_integer_tensors_go_along_where_they_are_equal(tmp_path):
    a = small_checkpoint(tmp_path / "a", w=torch.randn(4, 4), ids=torch.arange(5))
    b = small_checkpoint(tmp_path / "b", w=torch.randn(4, 4), ids=torch.arange(5))
    c = small_checkpoint(tmp_path / "c", w=torch.randn(4, 4), ids=torch.ones(5).long())
    merged(a, b, tmp_path / "out", "--dtype", "bf16")
    out = tensors_of(tmp_path / "out")
    assert torch.equal(out["ids"], torch.arange(5))
    assert out["w"].dtype == torch.bfloat16
    with pytest.raises(UserError, match="ids: dtype I64"):
        merged(a, c, tmp_path / "other")


@pytest.mark.parametrize("dtypes", ["bf16 bf16", "fp16 fp32", "bf16 fp16", "fp32 bf16"])
def test_dtypes_of_the_inputs(experts, tmp_path, dtypes):
    """The output has Left's dtype, or --dtype; never another without a word."""
    kinds = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
    for side, code in zip(("science", "math"), dtypes.split(), strict=True):
        shutil.copytree(experts[side], tmp_path / side)
        file = tmp_path / side / "model.safetensors"
        save_file({k: v.to(kinds[code]) for k, v in load_file(file).items()}, file)
    code = dtypes.split()[0]
    paths = (tmp_path / "science", tmp_path / "math")
    run_merge(MergeConfig((*paths, tmp_path / "out")), QUIET)
    run_merge(MergeConfig((*paths, tmp_path / "half"), method="slerp", dtype="fp16"), QUIET)
    left, right = tensors_of(paths[0]), tensors_of(paths[1])
    for name, tensor in tensors_of(tmp_path / "out").items():
        assert tensor.dtype == kinds[code]
        assert torch.equal(tensor, arcee_fusion(left[name], right[name]))
    assert {t.dtype for t in tensors_of(tmp_path / "half").values()} == {torch.float16}
    config = json.loads((tmp_path / "half" / "config.json").read_text())
    assert config["torch_dtype"] == "float16"


def test_all_shards_are_open_before_threads_write(experts, tmp_path, monkeypatch):
    really = os.open

    def slowly(path, *rest):
        time.sleep(0.02 if "model-" in str(path) and "model-00001" not in str(path) else 0)
        return really(path, *rest)

    monkeypatch.setattr("tinyr1.model.writer.os.open", slowly)
    paths = experts["science"], experts["math"], tmp_path / "out"
    run_merge(MergeConfig(paths, shard_size=6e-5, threads=4), QUIET)
    assert len(list((tmp_path / "out").glob("model-*.safetensors"))) > 4


def test_lefts_shards_are_kept_unless_a_size_is_given(experts, tmp_path):
    run_merge(MergeConfig((experts["science"], experts["math"], tmp_path / "whole")), QUIET)
    split = MergeConfig((experts["science"], experts["math"], tmp_path / "split"), shard_size=6e-5)
    run_merge(split, QUIET)
    run_merge(MergeConfig((tmp_path / "split", experts["math"], tmp_path / "kept")), QUIET)
    shards = [
        sorted(p.name for p in (tmp_path / f).glob("*.safetensors")) for f in ("split", "kept")
    ]
    assert len(shards[0]) > 2
    assert shards[0] == shards[1]
    assert Checkpoint(tmp_path / "kept").shards == Checkpoint(tmp_path / "split").shards
    a, b = tensors_of(tmp_path / "whole"), tensors_of(tmp_path / "split")
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_threads_and_chunks_change_no_byte(experts, tmp_path, monkeypatch):
    def config(out, **options):
        return MergeConfig((experts["science"], experts["math"], tmp_path / out), **options)

    run_merge(config("one", threads=1), QUIET)
    run_merge(config("linear", method="linear"), QUIET)
    monkeypatch.setattr("tinyr1.model.rows.CHUNK_ELEMENTS", 500)
    run_merge(config("four", threads=4), QUIET)
    run_merge(config("linear chunks", method="linear"), QUIET)
    assert file_hashes(tmp_path / "one") == file_hashes(tmp_path / "four")
    assert file_hashes(tmp_path / "linear") == file_hashes(tmp_path / "linear chunks")


@pytest.mark.parametrize(
    ("method", "params"),
    [
        ("multislerp", MergeParams()),
        ("dare_linear", MergeParams(density=0.5)),
        ("arcee_fusion", MergeParams(arithmetic="paper")),
    ],
)
def test_cores_change_no_byte_of_whole_tensors(tmp_path, method, params):
    """torch would sum a long tensor in as many parts as it has threads."""
    generator = torch.Generator().manual_seed(0)
    folders = [tmp_path / name for name in ("base", "a", "b")]
    for folder in folders:
        folder.mkdir()
        weight = torch.randn(600, 700, generator=generator)
        save_file({"a": weight, "b": weight[:, :300].clone()}, folder / "model.safetensors")
        (folder / "config.json").write_text("{}")
    base = folders[0] if METHODS[method].needs_base else None
    threads = torch.get_num_threads()
    for number in (1, 3):
        torch.set_num_threads(number)
        out = tmp_path / f"out{number}"
        paths = (*folders[1:], out)
        run_merge(MergeConfig(paths, method, base=base, params=params, threads=number), QUIET)
    torch.set_num_threads(threads)
    assert file_hashes(tmp_path / "out1") == file_hashes(tmp_path / "out3")


def test_two_ranks_write_what_one_writes_also_after_a_crash(experts, tmp_path, monkeypatch):
    pair = [experts["science"], experts["math"]]
    run_merge(MergeConfig((*pair, tmp_path / "one")), QUIET)
    done = merge(*pair, tmp_path / "two", ranks=2)
    assert done.returncode == 0, done.stderr
    assert file_hashes(tmp_path / "one") == file_hashes(tmp_path / "two")
    assert not (tmp_path / "two.partial").exists()
    # A crash of one process, continued by two.
    monkeypatch.setattr(merging, "SYNC_BYTES", 1)
    original, calls = merging.merge_tensor, []

    def dies(merge, name, writer, done):
        calls.append(name)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return original(merge, name, writer, done)

    monkeypatch.setattr(merging, "merge_tensor", dies)
    with pytest.raises(KeyboardInterrupt):
        run_merge(MergeConfig((*pair, tmp_path / "three"), threads=1), QUIET)
    done = merge(*pair, tmp_path / "three", ranks=2)
    assert done.returncode == 0, done.stderr
    assert "continuing: 3 of" in done.stderr
    assert file_hashes(tmp_path / "one") == file_hashes(tmp_path / "three")


def test_memory_is_bounded_whatever_the_tensor(tmp_path):
    """Two inputs of 120 MB in one tensor; with three float32 copies it would be some 1.1 GB."""
    shape = (60_000, 1000)
    for seed, side in enumerate(("left", "right")):
        (tmp_path / side).mkdir()
        (tmp_path / side / "config.json").write_text('{"model_type": "any"}')
        base = torch.randn(shape, generator=torch.Generator().manual_seed(9)).mul_(0.02)
        base += 1e-4 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        tensors = {"any.name": base.bfloat16(), "b": torch.zeros(0, 3)}
        save_file(tensors, tmp_path / side / "model.safetensors")
        del tensors, base
    for options in ([], ["--method", "linear"]):
        arguments = [tmp_path / "left", tmp_path / "right", tmp_path / f"out{len(options)}"]
        code = "import merge, pathlib; merge.main(); "
        code += "print(pathlib.Path('/proc/self/status').read_text())"
        done = subprocess.run(
            [sys.executable, "-c", code, *map(str, arguments), *options],
            capture_output=True,
            text=True,
            cwd=ROOT,
        )
        assert done.returncode == 0, done.stderr
        peak_kib = int(done.stdout.split("VmHWM:")[1].split()[0])
        assert peak_kib * 1024 < 600e6
    left, right = tensors_of(tmp_path / "left"), tensors_of(tmp_path / "right")
    merged = tensors_of(tmp_path / "out0")["any.name"]
    assert torch.equal(merged, arcee_fusion(left["any.name"], right["any.name"]))


def test_model_card_and_picture(experts, tmp_path):
    names = [experts["science"], experts["math"], tmp_path / "out", "--then", experts["coding"]]
    merged(*names, "--lam", "1.25")
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\n")
    for part in ("Arcee Fusion", "`exact`", "| Left | science |", "| Right | math |", "`lam` 1.25"):
        assert part in card
    assert "coding" in card
    assert str(tmp_path) not in card
    assert (tmp_path / "out" / "merge.png").read_bytes().startswith(b"\x89PNG")


def test_the_card_names_models_of_the_hub_and_a_command_that_makes_them_again(
    experts, tmp_path, monkeypatch
):
    cached = {}
    for owner, name in (("some-lab", "science"), ("other", "math")):
        cached[name] = tmp_path / f"models--{owner}--{name}" / "snapshots" / ("0123abcd" * 5)
        shutil.copytree(experts[name], cached[name])
    options = ["--lam", "1.25", "norm=0", "--except", "q_proj.bias", "--dtype", "bf16"]
    merged(cached["science"].parents[1], cached["math"], tmp_path / "out", *options)
    card = (tmp_path / "out" / "README.md").read_text()
    front = card.split("---")[1]
    assert "base_model:\n- some-lab/science\n- other/math\nbase_model_relation: merge" in front
    assert "Flag `not_selected`: 2 tensors, copied from Left." in card
    command = next(line for line in card.splitlines() if line.startswith("python merge.py"))
    assert command.count("--lam") == command.count("--dtype") == 1
    assert "--arithmetic" not in command
    for owner, name in (("some-lab", "science"), ("other", "math")):
        (tmp_path / owner).mkdir()
        (tmp_path / owner / name).symlink_to(experts[name])
    monkeypatch.chdir(tmp_path)
    merged(*shlex.split(command)[2:])
    assert {n: t.tolist() for n, t in tensors_of(tmp_path / "OUT").items()} == {
        n: t.tolist() for n, t in tensors_of(tmp_path / "out").items()
    }


def test_options_that_differ_by_tensor_name(experts, tmp_path):
    """The first pattern found in a name rules; what no pattern finds has the plain value."""
    left, right = tensors_of(experts["science"]), tensors_of(experts["math"])
    words = ["--lam", "2", r"layers\.0.*mlp=0.5", "mlp=1.0", "norm=0"]
    merged(experts["science"], experts["math"], tmp_path / "fused", *words)
    for name, tensor in tensors_of(tmp_path / "fused").items():
        lam = (
            0.5 if "layers.0.mlp" in name else 1.0 if "mlp" in name else 0 if "norm" in name else 2
        )
        assert torch.equal(tensor, arcee_fusion(left[name], right[name], lam=lam)), name
    alone = ["--lam", "mlp=1.0"]  # of the others the method's own
    merged(experts["science"], experts["math"], tmp_path / "alone", *alone)
    for name, tensor in tensors_of(tmp_path / "alone").items():
        lam = 1.0 if "mlp" in name else 1.5
        assert torch.equal(tensor, arcee_fusion(left[name], right[name], lam=lam)), name
    words = ["--method", "linear", "--weights", "1", "1", "mlp=1,3", "norm=0,1"]
    merged(experts["science"], experts["math"], tmp_path / "linear", *words)
    for name, tensor in tensors_of(tmp_path / "linear").items():
        t = 0.75 if "mlp" in name else 1.0 if "norm" in name else 0.5
        wanted = (1 - t) * left[name].double() + t * right[name].double()
        assert torch.allclose(tensor.double(), wanted, atol=1e-7), name
    merged(experts["science"], experts["math"], tmp_path / "slerp", "--method", "slerp", "--t",
           "mlp=1", "self_attn=0")  # fmt: skip
    for name, tensor in tensors_of(tmp_path / "slerp").items():
        whole = right if "mlp" in name else left if "self_attn" in name else None
        assert whole is None or torch.allclose(tensor, whole[name], atol=1e-6), name
    report = json.loads((tmp_path / "linear" / "merge_report.json").read_text())
    assert report["merge"]["options"]["weights"] == ["1.0", "1.0", "mlp=1.0,3.0", "norm=0.0,1.0"]


@pytest.mark.parametrize(
    "order",
    [
        "{left} {right} {out} --lam 1 norm=0 --seed 3 --only norm",
        "--lam 1 norm=0 {left} {right} {out} --seed 3 --only norm",
        "{left} --only norm {right} --seed 3 {out} --lam 1 norm=0",
        "--seed=3 {left} {right} --lam norm=0 1 --only=norm {out}",
        "--quiet {left} --lam 1 norm=0 {right} --no-dry-run {out} --only norm --seed 3",
    ],
)
def test_paths_and_options_in_any_order(experts, tmp_path, order):
    places = {"left": experts["science"], "right": experts["math"], "out": tmp_path / "out"}
    words = [word.format(**places) for word in order.split()]
    config = parse(MergeConfig, words)
    assert config.paths == tuple(places.values())
    assert (config.seed, config.only) == (3, ("norm",))
    assert config.params.lam == ByName(1.0, (("norm", 0.0),))


def padded(folder, source, rows, tokenizer=True):
    """A copy of a model whose embedding has more rows than its tokenizer has tokens."""
    shutil.copytree(source, folder)
    tensors = load_file(folder / "model.safetensors")
    embedding = tensors["model.embed_tokens.weight"]
    extra = torch.full((rows, embedding.shape[1]), float(rows))
    tensors["model.embed_tokens.weight"] = torch.cat([embedding, extra])
    save_file(tensors, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    config["vocab_size"] = len(embedding) + rows
    (folder / "config.json").write_text(json.dumps(config))
    if not tokenizer:
        (folder / "tokenizer.json").unlink()
    return folder


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--method", "linear"],
        ["--method", "dare_ties", "--density", "0.5"],
        ["--dtype", "bf16"],
    ],
)
@pytest.mark.parametrize("rows", [(0, 3), (5, 0), (5, 3)])
def test_vocabularies_that_differ_by_padding(experts, tmp_path, rows, options):
    """What all have is merged as without padding; the rest is Left's."""
    base = ["--base", experts["base"]] if "dare_ties" in options else []
    left = padded(tmp_path / "left", experts["science"], rows[0])
    right = padded(tmp_path / "right", experts["math"], rows[1])
    merged(left, right, tmp_path / "out", *options, *base)
    merged(experts["science"], experts["math"], tmp_path / "plain", *options, *base)
    out, plain = tensors_of(tmp_path / "out"), tensors_of(tmp_path / "plain")
    name = "model.embed_tokens.weight"
    shared = len(plain[name])
    if rows == (5, 3) and not base:  # all have three rows of padding, which are merged, too
        assert len(out[name]) == shared + 5
        assert torch.equal(out[name][-2:].float(), tensors_of(left)[name][-2:].float())
    else:
        assert torch.equal(out.pop(name), torch.cat(
            [plain.pop(name), tensors_of(left)[name][shared:].to(plain["model.norm.weight"].dtype)]
        ))  # fmt: skip
        assert all(torch.equal(out[n], plain[n]) for n in plain)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["vocab_size"] == shared + rows[0]


def test_padding_of_three_models(experts, tmp_path):
    """What is a token of one of them is no padding, also where it is as large as Left."""
    left = padded(tmp_path / "left", experts["science"], 5)
    grown = padded(tmp_path / "grown", experts["coding"], 5)
    tokenizer = json.loads((grown / "tokenizer.json").read_text())
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    size = len(tensors_of(experts["math"])["model.embed_tokens.weight"])
    token = {"id": size, "content": "<new>", "special": True}
    tokenizer["added_tokens"].append(token | plain)
    (grown / "tokenizer.json").write_text(json.dumps(tokenizer))
    paths = [left, grown, experts["math"], tmp_path / "out", "--method", "linear"]
    for options in ([], ["--allow-padding"]):
        with pytest.raises(UserError, match=r"a token \d+ \('<new>'\) here: this is no padding"):
            merged(*paths, *options)


def test_nan_in_padding_is_seen(experts, tmp_path):
    left = padded(tmp_path / "left", experts["science"], 2)
    tensors = load_file(left / "model.safetensors")
    tensors["model.embed_tokens.weight"][-1, 0] = math.nan
    save_file(tensors, left / "model.safetensors")
    with pytest.raises(UserError, match="NaN or infinity in inputs"):
        merged(left, experts["math"], tmp_path / "out")
    shutil.rmtree(tmp_path / "out.partial")
    merged(left, experts["math"], tmp_path / "out", "--allow-nonfinite")
    report = json.loads((tmp_path / "out" / "merge_report.json").read_text())
    assert report["tensors"]["model.embed_tokens.weight"]["flags"] == ["nonfinite_input"]


@pytest.mark.parametrize(
    "options", ["--lam 1 mpl=2", "--only mpl", "--except mpl", "--method slerp --t mpl=0.3"]
)
def test_patterns_that_find_nothing_are_refused(experts, tmp_path, options):
    words = [experts["science"], experts["math"], tmp_path / "out", *options.split()]
    with pytest.raises(UserError, match="mpl: found in no tensor's name"):
        merged(*words)


def test_vocabularies_that_differ_by_more_or_by_nobody_knows_what(experts, tmp_path):
    left = padded(tmp_path / "left", experts["science"], 2)
    bare = padded(tmp_path / "bare", experts["math"], 4, tokenizer=False)
    with pytest.raises(UserError, match=r"not both have a tokenizer; .*--allow-padding"):
        merged(left, bare, tmp_path / "out")
    merged(left, bare, tmp_path / "out", "--allow-padding")
    entry = json.loads((tmp_path / "out" / "merge_report.json").read_text())["merge"]
    rows = len(load_file(left / "model.safetensors")["model.embed_tokens.weight"])
    assert entry["shared_rows"] == {"model.embed_tokens.weight": rows}
    assert "--allow-padding" in (tmp_path / "out" / "README.md").read_text()
    grown = padded(tmp_path / "grown", experts["math"], 4)
    tokenizer = json.loads((grown / "tokenizer.json").read_text())
    for i in range(3):  # one more than Left has rows for
        token = {"id": rows - 2 + i, "content": f"<new {i}>", "special": True}
        plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        tokenizer["added_tokens"].append(token | plain)
    (grown / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(UserError, match=r"a token \d+ \('<new 2>'\) here: this is no padding"):
        merged(left, grown, tmp_path / "no", "--allow-padding")


def test_options_reach_the_fusion(experts, tmp_path):
    thresholds = []
    for i, options in enumerate(({}, {"eps": 0.1}, {"quantiles": "changed"}, {"lam": 1.0})):
        out = tmp_path / str(i)
        paths = (experts["science"], experts["math"], out)
        run_merge(MergeConfig(paths, params=MergeParams(**options)), QUIET)
        report = json.loads((out / "merge_report.json").read_text())
        thresholds.append(report["tensors"]["model.embed_tokens.weight"]["threshold"])
    assert thresholds[1] < thresholds[0]
    assert thresholds[2] == thresholds[0]  # here everything changed
    assert thresholds[3] < thresholds[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vocab_size": 7}, "vocab_size=7"),
        ({"model_type": "llama"}, "model_type=llama"),
        ({"rope_theta": 5.0}, "rope_theta=5.0, Left has 10000.0; --allow-differences takes Left's"),
        ({"num_key_value_heads": 1}, "num_key_value_heads=1, Left has 2"),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, "--allow-differences"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings=False, Left has True"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantised (gptq): there is nothing"),
        ({"max_position_embeddings": 7}, "warning: {}: max_position_embeddings=7, Left has"),
        ({"text_config": {"rope_theta": 3}, "use_cache": 7}, None),  # which only one of them states
    ],
)
def test_configs_that_differ(experts, tmp_path, change, message):
    shutil.copytree(experts["math"], tmp_path / "other")
    config = json.loads((tmp_path / "other" / "config.json").read_text())
    (tmp_path / "other" / "config.json").write_text(json.dumps(config | change))
    arguments = (experts["science"], tmp_path / "other", tmp_path / "out", "--dry-run")
    done = merge(*arguments)
    said = (message or "").format(tmp_path / "other")
    assert said in done.stderr
    assert message is not None or "warning" not in done.stderr
    assert done.returncode == (0 if "warning" in said or message is None else 2)
    if "--allow-differences" in said:
        assert merge(*arguments, "--allow-differences").returncode == 0


def test_rope_in_its_old_and_new_spelling_is_the_same():
    old = {"rope_theta": 10000, "rope_scaling": None}
    new = {"rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"}}
    assert not list(config_differences(old, new))
    old["rope_scaling"] = {"type": "yarn", "factor": 4.0}
    new["rope_parameters"] |= {"rope_type": "yarn", "factor": 4.0}
    assert not list(config_differences(old, new))
    new["rope_parameters"]["factor"] = 8.0
    assert [breaks for _, _, breaks in config_differences(old, new)] == [True]
    nested = ({"text_config": {"head_dim": n, "dtype": str(n)}} for n in (64, 128))
    assert [key for key, _, _ in config_differences(*nested)] == ["text_config.head_dim"]


def test_only_some_tensors(experts, tmp_path):
    whole, part = tmp_path / "whole", tmp_path / "part"
    merged(experts["science"], experts["math"], whole)
    merged(experts["science"], experts["math"], part, "--only", "mlp", "--only", "embed_tokens",
           "--except", r"layers\.1\.")  # fmt: skip
    a, b, left = (tensors_of(folder) for folder in (whole, part, experts["science"]))
    chosen = {n for n in a if ("mlp" in n or "embed_tokens" in n) and "layers.1." not in n}
    assert 0 < len(chosen) < len(a)
    for name in a:
        assert torch.equal(b[name], a[name] if name in chosen else left[name]), name
    report = json.loads((part / "merge_report.json").read_text())
    flags = {name: entry["flags"] for name, entry in report["tensors"].items()}
    assert {n for n, f in flags.items() if f == ["not_selected"]} == set(a) - chosen
    assert report["merge"]["only"] == ["mlp", "embed_tokens"]
    assert "`only` mlp embed_tokens" in (part / "README.md").read_text()
    # What is not merged need not be there.
    less = shutil.copytree(experts["math"], tmp_path / "less")
    save_file({n: t for n, t in tensors_of(less).items() if "mlp" in n}, less / "model.safetensors")
    merged(experts["science"], less, tmp_path / "mlp", "--only", "mlp")
    for options, said in (
        (("--only", "nothing_like_it"), "no tensor is left to merge"),
        (("--except", "("), r"--except=\(: no regular expression"),
    ):
        with pytest.raises(UserError, match=said):
            merged(experts["science"], experts["math"], tmp_path / "no", *options)


def test_methods_are_listed():
    done = call("merge", "--methods")
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines] == list(METHODS)
    assert "ties                   1 or more models, --base  --weights" in done.stdout


def test_a_difference_from_nothing_has_no_share(tmp_path):
    a = small_checkpoint(tmp_path / "a", w=torch.zeros(3, 4), v=torch.ones(2))
    b = small_checkpoint(tmp_path / "b", w=torch.ones(3, 4), v=torch.ones(2))
    done = call("merge", "--diff", a, b, "--save", tmp_path / "saved")
    assert done.returncode == 0, done.stderr
    assert "| w | 100.00 | - |" in done.stdout
    assert "inf" not in done.stdout
    saved = json.loads((tmp_path / "saved" / "diff.json").read_text())
    assert saved["tensors"]["w"]["relative_norm"] is None


def test_the_single_file_is_what_transformers_loads(experts, tmp_path):
    """model.safetensors beside an index of other shards: the single file, and a warning."""
    left = shutil.copytree(experts["science"], tmp_path / "left")
    tensors = load_file(left / "model.safetensors")
    save_file({n: torch.zeros_like(t) for n, t in tensors.items()}, left / "model-1.safetensors")
    index = {"weight_map": dict.fromkeys(tensors, "model-1.safetensors")}
    (left / "model.safetensors.index.json").write_text(json.dumps(index))
    done = merge(left, experts["math"], tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "index.json: not read: model.safetensors lies beside it" in done.stderr
    merged(experts["science"], experts["math"], tmp_path / "plain")
    a, b = tensors_of(tmp_path / "out"), tensors_of(tmp_path / "plain")
    assert all(torch.equal(a[n], b[n]) for n in a)
    assert not (tmp_path / "out" / "model.safetensors.index.json").exists()
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(left)
    assert bool(theirs.model.norm.weight.detach().any())
    # A tensor in two shards of an index is said as it is.
    (left / "model.safetensors").rename(left / "model-2.safetensors")
    name = next(iter(tensors))
    index["weight_map"][name] = "model-2.safetensors"
    (left / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"is in model-1.safetensors and in model-2.safetensors"):
        merged(left, experts["math"], tmp_path / "again")


def test_all_of_lefts_files_go_along(experts, tmp_path, monkeypatch):
    left = shutil.copytree(experts["science"], tmp_path / "left")
    kept = ["preprocessor_config.json", "modeling_own.py", "vocab.txt", "spiece.model", "LICENSE",
            "tekken.json", "additional_chat_templates/tool.jinja", "modules.json",
            "1_Pooling/config.json", "qwen.tiktoken"]  # fmt: skip
    left_out = ["pytorch_model.bin", "x.pt", "y.pth", "z.gguf", "a/b.onnx", ".gitattributes",
                "adapter_config.json", "adapter_model.safetensors", "pytorch_model.bin.index.json",
                "checkpoints/step-000001/meta.json", "checkpoint-7/config.json",
                "train_config.json", ".cache/x.json"]  # fmt: skip
    for name in (*kept, *left_out):
        (left / name).parent.mkdir(parents=True, exist_ok=True)
        (left / name).write_text(name)
    (left / "corpus.txt").write_text("x" * 5000)
    monkeypatch.setattr(places, "LARGEST", 4000)
    (left / "tokenizer.json").write_text("{}")
    said = []
    log = Log()
    log.warn = said.append
    run_merge(MergeConfig((left, experts["math"], tmp_path / "out")), log)
    there = {p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*")}
    assert set(kept) <= there
    assert not set(left_out) & there
    assert (tmp_path / "out" / "1_Pooling" / "config.json").read_text() == "1_Pooling/config.json"
    assert any("corpus.txt: too large to go along" in line for line in said)


def test_tokenizers_and_code_load_from_the_output_as_from_left(tmp_path):
    """A BERT with its vocab.txt, and a model whose class lies beside it."""
    transformers = pytest.importorskip("transformers")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "hello", "world", "##s"]
    bert = transformers.BertConfig(
        vocab_size=len(words), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16,
    )  # fmt: skip
    code = (
        "from transformers import BertModel\n"
        "class OwnModel(BertModel):\n    answer = 42\n"
    )  # fmt: skip
    folders = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        folder = tmp_path / f"bert{seed}"
        transformers.BertModel(bert).save_pretrained(folder)
        (folder / "vocab.txt").write_text("\n".join(words))
        (folder / "modeling_own.py").write_text(code)
        config = json.loads((folder / "config.json").read_text())
        config["auto_map"] = {"AutoModel": "modeling_own.OwnModel"}
        (folder / "config.json").write_text(json.dumps(config))
        folders.append(folder)
    merged(*folders, tmp_path / "out")
    loaded = [
        transformers.BertTokenizer.from_pretrained(folder)("hello worlds")["input_ids"]
        for folder in (folders[0], tmp_path / "out")
    ]
    assert loaded[0] == loaded[1] == [2, 5, 6, 7, 3]
    model = transformers.AutoModel.from_pretrained(tmp_path / "out", trust_remote_code=True)
    assert model.answer == 42
    wanted = arcee_fusion(*(tensors_of(f)["pooler.dense.weight"] for f in folders))
    assert torch.equal(model.pooler.dense.weight.detach(), wanted)


def test_heads_and_tables_that_not_all_models_have(tmp_path):
    """Absent is unknown: a copy of the embedding, and what is computed anew, are no difference."""
    embedding, w = torch.randn(6, 4), torch.randn(3, 3)
    names = {"model.embed_tokens.weight": embedding, "w": w}
    table = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.rand(4)}
    with_head = small_checkpoint(
        tmp_path / "head", **names, **{"lm_head.weight": embedding.clone()}, **table
    )
    without = small_checkpoint(tmp_path / "none", **names)
    for number, pair in enumerate(((with_head, without), (without, with_head))):
        out = tmp_path / f"out{number}"
        merged(*pair, out)
        assert set(tensors_of(out)) == set(names)
        config = json.loads((out / "config.json").read_text())
        assert config["tie_word_embeddings"] is True
        left_out = json.loads((out / "merge_report.json").read_text())["merge"]["left_out"]
        assert left_out == ["lm_head.weight", *table]
    other = small_checkpoint(tmp_path / "other", **names, **{"lm_head.weight": -embedding})
    with pytest.raises(UserError, match=r"lm_head.weight: not in"):
        merged(without, other, tmp_path / "no")


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"pytorch_model.bin": ""}, "has pytorch_model.bin only; python -c"),
        ({"adapter_config.json": "{}", "adapter_model.safetensors": ""}, "a LoRA adapter, no mod"),
        ({"consolidated.safetensors": ""}, "has consolidated.safetensors only; download"),
        ({"q4.gguf": ""}, "GGUF only, which is not read"),
        ({}, "neither model.safetensors nor"),
    ],
)
def test_refusals_say_what_to_do(experts, tmp_path, files, said):
    folder = tmp_path / "given"
    folder.mkdir()
    for name, text in files.items():
        (folder / name).write_text(text)
    done = call("merge", folder, experts["math"], tmp_path / "out")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert said in done.stderr


def test_places_that_are_no_checkpoint(experts, tmp_path):
    out = tmp_path / "out"
    done = call("merge", "owner/name", experts["math"], out)
    assert "hf download owner/name --local-dir name" in done.stderr
    cache = tmp_path / "models--owner--name"
    shutil.copytree(experts["science"], cache / "snapshots" / "abc")
    assert call("merge", cache, experts["math"], out, "--dry-run").returncode == 0
    shutil.copytree(experts["science"], cache / "snapshots" / "def")
    done = call("merge", cache, experts["math"], out)
    assert "with 2 snapshots: " in done.stderr
    recipe = tmp_path / "m.yaml"
    recipe.write_text("models:\n  - model: a\n  - model: b\nmerge_method: arcee_fusion\n"
                      "base_model: b\n")  # fmt: skip
    done = call("merge", recipe, experts["math"], out)
    assert "its like here: merge.py b a OUT --method arcee_fusion (and its" in done.stderr
    recipe.write_text("slices:\n  - sources:\n    - model: a\n      layer_range: [0, 3]\n")
    done = call("merge", recipe, experts["math"], out)
    assert "a mergekit configuration is not read: give directories" in done.stderr


def test_values_beyond_the_outputs_range_are_refused(experts, tmp_path):
    shutil.copytree(experts["math"], tmp_path / "large")
    file = tmp_path / "large" / "model.safetensors"
    tensors = load_file(file)
    tensors["model.norm.weight"][0] = 1e6
    save_file(tensors, file)
    for options in ([], ["--method", "linear"]):
        with pytest.raises(UserError, match=r"model.norm.weight: values beyond the range"):
            merged(
                *(experts["science"], tmp_path / "large", tmp_path / "out"),
                *("--dtype", "fp16", *options),
            )
        shutil.rmtree(tmp_path / "out.partial")
    half = tmp_path / "half"
    shutil.copytree(experts["science"], half)
    halves = {k: v.half() for k, v in load_file(half / "model.safetensors").items()}
    save_file(halves, half / "model.safetensors")
    with pytest.raises(UserError, match=r"is beyond the dtype"):
        merged(half, tmp_path / "large", tmp_path / "out")


def test_a_crash_between_a_lost_shard_and_the_journal_writes_no_zeros(
    experts, tmp_path, monkeypatch
):
    def config(out):
        paths = (experts["science"], experts["math"], tmp_path / out)
        return MergeConfig(paths, shard_size=6e-5, threads=1)

    run_merge(config("whole"), QUIET)
    monkeypatch.setattr(merging, "SYNC_BYTES", 1)
    with monkeypatch.context() as patch:
        patch.setattr(merging, "copy_side_files", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run_merge(config("out"), QUIET)
    sorted((tmp_path / "out.partial").glob("*.safetensors"))[0].unlink()
    with monkeypatch.context() as patch:
        patch.setattr(merging, "write_jsonl", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run_merge(config("out"), QUIET)
    run_merge(config("out"), QUIET)
    assert file_hashes(tmp_path / "out") == file_hashes(tmp_path / "whole")


def test_a_merge_that_died_at_its_end_needs_no_more_disk(experts, tmp_path, monkeypatch):
    def config():
        return MergeConfig((experts["science"], experts["math"], tmp_path / "out"))

    with monkeypatch.context() as patch:
        patch.setattr(merging, "copy_side_files", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run_merge(config(), QUIET)
    free = shutil.disk_usage(tmp_path)._replace(free=10_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free)
    run_merge(config(), QUIET)
    assert (tmp_path / "out" / "config.json").exists()


def test_odd_inputs(experts, tmp_path, monkeypatch):
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(UserError, match="not an empty directory"):
        merged(experts["math"], experts["science"], file)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "config.json").write_text("{}")
    save_file({}, tmp_path / "empty" / "model.safetensors")
    with pytest.raises(UserError, match="no tensors in it"):
        merged(tmp_path / "empty", tmp_path / "empty", tmp_path / "out")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    merged(experts["math"], experts["science"], ".", "--method", "linear")
    assert (tmp_path / "here" / "merge_report.json").exists()


def test_damaged_shards_are_named(experts, tmp_path):
    shutil.copytree(experts["math"], tmp_path / "cut")
    file = tmp_path / "cut" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"model.safetensors: damaged"):
        run_merge(MergeConfig((experts["science"], tmp_path / "cut", tmp_path / "out")), QUIET)


def test_diff_by_hand(tmp_path):
    def diff(a, b):
        return diff_rows(a[None], b[None], tuple(a.shape))

    a, b = torch.tensor([3.0, 4.0, 0.0, 0.0]), torch.tensor([3.0, 4.0, 0.0, 12.0])
    d = diff(a, b)
    assert (d.share_changed, d.relative_norm, d.largest) == (0.25, 12 / 5, 12)
    assert d.cosine == pytest.approx(5 / 13)
    assert diff(a, a) == (0, 0, pytest.approx(1), 0)
    assert diff(a[:0], a[:0]).cosine == 1
    assert diff(a * 0, a * 0).relative_norm == 0
    assert diff(a * 0, a).relative_norm is None
    c = torch.tensor([float("nan"), 1.0])
    assert diff(c, c).share_changed == 0
    assert diff(c, c + 1).share_changed == 0.5
    assert math.isnan(diff(c, c + 1).largest)


def test_diff_through_the_command_line(experts):
    done = merge("--diff", experts["base"], experts["math"])
    assert done.returncode == 0, done.stderr
    lines = done.stdout.strip().splitlines()
    assert len(lines) == 2 + len(Checkpoint(experts["base"]).specs)
    assert any("layers.0.mlp.up_proj.weight | 100.00 |" in line for line in lines)
    assert merge("--diff", experts["base"]).returncode == 2


def test_diff_saved(experts, tmp_path):
    done = merge("--diff", experts["base"], experts["math"], "--save", tmp_path / "diff")
    assert done.returncode == 0, done.stderr
    saved = json.loads((tmp_path / "diff" / "diff.json").read_text())
    entry = saved["tensors"]["model.norm.weight"]
    base, other = (tensors_of(experts[n])["model.norm.weight"] for n in ("base", "math"))
    assert entry["relative_norm"] == pytest.approx(float((other - base).norm() / base.norm()), 1e-5)
    assert (tmp_path / "diff" / "diff.md").read_text() == done.stdout
    assert (tmp_path / "diff" / "diff.png").read_bytes().startswith(b"\x89PNG")


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
    merged(experts["math"], near, tmp_path / "out")
    report = json.loads((tmp_path / "out" / "merge_report.json").read_text())["tensors"]
    assert report["model.norm.weight"]["flags"] == ["threshold_collapsed"]
    others = [e for n, e in report.items() if n != "model.norm.weight"]
    assert all(e["flags"] == [] and e["share_changed"] == 0 for e in others)
    assert torch.equal(
        tensors_of(tmp_path / "out")["model.norm.weight"], tensors["model.norm.weight"]
    )
