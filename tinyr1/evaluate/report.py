"""Tables and pages: Markdown for people, the same as one self-contained HTML file."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tinyr1 import thinking
from tinyr1.common import plot
from tinyr1.common.page import Block, Figure, Heading, Items, write_page
from tinyr1.common.tables import Table, percent
from tinyr1.evaluate.paper import BENCHMARKS, TABLE_1, TABLE_2, PaperRow
from tinyr1.evaluate.scores import rules_of
from tinyr1.evaluate.stats import flips, paired_difference
from tinyr1.record import Grade, Sample


class ShownSample(NamedTuple):
    """A sample with its verdict, for people to read."""

    sample: Sample
    grade: Grade
    expected: str
    question: str = ""

    @property
    def verdict(self) -> str:
        return self.grade.reason or "right"


def browser(samples: Sequence[ShownSample]) -> str:
    """HTML to read samples: filters by task and verdict, thinking folded, all text escaped."""
    if not samples:
        return ""

    def one(shown: ShownSample) -> str:
        s = shown.sample
        verdict = html.escape(shown.verdict)
        thought, answer = thinking.for_display(s.text)
        parts = ""
        if shown.question:
            asked = html.escape(shown.question)
            parts += f"<details><summary>question</summary><pre>{asked}</pre></details>"
        if thought:
            said = html.escape(thought)
            parts += f"<details><summary>thinking</summary><pre>{said}</pre></details>"
        name = html.escape(f"{s.task} / {s.id} / {s.trial}")
        extracted = html.escape(repr((shown.grade.extracted or "")[:80]))
        wanted = f" of {html.escape(repr(shown.expected[:80]))}" if shown.expected else ""
        kind = "right" if shown.grade.correct else "wrong"
        return (
            f'<details class="sample {kind}" data-task="{html.escape(s.task)}" '
            f'data-verdict="{verdict}"><summary>{name}: {verdict}, {s.token_count} tokens, '
            f"answer {extracted}{wanted}</summary>"
            f"{parts}<pre>{html.escape(answer.strip())}</pre></details>"
        )

    def choices(name: str, values: Sequence[str]) -> str:
        options = "".join(f"<option>{html.escape(v)}</option>" for v in sorted(set(values)))
        select = f'<select id="{name}"><option value="">all</option>{options}</select>'
        return f"<label>{name} {select}</label>"

    filters = choices("task", [s.sample.task for s in samples])
    filters += " " + choices("verdict", [s.verdict for s in samples])
    body = "\n".join(one(s) for s in samples)
    return f"<h2>Samples</h2><p>{filters}</p>{body}<script>{_FILTER}</script>"


_FILTER = """
const pick = id => document.getElementById(id);
function filter() {
  for (const s of document.querySelectorAll('.sample'))
    s.hidden = ['task', 'verdict'].some(k => pick(k).value && s.dataset[k] !== pick(k).value);
}
for (const id of ['task', 'verdict']) pick(id).addEventListener('change', filter);
"""


def evaluation_table(tasks: Mapping[str, Mapping[str, Any]]) -> Table:
    """One row a task: pass@1 with both standard errors, lengths, shares."""
    header = [
        "task",
        "questions",
        "samples",
        "pass@1 %",
        "± question",
        "± sampling",
        "mean tokens",
        "truncated %",
        "thinks %",
    ]
    rows = [
        [
            name,
            str(t["questions"]),
            str(t["samples"]),
            percent(t["pass_at_1"]),
            percent(t["question_se"]),
            percent(t["sampling_se"]) if t["samples"] > t["questions"] else "-",
            f"{t['mean_tokens']:.0f}",
            percent(t["truncated"]),
            percent(t["thinks"]),
        ]
        for name, t in tasks.items()
    ]
    return Table(header, rows)


def plain_lines(tasks: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """One line a task for the terminal."""
    return [
        f"{name}: pass@1 {percent(t['pass_at_1'])} ± {percent(t['question_se'])} % "
        f"({t['questions']} questions, {t['samples']} samples, {t['mean_tokens']:.0f} tokens)"
        for name, t in tasks.items()
    ]


def details_table(tasks: Mapping[str, Mapping[str, Any]]) -> Table:
    """Further figures: several trials at once, lengths, and what went wrong."""
    rows: list[list[str]] = []
    for name, t in tasks.items():
        k, value = list(t["pass_at_k"].items())[-1]
        votes = next((percent(share) for share in t["maj_at_k"].values()), "-")
        lengths = (t["median_tokens"], t["p95_tokens"], t["max_tokens"])
        reasons = ", ".join(f"{reason} {count}" for reason, count in t["reasons"].items())
        rows.append(
            [
                name,
                f"{percent(value)} (k={k})",
                votes,
                " / ".join(str(n) for n in lengths),
                percent(t["no_think_close"]),
                percent(t["no_answer"]),
                reasons or "-",
            ]
        )
    header = ["task", "pass@k %", "maj@k %", "tokens: median / p95 / max"]
    return Table([*header, f"no {thinking.CLOSE} %", "no answer %", "wrong, by reason"], rows)


def second_table(tasks: Mapping[str, Mapping[str, Any]]) -> Table | None:
    """pass@1 by other graders, where they were asked, beside the one that counts."""
    names = {"symbolic": "with math-verify %", "released": "by the released rules %"}
    asked = [f for f in names if any(f"pass_at_1_{f}" in t for t in tasks.values())]

    def share(t: Mapping[str, Any], field: str) -> str:
        value = t.get(f"pass_at_1_{field}")
        return "-" if value is None else percent(value)

    rows = [
        [name, percent(t["pass_at_1"]), *(share(t, field) for field in asked)]
        for name, t in tasks.items()
    ]
    return Table(["task", "pass@1 %", *(names[f] for f in asked)], rows) if asked else None


def comparable(tasks: Mapping[str, Mapping[str, Any]]) -> str:
    """By which rule each column counts, and what other harnesses' headline compares with."""
    rules = rules_of(tasks)
    text = f"pass@1 counts by {rules['pass_at_1']}."
    if "math500" in tasks and "pass_at_1_symbolic" not in rules:
        text += " Other harnesses' MATH-500 compares with --symbolic, which was not asked."
    for name, said in (("symbolic", "With math-verify"), ("released", "By the released rules")):
        if rule := rules.get(f"pass_at_1_{name}"):
            text += f" {said}: {rule}."
    return text


