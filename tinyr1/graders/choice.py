"""Multiple choice (GPQA-Diamond): which letter an answer settles on.

In this order: the last box that holds a letter; the last `<answer>` tag; the last stated form
("Answer: C", "the option that fits is (C)", "I'd go with C", and the like in the languages that
models fall into); its reverse ("(C) is the correct answer", of one letter only); a last line that
begins with a letter and a mark, or is nothing but a letter or an option's name. Two different
letters in one place are no answer, and neither the article "A" nor a formula is a letter: only what
is marked as one counts.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from typing import NamedTuple

from tinyr1.graders import statements as says
from tinyr1.graders.answer import last_box, last_tagged

_WRAPPER = re.compile(
    r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mathit|mathsf|boldsymbol|underline|bf|rm|"
    r"textsf|texttt|mathcal|bm|displaystyle|large|Large|LARGE|huge|Huge|fbox|left|right|quad|"
    r"(?:textcolor|color)\{[a-z]*\})(?![a-z])\s*"
)
_WRAPPED = re.compile(rf"{_WRAPPER.pattern}\{{([^{{}}\n]*)\}}")
_NOISE = re.compile(r"\\[,;:! ]|[\s${}*_`\"'~“”]|\\[()\[\]]")
_SUBJECT = re.compile(r"answer|choice|option", re.IGNORECASE)
WINDOW = 160  # characters in which a statement must be complete
TAIL = 100_000  # characters, from the end, that are searched for statements


class _Said(NamedTuple):
    """A statement: where, which letter ("" where it names two), whether it only "would be"."""

    at: int
    letter: str
    weak: bool = False


def choice_letter(text: str, letters: str = "ABCD") -> str | None:
    """The letter that `text` (without its thinking) answers; None where there is none."""
    for held in (last_box(text), last_tagged(text, "answer")):
        if held is not None and len(held) <= WINDOW * 10:
            held = unicodedata.normalize("NFKC", held)
            letter = _letter_of(held, letters)
            # Two letters and nothing else are no answer; a formula is not about the options.
            if letter or re.fullmatch(
                rf"(?:[{letters}]|\\?[^A-Za-z0-9=<>^_+]|and|or|\\text)+", held
            ):
                return letter
    text = _plain(text[-TAIL:])[-TAIL:]
    said = sorted([*_stated(text, letters), *_chosen(text, letters)])
    for strength in (False, True):  # what "would be" counts only where nothing else is said to be
        if of_it := [s.letter for s in said if s.weak is strength]:
            return of_it[-1] or None
    reversed_forms = (says.REVERSED, says.FOREIGN_REVERSED, says.HAN_REVERSED, says.POINTED)
    found = (match for form in reversed_forms for match in form.finditer(text))
    named = {next(filter(None, match.groups())).upper() for match in found} & set(letters)
    if named:
        return named.pop() if len(named) == 1 else None
    return _of_last_lines(text, letters)


def _plain(text: str) -> str:
    """Text with full-width letters as usual ones, wrappers' words bare, and single spaces."""
    if not text.isascii():
        kept = "₀₁₂₃₄₅₆₇₈₉²³"  # which would be digits
        text = "".join(c if c in kept else unicodedata.normalize("NFKC", c) for c in text)
    text = _WRAPPED.sub(r" \1", text)
    text = re.sub(r"[^\S\n]+", " ", text)
    return re.sub(r" ?\n[ \n]*", "\n", text)


