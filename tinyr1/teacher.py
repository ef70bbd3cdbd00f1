"""Trajectories from a teacher (paper section 2.1: DeepSeek-R1 answers the science questions).

    python -m tinyr1.teacher --questions q.jsonl --out science.jsonl --engine openai --api chat \\
        --base-url https://api.deepseek.com --model-name deepseek-reasoner
    python -m tinyr1.teacher DIR --questions q.jsonl --out science.jsonl        # a local model

Answers gather in FILE.work/ as they finish, so the same command continues after an interruption.
Whatever the server's shape (a reasoning field, a whole think block, or one whose opening tag was
the prompt's), what is written has the normal form; what is not fit for training is counted.
"""

from __future__ import annotations

import math
import sys
from collections import Counter
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, get_args

from tinyr1.common.command_line import Groups
from tinyr1.common.config import check_given, check_range, given, parse
from tinyr1.common.errors import RunStopped, UserError, run_main
from tinyr1.common.files import (
    hash_file,
    hash_files,
    hash_json,
    read_rows,
    read_text,
    write_json,
    write_jsonl,
)
from tinyr1.common.log import Log
from tinyr1.common.ranks import Ranks
from tinyr1.data.clean import check, split_thought
from tinyr1.data.draft import Draft, Dropped
from tinyr1.data.pipeline import record_of
from tinyr1.data.sources import is_output
from tinyr1.data.verify import is_right
from tinyr1.graders.sandbox import Level, open_sandbox
from tinyr1.model.chat import render_prompt
from tinyr1.record import Domain, Message, ProgramTests, Prompt, Sample, check_text
from tinyr1.sampling.backend import Backend
from tinyr1.sampling.options import ENGINE_GROUPS, EngineConfig
from tinyr1.sampling.queue import WorkQueue
from tinyr1.sampling.replicas import share_among_replicas, starts_replicas
from tinyr1.sampling.run import sample_missing, usage_of
from tinyr1.sampling.sampler import Usage


@dataclass(frozen=True)
class TeacherConfig(EngineConfig):
    """Ask a teacher every question, keep what is fit for training."""

    questions: Path | None = None
    """Required. JSON lines with id, domain, question, and answer or tests where they are known."""
    out: Path | None = None
    """Required. The training file to write (.jsonl)."""
    n: int = 1
    """Answers asked for each question."""
    keep: Literal["first", "shortest", "all"] = "first"
    """The ones that are kept of several usable answers of a question."""
    reject_wrong: bool = False
    """Drop answers that the graders refuse, where the right one is known."""
    instruction: str = ""
    """Appended to every question on a line of its own (kept out of the training file)."""
    open_thinking: bool = True
    """End the prompt in <think> (where we make it: not with --api chat)."""
    budget_tokens: int = 0
    """Ask nothing more once FILE.work holds so many tokens (0: no limit)."""
    price: float = 0.0
    """Money for a million tokens of answers, for the report."""
    prompt_price: float = 0.0
    """Money for a million tokens of prompts."""
    system: Path | None = None
    """File with a system message for every question (kept out of the training file)."""
    sandbox: Level = "namespaces"
    """Isolation of programs that --reject-wrong runs."""
    quiet: bool = False
    """No progress on standard error."""

    groups: ClassVar[Groups] = {
        "questions and output": "model questions out",
        "answers": "n keep reject_wrong sandbox instruction system open_thinking",
        "cost": "budget_tokens price prompt_price",
        **ENGINE_GROUPS,
        "progress": "quiet",
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, 1, math.inf, "n")
        check_range(self, 0, math.inf, "budget_tokens", "price", "prompt_price")

    def cost(self, usage: Usage) -> float:
        """Money for what a server was asked."""
        return (usage.answer_tokens * self.price + usage.prompt_tokens * self.prompt_price) / 1e6


class Question(NamedTuple):
    """A row of a question file; the right answer or the tests where they are known."""

    id: str
    domain: Domain
    text: str
    source: str = ""
    answer: str | None = None
    tests: ProgramTests | None = None

    @classmethod
    def from_json(cls, row: Any) -> Question:
        """Raises ValueError naming the field that breaks the contract (docs/formats.md)."""
        if not isinstance(row, dict):
            raise ValueError("expected a JSON object")
        text = row.get("question")
        domain: Any = row.get("domain")
        if domain not in get_args(Domain):
            raise ValueError(f"domain={domain!r}: expected one of {', '.join(get_args(Domain))}")
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"question={text!r}: expected text")
        if row.get("id") is None:
            raise ValueError("id=None: missing")
        check_text(row)
        tests, answer = row.get("tests"), row.get("answer")
        return cls(
            id=str(row["id"]),
            domain=domain,
            text=text,
            source=str(row.get("source") or ""),
            answer=None if answer is None else str(answer),
            tests=None if tests is None else ProgramTests.from_json(tests),
        )


