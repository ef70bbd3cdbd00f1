"""A second opinion on mathematics: math-verify (the `eval` extra), in a process that can be killed.

It understands logarithms, limits and identities of functions, which the exact rules compare as
text; it also accepts wrong answers that they refuse. So its verdict has a column of its own, and
where both sides are plain numbers the exact rules decide alone. Run as a script, this file is that
process: model text reaches a symbolic parser only there, under limits of memory and time.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

TIMEOUT_S = 5.0  # a pair; sympy may think for ever
START_S = 60.0  # importing sympy on a busy machine
MEMORY_BYTES = 2 << 30


class SymbolicJudge:
    """Asks math-verify, one pair at a time; a process that is too slow is replaced."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def equal(self, reference: str, answer: str) -> bool:
        """True where math-verify calls them equal; False where it takes too long or gives up."""
        with self._lock:
            if self._process is None or self._process.poll() is not None:
                self._start()
            process = self._process
            assert process is not None
            assert process.stdin is not None
            with contextlib.suppress(OSError):
                process.stdin.write(json.dumps([reference, answer]).encode() + b"\n")
                process.stdin.flush()
                if self._line(TIMEOUT_S) == b"1\n":
                    return True
            if process.poll() is not None:
                self.close()
            return False

    def _start(self) -> None:
        environment = {"PATH": os.defpath, "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            # -P: this folder is not searched, so `math` stays the standard library's.
            [sys.executable, "-B", "-P", str(Path(__file__).resolve())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            cwd="/",
            start_new_session=True,
        )
        self._line(START_S)

    def _line(self, timeout_s: float) -> bytes:
        """The next line of the process; it is killed where none comes."""
        process = self._process
        assert process is not None
        assert process.stdout is not None
        ready, _, _ = select.select([process.stdout], [], [], timeout_s)
        line = process.stdout.readline() if ready else b""
        if not line:
            process.kill()
            process.wait()
        return line

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe is not None:
                    with contextlib.suppress(OSError):
                        pipe.close()
            self._process = None

    def __enter__(self) -> SymbolicJudge:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _serve() -> None:
    """Read pairs, write 1 or 0. Nothing that is read here can reach the grader but these."""
    import logging
    import resource

    from math_verify import parse, verify  # pyright: ignore

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    logging.disable(logging.CRITICAL)
    out = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    out.write(b"ready\n")
    for line in sys.stdin:
        reference, answer = json.loads(line)
        verdict: Any = False
        with contextlib.suppress(Exception):
            gold, said = parse(f"${reference}$"), parse(f"\\boxed{{{answer}}}")
            verdict = verify(gold, said)
        out.write(b"1\n" if verdict else b"0\n")


if __name__ == "__main__":
    _serve()
