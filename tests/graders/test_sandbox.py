"""The sandbox: sound verdicts, nothing reachable, nothing left behind."""

import contextlib
import json
import os
import signal
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from conftest import ROOT

from tinyr1.graders.sandbox import _CHILD, FLAGS, Sandbox, SandboxUnavailable, end_all

try:
    with Sandbox("namespaces"):
        MISSING = ""
except SandboxUnavailable as error:
    MISSING = str(error)
needs_namespaces = pytest.mark.skipif(bool(MISSING), reason=MISSING or "-")


@pytest.fixture(scope="module", params=["namespaces", "rlimits"])
def box(request):
    if request.param == "namespaces" and MISSING:
        pytest.skip(MISSING)
    with Sandbox(request.param) as sandbox:
        yield sandbox


@pytest.fixture(params=["namespaces", "rlimits"])
def box_level(request):
    if request.param == "namespaces" and MISSING:
        pytest.skip(MISSING)
    return request.param


def descendants(pid):
    """Processes that a process has started, and those that these have."""
    path = Path(f"/proc/{pid}/task/{pid}/children")
    children = [int(child) for child in path.read_text().split()] if path.exists() else []
    return [d for child in children for d in (child, *descendants(child))]


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def first_line(path):
    try:
        return path.read_text().strip()
    except OSError:  # its process has ended
        return ""


@pytest.fixture(scope="module")
def jail():
    with Sandbox("namespaces") as sandbox:
        yield sandbox


@pytest.mark.parametrize(
    ("program", "stdin", "fn_name", "stdout"),
    [
        ("print(int(input()) + 1)", "41\n", None, "42\n"),
        ("import sys\nfor x in sys.stdin: print(x.strip())", "a\nb\n", None, "a\nb\n"),
        ("print(open(0).read())", "x", None, "x\n"),
        ("import sys\nsys.stdout.buffer.write(sys.stdin.buffer.read())", "é", None, "é"),
        ("def m(): print(gcd(12, 18))\nif __name__ == '__main__': m()", "", None, "6\n"),
        ("print(1)\nexit()\nprint(2)", "", None, "1\n"),
        ("import sqlite3, decimal, heapq; print('ok')", "", None, "ok\n"),
        ("def f(a, b): return a + b", "3\n4", "f", "7"),
        ("class Solution:\n def f(self, a: List[int]): return a[::-1]", "[1, 2]", "f", "[2, 1]"),
        (
            "print('noise')\ndef f(a): print(a); return (a, {'b': 1.5})",
            '"x"',
            "f",
            '["x", {"b": 1.5}]',
        ),
        ("print(1)\nquit()\nprint(2)", "", None, "1\n"),
        (
            "import threading, time\nf = lambda: (time.sleep(0.2), print(5))\n"
            "threading.Thread(target=f).start()",
            "",
            None,
            "5\n",
        ),
        ("import atexit\natexit.register(print, 6)", "", None, "6\n"),
        ("def d(n): return 0 if n == 0 else 1 + d(n - 1)\nprint(d(20000))", "", None, "20000\n"),
    ],
)
def test_programs_run(box, program, stdin, fn_name, stdout):
    outcome = box.run(program, stdin, fn_name)
    assert (outcome.status, outcome.stdout) == ("ok", stdout)


@pytest.mark.parametrize(
    ("program", "status"),
    [
        ("while True: pass", "timeout"),
        ("import time\ntime.sleep(60)", "timeout"),
        ("import signal\nsignal.pthread_sigmask(0, range(1, 65))\nwhile True: pass", "timeout"),
        ("x = bytearray(10**11)", "memory"),
        ("x = []\nwhile True: x.append(bytearray(10**7))", "memory"),
        ("def (", "compile_error"),
        ("1 / 0", "runtime_error"),
        ("import os\nos.abort()", "runtime_error"),
        ("import os\nos.kill(os.getpid(), 9)", "runtime_error"),
        ("import os\nwhile True: os.write(1, b'x' * 65536)", "output_limit"),
        (
            "import threading\nthreading.Thread(target=lambda: all(iter(lambda: 1, 0))).start()",
            "timeout",
        ),
    ],
)
def test_failures_have_their_status(box, program, status):
    limit = 1.0 if status == "timeout" else 30.0  # a busy machine is slow to fill 512 MB
    assert box.run(program, timeout_s=limit, memory_mb=512).status == status
    assert box.run("print(1)").stdout == "1\n"  # the server lives on


