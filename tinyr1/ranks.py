"""The processes that torchrun started, seen from one of them.

One process is a group of one: the same code runs on a laptop, on one GPU and on eight.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Ranks:
    """Where this process stands among those that torchrun started."""

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

    def connect(self, gpu: bool = True) -> None:
        """Start the process group: NCCL on GPUs, gloo on CPUs or without `gpu`."""
        on_gpu = gpu and self.device.type == "cuda"
        backend = "cpu:gloo,cuda:nccl" if on_gpu else "gloo"
        if on_gpu:
            torch.cuda.set_device(self.device)
        if self.world_size > 1:
            dist.init_process_group(backend, timeout=timedelta(minutes=30))
        else:
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

    def barrier(self) -> None:
        if self.world_size > 1:
            dist.barrier()


def core_count() -> int:
    """CPU cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)  # not on macOS
    return len(affinity(0)) if affinity else os.cpu_count() or 1
