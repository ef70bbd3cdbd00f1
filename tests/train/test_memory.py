"""The dry run's memory against the tracker, against what can be counted by hand, its verdicts."""

import dataclasses
import json
import math
import re
import shutil

import pytest
import torch
from conftest import ROOT, call, run

from tinyr1.common.config import load_recipe, parse
from tinyr1.model.config import Qwen2Config
from tinyr1.model.qwen2 import Qwen2, parameter_count, tensor_shapes
from tinyr1.train import space
from tinyr1.train.flops import TrainingFlops
from tinyr1.train.memory import DEPTHS, GIB, fake_ranks, memory_parts, traced_phases
from tinyr1.train.optim import make_optimizer
from tinyr1.train.options import RECIPES, TrainConfig
from tinyr1.train.parallel import Sharding, clip_gradients, shard

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
# hidden, intermediate, layers, heads, key/value heads, words, tied; GPUs
SHAPES = {
    "0.5B": (896, 4864, 24, 14, 2, 151936, True, 1),
    "1.5B": (1536, 8960, 28, 12, 2, 151936, True, 1),
    "7B": (3584, 18944, 28, 28, 4, 152064, False, 1),
    "7B on 2": (3584, 18944, 28, 28, 4, 152064, False, 2),
    "32B on 8": (5120, 27648, 64, 40, 8, 152064, False, 8),
}


def shape_of(name, layers=None):
    hidden, inner, depth, heads, kv, words, tied, _ = SHAPES[name]
    return Qwen2Config(
        vocab_size=words,
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers or depth,
        num_attention_heads=heads,
        num_key_value_heads=kv,
        head_dim=hidden // heads,
        tie_word_embeddings=tied,
    )


def tracked(model_config, config):
    """GiB at the peak, by torch's own tracker around what the run itself makes and calls."""
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.distributed._tools.fsdp2_mem_tracker import FSDPMemTracker

    count = config.seq_len
    with fake_ranks(config.world_size, 1) as mesh, FakeTensorMode(allow_non_fake_inputs=True):
        model = Qwen2(model_config)
        shard(model, mesh, Sharding(torch.bfloat16, "full"))
        moments = torch.bfloat16 if config.optim_dtype == "bf16" else torch.float32
        optimizer = make_optimizer(model, 1e-5, (0.9, 0.95), 1e-8, 0.01, moments)
        rows = torch.arange(count)
        # Without the places of documents: attention on a CPU would read them, and there is nothing.
        batch = {"positions": rows[None], "target_rows": rows, "targets": rows}
        batch["weights"] = torch.ones(count)

        def step(enter=lambda: None):
            for _ in range(2):
                enter()
                model(rows[None], **batch).backward()
            clip_gradients(model, 1.0)
            optimizer.step()
            optimizer.zero_grad()

        step()
        tracker = FSDPMemTracker(model, optimizer)
        tracker.track_inputs((rows, *batch.values()))
        with tracker:
            step(tracker.reset_mod_stats)
        (snapshot,) = tracker.get_tracker_snapshot("peak").values()
        return snapshot["Total"] / GIB


@pytest.mark.parametrize(
    ("name", "layers", "optim_dtype"),
    [("1.5B", 9, "bf16"), pytest.param("32B on 8", 9, "bf16", marks=pytest.mark.slow)]
    + [
        pytest.param(name, None, dtype, marks=pytest.mark.slow)
        for name in SHAPES
        for dtype in ("bf16", "fp32")
    ],
)
def test_the_plan_is_what_the_tracker_sees(name, layers, optim_dtype):
    """The plan of two depths for a third; at full depth with -m slow."""
    model_config = shape_of(name, layers)
    config = TrainConfig(world_size=SHAPES[name][-1], optim_dtype=optim_dtype)
    planned = sum(memory_parts(model_config, config).values())
    assert planned == pytest.approx(tracked(model_config, config), rel=0.02)


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
    traced = (traced_phases(SMALL, config, depth)["loss"] for depth in DEPTHS)
    low, high = (parts["stored activations"] for parts in traced)
    assert high - low == pytest.approx((DEPTHS[1] - DEPTHS[0]) * 1024 * 256 * 2 / GIB, rel=1e-3)


def test_two_depths_predict_a_third():
    config = TrainConfig(seq_len=1024, world_size=4, optim_dtype="fp32")
    traced = traced_phases(SMALL, config, 12).values()
    highest = max(sum(parts.values()) for parts in traced)
    assert sum(memory_parts(SMALL, config).values()) == pytest.approx(highest, rel=1e-3)