def test_missing_function_and_unserialisable_result(box):
    assert box.run("x = 1", "1", "f").status == "runtime_error"
    assert box.run("def f(a): return object()", "1", "f").status == "runtime_error"
    assert box.run("def f(a): return f", "1", "f").status == "runtime_error"


def test_patching_json_or_equality_gains_nothing(box):
    program = (
        "import json\njson.dumps = lambda *a, **k: 'patched'\n"
        "class Yes(int):\n    def __eq__(self, other): return True\n"
        "def f(a): return Yes(3)"
    )
    assert box.run(program, "1", "f").stdout == "3"


def test_environment_is_empty(box, monkeypatch):
    monkeypatch.setenv("SECRET_TOKEN", "s3cret")
    outcome = box.run("import os; print(dict(os.environ))")
    assert outcome.stdout == "{}\n"


@needs_namespaces
def test_nothing_of_the_host_is_visible(jail, tmp_path):
    canary = tmp_path / "canary"
    canary.write_text("x")
    program = f"""
import os, socket
for action in (
    lambda: open({str(canary)!r}).read(),
    lambda: open({str(canary)!r}, "w"),
    lambda: os.remove({str(canary)!r}),
    lambda: os.listdir({str(ROOT)!r}),
    lambda: open("/etc/passwd").read(),
    lambda: os.mkdir("/usr/lib/x"),
    lambda: socket.create_connection(("127.0.0.1", 9), 1),
    lambda: os.kill({os.getpid()}, 9),
    lambda: os.setuid(0),
):
    try:
        action()
        print("REACHED")
    except OSError as error:
        print("no")
print(len([p for p in os.listdir("/proc")]) if os.path.exists("/proc") else 0)
"""
    outcome = jail.run(program)
    assert outcome.stdout == "no\n" * 9 + "0\n"
    assert canary.read_text() == "x"


@needs_namespaces
def test_interpreter_is_read_only_and_tmp_is_fresh(jail):
    program = (
        "import os, sys\n"
        "try:\n    open(os.path.join(sys.base_prefix, 'x'), 'w')\nexcept OSError: print('no')\n"
        "print(os.listdir('/tmp')); open('/tmp/left', 'w').write('x'); print(os.listdir('/tmp'))"
    )
    assert jail.run(program).stdout == "no\n[]\n['left']\n"
    assert jail.run(program).stdout == "no\n[]\n['left']\n"


@needs_namespaces
def test_of_the_host_numpy_is_there_and_nothing_beside_it(jail):
    program = """
import os, numpy
home = os.path.dirname(os.path.dirname(numpy.__file__))
print(sorted(set(os.listdir(home)) - {"numpy.libs"}), dict(os.environ))
try: open(numpy.__file__, "a")
except OSError: print("read-only")
for name in ("torch", "pytest", "tinyr1"):
    try: __import__(name)
    except ImportError: print("no", name)
"""
    outcome = jail.run(program, timeout_s=30)
    assert outcome.stdout == "['numpy'] {}\nread-only\nno torch\nno pytest\nno tinyr1\n"


@needs_namespaces
def test_folders_on_the_way_to_the_interpreter_cannot_be_listed(jail):
    program = """
import os, sys
path = sys.base_prefix
while (path := os.path.dirname(path)) not in ("/", "/usr"):
    if path.startswith(("/usr", "/lib", "/tmp")): continue
    try: print(path, os.listdir(path))
    except PermissionError: pass
"""
    assert jail.run(program).stdout == ""


