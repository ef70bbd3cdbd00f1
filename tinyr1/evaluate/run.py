"""An evaluation: task rows -> prompts -> samples -> grades -> results (paper section 3.1.2).

DIR holds samples.jsonl, grades.jsonl, results.json and report.md. Sampling and grading are apart:
samples made elsewhere are graded by --regrade, and the same command again gives the same bytes.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import math
import platform
import queue
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from tinyr1 import thinking
from tinyr1.common.config import given
from tinyr1.common.errors import RunStopped, UserError, install_line
from tinyr1.common.files import (
    hash_json,
    owned,
    read_object,
    read_rows,
    real,
    write_json,
    write_jsonl,
)
from tinyr1.common.log import Log
from tinyr1.common.ranks import Ranks
from tinyr1.evaluate import report
from tinyr1.evaluate.benchmarks import load_benchmark
from tinyr1.evaluate.loss import losses_of, losses_table
from tinyr1.evaluate.options import EvalConfig
from tinyr1.evaluate.scores import load_outcomes, rules_of, summarise
from tinyr1.evaluate.tasks import choice_order, load_task_file, make_prompts, prompt_text
from tinyr1.graders.answer import last_fenced_block
from tinyr1.graders.grading import also_released, also_symbolic, grade
from tinyr1.graders.sandbox import (
    SandboxUnavailable,
    end_all,
    numpy_home,
    numpy_version,
    open_sandbox,
)
from tinyr1.graders.symbolic import SymbolicJudge
from tinyr1.record import Grade, Prompt, Sample, TaskRow
from tinyr1.sampling.backend import Backend
from tinyr1.sampling.queue import WorkQueue
from tinyr1.sampling.run import prompt_hashes, sample_missing

FIGURES = ("pass_at_1", "question_se")  # of a task, that --compare needs
PAGE_CHARACTERS = 30_000_000  # of samples in report.html; a browser opens no page of a gigabyte


def load_rows(config: EvalConfig) -> list[TaskRow]:
    """The task rows of a run, cut to --limit a task."""
    if not config.tasks:
        given(config.task_file, "--task-file")
    names = list(dict.fromkeys(name.strip() for name in config.tasks.split(",") if name.strip()))
    if config.tasks and not names:
        raise UserError(f"--tasks={config.tasks}: no name in it")
    found: list[TaskRow] = []
    for name in names:
        window = (config.lcb_start, config.lcb_end)
        found += load_benchmark(name, config.data, config.preset, window)
    if config.task_file is not None:
        own = load_task_file(config.task_file)
        if clash := {row.task for row in own} & set(names):
            raise UserError(f"--task-file={config.task_file}: its {min(clash)} is in --tasks too")
        found += own
    return cut_rows(found, config.limit)


def cut_rows(found: Sequence[TaskRow], limit: int | None) -> list[TaskRow]:
    """The first `limit` rows of each task."""
    counts = Counter[str]()
    rows: list[TaskRow] = []
    for row in found:
        counts[row.task] += 1
        if limit is None or counts[row.task] <= limit:
            rows.append(row)
    return rows


def show_prompts(config: EvalConfig, log: Log) -> None:
    """Print every prompt; without a model, in the DeepSeek-R1 template of today."""
    tokenizer = None
    template = "deepseek_r1"
    opens = True
    if config.model is not None:
        backend = Backend(replace(config, engine="torch"), Ranks(), log)
        tokenizer, template = backend.tokenizer, backend.template
        opens = bool(tokenizer and tokenizer.opens_thinking())
    seed = config.sampling.seed
    rows = load_rows(config)
    how = (config.preset, config.trials, opens, seed, config.system)
    for p in make_prompts(rows, tokenizer, template, *how):
        text = tokenizer.decode_raw(list(p.tokens)) if tokenizer else prompt_text(p)
        line = {"task": p.task, "id": p.id, "trial": p.trial, "prompt": text}
        print(json.dumps(line, ensure_ascii=False))


class Prepared(NamedTuple):
    """An evaluation of which all is known but the samples."""

    out: Path
    rows: list[TaskRow]
    backend: Backend
    prompts: list[Prompt]


def prepare(config: EvalConfig, log: Log, ranks: Ranks) -> Prepared:
    """Everything that can be wrong is found here, before hours of sampling."""
    has_model = config.model is not None or config.model_name
    missing = [] if has_model else ["MODEL"]
    missing += [] if config.tasks or config.task_file else ["--tasks or --task-file"]
    missing += ["--out"] if config.out is None else []
    if missing:
        instead = "" if has_model else "; or --ask, --compare, --regrade, --show-prompts"
        raise UserError(f"{', '.join(missing)}: required{instead}; --help shows all options")
    out = given(config.out, "--out")
    rows = load_rows(config)
    check_graders(rows, config, log)
    backend = Backend(config, ranks, log)
    opens = backend.tokenizer.opens_thinking() if backend.tokenizer else False
    seed = config.sampling.seed
    how = (config.preset, config.trials, opens, seed, config.system)
    prompts = make_prompts(rows, backend.tokenizer, backend.template, *how)
    backend.check_lengths(prompts)
    return Prepared(out, rows, backend, prompts)


def evaluate(config: EvalConfig, log: Log, ranks: Ranks) -> None:
    """Sample what is missing in --out, grade everything, write results and report."""
    out, rows, backend, prompts = prepare(config, log, ranks)
    record = backend.record() | {"preset": config.preset}
    work = WorkQueue(ranks)
    with ranks.owning(out):
        started = time.perf_counter()
        samples = sample_missing(backend.open, prompts, out, record, log, work)
        if ranks.is_main:
            _note_time(out / "timing.json", time.perf_counter() - started, ranks, backend)
            about = backend.versions() | {"prompts_sha256": hash_json(prompt_hashes(prompts))}
            finish(out, rows, samples, config, record | about, log)
    work.meet("finished")


def _note_time(path: Path, seconds: float, ranks: Ranks, backend: Backend) -> None:
    """Add this call's sampling to timing.json: beside the results, which hold no times."""
    before = read_object(path) if path.exists() else {}
    gpus = ranks.world_size * backend.config.tensor_parallel
    gpus = gpus if torch.cuda.is_available() and backend.engine != "openai" else 0
    values = {
        "sampling_seconds": before.get("sampling_seconds", 0.0) + seconds,
        "gpu_hours": before.get("gpu_hours", 0.0) + seconds * gpus / 3600,
    }
    write_json(path, values)


