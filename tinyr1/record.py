"""The records that flow through the recipe, each made in one place and checked when made.

    dataset row -> Record -> Example -> Pack -> Batch -> (training)
    TaskRow -> Prompt -> Sample -> Grade -> (report)

Field names are those of the files (docs/formats.md). Tensors appear only in `Batch`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast, get_args

from tinyr1 import thinking

if TYPE_CHECKING:
    import torch

Domain = Literal["math", "coding", "science"]
Role = Literal["system", "user", "assistant"]
Kind = Literal["math", "choice", "code"]  # of a task's questions


class Message(NamedTuple):
    """One turn of a conversation."""

    role: Role
    content: str


@dataclass(frozen=True)
class Record:
    """One training conversation (paper section 2.1): what the teacher answered to a question.

    Training asks for the messages alone; the rest says where they come from.
    """

    id: str
    domain: str  # "" where the file does not say
    messages: tuple[Message, ...]
    source: str = ""
    answer: str | None = None

    @staticmethod
    def from_json(row: Any, require_think: bool = True) -> Record:
        """Read one JSON object of a training file.

        Raises ValueError naming the field when the row breaks the file contract: roles out of
        order, an empty or missing assistant message, or (with `require_think`) an assistant
        message that is not exactly one `<think>...</think>` pair followed by an answer.
        """
        if not isinstance(row, Mapping):
            raise ValueError("expected a JSON object")
        fields = cast("Mapping[str, Any]", row)
        check_text(fields)
        raw_messages = fields.get("messages")
        if not isinstance(raw_messages, list) or not raw_messages:
            other = CONVERTED & fields.keys()
            how = f" (it has {', '.join(sorted(other))}); {CONVERT}" if other else ""
            raise ValueError(f"messages: expected a non-empty list{how}")
        messages = tuple(_message(m) for m in cast("list[Any]", raw_messages))
        _check_turns(messages)
        if require_think:
            for message in messages:
                if message.role == "assistant":
                    _check_thought(message.content)
        answer = fields.get("answer")
        return Record(
            id="" if fields.get("id") is None else str(fields["id"]),
            domain=str(fields.get("domain") or ""),
            messages=messages,
            source=str(fields.get("source") or ""),
            answer=None if answer is None else str(answer),
        )


# Columns of conversations in other forms, and who makes ours of them.
CONVERTED = {"conversations", "instruction", "question", "problem", "prompt", "generations"}
CONVERT = (
    "python -m tinyr1.data science (or math, coding) --source FILE --out OTHER.jsonl converts them "
    "(--no-require-think for answers without thoughts)"
)


def _check_thought(content: str) -> None:
    try:
        thinking.check(content)
    except ValueError as error:
        raise ValueError(f"{error}; --no-require-think takes answers without thoughts") from None


def _message(raw: Any) -> Message:
    if not isinstance(raw, Mapping):
        raise ValueError("messages: each must be an object with role and content")
    fields = cast("Mapping[str, Any]", raw)
    role, content = fields.get("role"), fields.get("content")
    if fields.get("reasoning_content"):
        raise ValueError(f"messages: a thought in reasoning_content; {CONVERT}")
    if role not in get_args(Role):
        raise ValueError(f"role={role!r}: expected system, user or assistant")
    if isinstance(content, list):
        raise ValueError(f"content: the {role} message is in parts; {CONVERT}")
    if not isinstance(content, str) or not content.strip():
        raise ValueError(f"content: the {role} message is empty or no string")
    return Message(cast("Role", role), content)


def check_text(row: Mapping[str, Any]) -> None:
    """Raise ValueError naming a field with half of a surrogate pair: JSON allows it, no file."""
    for name, value in row.items():
        try:
            json.dumps([name, value], ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"{name}: no text ({error.reason})") from None
        except RecursionError:
            raise ValueError(f"{name}: nested too deeply") from None


def _check_turns(messages: tuple[Message, ...]) -> None:
    turns = messages[1:] if messages[0].role == "system" else messages
    expected: tuple[Role, Role] = ("user", "assistant")
    for i, message in enumerate(turns):
        if message.role != expected[i % 2]:
            raise ValueError(f"messages: turn {i} is {message.role}, expected {expected[i % 2]}")
    if not turns or len(turns) % 2:
        raise ValueError("messages: no assistant message at the end")


class Example(NamedTuple):
    """A record as tokens. `is_target[i]` says that token i is one the model must learn to say."""

    tokens: list[int]
    is_target: list[bool]


class Pack(NamedTuple):
    """Documents (indices into the corpus) that share one row of `capacity` tokens."""

    documents: tuple[int, ...]
    token_count: int


class Batch(NamedTuple):
    """One micro-batch as a flat row of T tokens holding N documents with Y targets in all.

    Row `target_rows[y]` must predict `targets[y]`; its loss counts `weights[y]` times. The rows
    are listed on the host, so the loss touches no other row and nothing synchronises.
    """

    tokens: torch.Tensor  # (T,) int64
    positions: torch.Tensor  # (T,) int64, restarting at 0 in each document
    cu_seqlens: torch.Tensor  # (N + 1,) int32, where each document starts, and T
    max_len: int  # longest document
    target_rows: torch.Tensor  # (Y,) int64
    targets: torch.Tensor  # (Y,) int64
    weights: torch.Tensor  # (Y,) float32
    token_count: int  # without padding


# ---------------------------------------------------------------- evaluation


ALL_LETTERS = tuple("ABCDEFGHIJ")  # of the options of a multiple choice
LETTERS = ALL_LETTERS[:4]  # of as many as there usually are
MAX_SECONDS = 86_400  # that a row may give its program


@dataclass(frozen=True)
class ProgramTests:
    """LiveCodeBench's evaluation sample: what a program is given, and what it must give.

    Standard input and output; with `fn_name`, one JSON value a line for each argument, and one JSON
    value for the result.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    fn_name: str | None = None

    @staticmethod
    def from_json(raw: Any) -> ProgramTests:
        """Raises ValueError unless these are {inputs, outputs} of text, as many of each."""
        if not isinstance(raw, Mapping):
            raise ValueError("tests: expected an object with inputs, outputs and fn_name")
        fields = cast("Mapping[str, Any]", raw)
        inputs, outputs = _texts(fields.get("inputs")), _texts(fields.get("outputs"))
        if not inputs:
            raise ValueError("tests: inputs and outputs must be non-empty lists")
        if len(inputs) != len(outputs):
            raise ValueError(f"tests: {len(inputs)} inputs but {len(outputs)} outputs")
        name = fields.get("fn_name")
        if name is not None and not (isinstance(name, str) and name.isidentifier()):
            raise ValueError(f"tests: fn_name={name!r}: expected the name of a function")
        return ProgramTests(inputs, outputs, name)

    def to_json(self) -> dict[str, Any]:
        return {
            "inputs": list(self.inputs),
            "outputs": list(self.outputs),
            "fn_name": self.fn_name,
        }


