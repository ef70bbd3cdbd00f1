r"""Equality of mathematical answers (AIME, MATH-500), by exact rules and without a symbolic engine.

An answer becomes a value: a rational number or an expression (algebra.py), perhaps with a unit; a
number in a base; a tuple or interval with its brackets, a set, an unordered list, a union, a
matrix, an equation, an inequality; or else its normalised text. Two answers are equal when their
values are. A wrong answer that is accepted is worse than a right one that is missed, so what these
rules do not understand is compared as text. Left out: identities of functions, limits, what needs
a common denominator (the `eval` extra's second opinion).
"""

from __future__ import annotations

import functools
import itertools
import re
from collections import Counter
from fractions import Fraction
from typing import NamedTuple

from tinyr1.graders import algebra
from tinyr1.graders.algebra import Expression
from tinyr1.graders.latex import TEXT, closing, nesting, normalise
from tinyr1.graders.names import is_name
from tinyr1.graders.units import unit_symbol

MAX_LENGTH, MAX_DEPTH = 1000, 30  # an answer beyond these is compared as text


class Quantity(NamedTuple):
    """A number with its unit ("" for none), or an expression or a text with one.

    Where the unit is `glued` on (`2km`) it may be factors, and stands for a unit only beside the
    same one.
    """

    value: Fraction | Expression | str
    unit: str
    glued: bool = False


class Based(NamedTuple):
    """Digits in a base: 204_5."""

    digits: str
    base: int


class Group(NamedTuple):
    """Elements between brackets, a row, a list, or the sides of an inequality, by `kind`."""

    kind: str
    parts: tuple[Value, ...]


class Equation(NamedTuple):
    """Two sides, of which the left may be no more than a name for the right."""

    is_name: bool
    left: str
    right: Value
    curve: Expression | None  # left - right up to a factor, where that has several letters


Value = object  # Quantity | Based | Group | Equation | Expression | frozenset (a set) | str

_ALONE = re.compile(r"([_^])\{([A-Za-z0-9])\}")
_THOUSANDS = re.compile(r"-?\d{1,3}(?:,\d{3})+(?:\.\d+)?|-?\d{1,3}(?: \d{3})+")
_OPENING = ("LBRACE", "(", "[", "{")
_BRACKETS_OR = {
    separator: re.compile(rf"[LR]BRACE|[()\[\]{{}}]|{re.escape(separator)}")
    for separator in (",", r"\cup")
}
_OVER = re.compile(r"\{?(?P<a>.+?)\}?\s*\\over\s*\{?(?P<b>.+?)\}?")
_IN = re.compile(r"^[A-Za-z]\s*\\in(?![A-Za-z])\s*")
_UNIT = re.compile(
    r"(?P<body>.*?(?:[\d})]|\\pi))\s*(?:"
    r"(?P<mark>\\deg(?:\s*[CF])?|\\pct)|"
    r"\\text\s*\{\s*(?P<text>[A-Za-z](?:[A-Za-z ./]|\^\d)*)\}|"
    r"(?P<word>(?:[A-Za-z]{2,}|m(?=/s\b))(?: [A-Za-z]{2,}|/[A-Za-z]+)*)"
    r")\s*(?:\^\s*\{?(?P<power>\d)\}?)?\s*"
)
_RELATION = re.compile("[<>=]")
_SIGN = re.compile("[<>]")  # of inequalities
_OR = re.compile(r"(?<![A-Za-z])or(?![A-Za-z])|\\lor|或")
_NUMBER = re.compile(r"-?\d{1,400}(?:\.\d{1,400})?")
_BASES = {
    "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9,
    "ten": 10, "eleven": 11, "twelve": 12, "thirteen": 13, "fourteen": 14, "fifteen": 15,
    "sixteen": 16,
}  # fmt: skip
_BASED = re.compile(
    r"(?P<open>\()?(?P<digits>[0-9A-Z]+)(?(open)\))\s*"
    r"(?:_\s*(?P<one>\d)|_\s*\{\s*(?:\\text\s*\{)?\s*(?P<base>\d+|[a-z]+)\s*\}?\s*\}|"
    r"(?:\\text\s*\{)?\s*\(?base\s*\}?\s*(?P<said>\d+|[a-z]+)\s*\)?\}?)"
)


def equal_answers(gold: str, answer: str) -> bool:
    """True where `answer` (content of a box) equals `gold` (LaTeX or plain text)."""
    wanted, given = parse(gold), parse(answer)
    # The one number of a set is the set's list; deeper down a set is not its element.
    if isinstance(wanted, frozenset) != isinstance(given, frozenset):
        wanted, given = _only(wanted), _only(given)
    return bool(wanted) and _equal(wanted, given)


def _only(value: Value) -> Value:
    """The number in a set of one."""
    if isinstance(value, frozenset) and len(value) == 1 and isinstance(min(value), Quantity):
        return min(value)
    return value


