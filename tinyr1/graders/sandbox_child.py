"""The far side of the sandbox: a small server that runs each program in a process of its own.

Run by path (sandbox.FLAGS) and nothing but the standard library; sandbox.py talks to it.
It holds no secrets and no expected outputs. For each job it forks

    keeper    leaves this session and enters new namespaces
    init      process 1 of the new pid namespace: builds a root that holds only the interpreter
    program   gives up every privilege, takes its limits, runs the model's code

so when init ends, the kernel ends whatever the program left behind.
"""

import atexit
import builtins
import contextlib
import ctypes
import glob
import importlib.machinery
import io
import json
import os
import resource
import select
import signal
import struct
import sys
import threading
import time
import types
from typing import Any, NoReturn

Job = dict[str, Any]

PREAMBLE = """
from string import *
from re import *
from datetime import *
from collections import *
from heapq import *
from bisect import *
from copy import *
from math import *
from random import *
from statistics import *
from itertools import *
from functools import *
from operator import *
from io import *
from sys import *
from json import *
from builtins import *
from typing import *
import string, re, datetime, collections, heapq, bisect, copy, math, random, statistics, itertools
import functools, operator, io, sys, json
sys.setrecursionlimit(50000)
"""
EXIT_COMPILE, EXIT_RUNTIME, EXIT_MEMORY = 81, 82, 83

CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC = 0x00020000, 0x04000000, 0x08000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_BIND = 4096
MS_REC = 16384
MS_PRIVATE = 1 << 18
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 1, 4, 24, 38
SYS_MOUNT_SETATTR = 442  # the same number on every architecture
AT_RECURSIVE, MOUNT_ATTR_RDONLY = 0x8000, 1
NUMPY = "/site"  # where a program finds numpy

libc = ctypes.CDLL(None, use_errno=True)


def call(name: str, *args: object) -> None:
    """A libc call that raises OSError."""
    if getattr(libc, name)(*args) == -1:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


def mount(
    source: str, target: str, kind: str | None = None, flags: int = 0, options: str | None = None
) -> None:
    encoded = [None if v is None else v.encode() for v in (source, target, kind, options)]
    call("mount", encoded[0], encoded[1], encoded[2], ctypes.c_ulong(flags), encoded[3])


