"""The coding branch: the programs among OpenThoughts-114k (paper section 2.1: 20k).

Its `metadata` configuration has the thought and the solution in columns of their own, and a domain;
the `default` one has a conversation with four markers, where a coding row is known by the sentence
that its question begins with.
"""

from __future__ import annotations

import json
from typing import Any

from tinyr1.data.clean import Draft, Dropped, from_markers, text_of
from tinyr1.record import ProgramTests

SOURCE = "open-thoughts/OpenThoughts-114k"
FUNCTION = "Generate an executable Python function generated from the given prompt."
STDIN_RULE = (
    " The function should take stdin as input and print the output."
    " Simply call the function after the definition."
)
FUNCTION_RULE = " Return the function body without invoking it at the final solution."


def convert(row: dict[str, Any]) -> Draft:
    """A row of either configuration. Raises Dropped("domain") for what is no program."""
    return _from_metadata(row) if "domain" in row else _from_conversation(row)


def _from_metadata(row: dict[str, Any]) -> Draft:
    if row["domain"] != "code":
        raise Dropped("domain")
    tests = _tests(row.get("test_cases"))
    rule = FUNCTION_RULE if tests and tests.fn_name else STDIN_RULE
    question = FUNCTION + rule + text_of(row.get("problem"))
    if starter := text_of(row.get("starter_code")):
        question += "\n" + starter
    return Draft(
        id=str(row.get("id") or ""),
        domain="coding",
        question=question,
        thought=text_of(row.get("deepseek_reasoning")).strip(),
        solution=text_of(row.get("deepseek_solution")).strip(),
        source=f"{SOURCE}/{row.get('source') or ''}",
        tests=tests,
    )


def _from_conversation(row: dict[str, Any]) -> Draft:
    question, response = conversation(row)
    if not question.startswith(FUNCTION):
        raise Dropped("domain")
    thought, solution = from_markers(response)
    return Draft(str(row.get("id") or ""), "coding", question, thought, solution, SOURCE)


def conversation(row: dict[str, Any]) -> tuple[str, str]:
    """Question and response of a `conversations` list; the system prompt, which holds the markers,
    is left out."""
    said = row["conversations"]
    if not isinstance(said, list) or not all(isinstance(turn, dict) for turn in said):
        raise Dropped("malformed")
    # Both namings of the roles are found in published sets.
    turns = {turn.get("from"): str(turn.get("value") or "") for turn in said}
    question = turns.get("user", turns.get("human"))
    response = turns.get("assistant", turns.get("gpt"))
    if question is None or response is None or len(said) != 2:
        raise Dropped("not_one_turn")
    return question, response


def _tests(text: Any) -> ProgramTests | None:
    """Tests as in a task file, from their JSON text; None where there are none that can be read."""
    try:
        tests: Any = json.loads(text) if isinstance(text, str) and text else text  # or parsed
        inputs, outputs = (list(tests[name]) for name in ("inputs", "outputs"))
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    if not inputs or len(inputs) != len(outputs):
        return None
    name = tests.get("fn_name") or None

    def text_of(value: Any, is_input: bool) -> str:
        if name is None:
            return value if isinstance(value, str) else "\n".join(map(str, value))
        if is_input:
            return "\n".join(json.dumps(argument) for argument in value)
        one = value[0] if isinstance(value, list) and len(value) == 1 else value
        return json.dumps(one)

    try:
        said = tuple(text_of(value, True) for value in inputs)
        return ProgramTests(said, tuple(text_of(value, False) for value in outputs), name)
    except TypeError:
        return None
