"""The thought format: where a model's thinking ends and its answer begins.

    <think>\\n{thought}\\n</think>\\n\\n{answer}      the normal form, white space and all

The generation prompt of DeepSeek-R1 ends in `<think>\\n`, so other tokens in that place would never
have been trained; hence a normal form, and this module, the only one that knows how it is written.
Training data are joined and checked here, answers of models are taken apart here. Pure functions on
text, strict where we write (`check`, `split`) and lenient where we read (`after`).
"""

from __future__ import annotations

import re

OPEN = "<think>"
CLOSE = "</think>"
OPENING = OPEN + "\n"  # how a prompt ends that opens the thinking itself
_CLOSING = f"\n{CLOSE}\n\n"
_NORMAL_FORM = re.compile(rf"{OPENING}(?!\s).*\S{_CLOSING}(?!\s).*\S", re.DOTALL)


class ThoughtFault(ValueError):
    """A text that is not one thought and one answer; `reason` is one word for it."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


# ---------------------------------------------------------------- what we write


def join(thought: str, answer: str, opened: bool = False) -> str:
    """An assistant's message in the normal form; without the tag that a prompt has `opened`."""
    return f"{'' if opened else OPENING}{thought}{_CLOSING}{answer}"


def unfinished(thought: str, opened: bool = False) -> str:
    """A message that was cut off within its thought."""
    return ("" if opened else OPENING) + thought


def is_normal(content: str) -> bool:
    """True for a message that has the normal form to the white space."""
    return _NORMAL_FORM.fullmatch(content) is not None


def check(content: str) -> None:
    """Raise ValueError unless `content` is one well-formed thought followed by an answer."""
    opened, closed = content.count(OPEN), content.count(CLOSE)
    if opened != 1 or closed != 1:
        raise ValueError(
            f"assistant message has {opened} {OPEN} and {closed} {CLOSE}, expected one of each"
        )
    before, _, rest = content.partition(OPEN)
    if before.strip() or CLOSE not in rest:
        raise ValueError(f"assistant message does not begin with {OPEN}...{CLOSE}")
    if not rest.partition(CLOSE)[2].strip():
        raise ValueError(f"assistant message has no answer after {CLOSE}")


def without_opening(content: str) -> str | None:
    """A message without the `<think>` and line break at its beginning; None if it has none."""
    text = content.lstrip()
    if not text.startswith(OPEN):
        return None
    return text.removeprefix(OPEN).removeprefix("\n")


# ---------------------------------------------------------------- what we read


def split(text: str) -> tuple[str, str]:
    """(thought, answer) of one well-formed text; its opening tag may have been the prompt's.

    Raises ThoughtFault: no_think, unfinished_thinking, several_thoughts or text_before_thinking.
    """
    opened, closed = text.count(OPEN), text.count(CLOSE)
    if closed == 0:
        raise ThoughtFault("unfinished_thinking" if opened else "no_think")
    if closed > 1 or opened > 1:
        raise ThoughtFault("several_thoughts")
    thought, _, answer = text.partition(CLOSE)
    if opened:
        before, tag, thought = thought.partition(OPEN)
        if not tag or before.strip():
            raise ThoughtFault("text_before_thinking")
    return thought.strip(), answer.strip()


def after(text: str, think_open: bool = False, finish_reason: str = "stop") -> str | None:
    """The text after the last `</think>`; None where the thinking never ended.

    A text with neither tag is a plain answer, unless the prompt had opened the thinking or the
    token limit cut the text off.
    """
    _, closed, answer = text.rpartition(CLOSE)
    if closed:
        return None if OPEN in answer else answer
    if think_open or OPEN in text or finish_reason == "length":
        return None
    return text


def for_display(text: str) -> tuple[str, str]:
    """(thought, answer) of any text, for people to read; "" for what is not there."""
    thought, closed, answer = text.rpartition(CLOSE)
    if closed:
        return thought, answer
    return (text, "") if OPEN in text else ("", text)


def closes_unopened(text: str) -> bool:
    """True where a text ends a thought that it did not open: its prompt had."""
    return CLOSE in text and OPEN not in text


def is_closed(text: str) -> bool:
    """True where some thinking was ended."""
    return CLOSE in text


def has_thought(text: str) -> bool:
    """True where something stands before `</think>` that is more than white space."""
    thought, closed, _ = text.partition(CLOSE)
    return bool(closed) and bool(thought.replace(OPEN, "").strip())


def has_tag(text: str) -> bool:
    """True for a text with either tag in it."""
    return OPEN in text or CLOSE in text


def template_opens(generation_prompt: str) -> bool:
    """True where the Jinja text of a generation prompt opens the thinking and leaves it open.

    Qwen3's has a whole empty thought there, for those who ask for none.
    """
    return OPEN in re.sub(rf"{OPEN}(\\n|\s)*{CLOSE}", "", generation_prompt)
