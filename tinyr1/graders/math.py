r"""Equality of mathematical answers (AIME, MATH-500), by exact rules and without a symbolic engine.

An answer becomes a value: a rational number (exact, never a float), a unit beside it, a tuple or
interval with its brackets, a set, an unordered list, a matrix, or else its normalised text. Two
answers are equal when their values are. A wrong answer that is accepted is worse than a right one
that is missed, so what these rules do not understand is compared as text.
Left out: radicals, identities of polynomials, logarithms (the `eval` extra's second opinion).
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from fractions import Fraction
from typing import NamedTuple

from tinyr1.graders.latex import TEXT, closing, nesting, normalise
from tinyr1.graders.names import is_name
from tinyr1.graders.units import unit_symbol

MAX_BITS = 10_000  # a number beyond this stays text: no answer needs it, and none must hang us
MAX_LENGTH, MAX_DEPTH = 1000, 30  # an answer beyond these is compared as text


class Quantity(NamedTuple):
    """A number with its unit ("" for none), or a text with one."""

    value: Fraction | str
    unit: str


class Group(NamedTuple):
    """Ordered elements between brackets: a tuple, an interval, a row.

    Of kind `=` an equation, of kind `name` one that only gives its right side a name.
    """

    kind: str
    parts: tuple[object, ...]


Value = object  # Quantity | Group | frozenset (a set) | str

_ALONE = re.compile(r"([_^])\{([A-Za-z0-9])\}")
_THOUSANDS = re.compile(r"-?\d{1,3}(?:,\d{3})+(?:\.\d+)?|-?\d{1,3}(?: \d{3})+")


def equal_answers(gold: str, answer: str) -> bool:
    """True where `answer` (content of a box) equals `gold` (LaTeX or plain text)."""
    wanted, given = parse(gold), parse(answer)
    return bool(wanted) and _equal(wanted, given)


def parse(text: str) -> Value:
    """The value of an answer; "" for nothing."""
    if len(text) > MAX_LENGTH:
        return text
    text = normalise(text)
    return _parse(text) if nesting(text) <= MAX_DEPTH else _plain(text)


def is_number(text: str) -> bool:
    """True for a number (with its unit), of which these rules know all."""
    value = parse(text)
    return isinstance(value, Quantity) and isinstance(value.value, Fraction)


def _parse(text: str) -> Value:
    text = text.strip()
    wrapper = TEXT.fullmatch(text)
    if wrapper:
        return _parse(wrapper[1])
    text = re.sub(r"^[A-Za-z]\s*\\in(?![A-Za-z])\s*", "", text)  # x in an interval
    if r"\begin" in text:
        return _parse_matrix(text)
    unions = _split(text, r"\cup")
    if len(unions) > 1:
        return _union([_parse(part) for part in unions])
    number, rest = _thousands(text)
    if number:
        return _parse_single(number + rest)
    parts = [p for piece in _split(text, ",") for p in _split_words(piece)]
    if len(parts) > 1:
        return _list([_parse(part) for part in parts if part.strip()])
    sides = _split(text, "=")
    if len(sides) == 2 and text[text.find("=") - 1] not in "<>":
        kind = "name" if is_name(TEXT.sub(r" \1 ", sides[0])) else "="
        return Group(kind, (_plain(sides[0]), _parse(sides[1])))
    if text.count(r"\pm") == 1:
        plus, minus = (text.replace(r"\pm", sign).strip() for sign in "+-")
        return _list([_parse(plus.removeprefix("+")), _parse(minus)])
    return _parse_bracketed(text) or _parse_single(text)


def _thousands(text: str) -> tuple[str, str]:
    """`1,234 cm` -> ("1234", " cm"); ("", text) where it does not begin so, or is a list."""
    match = re.match(rf"({_THOUSANDS.pattern})(?![\d,.])", text)
    if match is None or "," in text[match.end() :] or re.match(r"\s*[\d.]", text[match.end() :]):
        return "", text
    return re.sub("[, ]", "", match[1]), text[match.end() :]


def _split_words(text: str) -> list[str]:
    r"""Cut at a textual "and" or "or"."""
    return re.split(r"\\(?:text|mbox|mathrm)\s*\{\s*(?:and|or)\s*\}|(?<=\s)(?:and|or)(?=\s)", text)


def _list(values: list[Value]) -> Value:
    nested = (v.parts if isinstance(v, Group) and v.kind == "list" else (v,) for v in values)
    return Group("list", tuple(sorted(itertools.chain.from_iterable(nested), key=repr)))


def _union(values: list[Value]) -> Value:
    if all(isinstance(v, frozenset) for v in values):
        return frozenset().union(*(v for v in values if isinstance(v, frozenset)))
    return Group("union", tuple(sorted(values, key=repr)))


def _parse_bracketed(text: str) -> Value | None:
    """A set, tuple or interval; a single thing in parentheses is that thing."""
    if text.startswith("LBRACE") and text.endswith("RBRACE"):
        inner = text.removeprefix("LBRACE").removesuffix("RBRACE")
        return frozenset(_parse(p) for p in _split(inner, ",") if p.strip())
    if len(text) > 2 and text[0] in "([" and text[-1] in ")]" and closing(text, 0) == len(text) - 1:
        parts = _split(text[1:-1], ",")
        if len(parts) > 1:
            return Group(text[0] + text[-1], tuple(_parse(p) for p in parts))
        if text[0] == "(":
            return _parse(text[1:-1])
    return None


def _parse_matrix(text: str) -> Value:
    match = re.fullmatch(
        r"[(\[]?\s*\\begin\{([pbvBV]?matrix|array)\}(?:\s*\{[clr| ]*\})?(.*)\\end\{\1\}\s*[)\]]?",
        text,
    )
    if match is None:
        return _plain(text)
    rows = [row for row in match[2].split("NEWROW") if row.strip()]
    cells = tuple(Group("row", tuple(_parse(c) for c in row.split("&"))) for row in rows)
    return Group(match[1] if match[1][0] in "vV" else "matrix", cells)  # bars make a determinant


def _parse_single(text: str) -> Value:
    """A number, a number with a unit, or text."""
    body, unit = _split_unit(text)
    number = _evaluate(body)
    if number is not None:
        return Quantity(number, unit)
    body, unit = _split_unit(text, known_only=True)
    return Quantity(_plain(body), unit) if unit else _plain(text)


def _split_unit(text: str, known_only: bool = False) -> tuple[str, str]:
    """`10\\text{ cm}^2` -> ("10", "cm2"); a unit is a word after a number.

    With `known_only`, for what is no number as in `3\\pi\\text{ cm}`, it must be in the table and
    stand apart.
    """
    match = re.fullmatch(
        r"(?P<body>.*?(?:[\d})]|\\pi))\s*(?:"
        r"(?P<mark>\\deg(?:\s*[CF])?|\\pct)|"
        r"\\(?:text|mbox|mathrm|rm|textrm)\s*\{\s*(?P<text>[A-Za-z](?:[A-Za-z ./]|\^\d)*)\}|"
        r"(?P<word>(?:[A-Za-z]{2,}|m(?=/s\b))(?: [A-Za-z]{2,}|/[A-Za-z]+)*)"
        r")\s*(?:\^\s*\{?(?P<power>\d)\}?)?\s*",
        text,
    )
    if match is None:
        return text, ""
    apart = not match["word"] or text[match.start("word") - 1] == " "
    if known_only and (match["mark"] or not apart):
        return text, ""
    if match["mark"]:
        return match["body"], match["mark"].replace(" ", "")
    words = re.findall(r"[A-Za-z]+(?:\^\d)?|/", match["text"] or match["word"])
    unit = unit_symbol(words, known_only or not apart)
    return (match["body"], unit + (match["power"] or "")) if unit else (text, "")


def _plain(text: str) -> str:
    """Text as it is compared: no wrappers, no spaces; words in lower case."""
    text = TEXT.sub(r"\1", text)
    text = _ALONE.sub(r"\1\2", text)
    text = re.sub(r"\\sqrt\s*\{\s*([A-Za-z0-9])\s*\}", r"\\sqrt\1", text)
    text = re.sub(r"(?<!\d)\s+|\s+(?!\d)", "", text)  # 1 2 is not 12
    text = text if text.endswith("..") else text.rstrip(".")
    text = re.sub(r"\*(?![\d.+*-])", "", text)  # 4*\pi is 4\pi, but 2*3 is not 23
    if len(text) > 2 and text[0] == "(" and text[-1] == ")" and closing(text, 0) == len(text) - 1:
        text = text[1:-1]
    return text.lower() if re.fullmatch(r"[A-Za-z]{4,}|[A-Z]?[a-z]+|YES|NO", text) else text


def _equal(gold: Value, given: Value) -> bool:
    # `x = 5` and `m + n = 5` answer 5; `2x = 5` and `x^2 = 5` do not.
    if isinstance(given, Group) and given.kind == "name" and not _is_equation(gold):
        return _equal(gold, given.parts[1])
    if isinstance(gold, Group) and gold.kind == "name" and not _is_equation(given):
        return not re.search("[+-]", str(gold.parts[0])) and _equal(gold.parts[1], given)
    if isinstance(gold, Quantity) or isinstance(given, Quantity):
        mine, theirs = _quantity(gold), _quantity(given)
        return mine.value == theirs.value and mine.value != "" and _units_agree(mine, theirs)
    if isinstance(gold, Group) and isinstance(given, Group) and gold.kind == given.kind:
        if len(gold.parts) != len(given.parts):
            return False
        if gold.kind in ("list", "union"):
            names = _names(gold), _names(given)
            if names[0] != names[1] and max(map(len, names)) > 1:
                return False  # x = 1, y = 2 says which is which, and 2, 1 does not
            return _equal_unordered(gold.parts, given.parts)
        return all(_equal(a, b) for a, b in zip(gold.parts, given.parts, strict=True))
    if isinstance(gold, frozenset) and isinstance(given, frozenset):
        return len(gold) == len(given) and _equal_unordered(tuple(gold), tuple(given))
    return isinstance(gold, str) and gold == given


def _names(value: Group) -> set[object]:
    """The left sides in a list of equations that give names."""
    return {
        re.sub(r"^([xz])_\{?\d\}?$", r"\1", str(part.parts[0]))  # roots: x_1 = 2, x_2 = 3
        for part in value.parts
        if isinstance(part, Group) and part.kind == "name"
    }


def _quantity(value: Value) -> Quantity:
    """A value as a quantity; what is neither that nor text has the value ""."""
    if isinstance(value, Quantity):
        return value
    return Quantity(value if isinstance(value, str) else "", "")


def _units_agree(gold: Quantity, given: Quantity) -> bool:
    """Equal units, or one that is not given; but 0.5 is not 0.5 %."""
    units = {gold.unit, given.unit}
    if isinstance(gold.value, str) and "" in units and units & {"\\pct", "\\deg"}:
        return False
    if units == {"", "\\pct"} and isinstance(gold.value, Fraction):
        return abs(gold.value) > 1 or not gold.value
    return len(units - {""}) < 2


def _is_equation(value: Value) -> bool:
    return isinstance(value, Group) and (
        value.kind in ("=", "name")
        or (value.kind == "list" and any(_is_equation(p) for p in value.parts))
    )


def _equal_unordered(gold: tuple[Value, ...], given: tuple[Value, ...]) -> bool:
    """Equal as multisets under `_equal` (units make it no plain comparison)."""
    if Counter(map(repr, gold)) == Counter(map(repr, given)):
        return True
    left = list(given)
    for value in gold:
        match = next((i for i, other in enumerate(left) if _equal(value, other)), None)
        if match is None:
            return False
        left.pop(match)
    return not left


def _split(text: str, separator: str) -> list[str]:
    """Cut at separators outside of all brackets."""
    parts = []
    depth = 0
    start = 0
    i = 0
    while i < len(text):
        if text.startswith("LBRACE", i) or text[i] in "([{":
            depth += 1
        elif text.startswith("RBRACE", i) or text[i] in ")]}":
            depth = max(depth - 1, 0)
        elif depth == 0 and text.startswith(separator, i):
            parts.append(text[start:i])
            start = i + len(separator)
            i = start
            continue
        i += 1
    return [*parts, text[start:]]


# ---------------------------------------------------------------- exact arithmetic

_TOKEN = re.compile(
    r"\s*(?:(?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)|(?P<frac>\\frac)|(?P<op>[-+*/^(){}]))"
)


def _evaluate(text: str) -> Fraction | None:
    """Value of a rational expression in LaTeX or plain notation; None where it is none."""
    over = re.fullmatch(r"\{?(?P<a>.+?)\}?\s*\\over\s*\{?(?P<b>.+?)\}?", text)
    if over:
        text = f"({over['a']})/({over['b']})"
    text = re.sub(r"^(-?\d+) (\d+)\s*/\s*(\d+)$", r"\1\\frac{\2}{\3}", text.strip())  # 3 1/2
    tokens: list[str] = []
    at = 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            return None
        tokens.append(match[0].strip())
        at = match.end()
    if len(tokens) > 200 or not tokens:
        return None
    try:
        reader = _Reader(tokens)
        value = reader.sum()
        bits = max(value.numerator.bit_length(), value.denominator.bit_length())
        return value if reader.at == len(tokens) and bits <= MAX_BITS else None
    except (ValueError, ZeroDivisionError, IndexError):
        return None


class _Reader:
    """Recursive descent over tokens; ValueError or IndexError where the grammar ends."""

    def __init__(self, tokens: list[str]) -> None:
        self.tokens = tokens
        self.at = 0

    def peek(self) -> str:
        return self.tokens[self.at] if self.at < len(self.tokens) else ""

    def take(self) -> str:
        self.at += 1
        return self.tokens[self.at - 1]

    def _is_literal(self) -> bool:
        """True where all that was read is a whole number, written out."""
        read = self.tokens[: self.at]
        return "".join(read).lstrip("+-").isdigit() and read[-1].isdigit()

    def sum(self) -> Fraction:
        value = self.product()
        while self.peek() in ("+", "-"):
            value = value + self.product() if self.take() == "+" else value - self.product()
        return value

    def product(self) -> Fraction:
        sign = 1
        while self.peek() in ("+", "-"):
            sign = -sign if self.take() == "-" else sign
        value = sign * self.power()
        while self.peek():
            if self.peek() in ("*", "/"):
                multiply = self.take() == "*"
                negative = self.peek() == "-" and bool(self.take())
                factor = -self.power() if negative else self.power()
                value = value * factor if multiply else value / factor
            elif self.peek() == r"\frac" and self._is_literal():  # a mixed number: 3\frac12
                part = self.power()
                if not 0 < part < 1:
                    raise ValueError("a product")
                value += part if sign > 0 else -part
            else:
                break
        return value

    def power(self) -> Fraction:
        base = self.atom()
        if self.peek() != "^":
            return base
        self.take()
        negative = self.peek() == "-" and bool(self.take())
        exponent = self.atom()
        if exponent.denominator != 1:
            raise ValueError("a root is no rational")
        count = int(exponent)
        if max(base.numerator.bit_length(), base.denominator.bit_length()) * abs(count) > MAX_BITS:
            raise ValueError("too large")
        return base ** (-count if negative else count)

    def atom(self) -> Fraction:
        token = self.take()
        if token == r"\frac":
            return self.fraction_part() / self.fraction_part()
        if token in "({":
            value = self.sum()
            if self.take() != {"(": ")", "{": "}"}[token]:
                raise ValueError("unbalanced")
            return value
        if len(token) > 400 or abs(int((re.search(r"[eE]([+-]?\d+)", token) or "00")[1])) > 400:
            raise ValueError("too long")
        return Fraction(token.rstrip(".") if token.endswith(".") else token)

    def fraction_part(self) -> Fraction:
        r"""An argument of \frac: a group, or a single digit (\frac43)."""
        token = self.peek()
        if token == "{":
            return self.atom()
        if token.isdigit() and len(token) > 1:
            self.tokens[self.at] = token[1:]
            return Fraction(int(token[0]))
        return self.atom()
