"""From grades to the figures of a task: pass@1 with its errors, votes, lengths, reasons."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tinyr1 import thinking
from tinyr1.common.errors import UserError
from tinyr1.common.files import read_jsonl
from tinyr1.evaluate.stats import ks, majority, mean, pass_at_1, pass_at_k, percentile
from tinyr1.graders.math import parse
from tinyr1.record import ALL_LETTERS, Grade, Sample, TaskRow

RULES = {  # what each column of pass@1 counts as right
    "pass_at_1": (
        "exact rules on what follows the last </think>: the last box as an exact value, the letter "
        "of a choice, the program between the last two fences in the sandbox"
    ),
    "pass_at_1_symbolic": (
        "the exact rules, or math-verify where they find another answer; the column that other "
        "harnesses' MATH-500 compares with"
    ),
    "pass_at_1_released": (
        "the released scripts' rules on the whole text, thinking included; for comparison with "
        "the paper's own numbers"
    ),
}


def rules_of(tasks: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """The rule of each column of pass@1 that these figures have."""
    return {name: rule for name, rule in RULES.items() if any(name in t for t in tasks.values())}


def summarise(
    samples: Sequence[Sample], grades: Sequence[Grade], rows: Sequence[TaskRow] = ()
) -> dict[str, dict[str, Any]]:
    """Figures of each task, as results.json keeps them."""
    about = {row.key: row for row in rows}
    tasks: dict[str, dict[str, Any]] = {}
    for task in dict.fromkeys(s.task for s in samples):
        pairs = [(s, g) for s, g in zip(samples, grades, strict=True) if s.task == task]
        is_code = any((task, s.id) in about and about[task, s.id].kind == "code" for s, _ in pairs)
        tasks[task] = _figures(pairs, is_code)
        groups: dict[str, dict[str, Any]] = {}
        for field in ("subject", "difficulty"):
            parts: dict[str, list[tuple[Sample, Grade]]] = defaultdict(list)
            for pair in pairs:
                if value := getattr(about.get((task, pair[0].id)), field, None):
                    parts[value].append(pair)
            if len(parts) > 1:
                groups[field] = {
                    value: {k: _figures(part)[k] for k in ("questions", "pass_at_1", "question_se")}
                    for value, part in sorted(parts.items())
                }
        if groups:
            tasks[task]["groups"] = groups
    return tasks


def _figures(pairs: Sequence[tuple[Sample, Grade]], code: bool = False) -> dict[str, Any]:
    outcomes: dict[str, list[bool]] = defaultdict(list)
    answers: dict[str, list[tuple[str | None, bool]]] = defaultdict(list)
    reasons: dict[str, int] = defaultdict(int)
    for sample, verdict in pairs:
        outcomes[sample.id].append(verdict.correct)
        answers[sample.id].append((_vote(sample, verdict), verdict.correct))
        if verdict.reason:
            reasons[verdict.reason] += 1
    estimate = pass_at_1(outcomes)
    tokens = sorted(s.token_count for s, _ in pairs)
    # pass@k and maj@k need k trials of every question; those that some have beyond it do not count.
    trials = min(len(trials) for trials in outcomes.values())
    return {
        "questions": estimate.questions,
        "samples": len(pairs),
        "pass_at_1": estimate.mean,
        "question_se": estimate.question_se,
        "sampling_se": estimate.sampling_se,
        "pass_at_k": {str(k): pass_at_k(outcomes, k) for k in ks(trials)},
        "maj_at_k": {} if code else {str(trials): _majority(answers, trials)},
        "mean_tokens": mean(tokens),
        "median_tokens": percentile(tokens, 50),
        "p95_tokens": percentile(tokens, 95),
        "max_tokens": tokens[-1],
        "truncated": mean([s.finish_reason == "length" for s, _ in pairs]),
        "thinks": mean([thinking.has_thought(s.text) for s, _ in pairs]),
        "no_think_close": mean([not thinking.is_closed(s.text) for s, _ in pairs]),
        "no_answer": mean([g.extracted is None for _, g in pairs]),
        "reasons": dict(sorted(reasons.items())),
        **_second_columns(pairs),
    }


def _second_columns(pairs: Sequence[tuple[Sample, Grade]]) -> dict[str, Any]:
    """pass@1 by math-verify and by the released rules, where they were asked."""
    columns: dict[str, Any] = {}
    for field in ("symbolic", "released"):
        outcomes: dict[str, list[bool]] = defaultdict(list)
        for sample, verdict in pairs:
            if (value := getattr(verdict, field)) is not None:
                outcomes[sample.id].append(value)
        if outcomes:
            columns[f"pass_at_1_{field}"] = pass_at_1(outcomes).mean
    return columns


def _majority(answers: dict[str, list[tuple[str | None, bool]]], trials: int) -> float:
    """maj@k over the trials that every question has. Programs have none: they cannot be equal."""
    return mean([majority(votes[:trials]) for votes in answers.values()])


def _vote(sample: Sample, verdict: Grade) -> str | None:
    """The answer that a sample votes for: its value whatever its form, a letter's option."""
    if verdict.correct:
        return ""
    if verdict.extracted is None:
        return None
    if sample.choice_order:
        return str(sample.choice_order[ALL_LETTERS.index(verdict.extracted)])
    value = parse(verdict.extracted)
    return repr(sorted(map(repr, value)) if isinstance(value, frozenset) else value)


def load_outcomes(folder: Path) -> dict[str, dict[str, list[bool]]]:
    """task -> question -> verdicts of a finished evaluation."""
    outcomes: dict[str, dict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))
    path = folder / "grades.jsonl"
    for number, row in read_jsonl(path):
        kinds = [type(row.get(k)) for k in ("task", "id", "correct")] if type(row) is dict else []
        if kinds != [str, str, bool]:
            raise UserError(f"{path}:{number}: expected task, id and correct (true or false)")
        outcomes[row["task"]][row["id"]].append(row["correct"])
    return outcomes
