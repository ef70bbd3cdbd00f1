"""The report of the laboratory: the paper's Table 2 at this scale, figures, and sentences.

Every sentence is computed from the numbers: it says what the paper reports, what happened here,
and whether that is beyond two standard errors. Nothing is tuned on the held-out questions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from tinyr1.common import plot
from tinyr1.common.files import read_object, write_json
from tinyr1.common.page import Block, Figure, Heading, Items, write_page
from tinyr1.common.tables import Table, percent
from tinyr1.evaluate.paper import TABLE_1, TABLE_2
from tinyr1.evaluate.scores import load_outcomes
from tinyr1.evaluate.stats import mean, paired_difference
from tinyr1.lab.stages import MODELS, Lab
from tinyr1.lab.world import DOMAINS
from tinyr1.merge.card import draw_shares

EXPERTS = {domain: f"expert_{domain}" for domain in DOMAINS}
PAPER = {"initial model": TABLE_1[0]} | {row.model: row for row in TABLE_2}
Outcomes = Mapping[str, Mapping[str, Sequence[bool]]]


class Comparison(NamedTuple):
    """A paired difference in points, and its standard error."""

    points: float
    error: float

    def __str__(self) -> str:
        return f"{self.points:+.1f} ± {self.error:.1f}"

    @property
    def verdict(self) -> str:
        """Higher, lower, or within two standard errors."""
        if abs(self.points) <= 2 * self.error:
            return "no clear difference"
        return "higher" if self.points > 0 else "lower"

    @property
    def appeared(self) -> str:
        """Say that a gain of the paper's appeared here, or did not."""
        found = "appeared" if self.verdict == "higher" else "did not appear"
        return f"{found} ({self} points, {self.verdict})"


class Results:
    """Everything the report is made of, read from the evaluations."""

    def __init__(self, lab: Lab) -> None:
        self.tasks: dict[str, Any] = {}
        self.outcomes: dict[str, Outcomes] = {}
        for model in MODELS:
            folder = lab.out / "evaluations" / model.folder
            self.tasks[model.folder] = read_object(folder / "results.json")["tasks"]
            self.outcomes[model.folder] = load_outcomes(folder)

    def score(self, model: str, domain: str) -> float:
        return self.tasks[model][domain]["pass_at_1"]

    def average(self, model: str) -> float:
        return mean([self.score(model, d) for d in DOMAINS])

    def average_error(self, model: str) -> float:
        errors = [self.tasks[model][d]["question_se"] for d in DOMAINS]
        return math.sqrt(sum(e * e for e in errors)) / len(errors)

    def compare(self, a: str, b: str, domains: Sequence[str] = DOMAINS) -> Comparison:
        """a - b over the same questions, averaged over domains, in points."""
        pairs = [paired_difference(self.outcomes[a][d], self.outcomes[b][d]) for d in domains]
        error = math.sqrt(sum(e * e for _, e in pairs)) / len(pairs)
        return Comparison(100 * mean([d for d, _ in pairs]), 100 * error)


def write_findings(lab: Lab, stages: Mapping[str, Mapping[str, Any]], quick: bool) -> None:
    """Write report.md, report.html, results.json and the figures at the top of OUT."""
    results = Results(lab)
    seconds = stages["branches"]["core_seconds"] | stages["merges"]["core_seconds"]
    sentences = findings(results, seconds)
    warning = "Quick sizes: the plumbing was exercised, the accuracies mean nothing."
    intro = (
        "Three experts, a data mixture at equal compute and the merges, from one initial model of "
        f"0.4 M parameters, seed {lab.seed}; {lab.sizes.questions} held-out questions a domain, "
        "one answer each at T = 0.6, top-p 0.95. pass@1 in % ± standard error over questions. "
        "Science asks for facts that the science data teach (with new options); math and coding "
        "questions are new instances. Cost is wall time × processes of the command, its start-up "
        "included; as in the paper, the experts' training is not counted to the merges."
    )
    table = main_table(results, seconds)
    lab.log.say(table.markdown())
    blocks: list[Block] = [warning] if quick else []
    blocks += [intro, table, paper_line()]
    blocks += [*draw(lab, results), Heading("What appeared and what did not"), Items(sentences)]
    blocks += [Heading("Thinking and length"), thinking_table(results)]
    blocks += [Heading("Stages"), stage_table(stages)]
    write_page(lab.out, "Branch-Merge at the scale of one CPU", blocks)
    record = {
        "seed": lab.seed,
        "quick": quick,
        "models": {m.folder: results.tasks[m.folder] for m in MODELS},
        "findings": sentences,
        "stages": dict(stages),
    }
    write_json(lab.out / "results.json", record)


def main_table(results: Results, seconds: Mapping[str, float]) -> Table:
    """The shape of the paper's Table 2."""
    header = ["model", "math", "coding", "science", "average", "tokens m / c / s", "core-seconds"]
    rows: list[list[str]] = []
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
        rows.append([model.title, *cells, average, tokens, cost])
    return Table(header, rows)


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
    return Table(header, rows)


def stage_table(stages: Mapping[str, Mapping[str, Any]]) -> Table:
    rows = [[name, f"{stage['seconds']:.1f}"] for name, stage in stages.items()]
    total = sum(stage["seconds"] for stage in stages.values())
    return Table(["stage", "wall seconds"], [*rows, ["all", f"{total:.1f}"]])


