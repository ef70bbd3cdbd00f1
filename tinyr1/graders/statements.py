"""The forms in which an answer to a multiple choice is said, as patterns; choice.py applies them.

Each has a group `letter`. What a language needs more than a line of words for is not here: an
unknown form is no answer.
"""

from __future__ import annotations

import re

_OPENING = r"[\s(\[{*_$\\\"'`“•-]*\(?"
# What may not follow a letter that stands for an option: B12, D-glucose, C_{3h}, C=O, A > B.
_END = (
    r"(?![A-Za-z0-9^+#=(₀-₉]|['’][a-z]|\$?_[A-Za-z0-9{]|[-–:][A-Za-z0-9]| ?[=<>→×|·∪∩≈~]|"
    r" ?\\(?!text|mathrm)[a-z]|[)*_ ]{0,3}\?|"
    r" (?:is|was|fails|cannot be|can't be|isn't|est|ist|es) (?:\w+ )?"
    r"(?:wrong|incorrect|not|false|excluded|eliminated|out|fausse|falsch|incorrecta)\b|"
    r" (?:isn't|can't|cannot|fails)\b)"
)
_LETTER = rf"{_OPENING}(?P<letter>[A-Z]|(?<=\()[a-z](?=\))){_END}"
_ADVERB = (
    r"(?:,? (?:therefore|thus|then|hence|clearly|(?:most )?likely|probably|definitely|indeed|"
    r"simply|still|in fact),?)?"
)
_MUST = rf"(?:must|should|has to|can only){_ADVERB} be"
# The answer [that best fits the data] is (C); with words between it must be a verb.
STATEMENT = re.compile(
    r"(?:answer|choice|option)"
    rf"(?:\W{{0,4}}(?:(?:is|(?P<weak>would be)|{_MUST}){_ADVERB}:?(?=\W)|[:=]|\s[-–—]\s)|"
    rf"(?P<between>(?:,? [\w'’/()-]+){{1,10}}?),? (?:is|(?P<weaker>would be)|{_MUST})"
    rf"{_ADVERB}:?(?=\W))"
    r"\s?\**(?:\s?not \(?[A-Z]\)?,? but\b)?"
    r"(?:\s?(?:the )?(?:[Oo]ption|[Cc]hoice|[Aa]nswer|[Ll]etter)\b)?" + _LETTER
)
# I'd go with C; so we pick (B); my pick is D; thus it must be A.
CHOSEN = re.compile(
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
# This matches option B; which leaves only answer (C).
POINTED = re.compile(
    r"(?:match(?:es|ing)?|corresponds? to|corresponding to|consistent with|agrees? with|points? to|"
    r"leaves?(?: us with)?|leaving|which is|closest to)(?: only)?(?: the)?"
    rf"(?: (?:answer )?(?:option|choice|answer)| (?=\())?{_LETTER}|"
    r"\((?:option|choice|answer) (?P<picked>[A-Z])\)"
)
# (C) is the correct answer; therefore option D must be right.
REVERSED = re.compile(
    r"(?:(?:^|[.:;!\n>])\s{0,3}(?:[-*•] )?|\b(?:[Ss]o|[Tt]hus|[Hh]ence|[Tt]herefore),? )"
    r"[*_]{0,3}(?:[Oo]nly )?(?:(?:[Tt]he )?(?:[Oo]ption|[Cc]hoice|[Aa]nswer) )?"
    r"[(*_$“\"]*(?P<letter>[A-Z])[)*_.”\"$]{0,4} "
    rf"(?:is|must be|has to be){_ADVERB} "
    r"(?:(?:correct|right)\b(?! (?:if|about|that|in|when|but|only|for)\b)|"
    r"the (?:only |single |one )?(?:correct |right |best |true )?"
    r"(?:answer|choice|option)\b|the correct one\b)"
)
# La réponse correcte est (C); Antwort: B; je choisis A: in other languages the same words.
FOREIGN = re.compile(
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
# L'option C est correcte; Option C ist richtig.
FOREIGN_REVERSED = re.compile(
    r"(?:\b(?:l['’]option|(?:la )?r[ée]ponse|le choix|option|antwort|la opción|opción|l['’]opzione|"
    r"a opção|opção) )[(*_$“\"]*(?P<letter>[A-Z])[)*_.”\"$]{0,4} (?:est|ist|es|è|é) "
    r"(?:la |le |l['’]|die |der |il |a |o )?(?:bonne|correcte?|exacte|juste|richtige?|korrekte?|"
    r"correcta|corretta|correta|certa|giusta)\b",
    re.IGNORECASE,
)
_HAN_OPENING = r"\s*[(\[*_$“\"「《【]*"
# 答案：C; 所以正确的选项是 B; 因此选D; 正解はB.
HAN = re.compile(
    r"(?:(?:答案|正解|答え|正确选项|正确答案|正确的选项|正确的是|最佳选项|정답|답)\s*"
    r"(?:应该|应当|应|應該|應|就|只能)?\s*(?:是|为|為|选择|选|選擇|選|は|은|는|이)?|"
    r"(?<![不別别])(?:(?:应该|应当|應該|应|應|故|所以|因此|我)[选選]|选择|選擇|"
    r"(?:[,。、:\s]|^)[选選]))"
    rf"\s*:?\s*(?:选项|選項|选)?{_HAN_OPENING}(?P<letter>[A-Z])"
    r"(?![A-Za-z0-9=+]|[)*_\s]*(?:是|项)?(?:错|不|誤|误))"
)
# 选项C是正确的.
HAN_REVERSED = re.compile(
    r"(?:选项|選項|^|[,。、:\s]|因此|所以|故|只有)[(\[*_$“\"「]*(?P<letter>[A-Z])[)\]*_$”\"」]*\s*"
    r"(?:选项|選項|项|項)?\s*(?:是|为|為|才是)?\s*(?:正确|正確|对的|對的)"
)
OTHER = re.compile(  # `C or D`, `C, D`; but `C, D is too large` and `C and D is wrong` name one
    r"[)}\]* _$]*\(?(?:(?P<semi>; ?(?:and )?)|(?P<clause>, ?(?:and )?|and )|"
    r"(?:,? ?(?:or|as well as|through|plus|to|ou|oder|und|et|y|e|o)\b|[/&+、或和与及])) ?"
    r"(?:(?:and|maybe|perhaps|possibly|also|option|choice) ?)*[(*_$]*(?P<letter>[A-Z])\b"
    r"(?(clause)(?!\)? (?:is|was|has|does|would|will|gives|fails|violates|contradicts|cannot)\b))"
    r"(?(semi)(?=[)*_$ ]*(?:[.\n]|$)))"
)
# After "the answer is A": whether that is a letter, or the beginning of what is named.
NO_NOUN = re.compile(
    r"[^ A-Za-z]| *$| [^\w]| (?:above|after|again|all|also|alone|among|and|as|at|based|because|"
    r"below|but|by|corresponding|due|exactly|for|from|given|has|here|however|if|in|indeed|instead|"
    r"into|is|it|not|of|on|only|or|over|plus|rather|since|so|still|that|then|there|therefore|this|"
    r"though|through|thus|to|too|under|unless|via|we|when|where|whereas|which|while|with|would|"
    r"according|although|despite|namely|provided|using|following|having|I|The|the)\b"
)
NOT_THIS = re.compile(  # an answer, but not the one that is given
    r"(?:(?:incorrect|wrong)(?: answer)?|trap|tempting|distractor|worst|(?<!most )likely|initial|"
    r"second[- ]best|common|naive|intuitive|obvious|eliminated?|excluded?|discard(?:ed)?|reject|"
    r"(?:rule|ruled|ruling) out|each|every|all|any|following|other|another|remaining|next|closest|"
    r"runner[- ]up|least plausible|suppose|when|mauvaise|fausse|falsche|incorrecta|errata|"
    r"неправильный|"
    r"(?:(?<!\bI )(?:think|guess|believe)|thought|(?<!\bI would )(?<!\bI'd )say|if|whether))"
    r"(?: that)?(?: the)?(?: we)?(?: answer)? *$",
    re.IGNORECASE,
)
# Between a subject and its verb: then it is another answer, or none.
NOT_IT = re.compile(
    r"\b(?:not|never|no|neither|nor|wrong|incorrect|false|worst|least|unlikely|eliminat\w*|exclud\w*|"
    r"reject\w*|discard\w*|tempting|trap|initial\w*|first|if|whether|unless|except|I thought|"
    r"seems?|looks?|appears?|might|may|could|cannot|says?|said|is|are|was|were)\b|n['’]t\b"
)
# A counterfactual, or another's answer, within the sentence: then it only "would be" the answer.
NOT_MINE = re.compile(
    r"\b(?:if|were|had|without|classically|naively|naive|suppos\w+|assum\w+|student\w*|proposed|"
    r"key says|suggests?|for m(?:ax|in)ima)\b[^.!?;\n]*$",
    re.IGNORECASE,
)
# What an option that is named by its properties must have, to be the answer.
IS_RIGHT = re.compile(
    r"\b(?:correct|right|best|fits?|match(?:es)?|consistent|satisf\w+|true|works?|holds?|agrees?|"
    r"gives?|only)\b",
    re.IGNORECASE,
)
HAN_NOT_THIS = re.compile(
    r"(?:如果|若|假如|假设|错误|錯誤|常见|常見|很多人|没有|沒有|不是)[^。！!?；;\n]{0,12}$"
)
BEGUN = re.compile(
    r"[\s*_$(]*(?:[Oo]ption |[Cc]hoice )?\(?(?P<letter>[A-Z])"
    r"(?:[)*_$]{0,6}[).:]{1,3}|[)*_$]{0,6}\s[-–—])[\s*]+"
    r"(?!(?:is|was|has|does|would|cannot|can)\b)"
)
NAMED = re.compile(  # a line that is no more than an option's name
    r"\W*(?P<so>(?i:(?:so|thus|hence|therefore|finally|final|result|conclusion)\b\W{0,4}))?"
    r"(?i:the )?(?i:(?:final |correct )?(?:option|choice|answer|letter)\W{0,4})?"
    r"(?P<letter>[A-Z])\W*"
)
