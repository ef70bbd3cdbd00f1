"""The science branch (paper section 2.1: 8.6k = 2.7k + 1.0k + 4.9k).

s1's full 59K set gives the questions of its science and health science, s1K all of its own, and
OpenThoughts-114k what is neither mathematics nor code (113,957 - 89,120 - 19,904 = 4,933 rows, the
puzzles included). The paper had R1 answer them; rows that hold R1's answer already may keep it.
"""

from __future__ import annotations

import re

from tinyr1.data.draft import Draft, Dropped, Row, Selection, label_of, text_of, value_of
from tinyr1.graders.answer import last_box


def s1(row: Row, want: Selection) -> list[Draft]:
    """A row of s1's 59K, s1K or s1K-1.1, of which the last has R1's answers.

    In the math branch only what s1 calls math, and in the coding branch likewise.
    """
    types = want.cot_types if want.domain == "science" else (want.domain,)
    if types and row.get("cot_type") not in types:
        raise Dropped("domain")
    reference = value_of(row.get("solution"))
    thought = text_of(row.get("deepseek_thinking_trajectory")).strip()
    attempt = text_of(row.get("deepseek_attempt")).strip()
    grade = label_of(row.get("deepseek_grade"))  # said, not obeyed: the paper kept wrong answers
    is_answered = bool(thought and attempt) and not want.questions_only
    return [
        Draft(
            id=label_of(row.get("id")),
            domain=want.domain,
            question=text_of(row["question"]),
            thought=thought if is_answered else None,
            solution=attempt if is_answered else "",
            source=label_of(row.get("source_type")),
            answer=short_answer(reference),
            meta={"reference": reference or None, "deepseek_grade": grade or None},
        )
    ]


def short_answer(reference: str) -> str | None:
    """The letter, number or box that an answer can be compared with; None for a worked text."""
    text = reference.strip()
    if re.fullmatch(r"\(?[A-D]\)?\.?", text):
        return text.strip("().")
    return last_box(text) or (text if re.fullmatch(r"-?[\d.,/]*\d", text) else None)
