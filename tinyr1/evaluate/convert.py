"""Samples of other harnesses as our samples.jsonl, to be graded by `evaluate.py --regrade`.

    python -m tinyr1.evaluate.convert FILE [FILE ...] --tasks math500 --data DIR --out samples.jsonl
    python evaluate.py --regrade samples.jsonl --tasks math500 --data DIR --out RESULTS

Reads LiveCodeBench's `*_eval_all.json` (and its file without the verdicts), the details parquet of
lighteval, and the `samples_*.jsonl` of lm-evaluation-harness; their verdicts are not used. What was
asked is found among the task's rows by its id or by its text, and the order of a question's
options by where each stands in the prompt. What cannot be found is an error, never a guess.
"""

from __future__ import annotations

import itertools
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro

import tinyr1.common.start  # noqa: F401 - before anything that takes time to import
from tinyr1 import thinking
from tinyr1.common.config import given, parse
from tinyr1.common.errors import UserError, run_main
from tinyr1.common.files import write_jsonl
from tinyr1.common.log import Log
from tinyr1.evaluate.benchmarks import LCB_WINDOW
from tinyr1.evaluate.harnesses import Answer, answers
from tinyr1.evaluate.options import EvalConfig
from tinyr1.evaluate.run import load_rows
from tinyr1.model.tokenizer import Tokenizer
from tinyr1.record import Sample, TaskRow


@dataclass(frozen=True)
class ConvertConfig:
    """Turn samples of LiveCodeBench, lighteval or lm-evaluation-harness into samples.jsonl."""

    files: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="FILE")] = ()
    """Their files; several of one kind are further trials."""
    tasks: str = ""
    """The built-in benchmark that was asked."""
    data: Path | None = None
    """Directory with its files as published (without it: the hub)."""
    task_file: Path | None = None
    """Tasks of your own that were asked."""
    out: Path | None = None
    """The samples.jsonl to write."""
    tokenizer: Path | None = None
    """Checkpoint directory whose tokenizer counts tokens where the file does not say them."""
    think_open: Literal["auto", "yes", "no"] = "auto"
    """Had the prompt opened the thinking? By the prompt's end, else by texts that close a thought
    which they did not open."""
    lcb_start: str = LCB_WINDOW[0]
    """First contest day of livecodebench."""
    lcb_end: str = LCB_WINDOW[1]
    """Last contest day of livecodebench."""
    partial: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Leave out what is not among the tasks' rows instead of refusing the file."""
    quiet: bool = False
    """No progress on standard error."""


# ---------------------------------------------------------------- which row it was


class Finder:
    """Finds the task's row that an answer belongs to."""

    def __init__(self, rows: Sequence[TaskRow]) -> None:
        self.rows = rows
        self.by_id = {row.id: row for row in rows}
        self.by_text = {_squeezed(row.prompt): row for row in rows}

    def row(self, answer: Answer) -> TaskRow | None:
        """By the question's text, else by the text within the prompt, else by a text-less id."""
        if found := self.by_text.get(_squeezed(answer.question)):
            return found
        asked = _squeezed(answer.prompt or answer.question)
        within = [row for text, row in self.by_text.items() if text and text in asked]
        if within:
            return max(within, key=lambda row: len(_squeezed(row.prompt)))
        named = self.by_id.get(answer.id or "")
        # An id alone is enough where it is no mere number: every set has a question 3.
        return named if named is not None and not named.id.isdigit() else None


def _squeezed(text: str) -> str:
    return " ".join(text.split())


def _order(row: TaskRow, prompt: str) -> tuple[int, ...] | None:
    """The order in which a prompt shows a row's options; None where they are not shuffled.

    ValueError where the prompt does not show each of them.
    """
    if not row.shuffle:
        return None
    asked = _squeezed(prompt)
    start = asked.find(_squeezed(row.prompt))
    after = start + len(_squeezed(row.prompt)) if start >= 0 else 0
    places: list[tuple[int, int]] = []
    taken: set[int] = set()
    # Longer options first: a short one may be part of another.
    for i in sorted(range(len(row.choices)), key=lambda i: -len(row.choices[i])):
        option = _squeezed(row.choices[i])
        at = asked.find(option, after)
        while at in taken:
            at = asked.find(option, at + 1)
        if at < 0:
            raise ValueError(f"id={row.id!r}: option {option[:40]!r} is not in the prompt")
        taken |= set(range(at, at + len(option)))
        places.append((at, i))
    return tuple(i for _, i in sorted(places))


# ---------------------------------------------------------------- the conversion


def convert(config: ConvertConfig, log: Log) -> list[Sample]:
    """All samples of the files, in the order of the tasks' rows; UserError names file and row."""
    if not config.files:
        raise UserError("FILE: required, before any option; --help shows all options")
    rows = load_rows(
        EvalConfig(
            tasks=config.tasks,
            data=config.data,
            task_file=config.task_file,
            lcb_start=config.lcb_start,
            lcb_end=config.lcb_end,
        )
    )
    finder = Finder(rows)
    tokenizer = Tokenizer(config.tokenizer) if config.tokenizer else None
    trials = Counter[tuple[str, str]]()
    samples: list[Sample] = []
    left_out = 0
    for harness, place, answer in itertools.chain.from_iterable(map(answers, config.files)):
        if not samples and not left_out:
            log.say(f"{place}: samples of {harness}")
        row = finder.row(answer)
        if row is None:
            if not config.partial:
                what = answer.id or _squeezed(answer.question or answer.prompt)[:60]
                raise UserError(
                    f"{place}: {what!r}: no such question among the tasks; --partial leaves out "
                    "what is not"
                )
            left_out += 1
            continue
        try:
            order = _order(row, answer.prompt)
        except ValueError as error:
            raise UserError(f"{place}: {error}") from None
        for i, text in enumerate(answer.texts):
            count = answer.token_counts[i] if answer.token_counts else 0
            if not count and tokenizer:
                count = len(tokenizer.encode(text)) + 1  # with its end token
            cut = answer.limit is not None and count >= answer.limit
            sample = Sample(
                task=row.task,
                id=row.id,
                trial=trials[row.key],
                text=text,
                token_count=count,
                finish_reason="length" if cut else "stop",
                think_open=answer.prompt.rstrip().endswith(thinking.OPEN),
                choice_order=order,
            )
            trials[row.key] += 1
            samples.append(sample)
    if left_out:
        log.warn(f"{left_out} questions that are not among the tasks are left out")
    if not samples:
        raise UserError(f"{config.files[0]}: no samples of these tasks")
    if any(not sample.token_count for sample in samples):
        log.warn("token counts are not in these files and are written as 0; --tokenizer counts")
    return _opened(samples, config.think_open)


def _opened(samples: list[Sample], said: str) -> list[Sample]:
    """Samples with `think_open` as it was said, or as the texts show it."""
    closes = any(thinking.is_closed(s.text) and not thinking.is_opened(s.text) for s in samples)
    if said == "auto" and not closes:
        return samples
    return [
        replace(s, think_open=said != "no" and (said == "yes" or not thinking.is_opened(s.text)))
        for s in samples
    ]


def main() -> None:
    config = parse(ConvertConfig, sys.argv[1:], prog="python -m tinyr1.evaluate.convert")
    log = Log(config.quiet)
    out = given(config.out, "--out")
    samples = convert(config, log)
    write_jsonl(out, [sample.to_json() for sample in samples])
    questions = len({(sample.task, sample.id) for sample in samples})
    log.say(f"{out}: {len(samples)} samples of {questions} questions")


if __name__ == "__main__":
    run_main(main)
