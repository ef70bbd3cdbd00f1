"""The science branch (paper section 2.1: 8.6k = 2.7k + 1.0k + 4.9k).

s1's full 59K set gives the questions of its science and health science, s1K all of its own, and
OpenThoughts-114k what is neither mathematics nor code (113,957 - 89,120 - 19,904 = 4,933 rows, the
puzzles included). The paper had R1 answer them; rows that hold R1's answer already may keep it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from tinyr1.data.clean import Draft, Dropped, from_markers, text_of, value_of
from tinyr1.data.coding import FUNCTION, SOURCE, conversation
from tinyr1.graders.answer import last_box

S1_TYPES = ("science", "health science")
BOXED = "Return your final response within \\boxed{}."  # how OpenThoughts asks for mathematics


def convert(
    row: dict[str, Any], cot_types: Sequence[str] = S1_TYPES, questions_only: bool = False
) -> Draft:
    """A row of s1, s1K, s1K-1.1 or OpenThoughts. Empty `cot_types` admit all of s1's.

    With `questions_only` the draft is a question for the teacher (thought None); otherwise a row
    without R1's answer is dropped.
    """
    draft = _from_s1(row, cot_types) if "question" in row else _from_openthoughts(row)
    if questions_only:
        return replace(draft, thought=None, solution="")
    if draft.thought is None:
        raise Dropped("no_trajectory", draft.question)
    return draft


def _from_s1(row: dict[str, Any], cot_types: Sequence[str]) -> Draft:
    if cot_types and row.get("cot_type") not in cot_types:
        raise Dropped("domain")
    reference = value_of(row.get("solution"))
    thought = text_of(row.get("deepseek_thinking_trajectory"))
    attempt = text_of(row.get("deepseek_attempt"))
    return Draft(
        id=str(row.get("id") or ""),
        domain="science",
        question=text_of(row["question"]),
        thought=thought.strip() if thought and attempt else None,
        solution=attempt.strip() if thought and attempt else "",
        source=f"simplescaling/s1/{row.get('source_type') or ''}",
        answer=short_answer(reference),
        meta={"reference": reference} if reference else {},
    )


def short_answer(reference: str) -> str | None:
    """The letter, number or box that an answer can be compared with; None for a worked text."""
    text = reference.strip()
    if re.fullmatch(r"\(?[A-D]\)?\.?", text):
        return text.strip("().")
    return last_box(text) or (text if re.fullmatch(r"-?[\d.,/]*\d", text) else None)


def _from_openthoughts(row: dict[str, Any]) -> Draft:
    if "domain" in row:
        if row["domain"] in ("math", "code"):
            raise Dropped("domain")
        return Draft(
            id=str(row.get("id") or ""),
            domain="science",
            question=text_of(row.get("problem")),
            thought=text_of(row.get("deepseek_reasoning")).strip(),
            solution=text_of(row.get("deepseek_solution")).strip(),
            source=f"{SOURCE}/{row.get('source') or ''}",
            meta={"domain": row["domain"]},
        )
    question, response = conversation(row)
    if question.startswith((FUNCTION, BOXED)):
        raise Dropped("domain")
    thought, solution = from_markers(response)
    return Draft(str(row.get("id") or ""), "science", question, thought, solution, SOURCE)