def _texts(values: Any) -> tuple[str, ...]:
    if not isinstance(values, list):
        raise ValueError("tests: inputs and outputs must be non-empty lists")
    texts = cast("list[Any]", values)
    if not all(isinstance(text, str) for text in texts):
        raise ValueError("tests: every input and output must be a string")
    return tuple(texts)


@dataclass(frozen=True)
class TaskRow:
    """A question of a task, one line of a task file: what is asked, and how answers are graded."""

    task: str
    id: str
    kind: Kind
    prompt: str
    answer: str = ""  # mathematics: LaTeX or plain; choice: a letter; code: none
    choices: tuple[str, ...] = ()  # none: `prompt` is the whole question
    shuffle: bool = False  # each trial sees the options in an order of its own
    starter_code: str = ""
    tests: ProgramTests | None = None  # of code, always
    timeout_s: float | None = None  # a test
    timeout_total_s: float | None = None
    subject: str | None = None
    difficulty: str | None = None

    @property
    def key(self) -> tuple[str, str]:
        return self.task, self.id

    @property
    def letters(self) -> str:
        """The letters that an answer may be: those of its options, or A to D."""
        count = len(self.choices) or (4 if self.answer in LETTERS else len(ALL_LETTERS))
        return "".join(ALL_LETTERS[:count])

    @staticmethod
    def from_json(row: Any, to_ask: bool = True) -> TaskRow:
        """Read one JSON object of a task file (docs/formats.md); ValueError names the field.

        A row that is not `to_ask` but to grade by may lack its prompt, and its answer be empty (to
        which no answer is equal).
        """
        if not isinstance(row, Mapping):
            raise ValueError("expected a JSON object")
        fields = cast("Mapping[str, Any]", row)
        check_text(fields)
        if fields.get("id") is None:
            raise ValueError("id: missing")
        for name in ("task", "prompt") if to_ask else ("task",):
            if not isinstance(fields.get(name), str) or not fields[name]:
                raise ValueError(f"{name}={fields.get(name)!r}: expected text")
        kind = fields.get("kind")
        if kind not in get_args(Kind):
            raise ValueError(f"kind={kind!r}: expected one of {', '.join(get_args(Kind))}")
        choices, shuffle = _options(fields) if kind == "choice" else ((), False)
        return TaskRow(
            task=fields["task"],
            id=str(fields["id"]),
            kind=cast("Kind", kind),
            prompt=str(fields.get("prompt") or ""),
            answer="" if kind == "code" else _reference(fields, kind, len(choices), to_ask),
            choices=choices,
            shuffle=shuffle,
            starter_code=str(fields.get("starter_code") or ""),
            tests=ProgramTests.from_json(fields.get("tests")) if kind == "code" else None,
            timeout_s=_seconds(fields, "timeout_s"),
            timeout_total_s=_seconds(fields, "timeout_total_s"),
            subject=_label(fields, "subject"),
            difficulty=_label(fields, "difficulty"),
        )

    def in_order(self, order: Sequence[int] | None) -> TaskRow:
        """The row with its options in `order`, its answer's letter moved along; itself for None.

        Raises ValueError for a row without options, or an order of other than these.
        """
        if order is None:
            return self
        if not self.choices:
            raise ValueError(f"choice_order={list(order)}: its row has no options")
        if sorted(order) != list(range(len(self.choices))):
            raise ValueError(f"choice_order={list(order)}: not an order of {len(self.choices)}")
        answer = ALL_LETTERS[list(order).index(ALL_LETTERS.index(self.answer))]
        return replace(self, choices=tuple(self.choices[i] for i in order), answer=answer)


