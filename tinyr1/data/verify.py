"""Is a solution right? The graders' exact rules, and where the sets' own judges are right, theirs.

A training answer that a set's judge has accepted for a good reason must not be lost because an
evaluation is stricter. So here, and not in an evaluation: a function may return [x] where x is
expected, an object's keys may be integers, printed decimals may differ by 1e-6, and what stands in
several boxes may be the one answer.
"""

from __future__ import annotations

from tinyr1.data.draft import Draft
from tinyr1.graders.answer import boxes, last_box, last_fenced_block
from tinyr1.graders.code import AS_THE_SETS, grade_program
from tinyr1.graders.grading import grade
from tinyr1.graders.math import equal_answers
from tinyr1.graders.sandbox import Level, open_sandbox
from tinyr1.record import LETTERS, TaskRow


def is_right(draft: Draft, sandbox: Level = "namespaces") -> bool | None:
    """True for a right solution; None where nothing is known that it could be compared with."""
    answer = draft.answer or ""
    if draft.tests:
        row = TaskRow(draft.domain, draft.id, "code", draft.question, tests=draft.tests)
        program = last_fenced_block(draft.solution)
        judges = [AS_THE_SETS]
        if draft.tests.fn_name and any('{"' in given for given in draft.tests.inputs):
            judges.append(AS_THE_SETS._replace(integer_keys=True))
        return program is not None and any(
            not grade_program(program, row, open_sandbox(sandbox), judge) for judge in judges
        )
    if answer in LETTERS and answer:
        row = TaskRow(draft.domain, draft.id, "choice", draft.question, answer)
        return grade(row, draft.content()).correct
    if answer and (draft.domain == "math" or last_box(draft.solution)):
        found = boxes(draft.solution)
        return any(equal_answers(answer, said) for said in _readings(found))
    return None


def _readings(found: list[str]) -> list[str]:
    """What boxes say: the last one, or all that are different, in their order, as a list."""
    if not found:
        return []
    several = list(dict.fromkeys(box.strip() for box in found))
    return [found[-1]] + ([", ".join(several)] if len(several) > 1 else [])
