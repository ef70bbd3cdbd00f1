"""Merge checkpoints of one architecture, tensor by tensor, into a new one.

    python merge.py LEFT RIGHT OUT                              by Arcee Fusion
    python merge.py SCIENCE MATH OUT --then CODING              as the released TinyR1-32B-Preview
    python merge.py A B C OUT --method ties --base INITIAL --density 0.5
    python merge.py --diff A B                                  what a merge or a training changed

A run that was stopped goes on when it is typed again. `torchrun --nproc-per-node N merge.py ...`
shares the tensors among processes.
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
    config = parse(MergeConfig, sys.argv[1:], "merge.py", description=__doc__)
    log = Log(config.quiet, Ranks.from_env().is_main)
    if config.methods:
        print(*method_lines(), sep="\n")
    elif config.diff:
        run_diff(config.diff, config.save, log)
    else:
        run_merge(config, log)


if __name__ == "__main__":
    run_main(main)