def _reference(fields: Mapping[str, Any], kind: Any, choices: int, to_ask: bool) -> str:
    answer = fields.get("answer")
    if kind == "choice":
        letters = ALL_LETTERS[: choices or len(ALL_LETTERS)]
        if answer not in letters:
            raise ValueError(f"answer={answer!r}: expected a letter from A to {letters[-1]}")
    elif type(answer) not in (str, int, float) or (to_ask and not str(answer).strip()):
        raise ValueError(f"answer={answer!r}: expected the reference answer")
    return str(answer)


def _options(fields: Mapping[str, Any]) -> tuple[tuple[str, ...], bool]:
    """The options of a multiple choice, and whether each trial has an order of its own."""
    raw, shuffle = fields.get("choices"), fields.get("shuffle")
    choices = cast("list[Any]", raw) if isinstance(raw, list) else []
    right_count = 2 <= len(choices) <= len(ALL_LETTERS)
    if raw is not None and not (right_count and all(isinstance(c, str) for c in choices)):
        raise ValueError(f"choices: expected a list of 2 to {len(ALL_LETTERS)} strings")
    if shuffle not in (None, False) and (shuffle is not True or raw is None):
        raise ValueError(f"shuffle={shuffle!r}: expected true or false; true needs choices")
    return tuple(choices), shuffle is True