def ask(config: EvalConfig, log: Log) -> None:
    """Print the answer to one question as it comes."""
    backend = Backend(config, Ranks(), log)
    row = TaskRow("ask", "0", "math", given(config.ask, "--ask"))
    (prompt,) = make_prompts(
        [row], backend.tokenizer, backend.template, "plain", 1, False, system=config.system
    )
    backend.check_lengths([prompt])
    sampler = backend.open(1)
    try:
        for piece in sampler.stream(prompt):
            print(piece, end="", flush=True)
    finally:
        print()
        sampler.close()


def regrade(config: EvalConfig, log: Log) -> None:
    """Grade samples made elsewhere against the task file."""
    file, out = given(config.regrade, "--regrade"), given(config.out, "--out")
    every_row = load_rows(replace(config, limit=None))
    rows = cut_rows(every_row, config.limit)
    known = {row.key: row for row in rows}
    beyond_limit = {row.key for row in every_row} - known.keys()
    samples: list[Sample] = []
    seen: set[tuple[str, str, int]] = set()
    for number, sample in read_rows(file, _OpenThoughts()):
        try:
            if row := known.get((sample.task, sample.id)):
                sample = _in_known_order(sample, row, config)
        except ValueError as error:
            raise UserError(f"{file}:{number}: {error}") from None
        if sample.key in seen:
            raise UserError(f"{file}:{number}: id={sample.id!r}: this trial came before")
        seen.add(sample.key)
        if (sample.task, sample.id) in known:
            samples.append(sample)
        elif (sample.task, sample.id) not in beyond_limit:
            raise UserError(f"{file}:{number}: id={sample.id!r}: no such row among the tasks")
    if not samples:
        raise UserError(f"{file}: no samples")
    place = {name: i for i, name in enumerate(known)}  # as a run has them, however they finished
    samples.sort(key=lambda sample: (place[sample.task, sample.id], sample.trial))
    if unasked := len(known) - len({(sample.task, sample.id) for sample in samples}):
        log.warn(f"{unasked} of {len(known)} questions have no sample and do not count")
    check_graders(rows, config, log)
    record: dict[str, Any] = {"regraded": True}
    if config.choice_order != "recorded":
        record["choice_order"] = config.choice_order
    if config.choice_order == "seeded":
        record["choice_order_seed"] = config.sampling.seed
    before = out / "results.json"
    if before.exists() and real(file).parent == real(out):
        # A run's own samples: they were made with these.
        record = read_object(before).get("settings", {}) | record
    with owned(out):
        finish(out, rows, samples, config, record, log)


