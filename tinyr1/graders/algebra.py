r"""Exact values of expressions: sums of products of rational numbers, roots, letters and functions.

    read("(x+1)/2") == read("\\frac12 + \\frac{x}{2}")

An expression becomes a sum {product: coefficient} and a product {atom: exponent}, in one order, so
that two spellings of one polynomial or radical are the same value. Nothing is a float and nothing
is guessed: what the grammar does not know, or what could be read in two ways (`1/2x`), is no
expression, and its text is compared instead. Not done: a common denominator of several terms
(1/x + 1/y), identities of functions, nested roots.
"""

from __future__ import annotations

import math
import re
from fractions import Fraction
from typing import NamedTuple

MAX_BITS = 10_000  # a number beyond this is no expression: no answer needs it, none must hang us
MAX_TOKENS, MAX_TERMS, MAX_POWER = 200, 60, 8
MAX_RADICAND = 10**8  # that is factored, by trial

Rational = Fraction | int
Product = tuple[tuple[str, Rational], ...]  # (atom, exponent), sorted; a prime has 0 < exponent < 1
Terms = dict[Product, Rational]  # product -> coefficient, not zero
ONE: Product = ()


class Expression(NamedTuple):
    """A value with letters, roots or functions in it, in the one order of its terms."""

    terms: tuple[tuple[Product, Rational], ...]

    @property
    def letters(self) -> set[str]:
        """The atoms that are a letter, with its index."""
        atoms = {atom for product, _ in self.terms for atom, _ in product}
        letters = {atom for atom in atoms if re.fullmatch(r"[A-Za-z](?:_\w+)?'*", atom)}
        return letters - {"e", "i"}  # which are numbers


class Unreadable(ValueError):
    """No expression that this grammar knows."""


def read(text: str) -> Fraction | Expression | None:
    """Value of an expression in normalised LaTeX; None where it is none."""
    terms = read_terms(text)
    if terms is None:
        return None
    if not terms or terms.keys() == {ONE}:
        return Fraction(terms.get(ONE, 0))
    return Expression(tuple(sorted(terms.items())))


def difference(left: Fraction | Expression, right: Fraction | Expression) -> Expression | None:
    """left - right up to a factor that is a number; None where nothing remains."""
    terms = _add(_terms(left), _scaled(_terms(right), -1))
    if not terms:
        return None
    ordered = sorted(terms.items())
    lead = Fraction(ordered[0][1])
    return Expression(tuple((product, c / lead) for product, c in ordered))


def read_terms(text: str) -> Terms | None:
    """`read` before numbers are told from expressions."""
    tokens = _tokens(text)
    if not tokens:
        return None
    try:
        reader = _Reader(tokens)
        terms = reader.sum()
        return terms if reader.at == len(tokens) else None
    except (ValueError, ZeroDivisionError, IndexError, RecursionError):
        return None


# ---------------------------------------------------------------- arithmetic


def _terms(value: Fraction | Expression) -> Terms:
    return dict(value.terms) if isinstance(value, Expression) else _number(value)


def _number(value: Rational) -> Terms:
    return {ONE: value} if value else {}


def _constant(terms: Terms) -> Rational | None:
    """The number that an expression is; None for one with more in it."""
    return terms.get(ONE, 0) if terms.keys() <= {ONE} else None


def _atom(name: str, exponent: Rational = 1) -> Terms:
    return {((name, exponent),): 1}


def _checked(value: Rational) -> Rational:
    if max(value.numerator.bit_length(), value.denominator.bit_length()) > MAX_BITS:
        raise Unreadable("too large a number")
    return value


def _add(a: Terms, b: Terms) -> Terms:
    result = dict(a)
    for product, coefficient in b.items():
        _accumulate(result, product, coefficient)
    return result


def _accumulate(terms: Terms, product: Product, coefficient: Rational) -> None:
    total = _checked(terms.pop(product, 0) + coefficient)
    if total:
        terms[product] = total


def _scaled(a: Terms, factor: Rational) -> Terms:
    if factor == 1:
        return a
    return {product: _checked(c * factor) for product, c in a.items()} if factor else {}


