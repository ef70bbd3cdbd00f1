"""Checks of a trajectory: the markers of the published sets, the loops and the leaks.

The thought format itself is in thinking.py, the reasons for which a row is dropped in draft.py.
"""

from __future__ import annotations

import re
import unicodedata
import zlib
from collections import Counter
from collections.abc import Callable, Collection

from tinyr1 import thinking
from tinyr1.common.errors import UserError
from tinyr1.data.draft import REASONS, Draft, Dropped
from tinyr1.graders.answer import last_box, last_fenced_block
from tinyr1.graders.choice import choice_letter
from tinyr1.model.chat import TEMPLATE_TOKENS
from tinyr1.record import LETTERS

BEGIN_THOUGHT, END_THOUGHT = "<|begin_of_thought|>", "<|end_of_thought|>"
BEGIN_SOLUTION, END_SOLUTION = "<|begin_of_solution|>", "<|end_of_solution|>"
MARKERS = (BEGIN_THOUGHT, END_THOUGHT, BEGIN_SOLUTION, END_SOLUTION)
CHAT_TOKENS = tuple(token for tokens in TEMPLATE_TOKENS.values() for token in tokens)
LEAKS = (*CHAT_TOKENS, "<|im_", "<｜", "<|endoftext|>", "<|EOT|>", "<tool_call>")


def split_thought(text: str) -> tuple[str, str]:
    """`thinking.split`, whose faults are reasons to drop a row."""
    try:
        return thinking.split(text)
    except thinking.ThoughtFault as fault:
        raise Dropped(fault.reason, text) from None


def from_markers(text: str) -> tuple[str, str, str]:
    """Thought and solution of Sky-T1's four markers, and what text stands outside of them.

    Dropped where a marker is not there, or not once.
    """
    if any(text.count(marker) != 1 for marker in MARKERS):
        raise Dropped("broken_markers", text)
    places = [text.index(marker) for marker in MARKERS]
    if places != sorted(places):
        raise Dropped("broken_markers", text)
    thought = text[places[0] + len(BEGIN_THOUGHT) : places[1]]
    solution = text[places[2] + len(BEGIN_SOLUTION) : places[3]]
    between = text[places[1] + len(END_THOUGHT) : places[2]]
    after = text[places[3] + len(END_SOLUTION) :]
    return thought.strip(), solution.strip(), (text[: places[0]] + between + after).strip()


# Cleaning steps that --keep may switch off; the others are what a training file must be.
STEPS = {
    "loops": "repetition_loop",
    "language": "language_mixing",
    "box": "no_boxed_answer",
    "code": "no_code_block",
    "letter": "no_letter",
}


def kept_reasons(names: Collection[str]) -> frozenset[str]:
    """The reasons that --keep names."""
    return frozenset(STEPS[name] for name in kept_names(names))


def kept_names(names: Collection[str]) -> set[str]:
    """The steps that --keep names, by their names or as the waterfall has them, with commas or not.

    UserError for others.
    """
    step_of = {reason: step for step, reason in STEPS.items()}
    kept: set[str] = set()
    for name in (part for text in names for part in text.split(",") if part):
        step = step_of.get(name, name)
        if step not in STEPS:
            why = "is the file's contract or an option's" if name in REASONS else "is unknown"
            raise UserError(f"--keep={name}: {why}; expected some of {', '.join(STEPS)}")
        kept.add(step)
    return kept


def check_question(question: str) -> None:
    """Raise Dropped with the reason for which a question cannot be put to a model."""
    if not question.strip():
        raise Dropped("empty_question")
    if thinking.has_tag(question) or any(mark in question for mark in MARKERS):
        raise Dropped("leaked_marker")
    if any(token in question for token in LEAKS):
        raise Dropped("leaked_chat_token")


def check(draft: Draft, keep: Collection[str] = ()) -> None:
    """Raise Dropped with the reason, none of `keep`, for which a trajectory is not fit."""
    thought, solution = draft.thought or "", draft.solution
    text = draft.system + thought + solution
    check_question(draft.question)
    if not thought.strip() and "empty_thought" not in keep:
        raise Dropped("empty_thought")
    if not solution.strip():
        raise Dropped("empty_solution")
    if thinking.has_tag(text) or any(marker in text for marker in MARKERS):
        raise Dropped("leaked_marker")
    if any(token in text for token in LEAKS):
        raise Dropped("leaked_chat_token")
    found = (reason for reason, is_so in _FAULTS.items() if reason not in keep and is_so(draft))
    if reason := next(found, None):
        raise Dropped(reason)


