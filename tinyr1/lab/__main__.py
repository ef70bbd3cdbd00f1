"""A whole Branch-Merge experiment on this machine, and a report of it.

    python -m tinyr1.lab --out runs/lab             some six minutes on two cores
    python -m tinyr1.lab --out runs/lab --seeds 3   three times as long: means and their spread
    python -m tinyr1.lab --out runs/quick --quick   the same commands at sizes that mean nothing

A run that was stopped goes on when it is typed again.
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from types import FrameType

import tinyr1.common.start  # noqa: F401 - before anything that takes time to import
from tinyr1.common.config import given, parse
from tinyr1.common.errors import run_main
from tinyr1.common.files import owned, real
from tinyr1.common.log import Log
from tinyr1.graders.sandbox import open_sandbox
from tinyr1.lab.figure2 import draw_figure2
from tinyr1.lab.report import write_report
from tinyr1.lab.seeds import write_seeds
from tinyr1.lab.stages import (
    FULL,
    QUICK,
    Lab,
    LabConfig,
    check_checkout,
    evaluate_models,
    make_data,
    make_initial,
    merge_models,
    train_branches,
)
from tinyr1.sampling.run import check_settings


def main() -> None:
    config = parse(LabConfig, sys.argv[1:], "python -m tinyr1.lab", description=__doc__)
    folder = given(config.out, "--out")
    check_checkout()
    open_sandbox(config.sandbox)  # needed at the end, checked before the work
    out = real(folder)
    settings = {"seed": config.seed, "quick": config.quick}
    settings |= {"seeds": config.seeds} if config.seeds > 1 else {}
    check_settings(out / "lab.json", settings)
    log = Log(config.quiet)
    try:
        with owned(out):
            if config.seeds == 1:
                run_stages(lab_of(config, out, config.seed, log), config.quick, config.figure2)
            else:
                run_seeds(config, out, log)
    except KeyboardInterrupt:
        log.warn("what is done stays: the same command goes on from here")
        raise
    print(
        f"report: {folder / 'report.html'} (open it in a browser; report.md beside it)", flush=True
    )
    if config.figure2:
        print(f"figure 2: {folder / 'figure2' / 'report.html'}", flush=True)


def lab_of(config: LabConfig, out: Path, seed: int, log: Log) -> Lab:
    """The laboratory of one seed."""
    return Lab(out, QUICK if config.quick else FULL, seed, config.sandbox, log)


def run_seeds(config: LabConfig, out: Path, log: Log) -> None:
    """One laboratory a seed, in a folder of its own, and a page of them all."""
    folders: list[Path] = []
    for seed in range(config.seed, config.seed + config.seeds):
        log.say(f"== seed {seed}")
        folders.append(out / f"seed-{seed}")
        run_stages(lab_of(config, folders[-1], seed, log), config.quick, False)
    write_seeds(out, folders, config.quick, log)


def run_stages(lab: Lab, quick: bool, figure2: bool) -> None:
    """Every stage in order; what is done already is skipped."""
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        stages = {
            "data": lab.stage("data", lambda: make_data(lab)),
            "initial model": lab.stage("initial", lambda: make_initial(lab)),
            "branches": lab.stage("branches", lambda: train_branches(lab)),
            "merges": lab.stage("merges", lambda: merge_models(lab)),
            "evaluations": lab.stage("evaluations", lambda: evaluate_models(lab)),
        }
        lab.stage("report", lambda: write_report(lab, stages, quick) or {})
        if figure2:
            lab.stage("figure2", lambda: draw_figure2(lab, quick))
    finally:
        lab.stop_children()
        lab.jobs.close()


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    run_main(main)