def _multiply(a: Terms, b: Terms) -> Terms:
    if len(a) * len(b) > MAX_TERMS**2:
        raise Unreadable("too many terms")
    result: Terms = {}
    for p, x in a.items():
        for q, y in b.items():
            product, factor = _joined(p, q)
            _accumulate(result, product, x * y * factor)
    if len(result) > MAX_TERMS:
        raise Unreadable("too many terms")
    return result


def _joined(p: Product, q: Product) -> tuple[Product, Rational]:
    """The product of two products; what becomes a whole power of a prime is its coefficient."""
    if not p or not q:
        return p or q, 1
    exponents = dict(p)
    for atom, exponent in q:
        exponents[atom] = exponents.get(atom, 0) + exponent
    return _ordered(exponents)


def _ordered(exponents: dict[str, Rational]) -> tuple[Product, Rational]:
    factor: Rational = 1
    for atom, exponent in exponents.items():
        if atom.isdigit() and (whole := math.floor(exponent)):
            factor *= Fraction(int(atom)) ** whole
            exponents[atom] = exponent - whole
    return tuple(sorted((a, e) for a, e in exponents.items() if e)), factor


def _power(base: Terms, exponent: Rational) -> Terms:
    if not base:
        if exponent > 0:
            return {}
        raise Unreadable("a power of zero")
    if len(base) == 1:
        return _power_of_product(*next(iter(base.items())), exponent)
    if exponent.denominator == 1 and 0 <= exponent <= MAX_POWER:
        result = _number(1)
        for _ in range(int(exponent)):
            result = _multiply(result, base)
        return result
    # A sum that is not multiplied out is an atom of its own, without what its terms share.
    content = Fraction(
        math.gcd(*(c.numerator for c in base.values())),
        math.lcm(*(c.denominator for c in base.values())),
    )
    if exponent.denominator == 1 and base[min(base)] < 0:
        content = -content
    atom = _atom(f"({text_of(_scaled(base, 1 / content))})", exponent)
    return _multiply(_power_of_product(ONE, content, exponent), atom)


def _power_of_product(product: Product, coefficient: Rational, exponent: Rational) -> Terms:
    if exponent.denominator == 1:
        count = int(exponent)
        bits = max(coefficient.numerator.bit_length(), coefficient.denominator.bit_length())
        if bits * abs(count) > MAX_BITS:
            raise Unreadable("too large a number")
        ordered, factor = _ordered({atom: e * count for atom, e in product})
        return {ordered: _checked(Fraction(coefficient) ** count * factor)}
    if coefficient < 0 or abs(exponent) > MAX_POWER:
        raise Unreadable("a root of a negative number")
    exponents: dict[str, Rational] = {}
    for number, sign in ((coefficient.numerator, 1), (coefficient.denominator, -1)):
        for prime, count in _factors(number).items():
            exponents[str(prime)] = sign * count * exponent
    for atom, e in product:
        if e != 1 and not atom.isdigit():  # the root of x^2 is not x
            atom, e = f"({text_of(_atom(atom, e))})", 1
        exponents[atom] = exponents.get(atom, 0) + e * exponent
    ordered, factor = _ordered(exponents)
    return {ordered: _checked(factor)}


def _factors(number: int) -> dict[int, int]:
    if number > MAX_RADICAND:
        raise Unreadable("too large a radicand")
    counts: dict[int, int] = {}
    prime = 2
    while prime * prime <= number:
        while number % prime == 0:
            counts[prime] = counts.get(prime, 0) + 1
            number //= prime
        prime += 1 + prime % 2
    if number > 1:
        counts[number] = counts.get(number, 0) + 1
    return counts


def text_of(terms: Terms) -> str:
    """The one text of an expression, which reads back as it: the name of what it is part of."""
    return " + ".join(
        "*".join([str(c), *(atom if e == 1 else f"{atom}^{{{e}}}" for atom, e in product)])
        for product, c in sorted(terms.items())
    )


# ---------------------------------------------------------------- grammar