def test_an_input_of_many_megabytes_arrives_at_once(box):
    lines = "1234567\n" * 5_000_000
    program = "import sys\nprint(len(sys.stdin.buffer.read()))"
    started = time.monotonic()
    assert box.run(program, lines, timeout_s=60).stdout == "40000000\n"
    assert time.monotonic() - started < 20  # where it was quadratic: minutes, or a timeout


def test_deep_recursion_of_c_calls_has_its_stack(box):
    program = (
        "import functools, sys\nsys.setrecursionlimit(10**6)\n"
        "@functools.lru_cache(None)\ndef g(n): return 0 if n == 0 else 1 + g(n - 1)\n"
        "print(g(100000))"
    )
    assert box.run(program, timeout_s=30).stdout == "100000\n"


def test_daemons_die_with_the_test(box):
    name = f"daemon{os.getpid() % 10**6}"
    program = (
        "import ctypes, os, time\n"
        "if os.fork() == 0:\n    os.setsid()\n"
        f"    if os.fork() == 0: ctypes.CDLL(None).prctl(15, b'{name}', 0, 0, 0); time.sleep(60)\n"
        "    time.sleep(0.2)\n    os._exit(0)\n"
        "time.sleep(0.2)\nprint('done')"
    )
    started = time.monotonic()
    outcome = box.run(program, timeout_s=50)
    assert (outcome.status, outcome.stdout) == ("ok", "done\n")
    assert time.monotonic() - started < 40  # it did not wait for the daemon
    held = box.level == "namespaces"
    deadline = time.monotonic() + (5 if held else 0)  # the kernel takes a namespace down by itself
    while True:
        left = [p for p in Path("/proc").glob("[0-9]*") if first_line(p / "comm") == name]
        if not left or time.monotonic() > deadline:
            break
        time.sleep(0.05)
    for process in left:
        os.kill(int(process.name), signal.SIGKILL)
    # Limits alone do not hold a process that leaves its session, which shows that this test can.
    assert len(left) == (not held)


@needs_namespaces
@pytest.mark.parametrize(
    "program",
    [
        "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass",
        "import os\nfor p in range(1, 400):\n"
        "    try: os.kill(p, 9)\n    except OSError: pass\n"
        "os.kill(-1, 9)",
        "import ctypes\nlibc = ctypes.CDLL(None)\n"
        "libc.ptrace(16, 1, 0, 0)\nlibc.kill(-1, 9)\nlibc.kill(1, 9)",
        "import os\nfor fd in range(3, 200):\n"
        "    try: os.write(fd, b'X0')\n    except OSError: pass\n"
        "1/0",
        "open('/tmp/big', 'wb').write(b'x' * (1 << 28))",
    ],
)
def test_attacks_fail_and_end_in_time(jail, program):
    outcome = jail.run(program, timeout_s=1.5, memory_mb=512)
    assert outcome.stdout == ""
    assert outcome.seconds < 30  # killed as a whole, fork bombs too
    assert jail.run("print(1)").stdout == "1\n"


@needs_namespaces
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_works_for_an_ordinary_user(tmp_path):
    """A user namespace is made instead; the interpreter must be one that others can read."""
    become = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "import os; os.setgroups([]); os.setgid(4242); os.setuid(4242)\n"
        "from tinyr1.graders.sandbox import Sandbox\n"
    )
    interpreters = [sys.executable, "/usr/bin/python3"]
    usable = [
        python
        for python in interpreters
        if os.path.exists(python)
        and subprocess.run([python, "-c", become], capture_output=True).returncode == 0
    ]
    if not usable:
        pytest.skip("no interpreter that an ordinary user can read")
    code = become + (
        "box = Sandbox('namespaces')\n"
        "print(box.run('import os; print(os.getuid(), os.path.exists(\"/etc\"))'))\n"
        "box.close()"
    )
    done = subprocess.run([usable[0], "-c", code], capture_output=True, text=True)
    assert "4242 False" in done.stdout, done.stderr


