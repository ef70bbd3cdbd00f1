"""Tasks: rows of a task file, and the prompts that a preset makes of them (paper section 3.1.2).

The paper's three scores come from three code bases with three prompts. `tinyr1` reproduces them to
the byte; `r1` follows DeepSeek's own advice (no system message, thinking opened); `plain` sends a
row's prompt, and below it what an answer is graded by: options, or the code to start from.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from tinyr1 import thinking
from tinyr1.common.errors import UserError
from tinyr1.common.files import read_rows
from tinyr1.model import chat
from tinyr1.model.chat import TemplateName, render_prompt
from tinyr1.model.tokenizer import Tokenizer
from tinyr1.record import ALL_LETTERS, Message, Prompt, TaskRow

Preset = Literal["tinyr1", "r1", "plain"]
TRIALS = {"tinyr1": {"math": 16, "choice": 4, "code": 4}}  # the paper's; other presets: 1

BOX = "Please reason step by step, and put your final answer within \\boxed{}."
CHOICE_SYSTEM = "You are a helpful and harmless assistant. You should think step-by-step."
# The doubled braces are in the protocol: that string was never formatted.
CHOICE_HEAD = (
    "Return your final response within \\boxed{{}} and only include the letter choice "
    "({letters}) as your final response. "
)
CODE_HEAD = (
    "You will be given a question (problem specification) and will generate a correct Python "
    "program that matches the specification and passes all tests.\n\nQuestion: "
)
CODE_STARTER = (
    "You will use the following starter code to write the solution to the problem and enclose "
    "your code within delimiters.\n"
)
CODE_STDIN = (
    "Read the inputs from stdin solve the problem and write the answer to stdout (do not directly "
    "test on the sample inputs). Enclose your code within delimiters as follows.\n"
)


def load_task_file(path: Path) -> list[TaskRow]:
    """Read and check a task file; UserError names file, line and field."""
    rows: dict[tuple[str, str], TaskRow] = {}
    for number, row in read_rows(path, TaskRow.from_json):
        if row.key in rows:
            raise UserError(f"{path}:{number}: id={row.id!r}: appears twice in task {row.task!r}")
        rows[row.key] = row
    if not rows:
        raise UserError(f"{path}: no rows; expected one JSON object a line")
    return list(rows.values())


def choice_order(row: TaskRow, seed: int, trial: int) -> tuple[int, ...] | None:
    """The order in which a trial sees a row's options; None for a row whose order is fixed.

    The paper's script shuffled without a seed. Here the order is f(seed, task, id, trial).
    """
    if not row.shuffle:
        return None
    name = f"{seed}\0{row.task}\0{row.id}\0{trial}\0options".encode()
    rng = random.Random(hashlib.blake2b(name, digest_size=8).digest())
    return tuple(rng.sample(range(len(row.choices)), len(row.choices)))


def messages(row: TaskRow, preset: Preset) -> tuple[Message, ...]:
    """The conversation that a preset makes of a row.

    Every preset shows what an answer is graded by: a row's options, and the name of the function
    that a program must define.
    """
    options = [f"{x}) {c}" for x, c in zip(ALL_LETTERS, row.choices, strict=False)]
    question = f"{row.prompt}\n\n" + "\n".join(options) if options else row.prompt
    if preset == "plain":
        start = "" if _is_named(row) else f"\n\n{_starter(row)}"
        return (Message("user", question + start),)
    if row.kind == "math":
        if preset == "tinyr1":
            return Message("system", BOX), Message("user", row.prompt)
        return (Message("user", f"{row.prompt}\n{BOX}"),)
    if row.kind == "code":
        return (Message("user", _code_text(row)),)
    if preset == "tinyr1":
        last = ", or " if len(row.letters) > 2 else " or "
        letters = ", ".join(row.letters[:-1]) + last + row.letters[-1]
        head = CHOICE_HEAD.replace("{letters}", letters)
        listed = head + row.prompt + "\n" + ", ".join(options)
        return (
            Message("system", CHOICE_SYSTEM),
            Message("user", listed if options else row.prompt),
        )
    return (Message("user", f"{question}\n{BOX}"),)


def _is_named(row: TaskRow) -> bool:
    """True where the prompt names the function that tests call, or they call none.

    `count` in a sentence is a word; a name is followed by a parenthesis or stands in quotes.
    """
    name = row.tests.fn_name if row.tests else None
    return name is None or bool(re.search(rf"\b{name}\s*\(|[`'\"]{name}\b", row.prompt))


def _starter(row: TaskRow) -> str:
    """The code to start from: where tests call a function, at least its first line."""
    if row.starter_code or row.tests is None or row.tests.fn_name is None:
        return row.starter_code
    count = len([line for line in row.tests.inputs[0].split("\n") if line.strip()])
    return f"def {row.tests.fn_name}({', '.join(f'x{i}' for i in range(1, count + 1))}):\n    "


def _code_text(row: TaskRow) -> str:
    starter = _starter(row)
    tail = CODE_STARTER if starter else CODE_STDIN
    body = starter or "# YOUR CODE HERE"
    return f"{CODE_HEAD}{row.prompt}\n\n{tail}```python\n{body}\n```\n\n"


def opens_thinking(kind: str, preset: Preset, template_opens: bool) -> bool:
    """True where the prompt ends in `<think>\\n`.

    Under `tinyr1` AIME's never did, and the others went through the model's own chat template.
    """
    if preset == "r1":
        return True
    return preset == "tinyr1" and kind != "math" and template_opens


def make_prompts(
    rows: Sequence[TaskRow],
    tokenizer: Tokenizer | None,
    template: TemplateName,
    preset: Preset,
    trials: int | None,
    template_opens: bool,
    seed: int = 0,
    system: str | None = None,
) -> list[Prompt]:
    """Every (row, trial) as token ids; trials of one row are neighbours, so it is read once.

    Without a tokenizer (a server that takes messages) there are no ids. `system` is the system
    message of prompts that have none ("": not even a ChatML template's own).
    """
    if tokenizer:
        tokenizer.system = system
    prompts: list[Prompt] = []
    for row in rows:
        open_thinking = opens_thinking(row.kind, preset, template_opens)
        said: tuple[Message, ...] = ()
        ids: list[int] = []
        order_before = None
        for trial in range(trial_count(row, preset, trials)):
            order = choice_order(row, seed, trial)
            # Sixteen trials of a question share one prompt, unless its options are shuffled.
            if trial == 0 or order != order_before:
                try:
                    said = messages(row.in_order(order), preset)
                    if system and said[0].role != "system":
                        said = (Message("system", system), *said)
                    if tokenizer:
                        ids = render_prompt(tokenizer, said, template, open_thinking)
                except ValueError as error:  # a field that is not shown, a marker in the text
                    raise UserError(f"task={row.task} id={row.id}: {error}") from None
            order_before = order
            prompts.append(Prompt(row.task, row.id, trial, tuple(ids), open_thinking, order, said))
    return prompts


def trial_count(row: TaskRow, preset: Preset, trials: int | None) -> int:
    """Samples of a row: what was asked for, else the preset's."""
    return trials or TRIALS.get(preset, {}).get(row.kind, 1)


def prompt_text(prompt: Prompt) -> str:
    """A prompt as the DeepSeek-R1 template writes it, for reading."""
    marks = {"system": "", "user": chat.USER, "assistant": chat.ASSISTANT}
    text = chat.BOS + "".join(marks[m.role] + m.content for m in prompt.messages)
    return text + chat.ASSISTANT + (thinking.OPENING if prompt.think_open else "")