_GREEK = (
    r"[Aa]lpha|[Bb]eta|[Gg]amma|[Dd]elta|epsilon|zeta|eta|[Tt]heta|iota|kappa|[Ll]ambda|mu|nu|"
    r"[Xx]i|[Pp]i|rho|[Ss]igma|tau|[Uu]psilon|[Pp]hi|chi|[Pp]si|[Oo]mega|ell|hbar"
)
_FUNCTIONS = r"(?:arc)?(?:sin|cos|tan)|cot|sec|csc|(?:sin|cos|tan|cot|sec|csc)h|ln|log|lg|exp"
_TOKEN = re.compile(
    rf"""\s*(?:
      (?P<number> \d+\.\d+e[+-]\d+ | 1e[+-]\d+
                  | (?:\d+\.?\d*|\.\d+) (?:E[+-]?\d+|e\d+|e[+-]\d\d+)? )
    | \\(?P<command> frac|sqrt|d?binom )(?![A-Za-z])
    | \\?(?P<function> {_FUNCTIONS} )(?![A-Za-z])
      (?P<base> \s*_\s*(?: \w | \{{\s*\w+\s*\}} ) )?
    | (?P<root> sqrt )(?=\s*\()
    | (?P<pi> \\pi | (?<![A-Za-z\\])pi )(?![A-Za-z])
    | (?P<letter> \\(?:{_GREEK})(?![A-Za-z]) | (?<![A-Z])[A-Z]{{2,}}(?![A-Za-z])
                  | (?<![A-Za-z])[A-Za-z](?![A-Za-z]) | [a-z] )
      (?P<index> \s*_\s*(?: \w | \{{[\w,+\s-]+\}} ) )?  (?P<primes> '+ )?
    | (?P<word> \\text\s*\{{\s*[a-z]\s*\}} )
    | (?P<op> [-+*/^(){{}}!|[\]] )
    )""",
    re.VERBOSE,
)
_OF_ARGUMENTS = re.compile("[fgh]|[A-Z](?![A-Z])")  # f(2) is no product; x(x + 1) is one


# Words, which are no products of letters, but for three letters that no word is made of.
_WORD = re.compile(
    rf"(?<![\\A-Za-z])(?!(?:{_FUNCTIONS}|sqrt|pi)(?![a-z]))(?![abcmnpqrxyz]{{3}}(?![A-Za-z]))"
    r"(?=[A-Za-z]*[a-z])[A-Za-z]{3,}|INF|BRACE"
)


class _Token(NamedTuple):
    kind: str  # number, letter, function, command, op
    text: str


def _tokens(text: str) -> list[_Token]:
    text = text.strip()
    if _WORD.search(text):
        return []  # a word
    text = re.sub(r"^(-?\d+) (\d+)\s*/\s*(\d+)$", r"\1\\frac{\2}{\3}", text)  # 3 1/2
    tokens: list[_Token] = []
    at = 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None or len(tokens) >= MAX_TOKENS:
            return []
        at = match.end()
        kind = match.lastgroup or ""
        if match["function"] == "exp":
            tokens += [_Token("letter", "e"), _Token("op", "^")]
        elif match["function"]:
            base = re.sub(r"[\s{}]", "", match["base"] or "")
            tokens.append(_Token("function", match["function"].replace("lg", "log") + base))
        elif match["letter"]:
            name = match["letter"] + re.sub(r"[\s{}]", "", match["index"] or "")
            tokens.append(_Token("letter", name + (match["primes"] or "")))
        elif match["word"]:
            tokens.append(_Token("letter", re.sub(r"\\text|[\s{}]", "", match["word"])))
        elif match["pi"]:
            tokens.append(_Token("letter", r"\pi"))
        elif match["root"]:
            tokens.append(_Token("command", "sqrt"))
        else:
            tokens.append(_Token(kind, match[kind].replace("dbinom", "binom")))
    if len(tokens) > 1 and any(re.match(r"0\d", t.text) for t in tokens if t.kind == "number"):
        return []  # a date or a time
    return tokens


