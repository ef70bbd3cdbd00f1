"""The two ways a program of this project may end early, and the exit codes they become.

Bad input is the user's to repair: one plain line, exit code 2. A run that had to stop is the
machine's or the data's doing: one plain line, exit code 1. Anything else is a defect and shows
its traceback.
"""

from __future__ import annotations

import gc
import importlib
import os
import select
import sys
from collections.abc import Callable
from typing import Any, TextIO


class UserError(Exception):
    """Bad input. The message reads `field=value: what was expected; what to do`."""


class RunStopped(Exception):
    """A run that had to stop (non-finite loss again and again, disk full)."""


def needs(module: str, extra: str, what: str) -> Any:
    """A library that only an extra installs; without it, UserError says what needs which."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(f"{what}: {error}; pip install 'tinyr1[{extra}]'") from None


def _reader_left(stream: TextIO) -> bool:
    """Whether the other end of a pipe is closed."""
    poll = select.poll()
    poll.register(stream.fileno(), 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def run_main(main: Callable[[], int | None]) -> None:
    """Call `main` and leave the process with the exit code that fits how it ended."""
    try:
        code = main() or 0
        sys.stdout.flush()  # a closed pipe must show here, not at interpreter exit
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 2
    except RunStopped as error:
        print(f"stopped: {error}", file=sys.stderr)
        code = 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = 130
    except BrokenPipeError as error:
        # `... | head` closed our standard output: not an error of ours. Where standard error is
        # gone, too, the work was not done, and nobody is left to be told.
        left = [stream for stream in (sys.stdout, sys.stderr) if _reader_left(stream)]
        for stream in left:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        code = 0 if left == [sys.stdout] else 1
        if code:
            print(f"stopped: {error.strerror}", file=sys.stderr)
    except OSError as error:
        if error.errno is None:
            raise
        where = f" {error.filename}" if error.filename else ""
        print(f"stopped: {error.strerror}{where}", file=sys.stderr)
        code = 1
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        # Threads of the process group still live; an interpreter that is taken down under them
        # aborts now and then. Everything is on disk by now.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    gc.freeze()  # or a third of a second goes into looking for cycles among torch's modules
    sys.exit(code)
