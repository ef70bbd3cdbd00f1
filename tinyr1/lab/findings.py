"""What the laboratory found, in sentences computed from the numbers.

Each says how two models differ over the same questions, and stands under what became of the paper's
finding: it appeared, it did not, or two standard errors cannot tell (where the paper has two models
about level, that is what appeared). Nothing is tuned on the
held-out questions.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from tinyr1.common.files import read_object
from tinyr1.common.tables import percent
from tinyr1.evaluate.paper import TABLE_1, TABLE_2
from tinyr1.evaluate.scores import load_outcomes
from tinyr1.evaluate.stats import mean, paired_difference
from tinyr1.lab.stages import MODELS, Lab
from tinyr1.lab.world import DOMAINS

EXPERTS = {domain: f"expert_{domain}" for domain in DOMAINS}
PAPER = {"initial model": TABLE_1[0]} | {row.model: row for row in TABLE_2}
MERGED, OTHER_ORDER = "fusion_ms_c", "fusion_mc_s"
MERGE_NAME = "the merge (math & science) & coding"
NAMES = {m.folder: f"the {m.title}" for m in MODELS} | {
    MERGED: MERGE_NAME,
    OTHER_ORDER: "the merge (math & coding) & science",
    "task_arithmetic_0.7": "task arithmetic (lambda 0.7)",
    "task_arithmetic_1.0": "task arithmetic (lambda 1.0)",
}
Outcomes = Mapping[str, Mapping[str, Sequence[bool]]]
Group = Literal["appeared", "did not appear", "undecided"]
Claim = Literal["above", "below", "level"]  # what the paper has of the first model and the second


class Comparison(NamedTuple):
    """A paired difference in points, and its standard error."""

    points: float
    error: float

    def __str__(self) -> str:
        return f"{abs(self.points):.1f} ± {self.error:.1f}"

    @property
    def verdict(self) -> Claim:
        """Above, below, or within two standard errors of each other."""
        if abs(self.points) <= 2 * self.error:
            return "level"
        return "above" if self.points > 0 else "below"


class Finding(NamedTuple):
    """A sentence, and what became of the paper's finding."""

    group: Group
    text: str


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


def finding(a: str, b: str, where: str, difference: Comparison, paper: Claim) -> Finding:
    """One sentence on two models: how far apart they are, and what the paper has."""
    names = NAMES[a][0].upper() + NAMES[a][1:], NAMES[b]
    if difference.verdict == "level":
        text = (
            f"{names[0]} and {names[1]} are {difference} points apart {where}: no clear difference"
        )
    else:
        text = f"{names[0]} is {difference} points {difference.verdict} {names[1]} {where}"
    told = {"above": "above", "below": "below", "level": "about level"}[paper]
    return Finding(_group(difference.verdict, paper), f"{text} (the paper: {told}).")


def _group(found: Claim, paper: Claim) -> Group:
    if found == paper:
        return "appeared"
    return "undecided" if found == "level" else "did not appear"


def findings(results: Results, seconds: Mapping[str, float]) -> list[Finding]:
    """One for each finding of the paper; `seconds` are the CPU seconds of each command."""
    return [*_comparisons(results), _length(results), _cost(seconds)]


def _comparisons(results: Results) -> Iterator[Finding]:
    def of(a: str, b: str, paper: Claim, domain: str = "") -> Finding:
        where = f"on {domain}" if domain else "on the average"
        return finding(a, b, where, results.compare(a, b, [domain] if domain else DOMAINS), paper)

    for domain, expert in EXPERTS.items():
        yield of(expert, "initial", "above", domain)
    for domain in DOMAINS:
        yield of(MERGED, "initial", "above", domain)
    for domain, expert in EXPERTS.items():  # Table 2: below on coding only, its seesaw
        paper: Claim = "below" if domain == "coding" else "above"
        yield of(MERGED, expert, paper, domain)
        yield of("mixture", expert, paper, domain)
    yield of(MERGED, max(EXPERTS.values(), key=results.average), "above")
    yield of(MERGED, "mixture", "above")
    yield of(MERGED, OTHER_ORDER, "level")
    for model in MODELS:  # Figure 2
        if model.folder.startswith(("linear", "task_arithmetic")):
            yield of(MERGED, model.folder, "above")


def _length(results: Results) -> Finding:
    before, after = (
        [results.tasks[model][d]["mean_tokens"] for d in DOMAINS] for model in ("initial", MERGED)
    )
    triples = list(zip(DOMAINS, before, after, strict=True))
    longer = [d for d, a, b in triples if b > a]
    parts = ", ".join(f"{d} {a:.0f} to {b:.0f}" for d, a, b in triples)
    where = "in all domains" if len(longer) == len(DOMAINS) else f"on {' and '.join(longer)} only"
    text = f"Answers of {MERGE_NAME} are longer than the initial model's {where if longer else ''}"
    if not longer:
        text = f"Answers of {MERGE_NAME} are no longer than the initial model's"
    group: Group = "appeared" if len(longer) == len(DOMAINS) else "did not appear"
    return Finding(group, f"{text.strip()} ({parts} tokens; the paper: in all domains).")


def _cost(seconds: Mapping[str, float]) -> Finding:
    paper, mixed = PAPER["(math & science) & coding"], PAPER["data mixture"]
    ratio = seconds["mixture"] / max(seconds[MERGED], 1e-9)
    experts = sum(seconds[e] for e in EXPERTS.values())
    return Finding(
        "appeared" if ratio > 2 else "did not appear",
        f"Merging the experts takes {seconds[MERGED]:.1f} CPU seconds and training the mixture "
        f"{seconds['mixture']:.1f}, {ratio:.0f} times as much (the paper: {paper.gpu_hours} and "
        f"{mixed.gpu_hours} GPU hours); the experts, not counted in either, took {experts:.1f}.",
    )


def opening(results: Results) -> list[str]:
    """What was done, what came out and what did not, for someone who comes in here."""
    merged = results.average(MERGED)
    others = {
        m.folder: results.average(m.folder) for m in MODELS if m.folder not in EXPERTS.values()
    }
    gains = [results.compare(e, "initial", [d]) for d, e in EXPERTS.items()]
    all_gain = all(gain.verdict == "above" for gain in gains)
    gain = results.compare(MERGED, "initial")
    best = max(others, key=lambda folder: others[folder])
    done = (
        "One small model, which fails by bad habits, was fine-tuned on mathematics, on coding and "
        "on science separately (three experts); the experts' weights were then merged into single "
        "models, and all were asked the same questions that nobody had been trained on."
    )
    came = (
        f"{'Each' if all_gain else 'Not each'} expert became better on its own domain, and "
        f"{MERGE_NAME}, which took no training, answers {percent(merged)} % of all questions where "
        f"the initial model answers {percent(others['initial'])} %"
        f"{'.' if gain.verdict == 'above' else ': no clear gain.'}"
    )
    if best == MERGED:
        rest = f"No model that covers all three domains is better than {MERGE_NAME}."
    elif results.compare(best, MERGED).verdict == "level":
        rest = (
            f"{NAMES[best][0].upper()}{NAMES[best][1:]} has {percent(others[best])} %, which two "
            f"standard errors do not tell from {MERGE_NAME}."
        )
    else:
        rest = (
            f"What did not come out: {MERGE_NAME} is not the best model for all three domains "
            f"here; {NAMES[best]} is, with {percent(others[best])} %."
        )
    return [done, came, rest]