class _Reader:
    """Recursive descent over tokens; ValueError or IndexError where the grammar ends."""

    def __init__(self, tokens: list[_Token]) -> None:
        self.tokens = tokens
        self.at = 0
        self.depth = 0

    def peek(self) -> _Token:
        return self.tokens[self.at] if self.at < len(self.tokens) else _Token("end", "")

    def take(self) -> _Token:
        self.at += 1
        return self.tokens[self.at - 1]

    def sum(self) -> Terms:
        self.depth += 1
        if self.depth > 30:
            raise Unreadable("too deep")
        value = self.product()
        while self.peek().text in ("+", "-"):
            sign = 1 if self.take().text == "+" else -1
            value = _add(value, _scaled(self.product(), sign))
        self.depth -= 1
        return value

    def product(self) -> Terms:
        sign = 1
        while self.peek().text in ("+", "-"):
            sign = -sign if self.take().text == "-" else sign
        start = self.at
        value = self.power()
        divided_at = None
        while True:
            token = self.peek()
            if token.text in ("*", "/"):
                self.take()
                factor_sign = 1
                if self.peek().text == "-":
                    self.take()
                    factor_sign = -1
                begin = self.at
                factor = _scaled(self.power(), factor_sign)
                divided_at = begin if token.text == "/" else None
                value = _multiply(value, _power(factor, -1) if divided_at else factor)
            elif token == ("command", "frac") and self._is_literal(start):
                part = self.power()
                if (number := _constant(part)) is not None:  # a mixed number: 3\frac12
                    if not 0 < number < 1:
                        raise Unreadable("a product")
                    value = _add(value, part)
                else:
                    value = _multiply(value, part)
            elif token == ("command", "frac") and self.tokens[self.at - 1].kind == "number":
                raise Unreadable("a product, or a mixed number behind one?")
            elif self._begins_a_factor(token):
                if self._could_be_below(start, divided_at):
                    raise Unreadable("x/2y is read in two ways")
                value = _multiply(value, self.power())
            else:
                return _scaled(value, sign)

    def _is_literal(self, start: int) -> bool:
        """True where the product's one factor so far is a whole number, written out."""
        return self.at == start + 1 and self.tokens[start].text.isdigit()

    def _begins_a_factor(self, token: _Token) -> bool:
        """True where what comes is a factor without a sign before it: `n 2^n`, but not `x2`."""
        if token.kind == "number":
            next_but_one = self.tokens[self.at + 1 : self.at + 2]
            is_power = bool(next_but_one) and next_but_one[0].text == "^"
            return is_power and self.tokens[self.at - 1].kind != "number"
        return token.kind in ("letter", "function", "command") or token.text in ("(", "{", "[")

    def _could_be_below(self, start: int, divided_at: int | None) -> bool:
        """True where what comes next may belong to the divisor; but `(a)/(b)x` and `1/2x` say."""
        if divided_at is None or self.tokens[divided_at].text == "(":
            return False
        plain = [token.text.isdigit() for token in self.tokens[start : self.at]]
        return plain != [True, False, True]

    def power(self) -> Terms:
        token = self.peek()
        base = self.factor()
        if self.peek().text == "!":
            self.take()
            base = _factorial(base)
            if self.peek().text == "!":
                raise Unreadable("a double factorial")
        if self.peek().text != "^":
            return base
        if token.kind == "function" or (
            token.kind == "letter" and re.match("[A-Z]{2}", token.text)
        ):
            raise Unreadable("a power of an argument or of the whole?")
        self.take()
        result = self.raised(base, self.exponent())
        if self.peek().text == "^":
            raise Unreadable("a tower")
        return result

    def exponent(self) -> Terms:
        token = self.peek()
        if token.text == "-":
            self.take()
            return _scaled(self.exponent(), -1)
        if token.text in ("{", "(") or token.kind in ("number", "letter"):
            return self.factor()
        raise Unreadable("an exponent")

    def raised(self, base: Terms, exponent: Terms) -> Terms:
        if (number := _constant(exponent)) is not None:
            return _power(base, number)
        sign = -1 if exponent[min(exponent)] < 0 else 1  # e^{-x} is 1/e^x
        return _atom(f"({text_of(base)})^({text_of(_scaled(exponent, sign))})", sign)

    def factor(self) -> Terms:
        token = self.take()
        if token.kind == "number":
            return _number(_decimal(token.text))
        if token.kind == "letter":
            if self.peek().text != "(":
                return _atom(token.text)
            if _OF_ARGUMENTS.match(token.text):
                self.take()
                return _atom(f"{token.text}({text_of(self._until(')'))})")
            if self.tokens[self.at + 1].kind == "number" and self.tokens[self.at + 2].text == ")":
                raise Unreadable("a product or y at 0?")
            return _atom(token.text)
        if token.kind == "function":
            return self.function(token.text)
        if token.kind == "command":
            return self.command(token.text)
        if token.text in ("(", "{", "["):
            return self._until({"(": ")", "{": "}", "[": "]"}[token.text])
        if token.text == "|":
            inside = self._until("|")
            if (number := _constant(inside)) is not None:
                return _number(abs(number))
            return _atom(f"|{text_of(inside)}|")
        raise Unreadable(token.text)

    def command(self, name: str) -> Terms:
        if name == "frac":
            above, below = self.argument(), self.argument()
            return _multiply(above, _power(below, -1))
        if name == "binom":
            above, below = self.argument(), self.argument()
            n, k = _constant(above), _constant(below)
            if n is not None and k is not None and n.denominator == k.denominator == 1:
                if not 0 <= k <= n <= 1000:
                    raise Unreadable("too large a number")
                return _number(_checked(math.comb(int(n), int(k))))
            return _atom(f"binom({text_of(above)}, {text_of(below)})")
        degree: Rational | None = 2
        if self.peek().text == "[":
            self.take()
            degree = _constant(self._until("]"))
        if degree is None or degree.denominator != 1 or not 2 <= degree <= 12:
            raise Unreadable("a root of another kind")
        return _power(self.argument(), Fraction(1, int(degree)))

    def function(self, name: str) -> Terms:
        """A function of parentheses, or of letters, numbers and fractions up to what ends them."""
        exponent: Rational = 1
        if self.peek().text == "^":
            self.take()
            found = _constant(self.exponent())
            if found == -1 and name in ("sin", "cos", "tan"):
                name = "arc" + name
            elif found is not None and found >= 1:
                exponent = found
            else:
                raise Unreadable("an inverse or a power?")
        if self.peek().text in ("(", "{"):
            argument = self.factor()
            if self.peek().text == "^":
                raise Unreadable("a power of the argument or of the whole?")
        else:
            argument = self._bare_argument()
        return _atom(f"{name}({text_of(argument)})", exponent)

    def _bare_argument(self) -> Terms:
        """`\\sin 2x`, `\\ln 3`, `\\cos\\frac\\pi4`: no more and no less can be the argument."""
        if self.peek().kind == "command":
            argument = self.factor()
        else:
            argument = _number(1)
            start = self.at
            if self.peek().kind == "number":
                argument = self.factor()
            while self.peek().kind == "letter" and self.peek().text not in ("e", "i"):
                argument = _multiply(argument, self.factor())
            if start == self.at:
                raise Unreadable("where does the argument begin?")
        after = self.peek()
        if after.kind in ("number", "letter", "command") or after.text in tuple("({[/!*^"):
            raise Unreadable("where does the argument end?")
        return argument

    def argument(self) -> Terms:
        r"""An argument of a command: a group, or a single digit or letter (\frac43)."""
        token = self.peek()
        if token.text in ("{", "(") or token.kind == "letter":
            return self.factor()
        if token.kind == "number" and token.text.isdigit():
            if len(token.text) > 1 and self.tokens[self.at - 1].text == "sqrt":
                raise Unreadable("a root of one digit, or of all?")
            if len(token.text) > 1:
                self.tokens[self.at] = _Token("number", token.text[1:])
                return _number(int(token.text[0]))
            return self.factor()
        raise Unreadable("an argument")

    def _until(self, end: str) -> Terms:
        value = self.sum()
        if self.take().text != end:
            raise Unreadable("unbalanced")
        return value


def _decimal(text: str) -> Rational:
    if text.isdigit() and len(text) <= 400:
        return int(text)
    if len(text) > 400 or abs(int((re.search(r"[eE]([+-]?\d+)", text) or "00")[1])) > 400:
        raise Unreadable("too long")
    return Fraction(text.rstrip("."))


def _factorial(base: Terms) -> Terms:
    value = _constant(base)
    if value is not None and value.denominator == 1 and 0 <= value <= 1000:
        return _number(_checked(math.factorial(int(value))))
    return _atom(f"({text_of(base)})!")
