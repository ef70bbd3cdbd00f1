"""`train.py --dry-run`: steps, tokens, hours, memory and disk, before anything is started.

Memory is not guessed from a formula: the training step itself, with the run's own model, sharding
and optimizer, runs at two small depths with fake tensors and a fake process group, under FSDP2's
own memory tracker. Each part of each phase of the step grows linearly with depth, so two depths
give any other, and the phase with the most is the peak. The step is the fullest one: gradients of
an earlier micro-step lie beside all stored activations. No weights are read, only config.json.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, get_args

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
from tinyr1.train.optim import make_optimizer
from tinyr1.train.options import Dtype, TrainConfig
from tinyr1.train.parallel import Sharding, clip_gradients, local_part, make_mesh, shard
from tinyr1.train.plan import Plan, describe, prepare
from tinyr1.train.space import GIB, block_input_bytes, print_host_and_disk

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
    "TEMP": "temporaries of backward",
}
# Phases of a step in their order, and what activations are there beside those that are stored.
PHASES = {
    "forward": "stored activations",  # those of the block at work cannot be told apart
    "loss": "buffers of the loss",
    "backward": "recomputed activations of one block",
    "clipping": "temporaries of clipping",
    "update": "temporaries of the update",
}
ON_HOST = ("clipping", "update")  # with --cpu-offload
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


def traced_phases(
    model_config: Qwen2Config,
    config: TrainConfig,
    depth: int,
    watch: Watch | None = None,
) -> dict[str, Parts]:
    """Of each phase of one training step of the model with `depth` layers, the parts of its peak.

    `watch(model, now)` is called before the step: it may hook modules, and `now()` gives the parts
    at that moment.
    """
    shallow = replace(model_config, num_hidden_layers=depth)
    how = Sharding(DTYPES[config.dtype or "bf16"], config.activation_checkpointing or "full")
    token_count = config.seq_len * config.micro_batch_size
    trace = _trace_gradients.__wrapped__ if watch else _trace_gradients  # what is watched happens
    traced = trace(shallow, how, config.world_size, config.replicate, token_count, watch)
    update = _trace_update(shallow, how, config.world_size, config.replicate, config.optim_dtype)
    moments = {"moments": update["moments"]}
    return {name: parts | moments for name, parts in traced.items()} | {"update": update}


@contextmanager
def _sharded(
    model_config: Qwen2Config, how: Sharding, world_size: int, replicate: int
) -> Iterator[Qwen2]:
    """The run's own model, sharded as the run does it, without memory."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with (
        fake_ranks(world_size, replicate) as mesh,
        FakeTensorMode(allow_non_fake_inputs=True),
    ):
        model = Qwen2(model_config)
        shard(model, mesh, how)
        yield model


@functools.cache  # alternatives of a plan differ in what is not traced, too
def _trace_gradients(
    model_config: Qwen2Config,
    how: Sharding,
    world_size: int,
    replicate: int,
    token_count: int,
    watch: Watch | None,
) -> dict[str, Parts]:
    """All phases but the update, without the optimizer's moments."""
    with _sharded(model_config, how, world_size, replicate) as model:
        tokens = torch.zeros(1, token_count, dtype=torch.int64)
        inputs: dict[str, Any] = {
            "positions": torch.arange(token_count)[None],
            "target_rows": torch.arange(token_count),
            "targets": torch.zeros(token_count, dtype=torch.int64),
            "weights": torch.ones(token_count),
        }
        model(tokens, **inputs).backward()  # rules of sharding are worked out, with temporaries
        clip_gradients(model, 1.0)
        model.zero_grad()
        tracker = _tracker(model)
        tracker.track_inputs((tokens, *inputs.values()))
        norm = model.model.norm  # after it comes the loss, and before its backward the loss's
        norm.register_forward_hook(lambda *_: tracker.enter("loss"))
        norm.register_full_backward_pre_hook(lambda *_: tracker.enter("backward"))
        with tracker:
            if watch:
                watch(model, lambda: _parts(tracker.now(), tracker, tracker.phase))
            for _ in range(2):  # the second micro-step finds the gradients of the first
                tracker.enter("forward")
                model(tokens, **inputs).backward()
            tracker.enter("clipping")
            clip_gradients(model, 1.0)
        return {name: _parts(sizes, tracker, name) for name, sizes in tracker.peaks.items()}


@functools.cache
def _trace_update(
    model_config: Qwen2Config, how: Sharding, world_size: int, replicate: int, optim_dtype: Dtype
) -> Parts:
    """The optimizer's step on gradients that are there."""
    with _sharded(model_config, how, world_size, replicate) as model:
        optimizer = make_optimizer(model, 1e-5, (0.9, 0.95), 1e-8, 0.01, DTYPES[optim_dtype])

        def step() -> None:
            for parameter in model.parameters():
                parameter.grad = torch.zeros_like(parameter)
            optimizer.step()

        step()
        states = [value for state in optimizer.state.values() for value in state.values()]
        tracker = _tracker(model, optimizer, sum(local_part(value).nbytes for value in states))
        with tracker:
            tracker.enter("update")
            step()
        return _parts(tracker.peaks["update"], tracker, "update")