def test_buffers_are_named_for_what_they_are():
    """Of a small model with many words the loss is the peak: its gradients are no activations."""
    wide = dataclasses.replace(SMALL, vocab_size=100_000, num_hidden_layers=2)
    config = TrainConfig(seq_len=1024, world_size=1)
    parts = memory_parts(wide, config)
    assert parts["stored activations"] < 0.01  # a few inputs of blocks, half a MiB each
    # Logits of a chunk in float32 and their gradient in bfloat16, at least.
    assert parts["buffers of the loss"] > 1024 * 100_000 * 6 / GIB
    update = traced_phases(wide, config, 2)["update"]
    assert update["temporaries of the update"] < 0.15


def test_host_and_disk_by_hand():
    count = parameter_count(SMALL)
    config = TrainConfig(world_size=4, optim_dtype="bf16", keep=3, export_every=10)
    parts = space.host_parts(SMALL, config)
    assert parts["copy of weights and moments while a checkpoint is written"] == 8 * count / 4 / GIB
    offloaded = space.host_parts(SMALL, dataclasses.replace(config, cpu_offload=True))
    assert sum(offloaded.values()) - sum(parts.values()) == pytest.approx(12 * count / 4 / GIB)
    disk = space.disk_parts(SMALL, config, steps=25)
    assert list(disk.values()) == [4 * 8 * count, 2 * count, 2 * 2 * count]


def test_a_disk_that_is_too_small_is_refused_before_the_first_step(tiny, tmp_path, monkeypatch):
    data = tmp_path / "a.jsonl"
    message = {"role": "assistant", "content": "<think>\na\n</think>\n\nb"}
    row = {"messages": [{"role": "user", "content": "q"}, message]}
    data.write_text((json.dumps(row) + "\n") * 8)
    arguments = ["math", "--model", tiny, "--data", data, "--out", tmp_path / "out", "--quiet"]
    arguments += ["--seq-len", 64, "--batch-size", 8, "--max-steps", 1]
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(space.shutil, "disk_usage", lambda _: usage._replace(free=1000))
    done = call("train", *arguments)
    assert done.returncode == 2
    assert "0.0 MB are free there; a checkpoint takes" in done.stderr
    assert not (tmp_path / "out" / "checkpoints").exists()


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


PUBLISHED = {  # config.json's figures
    "0.5B": SHAPES["0.5B"],
    "1.5B": SHAPES["1.5B"],
    "3B": (2048, 11008, 36, 16, 2, 151936, True),
    "7B": SHAPES["7B"],
    "14B": (5120, 13824, 48, 40, 8, 152064, False),
    "32B": SHAPES["32B on 8"],
}


def hardware():
    """The rows of README's table."""
    text = (ROOT / "README.md").read_text()
    return re.findall(
        r"^\| (\d) of (\d+) GB \| [\w.-]*?([\d.]+B) \| ?`?([^|`]*?)`? ?\| ([\d.]+) GiB "
        r"\| (\d+) GiB \| ([\d.]+) \|$",
        text,
        re.MULTILINE,
    )


@pytest.mark.parametrize(
    "row",
    [
        row if i == 0 else pytest.param(row, marks=pytest.mark.slow)
        for i, row in enumerate(hardware())
    ],
    ids=lambda row: f"{row[0]} of {row[1]}, {row[2]}",
)
def test_the_table_of_hardware_is_what_the_dry_run_says(row):
    gpus, card, name, options, memory, host, hours = row
    hidden, inner, layers, heads, kv, words, tied = PUBLISHED[name][:7]
    model_config = Qwen2Config(
        vocab_size=words,
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv,
        head_dim=hidden // heads,
        tie_word_embeddings=tied,
    )
    own = load_recipe(TrainConfig, "own", RECIPES)
    arguments = [*options.split(), "--world-size", gpus, "--gpu-memory-gib", card]
    config = parse(TrainConfig, arguments, "train.py", own)
    peak = sum(memory_parts(model_config, config).values())
    assert f"{peak:.1f}" == memory
    assert peak <= 0.95 * float(card)
    assert f"{int(gpus) * sum(space.host_parts(model_config, config).values()):.0f}" == host
    work = TrainingFlops.of(model_config).of_sequences([config.seq_len], config.seq_len)
    speed = int(gpus) * {"24": 165e12, "80": 989e12}[card] * 0.4
    assert f"{work * 1e8 / config.seq_len / speed / 3600:.1f}" == hours


def test_the_table_has_the_sizes_that_people_ask_for():
    rows = {(row[0], row[1], row[2]) for row in hardware()}
    asked = [("1", "24", "0.5B"), ("1", "80", "1.5B"), ("1", "80", "7B"), ("2", "80", "14B")]
    assert {*asked, ("4", "80", "14B"), ("8", "80", "32B")} <= rows
