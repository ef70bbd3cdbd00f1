"""The page of the laboratory: the paper's Table 2 at this scale, examples, figures, findings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

from tinyr1.common import plot
from tinyr1.common.files import read_jsonl, read_object, write_json
from tinyr1.common.page import Block, Figure, Heading, Items, Quoted, Warned, write_page
from tinyr1.common.tables import Cell, Link, Table, percent
from tinyr1.lab.findings import (
    EXPERTS,
    MERGED,
    PAPER,
    Finding,
    Group,
    Results,
    findings,
    opening,
)
from tinyr1.lab.stages import MODELS, Lab
from tinyr1.lab.world import DOMAINS
from tinyr1.merge.card import draw_shares

COLOURS = {"initial": "#888888", "mixture": "#e08214", "linear": "#b2abd2"}
COLOURS |= {"expert_math": "#2166ac", "expert_coding": "#4393c3", "expert_science": "#92c5de"}
COLOURS |= {"fusion_ms_c": "#1b7837", "fusion_mc_s": "#7fbf7b"}
COLOURS |= {"task_arithmetic_0.7": "#8073ac", "task_arithmetic_1.0": "#542788"}
QUICK = "Quick sizes: the plumbing was exercised; the numbers below mean nothing."
COLUMNS = [
    "math, coding, science: pass@1, the share of held-out questions answered rightly, in %, ± its "
    "standard error over questions. Rounding alone (another processor, another number of threads) "
    "sends training another way and moves a figure by several of these errors; --seeds shows more.",
    "average: the mean of the three.",
    "tokens m / c / s: mean length of an answer with its thought, on math, coding and science.",
    "CPU seconds: of the command that trained or merged the model and of all its processes. The "
    "experts' training is not counted to the merges, as in the paper.",
    "paper at 32B: the same row of the paper's Tables 1 and 2 (AIME 2024, LiveCodeBench, "
    "GPQA-Diamond; not run here).",
    "look at: questions with the model's thoughts and answers; the loss curve of its training; the "
    "card of the merge.",
]


def write_report(lab: Lab, stages: Mapping[str, Mapping[str, Any]], quick: bool) -> None:
    """Write report.md, report.html, results.json and the figures at the top of OUT."""
    results = Results(lab)
    seconds = stages["branches"]["core_seconds"] | stages["merges"]["core_seconds"]
    found = [] if quick else findings(results, seconds)
    table = main_table(lab, results, seconds)
    lab.log.say(table.first(7).markdown())  # what follows are links and the paper's
    setting = (
        f"Model: Qwen2 of 0.4 M parameters, seed {lab.seed}. {lab.sizes.questions} held-out "
        "questions a domain, one answer each at T = 0.6, top-p 0.95. Science asks for facts that "
        "the science data teach (with new options); math and coding questions are new instances."
    )
    blocks: list[Block] = [Warned(QUICK)] if quick else [" ".join(opening(results))]
    blocks += [Heading("Results"), table, Items(COLUMNS), setting]
    blocks += [*grouped(found), Heading("One question of each domain"), *examples(lab, results)]
    blocks += [Heading("Pictures"), *draw(lab, results)]
    blocks += [Heading("Thinking and length"), thinking_table(results)]
    blocks += ["thinks: answers with a thought; truncated: cut off at the token limit."]
    blocks += [Heading("Stages"), stage_table(stages)]
    write_page(lab.out, "Branch-Merge at the scale of one CPU", blocks)
    record = {
        "seed": lab.seed,
        "quick": quick,
        "models": {m.folder: results.tasks[m.folder] for m in MODELS},
        "findings": [finding._asdict() for finding in found],
        "stages": dict(stages),
    }
    write_json(lab.out / "results.json", record)


def main_table(lab: Lab, results: Results, seconds: Mapping[str, float]) -> Table:
    """The shape of the paper's Table 2, the paper's own row beside each of ours."""
    header = ["model", *DOMAINS, "average", "tokens m / c / s", "CPU seconds"]
    rows: list[list[Cell]] = []
    for model in MODELS:
        tasks = results.tasks[model.folder]
        cells = [
            f"{percent(tasks[d]['pass_at_1'])} ± {percent(tasks[d]['question_se'])}"
            for d in DOMAINS
        ]
        error = percent(results.average_error(model.folder))
        average = f"{percent(results.average(model.folder))} ± {error}"
        tokens = " / ".join(f"{tasks[d]['mean_tokens']:.0f}" for d in DOMAINS)
        cost = f"{seconds[model.folder]:.1f}" if model.folder in seconds else "-"
        paper = PAPER.get(model.title.removeprefix("fusion "))
        theirs = " / ".join("-" if s is None else f"{s}" for s in paper.scores) if paper else ""
        rows.append([model.title, *cells, average, tokens, cost, theirs, links(lab, model.folder)])
    colours = [COLOURS[model.folder] for model in MODELS]
    return Table([*header, "paper at 32B", "look at"], rows, colours)


def links(lab: Lab, folder: str) -> list[Link]:
    """What there is to look at of a model."""
    places = {
        "answers": f"evaluations/{folder}/report.html",
        "loss": f"models/{folder}/loss.png",
        "card": f"models/{folder}/README.md",
    }
    return [Link(text, place) for text, place in places.items() if (lab.out / place).exists()]


def grouped(found: list[Finding]) -> list[Block]:
    """The findings under what became of them."""
    blocks: list[Block] = []
    titles: dict[Group, str] = {
        "appeared": "What the paper reports and what appeared here",
        "did not appear": "What the paper reports and what did not appear here",
        "undecided": "Undecided: within two standard errors",
    }
    for group in get_args(Group):
        texts = [finding.text for finding in found if finding.group == group]
        blocks += [Heading(titles[group]), Items(texts)] if texts else []
    return blocks


def examples(lab: Lab, results: Results) -> list[Block]:
    """A question of each domain that the initial model fails and the expert answers."""
    questions = {row["id"]: row for _, row in read_jsonl(lab.tasks)}
    blocks: list[Block] = []
    for domain, expert in EXPERTS.items():
        shown = {"initial": "initial model", expert: f"{domain} expert", MERGED: "merged model"}
        texts = {model: _answers(lab, model, domain) for model in shown}
        right = {
            model: {id_: trials[0] for id_, trials in results.outcomes[model][domain].items()}
            for model in shown
        }
        # Best where the habit is the initial model's alone.
        chosen = max(
            texts["initial"],
            key=lambda id_: (not right["initial"][id_], right[expert][id_], right[MERGED][id_]),
        )
        row = questions[chosen]
        parts = [("question", str(row["prompt"]))]
        for model, name in shown.items():
            verdict = "right" if right[model][chosen] else "wrong"
            parts.append((f"{name} ({verdict})", texts[model][chosen]))
        blocks.append(Quoted(domain, parts))
    return blocks


def _answers(lab: Lab, model: str, domain: str) -> dict[str, str]:
    """What a model said to each question of a domain."""
    file = lab.out / "evaluations" / model / "samples.jsonl"
    rows = [row for _, row in read_jsonl(file)]
    return {row["id"]: row["text"].strip() for row in rows if row["task"] == domain}


def thinking_table(results: Results) -> Table:
    """The habit of thinking and its length, which the branches transfer besides skill."""
    header = [
        "model",
        *(f"{d}: thinks %" for d in DOMAINS),
        *(f"{d}: truncated %" for d in DOMAINS),
    ]
    rows = [
        [
            model.title,
            *(percent(results.tasks[model.folder][d]["thinks"]) for d in DOMAINS),
            *(percent(results.tasks[model.folder][d]["truncated"]) for d in DOMAINS),
        ]
        for model in MODELS
    ]
    return Table(header, rows, [COLOURS[model.folder] for model in MODELS])


def stage_table(stages: Mapping[str, Mapping[str, Any]]) -> Table:
    rows = [[name, f"{stage['seconds']:.1f}"] for name, stage in stages.items()]
    total = sum(stage["seconds"] for stage in stages.values())
    return Table(["stage", "wall seconds"], [*rows, ["all", f"{total:.1f}"]])


def draw(lab: Lab, results: Results) -> list[Block]:
    """The figures, or a line that says why there are none."""
    if not plot.available():
        return ["No figures: install the plot extra for them."]
    bars, heat = lab.out / "scores.png", lab.out / "merge_heat.png"
    titles = [m.title for m in MODELS]
    values = [[100 * results.score(m.folder, d) for d in DOMAINS] for m in MODELS]
    errors = [[100 * results.tasks[m.folder][d]["question_se"] for d in DOMAINS] for m in MODELS]
    colours = [COLOURS[m.folder] for m in MODELS]
    merged = read_object(lab.model(MERGED) / "merge_report.json")
    figures: list[Block] = []
    label = "pass@1 in % ± standard error"
    if plot.drawn(plot.grouped_bars, bars, titles, DOMAINS, values, errors, label, colours):
        text = (
            "pass@1 of every model by domain, with standard errors over questions: grey the "
            "initial model, blue the experts, orange the mixture, green Arcee Fusion, violet "
            "other merges."
        )
        figures.append(Figure(bars, text))
    if plot.drawn(draw_shares, heat, merged):
        text = (
            "Share of each tensor's elements taken from Right in the last step of (math & science) "
            "& coding: Left is the coding expert, Right the merged math and science."
        )
        figures.append(Figure(heat, text))
    return figures