class _OpenThoughts:
    """Makes lines into samples; refuses a file in which a missing `think_open` decides.

    Without it a text with neither tag is a plain answer. Where other texts of the file had their
    thought opened by the prompt, it is a thought that never ended.
    """

    def __init__(self) -> None:
        self.plain = False
        self.opened = False

    def __call__(self, line: Any) -> Sample:
        try:
            sample = Sample.from_json(line)
        except ValueError as error:
            if not isinstance(line, dict) or "text" in line:
                raise
            raise ValueError(
                f"{error}; python -m tinyr1.evaluate.convert reads the files of LiveCodeBench, "
                "lighteval and lm-evaluation-harness"
            ) from None
        if line.get("think_open") is None:
            self.plain |= not thinking.has_tag(sample.text) and sample.finish_reason == "stop"
            self.opened |= thinking.closes_unopened(sample.text)
        self.opened |= sample.think_open
        if self.plain and self.opened:
            raise ValueError(
                f"id={sample.id!r}: think_open: missing in texts without a tag, where the prompts "
                "of others had opened the thinking; say true or false in each"
            )
        return sample


def _in_known_order(sample: Sample, row: TaskRow, config: EvalConfig) -> Sample:
    """The sample with the order in which it saw its row's options; ValueError where none is known.

    Without it the letter would be compared with the key of another order.
    """
    if row.shuffle and sample.choice_order is None:
        if config.choice_order == "recorded":
            raise ValueError(
                f"id={sample.id!r}: choice_order: missing, and its options are shuffled in each "
                "trial; --choice-order says how it saw them"
            )
        seeded = choice_order(row, config.sampling.seed, sample.trial)
        listed = tuple(range(len(row.choices)))
        order = seeded if config.choice_order == "seeded" else listed
        sample = replace(sample, choice_order=order)
    row.in_order(sample.choice_order)  # raises for an order of other options
    return sample


def check_graders(rows: Sequence[TaskRow], config: EvalConfig, log: Log) -> None:
    """Fail early where grading would: no sandbox for programs, no math-verify for --symbolic."""
    if config.symbolic and importlib.util.find_spec("math_verify") is None:
        raise UserError(f"--symbolic: needs math-verify; {install_line('eval')}")
    if not any(row.kind == "code" for row in rows):
        return
    if numpy_home() is None:
        log.warn("numpy is not installed here: programs that import it will fail")
    if config.sandbox == "rlimits":
        log.warn("--sandbox rlimits is no sandbox: programs can read and write this user's files")
    open_sandbox(config.sandbox)


def finish(
    out: Path,
    rows: Sequence[TaskRow],
    samples: Sequence[Sample],
    config: EvalConfig,
    record: dict[str, Any],
    log: Log,
) -> None:
    """Grade and write everything that --out holds beside the samples."""
    grades = grade_samples(rows, samples, config, log)
    write_jsonl(out / "grades.jsonl", [g.to_json() for g in grades])
    if any(row.kind == "code" for row in rows):  # on which verdicts of programs depend
        record = record | {"sandbox": config.sandbox, "python": platform.python_version()}
        record["numpy"] = numpy_version()
    tasks = summarise(samples, grades, rows)
    results = {"settings": record, "rules": rules_of(tasks), "tasks": tasks}
    write_json(out / "results.json", results)
    shown = shown_samples(rows, samples, grades)
    report.write_report(out, "Evaluation", results["tasks"], record, shown)
    for line in report.plain_lines(results["tasks"]):
        log.say(line)
    log.say(f"report: {out / 'report.html'} (open it in a browser; every answer is in it)")
    log.lead_on(f"python evaluate.py --compare {out} OTHER_RESULTS")


