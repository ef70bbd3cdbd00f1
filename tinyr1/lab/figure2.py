"""The paper's Figure 2 at this scale: two experts merged by each of the usual methods.

The paper merges its math and science experts and compares methods on GPQA; here both experts'
questions are asked. Options that the paper does not give are those below; nothing is tuned.
"""

from __future__ import annotations

from typing import Any

from tinyr1.common import plot
from tinyr1.common.files import read_jsonl, read_object, write_json, write_jsonl
from tinyr1.common.page import Block, Figure, write_page
from tinyr1.common.tables import Table, percent
from tinyr1.lab.stages import Lab, evaluate_models, merge_models
from tinyr1.merge.methods import METHODS

DOMAINS = ("math", "science")
PAIR = "models/expert_science models/expert_math"  # Left and Right, as in the released first step
# Bar by bar: its name on the axis, which begins with the method's, and the method's options.
BARS = {
    "linear": "",
    "slerp": "--t 0.5",
    "task_arithmetic": "",
    "ties": "--density 0.5",
    "dare_ties": "--density 0.5",
    "della": "--density 0.5 --epsilon 0.15",
    "breadcrumbs": "--density 0.9 --gamma 0.01",
    "sce": "--select-topk 0.1",
    "arcee_fusion exact": "",
    "arcee_fusion mergekit": "--arithmetic mergekit",
    "arcee_fusion paper": "--arithmetic paper",
}
REFERENCES = {
    "initial": "initial model",
    "expert_math": "math expert",
    "expert_science": "science expert",
}


def draw_figure2(lab: Lab, quick: bool) -> dict[str, Any]:
    """Merge, evaluate, and write OUT/figure2: a page, a picture and results.json."""
    merges = {_folder(bar): _merge(bar) for bar in BARS}
    merged = merge_models(lab, merges)
    rows = [row for _, row in read_jsonl(lab.tasks) if row["task"] in DOMAINS]
    write_jsonl(lab.out / "figure2" / "tasks.jsonl", rows)
    evaluated = evaluate_models(lab, merges, "figure2/tasks.jsonl")
    titles = REFERENCES | {_folder(bar): bar for bar in BARS}
    scores = {
        folder: read_object(lab.out / "evaluations" / folder / "results.json")["tasks"]
        for folder in titles
    }
    _write(lab, titles, scores, quick)
    return {"merges": merged["core_seconds"], "evaluations": evaluated["core_seconds"]}


def _folder(bar: str) -> str:
    return "figure2_" + bar.replace(" ", "_")


def _merge(bar: str) -> str:
    """Arguments of merge.py."""
    method = bar.split()[0]
    base = "--base models/initial" if METHODS[method].needs_base else ""
    return f"{PAIR} {{out}} --method {method} {BARS[bar]} {base}"


def _write(
    lab: Lab, titles: dict[str, str], scores: dict[str, dict[str, Any]], quick: bool
) -> None:
    folder = lab.out / "figure2"
    rows = [
        [title]
        + [
            f"{percent(scores[name][d]['pass_at_1'])} ± {percent(scores[name][d]['question_se'])}"
            for d in DOMAINS
        ]
        + [BARS.get(title, "")]
        for name, title in titles.items()
    ]
    blocks: list[Block] = [
        "Quick sizes: the accuracies mean nothing." if quick else "",
        f"The math and science experts of this laboratory (seed {lab.seed}, "
        f"{lab.sizes.questions} held-out questions a domain) merged by each method: pass@1 in % "
        "± standard error over questions. Left is the science expert, Right the math expert. "
        "The paper's Figure 2 has Arcee Fusion as the best on GPQA-Diamond.",
        Table(["model", *DOMAINS, "options"], rows),
    ]
    picture = folder / "figure2.png"
    if plot.drawn(
        plot.grouped_bars,
        picture,
        list(titles.values()),
        DOMAINS,
        [[100 * scores[name][d]["pass_at_1"] for d in DOMAINS] for name in titles],
        [[100 * scores[name][d]["question_se"] for d in DOMAINS] for name in titles],
        "pass@1 in % ± standard error",
    ):
        blocks.append(Figure(picture, "Two experts merged by each method."))
    write_page(folder, "Figure 2 at the scale of one CPU", [b for b in blocks if b])
    write_json(folder / "results.json", {"seed": lab.seed, "quick": quick, "models": scores})
