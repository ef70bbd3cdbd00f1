"""Conversations of any origin, your own among them, and rows of a question and its answer.

    messages        [{role, content}, ...], the thought in reasoning_content or before </think>
    conversations   ShareGPT's [{from, value}, ...]; OpenThoughts, Bespoke-Stratos, Light-R1, ...
    instruction, input, output          Alpaca
    question, answer, thinking          under their usual names, or those of --columns

The thought is what stands before `</think>`, between the four markers of Sky-T1, or in a field of
its own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from tinyr1 import thinking
from tinyr1.data.clean import MARKERS, from_markers, split_thought
from tinyr1.data.coding import BOXED, FUNCTION
from tinyr1.data.draft import (
    Draft,
    Dropped,
    Row,
    Selection,
    flags_of,
    label_of,
    plain,
    program_tests,
    text_of,
    value_of,
)
from tinyr1.graders.answer import last_box
from tinyr1.record import ProgramTests

ROLES = {"user": "user", "human": "user", "prompter": "user"}
ROLES |= {"system": "system", "developer": "system"}
ROLES |= dict.fromkeys(("assistant", "gpt", "model", "bot"), "assistant")
THOUGHTS = ("reasoning_content", "reasoning", "thinking", "thought")
# What --columns may name, and the columns that stand for it where it is not given.
COLUMNS = {
    "question": ("question", "problem", "prompt", "query"),
    "thinking": (*THOUGHTS, "think"),
    "answer": ("answer", "response", "output", "completion", "solution"),
    "system": ("system",),
    "reference": (),
    "id": ("id", "uuid"),
    "source": ("source",),
}
# Mixture-of-Thoughts has no domain, but three sources.
_SOURCES = {"openr1-math": "math", "codeforces": "code", "nemotron": "science"}


class _Said(NamedTuple):
    """A conversation of one turn."""

    system: str
    question: str
    thought: str  # of a field of its own
    answer: str


def chat(row: Row, want: Selection) -> list[Draft]:
    """A conversation, with whatever columns say of it: id, domain, source, answer, tests."""
    said = _one_turn(row.get("conversations") or row.get("messages"))
    said = _with_columns(said, row)
    # OpenThoughts' domains are known by how its questions begin.
    if all(marker in said.answer for marker in MARKERS):
        starts = {"coding": FUNCTION, "math": BOXED}
        begun = [d for d, sentence in starts.items() if said.question.startswith(sentence)]
        want.check_domain(begun[0] if begun else "science")
    return [_labelled(row, want, _draft(said, want))]


def _with_columns(said: _Said, row: Row) -> _Said:
    """What a conversation does not say and columns beside it do."""
    thoughts = [label_of(row.get(name)) for name in THOUGHTS]
    return said._replace(
        system=said.system or label_of(row.get("system")),
        thought=said.thought or next((text for text in thoughts if text), ""),
    )


def mixture_of_thoughts(row: Row, want: Selection) -> list[Draft]:
    """A row of Mixture-of-Thoughts, whose domain is known by its source."""
    source = label_of(row.get("source")).lower()
    domain = next((domain for part, domain in _SOURCES.items() if part in source), None)
    if domain is None:
        raise Dropped("domain")
    want.check_domain(domain)
    return chat(row, want)


def openthoughts_math(row: Row, want: Selection) -> list[Draft]:
    """A row of OpenThoughts-114k-math: R1's conversation, and whether its answer is `correct`."""
    want.check_domain("math")
    (is_correct,) = flags_of([row["correct"]], 1)
    if want.require_verified and not is_correct and not want.questions_only:
        raise Dropped("not_verified")
    (draft,) = chat(row, want)
    answer = last_box(text_of(row.get("solution"))) or None
    verifier = "math_verify" if is_correct else None
    return [replace(draft, answer=answer, meta=draft.meta | {"verified_by": verifier})]


def alpaca(row: Row, want: Selection) -> list[Draft]:
    """A row of instruction, input and output."""
    if row.get("history"):
        raise Dropped("not_one_turn")
    asked = [text_of(row["instruction"]), text_of(row.get("input"))]
    question = "\n".join(text for text in asked if text)
    said = _with_columns(_Said("", question, "", text_of(row["output"])), row)
    return [_labelled(row, want, _draft(said, want))]


def pairs(row: Row, want: Selection, columns: Mapping[str, str] | None = None) -> list[Draft]:
    """A row of a question and its answer, under their usual names or those of `columns`.

    Of several columns that may be the answer, the one with the thought in it is, else the first
    that is not called `answer`; what is called so is then the right answer, to compare with.
    """
    columns = columns or {}

    def found(name: str) -> list[str]:
        """Columns of a name that have something in them."""
        usual = [] if columns and name in ("question", "thinking", "answer") else COLUMNS[name]
        names = [columns[name]] if name in columns else usual
        return [c for c in names if row.get(c) is not None and label_of(row[c]) != ""]

    def first(name: str) -> Any:
        return next((row[column] for column in found(name)), None)

    answers = found("answer")
    answers.sort(key=lambda c: (not thinking.has_tag(label_of(row[c])), c == "answer"))
    said = _Said(
        label_of(first("system")),
        text_of(first("question") if found("question") else _any(row, columns, "question")),
        text_of(first("thinking")),
        value_of(row[answers[0]]) if answers else "",
    )
    labels = {"id": first("id"), "source": first("source")}
    labels |= {name: row[name] for name in ("domain", "tests", "meta") if name in row}
    labels["answer"] = first("reference")
    if not columns and "answer" in answers[1:]:
        labels["answer"] = row["answer"]
    elif want.questions_only and len(said.answer) <= 200 and not thinking.has_tag(said.answer):
        labels["answer"] = labels["answer"] or said.answer  # what the teacher's is compared with
    return [_labelled(labels, want, _draft(said, want))]