def die_with_parent() -> None:
    call("prctl", PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


# ---------------------------------------------------------------- the three processes of a job


def keeper(job: Job, out_fd: int, status_fd: int) -> NoReturn:
    """Enter new namespaces, start init in them and wait for it."""
    os.setsid()
    die_with_parent()
    if job["level"] == "rlimits":
        init(job, out_fd, status_fd)
    is_root = os.geteuid() == 0
    job["user"] = 60000 + os.getpid() % 5000  # of its own, so that process limits are its own
    try:
        spaces = CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS
        user = os.getuid()
        group = os.getgid()
        call("unshare", spaces if is_root else spaces | CLONE_NEWUSER)
        if not is_root:  # stay the same user inside; without this line we would be nobody
            write_text("/proc/self/setgroups", "deny")
            write_text("/proc/self/uid_map", f"{user} {user} 1")
            write_text("/proc/self/gid_map", f"{group} {group} 1")
        pid = os.fork()
    except OSError as error:
        os.write(status_fd, f"E{error}".encode())
        os._exit(1)
    if pid == 0:
        die_with_parent()
        init(job, out_fd, status_fd)
    os.close(out_fd)
    os.close(status_fd)
    os.waitpid(pid, 0)
    os._exit(0)


def write_text(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)


def init(job: Job, out_fd: int, status_fd: int) -> NoReturn:
    """Build the root, run the program, report how it ended, and take everything down by ending."""
    try:
        if job["level"] == "namespaces":
            build_root(job["numpy_home"])
        pid = os.fork()
    except OSError as error:
        os.write(status_fd, f"E{error}".encode())
        os._exit(1)
    if pid == 0:
        os.close(status_fd)
        program(job, out_fd)
    os.close(out_fd)
    # A program that outlives its time has lost its server: SIGKILL came between a fork and a prctl.
    signal.signal(signal.SIGALRM, lambda *_: end_group())
    signal.alarm(int(job["timeout_s"]) + 5)
    while True:
        ended, status = os.wait()
        if ended == pid:
            break
    os.write(status_fd, f"X{os.waitstatus_to_exitcode(status)}".encode())
    os._exit(0)


def end_group() -> NoReturn:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(0, signal.SIGKILL)
    os._exit(1)  # process 1 of a pid namespace cannot kill itself


def build_root(numpy_home: str) -> None:
    """A root of read-only views of the interpreter, its libraries and numpy, and an empty /tmp."""
    interpreter = (sys.base_prefix, os.path.realpath(sys.base_prefix))
    wanted = {*interpreter, "/lib", "/lib64", "/usr/lib", "/usr/lib64"}
    mount("none", "/", None, MS_REC | MS_PRIVATE)
    # The new root is mounted over a folder that must not hide what is bound into it.
    free = [p for p in ("/mnt", "/srv", "/media", "/tmp") if not interpreter[1].startswith(p)]
    root = next(p for p in free if os.path.isdir(p) and not interpreter[0].startswith(p))
    mount("tmpfs", root, "tmpfs", MS_NOSUID | MS_NODEV, "size=64m,mode=755")
    views = [(path, root + path) for path in sorted(wanted, key=len)]  # a parent before its child
    if numpy_home:  # and nothing that lies beside it
        views += [(f"{numpy_home}/{n}", f"{root}{NUMPY}/{n}") for n in ("numpy", "numpy.libs")]
    for path, target in views:
        if os.path.isdir(path) and not os.path.isdir(target):
            os.makedirs(target)
            mount(path, target, None, MS_BIND | MS_REC)
            set_read_only(target)
    for path in interpreter:  # what is installed beside the interpreter
        for packages in glob.glob(f"{root}{path}/lib/python3*/*-packages"):
            mount("none", packages, "tmpfs", MS_RDONLY | MS_NOSUID | MS_NODEV, "size=4k,mode=111")
    # The folders on the way to the interpreter may be passed but not listed, as /root is.
    for path in interpreter:
        while (path := os.path.dirname(path)) not in ("/", "/usr"):
            with contextlib.suppress(OSError):  # within another view, which is read-only
                os.chmod(root + path, 0o111)
    os.makedirs(root + "/dev")
    for device in ("/dev/null", "/dev/urandom", "/dev/zero"):
        os.close(os.open(root + device, os.O_CREAT))
        mount(device, root + device, None, MS_BIND)
    os.makedirs(root + "/tmp", exist_ok=True)
    os.chmod(root + "/tmp", 0o1777)
    os.chroot(root)
    os.chdir("/tmp")


def set_read_only(target: str) -> None:
    attributes = struct.pack("QQQQ", MOUNT_ATTR_RDONLY, 0, 0, 0)
    call("syscall", SYS_MOUNT_SETATTR, -100, target.encode(), AT_RECURSIVE, attributes, 32)


def give_up_privileges(user: int) -> None:
    """No capability, no way back to one, and as real root a user of our own."""
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
    else:
        for capability in range(64):
            libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)
        header = struct.pack("Ii", 0x20080522, 0)
        data = bytes(24)
        call("capset", header, data)
    call("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def program(job: Job, out_fd: int) -> NoReturn:
    """Take the limits, wire the descriptors, run the code; never returns."""
    stdin_fd = os.memfd_create("stdin")
    given = memoryview(job["stdin"])
    while given:
        given = given[os.write(stdin_fd, given) :]
    os.lseek(stdin_fd, 0, os.SEEK_SET)
    null = os.open("/dev/null", os.O_RDWR)
    calls_function = job["fn_name"] is not None
    os.dup2(stdin_fd, 0)
    os.dup2(null if calls_function else out_fd, 1)
    os.dup2(null, 2)
    os.dup2(out_fd, 3)
    os.closerange(4, 256)
    if not calls_function:
        os.close(3)
    if job["level"] == "namespaces":
        give_up_privileges(job["user"])
    die_with_parent()  # now: a change of the user would clear it
    limits = {
        resource.RLIMIT_AS: job["memory_mb"] << 20,
        resource.RLIMIT_CPU: int(job["timeout_s"]) + 1,
        resource.RLIMIT_FSIZE: 16 << 20,
        resource.RLIMIT_NOFILE: 64,
        resource.RLIMIT_CORE: 0,
    }
    if job["level"] == "namespaces":  # else the user's other processes count, too
        limits[resource.RLIMIT_NPROC] = 64
    for kind, limit in limits.items():
        resource.setrlimit(kind, (limit, limit))
    os.environ.clear()
    # Each of its threads would reserve memory. Python's own environment stays empty.
    os.putenv("OPENBLAS_NUM_THREADS", "1")
    if job["numpy_home"]:
        home = NUMPY if job["level"] == "namespaces" else job["numpy_home"]
        sys.meta_path.append(NumpyFinder(home))
    sys.stdin = io.TextIOWrapper(io.BufferedReader(io.FileIO(0)), encoding="utf-8")
    sys.stdout = io.TextIOWrapper(io.BufferedWriter(io.FileIO(1, "w")), encoding="utf-8")
    sys.stderr = io.TextIOWrapper(io.BufferedWriter(io.FileIO(2, "w")), encoding="utf-8")
    os._exit(run(job))


def run(job: Job) -> int:
    """Execute the program (and call its function); returns the exit code."""
    dumps = json.dumps  # our own reference: what the program patches later is not ours
    loads, write = json.loads, os.write
    sys.argv = ["solution.py"]
    sys.path[:] = [p for p in sys.path if p != os.path.dirname(os.path.abspath(__file__))]
    builtins.exit = builtins.quit = sys.exit  # the site module would define them
    # A module of its own under the name that programs, and pickle, expect; ours is not in reach.
    sys.modules["__main__"] = module = types.ModuleType("__main__")
    space: dict[str, Any] = module.__dict__
    space["__builtins__"] = builtins
    exec(PREAMBLE, space)
    imported = dict(space)
    try:
        code = compile(job["program"], "solution.py", "exec")
    except (SyntaxError, ValueError, RecursionError):
        return EXIT_COMPILE
    except MemoryError:
        return EXIT_MEMORY
    try:
        with contextlib.suppress(SystemExit):
            exec(code, space)
        if job["fn_name"] is not None:
            function = find_function(job["fn_name"], space, imported)
            hook = integer_keys if job["integer_keys"] else None
            given = [line for line in job["stdin"].split(b"\n") if line.strip()]
            arguments = [loads(line, object_hook=hook) for line in given]
            answer = dumps(function(*arguments), default=plain_value).encode()
            while answer:
                answer = answer[write(3, answer) :]
        threading._shutdown()  # pyright: ignore - what an interpreter does at its end: wait for
        atexit._run_exitfuncs()  # threads, run the exit functions, flush
        if not sys.stdout.closed:
            sys.stdout.flush()
    except MemoryError:
        return EXIT_MEMORY
    except BaseException:
        return EXIT_RUNTIME
    return 0


def find_function(name: str, space: dict[str, Any], imported: dict[str, Any]) -> Any:
    """What the program defined under a name: Solution's method, else its own function.

    Not what the preamble imported: `count`, `gcd` and `permutations` are methods' names, too.
    """
    solution = space.get("Solution")
    if hasattr(solution, name):
        return getattr(solution() if isinstance(solution, type) else solution, name)
    function = space.get(name)
    if function is None or function is imported.get(name):
        raise NameError(name)
    return function


def integer_keys(value: dict[str, Any]) -> dict[Any, Any]:
    """An object of JSON whose keys are all integers, as it was before they were made strings."""
    if not all(key.lstrip("-").isdecimal() for key in value):
        return value
    return {int(key): item for key, item in value.items()}


def plain_value(value: Any) -> Any:
    """A number of numpy's, which JSON does not know, as Python's own; an array is no list."""
    if type(value).__module__ == "numpy" and not getattr(value, "shape", None):
        return value.item()
    raise TypeError(type(value).__name__)


class NumpyFinder:
    """Finds numpy, and of what lies beside it nothing."""

    def __init__(self, home: str) -> None:
        self.home = home

    def find_spec(self, name: str, path: object = None, target: object = None) -> Any:
        if name != "numpy":
            return None
        return importlib.machinery.PathFinder.find_spec(name, [self.home])


# ---------------------------------------------------------------- the server


def serve_job(job: Job, jobs: int, replies: int) -> dict[str, Any]:
    """Run one job; returns the reply. Where `jobs` closes meanwhile, nobody wants it any more."""
    out_read, out_write = os.pipe()
    status_read, status_write = os.pipe()
    started = time.monotonic()
    pid = os.fork()
    if pid == 0:
        for fd in (out_read, status_read, jobs, replies):
            os.close(fd)
        keeper(job, out_write, status_write)
        os._exit(1)
    os.close(out_write)
    os.close(status_write)
    deadline = started + job["timeout_s"]
    output = bytearray()
    report = b""
    timed_out = False
    flooded = False
    waiting = {out_read, status_read}
    while waiting:
        left = deadline - time.monotonic()
        ready = select.select([*waiting, jobs], [], [], max(left, 0))[0]
        if not ready or jobs in ready:
            timed_out = True
            break
        for fd in ready:
            chunk = os.read(fd, 1 << 16)
            if not chunk:
                waiting.discard(fd)
            elif fd == out_read:
                output += chunk
            else:
                report += chunk
        if len(output) > job["output_limit"]:
            flooded = True
            break
        if job["level"] == "rlimits" and status_read not in waiting:
            break  # a process that the program left behind may hold the pipe open for ever
    try:  # in case of rlimits: everything in the program's session
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    os.close(out_read)
    os.close(status_read)
    return {
        "timed_out": timed_out,
        "flooded": flooded,
        "report": report.decode(errors="replace"),
        "stdout": output.decode("utf-8", errors="replace"),
        "seconds": time.monotonic() - started,
    }


def read_exactly(fd: int, count: int) -> bytes:
    data = bytearray(count)
    rest = memoryview(data)
    while rest:
        read = os.readv(fd, [rest])
        if not read:
            os._exit(0)  # the other side is gone
        rest = rest[read:]
    return bytes(data)


def raise_stack_limit() -> None:
    """Deep recursion, as on a judge; the room for a stack is laid out when a process starts."""
    soft, hard = resource.getrlimit(resource.RLIMIT_STACK)
    if soft != hard:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_STACK, (hard, hard))
            os.execv(sys.executable, [sys.executable, "-s", "-P", "-S", "-B", *sys.argv])


def main() -> NoReturn:
    raise_stack_limit()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    jobs, replies = os.dup(0), os.dup(1)
    null = os.open("/dev/null", os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    exec(PREAMBLE, {})  # imported once here, so that no job pays for it
    sys.set_int_max_str_digits(50_000)  # as LiveCodeBench's evaluator
    while True:
        (size,) = struct.unpack("<I", read_exactly(jobs, 4))
        job = json.loads(read_exactly(jobs, size))
        job["stdin"] = read_exactly(jobs, job["stdin_bytes"])
        job["numpy_home"] = sys.argv[1] if len(sys.argv) > 1 else ""
        reply = json.dumps(serve_job(job, jobs, replies)).encode()
        data = struct.pack("<I", len(reply)) + reply
        try:
            while data:
                data = data[os.write(replies, data) :]
        except BrokenPipeError:  # the other side is gone
            os._exit(0)


if __name__ == "__main__":
    main()
