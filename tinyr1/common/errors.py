"""The two ways a program of this project may end early, and the exit codes they become.

Bad input is the user's to repair: one plain line, exit code 2. A run that had to stop is the
machine's or the data's doing: one plain line, exit code 1. An OSError is one or the other. Ctrl-C
is 130, and a reader that has closed our output, 0. Anything else is a defect and shows its
traceback.
"""

from __future__ import annotations

import errno
import gc
import importlib
import io
import os
import select
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

# Of OSError: what is said of a path, and not of the machine that it is on.
# fmt: off
PATH_FAULTS = (
    errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOTEMPTY, errno.ELOOP,
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG,
)
# fmt: on


before_last_line: list[Callable[[], None]] = []  # what must be done on the terminal first


class UserError(Exception):
    """Bad input. The message reads `field=value: what was expected; what to do`."""


class RunStopped(Exception):
    """A run that had to stop (non-finite loss again and again, disk full)."""


def needs(module: str, extra: str, what: str) -> Any:
    """A library that only an extra installs; without it, UserError says what needs which."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(f"{what}: {error}; {install_line(extra)}") from None


def install_line(extra: str) -> str:
    """The command that installs an extra: in a checkout of the sources, or from a wheel."""
    checkout = Path(__file__).resolve().parents[2]
    if (checkout / "constraints.txt").exists():
        return f"pip install -c constraints.txt -e '.[{extra}]'"
    return f"pip install 'tinyr1[{extra}]'"


def _reader_left(stream: TextIO) -> bool:
    """True where the other end of a pipe is closed."""
    poll = select.poll()
    poll.register(stream.fileno(), 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def _ready_streams() -> None:
    """Somewhere to print where a stream is closed, and a form for what it cannot encode."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - as long as the process
        if isinstance(stream := getattr(sys, name), io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _say(line: str) -> None:
    """The line that a program ends with."""
    for prepare in before_last_line:
        prepare()
    print(line, file=sys.stderr)


def _leave_at_once(code: int) -> None:
    os._exit(code)


def run_main(main: Callable[[], int | None]) -> None:
    """Call `main` and leave the process with the exit code that fits how it ended."""
    _ready_streams()
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:  # of tinyr1.common.start
        signal.signal(signal.SIGINT, signal.default_int_handler)
    gc.freeze()  # what was imported stays for ever: no collection need look at it
    gc.enable()
    try:
        code = main() or 0
        sys.stdout.flush()  # a closed pipe must show here, not at interpreter exit
    except UserError as error:
        _say(f"error: {error}")
        code = 2
    except RunStopped as error:
        _say(f"stopped: {error}")
        code = 1
    except KeyboardInterrupt:
        _say("interrupted")
        code = 130
    except BrokenPipeError as error:
        # `... | head` closed our standard output: not an error of ours. Where standard error is
        # gone, too, the work was not done, and nobody is left to be told.
        left = [stream for stream in (sys.stdout, sys.stderr) if _reader_left(stream)]
        for stream in left:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        code = 0 if left == [sys.stdout] else 1
        if code:
            _say(f"stopped: {error.strerror}")
    except OSError as error:
        if error.errno is None:
            raise
        code = 2 if error.errno in PATH_FAULTS else 1
        where = f"{error.filename}: " if error.filename else ""
        _say(f"{'error' if code == 2 else 'stopped'}: {where}{error.strerror}")
    if "WORLD_SIZE" in os.environ:  # torchrun's, or of a group of one (Ranks.connect)
        # Threads of the process group still live; an interpreter that is taken down under them
        # aborts now and then. Everything is on disk by now.
        sys.stdout.flush()
        sys.stderr.flush()
        _leave_at_once(code)
    gc.freeze()  # or a third of a second goes into looking for cycles among torch's modules
    sys.exit(code)
