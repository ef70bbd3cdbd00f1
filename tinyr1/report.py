"""Tables and pages: Markdown for people, the same as one self-contained HTML file."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tinyr1.files import write_atomic
from tinyr1.stats import paired_difference

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem;
       color: #222; background: #fff; }
table { border-collapse: collapse; margin: 1rem 0; font-size: 0.92rem; }
th, td { padding: 0.25rem 0.7rem; text-align: right; border-bottom: 1px solid #ddd; }
th:first-child, td:first-child { text-align: left; }
thead th { border-bottom: 2px solid #888; }
img { max-width: 100%; }
code { background: #f2f2f2; padding: 0 0.2rem; }
"""


class Table:
    """A header and rows of text cells."""

    def __init__(self, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        self.header, self.rows = list(header), [list(row) for row in rows]

    def markdown(self) -> str:
        lines = ["| " + " | ".join(self.header) + " |"]
        lines.append("|---" + "|---:" * (len(self.header) - 1) + "|")
        lines += ["| " + " | ".join(row) + " |" for row in self.rows]
        return "\n".join(lines)

    def html(self) -> str:
        def row(cells: Sequence[str], tag: str) -> str:
            return "<tr>" + "".join(f"<{tag}>{html.escape(c)}</{tag}>" for c in cells) + "</tr>"

        body = "".join(row(r, "td") for r in self.rows)
        return f"<table><thead>{row(self.header, 'th')}</thead><tbody>{body}</tbody></table>"


class Figure:
    """A picture beside the report, with a caption."""

    def __init__(self, path: Path, caption: str) -> None:
        self.path, self.caption = path, caption

    def markdown(self) -> str:
        return f"![{self.caption}]({self.path.name})\n\n{self.caption}"

    def html(self) -> str:
        data = base64.b64encode(self.path.read_bytes()).decode()
        caption = html.escape(self.caption)
        picture = f'<img alt="{caption}" src="data:image/png;base64,{data}">'
        return f"<figure>{picture}<figcaption>{caption}</figcaption></figure>"


class Heading:
    """A section title."""

    def __init__(self, text: str) -> None:
        self.text = text

    def markdown(self) -> str:
        return f"## {self.text}"

    def html(self) -> str:
        return f"<h2>{html.escape(self.text)}</h2>"


class Items:
    """A bulleted list of sentences."""

    def __init__(self, items: Sequence[str]) -> None:
        self.items = list(items)

    def markdown(self) -> str:
        return "\n".join(f"- {item}" for item in self.items)

    def html(self) -> str:
        return "<ul>" + "".join(f"<li>{html.escape(item)}</li>" for item in self.items) + "</ul>"


Block = str | Table | Figure | Heading | Items


def write_page(folder: Path, title: str, blocks: Sequence[Block]) -> None:
    """Write report.md and report.html (pictures inside it) from the same blocks."""
    parts = [b if isinstance(b, str) else b.markdown() for b in blocks]
    write_atomic(folder / "report.md", f"# {title}\n\n" + "\n\n".join(parts) + "\n")
    body = "\n".join(f"<p>{html.escape(b)}</p>" if isinstance(b, str) else b.html() for b in blocks)
    page = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}'
        f"</title><style>{_STYLE}</style></head><body><h1>{html.escape(title)}</h1>{body}"
        "</body></html>\n"
    )
    write_atomic(folder / "report.html", page)


def percent(value: float) -> str:
    return f"{100 * value:.1f}"


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


def write_report(folder: Path, title: str, table: Table, settings: Mapping[str, Any]) -> None:
    """The report of one evaluation."""
    notes = Items([f"{name} = {value}" for name, value in settings.items()])
    explanation = (
        "± question: standard error over questions (another set of questions); ± sampling: over "
        "trials (another run on these). Truncated samples are kept and counted."
    )
    write_page(folder, title, [table, explanation, Heading("Settings"), notes])


def comparison_table(
    names: Sequence[str],
    results: Sequence[Mapping[str, Mapping[str, Any]]],
    outcomes: Sequence[Mapping[str, Mapping[str, Sequence[bool]]]],
) -> str:
    """Markdown: pass@1 of each evaluation and its paired difference to the first, by task."""
    header = ["evaluation", *results[0]]
    rows: list[list[str]] = []
    for name, tasks, verdicts in zip(names, results, outcomes, strict=True):
        cells = [name]
        for task in results[0]:
            if task not in tasks:
                cells.append("-")
                continue
            t = tasks[task]
            cell = f"{percent(t['pass_at_1'])} ± {percent(t['question_se'])}"
            if tasks is not results[0]:
                difference, error = paired_difference(verdicts[task], outcomes[0][task])
                cell += f" ({100 * difference:+.1f} ± {percent(error)})"
            cells.append(cell)
        rows.append(cells)
    return Table(header, rows).markdown()
