"""The released scripts' rules, for comparison only (`--also-grade released`).

They read the whole response, the thinking too; the last letter of a text is its choice, the English
article included; the last number of a text is its answer; a hundredfold is as good. None of it
counts for a score here (docs/decisions/0007-grading-rule.md).
"""

from __future__ import annotations

import re

_NUMBER = re.compile(r"-?\d+(?:,\d{3})*(?:\.\d+)?")
_LETTER = re.compile(r"\b([A-D])\b")
_STATED = ("he answer is", "final answer is")


def released_choice(text: str) -> str | None:
    """The last free-standing A to D of the upper-cased response."""
    letters = _LETTER.findall(text.upper())
    return letters[-1] if letters else None


def released_number(text: str) -> str | None:
    """Take what follows the last `boxed`, closed or not; else a stated answer; else a number."""
    if "boxed" in text:
        tail = text.rsplit("boxed", 1)[1]
        return _braced(tail) if tail.startswith("{") else tail.split("$", 1)[0].strip()
    for phrase in _STATED:
        if phrase in text:
            text = text.rsplit(phrase, 1)[1]
            break
    numbers = _NUMBER.findall(text)
    return numbers[-1].replace(",", "") if numbers else None


def _braced(tail: str) -> str:
    depth = 0
    taken = ""
    for character in tail:
        depth += (character == "{") - (character == "}")
        if depth == 0:
            break
        taken += character
    return taken[1:]


def released_equal(reference: str, answer: str) -> bool:
    """Equal as text, or as numbers up to 1e-4 of themselves, a factor of 100 allowed."""
    if reference.strip().lower() == answer.strip().lower():
        return True
    try:
        wanted, said = (float(x.replace(",", "").strip("$% .")) for x in (reference, answer))
    except ValueError:
        return False
    return any(
        abs(candidate - said) <= 1e-4 * abs(candidate)
        for candidate in (wanted / 100, wanted, wanted * 100)
    )


def released_program(text: str) -> str | None:
    """Take the lines between the last two lines with ``` anywhere in the response."""
    lines = text.split("\n")
    fences = [i for i, line in enumerate(lines) if "```" in line]
    return "\n".join(lines[fences[-2] + 1 : fences[-1]]) if len(fences) >= 2 else None
