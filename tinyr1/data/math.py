"""The math branch: OpenR1-Math-220k, `default` (paper section 2.1: 58k of its 94k problems).

The paper names three predicates (question type, source, verification) but not their values; here
they are options. A row has several generations with flags beside them: the first that passes every
check is taken, verified ones before others. NuminaMath-1.5, which OpenR1's problems come from, and
LIMO have problems and no trajectories.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from tinyr1 import thinking
from tinyr1.data.clean import split_thought
from tinyr1.data.conversations import pairs
from tinyr1.data.draft import (
    Draft,
    Dropped,
    Prefer,
    Row,
    Selection,
    flags_of,
    label_of,
    text_of,
    value_of,
)

STOPS = ("stop", "eos", "eos_token", "end_turn")  # finish reasons of a whole answer


def openr1(row: Row, want: Selection) -> list[Draft]:
    """The usable generations of a row of OpenR1-Math, verified ones first.

    Raises Dropped with the predicate that the row, or the best of its generations, fails.
    """
    problem = numina(row, want)[0]
    if want.questions_only:
        return [problem]
    found = _generations(row, want.require_verified, want.prefer)
    drafts: list[Draft] = []
    fault = Dropped("no_think")
    for i in found.usable:
        try:
            thought, solution = split_thought(found.texts[i])
        except Dropped as why:
            fault = why
            continue
        meta = {"generation": i, "verified_by": found.verifiers[i]}
        drafts.append(
            replace(problem, thought=thought, solution=solution, meta=problem.meta | meta)
        )
    if not drafts:
        raise fault
    return drafts


def numina(row: Row, want: Selection) -> list[Draft]:
    """A problem of NuminaMath-1.5, a question for the teacher; its worked solution is no thought.

    Raises Dropped for one of another type or source, or without an answer to compare with.
    """
    want.check_domain("math")
    if want.question_types and row.get("question_type") not in want.question_types:
        raise Dropped("question_type")
    source = want.check_source(row)
    answer = value_of(row.get("answer"))
    if answer in ("", "proof", "notfound"):
        raise Dropped("no_reference_answer")
    return [
        Draft(
            id=label_of(row.get("uuid")),
            domain="math",
            question=text_of(row["problem"]),
            thought=None,
            solution="",
            source=source,
            answer=answer,
            meta={"problem_type": row.get("problem_type")},
        )
    ]


def limo(row: Row, want: Selection) -> list[Draft]:
    """A problem of LIMO: its solution is one chain of thought, in later releases with the tags."""
    if thinking.has_tag(label_of(row.get("answer"))):
        return pairs(row, want)  # your own, with the whole answer in `answer`
    want.check_domain("math")
    question, text = text_of(row["question"]), text_of(row["solution"])
    draft = Draft("", "math", question, None, "", "", value_of(row.get("answer")) or None)
    if want.questions_only or not thinking.is_closed(text):
        return [draft]
    thought, solution = split_thought(text)
    return [replace(draft, thought=thought, solution=solution)]


class _Generations(NamedTuple):
    """A row's generations, which of them may be used, and who verified each."""

    texts: list[str]
    usable: list[int]  # verified ones first
    verifiers: list[str | None]


def _generations(row: Row, require_verified: bool, prefer: Prefer) -> _Generations:
    """Raises Dropped with what none of a row's generations is: complete, finished, verified."""
    texts = row["generations"] or []
    if not isinstance(texts, list):
        raise Dropped("malformed")
    # Flags are lists beside the generations, in some rows shorter ones, in some with null among
    # them.
    count = len(texts)
    complete = flags_of(row.get("is_reasoning_complete"), count)
    complete = [c and isinstance(text, str) for c, text in zip(complete, texts, strict=True)]
    by_rules = flags_of(row.get("correctness_math_verify"), count)
    by_llama = flags_of(row.get("correctness_llama"), count)  # where the rules could not tell
    verifiers = [
        "math_verify" if rules else "llama" if llama else None
        for rules, llama in zip(by_rules, by_llama, strict=True)
    ]
    reasons = row.get("finish_reasons")
    if reasons is not None and not isinstance(reasons, list):
        raise Dropped("malformed")
    stopped = [str(r).lower() in STOPS for r in reasons] if reasons else [True] * count
    stopped += [False] * (count - len(stopped))
    if not any(complete):
        raise Dropped("reasoning_incomplete")
    finished = [i for i in range(count) if complete[i] and stopped[i]]
    if not finished:
        raise Dropped("cut_off")
    usable = [i for i in finished if verifiers[i] or not require_verified]
    if not usable:
        raise Dropped("not_verified")
    usable.sort(key=lambda i: (not verifiers[i], len(texts[i]) if prefer == "shortest" else 0))
    return _Generations(texts, usable, verifiers)