@functools.lru_cache(4096)  # a reference meets an answer a trial, and the trials agree
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
    if text.startswith("="):
        text = text[1:].strip()
    if _NUMBER.fullmatch(text):
        return Quantity(Fraction(text), "")
    wrapper = TEXT.fullmatch(text)
    if wrapper:
        return _parse(wrapper[1])
    text = _IN.sub("", text)  # x in an interval
    if r"\begin" in text:
        name, is_equation, matrix = text.partition("=")
        if is_equation and r"\begin" not in name and is_name(TEXT.sub(r" \1 ", name)):
            return Equation(True, _plain(name), _parse_matrix(matrix.strip()), None)
        return _parse_matrix(text)
    if (based := _based(text)) is not None:
        return based
    if text.count("≈") == 1:
        text = _without_approximation(text)
    unions = _split(text, r"\cup")
    if len(unions) > 1:
        return _union([_parse(part) for part in unions])
    number, rest = _thousands(text)
    if number:
        return _parse_single(number + rest)
    text = _joined_thousands(text)
    parts = [p for piece in _split(text, ",") for p in _split_words(piece)]
    if len(parts) > 1:
        parts = [part for part in parts if part.strip()]
        # Of inequalities "or" is another thing than "and", or a comma.
        kind = "or" if _SIGN.search(text) and _OR.search(text) else "list"
        return _list([_element(part) for part in parts], kind) if parts else ""
    if (relation := _parse_relation(text)) is not None:
        return relation
    if text.startswith("LBRACE") and (a_set := _parse_bracketed(text)) is not None:
        return a_set
    if text.count(r"\pm") == 1:
        plus, minus = (text.replace(r"\pm", sign).strip() for sign in "+-")
        return _list([_parse(plus.removeprefix("+")), _parse(minus)])
    return _parse_bracketed(text) or _parse_single(text)


def _without_approximation(text: str) -> str:
    """`\\frac37 ≈ 0.43` -> `\\frac37`: of an exact value its decimals say nothing more."""
    exact, _, decimals = text.partition("≈")
    value = algebra.read(exact)
    is_exact = value is not None and not (isinstance(value, Expression) and value.letters)
    return exact.strip() if is_exact and re.fullmatch(r"[\s\d.,]+.{0,9}", decimals) else text


def _element(text: str) -> Value:
    """A value among others, where 05 is no number but perhaps the rest of 3,05."""
    return _plain(text) if re.fullmatch(r"\s*0\d+\s*", text) else _parse(text)


def _joined_thousands(text: str) -> str:
    """`V=36,000\\pi` without its comma: outside of brackets, or before a 0."""
    if "," not in text:
        return text
    pieces = _split(text, ",")
    joined = [pieces[0]]
    for piece in pieces[1:]:
        is_tail = re.match(r"\d{3}(?![\d.])", piece)
        if is_tail and re.search(r"(?<![\d.,])\d{1,3}(?:,\d{3})*$", joined[-1]):
            joined[-1] += piece
        else:
            joined.append(piece)
    text = ",".join(joined)
    return re.sub(r"(?<![\d.,])(\d{1,3}),(0\d\d)(?!\d)", r"\1\2", text)


def _based(text: str) -> Based | None:
    """A number with its base: `204_5`, `12_{\\text{eight}}`, `101 base 2`."""
    match = _BASED.fullmatch(text)
    if match is None:
        return None
    said = match["one"] or match["base"] or match["said"]
    base = int(said) if said.isdigit() and len(said) < 3 else _BASES.get(said, 0)
    digits = match["digits"]
    if not 2 <= base <= 36 or not any(c.isdigit() for c in digits):  # F_5 is a name
        return None
    return Based(digits, base) if all(int(c, 36) < base for c in digits) else None


def _parse_relation(text: str) -> Value | None:
    """An equation of two sides, or a chain of inequalities that all go one way."""
    sides, signs = _split_relations(text)
    if signs == ["="]:
        return _equation(*sides)
    if not signs or {sign[0] for sign in signs} not in ({"<"}, {">"}):
        return None
    if signs[0][0] == ">":
        sides.reverse()
        signs.reverse()
    kind = " ".join(signs).replace(">", "<")
    return Group(kind, tuple(_parse(side) for side in sides))


def _split_relations(text: str) -> tuple[list[str], list[str]]:
    """The sides of what stands outside of all brackets, and the signs between them."""
    sides: list[str] = []
    signs: list[str] = []
    depth = start = 0
    for match in (
        re.finditer(r"[LR]BRACE|[()\[\]{}]|<=|>=|[<>=]", text) if _RELATION.search(text) else ()
    ):
        sign = match[0]
        if sign[0] not in "<>=":
            depth = max(depth + (1 if sign in _OPENING else -1), 0)
        elif depth == 0:
            sides.append(text[start : match.start()])
            signs.append(sign)
            start = match.end()
    return [*sides, text[start:]], signs


