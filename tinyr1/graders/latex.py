r"""The LaTeX of answers in one spelling: `\dfrac` and `\frac`, `\cdot` and `*`, `∪` and `\cup`.

One table has every sign with all its siblings, as commands and as characters. Escaped braces become
LBRACE and RBRACE, the ends of a matrix's rows NEWROW, infinity INF, `\%` and degrees `\pct` and
`\deg`; a currency's dollar becomes a unit behind its number.
"""

from __future__ import annotations

import re
import unicodedata

from tinyr1.graders.answer import last_box

# A sign as it is compared, and how else it is written.
_SIGNS = (
    r"""
\frac:     \dfrac \tfrac \cfrac \nicefrac \sfrac \xfrac
*:         \cdot \times \ast \cdotp × · ∗ ⋅ ∙ •
/:         \div \slash ÷ ∕ ⁄
-:         \minus − – ‐ ‑ ‒
^:         **
<=:        \le \leq \leqslant \leqq ≤ ⩽ ≦
>=:        \ge \geq \geqslant \geqq ≥ ⩾ ≧
<:         \lt
>:         \gt
\ne:       \neq ≠
≈:         ~= \approx \approxeq
\pm:       ±
\mp:       ∓
\cup:      ∪ ⋃
\cap:      ∩ ⋂
\in:       ∈ \isin
\emptyset: \varnothing ∅ Ø ø
INF:       \infty \infin ∞
\pct:      \% % ％
\deg:      \degree \textdegree ° º ˚
\angle:    ∠
\triangle: △ ∆
|:         \vert \lvert \rvert \mid ∣
\|:        \Vert \lVert \rVert ∥ ‖
\mathbb{R}: \R \Reals ℝ
\mathbb{Z}: ℤ
\mathbb{N}: ℕ
\mathbb{Q}: ℚ
\mathbb{C}: ℂ
\epsilon:  \varepsilon
\phi:      \varphi
\theta:    \vartheta
LBRACE:    \{ \lbrace
RBRACE:    \} \rbrace
[:         \lbrack
]:         \rbrack
\arcsin:   \asin
\arccos:   \acos
\arctan:   \atan \arctg
\tan:      \tg
\cot:      \ctg
\ln:       \Ln
\text:     \textrm \textnormal \textup \textmd \mbox \hbox \mathrm \mathup \operatorname
"""
    + "\n,: 、"
)
_BLANKS = (
    r"\  \, \: \; \> \/ \quad \qquad \enspace \thinspace \medspace \thickspace \space "
    r"\nobreakspace \nobreak \hfill \noindent \newline \\ ~"
).replace(r"\  ", "")
_NOTHING = (  # sizes, styles, invisible delimiters
    r"\! \displaystyle \textstyle \scriptstyle \scriptscriptstyle \limits \nolimits \strut "
    r"\mathstrut \bf \it \sf \tt \sl \bfseries \itshape \tiny \scriptsize \footnotesize \small "
    r"\normalsize \large \Large \LARGE \huge \Huge \big \Big \bigg \Bigg \bigl \bigr \bigm \Bigl "
    r"\Bigr \Bigm \biggl \biggr \biggm \Biggl \Biggr \Biggm \( \) \[ \] $"
)
_DRESS = (  # what stands around a part of an answer and changes nothing
    r"bm|boldsymbol|pmb|mathbf|mathit|mathsf|mathtt|mathnormal|textbf|textit|textsf|texttt|textsl|"
    r"textsc|emph|underline|uline|underbar|fbox|framebox|ensuremath|smash|mathord|mathop"
)


def _table() -> dict[str, str]:
    table = {r"\ ": " "} | dict.fromkeys(_BLANKS.split(), " ") | dict.fromkeys(_NOTHING.split(), "")
    for line in filter(None, _SIGNS.split("\n")):
        sign, _, others = line.rpartition(": ")
        sign = sign.strip().removesuffix(":")
        separated = sign
        if sign[-1].isalpha() and sign != r"\text":  # so that it is not read with its neighbours
            separated = f"{sign} " if sign[0] == "\\" else f" {sign} "
        table |= dict.fromkeys(others.split(), separated)
    for code in (*range(0x391, 0x3AA), *range(0x3B1, 0x3CA)):
        if name := unicodedata.name(chr(code), ""):
            letter = name.split()[-1].replace("LAMDA", "LAMBDA").lower()
            table[chr(code)] = f"\\{letter.title() if 'CAPITAL' in name else letter} "
    return table


_SAME = _table()
_TOKEN = re.compile(r"\\(?:[A-Za-z]+|.|$)|\*\*|~=|[~$%]|[^\x00-\x7f]", re.DOTALL)
_SUPERSCRIPTS = "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ"
_SUBSCRIPTS = "₀₁₂₃₄₅₆₇₈₉"
_ROOTS = {"√": r"\sqrt", "∛": r"\sqrt[3]", "∜": r"\sqrt[4]"}