def loops(text: str) -> bool:
    """True where the end of a text repeats itself, word by word or character by character.

    A table of zeros is no loop: what comes again must have a letter in it, or come very often.
    """
    tail = text[-3000:].encode()
    if len(tail) >= 2000 and len(zlib.compress(tail)) < 0.03 * len(tail):
        return True
    words = text.split()[-1000:]
    last: dict[tuple[str, ...], int] = {}  # where four words began before
    period = run = 0
    for i, four in enumerate(zip(words, words[1:], words[2:], words[3:], strict=False)):
        if period and words[i] == words[i - period]:
            run += 1
        else:
            period = i - last.get(four, i)
            run = 1
        last[four] = i
        again = period and run >= max(80, 3 * period)
        if again and (run >= 400 or any(c.isalpha() for w in words[i - period : i] for c in w)):
            return True
    return False


def mixes_languages(question: str, text: str) -> bool:
    """More than one letter in fifty from a script that the question does not use."""
    scripts = _scripts(text)
    letters = sum(scripts.values())
    known = _scripts(question)
    return any(
        count > 0.02 * letters and count > 20 and script not in known
        for script, count in scripts.items()
        if script != "GREEK"
    )


_FOREIGN = re.compile(r"[^\x00-\x7f]")


def _scripts(text: str) -> Counter[str]:
    """Letters of a text by script; CJK, KATAKANA and HIRAGANA are one."""
    counts: Counter[str] = Counter()
    foreign = Counter(_FOREIGN.findall(text))
    for character, count in foreign.items():
        character = unicodedata.normalize("NFKC", character)[:1]  # a mathematical x is an x
        if character.isalpha() and not character.isascii():
            script = unicodedata.name(character, "OTHER").split(" ", 1)[0].split("-")[0]
            east = ("CJK", "HIRAGANA", "KATAKANA", "FULLWIDTH", "HALFWIDTH")
            counts["CJK" if script in east else script] += count
    counts["LATIN"] += len(text) - sum(foreign.values())
    return counts


_FAULTS: dict[str, Callable[[Draft], bool]] = {
    "no_boxed_answer": lambda d: d.domain == "math" and not (last_box(d.solution) or "").strip(),
    "no_code_block": lambda d: d.domain == "coding" and last_fenced_block(d.solution) is None,
    "no_letter": lambda d: (
        d.domain == "science" and d.answer in LETTERS and not choice_letter(d.solution)
    ),
    "repetition_loop": lambda d: loops(d.thought or "") or loops(d.solution),
    "language_mixing": lambda d: mixes_languages(d.question, (d.thought or "") + d.solution),
}


_EAST = re.compile(r"([\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af])")
_NOT_WORD = re.compile(r"[\W_]+")
_SENTENCE_MARK = re.compile(r"[.,;:?\"]+(?=\s|$)")


def words(text: str) -> list[str]:
    """Words of a text without case and punctuation, for looking for parts of a question.

    Of scripts that put no spaces between words, characters.
    """
    plain = unicodedata.normalize("NFKC", text).casefold()
    return _NOT_WORD.sub(" ", _EAST.sub(r" \1 ", plain)).split()


_SPACE = re.compile(r"\\[,;:! >]|\\q?quad\b|[~$\s]+")
_LOOSE_SPACE = re.compile(r"(?<=\W) | (?=\W)")


def compact(text: str) -> str:
    """`normalized` without the spaces beside marks: x + 1 is x+1, and 1 2 is not 12."""
    return _LOOSE_SPACE.sub("", normalized(_SPACE.sub(" ", text)))


def normalized(text: str) -> str:
    """A question without case, the marks that end sentences and the amount of white space.

    What may mean something stays: x + 1 is not x - 1, 5! is not 5, and 1 2 is not 12.
    """
    plain = _SENTENCE_MARK.sub("", unicodedata.normalize("NFKC", text).casefold())
    return " ".join(plain.split())