def load_questions(path: Path, log: Log) -> list[Question]:
    """Rows of a question file; UserError names line and field.

    A file may be several put together: a question that comes again is asked once, and another one
    of the same id gets an id of its own.
    """
    questions: dict[str, Question] = {}
    again = 0
    for _, question in read_rows(path, Question.from_json):
        name = question.id
        asked = [question.domain, question.text.strip()]
        other = questions.get(name)
        if other and [other.domain, other.text.strip()] != asked:
            name = f"{name}-{hash_json(asked)[:16]}"
            question = question._replace(id=name)
            other = questions.get(name)
        again += other is not None
        if other:  # what either knows of the right answer
            question = other._replace(
                answer=other.answer or question.answer, tests=other.tests or question.tests
            )
        questions[name] = question
    if not questions:
        raise UserError(f"{path}: no questions")
    if again:
        log.say(f"{path}: {again:,} rows have an id and question that came before: asked once")
    return list(questions.values())


def make_prompts(questions: list[Question], backend: Backend, c: TeacherConfig) -> list[Prompt]:
    """Every (question, trial)."""
    prompts: list[Prompt] = []
    system = ()
    if c.system:
        said_first = read_text(c.system).strip()
        if not said_first:
            raise UserError(f"--system={c.system}: empty")
        system = (Message("system", said_first),)
    for question in questions:
        text = question.text.strip() + (f"\n{c.instruction}" if c.instruction else "")
        said, ids = (*system, Message("user", text)), ()
        if backend.tokenizer:
            try:
                ids = render_prompt(backend.tokenizer, said, backend.template, c.open_thinking)
            except ValueError as error:
                raise UserError(f"{c.questions}: id={question.id}: {error}") from None
        opened = bool(ids) and c.open_thinking
        prompts += [
            Prompt(question.domain, question.id, trial, tuple(ids), opened, messages=said)
            for trial in range(c.n)
        ]
    backend.check_lengths(prompts, c.questions)
    return prompts


def usable(question: Question, sample: Sample, c: TeacherConfig) -> Draft:
    """The trajectory in a sample; raises Dropped with the reason for which it is none."""
    # An answer that was cut off has no end to learn.
    if sample.finish_reason == "length":
        raise Dropped("cut_off")
    thought, solution = split_thought(sample.text)
    meta = {"teacher": c.model_name or None, "trial": sample.trial, "tokens": sample.token_count}
    draft = Draft(
        question.id,
        question.domain,
        question.text,
        thought,
        solution,
        question.source,
        question.answer,
        question.tests,
        meta,
    )
    check(draft)
    if c.reject_wrong and is_right(draft, c.sandbox) is False:
        raise Dropped("wrong_answer")
    return draft


def select(
    questions: list[Question], samples: list[Sample], c: TeacherConfig
) -> tuple[list[Draft], list[dict[str, Any]]]:
    """Split answers into records to keep, in the order of the questions, and rejected ones."""
    by_id: dict[str, list[Sample]] = {}
    for sample in samples:
        by_id.setdefault(sample.id, []).append(sample)
    kept: list[Draft] = []
    rejected: list[dict[str, Any]] = []
    for question in questions:
        good: list[Draft] = []
        for sample in by_id.get(question.id, ()):
            try:
                good.append(usable(question, sample, c))
            except Dropped as why:
                rejected.append(
                    {
                        "id": question.id,
                        "trial": sample.trial,
                        "reason": why.reason,
                        "text": sample.text,
                    }
                )
        if c.keep == "shortest":
            good.sort(key=lambda draft: draft.meta["tokens"])
        chosen = good if c.keep == "all" else good[:1]
        rejected += [
            {
                "id": question.id,
                "trial": draft.meta["trial"],
                "reason": "not_needed",
                "text": draft.content(),
            }
            for draft in good[len(chosen) :]
        ]
        kept += chosen
    return kept, rejected


class Prepared(NamedTuple):
    """A teacher's run before anything is asked: all that it needs, checked."""

    out: Path
    questions: list[Question]
    backend: Backend
    prompts: list[Prompt]


