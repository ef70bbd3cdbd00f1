"""The processes that torchrun started, seen from one of them, and the signals that end them.

One process is a group of one: the same code runs on a laptop, on one GPU and on eight.
"""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import (
    AbstractContextManager,
    ExitStack,
    contextmanager,
    nullcontext,
    redirect_stderr,
    redirect_stdout,
)
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from tinyr1.common.errors import RunStopped, UserError
from tinyr1.common.files import owned

PATIENCE = 10.0  # seconds in which a launcher ends the ranks beside one that has failed


@dataclass(frozen=True)
class Ranks:
    """This process's place among those that torchrun started."""

    rank: int = 0
    local_rank: int = 0
    world_size: int = 1
    local_world_size: int = 1  # processes on this machine

    @staticmethod
    def from_env() -> Ranks:
        """Read torchrun's variables; a plain `python train.py` is rank 0 of 1."""
        return Ranks(
            rank=int(os.environ.get("RANK", 0)),
            local_rank=int(os.environ.get("LOCAL_RANK", 0)),
            world_size=int(os.environ.get("WORLD_SIZE", 1)),
            local_world_size=int(os.environ.get("LOCAL_WORLD_SIZE", 1)),
        )

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @property
    def device(self) -> torch.device:
        if torch.cuda.is_available():
            return torch.device("cuda", self.local_rank)
        return torch.device("cpu")

    def connect(self, gpu: bool = True, patience: timedelta = timedelta(minutes=30)) -> None:
        """Start the process group: NCCL on GPUs, gloo on CPUs or without `gpu`.

        `patience` is how long a rank waits for the others.
        """
        # gloo stays beside NCCL: checkpoints and barriers on the host go over it.
        on_gpu = gpu and self.device.type == "cuda"
        backend = "cpu:gloo,cuda:nccl" if on_gpu else "gloo"
        if on_gpu:
            torch.cuda.set_device(self.device)
        if self.world_size > 1:
            dist.init_process_group(backend, timeout=patience)
        else:
            os.environ.setdefault("WORLD_SIZE", "1")  # errors.run_main asks whether there was one
            store = dist.HashStore()  # pyright: ignore[reportPrivateImportUsage]
            dist.init_process_group(backend, store=store, rank=0, world_size=1)

    def disconnect(self) -> None:
        """End a group of one; larger groups end with their processes (errors.run_main)."""
        if self.world_size == 1 and dist.is_initialized():
            dist.destroy_process_group()

    def sum(self, values: Tensor) -> Tensor:
        """Add `values` over all ranks, in place."""
        if self.world_size > 1:
            dist.all_reduce(values)
        return values

    def owning(self, folder: Path) -> AbstractContextManager[None]:
        """Hold `folder` for this run (files.owned): the main rank does it for all."""
        return owned(folder) if self.is_main else nullcontext()

    def barrier(self) -> None:
        """Wait for all ranks; RunStopped where another one has ended."""
        if self.world_size > 1:
            with self.listening():
                dist.barrier()

    @contextmanager
    def listening(self) -> Iterator[None]:
        """RunStopped instead of what a collective raises where another rank has ended."""
        try:
            yield
        except RuntimeError as error:  # gloo has no class of its own for it
            if not re.search("(closed|reset) by peer|broken pipe", str(error), re.IGNORECASE):
                raise
            raise RunStopped("another rank has ended; its message says why") from None

    @contextmanager
    def saying_once(self) -> Iterator[None]:
        """What all ranks of a machine meet is said by its first.

        The others wait for the launcher to end them. Whom it leaves met something of its own.
        """
        try:
            yield
        except (UserError, RunStopped, OSError, SystemExit) as error:
            is_fault = not isinstance(error, SystemExit) or error.code
            if self.local_rank and is_fault:
                time.sleep(PATIENCE)
            raise

    @contextmanager
    def first_of_machine(self) -> Iterator[None]:
        """Within, only the first rank of a machine prints."""
        with ExitStack() as stack:
            if self.local_rank:
                nowhere = stack.enter_context(open(os.devnull, "w"))
                stack.enter_context(redirect_stdout(nowhere))
                stack.enter_context(redirect_stderr(nowhere))
            yield

    def share(self, sizes: Mapping[str, int]) -> list[str]:
        """This rank's part of some work: each goes, largest first, to whom has the least."""
        loads = [0] * self.world_size
        mine = list[str]()
        for name in sorted(sizes, key=lambda name: -sizes[name]):
            rank = loads.index(min(loads))
            loads[rank] += sizes[name]
            if rank == self.rank:
                mine.append(name)
        return mine


class StopSignal:
    """SIGTERM and SIGINT ask for a checkpoint and a clean end.

    Repetitions are ignored, since launchers and terminals send several; SIGKILL ends at once.
    """

    def __init__(self) -> None:
        self.requested = False
        self._previous = {
            number: signal.signal(number, self._request)
            for number in (signal.SIGTERM, signal.SIGINT)
        }

    def _request(self, number: int, frame: Any) -> None:
        self.requested = True

    def restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
