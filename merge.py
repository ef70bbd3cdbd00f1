"""Merge checkpoints: `python merge.py LEFT RIGHT OUT [--then LEFT2 ...]`.

The released TinyR1-32B-Preview is `merge.py SCIENCE MATH OUT --then CODING`. `--diff A B` shows
what a merge or a fine-tuning changed.
"""

from __future__ import annotations

import sys

import tinyr1.common.start  # noqa: F401 - before anything that takes time to import
from tinyr1.common.config import parse
from tinyr1.common.errors import run_main
from tinyr1.common.log import Log
from tinyr1.common.ranks import Ranks
from tinyr1.merge.diff import run_diff
from tinyr1.merge.options import MergeConfig, method_lines
from tinyr1.merge.run import run_merge


def main() -> None:
    config = parse(MergeConfig, sys.argv[1:], prog="merge.py")
    log = Log(config.quiet, Ranks.from_env().is_main)
    if config.methods:
        print(*method_lines(), sep="\n")
    elif config.diff:
        run_diff(config.diff, config.save, log)
    else:
        run_merge(config, log)


if __name__ == "__main__":
    run_main(main)
