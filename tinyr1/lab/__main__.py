"""A whole Branch-Merge experiment on this machine, and a report of it.

    python -m tinyr1.lab --out runs/lab             some six minutes on two cores
    python -m tinyr1.lab --out runs/quick --quick   the same commands at sizes that mean nothing

A run that was stopped goes on when it is typed again.
"""

from __future__ import annotations

import signal
import sys
from types import FrameType

import tinyr1.common.start  # noqa: F401 - before anything that takes time to import
from tinyr1.common.config import given, parse
from tinyr1.common.errors import run_main
from tinyr1.common.files import owned, real
from tinyr1.common.log import Log
from tinyr1.graders.sandbox import open_sandbox
from tinyr1.lab.figure2 import draw_figure2
from tinyr1.lab.findings import write_findings
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
    check_settings(out / "lab.json", {"seed": config.seed, "quick": config.quick})
    sizes = QUICK if config.quick else FULL
    with owned(out):
        lab = Lab(out, sizes, config.seed, config.sandbox, Log(config.quiet))
        run_stages(lab, config.quick, config.figure2)
    print(f"report: {folder / 'report.md'} and report.html beside it")
    if config.figure2:
        print(f"figure 2: {folder / 'figure2' / 'report.md'} and report.html beside it")


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
        lab.stage("report", lambda: write_findings(lab, stages, quick) or {})
        if figure2:
            lab.stage("figure2", lambda: draw_figure2(lab, quick))
    finally:
        lab.stop_children()
        lab.jobs.close()


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    run_main(main)
