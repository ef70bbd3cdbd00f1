"""Sample, grade and report: `python evaluate.py MODEL --task-file tasks.jsonl --out DIR`.

`--regrade samples.jsonl` grades without a model, `--compare DIR DIR` sets evaluations side by side,
`--show-prompts` prints what would be asked.
"""

from __future__ import annotations

import sys
from pathlib import Path

from tinyr1.config import parse
from tinyr1.errors import UserError, run_main
from tinyr1.evaluation import EvalConfig, compare, evaluate, regrade, show_prompts
from tinyr1.log import Log


def main() -> None:
    args = sys.argv[1:]
    model = Path(args.pop(0)) if args and not args[0].startswith("-") else None
    config = parse(EvalConfig, args, prog="evaluate.py [MODEL]")
    log = Log(config.quiet)
    if config.compare:
        compare(config, log)
    elif config.show_prompts:
        show_prompts(model, config)
    elif config.regrade:
        regrade(config, log)
    elif model is None:
        raise UserError("MODEL: required as the first argument; see evaluate.py --help")
    else:
        evaluate(model, config, log)


if __name__ == "__main__":
    run_main(main)
