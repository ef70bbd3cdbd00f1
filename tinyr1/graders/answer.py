"""Finding the answer in what follows the thinking: the last box, the last program.

Pure functions on text; nothing here is ever evaluated.
"""

from __future__ import annotations

import re

LONGEST = 1 << 20  # characters, from the end, in which a box is looked for
_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_OPENING = re.compile(
    r"```[ \t]*(?:python\d?|py\d?|c|cpp|c\+\+|java|javascript|js|ts|typescript|go|rust|bash|sh|"
    r"shell|text|txt|plaintext|output|console|json|markdown|md)[ \t]*$",
    re.IGNORECASE,
)


def last_box(text: str) -> str | None:
    r"""Content of the last `\boxed{...}` whose braces balance; None where there is none.

    An unclosed box after it does not count, an empty one does (as an empty answer). Boxes inside
    a box belong to the outer one.
    """
    found = boxes(text)
    return found[-1] if found else None


def boxes(text: str) -> list[str]:
    r"""Contents of all `\boxed{...}` whose braces balance, but for those inside another."""
    if len(text) > LONGEST:
        text = text[-LONGEST:]
    closes = _closing_braces(text) if _BOX.search(text) else {}
    found: list[str] = []
    end = 0
    for match in _BOX.finditer(text):
        close = closes.get(match.end() - 1)
        # A box within a box is part of the outer one's content.
        if close is not None and match.start() >= end:
            found.append(text[match.end() : close])
            end = close
    return found


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
    """The program of an answer: what lies between its last two lines with a ``` fence.

    LiveCodeBench's rule, and as there text may stand before a fence, and a fence that nothing
    closed does not matter. Two things are not as there: a last fence that names a language opens a
    block which the end of the text cut off, so the block before it counts, and code within a line
    (```x```) is no fence. None where no block is complete.
    """
    lines = text.split("\n")
    fences = [i for i, line in enumerate(lines) if line.count("```") % 2]
    while fences and _OPENING.search(lines[fences[-1]][-60:]):
        fences.pop()
    return "\n".join(lines[fences[-2] + 1 : fences[-1]]) if len(fences) > 1 else None