def _equation(left: str, right: str) -> Equation:
    value = _parse(right)
    curve = None
    sides = algebra.read(left), algebra.read(right)
    if sides[0] is not None and sides[1] is not None:
        curve = algebra.difference(sides[0], sides[1])
    several = curve is not None and len(curve.letters) > 1
    # A sum of several that is zero is an equation: `a + b + c = 0` does not say what is asked.
    zero = value == Quantity(Fraction(0), "") and isinstance(sides[0], Expression)
    named = is_name(TEXT.sub(r" \1 ", left)) and not (zero and several)
    return Equation(named, _plain(left), value, curve if several else None)


def _thousands(text: str) -> tuple[str, str]:
    """`1,234 cm` -> ("1234", " cm"); ("", text) where it does not begin so, or is a list."""
    match = re.match(rf"({_THOUSANDS.pattern})(?![\d,.])", text)
    if match is None or "," in text[match.end() :] or re.match(r"\s*[\d.]", text[match.end() :]):
        return "", text
    return re.sub("[, ]", "", match[1]), text[match.end() :]


def _split_words(text: str) -> list[str]:
    """Cut at a textual "and" or "or"."""
    if "nd" not in text and "or" not in text and text.isascii():
        return [text]
    return re.split(
        r"\\text\s*\{\s*(?:and|or|和|或)\s*\}|(?:^|(?<=\s))(?:and|or)(?=\s)|\\lor(?![A-Za-z])|[和或]",
        text,
    )


def _list(values: list[Value], kind: str = "list") -> Value:
    """Values in no order; the parts of a list within it are its own (`0, \\pm 2`)."""
    nested = (v.parts if isinstance(v, Group) and v.kind == "list" else (v,) for v in values)
    return Group(kind, tuple(sorted(itertools.chain.from_iterable(nested), key=repr)))


def _union(values: list[Value]) -> Value:
    if all(isinstance(v, frozenset) for v in values):
        return frozenset().union(*(v for v in values if isinstance(v, frozenset)))
    return Group("union", tuple(sorted(values, key=repr)))


def _parse_bracketed(text: str) -> Value | None:
    """A set, tuple or interval; a single thing in parentheses is that thing."""
    if text.startswith("LBRACE") and text.endswith("RBRACE"):
        inner = text.removeprefix("LBRACE").removesuffix("RBRACE")
        elements = _list([_element(p) for p in _split_elements(inner) if p.strip()])
        assert isinstance(elements, Group)
        return frozenset(elements.parts)
    if len(text) > 2 and text[0] in "([" and text[-1] in ")]" and closing(text, 0) == len(text) - 1:
        parts = _split_elements(text[1:-1])
        if len(parts) > 1:
            return Group(text[0] + text[-1], tuple(_element(p) for p in parts))
        if text[0] == "(":
            return _parse(text[1:-1])
    return None


def _split_elements(text: str) -> list[str]:
    """Cut at commas; but (2,000) is a number: no element is written 000."""
    text = text.strip()
    if _THOUSANDS.fullmatch(text) and re.search(r",0\d\d", text):
        return [text]
    return _split(text, ",")


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
    """A number, an expression, either with a unit, or text."""
    quantity = _split_unit(text)
    if quantity.unit:
        value = _evaluate(str(quantity.value))
        if isinstance(value, Fraction) or (value is not None and _is_marked(quantity)):
            return quantity._replace(value=value)
    value = _evaluate(text)
    if value is not None:
        return Quantity(value, "") if isinstance(value, Fraction) else value
    if quantity.unit and _is_marked(quantity):
        return quantity._replace(value=_plain(str(quantity.value)))
    return _plain(text)


def _evaluate(text: str) -> Fraction | Expression | None:
    """Value of an expression; letters alone are a word, but for some that no word is made of."""
    if text.isalpha() and len(text) > 1 and not re.fullmatch("[abcmnpqrxyz]{2,3}", text):
        return None
    over = _OVER.fullmatch(text) if r"\over" in text else None
    return algebra.read(f"({over['a']})/({over['b']})" if over else text)


def _is_marked(quantity: Quantity) -> bool:
    """True for a unit of the table that stands apart: one that counts beside what is no number."""
    known = unit_symbol(re.findall(r"[A-Za-z]+(?:\^\d)?|/", quantity.unit), True)
    return bool(known) and not quantity.glued


