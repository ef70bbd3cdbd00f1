"""`train.py --dry-run`: steps, tokens and memory per GPU, before anything is started.

The parts are computed from shapes: what every parameter costs in each of its roles, and what the
activations of a row of `seq_len` tokens cost when the fullest moment comes, which is the start of
the second micro-step's backward: all checkpoints are stored, and the gradients of the first
micro-step lie beside them.
"""

from __future__ import annotations

import math
from dataclasses import replace

from tinyr1.chat import TOKENIZER_FILES
from tinyr1.config import require, to_json
from tinyr1.log import Log
from tinyr1.model import Qwen2Config
from tinyr1.train_plan import TrainConfig, describe, prepare

GIB = 2**30
CARD_GIB = 80
RESERVE_GIB = 3.0  # CUDA context, NCCL buffers, fragmentation


def memory_parts(model: Qwen2Config, config: TrainConfig) -> dict[str, float]:
    """Peak memory per GPU in GiB by part, for bf16 compute and fp32 master weights under FSDP."""
    shapes = model.tensor_shapes()
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    shard = sum(sizes.values()) / config.world_size
    block = sum(n for name, n in sizes.items() if name.startswith("model.layers.0."))
    unit = max(block, sizes["model.embed_tokens.weight"])
    tokens = config.seq_len * config.micro_batch_size
    compute = 4 if config.dtype == "fp32" else 2
    width, mlp = model.hidden_size, model.intermediate_size
    # Within one block: four tensors of the MLP's width and a dozen of the model's are saved, and
    # three of the MLP's width appear as gradients.
    in_block = tokens * compute * (7 * mlp + 12 * width)
    checkpointed = config.activation_checkpointing != "none"
    stored = tokens * compute * (width if checkpointed else 4 * mlp + 12 * width)
    moments = 4 if config.optim_dtype == "fp32" else 2
    parts = {
        "master weights (fp32)": 4 * shard,
        "gradients (fp32)": 4 * shard,
        f"moments ({config.optim_dtype})": 2 * moments * shard,
        "gathered units": 2 * compute * block,
        "reduce-scatter buffer": 4 * unit,
        "stored activations": model.num_hidden_layers * stored,
        "activations of one block": in_block,
        "context and reserve": RESERVE_GIB * GIB,
    }
    return {name: size / GIB for name, size in parts.items()}


def print_plan(config: TrainConfig, log: Log) -> None:
    """Print the resolved config, what follows from it, and whether it fits."""
    require(config, "model")
    assert config.model is not None
    model = Qwen2Config.from_pretrained(config.model)
    for name, value in to_json(config).items():
        print(f"{name} = {value}")
    print(f"\nmodel: {model.parameter_count():,} parameters")
    if config.data and any((config.model / n).exists() for n in TOKENIZER_FILES):
        _, corpus, plan, _ = prepare(config, log)
        for line in describe(config, corpus, plan):
            print(line)
    parts = memory_parts(model, config)
    peak = sum(parts.values())
    print(f"\npeak memory per GPU: {peak:.1f} GiB of {CARD_GIB} GiB (computed from shapes)")
    for name, size in parts.items():
        print(f"  {size:7.2f} GiB  {name}")
    for dtype in ("fp32", "bf16"):
        other = sum(memory_parts(model, replace(config, optim_dtype=dtype)).values())
        verdict = "fits" if other <= CARD_GIB else "does not fit"
        print(f"--optim-dtype {dtype}: {other:.1f} GiB, {verdict}")
