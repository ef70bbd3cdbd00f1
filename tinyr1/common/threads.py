"""Cores and threads: how many there are, work on all of them in order, and sums on one."""

from __future__ import annotations

import ctypes
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch


def core_count() -> int:
    """CPU cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)  # not on macOS
    return len(affinity(0)) if affinity else os.cpu_count() or 1


@contextmanager
def one_core() -> Iterator[None]:
    """Within, no sum depends on how many cores there are: torch would split a long one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def keep_freed_memory() -> None:
    """Have glibc keep what is freed for the next tensor of its size, instead of giving it back.

    Blocks of megabytes are mapped anew each time otherwise, and the system clears every page: a
    tenth of a training step at 152,064 words (docs/benchmarks/train.md), a twentieth of a merge.
    Elsewhere a no-op.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)


_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of malloc.h
A = TypeVar("A")


B = TypeVar("B")


def in_threads(work: Callable[[A], B], items: Iterable[A]) -> Generator[B, None, None]:
    """`map` on all cores, in order, a few items ahead. Tokenising leaves the interpreter's lock."""
    threads = core_count()
    pool = ThreadPoolExecutor(threads)
    ahead: deque[Future[B]] = deque()
    try:
        for item in items:
            ahead.append(pool.submit(work, item))
            if len(ahead) > 4 * threads:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
