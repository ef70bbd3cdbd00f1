"""Ask a model questions, grade its answers, report pass@1 with standard errors.

    python evaluate.py MODEL --tasks aime24,gpqa_diamond --data benchmarks --out results
    python evaluate.py MODEL --task-file mine.jsonl --out results
    python evaluate.py MODEL --ask "What is 6 times 7?"
    python evaluate.py MODEL --loss math.jsonl coding.jsonl --out results
    python evaluate.py --compare results_a results_b

A run that was stopped goes on when it is typed again. `torchrun --nproc-per-node N evaluate.py` or
--replicas N share the questions among processes; a server is asked with --engine openai.
"""

from __future__ import annotations

import sys

import tinyr1.common.start  # noqa: F401 - before anything that takes time to import
from tinyr1.common.config import parse
from tinyr1.common.errors import run_main
from tinyr1.common.log import Log
from tinyr1.common.ranks import Ranks
from tinyr1.evaluate.loss import measure
from tinyr1.evaluate.options import EvalConfig
from tinyr1.evaluate.run import ask, compare, evaluate, prepare, regrade, show_prompts
from tinyr1.sampling.replicas import share_among_replicas, starts_replicas


def main() -> None:
    config = parse(EvalConfig, sys.argv[1:], "evaluate.py", description=__doc__)
    asked = config.ask is not None
    others = (config.compare, config.show_prompts, config.regrade, config.loss, asked)
    sampling = not any(others)
    if sampling and starts_replicas(config):
        prepare(config, Log(main=False), Ranks())  # faults are said once, not by torchrun
    ranks = share_among_replicas(config) if sampling else Ranks.from_env()
    log = Log(config.quiet, ranks.is_main)
    if not (sampling or ranks.is_main):
        return  # these are done by one process
    if config.compare:
        compare(config, log)
    elif config.show_prompts:
        show_prompts(config, log)
    elif config.regrade:
        regrade(config, log)
    elif config.loss:
        measure(config, log)
    elif asked:
        ask(config, log)
    else:
        evaluate(config, log, ranks)


if __name__ == "__main__":
    run_main(main)
