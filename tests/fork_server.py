"""Runs programs of this project in forks of a process that has imported torch once.

Most of a short test's time is the start of an interpreter: 2 s and more of importing, for each of
some 150 command lines. A fork of a process that has done it starts at once and is otherwise the
program: its own argv, environment, folder, streams and exit code, `__main__` run from the file.
What depends on a real start (signals, torchrun itself, memory of a fresh process) is tested with
real ones: `conftest.run(..., real=True)`.

    server = ForkServer()
    done = server.run(["train.py", "math", ...], cwd=ROOT, env={...}, ranks=2)
"""

import atexit
import contextlib
import gc
import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from pathlib import Path

import torch.distributed as dist

# What the programs import; nothing here may start a thread, which a fork would lose.
# fmt: off
PRELOAD = (
    "torch", "torch.distributed.checkpoint", "torch.distributed.fsdp", "torch.distributed.tensor",
    "torch.utils.checkpoint", "torch.distributed.rendezvous", "numpy", "safetensors.torch",
    "tokenizers", "tyro", "tqdm", "httpx", "matplotlib.figure", "matplotlib.backends.backend_agg",
    "tinyr1.check", "tinyr1.teacher", "tinyr1.data.pipeline", "tinyr1.data.sources",
    "tinyr1.train.sft", "tinyr1.train.memory", "tinyr1.train.preview", "tinyr1.merge.run",
    "tinyr1.merge.diff", "tinyr1.evaluate.run", "tinyr1.sampling.replicas",
)
# fmt: on


class ForkServer:
    """The process that forks, seen from a test; it ends with its owner."""

    def __init__(self):
        ours, theirs = socket.socketpair()
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(theirs.fileno())], pass_fds=[theirs.fileno()]
        )
        theirs.close()
        self._stream = ours.makefile("rw")
        ours.close()  # the stream keeps it open
        self._lock = threading.Lock()
        atexit.register(self.close)

    def close(self):
        self._stream.close()
        self._process.wait()

    def run(self, argv, cwd, env, ranks=1, timeout=300):
        """Run argv (a script's path and arguments, or "-m", a module and arguments) to its end."""
        with tempfile.TemporaryDirectory() as folder:
            names = {name: f"{folder}/{name}" for name in ("out", "err", "code")}
            job = {"argv": argv, "cwd": str(cwd), "env": env, "ranks": ranks, "timeout": timeout}
            with self._lock:
                self._stream.write(json.dumps(job | names) + "\n")
                self._stream.flush()
            while not os.path.exists(names["code"]):
                assert self._process.poll() is None, "the fork server has ended"
                time.sleep(0.005)
            code = json.loads(Path(names["code"]).read_text())
            texts = [Path(names[name]).read_text(errors="replace") for name in ("out", "err")]
        if code is None:
            raise subprocess.TimeoutExpired(argv, timeout, *texts)
        return subprocess.CompletedProcess(argv, code, *texts)


def serve(stream):
    for name in PRELOAD:
        with contextlib.suppress(ModuleNotFoundError):  # an extra that is not installed
            importlib.import_module(name)
    assert threading.active_count() == 1, threading.enumerate()
    gc.freeze()
    signal.signal(signal.SIGCHLD, lambda *_: reap())
    for line in stream:
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            job = json.loads(line)
            code = supervise(job)
            Path(job["code"] + ".partial").write_text(json.dumps(code))
            os.rename(job["code"] + ".partial", job["code"])
            os._exit(0)


def reap():
    """Nobody waits for supervisors; what they spent still counts as the tests' time."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def supervise(job):
    """Fork the ranks and wait; the first code that is not 0, or None after the time limit.

    As under torchrun, the store is not a rank's, and where one rank fails the others are told to
    stop. The store comes after the forks: it has threads.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    running = set()
    for rank in range(job["ranks"]):
        env = dict(job["env"])
        if job["ranks"] > 1:
            env |= {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": job["ranks"]}
            env |= {"LOCAL_WORLD_SIZE": job["ranks"], "MASTER_ADDR": "127.0.0.1"}
            env |= {"MASTER_PORT": port, "TORCHELASTIC_USE_AGENT_STORE": True}
        pid = os.fork()
        if pid == 0:
            become(job, {key: str(value) for key, value in env.items()})
        running.add(pid)
    store = None
    if job["ranks"] > 1:
        store = dist.TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)
    code, deadline = 0, time.monotonic() + job["timeout"]
    while running:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid:
            running.discard(pid)
            ended = os.waitstatus_to_exitcode(status)
            if ended and not code:
                code = ended
                for left in running:
                    os.kill(left, signal.SIGTERM)
        elif time.monotonic() > deadline:
            for left in running:
                os.kill(left, signal.SIGKILL)
            return None
        else:
            time.sleep(0.005)
    del store
    return code


def become(job, env):
    """Be the program, in a fork; never returns."""
    os.setsid()
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    for fd, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(job[name], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), fd)
    os.closerange(3, 256)
    for name, fd in (("stdout", 1), ("stderr", 2)):
        stream = open(fd, "w", buffering=1 if fd == 2 else -1, encoding="utf-8")  # noqa: SIM115
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    sys.stdin = open(0)  # noqa: SIM115
    os.environ.clear()
    os.environ.update(env)
    os.chdir(job["cwd"])
    signal.signal(signal.SIGINT, signal.default_int_handler)
    code = 1
    try:
        first, *rest = job["argv"]
        if first == "-m":
            sys.argv = rest
            sys.path[0] = job["cwd"]
            runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
        else:
            sys.argv = job["argv"]
            sys.path[0] = str(Path(first).parent)
            runpy.run_path(first, run_name="__main__")
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
    with contextlib.suppress(BaseException):  # what an interpreter does at its end
        threading._shutdown()
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])).makefile("rw"))