def _split_unit(text: str) -> Quantity:
    """`10\\text{ cm}^2` -> Quantity("10", "cm2"); a unit is a word after a number."""
    match = _UNIT.fullmatch(text)
    if match is None:
        return Quantity(text, "")
    if match["mark"]:
        return Quantity(match["body"], match["mark"].replace(" ", ""))
    glued = bool(match["word"]) and text[match.start("word") - 1] != " "
    words = re.findall(r"[A-Za-z]+(?:\^\d)?|/", match["text"] or match["word"])
    unit = unit_symbol(words, glued)
    return (
        Quantity(match["body"], unit + (match["power"] or ""), glued)
        if unit
        else Quantity(text, "")
    )


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
    if isinstance(gold, Equation) and isinstance(given, Equation):
        same = gold.left == given.left and _equal(gold.right, given.right)
        return same or (gold.curve is not None and gold.curve == given.curve)
    if isinstance(given, Equation):
        return given.is_name and not _is_equation(gold) and _equal(gold, given.right)
    if isinstance(gold, Equation):
        names_one = gold.is_name and not re.search("[+-]", gold.left)
        return names_one and not _is_equation(given) and _equal(gold.right, given)
    if isinstance(gold, Based):  # the question may have said the base
        return gold == given or (isinstance(given, Quantity) and given == _of_digits(gold.digits))
    wanted, found = _elements(gold), _elements(given)
    if wanted is not None and found is not None:
        return _equal_unordered(wanted, found)
    if isinstance(gold, Group) and isinstance(given, Group) and gold.kind == given.kind == "or":
        return _equal_unordered(gold.parts, given.parts)
    if isinstance(gold, Group) or isinstance(given, Group):
        return (
            isinstance(gold, Group)
            and isinstance(given, Group)
            and gold.kind == given.kind
            and len(gold.parts) == len(given.parts)
            and not (_are_crossed(given.parts) or _are_crossed(gold.parts))
            and all(_equal(a, b) for a, b in zip(gold.parts, given.parts, strict=True))
        )
    if isinstance(gold, Quantity) or isinstance(given, Quantity):
        mine, theirs = _quantity(gold), _quantity(given)
        return mine.value == theirs.value and mine.value != "" and _units_agree(mine, theirs)
    return isinstance(gold, (Expression, str)) and gold == given


def _elements(value: Value) -> tuple[Value, ...] | None:
    """What stands in no order: the elements of a list, of a set (which is its list), of a union."""
    if isinstance(value, frozenset):
        return tuple(sorted(value, key=repr))
    return value.parts if isinstance(value, Group) and value.kind == "list" else None


def _are_crossed(parts: tuple[Value, ...]) -> bool:
    """True for named places in another order than that of their names: (y=1, x=2)."""
    names = [part.left for part in parts if isinstance(part, Equation) and part.is_name]
    return names != sorted(names)


def _names(values: tuple[Value, ...]) -> set[str]:
    """The left sides in a list of equations that give names."""
    names = (part.left for part in values if isinstance(part, Equation) and part.is_name)
    return {re.sub(r"^([xz])_\{?\d\}?$", r"\1", name) for name in names}  # roots: x_1 = 2, x_2 = 3


def _of_digits(digits: str) -> Quantity | None:
    return Quantity(Fraction(digits), "") if digits.isdecimal() else None


def _quantity(value: Value) -> Quantity:
    """A value as a quantity; what is neither that nor text has the value ""."""
    if isinstance(value, Quantity):
        return value
    return Quantity(value if isinstance(value, (str, Expression)) else "", "")


def _units_agree(gold: Quantity, given: Quantity) -> bool:
    """Equal units, or one that is not given; but 0.5 is not 0.5 %."""
    units = {gold.unit, given.unit}
    if gold.glued or given.glued:
        return len(units) == 1
    if not isinstance(gold.value, Fraction) and "" in units and units & {"\\pct", "\\deg"}:
        return False
    if units == {"", "\\pct"} and isinstance(gold.value, Fraction):
        return abs(gold.value) > 1 or not gold.value
    return len(units - {""}) < 2


def _is_equation(value: Value) -> bool:
    return isinstance(value, Equation) or any(map(_is_equation, _elements(value) or ()))


def _equal_unordered(gold: tuple[Value, ...], given: tuple[Value, ...]) -> bool:
    """Equal as multisets under `_equal` (units make it no plain comparison)."""
    if len(gold) != len(given):
        return False
    names = _names(gold), _names(given)
    if names[0] != names[1] and max(map(len, names)) > 1:
        return False  # x = 1, y = 2 says which is which, and 2, 1 does not
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
    if separator not in text:
        return [text]
    parts: list[str] = []
    depth = start = 0
    for match in _BRACKETS_OR[separator].finditer(text):
        sign = match[0]
        if sign == separator:
            if depth == 0:
                parts.append(text[start : match.start()])
                start = match.end()
        else:
            depth = depth + 1 if sign in _OPENING else max(depth - 1, 0)
    return [*parts, text[start:]]
