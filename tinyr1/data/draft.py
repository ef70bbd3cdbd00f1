"""What readers of published rows make: drafts of records, or the reason for which a row is dropped.

Types are settled here, at the border: what is missing is missing, whatever a table writes for it,
and what is of another type than a text or a flag is read where its meaning is certain.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from tinyr1 import thinking
from tinyr1.common.files import finite
from tinyr1.record import Domain, ProgramTests

Row = dict[str, Any]
Prefer = Literal["first", "shortest"]
S1_TYPES = ("science", "health science")


class Dropped(Exception):
    """A row that is not used: the reason, one of REASONS, and the text that it was seen in."""

    def __init__(self, reason: str, text: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.text = text


# In the order in which a row meets them; the waterfall is printed in this order.
# fmt: off
REASONS = (
    "domain", "question_type", "source", "no_reference_answer", "reasoning_incomplete",
    "cut_off", "not_verified", "malformed", "not_one_turn", "no_trajectory", "broken_markers",
    "unfinished_thinking", "no_think", "several_thoughts", "text_before_thinking",
    "empty_question", "empty_thought", "empty_solution", "leaked_marker", "leaked_chat_token",
    "no_boxed_answer", "no_code_block", "no_letter", "repetition_loop", "language_mixing",
    "wrong_answer", "too_long", "contaminated", "duplicate", "near_duplicate",
)
# fmt: on


@dataclass(frozen=True)
class Draft:
    """A row on its way to a record: a question and one of its trajectories."""

    id: str  # the set's own, "" where it has none
    domain: str
    question: str
    thought: str | None  # None: a question still to be answered by the teacher
    solution: str
    source: str  # the row's own word for where it comes from
    answer: str | None = None
    tests: ProgramTests | None = None
    meta: dict[str, Any] = field(default_factory=dict)
    system: str = ""
    cut: tuple[str, ...] = ()  # what the row had and the draft has not
    origin: str = ""  # the set, folder or file that was read; "" where `source` says it

    def content(self) -> str:
        """The assistant's message in the normal form; an answer without a thought as it is."""
        assert self.thought is not None
        if not self.thought.strip():  # only with --no-require-think
            return self.solution.strip()
        return thinking.join(self.thought.strip(), self.solution.strip())


@dataclass(frozen=True)
class Selection:
    """Which rows, and which of their trajectories, a branch wants (paper section 2.1)."""

    domain: Domain
    questions_only: bool = False  # for the teacher, even where an answer is there
    sources: Sequence[str] = ()  # none: all
    question_types: Sequence[str] = ("math-word-problem",)  # none: all
    require_verified: bool = True
    require_think: bool = True  # else answers without a thought are wanted, too
    prefer: Prefer = "first"
    cot_types: Sequence[str] = S1_TYPES  # none: all

    def check_source(self, row: Row) -> str:
        """The row's own word for where it comes from; Dropped for one that is not wanted."""
        source = label_of(row.get("source"))
        if self.sources and source not in self.sources:
            raise Dropped("source")
        return source

    def check_domain(self, name: Any, others: Domain | None = None) -> None:
        """Dropped where a word for a domain means another branch's.

        Words that are not known mean `others`; None for no branch in particular.
        """
        domain = _DOMAINS.get(label_of(name).lower(), others)
        if domain not in (None, self.domain):
            raise Dropped("domain")


_DOMAINS: dict[str, Domain] = dict.fromkeys(("math", "maths", "mathematics"), "math")
_DOMAINS |= dict.fromkeys(("code", "coding", "programming", "python"), "coding")
_DOMAINS |= dict.fromkeys(("science", "biology", "chemistry", "physics"), "science")

# A reader of one schema: the usable trajectories of a row, best first; raises Dropped.
Reader = Callable[[Row, Selection], "list[Draft]"]

_MISSING = {"", "nan", "none", "null", "<na>"}  # how tables and their printers write nothing


def text_of(value: Any) -> str:
    """The text in a column; "" where nothing is there. Dropped for what is no text."""
    if value is None or value != value:  # NaN
        return ""
    if not isinstance(value, str):
        raise Dropped("malformed")
    return "" if value.strip().lower() in _MISSING else value


def value_of(value: Any) -> str:
    """`text_of` for a short value, which may be a number; 7.0, as tables have it, is 7."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and value == value
    return str(value) if is_number else text_of(value).strip()


def label_of(value: Any) -> str:
    """`value_of` for what a row can do without: "" where it is of another type."""
    try:
        return value_of(value)
    except Dropped:
        return ""


def plain(value: Any) -> Any:
    """A value of a table as JSON has it: dates as text, what is no number as null, no bytes."""
    if value is None or isinstance(value, (str, int)):
        return value
    if isinstance(value, float):
        return finite(value)
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return None if isinstance(value, (bytes, bytearray)) else str(value)


def flags_of(values: Any, count: int) -> list[bool]:
    """A list of flags beside so many generations; what is missing, or null, is false.

    Flags are read in any spelling that means one thing: true, 1, "True", and lists written as text.
    Dropped for others.
    """
    if isinstance(values, str):
        try:
            values = ast.literal_eval(values.strip().replace("null", "None").title())
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            raise Dropped("malformed") from None
    if values is None or values != values:
        values = []
    if not isinstance(values, list):
        raise Dropped("malformed")
    flags: list[bool] = []
    for value in values:
        said = value.strip().lower() if isinstance(value, str) else value
        if said in (True, "true", "1", "yes"):
            flags.append(True)
        elif said in (None, False, "false", "0", "no") or said != said or said in _MISSING:
            flags.append(False)
        else:
            raise Dropped("malformed")
    return (flags + [False] * count)[:count]


def program_tests(text: Any) -> ProgramTests | None:
    """A program's tests as in a task file, from APPS' columns or their JSON text.

    None where there are none that can be read. A function's result that stands alone in a list is
    taken out of it: so APPS writes results.
    """
    try:
        tests: Any = json.loads(text) if isinstance(text, str) and text else text  # or parsed
        inputs, outputs = (list(tests[name]) for name in ("inputs", "outputs"))
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    if not inputs or len(inputs) != len(outputs):
        return None
    name = tests.get("fn_name") or None
    if name is not None and not (isinstance(name, str) and name.isidentifier()):
        return None

    def text_of_test(value: Any, is_input: bool) -> str:
        if name is None:
            return value if isinstance(value, str) else "\n".join(map(str, value))
        if is_input:
            return "\n".join(json.dumps(argument) for argument in value)
        one = value[0] if isinstance(value, list) and len(value) == 1 else value
        return json.dumps(one)

    try:
        said = tuple(text_of_test(value, True) for value in inputs)
        return ProgramTests(said, tuple(text_of_test(value, False) for value in outputs), name)
    except TypeError:
        return None
