"""What several test files share: a tiny checkpoint, its data, and running entry scripts."""

import contextlib
import dataclasses
import functools
import gc
import importlib
import io
import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

# Two cores: a test that starts two ranks must not start four threads.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["HF_HUB_OFFLINE"] = "1"
# mergekit's golden outputs are its rounding noise under AVX2; wider vectors sum in another order.
os.environ.setdefault("ATEN_CPU_CAPABILITY", "avx2")

import pytest
import torch
from fork_server import ForkServer

from tinyr1.common import errors
from tinyr1.common.errors import run_main
from tinyr1.graders.sandbox import Sandbox, SandboxUnavailable
from tinyr1.lab.initial import initialise, model_config, save_model
from tinyr1.lab.world import DOMAINS, World, task_row, training_row, write_tokenizer
from tinyr1.model.qwen2 import Qwen2
from tinyr1.model.tokenizer import Tokenizer
from tinyr1.record import TaskRow

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = ROOT / "tests" / "golden"  # cases of the project's own; README.md there says which
SHARED_DATA = ROOT.parent / "shared" / "data"  # files that the repository may not hold


def strongest_sandbox():
    """namespaces where the machine gives them, else rlimits."""
    try:
        with Sandbox("namespaces"):
            return "namespaces"
    except SandboxUnavailable:
        return "rlimits"


def make_checkpoint(folder, seed=0, tied=True, hidden_size=48):
    """A random Qwen2 of the laboratory's shape but two layers, with its tokenizer."""
    write_tokenizer(World(0), folder)
    config = model_config(Tokenizer(folder).largest_id + 1)
    small = {"num_hidden_layers": 2, "hidden_size": hidden_size, "head_dim": hidden_size // 4}
    small["tie_word_embeddings"] = tied
    config = dataclasses.replace(config, **small)
    model = Qwen2(config)
    initialise(model, seed)
    with torch.no_grad():  # no tensor may be constant, or errors in it would not show
        for parameter in model.parameters():
            generator = torch.Generator().manual_seed(seed + parameter.numel())
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    save_model(model, folder)
    return folder


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """A tiny checkpoint; do not write into it."""
    return make_checkpoint(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def world():
    return World(0)


def training_rows(count, domains=DOMAINS, seed=0):
    world, rng = World(0), random.Random(seed)
    rows = []
    for i in range(count):
        problem = world.problem(domains[i % len(domains)], rng)
        rows.append(training_row(problem, world.answer(problem, rng), f"row-{i}"))
    return rows


def task_rows(count, domains=DOMAINS, seed=1):
    world, rng = World(0), random.Random(seed)
    problems = [world.problem(domains[i % len(domains)], rng) for i in range(count)]
    return [task_row(p, f"q-{i}") for i, p in enumerate(problems)]


def checked(rows):
    """Rows of a task file as what they are read into."""
    return [TaskRow.from_json(row) for row in rows]


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def run(script, *arguments, ranks=1, real=False, cwd=None, env=None):
    """Run an entry script, or with `-m` a module, as a user would; the process with its texts.

    Not `real` is a fork of a process that has imported torch (fork_server.py); with ranks > 1 a
    real one is torchrun's.
    """
    program = [script] if script == "-m" else [str(ROOT / script)]
    program += [str(a) for a in arguments]
    if not real:
        environment = dict(os.environ if env is None else env)
        return fork_server().run(program, cwd or ROOT, environment, ranks)
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    command = [sys.executable, *(launcher if ranks > 1 else []), *program]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=300, cwd=cwd or ROOT, env=env
    )


@functools.cache
def fork_server():
    """One for this process of tests."""
    return ForkServer()


def call(program, *arguments, cwd=ROOT):
    """`run` in this process, seconds faster: for command lines that end before they do anything.

    `program` is the name of a module with a `main`, or of an entry script.
    """
    streams = [io.TextIOWrapper(io.BytesIO(), encoding="utf-8") for _ in range(2)]
    before = signal.getsignal(signal.SIGINT)
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(streams[0]),
        contextlib.redirect_stderr(streams[1]),
    ):
        patch.syspath_prepend(ROOT)
        patch.setattr(sys, "argv", [program, *map(str, arguments)])
        patch.setattr(gc, "freeze", lambda: None)  # of a process that ends
        patch.setattr(errors, "_leave_at_once", sys.exit)
        patch.setenv("WORLD_SIZE", "1")  # so that it is as before afterwards
        patch.chdir(cwd)
        main = importlib.import_module(program.removesuffix(".py")).main
        with pytest.raises(SystemExit) as ended:
            run_main(main)
    signal.signal(signal.SIGINT, before)
    texts = []
    for stream in streams:
        stream.flush()
        texts.append(stream.buffer.getvalue().decode())
    return subprocess.CompletedProcess(arguments, ended.value.code, *texts)


def metrics(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
