"""The initial model of the laboratory: competent, but failing by habit.

Not part of the paper, which starts from DeepSeek-R1-Distill-Qwen-32B. Two stages from scratch,
with the package's own training step:
  1. pre-training on clean trajectories of the easy ranges of all domains, until the smoothed loss
     says that the model is competent;
  2. a short rough distillation on trajectories with empty thoughts and bad habits.
"""

from __future__ import annotations

import functools
import math
import random
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from tinyr1.common.errors import RunStopped
from tinyr1.common.files import write_atomic, write_json
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

SAVE_EVERY = 100  # steps, some seconds
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


@dataclass
class Progress:
    """How far the training of the initial model is; what goes on from its file is the same run."""

    stage: int = 0
    step: int = 0
    hold: int = 0  # steps at the full rate, in this stage
    smoothed: float = math.inf
    report: dict[str, Any] = field(default_factory=dict)


class Saved:
    """A file with all that a training needs to go on: progress, weights, optimizers, stream."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(
        self, progress: Progress, model: Qwen2, optimizer: Together, rng: random.Random
    ) -> None:
        """Keep the state after a step."""
        buffer = BytesIO()
        states = [o.state_dict() for o in optimizer.optimizers]
        torch.save((asdict(progress), model.state_dict(), states, rng.getstate()), buffer)
        write_atomic(self.path, buffer.getvalue())

    def read(self, model: Qwen2) -> tuple[Progress, Any, Any]:
        """Put the weights back; progress, and the optimizers' and the stream's states."""
        progress, weights, optimizers, stream = torch.load(self.path, weights_only=True)
        model.load_state_dict(weights)
        return Progress(**progress), optimizers, stream


def fit(
    model: Qwen2,
    optimizer: Together,
    documents: Iterator[tuple[np.ndarray, np.ndarray]],
    schedule: Schedule,
    progress: Progress,
    keep: Callable[[], None],
    bar: Any,
) -> None:
    """Train until the smoothed loss reaches the target (or the hold ends), then decay to 5 %.

    `keep` is called from time to time, after a step.
    """
    while progress.step < progress.hold + schedule.decay_steps:
        progress.step += 1
        warmup = min(1.0, progress.step / 40)
        decayed = max(0, progress.step - progress.hold) / schedule.decay_steps
        optimizer.set_rate(warmup * (1 - 0.95 * decayed))
        picked = [next(documents) for _ in range(schedule.batch_size)]
        packs = [Pack((i,), len(tokens)) for i, (tokens, _) in enumerate(picked)]
        batch = make_batch(packs, picked.__getitem__, "neat")
        weight = float(len(batch.targets))
        stats = train_step(model, [batch], weight, optimizer, Ranks(), clip_norm=1.0)  # pyright: ignore
        if not stats.updated:
            raise RunStopped(f"initial model: loss={stats.loss} at step {progress.step}")
        is_first = progress.step == 1
        progress.smoothed = stats.loss if is_first else 0.95 * progress.smoothed + 0.05 * stats.loss
        if progress.step < progress.hold and progress.smoothed < schedule.target:
            progress.hold = progress.step
            bar.total = progress.step + schedule.decay_steps
        bar.set_postfix(loss=f"{progress.smoothed:.4f}", refresh=False)
        bar.update()
        if progress.step % SAVE_EVERY == 0:
            keep()


def make_initial_model(
    world: World,
    tokenizer: Tokenizer,
    folder: Path,
    seed: int,
    schedules: tuple[Schedule, Schedule],
    excluded: set[str],
    log: Log,
    saved: Saved,
) -> dict[str, Any]:
    """Train the initial model and write it into `folder`, where its tokenizer already lies.

    An earlier run's `saved` state is gone on from, to the same bits.
    """
    config = model_config(tokenizer.largest_id + 1)
    model = Qwen2(config)
    initialise(model, seed)
    stages = (
        ("pre-training", pretrain_optimizer, clean_easy(world), schedules[0]),
        ("rough distillation", rough_optimizer, rough(world), schedules[1]),
    )
    progress = Progress()
    states: Any = None
    stream: Any = None
    if saved.path.exists():
        progress, states, stream = saved.read(model)
    for number in range(progress.stage, len(stages)):
        name, make_optimizer, draw, schedule = stages[number]
        optimizer = make_optimizer(model)
        rng = random.Random(f"{name}:{seed}")
        if states is not None:
            for one, state in zip(optimizer.optimizers, states, strict=True):
                one.load_state_dict(state)
            rng.setstate(stream)
            states = None
        else:
            progress = Progress(number, 0, schedule.hold_steps, math.inf, progress.report)
        keep = functools.partial(saved.write, progress, model, optimizer, rng)
        documents = _documents(draw, rng, tokenizer, excluded)
        total = progress.hold + schedule.decay_steps
        with log.bar(total=total, initial=progress.step, desc=name, unit="step") as bar:
            fit(model, optimizer, documents, schedule, progress, keep, bar)
        progress.report[name] = {"steps": progress.step, "loss": progress.smoothed}
    save_model(model, folder)
    saved.path.unlink(missing_ok=True)
    return progress.report


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
