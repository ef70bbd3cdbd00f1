"""Samples of other harnesses as our samples.jsonl, to be graded by `evaluate.py --regrade`.

    python -m tinyr1.evaluate.convert FILE [FILE ...] --tasks math500 --data DIR --out samples.jsonl
    python evaluate.py --regrade samples.jsonl --tasks math500 --data DIR --out RESULTS

Reads LiveCodeBench's `*_eval_all.json` (and its file without the verdicts), the details parquet of
lighteval, and the `samples_*.jsonl` of lm-evaluation-harness; their verdicts are not used. What was
asked is found among the task's rows by its text (an id must not contradict it), and the order of a
question's options by the letter before each in the prompt. What cannot be found is an error.
"""

from __future__ import annotations

import itertools
import re
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
from tinyr1.common.files import real, write_jsonl
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
    """Required. Their files; several of one kind are further trials."""
    tasks: str = ""
    """The built-in benchmark that was asked."""
    data: Path | None = None
    """Directory with its files as published (without it: the hub)."""
    task_file: Path | None = None
    """Tasks of your own that were asked."""
    out: Path | None = None
    """Required. The samples.jsonl to write."""
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
        self.by_id = {row.id: row for row in rows}
        self.by_text: dict[str, list[TaskRow]] = {}
        for row in rows:
            self.by_text.setdefault(_squeezed(row.prompt), []).append(row)

    def row(self, answer: Answer) -> TaskRow | None:
        """The row with the question's text; where only the prompt is known, the last one in it.

        None where there is none. ValueError where several have that text and the id does not say
        which, or where the id is that of another row.
        """
        named = self.by_id.get(answer.id or "")
        question = _squeezed(answer.question)
        found = self.by_text.get(question, [])
        if not found and question:
            # The task's prompt may have an instruction around the question.
            is_within = named is not None and question in _squeezed(named.prompt)
            found = [named] if named is not None and is_within else []
            if not found and named is not None and not named.id.isdigit():
                raise ValueError(f"id={named.id!r}: its question is another one among the tasks")
        elif not found:
            asked = _squeezed(answer.prompt)
            ends = {t: asked.rfind(t) + len(t) for t in self.by_text if t and t in asked}
            if ends:  # examples come before the question, and a question may begin with another
                found = self.by_text[max(ends, key=lambda text: (ends[text], len(text)))]
        if len(found) > 1:
            found = [row for row in found if row is named or _shown_order(row, answer.prompt)]
            if len(found) != 1 and named not in found:
                raise ValueError("several questions of the tasks have this text")
            found = [named] if named in found and named is not None else found
        if found and named is not None and named is not found[0] and not named.id.isdigit():
            raise ValueError(f"id={named.id!r}: its text is that of id={found[0].id!r}")
        return found[0] if found else None


def _squeezed(text: str) -> str:
    return " ".join(text.split())


def _order(row: TaskRow, prompt: str) -> tuple[int, ...] | None:
    """The order in which a prompt shows a row's options; None where it is the row's own.

    ValueError where the row's options are shuffled and the prompt does not show them all.
    """
    if not row.choices:
        return None
    order = _shown_order(row, prompt)
    if order is None and row.shuffle:
        raise ValueError(f"id={row.id!r}: the prompt does not show its options behind letters")
    return order if row.shuffle or order != tuple(range(len(row.choices))) else None


def _shown_order(row: TaskRow, prompt: str) -> tuple[int, ...] | None:
    """The options behind A), (B), C. and so on, after the question; None where they are not."""
    for change in (_squeezed, lambda text: _squeezed(re.sub(r"\[.*?\]", "", text))):
        # lm-evaluation-harness takes out of options what stands in brackets.
        asked, options = change(prompt), [change(choice) for choice in row.choices]
        at = max(asked.rfind(change(row.prompt)), 0)
        order: list[int] = []
        for letter in row.letters:
            here = None
            for label in re.compile(rf"(?<![A-Za-z0-9]){letter}\s?[).:\]]\s?").finditer(asked, at):
                left = [i for i in range(len(options)) if i not in order]
                shown = [i for i in left if asked.startswith(options[i], label.end())]
                if shown:
                    here = max(shown, key=lambda i: (len(options[i]), -i))
                    at = label.end() + len(options[here])
                    break
            if here is None:
                break
            order.append(here)
        if len(order) == len(options):
            return tuple(order)
    return None


# ---------------------------------------------------------------- the conversion


def convert(config: ConvertConfig, log: Log) -> list[Sample]:
    """All samples of the files, in their order; UserError names file and row."""
    if not config.files:
        raise UserError("FILE: required; --help shows all options")
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
        try:
            row = finder.row(answer)
            order = _order(row, answer.prompt) if row else None
        except ValueError as error:
            raise UserError(f"{place}: {error}") from None
        if row is None:
            if not config.partial:
                what = answer.id or _squeezed(answer.question or answer.prompt)[:60]
                raise UserError(
                    f"{place}: {what!r}: no such question among the tasks; --partial leaves out "
                    "what is not"
                )
            left_out += 1
            continue
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
        log.warn(
            "token counts are not in these files: written as 0, and no answer is known to be cut "
            "off; --tokenizer counts"
        )
    return _opened(samples, config.think_open)


def _opened(samples: list[Sample], said: str) -> list[Sample]:
    """Samples with `think_open` as it was said, or as prompts and texts show it.

    UserError where some texts close a thought that neither they nor their prompts opened and others
    have no tag: those are plain answers, or thoughts that never ended.
    """
    if said != "auto":
        return [replace(s, think_open=said == "yes") for s in samples]
    unknown = [s for s in samples if not s.think_open]
    closes = [s for s in unknown if thinking.closes_unopened(s.text)]
    plain = [s for s in unknown if not thinking.has_tag(s.text)]
    if closes and plain:
        raise UserError(
            f"--think-open=auto: {len(closes)} texts close a thought that they did not open, "
            f"{len(plain)} have no tag (id={plain[0].id!r}, say); yes or no"
        )
    return samples


def main() -> None:
    config = parse(
        ConvertConfig, sys.argv[1:], "python -m tinyr1.evaluate.convert", description=__doc__
    )
    log = Log(config.quiet)
    out = given(config.out, "--out")
    if out.with_name("sampling.json").exists() or real(out) in map(real, config.files):
        raise UserError(f"--out={out}: would overwrite samples; choose another name")
    samples = convert(config, log)
    write_jsonl(out, [sample.to_json() for sample in samples])
    questions = len({(sample.task, sample.id) for sample in samples})
    log.say(f"{out}: {len(samples)} samples of {questions} questions")


if __name__ == "__main__":
    run_main(main)
