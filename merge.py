"""Merge checkpoints: `python merge.py LEFT RIGHT OUT [--then LEFT2 ...]`.

The released TinyR1-32B-Preview is `merge.py SCIENCE MATH OUT --then CODING`. `--diff A B` shows
what a merge or a fine-tuning changed.
"""

from __future__ import annotations

import sys

from tinyr1.config import parse
from tinyr1.diff import print_diff
from tinyr1.errors import run_main
from tinyr1.log import Log
from tinyr1.merging import MergeConfig, run_merge


def main() -> None:
    config = parse(MergeConfig, sys.argv[1:], prog="merge.py")
    log = Log(config.quiet)
    if config.diff:
        print_diff(config.diff, log)
    else:
        run_merge(config, log)


if __name__ == "__main__":
    run_main(main)
