"""Host memory and disk that a run needs, counted from its shapes; and whether they are there.

The page cache of mapped files (weights, tokens) is not counted: the system takes it back.
"""

from __future__ import annotations

import math
import os
import shutil
from pathlib import Path

from tinyr1.common.errors import UserError
from tinyr1.common.log import Log
from tinyr1.model.config import Qwen2Config
from tinyr1.model.qwen2 import parameter_count, tensor_shapes
from tinyr1.model.weights import DTYPES
from tinyr1.train.options import TrainConfig

GIB = 2**30
GPUS_PER_NODE = 8  # that a plan assumes
PROGRAM = 2.0  # GiB of a process with torch and a GPU's context, assumed


def block_input_bytes(model_config: Qwen2Config, config: TrainConfig) -> int:
    """What full checkpointing keeps for a block: its input (tokens, hidden)."""
    size = config.seq_len * config.micro_batch_size * model_config.hidden_size
    return size * DTYPES[config.dtype or "bf16"].itemsize


def state_bytes(model_config: Qwen2Config, config: TrainConfig) -> int:
    """A checkpoint: float32 weights and two moments."""
    each = 4 + 2 * DTYPES[config.optim_dtype].itemsize
    return parameter_count(model_config) * each


def host_parts(model_config: Qwen2Config, config: TrainConfig) -> dict[str, float]:
    """Host memory in GiB of one process, by part."""
    count = parameter_count(model_config)
    shards = config.world_size // config.replicate
    state = state_bytes(model_config, config)
    parts = {
        "program and libraries (assumed)": PROGRAM,
        "copy of weights and moments while a checkpoint is written": state / shards / GIB,
    }
    if config.cpu_offload:
        parts["weights, gradients and moments (--cpu-offload)"] = (state + 4 * count) / shards / GIB
    if config.offload_checkpoints:
        blocks = max(model_config.num_hidden_layers - 2, 0)
        size = blocks * block_input_bytes(model_config, config) / GIB
        parts["inputs of blocks (--offload-checkpoints)"] = size
    largest = max(math.prod(shape) for shape in tensor_shapes(model_config).values())
    parts["one whole tensor, while the model is exported"] = 4 * largest / GIB
    return parts


def disk_parts(model_config: Qwen2Config, config: TrainConfig, steps: int = 0) -> dict[str, int]:
    """Bytes that a run of so many steps writes into --out at most, by part."""
    count = parameter_count(model_config)
    between = (steps - 1) // config.export_every if config.export_every and steps else 0
    model = export_bytes(count, config)
    checkpoints = (config.keep + 1) * state_bytes(model_config, config)
    parts = {f"checkpoints ({config.keep}, and one that is being written)": checkpoints}
    parts["the finished model"] = model
    return parts | ({f"{between} exports on the way": between * model} if between else {})


def export_bytes(count: int, config: TrainConfig) -> int:
    """A model of so many parameters, exported."""
    return count * DTYPES[config.export_dtype or config.dtype or "bf16"].itemsize


def print_host_and_disk(model_config: Qwen2Config, config: TrainConfig, steps: int) -> None:
    """Print both, and whether this machine has them."""
    host = host_parts(model_config, config)
    here = min(config.world_size, GPUS_PER_NODE)
    needed = here * sum(host.values())
    print(f"\nhost memory for {here} processes: {needed:.1f} GiB; {_verdict(needed, free_host())}")
    for name, size in host.items():
        print(f"  {here * size:7.2f} GiB  {name}")
    disk = disk_parts(model_config, config, steps)
    total = sum(disk.values()) / 1e9
    place = existing(config.out or Path())
    if not place.is_dir():
        raise UserError(f"--out={config.out}: {place} is a file; expected a directory")
    free = shutil.disk_usage(place).free / 1e9
    enough = "enough" if free >= total else "NOT enough"
    print(f"disk: {total:.1f} GB in --out; {free:.1f} GB are free in {place}, {enough}")
    for name, size in disk.items():
        print(f"  {size / 1e9:7.2f} GB  {name}")


def _verdict(needed: float, free: float | None) -> str:
    if free is None:
        return "what this machine has free is not known"
    return f"this machine has {free:.1f} GiB free, {'enough' if free >= needed else 'NOT enough'}"


def free_host() -> float | None:
    """GiB of host memory that programs could still take; None where the system does not say."""
    try:
        with open("/proc/meminfo") as file:
            lines = dict(line.split(":", 1) for line in file)
        return int(lines["MemAvailable"].split()[0]) / 2**20
    except (OSError, KeyError, ValueError):
        return None


def existing(path: Path) -> Path:
    """The path, or the nearest folder above it that exists."""
    path = Path(os.path.abspath(path))
    while not path.exists():
        path = path.parent
    return path


def check_disk(model_config: Qwen2Config, config: TrainConfig, out: Path, log: Log) -> None:
    """UserError where --out cannot hold another checkpoint and the finished model."""
    state = state_bytes(model_config, config)
    model = export_bytes(parameter_count(model_config), config)
    checkpoints = out / "checkpoints"
    torn = sum(_size(path) for path in checkpoints.glob("*.partial"))  # goes before the first one
    there = len([path for path in checkpoints.glob("step-*") if path.suffix == ""])
    free = shutil.disk_usage(existing(out)).free + torn
    numbers = (
        f"{_said(free)} are free there; a checkpoint takes {_said(state)} and the finished model "
        f"{_said(model)}"
    )
    if free < state + model:
        raise UserError(f"--out={out}: {numbers}; free some space or choose another disk")
    if free < (config.keep + 1 - min(there, config.keep)) * state + model:
        log.warn(f"--out={out}: {numbers}: not enough for --keep {config.keep} and one more")


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _said(size: int) -> str:
    """Bytes in the unit that people read."""
    return f"{size / 1e9:.1f} GB" if size >= 10**8 else f"{size / 1e6:.1f} MB"
