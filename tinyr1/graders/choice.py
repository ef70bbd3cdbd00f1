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
_OPENING = r"[ (\[{*_$\\\"'`]*(?:\\?(?:text|textbf|mathrm|mathbf|boxed) ?\{ ?)*\(?"
_STATEMENT = re.compile(
    r"(?:answer|choice|option)\W{0,4}"
    r"(?:(?:is|would be|must be|should be)(?: (?:therefore|thus|clearly))?[ :]|[:=])"
    r" ?\**(?: ?(?:[Oo]ption|[Cc]hoice)\b)?"
    + _OPENING
    + r"(?P<letter>[A-Z])(?![A-Za-z0-9'’]|-[A-Za-z0-9])"
)
_OTHER = re.compile(  # `C or D`, `C, D`; but `C, D is too large` names one
    r"[)} ]*(?:(?P<comma>,)(?! (?:or|and)\b)|,? ?(?:or|and)\b|[/&]) ?"
    r"(?:(?:maybe|perhaps|possibly|also|option|choice) ?)*\(?(?P<letter>[A-Z])\b"
    r"(?(comma)(?! (?!or |and |are )[a-z]))"
)
# After "the answer is A": whether that is the letter, or the article of what follows.
_NO_ARTICLE = re.compile(
    r"[^ A-Za-z]| *$| [^a-z]| (?:as|at|and|based|because|but|by|corresponding|due|for|from|given|"
    r"has|if|in|indeed|instead|is|not|of|on|only|or|rather|since|so|that|then|therefore|thus|via|"
    r"when|where|which|while|with|would)\b"
)
_SUBJECT = re.compile(r"answer|choice|option", re.IGNORECASE)
WINDOW = 120  # characters in which a statement must be complete


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
    marked = set(re.findall(rf"(?<![A-Za-z\\])([{letters}])(?=[).:]|\s*(?:and|or|,|/|$))", text))
    if len(marked) != 1:
        return None
    letter = marked.pop()
    begins = re.match(rf"\(?{letter}\s*[).:]", text)
    said = re.fullmatch(rf"(?i:the |answer|option|choice|is|correct|[\s:()])*{letter}[\s.)]*", text)
    return letter if begins or said else None


def _stated(text: str, letters: str) -> str | None:
    """The letter of the last statement; "" where it names two, None where nothing is stated."""
    text = re.sub(r"\s+", " ", text)
    last: str | None = None
    for subject in _SUBJECT.finditer(text):
        window = subject[0].lower() + text[subject.end() : subject.end() + WINDOW]
        match = _STATEMENT.match(window)
        if match is None or match["letter"] not in letters:
            continue
        letter, rest = match["letter"], window[match.end() :]
        if letter == "A" and not _NO_ARTICLE.match(rest):
            continue
        other = _OTHER.match(rest)
        two = other and other["letter"] in letters and other["letter"] != letter
        last = "" if two else letter
    return last
