"""The coding branch: the programs among OpenThoughts-114k (paper section 2.1: 20k).

Its `metadata` configuration has the thought and the solution in columns of their own, and a domain;
the `default` one is a conversation (conversations.py), where a coding row is known by the sentence
that its question begins with. The science branch takes what is neither code nor mathematics.
"""

from __future__ import annotations

from tinyr1.data.draft import (
    Draft,
    Dropped,
    Row,
    Selection,
    label_of,
    program_tests,
    text_of,
)

FUNCTION = "Generate an executable Python function generated from the given prompt."
STDIN_RULE = (
    " The function should take stdin as input and print the output."
    " Simply call the function after the definition."
)
FUNCTION_RULE = " Return the function body without invoking it at the final solution."
BOXED = "Return your final response within \\boxed{}."  # how OpenThoughts asks for mathematics


def openthoughts(row: Row, want: Selection) -> list[Draft]:
    """A row of OpenThoughts-114k's `metadata`. Raises Dropped("domain") for another branch's."""
    if not label_of(row["domain"]):
        raise Dropped("domain")
    want.check_domain(row["domain"], others="science")  # the puzzles, too (paper section 2.1)
    source = want.check_source(row)
    question = text_of(row.get("problem"))
    tests = program_tests(row.get("test_cases")) if want.domain == "coding" else None
    if not question:
        raise Dropped("empty_question")
    if want.domain == "coding":
        rule = FUNCTION_RULE if tests and tests.fn_name else STDIN_RULE
        question = FUNCTION + rule + question
        if starter := text_of(row.get("starter_code")):
            question += "\n" + starter
    elif want.domain == "math":
        question = f"{BOXED} {question}"
    thought = text_of(row.get("deepseek_reasoning")).strip()
    solution = text_of(row.get("deepseek_solution")).strip()
    return [
        Draft(
            id=label_of(row.get("id")),
            domain=want.domain,
            question=question,
            thought=None if want.questions_only else thought,
            solution="" if want.questions_only else solution,
            source=source,
            tests=tests,
            meta={"domain": row["domain"]} if want.domain == "science" else {},
        )
    ]
