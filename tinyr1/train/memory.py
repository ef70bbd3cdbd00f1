"""`train.py --dry-run`: steps, tokens, hours and memory per GPU, before anything is started.

Memory is not guessed from a formula: the training step itself runs at two small depths, with fake
tensors and a fake process group, under FSDP2's own memory tracker. Every part of the peak grows
linearly with depth, so two depths give any other. The step is the fullest one: gradients of an
earlier micro-step lie beside all stored activations. No weights are read, only config.json.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from tinyr1.common.config import flag, given, to_json
from tinyr1.common.errors import UserError
from tinyr1.common.log import Log
from tinyr1.model.config import Qwen2Config
from tinyr1.model.qwen2 import Qwen2, parameter_count
from tinyr1.model.tokenizer import TOKENIZER_FILES
from tinyr1.model.weights import DTYPES
from tinyr1.train.flops import TrainingFlops
from tinyr1.train.options import TrainConfig
from tinyr1.train.parallel import Sharding, make_mesh, shard
from tinyr1.train.plan import Plan, describe, prepare

GIB = 2**30
LIMIT = 0.95  # of a card: the rest is the CUDA context, NCCL's buffers and fragmentation
DEPTHS = (4, 8)
Parts = dict[str, float]  # GiB by what it is
Watch = Callable[[Qwen2, Callable[[], Parts]], object]

# The tracker's names for what lies on the card, and ours.
NAMES = {
    "SHARDED_PARAM": "master weights",
    "SHARDED_GRAD": "gradients",
    "OPT": "moments",
    "UNSHARDED_PARAM": "gathered weights",
    "ALL_GATHER": "all-gather buffer",
    "REDUCE_SCATTER": "reduce-scatter buffer",
    "UNSHARDED_GRAD": "unsharded gradients",
    "ACT": "stored activations",
    "TEMP": "temporaries of one block",
}
HOST_PARTS = ("master weights", "gradients", "moments")  # with --cpu-offload


@contextmanager
def fake_ranks(world_size: int, replicate: int) -> Iterator[DeviceMesh]:
    """A mesh of ranks that do not exist; collectives return at once."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", rank=0, world_size=world_size, store=FakeStore())
    try:
        yield make_mesh("cpu", world_size, replicate)  # whatever this machine has
    finally:
        dist.destroy_process_group()


def traced_parts(
    model_config: Qwen2Config,
    config: TrainConfig,
    depth: int,
    watch: Watch | None = None,
) -> Parts:
    """Parts of the peak of one training step of the model with `depth` layers, moments in fp32.

    `watch(model, now)` is called before the step: it may hook modules, and `now()` gives the parts
    at that moment.
    """
    shallow = replace(model_config, num_hidden_layers=depth)
    how = Sharding(DTYPES[config.dtype or "bf16"], config.activation_checkpointing or "full")
    token_count = config.seq_len * config.micro_batch_size
    trace = _trace.__wrapped__ if watch else _trace  # what is watched has to happen
    return dict(trace(shallow, how, config.world_size, config.replicate, token_count, watch))


@functools.cache  # alternatives of a plan differ in what is not traced, too
def _trace(
    model_config: Qwen2Config,
    how: Sharding,
    world_size: int,
    replicate: int,
    token_count: int,
    watch: Watch | None,
) -> Parts:
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.distributed._tools.fsdp2_mem_tracker import FSDPMemTracker

    with (
        fake_ranks(world_size, replicate) as mesh,
        FakeTensorMode(allow_non_fake_inputs=True),
    ):
        model = Qwen2(model_config)
        shard(model, mesh, how)
        optimizer = torch.optim.AdamW(model.parameters(), foreach=False)
        tokens = torch.zeros(1, token_count, dtype=torch.int64)
        inputs: dict[str, Any] = {
            "positions": torch.arange(token_count)[None],
            "target_rows": torch.arange(token_count),
            "targets": torch.zeros(token_count, dtype=torch.int64),
            "weights": torch.ones(token_count),
        }

        def step(tracker: Any = None) -> None:
            for _ in range(2):  # the second micro-step finds the gradients of the first
                if tracker:
                    tracker.reset_mod_stats()
                model(tokens, **inputs).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()

        step()  # untracked: sharding rules that are worked out once make temporaries of their own
        tracker = FSDPMemTracker(model, optimizer)
        tracker.track_inputs((tokens, *inputs.values()))
        with tracker:
            if watch:
                watch(model, lambda: _parts(tracker, "current"))
            step(tracker)
        return _parts(tracker, "peak")


def _parts(tracker: Any, when: Literal["current", "peak"]) -> Parts:
    (snapshot,) = tracker.get_tracker_snapshot(when).values()
    sizes = {str(kind).rpartition(".")[2]: size for kind, size in snapshot.items()}
    parts = {name: sizes.get(kind, 0) / GIB for kind, name in NAMES.items()}
    parts["other"] = max(0.0, sizes["Total"] / GIB - sum(parts.values()))
    return parts