def paper_line() -> str:
    """The paper's table in one line."""
    rows = (
        f"{name} {' / '.join('-' if score is None else f'{score}' for score in row.scores)}"
        for name, row in PAPER.items()
    )
    return (
        "The paper's Table 2 at 32B (not run here), math / coding / science: "
        + "; ".join(rows)
        + "."
    )


def findings(results: Results, seconds: Mapping[str, float]) -> list[str]:
    """One sentence for each finding of the paper."""
    merged, other = "fusion_ms_c", "fusion_mc_s"
    best = max(EXPERTS.values(), key=results.average)
    paper, mixed = PAPER["(math & science) & coding"], PAPER["data mixture"]
    order = results.compare(merged, other)
    spread = ", ".join(f"{d} {results.compare(merged, other, [d])}" for d in DOMAINS)
    ratio = seconds["mixture"] / max(seconds[merged], 1e-9)
    experts = sum(seconds[e] for e in EXPERTS.values())
    return [
        *_by_domain(results, merged),
        _average(results, merged, best, "the best single expert's"),
        _average(results, merged, "mixture", "the data mixture's")
        + f" The paper: about equal or better ({paper.average:.1f} against {mixed.average:.1f}).",
        f"Order of merging: (math & science) & coding against (math & coding) & science is {order} "
        f"points on the average ({order.verdict}); by domain {spread}. The paper: hardly any.",
        _length(results, merged),
        f"Cost of combining: {seconds[merged]:.1f} core-seconds to merge against "
        f"{seconds['mixture']:.1f} to train the mixture, {ratio:.0f} times less; the experts cost "
        f"{experts:.1f}. The paper: {paper.gpu_hours} against {mixed.gpu_hours} GPU hours, experts "
        "not counted.",
        *(
            _average(results, merged, model.folder, f"{model.title}'s")
            + " The paper's Figure 2: Arcee Fusion is best."
            for model in MODELS
            if model.folder.startswith(("linear", "task_arithmetic"))
        ),
    ]


def _by_domain(results: Results, merged: str) -> list[str]:
    gain = results.compare
    outcomes = {"higher": "beats it", "lower": "stays below it"}
    return [
        *(
            f"The {d} expert beats the initial model on its own domain: "
            f"{gain(expert, 'initial', [d]).appeared}."
            for d, expert in EXPERTS.items()
        ),
        *(
            f"The merged model beats the initial model on {d}: "
            f"{gain(merged, 'initial', [d]).appeared}."
            for d in DOMAINS
        ),
        *(
            f"On {d} the merged model against the {d} expert: "
            f"{outcomes.get(c.verdict, 'reaches it')} ({c} points). "
            "The paper: above on math and science, below on coding."
            for d, expert in EXPERTS.items()
            for c in [gain(merged, expert, [d])]
        ),
        *(
            f"On {d} the data mixture is {c} points from the {d} expert: {c.verdict}. "
            "The paper: higher on math and science, lower on coding (its seesaw)."
            for d, expert in EXPERTS.items()
            for c in [gain("mixture", expert, [d])]
        ),
    ]


def _average(results: Results, a: str, b: str, whose: str) -> str:
    gain = results.compare(a, b)
    return (
        f"The merged model's average ({percent(results.average(a))}) is {gain} points from {whose} "
        f"({percent(results.average(b))}): {gain.verdict}."
    )


def _length(results: Results, merged: str) -> str:
    before, after = (
        [results.tasks[model][d]["mean_tokens"] for d in DOMAINS] for model in ("initial", merged)
    )
    triples = list(zip(DOMAINS, before, after, strict=True))
    longer = all(b > a for _, a, b in triples)
    appeared = "appeared in all domains" if longer else "did not appear in all domains"
    parts = ", ".join(f"{d} {a:.0f} -> {b:.0f}" for d, a, b in triples)
    return f"Longer answers after merging: {appeared} ({parts} tokens)."


# ---------------------------------------------------------------- figures


def draw(lab: Lab, results: Results) -> list[Block]:
    """The figures, or a line that says why there are none."""
    if not plot.available():
        return ["No figures: install the plot extra for them."]
    bars, heat = lab.out / "scores.png", lab.out / "merge_heat.png"
    titles = [m.title for m in MODELS]
    values = [[100 * results.score(m.folder, d) for d in DOMAINS] for m in MODELS]
    errors = [[100 * results.tasks[m.folder][d]["question_se"] for d in DOMAINS] for m in MODELS]
    merged = read_object(lab.model("fusion_ms_c") / "merge_report.json")
    figures: list[Block] = []
    if plot.drawn(
        plot.grouped_bars, bars, titles, DOMAINS, values, errors, "pass@1 in % ± standard error"
    ):
        text = "pass@1 of every model by domain, with standard errors over questions."
        figures.append(Figure(bars, text))
    if plot.drawn(draw_shares, heat, merged):
        text = (
            "Share of each tensor's elements taken from Right in the last step of (math & science) "
            "& coding: Left is the coding expert, Right the merged math and science."
        )
        figures.append(Figure(heat, text))
    return figures
