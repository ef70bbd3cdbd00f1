"""Several laboratories that differ by their seed alone: means, and how far they spread."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tinyr1.common.files import read_object, write_json
from tinyr1.common.log import Log
from tinyr1.common.page import Block, Items, Warned, write_page
from tinyr1.common.tables import Cell, Link, Table, percent
from tinyr1.evaluate.stats import mean
from tinyr1.lab.report import COLOURS, QUICK
from tinyr1.lab.stages import MODELS
from tinyr1.lab.world import DOMAINS


def write_seeds(out: Path, folders: Sequence[Path], quick: bool, log: Log) -> None:
    """Write report.md, report.html and results.json of all seeds at the top of OUT."""
    runs = [read_object(folder / "results.json") for folder in folders]
    table = seeds_table(runs)
    log.say(table.first(6).markdown())
    seconds = sum(s["seconds"] for run in runs for s in run["stages"].values())
    intro = (
        f"The experiment of the laboratory, {len(runs)} times, each with another world, other "
        "data, another initial model and other random streams; "
        f"{seconds / 60:.0f} minutes in all."
    )
    pages = [
        Link(f"seed {run['seed']}", f"{f.name}/report.html")
        for run, f in zip(runs, folders, strict=True)
    ]
    columns = [
        "math, coding, science: the mean of pass@1 over the seeds in %, ± the standard deviation "
        "between seeds, and in brackets the standard error over the questions of one seed: what is "
        "smaller than the first may be the seed, what is smaller than the second the questions.",
        "average: the mean of the three, and its standard deviation between seeds.",
        "CPU seconds: mean of the seeds, of the command that trained or merged the model.",
    ]
    blocks: list[Block] = [Warned(QUICK)] if quick else []
    blocks += [
        intro,
        table,
        Items(columns),
        Table(["each seed's page"], [[page] for page in pages]),
    ]
    write_page(out, f"Branch-Merge at the scale of one CPU, {len(runs)} seeds", blocks)
    write_json(out / "results.json", {"quick": quick, "seeds": runs})


def seeds_table(runs: Sequence[dict[str, Any]]) -> Table:
    """A row a model: mean ± spread over the seeds (standard error over questions)."""
    rows: list[list[Cell]] = []
    for model in MODELS:
        tasks = [run["models"][model.folder] for run in runs]
        cells = [
            f"{_spread([t[d]['pass_at_1'] for t in tasks])} "
            f"({percent(mean([t[d]['question_se'] for t in tasks]))})"
            for d in DOMAINS
        ]
        average = _spread([mean([t[d]["pass_at_1"] for d in DOMAINS]) for t in tasks])
        seconds = [
            (run["stages"]["branches"]["core_seconds"] | run["stages"]["merges"]["core_seconds"])
            for run in runs
        ]
        costs = [s[model.folder] for s in seconds if model.folder in s]
        rows.append([model.title, *cells, average, f"{mean(costs):.1f}" if costs else "-"])
    header = ["model", *DOMAINS, "average", "CPU seconds"]
    return Table(header, rows, [COLOURS[model.folder] for model in MODELS])


def _spread(values: Sequence[float]) -> str:
    return f"{percent(mean(values))} ± {percent(statistics.stdev(values))}"
