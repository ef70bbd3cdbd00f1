"""Tasks: rows of a task file, and the prompts that a preset makes of them (paper section 3.1.2).

The paper's three scores come from three code bases with three prompts. `tinyr1` reproduces them to
the byte; `r1` follows DeepSeek's own advice (no system message, thinking opened); `plain` sends a
row's prompt as it is.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from tinyr1 import chat, thinking
from tinyr1.answer import LETTERS
from tinyr1.chat import TemplateName, render_prompt
from tinyr1.errors import UserError
from tinyr1.files import read_jsonl
from tinyr1.record import Message, Prompt, check_text
from tinyr1.tokenizer import Tokenizer

Preset = Literal["tinyr1", "r1", "plain"]
KINDS = ("math", "choice", "code")
MAX_SECONDS = 86_400  # that a row may give its program
TRIALS = {"tinyr1": {"math": 16, "choice": 4, "code": 4}}  # the paper's; other presets: 1

BOX = "Please reason step by step, and put your final answer within \\boxed{}."
CHOICE_SYSTEM = "You are a helpful and harmless assistant. You should think step-by-step."
# The doubled braces are in the protocol: that string was never formatted.
CHOICE_HEAD = (
    "Return your final response within \\boxed{{}} and only include the letter choice "
    "(A, B, C, or D) as your final response. "
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


def load_task_file(path: Path) -> list[dict[str, Any]]:
    """Read and check a task file; UserError names file, line and field."""
    rows: list[dict[str, Any]] = []
    seen: set[tuple[str, str]] = set()
    for number, row in read_jsonl(path):
        try:
            check_row(row)
        except ValueError as error:
            raise UserError(f"{path}:{number}: {error}") from None
        key = row["task"], str(row["id"])
        if key in seen:
            raise UserError(f"{path}:{number}: id={key[1]!r}: appears twice in task {key[0]!r}")
        seen.add(key)
        rows.append(row | {"id": key[1]})
    if not rows:
        raise UserError(f"{path}: no rows; expected one JSON object a line")
    return rows


def check_row(row: Any) -> None:
    """Raise ValueError naming the field that breaks the task-file contract (docs/formats.md)."""
    if not isinstance(row, dict):
        raise ValueError("expected a JSON object")
    check_text(row)
    if row.get("id") is None:
        raise ValueError("id: missing")
    for name in ("task", "prompt"):
        if not isinstance(row.get(name), str) or not row[name]:
            raise ValueError(f"{name}={row.get(name)!r}: expected text")
    for name in ("timeout_s", "timeout_total_s"):
        value = row.get(name)
        if value is not None and (type(value) not in (int, float) or not 0 < value <= MAX_SECONDS):
            raise ValueError(f"{name}={value!r}: expected seconds, at most {MAX_SECONDS:,}")
    kind = row.get("kind")
    if kind not in KINDS:
        raise ValueError(f"kind={kind!r}: expected one of {', '.join(KINDS)}")
    if kind == "code":
        check_tests(row.get("tests"))
    elif kind == "math":
        if not isinstance(row.get("answer"), (str, int, float)) or not str(row["answer"]).strip():
            raise ValueError(f"answer={row.get('answer')!r}: expected the reference answer")
    else:
        choices, shuffle = row.get("choices"), row.get("shuffle")
        if choices is not None and not (
            isinstance(choices, list)
            and len(choices) == 4
            and all(isinstance(choice, str) for choice in choices)
        ):
            raise ValueError("choices: expected a list of 4 strings")
        if shuffle not in (None, False) and (shuffle is not True or choices is None):
            raise ValueError(f"shuffle={shuffle!r}: expected true or false; true needs choices")
        if row.get("answer") not in LETTERS:
            raise ValueError(f"answer={row.get('answer')!r}: expected A, B, C or D")


def check_tests(tests: Any) -> None:
    """Raise ValueError unless these are {inputs, outputs} of text, as many of each."""
    if not isinstance(tests, dict):
        raise ValueError("tests: expected an object with inputs, outputs and fn_name")
    inputs, outputs = tests.get("inputs"), tests.get("outputs")
    if not isinstance(inputs, list) or not isinstance(outputs, list) or not inputs:
        raise ValueError("tests: inputs and outputs must be non-empty lists")
    if len(inputs) != len(outputs):
        raise ValueError(f"tests: {len(inputs)} inputs but {len(outputs)} outputs")
    if not all(isinstance(x, str) for x in [*inputs, *outputs]):
        raise ValueError("tests: every input and output must be a string")
    name = tests.get("fn_name")
    if name is not None and not (isinstance(name, str) and name.isidentifier()):
        raise ValueError(f"tests: fn_name={name!r}: expected the name of a function")


def choice_order(row: Mapping[str, Any], seed: int, trial: int) -> tuple[int, ...] | None:
    """The order in which a trial sees a row's options; None for a row whose order is fixed.

    The paper's script shuffled without a seed. Here the order is f(seed, task, id, trial).
    """
    if row["kind"] != "choice" or not row.get("shuffle"):
        return None
    name = f"{seed}\0{row['task']}\0{row['id']}\0{trial}\0options".encode()
    rng = random.Random(hashlib.blake2b(name, digest_size=8).digest())
    return tuple(rng.sample(range(len(row["choices"])), len(row["choices"])))


def in_order(row: dict[str, Any], order: Sequence[int] | None) -> dict[str, Any]:
    """A choice row whose options stand in `order`, its answer's letter moved along."""
    if order is None:
        return row
    if row["kind"] != "choice" or not row.get("choices"):
        raise ValueError(f"choice_order={list(order)}: its row has no options")
    if sorted(order) != list(range(len(row["choices"]))):
        raise ValueError(f"choice_order={list(order)}: not an order of {len(row['choices'])}")
    answer = LETTERS[list(order).index(LETTERS.index(row["answer"]))]
    return row | {"choices": [row["choices"][i] for i in order], "answer": answer}


