"""The dry run's memory against what can be counted by hand, and its verdicts at 32B."""

import dataclasses
import json
import math

import pytest
from conftest import run

from tinyr1.model.config import Qwen2Config
from tinyr1.model.qwen2 import parameter_count, tensor_shapes
from tinyr1.train.memory import DEPTHS, GIB, memory_parts, traced_parts
from tinyr1.train.options import TrainConfig

SMALL = Qwen2Config(
    vocab_size=512,
    hidden_size=256,
    intermediate_size=1024,
    num_hidden_layers=12,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=64,
)
QWEN_32B = {
    "model_type": "qwen2",
    "vocab_size": 152064,
    "hidden_size": 5120,
    "intermediate_size": 27648,
    "num_hidden_layers": 64,
    "num_attention_heads": 40,
    "num_key_value_heads": 8,
}


def block_size(config):
    shapes = tensor_shapes(config)
    return sum(math.prod(s) for name, s in shapes.items() if name.startswith("model.layers.0."))


def test_parts_and_slope_are_those_of_the_formula():
    config = TrainConfig(seq_len=1024, world_size=4, optim_dtype="bf16")
    parts = memory_parts(SMALL, config)
    count = parameter_count(SMALL)
    assert parts["master weights"] == pytest.approx(4 * count / 4 / GIB)
    assert parts["gradients"] == pytest.approx(4 * count / 4 / GIB)
    assert parts["moments"] == pytest.approx(4 * count / 4 / GIB, rel=1e-3)
    assert parts["gathered weights"] == pytest.approx(2 * block_size(SMALL) / GIB, rel=0.35)
    # Full checkpointing stores what enters each block, in bfloat16.
    low, high = (traced_parts(SMALL, config, depth)["stored activations"] for depth in DEPTHS)
    assert high - low == pytest.approx((DEPTHS[1] - DEPTHS[0]) * 1024 * 256 * 2 / GIB, rel=1e-3)


def test_two_depths_predict_a_third():
    config = TrainConfig(seq_len=1024, world_size=4, optim_dtype="fp32")
    predicted, traced = memory_parts(SMALL, config), traced_parts(SMALL, config, 12)
    assert sum(predicted.values()) == pytest.approx(sum(traced.values()), rel=1e-3)


def test_without_checkpoints_and_on_the_host():
    shallow = dataclasses.replace(SMALL, num_hidden_layers=3)
    config = TrainConfig(seq_len=1024, world_size=4)
    stored = [
        memory_parts(shallow, dataclasses.replace(config, activation_checkpointing=mode))
        for mode in ("full", "none")
    ]
    assert stored[1]["stored activations"] > 4 * stored[0]["stored activations"]
    host = memory_parts(shallow, dataclasses.replace(config, cpu_offload=True))
    assert host["master weights"] == host["moments"] == 0
    kept = memory_parts(shallow, dataclasses.replace(config, offload_checkpoints=True))
    inputs = (shallow.num_hidden_layers - 2) * 1024 * shallow.hidden_size * 2 / 2**30
    assert stored[0]["stored activations"] - kept["stored activations"] == pytest.approx(inputs)


def test_dry_run_of_the_paper_needs_only_a_config(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(QWEN_32B))
    done = run("train.py", "math", "--model", tmp_path, "--dry-run", "--world-size", 8)
    assert done.returncode == 0, done.stderr
    assert "32,763,876,352 parameters" in done.stdout
    peak = float(done.stdout.split("peak memory per GPU: ")[1].split()[0])
    assert 66 < peak < 70
    fits = {line.split()[1]: line for line in done.stdout.splitlines() if "--optim-dtype" in line}
    assert "does not fit" in fits["fp32:"]
    assert ", fits" in fits["bf16:"]


def test_a_plan_that_does_not_fit_is_refused_with_what_would(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(QWEN_32B | {"num_hidden_layers": 3}))
    arguments = ["--model", tmp_path, "--dry-run", "--gpu-memory-gib", "18"]
    done = run("train.py", "math", *arguments, "--optim-dtype", "fp32")
    assert done.returncode == 2
    assert "--optim-dtype bf16 would fit" in done.stderr
    done = run("train.py", "math", *arguments, "--replicate", "3")
    assert done.returncode == 2
    assert "--replicate=3: does not divide --world-size 8" in done.stderr
