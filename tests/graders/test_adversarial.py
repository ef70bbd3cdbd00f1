"""Programs that cheat, break or hide: each is wrong, in time, and leaves nothing on the host."""

import socket
import time

import pytest

from tinyr1.graders.grading import grade
from tinyr1.graders.sandbox import Sandbox, SandboxUnavailable

try:
    with Sandbox("namespaces"):
        MISSING = ""
except SandboxUnavailable as error:
    MISSING = str(error)

SECRET = "7391"  # the expected output, which no program may learn
TESTS = {"inputs": ["1\n"], "outputs": [SECRET + "\n"], "fn_name": None}
ROW = {"task": "t", "id": "1", "kind": "code", "prompt": "?", "tests": TESTS, "timeout_s": 1.0}

PROGRAMS = {
    "infinite loop": "while True: pass",
    "fork bomb, os": "import os\nwhile True:\n try: os.fork()\n except OSError: pass",
    "fork bomb, posix": "import posix\nwhile True:\n try: posix.fork()\n except OSError: pass",
    "fork bomb, ctypes": "import ctypes\nlibc = ctypes.CDLL(None)\nwhile True: libc.fork()",
    "memory bomb": "x = []\nwhile True: x.append(bytearray(10**8))",
    "output flood": "import sys\nwhile True: sys.stdout.write('x' * 10**6)",
    "error flood": "import sys\nwhile True: sys.stderr.write('x' * 10**6)",
    "kill the parent": "import os\nos.kill(os.getppid(), 9)",
    "kill the parent, ctypes": "import ctypes, os\nctypes.CDLL(None).kill(os.getppid(), 9)",
    "kill everything": "import os\nos.kill(-1, 9)",
    "delete files": "import shutil\nshutil.rmtree({canary!r}, ignore_errors=True)",
    "write a file": "open({canary!r} + '/pwned.txt', 'w').write('x')",
    "network": "import socket\nsocket.create_connection(('127.0.0.1', {port}), 1).send(b'x')",
    "answer in frames": (
        "import sys, re\nf = sys._getframe()\nfound = []\nwhile f:\n"
        " values = [*f.f_locals.values(), *f.f_globals.values()]\n"
        " found += [v for v in values if re.fullmatch('[0-9]{4}.?', str(v), re.S)]\n"
        " f = f.f_back\nprint(*found)"
    ),
    "answer in the collector": (
        "import gc, re\nfor o in gc.get_objects():\n for v in gc.get_referents(o):\n"
        "  if isinstance(v, str) and re.fullmatch('[0-9]{4}.?', v, re.S): print(v)"
    ),
    "answer in proc": "print(open('/proc/self/environ').read(), open('/proc/1/cmdline').read())",
    "equal to everything": (
        "class S(str):\n __eq__ = lambda a, b: True\n __hash__ = str.__hash__\nprint(S('no'))"
    ),
    "early exit": "import sys\nsys.exit(0)",
    "os exit": "import os\nos._exit(0)",
    "patched json": "import json\njson.dumps = lambda *a, **k: '7'\njson.loads = lambda *a: 7",
    "patched print": "import builtins\nbuiltins.print = lambda *a, **k: None\nprint(1)",
    "block the alarm": (
        "import signal\nsignal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))\nwhile True: pass"
    ),
    "catch the timeout": "while True:\n try:\n  while True: pass\n except BaseException: pass",
    "one long call": "sum(range(10**12))",
    "ignore the signal": (
        "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\ntime.sleep(60)"
    ),
    "daemon": (
        "import os, time\nif os.fork() == 0:\n os.setsid()\n if os.fork() == 0:\n  time.sleep(3)\n"
        "  open({canary!r} + '/daemon.txt', 'w').write('x')\n os._exit(0)"
    ),
    "hold the pipe": "import os, time\nif os.fork() == 0: time.sleep(60)",
    "environment": "import os\nprint(os.environ.get('ADVERSARIAL_SECRET'))",
    "fill the disk": (
        "import itertools\nfor i in itertools.count():\n"
        " open('/tmp/%d' % i, 'wb').write(b'x' * 10**7)"
    ),
    "many threads": (
        "import threading, time\nwhile True:\n"
        " threading.Thread(target=time.sleep, args=(60,)).start()"
    ),
    "write to every pipe": (
        "import os\nfor fd in range(3, 256):\n try: os.write(fd, b'X0')\n except OSError: pass\n1/0"
    ),
    "traceback": "raise SystemExit('7' + '391')",
    "stack overflow": "import sys\nsys.setrecursionlimit(10**9)\nf = lambda: f()\nf()",
    "crash": "import ctypes\nctypes.string_at(0)",
}


@pytest.mark.skipif(bool(MISSING), reason=MISSING or "-")
@pytest.mark.parametrize("name", PROGRAMS)
def test_every_class_is_defeated(name, tmp_path, monkeypatch):
    monkeypatch.setenv("ADVERSARIAL_SECRET", SECRET)
    canary = tmp_path / "canary"
    canary.mkdir()
    (canary / "kept").write_text("x")
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        listener.settimeout(0.05)
        port = str(listener.getsockname()[1])
        program = PROGRAMS[name].replace("{canary!r}", repr(str(canary))).replace("{port}", port)
        verdict = grade(ROW, f"x</think>\n```python\n{program}\n```")
        assert not verdict.correct
        assert verdict.reason in (
            "wrong_answer", "timeout", "memory", "runtime_error", "compile_error"
        )  # fmt: skip
        with pytest.raises(TimeoutError):
            listener.accept()
    if name == "daemon":
        time.sleep(3.5)
    assert [p.name for p in canary.iterdir()] == ["kept"]
    good = {**ROW, "tests": {"inputs": ["1\n"], "outputs": ["1\n"], "fn_name": None}}
    good["timeout_s"] = 20.0
    assert grade(good, "x</think>\n```python\nprint(input())\n```").correct  # the server lives on
