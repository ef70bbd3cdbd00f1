"""Fine-tune one expert: full SFT on packed sequences.

    python train.py own --model DIR --data mine.jsonl --out DIR --dry-run --world-size 1
    python train.py own --model DIR --data mine.jsonl --out DIR
    torchrun --nproc-per-node 8 train.py math --model DIR --data math.jsonl --out DIR

RECIPE (math, coding, science, mixture, own, ...) has the values of the options that are not given:
`train.py RECIPE --help` shows them. --dry-run says whether it fits, --preview what is trained on. A
run that was stopped goes on when it is typed again, on any number of GPUs.
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
            config = parse_recipe(TrainConfig, sys.argv[1:], RECIPES, "train.py", __doc__)
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