def _any(row: Row, columns: Mapping[str, str], name: str) -> Any:
    """What lies under a name though it is no text: for its type to be refused."""
    names = [columns[name]] if name in columns else COLUMNS[name]
    return next((row[column] for column in names if row.get(column) is not None), None)


def questions(row: Row, want: Selection) -> list[Draft]:
    """A row of a file of questions for the teacher, or of your own with a whole answer in it."""
    if thinking.has_tag(label_of(row.get("answer"))):
        return pairs(row, want)
    said = _Said("", text_of(row["question"]), "", "")
    return [_labelled(row, want, _draft(said, want))]


def _labelled(row: Row, want: Selection, draft: Draft) -> Draft:
    """The draft with what other columns say; Dropped where that is not wanted."""
    want.check_domain(row.get("domain"))
    said = row.get("meta")
    meta: dict[str, Any] = plain(said) if isinstance(said, dict) else {}
    tests = row.get("tests") or meta.get("tests")
    return replace(
        draft,
        id=label_of(row.get("id")),
        source=want.check_source(row),
        answer=label_of(row.get("answer")) or None,
        tests=_tests(tests) if tests and want.domain == "coding" else None,
        meta={k: v for k, v in meta.items() if k != "tests"},
    )


def _tests(value: Any) -> ProgramTests | None:
    try:
        return ProgramTests.from_json(value)
    except ValueError:
        return program_tests(value)


def _draft(said: _Said, want: Selection) -> Draft:
    """A conversation taken apart."""
    system, cut = said.system.strip(), []
    if thinking.has_tag(system) or any(marker in system for marker in MARKERS):
        system = ""  # it asks for another form than the record will have
        cut.append("system message on the form of answers")
    if system and want.questions_only:
        system = ""  # the teacher has one for all of them
        cut.append("system message of a question")
    draft = Draft("", want.domain, said.question, None, "", "", system=system)
    if want.questions_only or not (said.thought or said.answer):
        return replace(draft, cut=tuple(cut))
    if said.thought.strip():
        thought, solution = said.thought.strip(), said.answer.strip()
        inner = thinking.without_opening(thought)
        thought = (thought if inner is None else inner).removesuffix(thinking.CLOSE).strip()
        if thinking.has_tag(solution):
            again, solution = split_thought(solution)
            if again != thought:
                raise Dropped("several_thoughts", said.answer)
    elif any(marker in said.answer for marker in MARKERS):
        thought, solution, outside = from_markers(said.answer)
        if outside:
            cut.append("text outside of the markers")
    elif not want.require_think and not thinking.has_tag(said.answer):
        thought, solution = "", said.answer.strip()
    else:
        thought, solution = split_thought(said.answer)
    return replace(draft, thought=thought, solution=solution, cut=tuple(cut))


def _one_turn(turns: Any) -> _Said:
    """The question and the answer of a list of messages in any of its spellings."""
    if isinstance(turns, str):  # as a table of text has it
        try:
            turns = json.loads(turns)
        except (ValueError, RecursionError):
            raise Dropped("malformed") from None
    if isinstance(turns, dict) and all(isinstance(part, list) for part in turns.values()):
        names, parts = turns.keys(), turns.values()  # a table's way: a list for each field
        turns = [dict(zip(names, values, strict=False)) for values in zip(*parts, strict=False)]
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise Dropped("malformed")
    said = [(_role(turn), turn) for turn in turns]
    system = ""
    if said and said[0][0] == "system":
        system = _content(said.pop(0)[1])[1]
    roles = [role for role, _ in said]
    if roles not in (["user"], ["user", "assistant"]):  # the first is a question for the teacher
        raise Dropped("not_one_turn")
    question = _content(said[0][1])[1]
    thought, answer = _content(said[1][1]) if len(said) > 1 else ("", "")
    return _Said(system, question, thought, answer)


def _role(turn: Row) -> str:
    return ROLES.get(str(turn.get("role") or turn.get("from")).lower(), "other")


def _content(turn: Row) -> tuple[str, str]:
    """The thought of a field of its own and the text of a message, which may be in parts."""
    content = turn.get("content")
    content = turn.get("value") if content is None else content
    thoughts = [text_of(turn.get(name)) for name in THOUGHTS]
    thought = next((text for text in thoughts if text), "")
    if not isinstance(content, list):
        return thought, text_of(content)
    texts: list[str] = []
    for part in content:
        if not isinstance(part, dict):
            raise Dropped("malformed")
        if part.get("type") in ("thinking", "reasoning"):
            thought += text_of(part.get("thinking") or part.get("text"))
        elif isinstance(part.get("text"), str):
            texts.append(part["text"])
        else:
            raise Dropped("malformed")  # an image, a call of a tool
    return thought, "".join(texts)
