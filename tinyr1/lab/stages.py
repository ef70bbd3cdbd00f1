"""The stages of the laboratory, each run once: data, initial model, branches, merges, evaluations.

Everything after the initial model goes through train.py, merge.py and evaluate.py as processes of
their own, as a user would call them. A finished stage leaves a file under OUT/stages; a rerun skips
it, and within a stage the entry scripts resume by themselves.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch

import tinyr1
from tinyr1.common.config import check_range
from tinyr1.common.errors import RunStopped, UserError
from tinyr1.common.files import Journal, read_jsonl, read_object, write_json, write_jsonl
from tinyr1.common.log import Log
from tinyr1.graders.sandbox import Level
from tinyr1.lab.initial import Saved, Schedule, make_initial_model
from tinyr1.lab.world import DOMAINS, World, task_row, training_row, write_tokenizer
from tinyr1.model.tokenizer import Tokenizer

ROOT = Path(tinyr1.__file__).resolve().parent.parent


class Sizes(NamedTuple):
    """The amounts of everything. Quick ones test the plumbing; their accuracies mean nothing."""

    pretrain: Schedule
    rough: Schedule
    rows: int  # training rows a domain
    epochs: int
    questions: int  # held-out questions a domain


FULL = Sizes(Schedule(1300, 300, 0.004, 56), Schedule(1, 150, 0.0, 40), 1280, 3, 300)
QUICK = Sizes(Schedule(12, 4, 0.0, 16), Schedule(1, 3, 0.0, 16), 48, 1, 8)

# What differs from the recipes at this scale: batches of some 32 examples, a rate for 0.4 M
# parameters, no warm-up, fp32 moments.
TRAINING = "--lr 2e-4 --warmup-ratio 0 --optim-dtype fp32 --seq-len 256 --micro-batch-size 32"
BATCH = {"math": 32, "coding": 8, "science": 5, "mixture": 6}  # rows where packing is none
TOKEN_LIMIT = 128


class Model(NamedTuple):
    """A row of the table: where the model lies and how it is named."""

    folder: str
    title: str


MODELS = (
    Model("initial", "initial model"),
    Model("expert_math", "math expert"),
    Model("expert_coding", "coding expert"),
    Model("expert_science", "science expert"),
    Model("mixture", "data mixture"),
    Model("fusion_ms_c", "fusion (math & science) & coding"),
    Model("fusion_mc_s", "fusion (math & coding) & science"),
    Model("linear", "linear average"),
    Model("task_arithmetic_0.7", "task arithmetic, lambda 0.7"),
    Model("task_arithmetic_1.0", "task arithmetic, lambda 1.0"),
)

# Arguments of merge.py. The released model lists the base (Left) second: (math & science) is
# Left science, Right math.
_EXPERTS = "models/expert_math models/expert_science models/expert_coding"
_TASK_VECTORS = "--method task_arithmetic --base models/initial"
MERGES = {
    "fusion_ms_c": "models/expert_science models/expert_math {out} --then models/expert_coding",
    "fusion_mc_s": "models/expert_coding models/expert_math {out} --then models/expert_science",
    "linear": f"{_EXPERTS} {{out}} --method linear",
    "task_arithmetic_0.7": f"{_EXPERTS} {{out}} {_TASK_VECTORS} --lam 0.7",
    "task_arithmetic_1.0": f"{_EXPERTS} {{out}} {_TASK_VECTORS} --lam 1.0",
}


@dataclass(frozen=True)
class LabConfig:
    """Run a whole Branch-Merge experiment on this CPU and write its report."""

    out: Path | None = None
    """Required. Directory for everything; the report is at its top."""
    quick: bool = False
    """Tiny sizes, under 90 s: tests the plumbing, its accuracies mean nothing."""
    seed: int = 0
    """Seed of the world, the data, the initial model and the sampling."""
    seeds: int = 1
    """Repeat everything with so many seeds, from --seed on, and report means and their spread."""
    sandbox: Level = "namespaces"
    """Isolation of the programs that the models write; rlimits protects no files."""
    figure2: bool = False
    """Also the paper's Figure 2: the math and science experts merged by each of the methods."""
    quiet: bool = False
    """No progress on standard error."""

    def __post_init__(self) -> None:
        check_range(self, 0, 2**62, "seed")
        check_range(self, 1, 100, "seeds")
        if self.seeds > 1 and self.figure2:
            raise UserError(f"--figure2: of one seed; leave --seeds={self.seeds} out")


