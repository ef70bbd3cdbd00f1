"""What other harnesses write of their samples, row by row.

LiveCodeBench's `*_eval_all.json`, the details parquet of lighteval, and the `samples_*.jsonl` of
lm-evaluation-harness; each is known by its columns.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tinyr1.common.errors import UserError
from tinyr1.data.published import file_rows

LM_EVAL = "lm-evaluation-harness"


class Answer(NamedTuple):
    """One question of a foreign file and what was answered to it."""

    id: str | None  # as the harness has it
    question: str  # "" where only the prompt is known
    prompt: str  # all that was asked, "" where it is not recorded
    texts: list[str]
    token_counts: list[int]  # [] where they are not recorded
    limit: int | None  # tokens that an answer could have


# ---------------------------------------------------------------- the formats


def _livecodebench(row: Mapping[str, Any]) -> Answer:
    texts = _texts(row, "output_list")
    return Answer(str(row["question_id"]), str(row["question_content"]), "", texts, [], None)


def _lighteval(row: Mapping[str, Any]) -> Answer:
    """Details of lighteval from 0.10 on: the document, the response and the metrics."""
    doc, response = _mapping(row, "doc"), _mapping(row, "model_response")
    texts = _texts(response, "text")
    asked = response.get("input")
    prompt = asked if isinstance(asked, str) and asked else str(doc.get("query") or "")
    question = str(doc.get("original_query") or "")
    counts = _lengths(response.get("output_tokens"), len(texts))
    return Answer(None, question, prompt, texts, counts, _limit(doc, "generation_size"))


def _lighteval_before(row: Mapping[str, Any]) -> Answer:
    """Details of lighteval before 0.10, where every column may be text: "['...']"."""
    texts = _texts(row, "predictions")
    prompt = str(row.get("full_prompt") or row.get("example") or "")
    return Answer(None, "", prompt, texts, _lengths(row.get("cont_tokens"), len(texts)), None)


def _lm_eval(row: Mapping[str, Any]) -> Answer:
    doc = _mapping(row, "doc")
    names = ("unique_id", "Record ID", "question_id", "id", "ID")
    found = next((str(doc[name]) for name in names if doc.get(name) not in (None, "")), None)
    questions = ("problem", "question", "Problem", "Question", "question_content", "prompt")
    question = next((str(doc[name]) for name in questions if doc.get(name)), "")
    prompt, options = _arguments(row.get("arguments"))
    limit = _limit(options, "max_gen_toks", "max_tokens", "max_new_tokens")
    return Answer(found, question, prompt, _flat(row), [], limit)


FORMATS: dict[str, tuple[tuple[str, ...], Callable[[Mapping[str, Any]], Answer]]] = {
    "LiveCodeBench": (("question_id", "question_content", "output_list"), _livecodebench),
    "lighteval": (("doc", "model_response"), _lighteval),
    "lighteval (before 0.10)": (("full_prompt", "predictions"), _lighteval_before),
    LM_EVAL: (("doc", "resps"), _lm_eval),
}


def _format(row: Mapping[str, Any]) -> tuple[str, Callable[[Mapping[str, Any]], Answer]]:
    """The format with these columns; ValueError that names what is known and what was seen."""
    for name, (columns, convert) in FORMATS.items():
        if all(column in row for column in columns):
            return name, convert
    known = "; ".join(f"{name}: {', '.join(columns)}" for name, (columns, _) in FORMATS.items())
    seen = ", ".join(sorted(map(str, row))[:12]) or "nothing"
    raise ValueError(f"expected the columns of one of ({known}), found {seen}")


def _value(name: str, cell: Any) -> Any:
    """A cell, or what its text stands for where a table keeps everything as text."""
    if isinstance(cell, str) and cell[:1] in "[{(":
        try:
            return ast.literal_eval(cell)  # literals only: nothing of it is run
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            raise ValueError(f"{name}: text that is no Python literal: {cell[:60]!r}") from None
    return cell


def _mapping(row: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = _value(name, row.get(name))
    if not isinstance(value, Mapping):
        raise ValueError(f"{name}: expected an object, found {type(value).__name__}")
    return value


def _texts(row: Mapping[str, Any], name: str) -> list[str]:
    cell = row.get(name)
    is_text = isinstance(cell, str) and not cell.startswith(("['", '["'))
    values: Any = [cell] if is_text else _value(name, cell)
    if not isinstance(values, list) or not all(isinstance(text, str) for text in values):
        raise ValueError(f"{name}: expected a list of texts")
    if not values:
        raise ValueError(f"{name}: empty")
    return values


def _lengths(cell: Any, count: int) -> list[int]:
    """Tokens of each answer, from lists of ids; [] where they are not recorded."""
    try:
        lists = _value("tokens", cell)
    except ValueError:  # tensors, as text
        return []
    if not isinstance(lists, list) or not all(isinstance(ids, list) for ids in lists):
        return []
    return [len(ids) for ids in lists] if len(lists) == count else []


def _limit(options: Mapping[str, Any], *names: str) -> int | None:
    return next((options[n] for n in names if type(options.get(n)) is int), None)


def _flat(row: Mapping[str, Any]) -> list[str]:
    """lm-evaluation-harness has a list for each request, and in it one for each repetition."""
    nested = row["resps"] if isinstance(row["resps"], list) else []
    texts: list[Any] = []
    for item in nested:
        texts += item if isinstance(item, list) else [item]
    if not texts or not all(isinstance(text, str) for text in texts):
        raise ValueError("resps: expected lists of texts (was it a task of likelihoods?)")
    return texts


def _arguments(raw: Any) -> tuple[str, Mapping[str, Any]]:
    """Prompt and options: {"gen_args_0": {"arg_0": prompt, "arg_1": options}}, or lists of both."""
    while isinstance(raw, (Mapping, list)) and raw:
        values = list(raw.values()) if isinstance(raw, Mapping) else list(raw)
        if isinstance(values[0], str):
            rest = values[1] if len(values) > 1 else {}
            return values[0], rest if isinstance(rest, Mapping) else {}
        raw = values[0]
    return "", {}


def answers(file: Path) -> Iterator[tuple[str, str, Answer]]:
    """(harness, place, answer) of each question in a file; UserError names file and row."""
    if not file.is_file():
        raise UserError(f"{file}: {'a folder' if file.is_dir() else 'no such file'}")
    first_filter: str | None = None
    for number, row in file_rows(file):
        place = f"{file}:{number}"
        try:
            name, read = _format(row)
            answer = read(row)
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{place}: {error}") from None
        if name == LM_EVAL:  # which writes a row for each of its filters: one will do
            this = str(row.get("filter"))
            first_filter = this if first_filter is None else first_filter
            if this != first_filter:
                continue
        yield name, place, answer
