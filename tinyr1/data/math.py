"""The math branch: OpenR1-Math-220k, `default` (paper section 2.1: 58k of its 94k problems).

The paper names three predicates (question type, source, verification) but not their values; here
they are options. A row has several generations with flags beside them; one is chosen.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from tinyr1.data.clean import Draft, Dropped, split_thought

Prefer = Literal["first", "shortest"]


def convert(
    row: dict[str, Any],
    question_types: Sequence[str] = ("math-word-problem",),
    sources: Sequence[str] = (),
    require_verified: bool = True,
    prefer: Prefer = "first",
) -> Draft:
    """A row of OpenR1-Math; empty `question_types` or `sources` admit all.

    Raises Dropped with the predicate that the row fails.
    """
    if question_types and row["question_type"] not in question_types:
        raise Dropped("question_type")
    if sources and row.get("source") not in sources:
        raise Dropped("source")
    answer = str(row.get("answer") or "").strip()
    if answer in ("", "proof", "notfound"):
        raise Dropped("no_reference_answer")
    generations = row["generations"] or []
    if not isinstance(generations, list):
        raise Dropped("malformed")
    # Flags are lists beside the generations, in some rows shorter ones, in some with null among
    # them.
    complete = _flags(row["is_reasoning_complete"], len(generations))
    complete = [c and isinstance(g, str) for c, g in zip(complete, generations, strict=True)]
    verified = _flags(row["correctness_math_verify"], len(generations))
    reasons = row.get("finish_reasons")
    stopped = [r == "stop" for r in reasons] if reasons else [True] * len(generations)
    stopped += [False] * (len(generations) - len(stopped))
    if not any(complete):
        raise Dropped("reasoning_incomplete")
    finished = [c and s for c, s in zip(complete, stopped, strict=False)]
    if not any(finished):
        raise Dropped("cut_off")
    usable = [f and (v or not require_verified) for f, v in zip(finished, verified, strict=True)]
    if not any(usable):
        raise Dropped("not_verified")
    candidates = [i for i, ok in enumerate(usable) if ok]
    if prefer == "shortest":
        candidates.sort(key=lambda i: len(generations[i]))
    chosen, (thought, solution) = _first_whole(generations, candidates)
    return Draft(
        id=str(row.get("uuid") or ""),
        domain="math",
        question=str(row["problem"] or ""),
        thought=thought,
        solution=solution,
        source=f"open-r1/OpenR1-Math-220k/{row.get('source') or ''}",
        answer=answer,
        meta={"generation": chosen, "problem_type": row.get("problem_type")},
    )


def _first_whole(generations: list[str], candidates: list[int]) -> tuple[int, tuple[str, str]]:
    """The first candidate with one pair of tags, and its thought and solution."""
    fault = Dropped("no_think")
    for i in candidates:
        try:
            return i, split_thought(generations[i])
        except Dropped as why:
            fault = why
    raise fault


def _flags(values: Any, count: int) -> list[bool]:
    """A list of flags aligned with the generations; what is missing, or null, is false."""
    flags = [value is True for value in values] if isinstance(values, list) else []
    return (flags + [False] * count)[:count]
