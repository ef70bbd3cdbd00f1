"""Conversations of any origin, your own among them, and rows of a question and its answer.

    messages        [{role, content}, ...], the thought in reasoning_content or before </think>
    conversations   ShareGPT's [{from, value}, ...]; OpenThoughts, Bespoke-Stratos, Light-R1, ...
    instruction, input, output          Alpaca
    question, answer, thinking          under their usual names, or those of --columns

The thought is what stands before `</think>`, between the four markers of Sky-T1, or in a field of
its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from tinyr1 import thinking
from tinyr1.data.clean import MARKERS, from_markers, split_thought
from tinyr1.data.coding import BOXED, FUNCTION
from tinyr1.data.draft import Draft, Dropped, Row, Selection, program_tests, text_of, value_of
from tinyr1.graders.answer import last_box
from tinyr1.record import ProgramTests

ROLES = {"user": "user", "human": "user", "prompter": "user", "system": "system"}
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
    turns = row.get("conversations")
    said = _one_turn(row["messages"] if turns is None else turns)
    if not said.system:
        said = said._replace(system=text_of(row.get("system")))
    # OpenThoughts' domains are known by how its questions begin.
    if all(marker in said.answer for marker in MARKERS):
        starts = {"coding": FUNCTION, "math": BOXED}
        begun = [d for d, sentence in starts.items() if said.question.startswith(sentence)]
        want.check_domain(begun[0] if begun else "science")
    return [_labelled(row, want, _draft(said, want))]


def mixture_of_thoughts(row: Row, want: Selection) -> list[Draft]:
    """A row of Mixture-of-Thoughts, whose domain is known by its source."""
    source = value_of(row.get("source")).lower()
    domain = next((domain for part, domain in _SOURCES.items() if part in source), None)
    if domain is None:
        raise Dropped("domain")
    want.check_domain(domain)
    return chat(row, want)


def openthoughts_math(row: Row, want: Selection) -> list[Draft]:
    """A row of OpenThoughts-114k-math: R1's conversation, and whether its answer is `correct`."""
    want.check_domain("math")
    if want.require_verified and row["correct"] is not True and not want.questions_only:
        raise Dropped("not_verified")
    (draft,) = chat(row, want)
    answer = last_box(text_of(row.get("solution"))) or None
    return [replace(draft, answer=answer, meta=draft.meta | {"verified_by": "math_verify"})]


def alpaca(row: Row, want: Selection) -> list[Draft]:
    """A row of instruction, input and output."""
    if row.get("history"):
        raise Dropped("not_one_turn")
    asked = [text_of(row["instruction"]), text_of(row.get("input"))]
    question = "\n".join(text for text in asked if text)
    said = _Said(text_of(row.get("system")), question, "", text_of(row["output"]))
    return [_labelled(row, want, _draft(said, want))]


def pairs(row: Row, want: Selection, columns: Mapping[str, str] | None = None) -> list[Draft]:
    """A row of a question and its answer, under their usual names or those of `columns`.

    A row with a thought of its own may have the final answer in another column: `reference`.
    """
    columns = columns or {}

    def found(name: str) -> str:
        """The column of a name, "" for none."""
        usual = [c for c in COLUMNS[name] if c in row and c not in columns.values()]
        return columns.get(name) or (usual[0] if usual else "")

    parts = {name: found(name) for name in COLUMNS}
    for name in ("question", "thinking", "answer"):
        if name in columns:
            _ = row[columns[name]]  # a name that no column has is an error
    said = _Said(
        text_of(row.get(parts["system"])),
        text_of(row.get(parts["question"])),
        text_of(row.get(parts["thinking"])),
        value_of(row.get(parts["answer"])),
    )
    labels = {"id": row.get(parts["id"]), "source": row.get(parts["source"])}
    labels |= {name: row[name] for name in ("domain", "tests", "meta") if name in row}
    if parts["reference"]:
        labels["answer"] = row.get(parts["reference"])
    elif want.questions_only and len(said.answer) <= 200 and not thinking.has_tag(said.answer):
        labels["answer"] = said.answer  # a short one: what the teacher's is compared with
    return [_labelled(labels, want, _draft(said, want))]


def questions(row: Row, want: Selection) -> list[Draft]:
    """A row of a file of questions for the teacher."""
    said = _Said("", text_of(row["question"]), "", "")
    return [_labelled(row, replace(want, questions_only=True), _draft(said, want))]


def _labelled(row: Row, want: Selection, draft: Draft) -> Draft:
    """The draft with what other columns say; Dropped where that is not wanted."""
    want.check_domain(row.get("domain"))
    said = row.get("meta")
    meta: dict[str, Any] = said if isinstance(said, dict) else {}
    tests = row.get("tests") or meta.get("tests")
    return replace(
        draft,
        id=value_of(row.get("id")),
        source=want.check_source(row),
        answer=value_of(row.get("answer")) or None,
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
    draft = Draft("", want.domain, said.question, None, "", "", system=system)
    if want.questions_only or not (said.thought or said.answer):
        return replace(draft, cut=tuple(cut))
    if said.thought.strip():
        if thinking.has_tag(said.answer):
            raise Dropped("several_thoughts", said.answer)
        thought, solution = said.thought.strip(), said.answer.strip()
        inner = thinking.without_opening(thought)
        thought = (thought if inner is None else inner).removesuffix(thinking.CLOSE).strip()
    elif any(marker in said.answer for marker in MARKERS):
        thought, solution, outside = from_markers(said.answer)
        if outside:
            cut.append("text outside of the markers")
    else:
        thought, solution = split_thought(said.answer)
    return replace(draft, thought=thought, solution=solution, cut=tuple(cut))


def _one_turn(turns: Any) -> _Said:
    """The question and the answer of a list of messages in any of its spellings."""
    if isinstance(turns, dict) and all(isinstance(part, list) for part in turns.values()):
        names, parts = turns.keys(), turns.values()  # a table's way: a list for each field
        turns = [dict(zip(names, values, strict=False)) for values in zip(*parts, strict=False)]
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise Dropped("malformed")
    said = [(_role(turn), turn) for turn in turns]
    system = ""
    if said and said[0][0] == "system":
        system = _content(said.pop(0)[1])
    if [role for role, _ in said] == ["user"]:  # a question for the teacher
        return _Said(system, _content(said[0][1]), "", "")
    if [role for role, _ in said] != ["user", "assistant"]:
        raise Dropped("not_one_turn")
    (_, asked), (_, answered) = said
    thoughts = [text_of(answered.get(name)) for name in THOUGHTS]
    thought = next((text for text in thoughts if text), "")
    return _Said(system, _content(asked), thought, _content(answered))


def _role(turn: Row) -> str:
    name = turn.get("role", turn.get("from"))
    return ROLES.get(str(name).lower(), "other")


def _content(turn: Row) -> str:
    """The text of a message; a list of parts, as OpenAI has it, where all are text."""
    content = turn.get("content", turn.get("value"))
    if isinstance(content, list):
        if not all(isinstance(p, dict) and isinstance(p.get("text"), str) for p in content):
            raise Dropped("malformed")
        return "".join(part["text"] for part in content)
    return text_of(content)
