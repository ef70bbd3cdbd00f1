r"""The LaTeX of answers in one spelling: `\dfrac` and `\frac`, `\cdot` and `*`, `\le` and `<=`.

Escaped braces become LBRACE and RBRACE, the ends of a matrix's rows NEWROW, infinity INF, `\%` and
degrees `\pct` and `\deg`; a currency's dollar becomes a unit behind its number.
"""

from __future__ import annotations

import re

from tinyr1.graders.answer import last_box

# What may stand around a part of an answer and changes nothing.
TEXT = re.compile(
    r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mathit|mathsf|boldsymbol|mbox|rm|operatorname\*?)\s*"
    r"\{([^{}]*)\}"
)
_CHARACTERS = str.maketrans("−–∞π×·≤≥°，；", "--∞π×·≤≥°,;")
_SPELLINGS = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\\(?:color|textcolor)\s*\{[^{}]*\}", ""),
        (r"\\(?:(?:left|right)(?![A-Za-z])\s*\.?|[bB]igg?[lrm]?(?![A-Za-z]))", ""),
        (r"\\\{", "LBRACE "),
        (r"\\\}", "RBRACE "),
        (r"\{,\}|,\\! *", ","),
        (r"\\(?:displaystyle|limits)(?![A-Za-z])|\\!", ""),
        (r"\\(?:quad|qquad)(?![A-Za-z])|\\[,;: ]|(?<!\\)~(?!=)|\u00a0", " "),
        (r"~=", "≈"),
        (r"\\(?:bf|it|rm|sf)(?![A-Za-z])(?!\s*\{)", ""),
        (r"\\text(?:bf)?\s*\{\s*\([A-E]\)\s*\}(?=\s*\S)(?!\s*\\text)", ""),  # a choice's letter
        (r"\\[dt]frac", r"\\frac"),
        (r"\\geq?(?![a-z])|≥|\\geqslant", ">="),
        (r"\\leq?(?![a-z])|≤|\\leqslant", "<="),
        (r"\\(?:varnothing|emptyset)|∅", r"\\emptyset"),
        (r"\^\s*\{?\s*\\circ\s*\}?|\\degree|°", r"\\deg "),
        (r"\*\*", "^"),
        (r"\\(?:cdot|times|ast)(?![a-z])|×|·", "*"),
        (r"\\infty|∞", "INF"),
        (r"(^|[(\[,])\s*\+\s*INF", r"\1INF"),
        (r"π", r"\\pi "),
        (r"\\%|%", r"\\pct "),
        (r"\\\$\s*(-?[\d.,]*\d)(?=\s*(?:\.?$|,|\\text\s*\{\s*(?:and|or)\b))", r"\1\\text{ dollar}"),
        (r"\\\$|\$", ""),
        ("²", "^2"),
        ("³", "^3"),
        (r"∈", r"\\in "),
        (r"\b([ap])\.\s?m\.?(?![a-z])", r"\1m"),
        (r"\\[()\[\]]", ""),
        (r"\s+", " "),
    )
)


def normalise(text: str) -> str:
    """An answer without what changes nothing, every sign in one spelling."""
    text = text.translate(_CHARACTERS).strip()
    if r"\boxed" in text:
        text = last_box(text) or ""
    if r"\begin" in text:
        text = re.sub(r"\\\\(?:\s*\[[^\]]*\])?", " NEWROW ", text)
    for pattern, replacement in _SPELLINGS:
        text = pattern.sub(replacement, text)
    text = text.strip()
    while text.startswith("{") and closing(text, 0) == len(text) - 1:
        text = text[1:-1].strip()
    return text.rstrip(".") if not text.endswith("..") else text


def closing(text: str, start: int) -> int:
    """Index of the bracket that closes the one at `start`, or -1; any kind closes any: [0, 1)."""
    depth = 0
    for i in range(start, len(text)):
        depth += (text[i] in "([{") - (text[i] in ")]}")
        if depth == 0:
            return i
    return -1


def nesting(text: str) -> int:
    """Depth to which brackets of any kind are nested."""
    depth = deepest = 0
    for bracket in re.findall(r"[LR]BRACE|[()\[\]{}]", text):
        depth += 1 if bracket in ("LBRACE", "(", "[", "{") else -1
        deepest = max(deepest, depth)
    return deepest
