"""Checks of a trajectory, and the reasons for which one is dropped.

Here are the markers of the published sets, the loops and the leaks; the thought format itself is in
thinking.py.
"""

from __future__ import annotations

import ast
import re
import unicodedata
import zlib
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from tinyr1 import thinking
from tinyr1.graders.answer import last_box, last_fenced_block
from tinyr1.graders.choice import choice_letter
from tinyr1.model.chat import TEMPLATE_TOKENS
from tinyr1.record import LETTERS, ProgramTests

BEGIN_THOUGHT, END_THOUGHT = "<|begin_of_thought|>", "<|end_of_thought|>"
BEGIN_SOLUTION, END_SOLUTION = "<|begin_of_solution|>", "<|end_of_solution|>"
MARKERS = (BEGIN_THOUGHT, END_THOUGHT, BEGIN_SOLUTION, END_SOLUTION)
CHAT_TOKENS = tuple(token for tokens in TEMPLATE_TOKENS.values() for token in tokens)
LEAKS = (*CHAT_TOKENS, "<|im_", "<｜", "<|endoftext|>", "<|EOT|>", "<tool_call>")


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
    """A row on its way to a record."""

    id: str
    domain: str
    question: str
    thought: str | None  # None: a question still to be answered by the teacher
    solution: str
    source: str
    answer: str | None = None
    tests: ProgramTests | None = None
    meta: dict[str, Any] = field(default_factory=dict)

    def content(self) -> str:
        """The assistant's message in the normal form."""
        assert self.thought is not None
        return thinking.join(self.thought.strip(), self.solution.strip())


_MISSING = {"", "nan", "none", "null", "<na>"}  # how tables and their printers write nothing


def text_of(value: Any) -> str:
    """The text in a column; "" where nothing is there. Dropped for what is no text."""
    if value is None or value != value:  # NaN
        return ""
    if not isinstance(value, str):
        raise Dropped("malformed")
    return "" if value.strip().lower() in _MISSING else value


def value_of(value: Any) -> str:
    """`text_of` for a short value, which may be a number."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and value == value
    return str(value) if is_number else text_of(value).strip()


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


def check_normal_form(content: str) -> None:
    """ValueError unless an assistant message has the normal form, white space and all."""
    if not thinking.is_normal(content):
        raise ValueError(
            "content: not of the form '<think>\\n...\\n</think>\\n\\n...' to the white space"
        )
    for mark in (*MARKERS, *LEAKS):
        if mark in content:
            raise ValueError(f"content: contains {mark!r}")


def split_thought(text: str) -> tuple[str, str]:
    """`thinking.split`, whose faults are reasons to drop a row."""
    try:
        return thinking.split(text)
    except thinking.ThoughtFault as fault:
        raise Dropped(fault.reason, text) from None


def from_markers(text: str) -> tuple[str, str]:
    """Thought and solution of OpenThoughts' four markers, each of which must be there once."""
    if any(text.count(marker) != 1 for marker in MARKERS):
        raise Dropped("broken_markers", text)
    places = [text.index(marker) for marker in MARKERS]
    if places != sorted(places):
        raise Dropped("broken_markers", text)
    thought = text[places[0] + len(BEGIN_THOUGHT) : places[1]]
    solution = text[places[2] + len(BEGIN_SOLUTION) : places[3]]
    return thought.strip(), solution.strip()


def check_question(question: str) -> None:
    """Raise Dropped with the reason for which a question cannot be put to a model."""
    if not question.strip():
        raise Dropped("empty_question")
    if thinking.has_tag(question) or any(mark in question for mark in MARKERS):
        raise Dropped("leaked_marker")
    if any(token in question for token in LEAKS):
        raise Dropped("leaked_chat_token")


def check(draft: Draft) -> None:
    """Raise Dropped with the reason for which a trajectory is not fit to be learned."""
    thought = draft.thought or ""
    solution = draft.solution
    check_question(draft.question)
    if not thought.strip():
        raise Dropped("empty_thought")
    if not solution.strip():
        raise Dropped("empty_solution")
    if thinking.has_tag(thought + solution) or any(m in thought + solution for m in MARKERS):
        raise Dropped("leaked_marker")
    if any(token in thought + solution for token in LEAKS):
        raise Dropped("leaked_chat_token")
    if draft.domain == "math" and not (last_box(solution) or "").strip():
        raise Dropped("no_boxed_answer")
    if draft.domain == "coding" and last_fenced_block(solution) is None:
        raise Dropped("no_code_block")
    if draft.domain == "science" and draft.answer in LETTERS and not choice_letter(solution):
        raise Dropped("no_letter")
    if loops(thought) or loops(solution):
        raise Dropped("repetition_loop")
    if mixes_languages(draft.question, thought + solution):
        raise Dropped("language_mixing")


def loops(text: str) -> bool:
    """True where the end of a text repeats itself, word by word or character by character.

    A table of zeros is no loop: what comes again must have a letter in it, or come very often.
    """
    tail = text[-3000:].encode()
    if len(tail) >= 2000 and len(zlib.compress(tail)) < 0.03 * len(tail):
        return True
    words = text.split()[-1000:]
    last: dict[tuple[str, ...], int] = {}  # where four words began before
    period = run = 0
    for i, four in enumerate(zip(words, words[1:], words[2:], words[3:], strict=False)):
        if period and words[i] == words[i - period]:
            run += 1
        else:
            period = i - last.get(four, i)
            run = 1
        last[four] = i
        again = period and run >= max(80, 3 * period)
        if again and (run >= 400 or any(c.isalpha() for w in words[i - period : i] for c in w)):
            return True
    return False


def mixes_languages(question: str, text: str) -> bool:
    """More than one letter in fifty from a script that the question does not use."""
    scripts = _scripts(text)
    letters = sum(scripts.values())
    known = _scripts(question)
    return any(
        count > 0.02 * letters and count > 20 and script not in known
        for script, count in scripts.items()
        if script != "GREEK"
    )


_FOREIGN = re.compile(r"[^\x00-\x7f]")


def _scripts(text: str) -> Counter[str]:
    """Letters of a text by script; CJK, KATAKANA and HIRAGANA are one."""
    counts: Counter[str] = Counter()
    foreign = Counter(_FOREIGN.findall(text))
    for character, count in foreign.items():
        character = unicodedata.normalize("NFKC", character)[:1]  # a mathematical x is an x
        if character.isalpha() and not character.isascii():
            script = unicodedata.name(character, "OTHER").split(" ", 1)[0].split("-")[0]
            east = ("CJK", "HIRAGANA", "KATAKANA", "FULLWIDTH", "HALFWIDTH")
            counts["CJK" if script in east else script] += count
    counts["LATIN"] += len(text) - sum(foreign.values())
    return counts


_NOT_WORD = re.compile(r"[\W_]+")
_SENTENCE_MARK = re.compile(r"[.,;:?\"]+(?=\s|$)")


def words(text: str) -> list[str]:
    """Words of a text without case and punctuation, for looking for parts of a question."""
    return _NOT_WORD.sub(" ", unicodedata.normalize("NFKC", text).casefold()).split()


def normalized(text: str) -> str:
    """A question without case, the marks that end sentences and the amount of white space.

    What may mean something stays: x + 1 is not x - 1, 5! is not 5, and 1 2 is not 12.
    """
    plain = _SENTENCE_MARK.sub("", unicodedata.normalize("NFKC", text).casefold())
    return " ".join(plain.split())