def prepare(c: TeacherConfig, ranks: Ranks, log: Log) -> Prepared:
    """Everything that can be wrong is found here."""
    check_given(c, "questions", "out")
    file, out = given(c.questions, "--questions"), given(c.out, "--out")
    if out.suffix != ".jsonl" or out.is_dir():
        raise UserError(f"--out={out}: expected the name of a .jsonl file")
    if is_output(file, out):
        raise UserError(f"--questions={file}: --out={out} would write it; choose another")
    questions = load_questions(file, log)
    if c.reject_wrong and any(question.tests for question in questions):
        open_sandbox(c.sandbox)
    backend = Backend(c, ranks, log)
    return Prepared(out, questions, backend, make_prompts(questions, backend, c))


def teach(c: TeacherConfig, ranks: Ranks) -> None:
    """Ask, select, write."""
    log = Log(c.quiet, ranks.is_main)
    out, questions, backend, prompts = prepare(c, ranks, log)
    settings = backend.record()
    work = out.with_suffix(".work")
    queue = WorkQueue(ranks)
    with ranks.owning(work):
        budget = c.budget_tokens or None
        price = c.cost if c.price or c.prompt_price else None
        samples = sample_missing(
            backend.open, prompts, work, settings, log, queue, budget, partial=True, price=price
        )
        if ranks.is_main:
            asked = hash_files([given(c.questions, "--questions")])
            about = {"questions_sha256": asked, "settings": settings}
            _write(out, questions, samples, c, about, log)
    queue.meet("finished")
    spent = sum(sample.token_count for sample in samples) + ranks.world_size  # each rank's share
    if ranks.is_main and len(samples) < len(prompts) and not (budget and spent >= budget):
        raise RunStopped(
            f"{len(prompts) - len(samples)} answers are missing; the same command asks again"
        )


def _write(
    out: Path,
    questions: list[Question],
    samples: list[Sample],
    c: TeacherConfig,
    about: dict[str, Any],
    log: Log,
) -> None:
    kept, rejected = select(questions, samples, c)
    dropped = Counter(row["reason"] for row in rejected)
    several = c.keep == "all" and c.n > 1
    lines: list[dict[str, Any]] = []
    for draft in kept:
        name = f"{draft.id}/{draft.meta['trial']}" if several else draft.id
        lines.append(record_of(draft, name))
    if not lines and out.exists():
        reasons = out.with_suffix(".work") / "rejected.jsonl"  # the other one is of what is there
        write_jsonl(reasons, rejected)
        raise RunStopped(
            f"{out}: no answer is fit for training, so it stays as it was; see {reasons}"
        )
    write_jsonl(out.with_suffix(".rejected.jsonl"), rejected)
    write_jsonl(out, lines)
    tokens = sum(sample.token_count for sample in samples)
    usage = usage_of(out.with_suffix(".work"))
    # Samples of a time when usage was not kept cost something, too.
    cost = c.cost(replace(usage, answer_tokens=max(usage.answer_tokens, tokens)))
    meta = {
        "questions": len(questions),
        "answers": len(samples),
        "answers_missing": len(questions) * c.n - len(samples),
        "rows_out": len(kept),
        "dropped": dict(dropped),
        "tokens": tokens,
        "cost": cost,
        "usage": asdict(usage),
        "selection": {k: getattr(c, k) for k in ("n", "keep", "reject_wrong", "instruction")},
        "sha256": hash_file(out),
    }
    write_json(out.with_suffix(".meta.json"), meta | about)
    missing = f", {meta['answers_missing']} not had" if meta["answers_missing"] else ""
    if missing and c.budget_tokens and tokens >= c.budget_tokens:
        missing += f" (--budget-tokens {c.budget_tokens:,} is spent)"
    log.say(f"{len(samples)} answers, {tokens:,} tokens, cost {cost:.2f}{missing}")
    if usage.retried_answers:
        log.say(
            f"- asked again: {usage.retried_answers} requests, {usage.retried_tokens:,} tokens "
            "thrown away"
        )
    for reason, count in dropped.items():
        log.say(f"- {reason}: {count}")
    log.say(f"{len(kept)} records: {out}")
    log.lead_on(f"python -m tinyr1.data inspect {out}")


def main() -> None:
    config = parse(TeacherConfig, sys.argv[1:], "python -m tinyr1.teacher", description=__doc__)
    if starts_replicas(config):
        prepare(config, Ranks(), Log(main=False))  # faults are said once, not by torchrun
    teach(config, share_among_replicas(config))


if __name__ == "__main__":
    run_main(main)