@dataclass
class Lab:
    """Paths, sizes and running children of one laboratory."""

    out: Path
    sizes: Sizes
    seed: int
    sandbox: str
    log: Log
    children: list[subprocess.Popen[bytes]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        jobs = self.out / "stages" / "jobs.jsonl"
        self.jobs = Journal(jobs, name=str, seconds=(int, float), done=bool)

    @property
    def tasks(self) -> Path:
        return self.out / "data" / "heldout.jsonl"

    def model(self, name: str) -> Path:
        return self.out / "models" / name

    def data(self, domain: str) -> Path:
        return self.out / "data" / f"{domain}.jsonl"

    def stage(self, name: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Do `work` unless an earlier run has; returns what it returned, and its seconds."""
        marker = self.out / "stages" / f"{name}.json"
        if not marker.exists():
            self.log.say(f"-- {name}")
            spent = marker.with_suffix(".spent.json")  # by attempts that were interrupted
            before = read_object(spent)["seconds"] if spent.exists() else 0.0
            started = time.perf_counter()
            try:
                result = work()
            finally:
                seconds = before + time.perf_counter() - started
                write_json(spent, {"seconds": seconds})
            write_json(marker, {**result, "seconds": seconds})
            spent.unlink()
        return read_object(marker)

    def run(self, name: str, command: str, makes: str, ranks: int = 1) -> float:
        """Run an entry script in OUT until the file `makes` is there; RunStopped if it is not.

        A training that is told to stop ends with code 0, so the code alone says nothing. Returns
        the CPU seconds, those of interrupted attempts included.
        """
        with self.lock:
            past = [row for row in self.jobs.rows if row["name"] == name]
        if any(row["done"] for row in past) and (self.out / makes).exists():
            return sum(row["seconds"] for row in past)
        script, *arguments = command.split()
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
        argv = [sys.executable, *(launcher if ranks > 1 else []), str(ROOT / script), *arguments]
        log = self.out / "logs" / f"{name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        # One thread a process: two processes keep two cores busy, more threads only wait.
        environment = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        with open(log, "wb") as file:
            child = subprocess.Popen(argv, stdout=file, stderr=file, env=environment, cwd=self.out)
            with self.lock:
                self.children.append(child)
            code, seconds = -1, 0.0
            try:
                code, seconds = ended(child)
            except BaseException:
                child.terminate()
                code, seconds = ended(child)
                raise
            finally:  # of an interrupted one, too, the time counts
                done = code == 0 and (self.out / makes).exists()
                row = {"name": name, "seconds": seconds, "done": done}
                with self.lock:
                    self.jobs.append(row)
                    self.jobs.rows.append(row)
        if code:
            lines = log.read_text(errors="replace").strip().splitlines() or ["no output"]
            raise RunStopped(f"{name}: {script} ended with {code}: {lines[-1]} (see {log})")
        if not done:
            raise RunStopped(f"{name}: {script} was told to stop; the same command continues")
        return sum(r["seconds"] for r in [*past, row])

    def stop_children(self) -> None:
        """Tell what still runs to stop. The threads that wait for it see it end."""
        for child in self.children:
            if child.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child.pid, signal.SIGTERM)
        while any(child.returncode is None for child in self.children):
            time.sleep(0.05)


def ended(child: subprocess.Popen[bytes]) -> tuple[int, float]:
    """Wait for a process: its exit code, and the CPU seconds of it and of its own processes."""
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    return child.returncode, usage.ru_utime + usage.ru_stime


def check_checkout() -> None:
    """UserError from an installed wheel, which has no entry scripts."""
    if not (ROOT / "train.py").exists():
        raise UserError(
            "tinyr1.lab: needs a checkout of the repository (it calls train.py, merge.py and "
            "evaluate.py); clone it and install it: pip install -c constraints.txt -e '.[lab]'"
        )


# ---------------------------------------------------------------- stages


def make_data(lab: Lab) -> dict[str, Any]:
    """Held-out questions first, then training rows of each domain without them."""
    world = World(lab.seed)
    rng = random.Random(f"questions:{lab.seed}")
    questions: list[dict[str, Any]] = []
    for domain in DOMAINS:
        seen: set[str] = set()
        while len(seen) < lab.sizes.questions:
            problem = world.problem(domain, rng)
            if problem.prompt not in seen:
                questions.append(task_row(problem, f"{domain}-{len(seen)}"))
                seen.add(problem.prompt)
    write_jsonl(lab.tasks, questions)
    heldout = {q["prompt"] for q in questions}
    for domain in DOMAINS:
        rng = random.Random(f"branch:{domain}:{lab.seed}")
        rows: list[dict[str, Any]] = []
        while len(rows) < lab.sizes.rows:
            problem = world.problem(domain, rng)
            if problem.prompt not in heldout:
                text = world.answer(problem, rng)
                rows.append(training_row(problem, text, f"{domain}-{len(rows)}"))
        write_jsonl(lab.data(domain), rows)
    write_tokenizer(world, lab.model("initial"))
    return {"questions": len(questions), "rows": lab.sizes.rows * len(DOMAINS)}


def make_initial(lab: Lab) -> dict[str, Any]:
    """The model that the branches start from, trained here with two threads."""
    torch.set_num_threads(min(2, os.cpu_count() or 1))
    torch.manual_seed(lab.seed)
    excluded = {row["prompt"] for row in _rows(lab.tasks)}
    folder = lab.model("initial")
    schedules = (lab.sizes.pretrain, lab.sizes.rough)
    saved = Saved(lab.out / "stages" / "initial.pt")
    return make_initial_model(
        World(lab.seed), Tokenizer(folder), folder, lab.seed, schedules, excluded, lab.log, saved
    )


def _rows(path: Path) -> list[Any]:
    return [row for _, row in read_jsonl(path)]


def train_branches(lab: Lab) -> dict[str, Any]:
    """Three experts and the mixture of the same data for the same epochs (equal compute)."""

    def train(branch: str, ranks: int = 1) -> float:
        recipe = branch.removeprefix("expert_")
        data = " ".join(f"data/{d}.jsonl" for d in DOMAINS if recipe in (d, "mixture"))
        command = (
            f"train.py {recipe} --model models/initial --data {data} --out models/{branch} "
            f"--epochs {lab.sizes.epochs} --batch-size {BATCH[recipe]} --seed {lab.seed} "
            f"{TRAINING} --quiet"
        )
        return lab.run(branch, command, f"models/{branch}/config.json", ranks)

    # The mixture beside math and coding keeps two cores busy; science runs on both of them.
    beside = ("mixture", "expert_math", "expert_coding")
    with _progress(lab, [*beside, "expert_science"]):
        seconds = _each(lab, train, beside, show=False)
        seconds["expert_science"] = train("expert_science", ranks=2)
    return {"core_seconds": seconds}


def merge_models(lab: Lab, merges: Mapping[str, str] = MERGES) -> dict[str, Any]:
    """Both of the paper's sequences, and the methods that they are compared with."""

    def merge(name: str) -> float:
        arguments = merges[name].format(out=f"models/{name}")
        return lab.run(name, f"merge.py {arguments} --quiet", f"models/{name}/config.json")

    return {"core_seconds": _each(lab, merge, merges)}


def evaluate_models(
    lab: Lab,
    names: Iterable[str] = tuple(m.folder for m in MODELS),
    tasks: str = "data/heldout.jsonl",
) -> dict[str, Any]:
    """Every model on the same held-out questions, with the same random streams."""

    def evaluate(name: str) -> float:
        command = (
            f"evaluate.py models/{name} --task-file {tasks} --preset plain "
            f"--out evaluations/{name} --seed {lab.seed} --max-tokens {TOKEN_LIMIT} --slots 300 "
            f"--jobs 1 --sandbox {lab.sandbox} --quiet"
        )
        return lab.run(f"evaluate_{name}", command, f"evaluations/{name}/report.html")

    return {"core_seconds": _each(lab, evaluate, names)}


def _each(
    lab: Lab, work: Callable[[str], float], names: Iterable[str], show: bool = True
) -> dict[str, float]:
    """work(name) of each, two at a time, in order."""
    with ThreadPoolExecutor(2) as pool:
        futures = {name: pool.submit(work, name) for name in names}
        done = as_completed(futures.values())
        try:
            for future in lab.log.bar(done, total=len(futures), unit="model") if show else done:
                future.result()
            return {name: future.result() for name, future in futures.items()}
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            lab.stop_children()
            raise


class _progress:
    """A bar over the steps of several trainings, read from their metrics files."""

    def __init__(self, lab: Lab, branches: Sequence[str]) -> None:
        self.files = [lab.model(b) / "metrics.jsonl" for b in branches]
        rows, epochs = lab.sizes.rows, lab.sizes.epochs
        total = 2 * len(DOMAINS) * rows * epochs // 30  # about 30 examples a step
        self.bar = lab.log.bar(total=total, desc="branches", unit="step")
        self.done = threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        while not self.done.wait(0.5):
            steps = sum(f.read_bytes().count(b"\n") for f in self.files if f.exists())
            self.bar.update(steps - self.bar.n)

    def __enter__(self) -> None:
        self.thread.start()

    def __exit__(self, *_: object) -> None:
        self.done.set()
        self.thread.join()
        self.bar.close()
