"""Finding the answer in what follows the thinking: the last box, the last program.

Pure functions on text; nothing here is ever evaluated.
"""

from __future__ import annotations

import re

_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_FENCE = re.compile(r"^[ \t]*```")


def last_box(text: str) -> str | None:
    r"""Content of the last `\boxed{...}` whose braces balance; None where there is none.

    An unclosed box after it does not count, an empty one does (as an empty answer). Boxes inside
    a box belong to the outer one.
    """
    closes = _closing_braces(text)
    content = None
    end = 0
    for match in _BOX.finditer(text):
        close = closes.get(match.end() - 1)
        # A box within a box is part of the outer one's content.
        if close is not None and match.start() >= end:
            content = text[match.end() : close]
            end = close
    return content


def last_tagged(text: str, tag: str) -> str | None:
    """Content of the last `<tag>...</tag>`; None where there is none."""
    end = text.rfind(f"</{tag}>")
    start = text.rfind(f"<{tag}>", 0, end) if end >= 0 else -1
    return text[start + len(tag) + 2 : end] if start >= 0 else None


def _closing_braces(text: str) -> dict[int, int]:
    """For each `{` that is closed, the index of its `}`; one pass, escaped braces are text."""
    closes: dict[int, int] = {}
    opened: list[int] = []
    for match in _BRACE.finditer(text):
        if match[0] == "{":
            opened.append(match.start())
        elif match[0] == "}" and opened:
            closes[opened.pop()] = match.start()
    return closes


def last_fenced_block(text: str) -> str | None:
    """Lines of the last block between two ``` fences; None where no block is complete."""
    block: list[str] | None = None
    opened: list[str] | None = None
    for line in text.split("\n"):
        if _FENCE.match(line):
            if opened is None:
                opened = []
            else:
                block = opened
                opened = None
        elif opened is not None:
            opened.append(line)
    return None if block is None else "\n".join(block)
