"""Progress bars and lines for people, all on standard error."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

from tinyr1.common.errors import before_last_line


class Log:
    """Printing and progress for one process; only the main rank of a run speaks."""

    def __init__(self, quiet: bool = False, main: bool = True) -> None:
        self.silent = quiet or not main
        self.main = main

    def say(self, text: str) -> None:
        """One line for people. Goes through tqdm so that it does not cut a bar in two."""
        if not self.silent:
            tqdm.write(text, file=sys.stderr)

    def lead_on(self, *commands: str) -> None:
        """The commands that one may want to type next."""
        for command in commands:
            self.say(f"next: {command}")

    def warn(self, text: str) -> None:
        """One line that --quiet does not silence."""
        if self.main:
            tqdm.write(f"warning: {text}", file=sys.stderr)

    def bar(self, items: Iterable[Any] | None = None, **options: Any) -> tqdm[Any]:
        """A bar that shows up once the work has lasted two seconds."""
        # Short work shows no bar: it would only flicker.
        bar = tqdm(
            items, disable=self.silent, delay=2, dynamic_ncols=True, file=sys.stderr, **options
        )
        _BARS.add(bar)
        return bar


_BARS: weakref.WeakSet[tqdm[Any]] = weakref.WeakSet()


def end_bars() -> None:
    """End the lines of bars that something has interrupted; what is printed then has its own."""
    for bar in list(_BARS):
        bar.close()


before_last_line.append(end_bars)


def counted(count: int, noun: str) -> str:
    """`1 tensor`, `2,000 tensors`."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")