def _of_last_lines(text: str, letters: str) -> str | None:
    """The letter of the one line that begins with it, of lone letters, or of a last line's name."""
    lines = [line for line in text.split("\n") if line.strip()]
    if not lines:
        return None
    heads = [match["letter"] if (match := says.BEGUN.match(line)) else "" for line in lines]
    if heads.count("") == len(lines) - 1:
        lines[-1] = heads[-1] or lines[-1]
    elif (named := says.NAMED.fullmatch(lines[-1])) and (named["so"] or not any(heads)):
        lines[-1] = named["letter"]
    lone = {_bare(line) for line in lines} & set(letters)
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
    text = re.sub(r"\\(?:[,;:! ]|quad\b)", " ", _WRAPPER.sub("", box))
    text = text.translate(str.maketrans("", "", "{}$*")).strip()
    # D) Both A and B; D. A and C; but not A) and B)
    if head := re.match(rf"\(?([{letters}])(?:[).:]+\s+(?!(?:and|or|[A-Z]\W*$)\b)|\s+[\d(])", text):
        return head[1]
    follows = r"[).:]|\s*(?:and\b|or\b|[,/(]|$|[-–—]\s)"
    marked = set(re.findall(rf"(?<![A-Za-z\\])([{letters}])(?={follows})", text))
    if len(marked) != 1:
        return None
    letter = marked.pop()
    begins = re.match(
        rf"(?:option|choice|answer)?[\s(:]*{letter}\s*(?:[).:,]|(?<=\s)\(|[-–—]\s)", text, re.I
    )
    said = re.fullmatch(rf"(?i:the |answer|option|choice|is|correct|[\s:()])*{letter}[\s.)]*", text)
    return letter if begins or said else None


def _stated(text: str, letters: str) -> Iterator[_Said]:
    """English statements with a subject: "the answer is C"."""
    for subject in _SUBJECT.finditer(text):
        window = subject[0].lower() + text[subject.end() : subject.end() + WINDOW]
        match = says.STATEMENT.match(window)
        is_answer = window.startswith("answer")
        if match is None or (letter := match["letter"].upper()) not in letters:
            continue
        rest = window[match.end() :]
        before = text[max(0, subject.start() - 80) : subject.start()]
        if not says.NO_NOUN.match(rest) or says.NOT_THIS.search(before[-40:]):
            continue
        between = match["between"] or ""
        if says.NOT_IT.search(between):
            continue
        said = match[0][: match.start("letter")]
        if not is_answer and ("\n" in said or re.search(r"[-–—] $", said)):
            continue  # a heading over the options, or a dash after one
        weak = bool(match["weak"] or match["weaker"] or says.NOT_MINE.search(before))
        weak |= bool(between and not is_answer and not says.IS_RIGHT.search(before[-20:] + between))
        yield _Said(subject.start(), _unless_two(letter, rest, letters), weak)


def _chosen(text: str, letters: str) -> Iterator[_Said]:
    """Choices without a subject ("I'd go with C"), and statements in other languages."""
    for form in (says.CHOSEN, says.FOREIGN, says.HAN):
        for match in form.finditer(text):
            letter = match["letter"] or match["picked"] if form is says.CHOSEN else match["letter"]
            rest = text[match.end() : match.end() + WINDOW]
            if letter not in letters or says.NOT_THIS.search(
                text[max(0, match.start() - 30) : match.start()]
            ):
                continue
            if form is says.CHOSEN and not _ends_a_choice(match[0], rest):
                continue
            if form is says.HAN and (
                says.HAN_NOT_THIS.search(text[max(0, match.start() - 16) : match.start() + 4])
                or rest.startswith(("作为", "作為"))
            ):
                continue
            # English names things after a letter (B cells); elsewhere A alone may be a word.
            may_name = form is says.CHOSEN or (form is says.FOREIGN and letter == "A")
            if not may_name or says.NO_NOUN.match(rest):
                yield _Said(match.start(), _unless_two(letter, rest, letters))


def _ends_a_choice(said: str, rest: str) -> bool:
    """True where a clause ends behind the letter: "I choose B", but not "I choose B as origin"."""
    noun = re.search(r"(?i)option|choice|answer", said)
    return bool(
        noun or re.match(r"[)*_$\"”.,;:!]|\s*$|\n| (?:since|because|as it|for|here)\b", rest)
    )


def _unless_two(letter: str, rest: str, letters: str) -> str:
    other = says.OTHER.match(rest)
    return "" if other and other["letter"] in letters and other["letter"] != letter else letter
