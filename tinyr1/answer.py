"""What in a model's text is its answer: what follows the thinking, the last box, the last program.

Pure functions on text; nothing here is ever evaluated.
"""

from __future__ import annotations

import re

_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
_FENCE = re.compile(r"^[ \t]*```")


def final_part(text: str, think_open: bool = False, finish_reason: str = "stop") -> str | None:
    """The text after the last `</think>`; None where the thinking never ended.

    A text with neither tag is a plain answer, unless the prompt had opened the thinking or the
    token limit cut the text off.
    """
    _, closed, after = text.rpartition("</think>")
    if closed:
        return None if "<think>" in after else after
    if think_open or "<think>" in text or finish_reason == "length":
        return None
    return text


def last_box(text: str) -> str | None:
    r"""Content of the last `\boxed{...}` whose braces balance; None where there is none.

    An unclosed box after it does not count, an empty one does (as an empty answer). Boxes inside
    a box belong to the outer one.
    """
    content, end = None, 0
    for match in _BOX.finditer(text):
        if match.start() < end:
            continue
        close = _closing_brace(text, match.end())
        if close is not None:
            content, end = text[match.end() : close], close
    return content


def _closing_brace(text: str, start: int) -> int | None:
    """Index of the brace that closes the one before `start`."""
    depth, i = 1, start
    while i < len(text):
        if text[i] == "\\":
            i += 1  # an escaped brace is text
        elif text[i] == "{":
            depth += 1
        elif text[i] == "}":
            depth -= 1
            if depth == 0:
                return i
        i += 1
    return None


def last_fenced_block(text: str) -> str | None:
    """Lines of the last block between two ``` fences; None where no block is complete."""
    block: list[str] | None = None
    opened: list[str] | None = None
    for line in text.split("\n"):
        if _FENCE.match(line):
            if opened is None:
                opened = []
            else:
                block, opened = opened, None
        elif opened is not None:
            opened.append(line)
    return None if block is None else "\n".join(block)
