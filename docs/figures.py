"""Draw the pictures of docs/tour.md and README.md from real runs, into docs/figures/.

    python docs/figures.py --lab runs/lab

What each shows is made by the project's own code: packs and masks by `packing`, memory by the dry
run's tracker at 32B, the threshold on two experts of a laboratory, slots by the embedded sampler.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from tinyr1.merge.fusion import ExactFusion, FusionOptions
from tinyr1.model.chat import render, render_prompt
from tinyr1.model.config import Qwen2Config
from tinyr1.model.qwen2 import Qwen2
from tinyr1.model.tokenizer import Tokenizer
from tinyr1.model.weights import Checkpoint
from tinyr1.record import Message, Prompt, Record
from tinyr1.sampling.engine import TorchEngine
from tinyr1.sampling.sampler import SamplingSettings
from tinyr1.train.memory import Parts, traced_phases
from tinyr1.train.options import TrainConfig
from tinyr1.train.packing import plan_packs

QWEN_32B = Qwen2Config(
    vocab_size=152064,
    hidden_size=5120,
    intermediate_size=27648,
    num_hidden_layers=64,
    num_attention_heads=40,
    num_key_value_heads=8,
    head_dim=128,
    rope_theta=1e6,
)


def canvas(width: float, height: float, columns: int = 1) -> tuple[Figure, Any]:
    figure = Figure(figsize=(width, height), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, columns)
    return figure, axes


def flow() -> Figure:
    """What is made from what, and by which command."""
    figure, axes = canvas(11.5, 3.4)
    axes.set_xlim(-1, 121)
    axes.set_ylim(0, 36)
    axes.axis("off")

    def box(x: float, y: float, text: str, colour: str) -> None:
        shape = FancyBboxPatch((x, y), 13, 5, boxstyle="round,pad=0.5", fc=colour, ec="0.4", lw=0.8)
        axes.add_patch(shape)
        axes.text(x + 6.5, y + 2.5, text, ha="center", va="center", fontsize=9)

    def arrow(start: tuple[float, float], end: tuple[float, float]) -> None:
        axes.annotate("", end, start, arrowprops={"arrowstyle": "->", "color": "0.35", "lw": 1.0})

    def command(x: float, y: float, text: str) -> None:
        axes.text(x, y, text, ha="center", va="bottom", fontsize=8, family="monospace")

    box(0, 14, "published sets", "#e8e8e8")
    box(0, 2, "teacher", "#e8e8e8")
    command(15, 25.5, "tinyr1.data")
    command(20.5, 1, "tinyr1.teacher")
    arrow((14.2, 4.5), (27, 4))
    for y, domain in ((26, "math"), (14, "coding"), (2, "science")):
        box(28, y, f"{domain}.jsonl", "#e8e8e8")
        arrow((14.2, 16.5), (27, y + 2.5 + (domain == "science")))
        box(57, y, f"{domain} expert", "#dff0dc")
        arrow((42.2, y + 2.5), (56, y + 2.5))
        command(49, y + 3, f"train.py {domain}")
        arrow((71.2, y + 2.5), (83, 16.5))
    axes.text(63.5, 33, "copies of the initial model", ha="center", fontsize=9)
    command(77, 27, "merge.py")
    box(84, 14, "one model", "#f7e6c4")
    arrow((98.2, 16.5), (106, 16.5))
    command(102, 21, "evaluate.py")
    box(107, 14, "report", "#e8e8e8")
    return figure


def packing(lab: Path) -> Figure:
    """Who may attend to whom in one pack of the laboratory's data."""
    tokenizer = Tokenizer(lab / "models" / "initial")
    lines = (lab / "data" / "math.jsonl").read_text().splitlines()[:60]
    records = [Record.from_json(json.loads(line)) for line in lines]
    lengths = [len(render(tokenizer, r.messages, "deepseek_r1").tokens) for r in records]
    capacity = 160
    pack = max(plan_packs(lengths, capacity), key=len)
    owner = np.repeat(np.arange(len(pack)), [lengths[d] for d in pack])
    causal = np.tri(len(owner), dtype=bool)
    figure, both = canvas(8.4, 3.9, 2)
    isolated = causal & (owner[:, None] == owner)
    for axes, mask, name in zip(
        both, (isolated, causal), ("--packing neat", "--packing naive"), strict=True
    ):
        axes.imshow(np.where(mask, owner[:, None] + 1.0, np.nan), cmap="tab10", vmin=1, vmax=10)
        share = mask.sum() / causal.sum()
        axes.set_title(f"{name}: {share:.0%} of the causal pairs", fontsize=9)
        axes.set_xlabel("key (token of the pack)")
        axes.set_ylabel("query")
    figure.suptitle(
        f"one pack: {len(pack)} documents, {len(owner)} of {capacity} tokens", fontsize=10
    )
    return figure


