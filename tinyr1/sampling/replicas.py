"""Several copies of a model, each in processes of its own, that share the requests."""

from __future__ import annotations

import logging
import signal
import sys
from pathlib import Path
from typing import NoReturn

from tinyr1.common.errors import RunStopped
from tinyr1.common.ranks import Ranks
from tinyr1.sampling import vllm
from tinyr1.sampling.options import EngineConfig


def starts_replicas(config: EngineConfig) -> bool:
    """True for the process that starts the replicas."""
    return config.replicas > 1 and Ranks.from_env().world_size == 1


def share_among_replicas(config: EngineConfig) -> Ranks:
    """This process among its replicas; the one that starts them ends here, as they do."""
    ranks = Ranks.from_env()
    if starts_replicas(config):
        _run_replicas(config.replicas)
    if config.engine == "vllm" or (config.engine == "auto" and vllm.available()):
        vllm.take_gpus(ranks, config.tensor_parallel)
    return ranks


def _run_replicas(count: int) -> NoReturn:
    """Run this program so many times under torchrun; leaves with the code of the first to fail."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    name = sys.argv[0]  # of a script, or of a module's file with `python -m`
    program = [name] if name.endswith("evaluate.py") else ["-m", f"tinyr1.{Path(name).stem}"]
    launcher = ["--standalone", f"--nproc-per-node={count}"]
    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)  # the replicas speak
    try:
        run(parse_args([*launcher, *program, *sys.argv[1:]]))
    except SignalException as error:
        if error.sigval == signal.SIGINT:
            raise KeyboardInterrupt from None
        raise RunStopped(f"{error.sigval.name} came; the same command continues") from None
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode < 0:  # it could say nothing
            number = signal.Signals(-failure.exitcode)
            raise RunStopped(f"replica {rank} was ended by {number.name}") from None
        sys.exit(failure.exitcode)
    sys.exit(0)
