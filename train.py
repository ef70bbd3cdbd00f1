"""Fine-tune one expert.

    torchrun --nproc-per-node 8 train.py RECIPE --model DIR --data FILE.jsonl --out DIR

RECIPE is a name under tinyr1/train/recipes or the path of a TOML file; the command line replaces
its values. `--dry-run` prints the plan and the memory per GPU, `--preview` the first packs.
"""

from __future__ import annotations

import sys

import tinyr1.common.start  # noqa: F401 - before anything that takes time to import
from tinyr1.common.config import parse_recipe
from tinyr1.common.errors import run_main
from tinyr1.common.log import Log
from tinyr1.common.ranks import Ranks
from tinyr1.train.memory import print_plan
from tinyr1.train.options import RECIPES, TrainConfig
from tinyr1.train.preview import print_preview
from tinyr1.train.sft import train


def main() -> None:
    ranks = Ranks.from_env()
    with ranks.saying_once():
        with ranks.first_of_machine():
            config = parse_recipe(TrainConfig, sys.argv[1:], RECIPES, prog="train.py")
        log = Log(config.quiet, ranks.is_main)
        if config.dry_run:
            with ranks.first_of_machine():
                print_plan(config, log)
        elif config.preview:
            with ranks.first_of_machine():
                print_preview(config, log)
        else:
            train(config, log, ranks)


if __name__ == "__main__":
    run_main(main)