@needs_namespaces
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make the link where it is looked up")
def test_interpreter_behind_a_symbolic_link(tmp_path):
    link = tmp_path / "python-link"
    link.symlink_to(sys.base_prefix)
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "from tinyr1.graders.sandbox import Sandbox\n"
        "print(sys.base_prefix)\n"
        "with Sandbox('namespaces') as box: print(box.run('import colorsys; print(7)').stdout)"
    )
    python = link / "bin" / "python3"
    if not python.exists():
        pytest.skip("no bin/python3 under the interpreter's prefix")
    done = subprocess.run([str(python), "-I", "-c", code], capture_output=True, text=True)
    assert done.stdout.split("\n")[1] == "7", done.stderr


def test_a_dead_server_is_replaced():
    from tinyr1.graders.sandbox import open_sandbox

    first = open_sandbox("rlimits")
    first.close()
    assert open_sandbox("rlimits").run("print(3)").stdout == "3\n"


def test_a_sandbox_that_is_closed_takes_the_running_program_along(box_level, tmp_path):
    """Ctrl-C waits for no program, and leaves none behind."""
    sandbox = Sandbox(box_level)
    ended = []

    def work():
        with contextlib.suppress(SandboxUnavailable):
            sandbox.run("import time\ntime.sleep(987)", timeout_s=60)
        ended.append(time.monotonic())

    thread = threading.Thread(target=work)
    thread.start()
    deadline = time.monotonic() + 20
    while len(children := descendants(sandbox._server.pid)) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(children) >= 2
    started = time.monotonic()
    end_all()
    thread.join(20)
    assert ended
    assert ended[0] - started < 10
    while any(map(alive, children)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not [pid for pid in children if alive(pid)]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_sandbox_whose_owner_is_killed_leaves_nothing_behind(box_level, number):
    program = "import os, time\nos.fork()\ntime.sleep(987)"
    script = (
        "import sys\nfrom tinyr1.graders.sandbox import Sandbox\nsandbox = Sandbox(sys.argv[1])\n"
        f"sandbox.run({program!r}, timeout_s=60)"
    )
    owner = subprocess.Popen([sys.executable, "-c", script, box_level], cwd=ROOT)
    wanted = 5 if box_level == "namespaces" else 4  # server, keeper, init, program and its own
    deadline = time.monotonic() + 20
    while len(children := descendants(owner.pid)) < wanted and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(children) >= wanted
    owner.send_signal(number)
    owner.wait()
    while any(map(alive, children)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not [pid for pid in children if alive(pid)]


def test_closing_a_sandbox_whose_server_was_killed_is_quiet(box_level):
    sandbox = Sandbox(box_level)
    os.kill(sandbox._server.pid, signal.SIGKILL)
    with pytest.raises(SandboxUnavailable, match="its server has ended"):
        sandbox.run("print(1)")
    end_all()


def test_a_server_whose_reader_is_gone_says_nothing():
    """As after a Ctrl-C in the first moments, when nobody has read the reply."""
    job = {"program": "print(1)", "stdin_bytes": 0, "fn_name": None, "timeout_s": 9,
           "memory_mb": 512, "output_limit": 99, "level": "rlimits"}  # fmt: skip
    data = json.dumps(job).encode()
    with subprocess.Popen(
        [sys.executable, *FLAGS, str(_CHILD)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={},
    ) as child:  # fmt: skip
        child.stdout.close()
        child.stdin.write(struct.pack("<I", len(data)) + data)
        child.stdin.flush()
        assert child.wait(30) == 0
        assert child.stderr.read() == b""


def test_unknown_level_is_refused():
    from tinyr1.graders.sandbox import open_sandbox

    with pytest.raises(ValueError, match="expected namespaces or rlimits"):
        open_sandbox("none")