def _seconds(fields: Mapping[str, Any], name: str) -> float | None:
    value = fields.get(name)
    if value is not None and (type(value) not in (int, float) or not 0 < value <= MAX_SECONDS):
        raise ValueError(f"{name}={value!r}: expected seconds, at most {MAX_SECONDS:,}")
    return value


def _label(fields: Mapping[str, Any], name: str) -> str | None:
    value = fields.get(name)
    return None if value is None else str(value)


@dataclass(frozen=True)
class Trial:
    """One of the times that a question of a task is asked."""

    task: str
    id: str
    trial: int

    @property
    def key(self) -> tuple[str, str, int]:
        return self.task, self.id, self.trial


@dataclass(frozen=True)
class Prompt(Trial):
    """One prompt: a trial of a question, as token ids and as messages."""

    tokens: tuple[int, ...]
    think_open: bool = False
    choice_order: tuple[int, ...] | None = None
    messages: tuple[Message, ...] = ()  # what `tokens` were made of, for servers that take no ids

    def fingerprint(self) -> str:
        """A hash of the prompt, in 16 hexadecimal digits."""
        asked = self.tokens or [(m.role, m.content) for m in self.messages]
        return hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:16]


FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class Sample(Trial):
    """The model's text after the prompt, one line of samples.jsonl."""

    text: str
    token_count: int
    finish_reason: FinishReason
    seed: int | None = None
    think_open: bool = False
    choice_order: tuple[int, ...] | None = None

    def to_json(self) -> dict[str, Any]:
        return {k: v for k, v in asdict(self).items() if v is not None}

    @staticmethod
    def from_json(row: Any) -> Sample:
        """Read one line of samples.jsonl; raises ValueError naming the field."""
        if not isinstance(row, Mapping):
            raise ValueError("expected a JSON object")
        fields = cast("Mapping[str, Any]", row)
        for name in ("task", "text"):
            if not isinstance(fields.get(name), str):
                raise ValueError(f"{name}={fields.get(name)!r}: expected text")
        for name in ("trial", "token_count"):
            value = fields.get(name)
            if type(value) is not int or not 0 <= value < 1 << 31:
                raise ValueError(f"{name}={value!r}: expected a whole number from 0")
        if type(fields.get("think_open") or False) is not bool:
            raise ValueError(f"think_open={fields['think_open']!r}: expected true or false")
        if fields.get("finish_reason") not in get_args(FinishReason):
            raise ValueError(
                f"finish_reason={fields.get('finish_reason')!r}: expected stop or length"
            )
        if "id" not in fields:
            raise ValueError("id: missing")
        check_text(fields)
        order = fields.get("choice_order")
        whole = isinstance(order, (list, tuple)) and all(type(i) is int for i in order)  # pyright: ignore
        if order is not None and not whole:
            raise ValueError(f"choice_order={order!r}: expected a list of numbers")
        return Sample(
            task=fields["task"],
            id=str(fields["id"]),
            trial=fields["trial"],
            text=fields["text"],
            token_count=fields["token_count"],
            finish_reason=fields["finish_reason"],
            seed=fields.get("seed"),
            think_open=fields.get("think_open") or False,
            choice_order=None if order is None else tuple(cast("list[int]", order)),
        )


@dataclass(frozen=True)
class Grade(Trial):
    """The verdict on one sample. `reason` is "" when correct (docs/formats.md lists the others)."""

    correct: bool
    extracted: str | None
    reason: str
    symbolic: bool | None = None  # math-verify's second opinion, where it was asked
    released: bool | None = None  # what the released scripts' rules say, where they were asked

    def to_json(self) -> dict[str, Any]:
        asked = ("symbolic", "released")
        return {k: v for k, v in asdict(self).items() if k not in asked or v is not None}