def memory_parts(model_config: Qwen2Config, config: TrainConfig) -> Parts:
    """Peak memory per GPU in GiB, by part."""
    layers = model_config.num_hidden_layers
    if layers <= max(DEPTHS):
        parts = traced_parts(model_config, config, layers)
    else:
        low, high = (traced_parts(model_config, config, depth) for depth in DEPTHS)
        share = (layers - DEPTHS[0]) / (DEPTHS[1] - DEPTHS[0])
        parts = {name: low[name] + share * (high[name] - low[name]) for name in low}
    if config.optim_dtype == "bf16":
        parts["moments"] /= 2
    if config.offload_checkpoints:
        # One input (tokens, hidden) a block; the block at work and the one on its way stay.
        size = config.seq_len * config.micro_batch_size * model_config.hidden_size
        size *= DTYPES[config.dtype or "bf16"].itemsize
        saved = max(layers - 2, 0) * size / GIB
        parts["stored activations"] = max(0.0, parts["stored activations"] - saved)
    if config.cpu_offload:
        parts |= dict.fromkeys(HOST_PARTS, 0.0)
    return parts


def first_that_fits(model_config: Qwen2Config, config: TrainConfig) -> str:
    """The gentlest options with which the plan would fit, for the message of one that does not.

    One alone where one is enough, else more and more of them.
    """
    wanted: dict[str, Any] = {
        "optim_dtype": "bf16",
        "activation_checkpointing": "full",
        "micro_batch_size": 1,
        "offload_checkpoints": True,
        "cpu_offload": True,
    }
    changes = {k: v for k, v in wanted.items() if getattr(config, k) not in (v, None)}
    names = list(changes)
    for chosen in [*([name] for name in names), *(names[:n] for n in range(2, len(names) + 1))]:
        plan = replace(config, **{name: changes[name] for name in chosen})
        if sum(memory_parts(model_config, plan).values()) <= LIMIT * config.gpu_memory_gib:
            values = {name: "" if changes[name] is True else f" {changes[name]}" for name in chosen}
            return " ".join(flag(name) + value for name, value in values.items()) + " would fit"
    return "use more GPUs or a smaller --seq-len"


def print_plan(config: TrainConfig, log: Log) -> None:
    """Print the resolved config, what follows from it, and whether it fits; UserError if not."""
    folder = given(config.model, "--model")
    model = Qwen2Config.from_pretrained(folder)
    config.check_world(config.world_size, f"--world-size {config.world_size}")
    for name, value in to_json(config).items():
        print(f"{name} = {value}")
    print(f"\nmodel: {parameter_count(model):,} parameters")
    flops = TrainingFlops.of(model)
    if config.data and any((folder / name).exists() for name in TOKENIZER_FILES):
        prepared = prepare(config, log)
        for line in describe(config, prepared.corpus, prepared.plan):
            print(line)
        print(_hours(config, prepared.plan))
    else:
        full = config.batch_size * flops.of_sequences([config.seq_len], config.seq_len)
        print(f"a step of {config.batch_size} full sequences: {full:.2e} floating-point operations")
    print_memory(model, config)


def _hours(config: TrainConfig, plan: Plan) -> str:
    total = plan.total(plan.pack_flops)
    speed = config.world_size * config.peak_tflops * 1e12 * config.assumed_mfu
    return (
        f"work: {total:.2e} floating-point operations; about {total / speed / 3600:.1f} hours on "
        f"{config.world_size} GPUs at {config.assumed_mfu:.0%} of {config.peak_tflops:.0f} TFLOP/s"
    )


def print_memory(model: Qwen2Config, config: TrainConfig) -> None:
    """Print the parts of the peak and the verdict; UserError if the plan does not fit."""
    parts = memory_parts(model, config)
    peak = sum(parts.values())
    card = config.gpu_memory_gib
    depths = DEPTHS if model.num_hidden_layers > max(DEPTHS) else (model.num_hidden_layers,)
    traced = " and ".join(str(d) for d in depths)
    print(f"\npeak memory per GPU: {peak:.1f} GiB of {card:.0f} GiB (traced at {traced} layers)")
    for name, size in parts.items():
        print(f"  {size:7.2f} GiB  {name}")
    moments = parts["moments"]
    for dtype, factor in (("fp32", 2.0), ("bf16", 1.0)):
        own = 2.0 if config.optim_dtype == "fp32" else 1.0
        other = peak - moments + moments / own * factor
        verdict = "fits" if other <= LIMIT * card else "does not fit"
        print(f"--optim-dtype {dtype}: {other:.1f} GiB, {verdict}")
    if not math.isfinite(peak) or peak > LIMIT * card:
        raise UserError(
            f"--gpu-memory-gib={card:g}: the plan needs {peak:.1f} GiB, more than {LIMIT:.0%} "
            f"of it; {first_that_fits(model, config)}"
        )
