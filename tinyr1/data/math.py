"""The math branch: OpenR1-Math-220k, `default` (paper section 2.1: 58k of its 94k problems).

The paper names three predicates (question type, source, verification) but not their values; here
they are options. A row has several generations with flags beside them: the first that passes every
check is taken, verified ones before others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from tinyr1.data.clean import Draft, Dropped, flags_of, split_thought, text_of, value_of

Prefer = Literal["first", "shortest"]
STOPS = ("stop", "eos", "eos_token", "end_turn")  # finish reasons of a whole answer


def convert(row: dict[str, Any], **options: Any) -> Draft:
    """The first of `candidates`."""
    return candidates(row, **options)[0]


def candidates(
    row: dict[str, Any],
    question_types: Sequence[str] = ("math-word-problem",),
    sources: Sequence[str] = (),
    require_verified: bool = True,
    prefer: Prefer = "first",
) -> list[Draft]:
    """The usable generations of a row of OpenR1-Math, verified ones first.

    Empty `question_types` or `sources` admit all. Raises Dropped with the predicate that the row,
    or the best of its generations, fails.
    """
    if question_types and row["question_type"] not in question_types:
        raise Dropped("question_type")
    if sources and row.get("source") not in sources:
        raise Dropped("source")
    answer = value_of(row.get("answer"))
    if answer in ("", "proof", "notfound"):
        raise Dropped("no_reference_answer")
    found = _generations(row, require_verified, prefer)
    drafts: list[Draft] = []
    fault = Dropped("no_think")
    for i in found.usable:
        try:
            thought, solution = split_thought(found.texts[i])
        except Dropped as why:
            fault = why
            continue
        drafts.append(
            Draft(
                id=value_of(row.get("uuid")),
                domain="math",
                question=text_of(row["problem"]),
                thought=thought,
                solution=solution,
                source=f"open-r1/OpenR1-Math-220k/{row.get('source') or ''}",
                answer=answer,
                meta={
                    "generation": i,
                    "problem_type": row.get("problem_type"),
                    "verified_by": found.verifiers[i],
                },
            )
        )
    if not drafts:
        raise fault
    return drafts


class _Generations(NamedTuple):
    """A row's generations, which of them may be used, and who verified each."""

    texts: list[str]
    usable: list[int]  # verified ones first
    verifiers: list[str | None]


def _generations(row: dict[str, Any], require_verified: bool, prefer: Prefer) -> _Generations:
    """Raises Dropped with what none of a row's generations is: complete, finished, verified."""
    texts = row["generations"] or []
    if not isinstance(texts, list):
        raise Dropped("malformed")
    # Flags are lists beside the generations, in some rows shorter ones, in some with null among
    # them.
    count = len(texts)
    complete = flags_of(row["is_reasoning_complete"], count)
    complete = [c and isinstance(text, str) for c, text in zip(complete, texts, strict=True)]
    by_rules = flags_of(row["correctness_math_verify"], count)
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