def shown_samples(
    rows: Sequence[TaskRow], samples: Sequence[Sample], grades: Sequence[Grade]
) -> list[report.ShownSample]:
    """The samples that the page shows: all, or of a large run the first trial of each question."""
    by_key = {row.key: row for row in rows}
    whole = sum(len(s.text) for s in samples) <= PAGE_CHARACTERS
    shown: list[report.ShownSample] = []
    for sample, verdict in zip(samples, grades, strict=True):
        if whole or sample.trial == 0:
            row = by_key[sample.task, sample.id].in_order(sample.choice_order)
            options = [f"({c}) {text}" for c, text in zip(row.letters, row.choices, strict=False)]
            question = "\n".join([row.prompt, *options])
            shown.append(report.ShownSample(sample, verdict, row.answer, question))
    return shown


def grade_samples(
    rows: Sequence[TaskRow], samples: Sequence[Sample], config: EvalConfig, log: Log
) -> list[Grade]:
    """Grades in sample order; what would be graded alike is graded once.

    Only the part after the thinking counts, and of a program's answer only the program.
    """
    by_key = {row.key: row for row in rows}

    def key(sample: Sample) -> tuple[Any, ...]:
        read: str | None = sample.text  # by the rules
        if not config.also_grade:  # whose rules read everything
            read = thinking.after(sample.text, sample.think_open, sample.finish_reason)
            if read is not None and by_key[sample.task, sample.id].kind == "code":
                read = last_fenced_block(read)
        ending = sample.finish_reason, sample.think_open
        return (sample.task, sample.id, read, sample.choice_order, *ending)

    # Many samples say the same; programs especially are run once.
    distinct = {key(sample): sample for sample in samples}

    # One judge for each thread: a judge answers one question at a time.
    judges: queue.SimpleQueue[SymbolicJudge] = queue.SimpleQueue()
    for _ in range(config.jobs):
        judges.put(SymbolicJudge())

    def work(sample: Sample) -> Grade:
        row = by_key[sample.task, sample.id].in_order(sample.choice_order)
        verdict = grade(
            row,
            sample.text,
            sample.finish_reason,
            think_open=sample.think_open,
            sandbox=config.sandbox,
        )
        if config.symbolic:
            judge = judges.get()
            try:
                verdict = also_symbolic(row, verdict, judge)
            finally:
                judges.put(judge)
        if config.also_grade:
            verdict = also_released(row, verdict, sample.text, config.sandbox)
        return verdict

    with contextlib.ExitStack() as stack, ThreadPoolExecutor(config.jobs) as pool:
        stack.callback(lambda: [judges.get().close() for _ in range(config.jobs)])
        graded = pool.map(work, distinct.values())
        bar = log.bar(graded, total=len(distinct), desc="grading", unit="answer")
        try:
            verdicts = dict(zip(distinct, bar, strict=True))
        except SandboxUnavailable as error:  # it was there when the run began
            raise RunStopped(f"{error}; the samples are kept, the same command continues") from None
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            end_all()
            raise
    return [replace(verdicts[key(s)], trial=s.trial) for s in samples]


def compare(config: EvalConfig, log: Log) -> None:
    """Print a table of evaluations with paired differences to the first."""
    if len(config.compare) < 2:
        raise UserError("--compare: expected at least two evaluation directories")
    names = [folder.name for folder in config.compare]
    if len(set(names)) < len(names):
        names = [str(folder) for folder in config.compare]
    losses = [losses_of(folder) for folder in config.compare]
    graded = [folder for folder in config.compare if (folder / "results.json").exists()]
    if graded or None in losses:
        results = [_finished_tasks(folder) for folder in config.compare]
        outcomes = [load_outcomes(folder) for folder in config.compare]
        print(report.comparison_table(names, results, outcomes))
    if any(losses):
        measured = {name: found for name, found in zip(names, losses, strict=True) if found}
        print(losses_table(measured).markdown())


def _finished_tasks(folder: Path) -> dict[str, Any]:
    tasks = read_object(folder / "results.json").get("tasks")
    if not isinstance(tasks, dict) or not all(
        isinstance(t, dict)
        and all(type(t.get(k)) in (int, float) and math.isfinite(t[k]) for k in FIGURES)
        for t in tasks.values()
    ):
        raise UserError(
            f"{folder}: results.json is not an evaluation's (no tasks with {' and '.join(FIGURES)})"
        )
    return tasks
