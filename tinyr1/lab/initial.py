"""The initial model of the laboratory: competent, but failing by habit.

Not part of the paper, which starts from DeepSeek-R1-Distill-Qwen-32B. Two stages from scratch,
with the package's own training step:
  1. pre-training on clean trajectories of the easy ranges of all domains, until the smoothed loss
     says that the model is competent;
  2. a short rough distillation on trajectories with empty thoughts and bad habits.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from tinyr1.common.errors import RunStopped
from tinyr1.common.files import write_json
from tinyr1.common.log import Log
from tinyr1.common.ranks import Ranks
from tinyr1.lab.world import DOMAINS, Problem, World
from tinyr1.model.chat import render
from tinyr1.model.config import Qwen2Config
from tinyr1.model.qwen2 import Qwen2
from tinyr1.model.rows import TensorSpec
from tinyr1.model.tokenizer import Tokenizer
from tinyr1.model.writer import CheckpointWriter
from tinyr1.record import Message, Pack
from tinyr1.train.optim import parameter_groups
from tinyr1.train.packing import make_batch
from tinyr1.train.sft import train_step

Draw = Callable[[random.Random], "tuple[Problem, str]"]


class Schedule(NamedTuple):
    """A stage's length: it holds until the smoothed loss is below `target`, then decays."""

    hold_steps: int  # at most, at the full rate
    decay_steps: int
    target: float
    batch_size: int


class Together:
    """Two optimizers that step as one: Muon for the matrices of the blocks, AdamW for the rest."""

    def __init__(self, *optimizers: torch.optim.Optimizer) -> None:
        self.optimizers = optimizers
        self.peaks = [[g["lr"] for g in o.param_groups] for o in optimizers]

    def set_rate(self, factor: float) -> None:
        for optimizer, peaks in zip(self.optimizers, self.peaks, strict=True):
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * factor

    def step(self) -> None:
        for optimizer in self.optimizers:
            optimizer.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none)


def model_config(vocab_size: int) -> Qwen2Config:
    """The laboratory's Qwen2: some 430,000 parameters."""
    return Qwen2Config(
        vocab_size=vocab_size,
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=24,
        max_position_embeddings=256,
        tie_word_embeddings=True,
    )