def groups_table(tasks: Mapping[str, Mapping[str, Any]]) -> Table | None:
    """pass@1 by subject and difficulty, where the data have them."""
    rows: list[list[str]] = []
    for task, figures in tasks.items():
        for groups in figures.get("groups", {}).values():
            for value, t in groups.items():
                shares = (t["pass_at_1"], t["question_se"])
                rows.append([f"{task}: {value}", str(t["questions"]), *map(percent, shares)])
    return Table(["part", "questions", "pass@1 %", "± question"], rows) if rows else None


def paper_table(
    rows: Sequence[PaperRow], tasks: Mapping[str, Mapping[str, Any]], model: str
) -> Table:
    """A table of the paper with this evaluation as its last row."""

    def cell(row: PaperRow, i: int) -> str:
        score = row.scores[i]
        if score is None:
            return "-"
        return f"{score}" + (f" ({length(row.tokens[i], i)})" if row.tokens else "")

    def length(thousands: float, i: int) -> str:
        """Tokens, and their ratio to the initial model's in the paper."""
        assert TABLE_1[0].tokens is not None
        return f"{thousands:.1f}k tokens, x{thousands / TABLE_1[0].tokens[i]:.2f}"

    def ours(task: str) -> str:
        if task not in tasks:
            return "not run here"
        t = tasks[task]
        score = f"{percent(t['pass_at_1'])} ± {percent(t['question_se'])}"
        return f"{score} ({length(t['mean_tokens'] / 1000, BENCHMARKS.index(task))})"

    with_hours = any(row.gpu_hours for row in rows)
    table: list[list[str]] = []
    for row in rows:
        hours = [f"{row.gpu_hours:.0f}" if row.gpu_hours else "-"] if with_hours else []
        table.append([row.model, *(cell(row, i) for i in range(3)), *hours])
    table.append([f"here: {model}", *(ours(t) for t in BENCHMARKS), *(["-"] if with_hours else [])])
    header = ["model", *BENCHMARKS, *(["GPU hours"] if with_hours else [])]
    return Table(header, table)


