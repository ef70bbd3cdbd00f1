r"""Left sides of equations that only name the right: `x`, `m + n`, `\text{Area}`, `f(2)`.

An answer `x = 5` is 5; `2x = 5`, `\sin x = 5` and `|x| = 5` are equations that are still to be
solved. Of what has a capital letter, as in `\sin A` and `|S|`, and of norms it is the value that is
asked for. What is not known here is no name.
"""

from __future__ import annotations

import re

_GREEK = (
    r"[Aa]lpha|[Bb]eta|[Gg]amma|[Dd]elta|(?:var)?epsilon|zeta|eta|(?:var)?[Tt]heta|iota|kappa|"
    r"[Ll]ambda|mu|nu|[Xx]i|Pi|(?:var)?rho|[Ss]igma|tau|[Uu]psilon|(?:var)?[Pp]hi|chi|[Pp]si|"
    r"[Oo]mega|ell"
)
_TERM = re.compile(
    rf"""
    \s* [+*-]? \s*
    (?: (?P<word> [A-Za-zΑ-Ωα-ω]+ )
      | \\angle \s* \{{[A-Z]+\}}  |  \[[A-Z]{{3,}}\]
      | \\(?:{_GREEK}|(?:measured)?angle|triangle|Pr|gcd|lcm|lim|det|dim|min|max)(?![A-Za-z])
      | \\(?:overline|overrightarrow|vec|(?:wide)?hat|bar|tilde|mathbb|mathcal)
        \s* (?: \{{[^{{}}]*\}} | [A-Za-z] )
      | \\(?:sin|cos|tan|cot|sec|csc) \s* (?: [A-Z](?![a-z]) | \\angle\s*[A-Z]+ | \([A-Z]\) )
      | (?:\||\\l?vert) \s* [A-Z]+ (?:\s*\\c[au]p\s*[A-Z]+)* \s* (?:\||\\r?vert)
      | (?:\\\||\\l?Vert) [^|^*/]* (?:\\\||\\r?Vert)
    )
    (?: _(?:\w|\{{[^{{}}]*\}}) )?  '*  (?: \^\s*\{{-1\}}(?=\() )? \s*
    (?P<arguments> \((?:[^()]|\([^()]*\))*\) | (?<=[A-Z}}]) \[[^][]*\] )? \s*
    """,
    re.VERBOSE,
)
_NO_NAME = re.compile(
    "((arc)?(sin|cos|tan|cot|sec|csc)h?|ln|log|lg|exp|abs|sqrt)[xyzα-ω]?|"
    "(co)?(sine|tangent|secant)|logarithm|factorial|root|squared?|cubed?|floor|ceil(ing)?|round|"
    "twice|thrice|half|double|triple|third|quarter|percent|per|over|times|plus|minus|mod(ulo)?|not|"
    "negative|inverse|reciprocal|opposite|more|less|fewer|than|increased|decreased"
)
_PLAIN = re.compile(r"\(\s*(?:[A-Za-z]|\d+)(?:\s*,\s*(?:[A-Za-z]|\d+))*\s*\)")  # y(2), d(A, B)
_OF_ARGUMENTS = re.compile(  # f(2), but x(x + 1) is a product
    "[fghpqrα-ω]|[A-ZΑ-Ω].*|gcd|lcm|area|perimeter|volume|vol|length|dist|prob|var|cov|det|rank|dim|"
    "tr|deg|max|min|ord|card"
)


def is_name(left: str) -> bool:
    """True where `left` (without wrappers) is a name, or a sum of some, without coefficients."""
    left = left.strip()
    at = 0
    if re.fullmatch(r"\([^()]*,[^()]*\)", left):  # (x, y), but (y, x) turns what follows round
        names = [name.strip() for name in left[1:-1].split(",")]
        return all(map(is_name, names)) and names == sorted(names)
    while at < len(left):
        term = _TERM.match(left, at)
        if term is None or _NO_NAME.fullmatch((term["word"] or "").lower()):
            return False
        if term["arguments"] and _is_product(term):
            return False
        at = term.end()
    return left != "" and left[0] not in "+*-"


def _is_product(term: re.Match[str]) -> bool:
    """True for a term that is a product with the parentheses behind it, as N(N + 1) is."""
    word, arguments = term["word"], term["arguments"]
    name = re.escape(term[0].partition(arguments[0])[0].strip(" +*-"))
    if re.search(rf"(?<![A-Za-z\\]){name}(?![A-Za-z])", arguments):
        return True
    of_plain = word and len(word) == 1 and _PLAIN.fullmatch(arguments)
    return bool(word) and not of_plain and not _OF_ARGUMENTS.fullmatch(word)
