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

from tinyr1.graders.answer import last_box, last_tagged

_WRAPPER = re.compile(
    r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mathit|mathsf|boldsymbol|underline|bf|rm|"
    r"textsf|texttt|mathcal|bm|displaystyle|large|Large|LARGE|huge)\b\s*"
)
_WRAPPED = re.compile(rf"{_WRAPPER.pattern}\{{([^{{}}\n]*)\}}")
_NOISE = re.compile(r"\\[,;:! ]|[\s${}*_`\"'~“”]|\\[()\[\]]")
_OPENING = r"[\s(\[{*_$\\\"'`“•-]*\(?"
# What may not follow a letter that stands for an option: B12, D-glucose, C_{3h}, C=O, A > B.
_END = (
    r"(?![A-Za-z0-9'’^+#=(₀-₉]|_[A-Za-z0-9{]|[-–][A-Za-z0-9]| ?[=<>→×|]| ?\\(?!text|mathrm)[a-z]|"
    r" (?:is|was|fails|cannot be|can't be|isn't|est|ist|es) (?:\w+ )?"
    r"(?:wrong|incorrect|not|false|excluded|eliminated|out|fausse|falsch|incorrecta)\b|"
    r" (?:isn't|can't|cannot|fails)\b)"
)
_LETTER = rf"{_OPENING}(?P<letter>[A-Z]|(?<=\()[a-z](?=\))){_END}"
_ADVERB = (
    r"(?:,? (?:therefore|thus|then|hence|clearly|(?:most )?likely|probably|definitely|indeed|simply|"
    r"still|in fact),?)?"
)
# The answer [that best fits the data] is (C); with words between it must be a verb.
_STATEMENT = re.compile(
    r"(?:answer|choice|option)"
    r"(?:\W{0,4}(?:(?:is|(?P<weak>would be)|must be|should be|has to be)(?P<adverb>)"
    rf"{_ADVERB}:?(?=\W)|[:=]|\s[-–—]\s)|"
    r"(?P<between>(?:,? [\w'’/()-]+){1,10}?),? "
    rf"(?:is|(?P<weaker>would be)|must be|should be|has to be){_ADVERB}:?(?=\W))"
    rf"\s?\**(?:\s?(?:[Oo]ption|[Cc]hoice|[Aa]nswer|[Ll]etter)\b)?{_LETTER}"
)
_CHOSEN = re.compile(
    r"(?:\b(?:I|[Ww]e)(?:['’](?:d|ll|m|re)| will| would| shall| must| have to| am| are)?"
    r"(?: (?:therefore|thus|then|hence|finally))?|\b[Ll]et(?:['’]s| me| us)|\b[Ss]o|\b[Tt]hus|"
    r"\b[Tt]herefore,?|\b[Hh]ence,?)"
    r" (?:go(?:ing)? (?:with|for)|choos(?:e|ing)|pick(?:ing)?|select(?:ing)?|opt(?:ing)? for|"
    r"settl(?:e|ing) (?:on|for)|conclude(?: that it is| with)?|answer(?:ing)?(?: with)?|say|"
    r"vote for)"
    rf"(?: (?:the )?(?:answer|option|choice|letter))?:?{_LETTER}|"
    r"\b(?:[Mm]y (?:final )?(?:pick|guess|vote) (?:is|would be)|"
    r"(?:[Ss]o|[Tt]hus|[Hh]ence|[Tt]herefore),? it(?:['’]s| is| must be))"
    rf"(?: (?:option|choice|answer))?{_LETTER.replace('P<letter>', 'P<picked>')}"
)
_POINTED = re.compile(
    r"(?:match(?:es|ing)?|corresponds? to|corresponding to|consistent with|agrees? with|points? to|"
    r"leaves?(?: us with)?|leaving)(?: only)?(?: the)? (?:option|choice|answer)"
    rf"{_LETTER}"
)
_REVERSED = re.compile(
    r"(?:(?:^|[.:;!\n>])\s{0,3}(?:[-*•] )?|\b(?:[Ss]o|[Tt]hus|[Hh]ence|[Tt]herefore),? (?:only )?)"
    r"(?:(?:[Tt]he )?(?:[Oo]ption|[Cc]hoice|[Aa]nswer|[Ss]tatement) )?"
    r"[(*_$“\"]*(?P<letter>[A-Z])[)*_.”\"$]{0,4} "
    rf"(?:is|must be|has to be){_ADVERB} "
    r"(?:(?:correct|right)\b(?! (?:if|about|that|in|when|but|only|for)\b)|"
    r"the (?:only |single |one )?(?:correct |right |best |true )?"
    r"(?:answer|choice|option|one(?= (?:that|which)\b|[.,!]|$))\b|the correct one\b)"
)
# The same in other languages: a noun and a verb (or a colon), a verb of choosing, a reverse.
_FOREIGN = re.compile(
    r"(?:(?:r[ée]ponses?|antwort|lösung|respuesta|risposta|resposta|опция|ответ|opción|opzione|"
    r"opção|choix)"
    r"(?:[ -](?:correcte|correcta|corretta|correta|exacte|finale|final|richtige|juste|bonne|certa|"
    r"adéquate|esatta|donc|est donc))*\s?"
    r"(?:(?:est|ist|lautet|es|è|é|sera|serait|será)(?: (?:donc|also|daher|pues|quindi|portanto))?|"
    r"[:—–-])\s?(?:(?:l['’]|la |le |die |der |il |a |o )?"
    r"(?:option|opción|opzione|opção|lettre|réponse|antwort|letra|lettera|choix) )?|"
    r"\b(?:je (?:choisis|retiens|sélectionne|prends|dirais|réponds|coche)|ich (?:wähle|nehme)|"
    r"elijo|escojo|selecciono|scelgo|escolho) "
    r"(?:(?:l['’]|la |le |die |il |a |o )?(?:option|réponse|opción|opzione|opção|antwort) )?)"
    rf"{_LETTER}",
    re.IGNORECASE,
)
_FOREIGN_REVERSED = re.compile(
    r"(?:\b(?:l['’]option|(?:la )?r[ée]ponse|le choix|option|antwort|la opción|opción|l['’]opzione|"
    r"a opção|opção) )[(*_$“\"]*(?P<letter>[A-Z])[)*_.”\"$]{0,4} (?:est|ist|es|è|é) "
    r"(?:la |le |l['’]|die |der |il |a |o )?(?:bonne|correcte?|exacte|juste|richtige?|korrekte?|correcta|"
    r"corretta|correta|certa|giusta)\b",
    re.IGNORECASE,
)
_HAN_OPENING = r"\s*[(\[*_$“\"「《【]*"
_HAN = re.compile(
    r"(?:(?:答案|正解|答え|正确选项|正确答案|正确的选项|正确的是|最佳选项|정답|답)\s*"
    r"(?:应该|应当|应|應該|應|就|只能)?\s*(?:是|为|為|选择|选|選擇|選|は|은|는|이)?|"
    r"(?<![不別别])(?:应该选|应当选|應該選|应选|應選|故选|故選|所以选|所以選|因此选|因此選|我选|我選|选择|選擇|"
    r"(?:[,。、:\s]|^)[选選]))"
    rf"\s*:?\s*(?:选项|選項|选)?{_HAN_OPENING}(?P<letter>[A-Z])(?![A-Za-z0-9=+]|[)*_\s]*(?:是|项)?(?:错|不|誤|误))"
)
_HAN_REVERSED = re.compile(
    r"(?:选项|選項|^|[,。、:\s]|因此|所以|故|只有)[(\[*_$“\"「]*(?P<letter>[A-Z])[)\]*_$”\"」]*\s*"
    r"(?:选项|選項|项|項)?\s*(?:是|为|為|才是)?\s*(?:正确|正確|对的|對的)"
)
_OTHER = re.compile(  # `C or D`, `C, D`; but `C, D is too large` and `C and D is wrong` name one
    r"[)}\]* _$]*\(?(?:(?P<semi>; ?(?:and )?)|(?P<clause>, ?(?:and )?|and )|"
    r"(?:,? ?(?:or|as well as|through|plus|to|ou|oder|und|et|y|e|o)\b|[/&+、或和与及])) ?"
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
# Between a subject and its verb: then it is another answer, or none.
_NOT_IT = re.compile(
    r"\b(?:not|never|no|neither|nor|wrong|incorrect|false|worst|least|unlikely|eliminat\w*|exclud\w*|"
    r"reject\w*|discard\w*|tempting|trap|initial\w*|first|if|whether|unless|except|I thought|"
    r"seems?|looks?|appears?|might|may|could|cannot|says?|said|is|are|was|were)\b|n['’]t\b"
)
_BEGUN = re.compile(
    r"[\s*_$(]*(?P<letter>[A-Z])(?:[)*_$]*[).:]+|[)*_$]*\s[-–—])[\s*]+"
    r"(?!(?:is|was|has|does|would|cannot|can)\b)"
)
_NAMED = re.compile(  # a line that is no more than an option's name
    r"\W*(?i:(?:so|thus|hence|therefore|finally|final|result|conclusion)\b\W{0,4})?"
    r"(?i:the )?(?i:(?:final |correct )?(?:option|choice|answer|letter)\W{0,4})?(?P<letter>[A-Z])\W*"
)
_SUBJECT = re.compile(r"answer|choice|option", re.IGNORECASE)
WINDOW = 160  # characters in which a statement must be complete
TAIL = 100_000  # characters, from the end, that are searched for statements


class _Said(NamedTuple):
    """A statement: where, which letter ("" where it names two), and whether it is only "would be"."""

    at: int
    letter: str
    weak: bool = False


def choice_letter(text: str, letters: str = "ABCD") -> str | None:
    """The letter that `text` (without its thinking) answers; None where there is none."""
    for held in (last_box(text), last_tagged(text, "answer")):
        if held is not None and len(held) <= WINDOW * 10:
            held = unicodedata.normalize("NFKC", held)
            letter = _letter_of(held, letters)
            named = set(re.findall(rf"(?<![A-Za-z\\])[{letters}](?![A-Za-z])", held))
            if letter or len(named) > 1:
                return letter
    text = _plain(text[-TAIL:])
    said = sorted([*_stated(text, letters), *_chosen(text, letters)])
    for strength in (False, True):  # what "would be" counts only where nothing else is said to be
        if of_it := [s.letter for s in said if s.weak is strength]:
            return of_it[-1] or None
    reversed_forms = (_REVERSED, _FOREIGN_REVERSED, _HAN_REVERSED, _POINTED)
    if named := {m["letter"].upper() for form in reversed_forms for m in form.finditer(text)}:
        named &= set(letters)
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
    heads = [match["letter"] if (match := _BEGUN.match(line)) else "" for line in lines]
    if heads.count("") == len(lines) - 1:
        lines[-1] = heads[-1] or lines[-1]
    elif not any(heads) and (named := _NAMED.fullmatch(lines[-1])):
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


def _stated(text: str, letters: str) -> Iterator[_Said]:
    """English statements with a subject: "the answer is C"."""
    for subject in _SUBJECT.finditer(text):
        window = subject[0].lower() + text[subject.end() : subject.end() + WINDOW]
        match = _STATEMENT.match(window)
        if match is None or (letter := match["letter"].upper()) not in letters:
            continue
        rest = window[match.end() :]
        before = text[max(0, subject.start() - 30) : subject.start()]
        if not _NO_NOUN.match(rest) or _NOT_THIS.search(before):
            continue
        if match["between"] and _NOT_IT.search(match["between"]):
            continue
        weak = bool(match["weak"] or match["weaker"])
        yield _Said(subject.start(), _unless_two(letter, rest, letters), weak)


def _chosen(text: str, letters: str) -> Iterator[_Said]:
    """Choices without a subject ("I'd go with C"), and statements in other languages."""
    for form in (_CHOSEN, _FOREIGN, _HAN):
        for match in form.finditer(text):
            letter = match["letter"] or match.groupdict().get("picked") or ""
            rest = text[match.end() : match.end() + WINDOW]
            before = text[max(0, match.start() - 30) : match.start()]
            if letter not in letters or not letter or _NOT_THIS.search(before):
                continue
            # "A" is an article, too; in the other languages it is written small.
            if form is _CHOSEN and re.match(r" (?:as|to be) ", rest):  # B as the origin
                continue
            if (form is _CHOSEN or letter == "A") and not _NO_NOUN.match(rest) and form is not _HAN:
                continue
            yield _Said(match.start(), _unless_two(letter, rest, letters))


def _unless_two(letter: str, rest: str, letters: str) -> str:
    other = _OTHER.match(rest)
    return "" if other and other["letter"] in letters and other["letter"] != letter else letter