def messages(row: dict[str, Any], preset: Preset) -> tuple[Message, ...]:
    """The conversation that a preset makes of a row."""
    if preset == "plain":
        return (Message("user", row["prompt"]),)
    if row["kind"] == "math":
        if preset == "tinyr1":
            return Message("system", BOX), Message("user", row["prompt"])
        return (Message("user", f"{row['prompt']}\n{BOX}"),)
    if row["kind"] == "code":
        return (Message("user", _code_text(row)),)
    choices = row.get("choices")
    if preset == "tinyr1":
        listed = ", ".join(f"{x}) {c}" for x, c in zip(LETTERS, choices or (), strict=False))
        text = CHOICE_HEAD + row["prompt"] + "\n" + listed if choices else row["prompt"]
        return Message("system", CHOICE_SYSTEM), Message("user", text)
    listed = "\n".join(f"{x}) {c}" for x, c in zip(LETTERS, choices or (), strict=False))
    text = f"{row['prompt']}\n\n{listed}\n{BOX}" if choices else f"{row['prompt']}\n{BOX}"
    return (Message("user", text),)


def _code_text(row: dict[str, Any]) -> str:
    starter = row.get("starter_code")
    tail = CODE_STARTER if starter else CODE_STDIN
    body = starter or "# YOUR CODE HERE"
    return f"{CODE_HEAD}{row['prompt']}\n\n{tail}```python\n{body}\n```\n\n"


def opens_thinking(kind: str, preset: Preset, template_opens: bool) -> bool:
    """Whether the prompt ends in `<think>\\n`.

    Under `tinyr1` AIME's never did, and the others went through the model's own chat template.
    """
    if preset == "r1":
        return True
    return preset == "tinyr1" and kind != "math" and template_opens


def make_prompts(
    rows: Sequence[dict[str, Any]],
    tokenizer: Tokenizer | None,
    template: TemplateName,
    preset: Preset,
    trials: int | None,
    template_opens: bool,
    seed: int = 0,
) -> list[Prompt]:
    """Every (row, trial) as token ids; trials of one row are neighbours, so it is read once.

    Without a tokenizer (a server that takes messages) there are no ids.
    """
    prompts: list[Prompt] = []
    for row in rows:
        open_thinking = opens_thinking(row["kind"], preset, template_opens)
        said, ids, before = (), (), ()
        for trial in range(trial_count(row, preset, trials)):
            order = choice_order(row, seed, trial)
            if trial == 0 or order != before:
                said = messages(in_order(row, order), preset)
                try:
                    ids = (
                        render_prompt(tokenizer, said, template, open_thinking) if tokenizer else ()
                    )
                except ValueError as error:  # a role's marker in the text
                    raise UserError(f"task={row['task']} id={row['id']}: {error}") from None
            before = order
            prompts.append(
                Prompt(row["task"], row["id"], trial, tuple(ids), open_thinking, order, said)
            )
    return prompts


def trial_count(row: Mapping[str, Any], preset: Preset, trials: int | None) -> int:
    """Samples of a row: what was asked for, else the preset's."""
    return trials or TRIALS.get(preset, {}).get(row["kind"], 1)


def prompt_text(prompt: Prompt) -> str:
    """A prompt as the DeepSeek-R1 template writes it, for reading."""
    marks = {"system": "", "user": chat.USER, "assistant": chat.ASSISTANT}
    text = chat.BOS + "".join(marks[m.role] + m.content for m in prompt.messages)
    return text + chat.ASSISTANT + (thinking.OPENING if prompt.think_open else "")
