"""Sharing one list of requests among the processes that torchrun started.

No process group: a store, which torchrun has up already, counts what has been claimed. A process
claims a request when it has room for one, so that slow samples delay nobody else's.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

from torch.distributed.rendezvous import rendezvous

from tinyr1.common.errors import RunStopped
from tinyr1.common.ranks import Ranks

T = TypeVar("T")


class WorkQueue:
    """One counter and some meeting points, common to all ranks."""

    def __init__(self, ranks: Ranks) -> None:
        self.ranks = ranks
        self._parent = os.getppid()
        self._store: Any = None
        if ranks.world_size > 1:
            # torchrun's own store: counters in it outlive any rank, and no process group has to be
            # made.
            self._store, *_ = next(iter(rendezvous("env://")))

    def claim(self, items: Sequence[T]) -> Iterator[T]:
        """Items of a list that is the same on every rank; each goes to one rank."""
        if self._store is None:
            yield from items
            return
        while (index := self._add("claimed", 1) - 1) < len(items):
            yield items[index]

    def meet(self, name: str) -> None:
        """Wait until every rank is here. May take as long as the longest sample."""
        if self._store is None:
            return
        self._add(name, 1)
        while self._add(name, 0) < self.ranks.world_size:
            time.sleep(0.05)

    def _add(self, name: str, count: int) -> int:
        """Add to a counter; RunStopped where whoever started us is gone, and the store with it."""
        gone = RunStopped("the launcher has ended; finished samples are kept, call it again")
        if os.getppid() != self._parent:
            raise gone
        try:
            return self._store.add(name, count)
        except RuntimeError:
            raise gone from None
