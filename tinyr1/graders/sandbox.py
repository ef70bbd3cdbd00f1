"""Running code that a model wrote: one fresh process a test, isolated from everything.

    outcome = open_sandbox("namespaces").run(program, stdin="3\\n", timeout_s=6)

`namespaces` gives each program its own pid, network, mount, ipc and host-name space, a root with
nothing but the interpreter and numpy, an empty environment, limits, and no privileges. `rlimits` is
a process with limits in a session of its own, which protects neither the host's files nor a task
file that lies among them; it must be asked for. The expected output never enters the child.
What it is not: a defence against bugs of the kernel, or against timing side channels.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import json
import os
import struct
import subprocess
import sys
import threading
import weakref
from pathlib import Path
from typing import Any, Literal, NamedTuple

from tinyr1.common.errors import UserError

Level = Literal["namespaces", "rlimits"]
Status = Literal["ok", "timeout", "memory", "runtime_error", "compile_error", "output_limit"]

FLAGS = ("-s", "-P", "-S", "-B")  # nothing of the user's or of a folder's is imported
_CHILD = Path(__file__).with_name("sandbox_child.py")
_EXIT_STATUS: dict[str, Status] = {"X0": "ok", "X81": "compile_error", "X83": "memory"}


_running: weakref.WeakSet[Sandbox] = weakref.WeakSet()


def numpy_home() -> str | None:
    """The folder that holds numpy's, which programs may import; None where it is not installed."""
    spec = importlib.util.find_spec("numpy")
    return str(Path(spec.origin).parents[1]) if spec is not None and spec.origin else None


def numpy_version() -> str | None:
    """The release of numpy that programs may import."""
    return importlib.metadata.version("numpy") if numpy_home() else None


class SandboxUnavailable(UserError):
    """The machine cannot give the isolation that was asked for."""


class Outcome(NamedTuple):
    """A program's end and its output."""

    status: Status
    stdout: str
    seconds: float


class Sandbox:
    """A server process that runs programs one after the other, each in a process of its own."""

    def __init__(self, level: Level) -> None:
        self.level: Level = level
        self._lock = threading.Lock()
        self._server = subprocess.Popen(
            [sys.executable, *FLAGS, str(_CHILD), numpy_home() or ""],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={"PYTHONHASHSEED": "0"},  # the order of a set is the same in every run
            start_new_session=True,
        )
        _running.add(self)
        reply = self._ask({"program": "print(40 + 2)", "stdin": "", "timeout_s": 20})
        if reply["report"] != "X0" or reply["stdout"] != "42\n":
            self.close()
            raise SandboxUnavailable(
                f"sandbox={level}: this machine cannot give it ({reply['report'] or 'no answer'}); "
                "--sandbox rlimits runs programs with limits only, which protects no files"
            )

    def run(
        self,
        program: str,
        stdin: str = "",
        fn_name: str | None = None,
        timeout_s: float = 6.0,
        memory_mb: int = 4096,
        output_limit: int = 8 << 20,
        integer_keys: bool = False,
    ) -> Outcome:
        """Run `program` with `stdin` as its standard input.

        With `fn_name`, each line of `stdin` is one JSON argument; that function (or that method of
        class Solution) is called, and `stdout` is its result as JSON. With `integer_keys`, an
        argument {"1": x} is {1: x}, as it was before JSON made its keys strings.
        """
        job = {
            "program": program,
            "stdin": stdin,
            "fn_name": fn_name,
            "timeout_s": timeout_s,
            "memory_mb": memory_mb,
            "output_limit": output_limit,
            "integer_keys": integer_keys,
        }
        reply = self._ask(job)
        report: str = reply["report"]
        if reply["timed_out"]:
            status: Status = "timeout"
        elif reply["flooded"]:
            status = "output_limit"
        elif report.startswith("E"):
            raise SandboxUnavailable(f"sandbox={self.level}: {report[1:]}")
        else:
            status = _EXIT_STATUS.get(report, "runtime_error")
        return Outcome(status, reply["stdout"], reply["seconds"])

    def _ask(self, job: dict[str, Any]) -> dict[str, Any]:
        defaults = {
            "fn_name": None,
            "memory_mb": 4096,
            "output_limit": 1 << 20,
            "integer_keys": False,
            "level": self.level,
        }
        # A test's input may be megabytes: it goes as it is, behind the job with its length.
        stdin = str(job.pop("stdin")).encode("utf-8", "surrogatepass")
        data = json.dumps(defaults | job | {"stdin_bytes": len(stdin)}).encode()
        server = self._server
        assert server.stdin is not None
        assert server.stdout is not None
        with self._lock:
            try:
                server.stdin.write(struct.pack("<I", len(data)) + data + stdin)
                server.stdin.flush()
                (size,) = struct.unpack("<I", server.stdout.read(4))
                return json.loads(server.stdout.read(size))
            except (OSError, ValueError, struct.error):  # ValueError: closed by another thread
                raise SandboxUnavailable(f"sandbox={self.level}: its server has ended") from None

    @property
    def ended(self) -> bool:
        return self._server.poll() is not None

    def close(self) -> None:
        """End the server and with it whatever still runs."""
        server = self._server
        assert server.stdin is not None
        assert server.stdout is not None
        with contextlib.suppress(OSError):  # of a server that has ended
            server.stdin.close()  # which it watches: it ends the program at work, then itself
        try:
            server.wait(5)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()
        with contextlib.suppress(OSError):
            server.stdout.close()

    def __del__(self) -> None:
        if hasattr(self, "_server"):
            self.close()

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def end_all() -> None:
    """End every sandbox of this process and the programs in it: nobody waits for these now."""
    for sandbox in list(_running):
        sandbox.close()


_open = threading.local()


def open_sandbox(level: str) -> Sandbox:
    """This thread's sandbox of that level, started on first use; ends with the thread."""
    servers: dict[tuple[str, int], Sandbox] = _open.__dict__.setdefault("servers", {})
    key = (level, os.getpid())
    if key in servers and servers[key].ended:  # killed for want of memory, perhaps
        del servers[key]
    if key not in servers:
        if level not in ("namespaces", "rlimits"):
            raise ValueError(f"sandbox={level!r}: expected namespaces or rlimits")
        servers[key] = Sandbox(level)
    return servers[key]