def initialise(model: Qwen2, seed: int) -> None:
    """Fan-in initialisation with silent residual branches (their output projections start at 0)."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.fill_(1.0)
            elif name.endswith((".bias", "o_proj.weight", "down_proj.weight")):
                parameter.zero_()
            else:
                std = 0.1 if "embed" in name else parameter.shape[1] ** -0.5
                parameter.normal_(0.0, std, generator=generator)


def pretrain_optimizer(model: Qwen2) -> Together:
    """Muon on the projections (twice as fast to competence as AdamW here), AdamW on the rest."""
    blocks = [p for n, p in model.named_parameters() if p.ndim == 2 and "layers" in n]
    rest = nn.ParameterList(
        [p for n, p in model.named_parameters() if not (p.ndim == 2 and "layers" in n)]
    )
    return Together(
        torch.optim.Muon(blocks, lr=0.02, momentum=0.95, weight_decay=0.01),
        torch.optim.AdamW(parameter_groups(rest, 0.01), lr=3e-3, betas=(0.9, 0.95)),
    )


def rough_optimizer(model: Qwen2) -> Together:
    return Together(torch.optim.AdamW(parameter_groups(model, 0.01), lr=5e-4, betas=(0.9, 0.95)))


def clean_easy(world: World) -> Draw:
    """Pre-training text: the careful teacher on easy problems, domains 3:3:4."""

    def draw(rng: random.Random) -> tuple[Problem, str]:
        domain = rng.choices(DOMAINS, (3, 3, 4))[0]
        problem = world.problem(domain, rng, easy=True)
        return problem, world.answer(problem, rng)

    return draw


def rough(world: World) -> Draw:
    """The rough distillation: 30 % empty thoughts, 40 % with the habit, 30 % careful."""

    def draw(rng: random.Random) -> tuple[Problem, str]:
        problem = world.problem(rng.choices(DOMAINS, (3, 3, 4))[0], rng, easy=True)
        kind = rng.choices(("hasty", "habit", "careful"), (3, 4, 3))[0]
        if kind == "hasty":
            return problem, world.hasty_answer(problem, rng)
        return problem, world.answer(problem, rng, habit=kind == "habit")

    return draw


def _documents(
    draw: Draw, rng: random.Random, tokenizer: Tokenizer, excluded: set[str]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """An endless stream of tokenised trajectories without the held-out prompts."""
    while True:
        problem, text = draw(rng)
        if problem.prompt in excluded:
            continue
        messages = (Message("user", problem.prompt), Message("assistant", text))
        example = render(tokenizer, messages, "deepseek_r1")
        yield np.asarray(example.tokens), np.asarray(example.is_target)


def fit(
    model: Qwen2,
    optimizer: Together,
    documents: Iterator[tuple[np.ndarray, np.ndarray]],
    schedule: Schedule,
    log: Log,
    name: str,
) -> dict[str, Any]:
    """Train until the smoothed loss reaches the target (or the hold ends), then decay to 5 %."""
    smoothed = math.inf
    hold = schedule.hold_steps
    step = 0
    bar = log.bar(total=schedule.hold_steps + schedule.decay_steps, desc=name, unit="step")
    with bar:
        while step < hold + schedule.decay_steps:
            step += 1
            warmup = min(1.0, step / 40)
            decayed = max(0, step - hold) / schedule.decay_steps
            optimizer.set_rate(warmup * (1 - 0.95 * decayed))
            picked = [next(documents) for _ in range(schedule.batch_size)]
            packs = [Pack((i,), len(tokens)) for i, (tokens, _) in enumerate(picked)]
            batch = make_batch(packs, picked.__getitem__, "neat")
            weight = float(len(batch.targets))
            stats = train_step(model, [batch], weight, optimizer, Ranks(), clip_norm=1.0)  # pyright: ignore
            if not stats.updated:
                raise RunStopped(f"{name}: loss={stats.loss} at step {step}")
            smoothed = stats.loss if step == 1 else 0.95 * smoothed + 0.05 * stats.loss
            if step < hold and smoothed < schedule.target:
                hold = step
                bar.total = step + schedule.decay_steps
            bar.set_postfix(loss=f"{smoothed:.4f}", refresh=False)
            bar.update()
    return {"steps": step, "loss": smoothed}


def make_initial_model(
    world: World,
    tokenizer: Tokenizer,
    folder: Path,
    seed: int,
    schedules: tuple[Schedule, Schedule],
    excluded: set[str],
    log: Log,
) -> dict[str, Any]:
    """Train the initial model and write it into `folder`, where its tokenizer already lies."""
    config = model_config(tokenizer.largest_id + 1)
    model = Qwen2(config)
    initialise(model, seed)
    stages = (
        ("pre-training", pretrain_optimizer, clean_easy(world), schedules[0]),
        ("rough distillation", rough_optimizer, rough(world), schedules[1]),
    )
    report: dict[str, Any] = {}
    for name, make_optimizer, draw, schedule in stages:
        documents = _documents(draw, random.Random(f"{name}:{seed}"), tokenizer, excluded)
        report[name] = fit(model, make_optimizer(model), documents, schedule, log, name)
    save_model(model, folder)
    return report


def save_model(model: Qwen2, folder: Path) -> None:
    """Write weights and a config.json in the published style."""
    config = asdict(model.config)
    del config["yarn"]
    extra = {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_act": "silu",
        "torch_dtype": "float32",
    }
    write_json(folder / "config.json", config | extra)
    tensors = {name: p.detach() for name, p in model.named_parameters()}
    specs = {name: TensorSpec(tuple(t.shape), t.dtype) for name, t in tensors.items()}
    with CheckpointWriter(folder, specs) as writer:
        for name, tensor in tensors.items():
            writer.write(name, tensor)
