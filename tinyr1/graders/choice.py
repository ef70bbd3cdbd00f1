"""Multiple choice (GPQA-Diamond): which letter an answer settles on.

In this order: the last box that holds a letter; the last stated form ("Answer: C", "the correct
choice is (C)"); its reverse ("(C) is the correct answer", of one letter only); a last line that
begins with a letter and a mark, or a line that is nothing but a letter. Two different letters in
one place are no answer, and neither the article "A" nor a formula is a letter: only what is marked
as one counts.
"""

from __future__ import annotations

import re

from tinyr1.graders.answer import last_box

_WRAPPER = re.compile(
    r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mathit|mathsf|boldsymbol|underline|bf|rm|"
    r"textsf|texttt|mathcal|bm|displaystyle|large|Large|LARGE|huge)\b\s*"
)
_NOISE = re.compile(r"\\[,;:! ]|[\s${}*_`\"'~“”]|\\[()\[\]]")
_OPENING = (
    r"[\s(\[{*_$\\\"'`“•-]*(?:\\?(?:text|textbf|mathrm|mathbf|mathsf|underline|boxed)\s?\{\s?)*\(?"
)
# What may not follow a letter that stands for an option: B12, D-glucose, C_{3h}, C=O, A > B.
_END = (
    r"(?![A-Za-z0-9'’^+#=(₀-₉]|_[A-Za-z0-9{]|[-–][A-Za-z0-9]| ?[=<>→×|]| ?\\(?!text|mathrm)[a-z]|"
    r" is (?:wrong|incorrect|not)\b)"
)
_STATEMENT = re.compile(
    r"(?:answer|choice|option)\W{0,4}"
    r"(?:(?:is|(?P<weak>would be)|must be|should be)(?: (?:therefore|thus|clearly|(?:most )?likely|"
    r"probably|definitely|indeed))?:?(?=\W)|[:=]|\s[-–—]\s)"
    rf"\s?\**(?:\s?(?:[Oo]ption|[Cc]hoice)\b)?{_OPENING}(?P<letter>[A-Z]|(?<=\()[a-z](?=\))){_END}"
)
_REVERSED = re.compile(
    r"(?:(?:^|[.:;!\n>])\s{0,3}(?:[-*•] )?|\b(?:[Ss]o|[Tt]hus|[Hh]ence|[Tt]herefore),? (?:only )?)"
    r"(?:(?:[Oo]ption|[Cc]hoice|[Aa]nswer) )?[(*_$“\"]*(?P<letter>[A-Z])[)*_.”\"]{0,4} is "
    r"(?:correct\b|the (?:correct |right |best )?(?:answer|choice|option)\b)"
)
_OTHER = re.compile(  # `C or D`, `C, D`; but `C, D is too large` and `C and D is wrong` name one
    r"[)}\]* _$]*\(?(?:(?P<semi>; ?(?:and )?)|(?P<clause>, ?(?:and )?|and )|"
    r"(?:,? ?(?:or|as well as|through|plus|to)\b|[/&+])) ?"
    r"(?:(?:and|maybe|perhaps|possibly|also|option|choice) ?)*[(*_$]*(?P<letter>[A-Z])\b"
    r"(?(clause)(?!\)? (?:is|was|has|does|would|will|gives|fails|violates|contradicts|cannot)\b))"
    r"(?(semi)(?=[)*_$ ]*(?:[.\n]|$)))"
)
# After "the answer is A": whether that is a letter, or the beginning of what is named.
_NO_NOUN = re.compile(
    r"[^ A-Za-z]| *$| [^\w]| (?:above|after|again|all|also|alone|among|and|as|at|based|because|"
    r"below|but|by|corresponding|due|exactly|for|from|given|has|here|however|if|in|indeed|instead|"
    r"into|is|it|not|of|on|only|or|over|plus|rather|since|so|still|that|then|there|therefore|this|"
    r"though|through|thus|to|too|under|unless|via|we|when|where|whereas|which|while|with|would|"
    r"according|although|despite|namely|provided|using|following|having|I|The|the)\b"
)
_NOT_THIS = re.compile(  # an answer, but not the one that is given
    r"(?:(?:incorrect|wrong)(?: answer)?|trap|tempting|distractor|worst|(?<!most )likely|initial|"
    r"second[- ]best|common|naive|intuitive|obvious|eliminated?|excluded?|discard(?:ed)?|reject|"
    r"rule out|"
    r"(?:(?<!\bI )(?:think|guess|believe)|thought|(?<!\bI would )(?<!\bI'd )say|if|whether)"
    r"(?: that)?(?: the)?) *$",
    re.IGNORECASE,
)
_BEGUN = re.compile(
    r"[\s*_$(]*(?P<letter>[A-Z])[).:]+[\s*]+(?!(?:is|was|has|does|would|cannot|can)\b)"
)
_SUBJECT = re.compile(r"answer|choice|option", re.IGNORECASE)
WINDOW = 120  # characters in which a statement must be complete


def choice_letter(text: str, letters: str = "ABCD") -> str | None:
    """The letter that `text` (without its thinking) answers; None where there is none."""
    box = last_box(text)
    if box is not None:
        letter = _letter_of(box, letters)
        named = set(re.findall(rf"(?<![A-Za-z\\])[{letters}](?![A-Za-z])", box))
        if letter or len(named) > 1:
            return letter
    stated = _stated(text.replace("：", ":"), letters)
    if stated is not None:
        return stated or None
    if said := set(_REVERSED.findall(text)) & set(letters):
        return said.pop() if len(said) == 1 else None
    lines = [line for line in text.split("\n") if line.strip()]
    heads = [match["letter"] if (match := _BEGUN.match(line)) else "" for line in lines]
    if lines and heads.count("") == len(lines) - 1:
        lines[-1] = heads[-1] or lines[-1]
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
    text = _WRAPPER.sub("", box).translate(str.maketrans("", "", "{}$*")).strip()
    if head := re.match(rf"\(?([{letters}])[).:]+\s+(?!(?:[A-Z]|and|or)\b)[A-Za-z]", text):
        return head[1]  # D) Both A and B
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


def _stated(text: str, letters: str) -> str | None:
    """The letter of the last statement; "" where it names two, None where nothing is stated.

    What "would be" the answer counts only where nothing else is said to be.
    """
    text = re.sub(r"[^\S\n]+", " ", text)
    text = re.sub(r" ?\n[ \n]*", "\n", text)
    last: dict[bool, str] = {}
    for subject in _SUBJECT.finditer(text):
        window = subject[0].lower() + text[subject.end() : subject.end() + WINDOW]
        match = _STATEMENT.match(window)
        if match is None or (letter := match["letter"].upper()) not in letters:
            continue
        rest = window[match.end() :]
        before = text[max(0, subject.start() - 30) : subject.start()]
        if not _NO_NOUN.match(rest) or _NOT_THIS.search(before):
            continue
        other = _OTHER.match(rest)
        two = other and other["letter"] in letters and other["letter"] != letter
        last[match["weak"] is None] = "" if two else letter
    return last.get(True, last.get(False))
