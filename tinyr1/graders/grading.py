"""The rules of grading, and the grader that a row asks for.

The rules (docs/formats.md): only what follows the last `</think>` counts; unfinished thinking is
wrong; the headline is the exact rules' verdict. No text of a model reaches `eval` or a symbolic
parser in this process.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tinyr1 import thinking
from tinyr1.graders.answer import last_box, last_fenced_block
from tinyr1.graders.choice import choice_letter
from tinyr1.graders.code import grade_program
from tinyr1.graders.math import equal_answers, is_number
from tinyr1.graders.released import (
    released_choice,
    released_equal,
    released_number,
    released_program,
)
from tinyr1.graders.sandbox import open_sandbox
from tinyr1.graders.symbolic import SymbolicJudge
from tinyr1.record import Grade, TaskRow


def grade(
    task_row: TaskRow | dict[str, Any],
    text: str,
    finish_reason: str = "stop",
    *,
    think_open: bool = False,
    sandbox: str = "namespaces",
) -> Grade:
    """Grade one answer to one row of a task file (docs/formats.md); `trial` is 0 in the result.

    Raises ValueError for a row that breaks the contract of the file, and SandboxUnavailable where a
    program has to run and the machine cannot give the sandbox.
    """
    if isinstance(task_row, TaskRow):
        row = task_row
    else:
        row = TaskRow.from_json(task_row, to_ask=False)
    extracted = None
    reason = "unfinished_thinking"
    # Only what follows the thinking counts: a thought tries many answers.
    part = thinking.after(text, think_open, finish_reason)
    if part is None and finish_reason == "length":
        reason = "truncated"
    elif part is not None:
        extracted, reason = _GRADERS[row.kind](row, part, sandbox)
        if extracted is None and finish_reason == "length":
            reason = "truncated"
    return Grade(
        task=row.task,
        id=row.id,
        trial=0,
        correct=not reason,
        extracted=extracted,
        reason=reason,
    )


def also_symbolic(row: TaskRow, verdict: Grade, judge: SymbolicJudge) -> Grade:
    """The same grade with a second opinion on a mathematical answer that the rules refuse."""
    if row.kind != "math":
        return verdict
    answer = verdict.extracted
    equal = verdict.correct
    # Between two plain numbers the exact rules are right, and math-verify rounds.
    if verdict.reason == "wrong_answer" and answer is not None:
        plain = is_number(row.answer) and is_number(answer)
        equal = not plain and judge.equal(row.answer, answer)
    return replace(verdict, symbolic=equal)


def also_released(row: TaskRow, verdict: Grade, text: str, sandbox: str) -> Grade:
    """The same grade with what the released scripts' rules say of the whole text."""
    correct = False
    if row.kind == "math":
        answer = released_number(text)
        correct = answer is not None and released_equal(row.answer, answer)
    elif row.kind == "choice":
        correct = released_choice(text) == row.answer
    elif (program := released_program(text)) is not None:
        if program == verdict.extracted:
            correct = verdict.correct
        else:
            correct = not grade_program(program, row, open_sandbox(sandbox))
    return replace(verdict, released=correct)


def _math(row: TaskRow, text: str, sandbox: str) -> tuple[str | None, str]:
    box = last_box(text)
    if box is None or not box.strip():
        return None, "no_answer"
    return box, "" if equal_answers(row.answer, box) else "wrong_answer"


def _choice(row: TaskRow, text: str, sandbox: str) -> tuple[str | None, str]:
    letter = choice_letter(text, row.letters)
    if letter is None:
        return None, "no_answer"
    return letter, "" if letter == row.answer else "wrong_answer"


def _code(row: TaskRow, text: str, sandbox: str) -> tuple[str | None, str]:
    program = last_fenced_block(text)
    if program is None:
        return None, "no_answer"
    return program, grade_program(program, row, open_sandbox(sandbox))


_GRADERS = {"math": _math, "choice": _choice, "code": _code}
