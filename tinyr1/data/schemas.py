"""Which set a row is of, known by its columns.

The first schema whose columns a row has reads it, so those with more columns stand before those
with fewer. What is no set for training is in the table, too: it is refused by its name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from tinyr1.common.errors import UserError
from tinyr1.data import coding, conversations, math, science
from tinyr1.data.draft import Draft, Reader, Row, Selection
from tinyr1.data.sources import Place


class Schema(NamedTuple):
    """A set's columns, and who reads its rows."""

    name: str
    columns: frozenset[str]  # that a row must have
    read: Reader | None  # None: no set for training
    others: frozenset[str] | None = None  # that a row may have besides (None: any)
    is_ours: bool = False  # the column `source` is a whole provenance already
    has_all_domains: bool = False  # and no column that tells them apart but `source`

    def fits(self, row: Row) -> bool:
        names = row.keys()
        is_more = self.others is not None and not names <= self.columns | self.others
        return self.columns <= names and not is_more


def _columns(text: str) -> frozenset[str]:
    return frozenset(text.split())


# fmt: off
SCHEMAS = (
    Schema("rejected rows of this program", _columns("row reason"), None),
    Schema("rejected answers of the teacher", _columns("id trial reason text"), None),
    Schema("a task file", _columns("task kind prompt"), None),
    Schema("samples of a model", _columns("task trial text"), None),
    Schema("OpenR1-Math", _columns("problem generations"), math.openr1),
    Schema("OpenThoughts-114k metadata", _columns("problem domain deepseek_reasoning "
           "deepseek_solution"), coding.openthoughts),
    Schema("s1, s1K, s1K-1.1", _columns("question cot_type"), science.s1),
    Schema("NuminaMath-1.5", _columns("problem answer question_type"), math.numina),
    Schema("OpenThoughts-114k-math", _columns("conversations correct"),
           conversations.openthoughts_math),
    Schema("Mixture-of-Thoughts", _columns("messages num_tokens source"),
           conversations.mixture_of_thoughts),
    Schema("OpenThoughts2", _columns("conversations question source id"), conversations.chat,
           _columns(""), has_all_domains=True),
    Schema("OpenThoughts3", _columns("conversations domain difficulty"), conversations.chat),
    Schema("training file of this program", _columns("id domain messages source"),
           conversations.chat, _columns("answer tests meta"), is_ours=True),
    Schema("question file of this program", _columns("id domain question"),
           conversations.questions, _columns("source answer tests meta"), is_ours=True),
    Schema("conversations (OpenThoughts-114k, Bespoke-Stratos, Light-R1, ShareGPT)",
           _columns("conversations"), conversations.chat),
    Schema("messages", _columns("messages"), conversations.chat),
    Schema("Alpaca", _columns("instruction output"), conversations.alpaca),
    Schema("LIMO", _columns("question solution answer"), math.limo, _columns("")),
)
# fmt: on
_PAIRS = Schema("question and answer", frozenset(), conversations.pairs)


def schema_of(row: Row, where: str) -> Schema:
    """The schema of a row; UserError where there is none, or none to train on."""
    for schema in SCHEMAS:
        if schema.fits(row):
            if schema.read is None:
                raise UserError(
                    f"{where}: {schema.name}, by its columns; --columns question=... thinking=... "
                    f"answer=... if they are yours; known are {_known()}"
                )
            return schema
    names = conversations.COLUMNS
    if all(any(name in row for name in names[part]) for part in ("question", "answer")):
        return _PAIRS
    raise UserError(
        f"{where}: no schema has the columns {', '.join(sorted(map(str, row))) or '(none)'}; "
        f"known are {_known()}; --columns question=... thinking=... answer=... names yours"
    )


def _known() -> str:
    names = [schema.name for schema in SCHEMAS if schema.read] + [_PAIRS.name]
    return ", ".join(names)


def drafts_of(place: Place, want: Selection) -> list[Draft]:
    """The drafts in a row of any schema. Raises Dropped; UserError for what is no schema of ours,
    and where `want` asks for what its schema cannot tell."""
    row, where = place.row, f"{place.where}: row {place.number}"
    schema = schema_of(row, where)
    if schema.has_all_domains and not want.sources:
        raise UserError(
            f"{where}: {schema.name} has all domains and no column for them: --sources names the "
            f"values of its column source that are {want.domain}, such as {row['source']}"
        )
    asked_types = want.question_types and want.question_types != Selection.question_types
    if asked_types and "question_type" not in row:
        raise UserError(f"--question-types: {where} ({schema.name}) has no column question_type")
    if want.sources and "source" not in row:
        raise UserError(f"--sources: {where} ({schema.name}) has no column source")
    assert schema.read is not None
    drafts = schema.read(row, want)
    if schema.is_ours and drafts[0].source:
        return drafts
    return [replace(draft, origin=place.origin) for draft in drafts]


def columns_of(columns: Sequence[str]) -> dict[str, str]:
    """--columns NAME=COLUMN ... as a table; UserError for a name that is none of ours."""
    named: dict[str, str] = {}
    for text in columns:
        name, equals, column = text.partition("=")
        if name not in conversations.COLUMNS or not equals or not column:
            known = ", ".join(conversations.COLUMNS)
            raise UserError(f"--columns={text}: expected NAME=COLUMN, NAME one of {known}")
        if name in named or column in named.values():
            raise UserError(f"--columns={' '.join(columns)}: {text}: named twice")
        named[name] = column
    if named and "question" not in named:
        raise UserError(f"--columns={' '.join(columns)}: question=COLUMN is missing")
    return named


def drafts_by_columns(place: Place, want: Selection, columns: dict[str, str]) -> list[Draft]:
    """The drafts in a row whose columns --columns names.

    UserError where the first row of a file has not all of them: later ones may leave out what they
    have not. Raises Dropped.
    """
    missing = [column for column in columns.values() if column not in place.row]
    if missing and place.number == 1:
        raise UserError(
            f"--columns: {place.where}: row 1 has no column {missing[0]}; it has "
            f"{', '.join(sorted(map(str, place.row)))}"
        )
    if want.sources and "source" not in columns and "source" not in place.row:
        raise UserError(f"--sources: {place.where}: row {place.number} has no column source")
    drafts = conversations.pairs(place.row, want, columns)
    return [replace(draft, origin=place.origin) for draft in drafts]