def _tracker(model: Qwen2, optimizer: torch.optim.Optimizer | None = None, moments: int = 0) -> Any:
    """torch's memory tracker, which keeps the peak of each phase of a step apart.

    `moments` are the bytes of the optimizer's state: what else its step makes is temporary.
    """
    from torch.distributed._tools.fsdp2_mem_tracker import FSDPMemTracker

    class PhaseTracker(FSDPMemTracker):
        phase = ""
        stored = 0  # bytes of activations when the loss begins

        def __init__(self) -> None:
            super().__init__(model, optimizer)
            self.moments = moments
            self.peaks: dict[str, dict[str, int]] = {}

        def now(self) -> dict[str, int]:
            (snapshot,) = self.get_tracker_snapshot("current").values()
            return {str(kind).rpartition(".")[2]: size for kind, size in snapshot.items()}

        def enter(self, phase: str) -> None:
            if phase == "forward":
                self.reset_mod_stats()
            self.phase = phase
            if phase == "loss":
                self.stored = self.now()["ACT"]
            self._keep()

        def _keep(self) -> None:
            (snapshot,) = self._curr_mem_snap.values()
            if snapshot["Total"] > self.peaks.get(self.phase, {"Total": 0})["Total"]:
                self.peaks[self.phase] = self.now()

        def _update_peak_stats(self, peak_state: Any) -> None:  # after each operation
            super()._update_peak_stats(peak_state)
            self._keep()

    return PhaseTracker()


def _parts(sizes: dict[str, int], tracker: Any, phase: str) -> Parts:
    """A snapshot of the tracker in GiB, by our names."""
    more = dict.fromkeys((*NAMES.values(), *PHASES.values()), 0)
    more[PHASES[phase]] += max(0, sizes["ACT"] - tracker.stored)
    more["temporaries of the update"] += max(0, sizes["OPT"] - tracker.moments)
    sizes = sizes | {"ACT": min(sizes["ACT"], tracker.stored)}
    sizes["OPT"] = min(sizes["OPT"], tracker.moments)
    for kind, name in NAMES.items():
        more[name] += sizes.get(kind, 0)
    parts = {name: size / GIB for name, size in more.items()}
    parts["other"] = max(0.0, sizes["Total"] / GIB - sum(parts.values()))
    return parts


def memory_parts(model_config: Qwen2Config, config: TrainConfig) -> Parts:
    """Peak memory per GPU in GiB, by part: that of the phase of a step which has the most."""
    layers = model_config.num_hidden_layers
    if layers <= max(DEPTHS):
        phases = traced_phases(model_config, config, layers)
    else:
        low, high = (traced_phases(model_config, config, depth) for depth in DEPTHS)
        share = (layers - DEPTHS[0]) / (DEPTHS[1] - DEPTHS[0])
        phases = {
            phase: {name: low[phase][name] + share * (high[phase][name] - low[phase][name])
                    for name in low[phase]}
            for phase in low
        }  # fmt: skip
    if config.cpu_offload:
        host = dict.fromkeys(HOST_PARTS, 0.0)
        phases = {name: parts | host for name, parts in phases.items() if name not in ON_HOST}
    if config.offload_checkpoints:
        # One input (tokens, hidden) a block; the block at work and the one on its way stay.
        saved = max(layers - 2, 0) * block_input_bytes(model_config, config) / GIB
        for parts in phases.values():
            parts["stored activations"] = max(0.0, parts["stored activations"] - saved)
    return max((dict(parts) for parts in phases.values()), key=lambda parts: sum(parts.values()))


def first_that_fits(model_config: Qwen2Config, config: TrainConfig, log: Log) -> str:
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
        values = {name: "" if changes[name] is True else f" {changes[name]}" for name in chosen}
        options = " ".join(flag(name) + value for name, value in values.items())
        log.say(f"does it fit with {options}?")
        plan = replace(config, **{name: changes[name] for name in chosen})
        if sum(memory_parts(model_config, plan).values()) <= LIMIT * config.gpu_memory_gib:
            return f"{options} would fit"
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
    steps = config.max_steps
    if config.data and any((folder / name).exists() for name in TOKENIZER_FILES):
        prepared = prepare(config, log)
        for line in describe(prepared):
            print(line)
        print(_hours(config, prepared.plan))
        steps = prepared.plan.total_steps
    else:
        full = config.batch_size * flops.of_sequences([config.seq_len], config.seq_len)
        print(f"a step of {config.batch_size} full sequences: {full:.2e} floating-point operations")
    print_host_and_disk(model, config, steps)
    print_memory(model, config, log)


def _hours(config: TrainConfig, plan: Plan) -> str:
    total = plan.total(plan.pack_flops)
    speed = config.world_size * config.peak_tflops * 1e12 * config.assumed_mfu
    return (
        f"work: {total:.2e} floating-point operations; about {total / speed / 3600:.1f} hours on "
        f"{config.world_size} GPUs at {config.assumed_mfu:.0%} of {config.peak_tflops:.0f} TFLOP/s"
    )


def print_memory(model: Qwen2Config, config: TrainConfig, log: Log) -> None:
    """Print the parts of the peak and the verdict; UserError if the plan does not fit."""
    depths = DEPTHS if model.num_hidden_layers > max(DEPTHS) else (model.num_hidden_layers,)
    traced = " and ".join(str(d) for d in depths)
    log.say(f"tracing a training step at {traced} layers (some seconds)")
    parts = memory_parts(model, config)
    peak = sum(parts.values())
    card = config.gpu_memory_gib
    print(f"\npeak memory per GPU: {peak:.1f} GiB of {card:.0f} GiB (traced at {traced} layers)")
    for name, size in parts.items():
        if size >= 0.005:
            print(f"  {size:7.2f} GiB  {name}")
    for dtype in get_args(Dtype):
        other = sum(memory_parts(model, replace(config, optim_dtype=dtype)).values())
        verdict = "fits" if other <= LIMIT * card else "does not fit"
        print(f"--optim-dtype {dtype}: {other:.1f} GiB, {verdict}")
    if not math.isfinite(peak) or peak > LIMIT * card:
        raise UserError(
            f"--gpu-memory-gib={card:g}: the plan needs {peak:.1f} GiB, more than {LIMIT:.0%} "
            f"of it; {first_that_fits(model, config, log)}"
        )