def memory() -> Figure:
    """What one of eight GPUs holds during a step of the 32B shape (8 of its 64 layers)."""
    rows: list[tuple[str, Parts]] = []

    def watch(model: Qwen2, now: Any) -> None:
        def hook(name: str) -> Any:
            return lambda *_: rows.append((name, now()))

        for i, block in enumerate(model.model.layers):
            block.mlp.register_forward_pre_hook(hook(f"block {i}"))
        model.lm_head.register_forward_pre_hook(hook("head"))

    config = TrainConfig(world_size=8, dtype="bf16", optim_dtype="fp32", seq_len=16384)
    moments = traced_phases(QWEN_32B, config, 8, watch)["update"]["moments"]
    rows = [(name, parts | {"moments": moments}) for name, parts in rows]
    names = [n for n in rows[0][1] if max(parts[n] for _, parts in rows) > 0.01]
    figure, axes = canvas(8.6, 4.2)
    heights = [[parts[n] for _, parts in rows] for n in names]
    axes.stackplot(range(len(rows)), heights, labels=names, step="mid", alpha=0.9)
    marks = [i for i, (name, _) in enumerate(rows) if name in ("block 0", "block 7", "head")]
    axes.set_xticks(marks, [rows[i][0] for i in marks], rotation=60, fontsize=7)
    second = [i for i, (name, _) in enumerate(rows) if name == "block 0"][2]
    axes.axvline(second - 0.5, color="0.3", linewidth=0.8, linestyle="--")
    axes.text(second - 0.3, 0.3, "second micro-step", fontsize=8, rotation=90, va="bottom")
    axes.set_ylabel("GiB on each GPU")
    axes.set_title(
        "32B shape, 8 of 64 layers, 16,384 tokens, full checkpointing, fp32 moments:\n"
        "as each block's MLP begins, forward and again in backward",
        fontsize=8,
    )
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=8)
    return figure


def threshold(lab: Path) -> Figure:
    """The scores of one tensor of two experts, and where the threshold falls."""
    name = "model.layers.1.mlp.down_proj.weight"
    experts = (Checkpoint(lab / "models" / n) for n in ("expert_science", "expert_math"))
    left, right = (model.rows(name, 0, model.specs[name].shape[0]) for model in experts)
    fusion = ExactFusion(left, right, tuple(left.shape), FusionOptions())
    for part in fusion.parts:
        fusion[part]
    # The share that is taken above the threshold is a little part of all: the axis is logarithmic.
    kl = fusion._kl_column * (fusion.threshold / fusion._threshold)
    scores = ((right - left).abs() * kl).flatten().numpy()
    positive = scores[scores > 0]
    figure, axes = canvas(8.2, 3.6)
    edges = np.geomspace(np.quantile(positive, 0.001), positive.max(), 120)
    axes.hist(positive[positive < fusion.threshold], edges, color="tab:gray", label="Left is kept")
    axes.hist(
        positive[positive >= fusion.threshold], edges, color="tab:orange", label="Right is taken"
    )
    axes.set_ylim(top=1.15 * axes.get_ylim()[1])  # room for the labels
    for value, text in zip(fusion.quartiles, ("Q1", "median", "Q3"), strict=True):
        axes.axvline(value, color="0.2", linewidth=0.8, linestyle=":")
        axes.text(value, axes.get_ylim()[1] * 0.97, f" {text}", fontsize=8, va="top")
    axes.axvline(fusion.threshold, color="tab:red", linewidth=1.2)
    axes.text(
        fusion.threshold, axes.get_ylim()[1] * 0.8, " median + 1.5 (Q3 - Q1)", color="tab:red",
        fontsize=8,
    )  # fmt: skip
    axes.set_xscale("log")
    axes.set_xlim(right=4 * positive.max())
    axes.set_xlabel("importance score |R - L| * KL(row)")
    axes.set_ylabel("elements")
    share = fusion.stats.taken / fusion.count
    axes.set_title(f"{name}, science and math experts: {share:.1%} taken", fontsize=9)
    axes.legend(frameon=False, fontsize=8, loc="upper left")
    return figure


def slots(lab: Path) -> Figure:
    """Which request sits in which slot, step by step, in a run of the sampler."""
    folder = lab / "models" / "initial"
    tokenizer = Tokenizer(folder)
    engine = TorchEngine(
        Qwen2.from_pretrained(folder),
        tokenizer,
        SamplingSettings(max_tokens=120, stop_ids=tokenizer.eos_ids()),
        slots=8,
        max_model_len=512,
    )
    rows = [json.loads(line) for line in (lab / "data" / "heldout.jsonl").read_text().splitlines()]
    prompts = [
        Prompt(row["kind"], row["id"], 0, tuple(
            render_prompt(tokenizer, (Message("user", row["prompt"]),), "deepseek_r1")
        ))
        for row in rows[:: max(1, len(rows) // 36)][:36]
    ]  # fmt: skip
    number = {prompt.key: i for i, prompt in enumerate(prompts)}
    grid: list[list[float]] = []
    for _ in engine.generate(prompts):
        here = [float(number[row.prompt.key]) for row in engine.sequences]
        grid.append(here + [np.nan] * (8 - len(here)))
    used = sum(not np.isnan(x) for step in grid for x in step) / (8 * len(grid))
    figure, axes = canvas(8.6, 2.7)
    colours = (np.array(grid).T * 13) % len(prompts)  # requests that follow each other differ
    axes.imshow(colours, aspect="auto", cmap="nipy_spectral", interpolation="nearest", alpha=0.8)
    axes.set_xlabel("step (one token for every row in a slot)")
    axes.set_ylabel("slot")
    axes.set_title(
        f"{len(prompts)} requests in 8 slots, {len(grid)} steps: {used:.0%} of the places are used",
        fontsize=9,
    )
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lab", type=Path, required=True, help="a finished laboratory")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "figures")
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.out.mkdir(exist_ok=True)
    for name, figure in {
        "flow": flow(),
        "packing": packing(args.lab),
        "threshold": threshold(args.lab),
        "slots": slots(args.lab),
        "memory": memory(),
    }.items():
        figure.savefig(args.out / f"{name}.png")
        print(args.out / f"{name}.png")


if __name__ == "__main__":
    main()