TEXT = re.compile(r"\\text\s*\{([^{}]*)\}")
_OPENED_TEXT = re.compile(r"\{\s*\\(?:rm|text)\s+([^{}\\]*)\}|\\rm\s*\{([^{}]*)\}")
_DRESSED = re.compile(rf"\\(?:{_DRESS})\s*(?:\{{([^{{}}]*)\}}|([A-Za-z0-9])(?![A-Za-z]))")
_DRESS_OF_MORE = re.compile(rf"\\(?:{_DRESS})\s*(?=\{{)")  # of what has braces in it
_CONTEXTS = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r",\\! *", ","),
        (r"\\(?:color|textcolor|colorbox)\s*\{[^{}]*\}|\\[hv](?:space|skip)\*?\s*\{[^{}]*\}", ""),
        (r"\\(?:left|right|middle)(?![A-Za-z])\s*\.?", ""),
    )
)
_AFTER = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\\text\s*\{\s*\([A-E]\)\s*\}(?=\s*[^\s}.])(?!\s*\\text)", ""),  # a choice's letter
        (r"\^\s*(?:\{\s*\\circ\s*\}|\\circ(?![A-Za-z]))", r"\\deg "),
        (r"\\sqrt\s*\(([^()]*)\)", r"\\sqrt{\1}"),
        (
            r"\\\$\s*(-?[\d.,]*\d)(?=\s*(?:[.}]?$|,|\\text\s*\{\s*(?:and|or)\b))",
            r"\1\\text{ dollar}",
        ),
        (r"\\\$", ""),
    )
)
_MORNING = re.compile(r"\b([ap])\.\s?m\.?(?![a-z])")
_PLUS_INFINITY = re.compile(r"(^|[(\[,])\s*\+\s*INF")


def normalise(text: str) -> str:
    """An answer without what changes nothing, every sign in one spelling."""
    if r"\boxed" in text or r"\fbox" in text:
        text = last_box(text) or ""
    if not text.isascii():
        text = _ascii(text)
    text = text.replace("{,}", ",")
    if "\\" in text:
        for pattern, replacement in _CONTEXTS:
            text = pattern.sub(replacement, text)
        if r"\begin" in text:
            text = re.sub(r"\\\\(?:\s*\[[^\]]*\])?", " NEWROW ", text)
    text = _TOKEN.sub(lambda token: _SAME.get(token[0], token[0].rstrip("\\") or " "), text)
    if "\\" in text:
        text = _OPENED_TEXT.sub(lambda m: rf"\text{{{m[1] or m[2] or ''}}}", text)
        while (bare := _DRESSED.sub(_undressed, text)) != text:
            text = bare
        text = _DRESS_OF_MORE.sub("", text)
        for pattern, replacement in _AFTER:
            text = pattern.sub(replacement, text)
    if "INF" in text:
        text = _PLUS_INFINITY.sub(r"\1INF", text)
    if ".m" in text or ". m" in text:
        text = _MORNING.sub(r"\1m", text)
    text = " ".join(text.split())
    while (start := _wrapped(text)) is not None:
        text = text[start + 1 : -1].strip()
    return text.rstrip(".") if not text.endswith("..") else text


def _wrapped(text: str) -> int | None:
    r"""Where the brace opens that holds all of `text`, as `{...}` or as `\text{\frac...}` do."""
    start = len(text) - len(text.removeprefix(r"\text").lstrip())
    if not text.startswith("{", start) or closing(text, start) != len(text) - 1:
        return None
    return start


def _undressed(match: re.Match[str]) -> str:
    """What a wrapper holds: words stay marked as words, all else stands as it is."""
    content = match[1] if match[1] is not None else match[2]
    words = re.fullmatch(r"[A-Za-z .()'-]*[A-Za-z]{2}[A-Za-z .()'-]*|\s*\([A-E]\)\s*", content)
    return rf"\text{{{content}}}" if words else f" {content} "


def _ascii(text: str) -> str:
    """Characters that stand for several: ¾, x², a₁, √2, full-width letters and digits."""

    def fraction(match: re.Match[str]) -> str:
        above, below = unicodedata.normalize("NFKC", match[0]).split("⁄")
        return rf"\frac{{{above}}}{{{below}}}"

    text = re.sub(r"[¼-¾⅐-⅞]", fraction, text)
    text = text.replace("º", "°").replace("˚", "°").replace("ø", r"\emptyset ").replace("−", "-")
    for script, mark in ((_SUPERSCRIPTS, "^"), (_SUBSCRIPTS, "_")):
        text = re.sub(
            f"[{script}]+",
            lambda m, mark=mark: f"{mark}{{{unicodedata.normalize('NFKC', m[0])}}}",
            text,
        )
    text = re.sub(
        r"([√∛∜])\s*(?:(\d+(?:\.\d+)?|[A-Za-zα-ω]|\\[a-z]+)|(?=[({]))",
        lambda m: _ROOTS[m[1]] + (f"{{{m[2]}}}" if m[2] else ""),
        text,
    )
    kept = "".join(c if c in _SAME else unicodedata.normalize("NFKC", c) for c in text)
    return kept.replace("−", "-")  # which NFKC makes of a superscript minus


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