def draw_results(path: Path, tasks: Mapping[str, Mapping[str, Any]], model: str) -> None:
    """Bars in the manner of the paper's Figure 1, beside its models where the tasks are its own."""
    columns = [task for task in BENCHMARKS if task in tasks] or list(tasks)
    rows = TABLE_1 if columns[0] in BENCHMARKS else ()
    names = [f"{row.model} (paper)" for row in rows]
    scores = [[row.scores[BENCHMARKS.index(task)] for task in columns] for row in rows]
    values = [[math.nan if x is None else x for x in row] for row in scores]
    errors = [[0.0] * len(columns) for _ in rows]
    names.append(f"{model} (here)")
    values.append([100 * tasks[task]["pass_at_1"] for task in columns])
    errors.append([100 * tasks[task]["question_se"] for task in columns])
    plot.grouped_bars(path, names, columns, values, errors, "pass@1 %")


def write_report(
    folder: Path,
    title: str,
    tasks: Mapping[str, Mapping[str, Any]],
    settings: Mapping[str, Any],
    samples: Sequence[ShownSample] = (),
) -> None:
    """The report of one evaluation, with results.png where matplotlib is installed."""
    table = evaluation_table(tasks)
    notes = Items([f"{name} = {value}" for name, value in settings.items()])
    explanation = (
        "± question: standard error over questions (another set of questions); ± sampling: over "
        "trials (another run on these). Truncated samples are kept and counted."
    )
    blocks: list[Block] = [table, explanation, comparable(tasks)]
    picture = folder / "results.png"
    if plot.drawn(draw_results, picture, tasks, str(settings.get("model", "samples"))):
        caption = "pass@1 with its standard error over questions; the paper gives none."
        blocks.append(Figure(picture, caption))
    blocks += [Heading("In detail"), details_table(tasks)]
    blocks += [table for table in (second_table(tasks), groups_table(tasks)) if table]
    if set(tasks) & set(BENCHMARKS):
        model = str(settings.get("model", "samples made elsewhere"))
        blocks += [
            Heading("Beside the paper"),
            "The paper's Table 1 (arXiv 2503.04872; 32B and larger, no errors given).",
            paper_table(TABLE_1, tasks, model),
            "Its Table 2; hours are those of merging or retraining, without the experts'.",
            paper_table(TABLE_2, tasks, model),
        ]
    write_page(folder, title, [*blocks, Heading("Settings"), notes], browser(samples))


def comparison_table(
    names: Sequence[str],
    results: Sequence[Mapping[str, Mapping[str, Any]]],
    outcomes: Sequence[Mapping[str, Mapping[str, Sequence[bool]]]],
) -> str:
    """Markdown: pass@1 of each evaluation and its paired difference to the first, by task."""
    all_tasks = list(dict.fromkeys(task for tasks in results for task in tasks))
    rows: list[list[str]] = []
    for name, tasks, verdicts in zip(names, results, outcomes, strict=True):
        cells = [name]
        for task in all_tasks:
            if task not in tasks:
                cells.append("-")
                continue
            t = tasks[task]
            cell = f"{percent(t['pass_at_1'])} ± {percent(t['question_se'])}"
            shared = verdicts[task].keys() & outcomes[0].get(task, {}).keys()
            if tasks is not results[0] and shared:
                difference, error = paired_difference(verdicts[task], outcomes[0][task])
                better, worse = flips(verdicts[task], outcomes[0][task])
                cell += f" ({100 * difference:+.1f} ± {percent(error)}; {better} up, {worse} down)"
            cells.append(cell)
        rows.append(cells)
    return Table(["evaluation", *all_tasks], rows).markdown()
