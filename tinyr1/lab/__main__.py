"""`python -m tinyr1.lab --out DIR`: the whole experiment, and where its report lies."""

from __future__ import annotations

import signal
import sys
from types import FrameType

from tinyr1.config import parse, require
from tinyr1.errors import run_main
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
from tinyr1.log import Log
from tinyr1.sampling.run import check_settings


def main() -> None:
    config = parse(LabConfig, sys.argv[1:], prog="python -m tinyr1.lab")
    require(config, "out")
    assert config.out is not None
    check_checkout()
    lab = Lab(config.out.resolve(), QUICK if config.quick else FULL, config.seed, Log(config.quiet))
    check_settings(lab.out / "lab.json", {"seed": config.seed, "quick": config.quick})
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        stages = {
            "data": lab.stage("data", lambda: make_data(lab)),
            "initial model": lab.stage("initial", lambda: make_initial(lab)),
            "branches": lab.stage("branches", lambda: train_branches(lab)),
            "merges": lab.stage("merges", lambda: merge_models(lab)),
            "evaluations": lab.stage("evaluations", lambda: evaluate_models(lab)),
        }
        lab.stage("report", lambda: write_findings(lab, stages, config.quick) or {})
    finally:
        lab.stop_children()
    print(f"report: {config.out / 'report.md'} and report.html beside it")


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    run_main(main)
