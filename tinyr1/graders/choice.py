"""Multiple choice (GPQA-Diamond): which letter an answer settles on.

In this order: the last box; the last stated form ("Answer: C", "the correct choice is (C)"); a
line that is nothing but a letter. Two different letters in one place are no answer, and the
English article "a" is none: only a letter that is marked as one counts.
"""

from __future__ import annotations

import re

from tinyr1.answer import last_box

_WRAPPER = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mathit|bf|rm)\b\s*")
_NOISE = re.compile(r"\\[,;:! ]|[\s${}*_`\"'~]|\\[()\[\]]")
_MARK = r"[\s(\[{*_$\\\"'`]*(?:\\(?:text|textbf|mathrm|mathbf|boxed)\s*\{)*\(?"
_STATED = re.compile(
    r"(?:answer|choice|option)"
    r"(?:\s+(?:is|would be|must be|should be)(?:\s+(?:therefore|thus|clearly))?)?"
    r"\s*(?:\*\*)?\s*(?::|=|\bis\b)?\s*(?:(?:option|choice)\b)?"
    + _MARK
    + r"(?P<letter>[A-Z])(?![A-Za-z'’])",
)
_STATED_PREFIX = re.compile(r"(?:answer|choice|option)", re.IGNORECASE)


def choice_letter(text: str, letters: str = "ABCD") -> str | None:
    """The letter that `text` (without its thinking) answers; None where there is none."""
    box = last_box(text)
    if box is not None:
        return _letter_of(box, letters)
    stated = _stated(text, letters)
    if stated is not None:
        return stated or None
    lone = {_bare(line) for line in text.split("\n")} & set(letters)
    return lone.pop() if len(lone) == 1 else None


def _bare(text: str) -> str:
    """A line without markup, parentheses and full stops around it."""
    plain = _NOISE.sub("", _WRAPPER.sub("", text))
    return plain.strip("().:,;[]")


def _letter_of(box: str, letters: str) -> str | None:
    """The letter in a box: `C`, `\\text{(C)}`, `C) 12.4 eV`; None for two letters."""
    plain = _bare(box)
    if len(plain) == 1:
        return plain.upper() if plain.upper() in letters else None
    text = _WRAPPER.sub("", box).translate(str.maketrans("", "", "{}$*")).strip()
    match = re.match(rf"\(?([{letters}])\s*[).:]", text)
    if match:
        return match[1]
    found = set(re.findall(rf"(?<![A-Za-z\\])([{letters}])(?![A-Za-z'’])", text))
    if len(found) == 1 and re.fullmatch(
        rf"(?i:the |answer|option|choice|is|correct|[\s:()])*([{letters}])[\s.)]*", text
    ):
        return found.pop()
    return None


def _stated(text: str, letters: str) -> str | None:
    """The letter of the last statement; "" where it names two, None where nothing is stated."""
    last: str | None = None
    for prefix in _STATED_PREFIX.finditer(text):
        match = _STATED.match(text[prefix.start() :].replace(prefix[0], prefix[0].lower(), 1))
        if match is None or match["letter"] not in letters:
            continue
        rest = text[prefix.start() + match.end() :]
        other = re.match(rf"[)\s]*(?:or|and|/|,)\s*\(?([{letters}])\b", rest)
        last = "" if other and other[1] != match["letter"] else match["letter"]
    return last
