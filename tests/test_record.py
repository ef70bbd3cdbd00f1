"""The file contract of training rows and samples."""

import pytest

from tinyr1 import thinking
from tinyr1.record import Record, Sample

GOOD = "<think>\na\n</think>\n\nb"


def row(**changes):
    base = {
        "id": "1",
        "domain": "math",
        "messages": [
            {"role": "user", "content": "q"},
            {"role": "assistant", "content": GOOD},
        ],
        "source": "s",
    }
    return base | changes


def test_record_is_read():
    record = Record.from_json(row(answer=5))
    assert (record.id, record.answer, record.messages[1].content) == ("1", "5", GOOD)
    alone = Record.from_json({"messages": row()["messages"]})  # all that training asks for
    assert (alone.id, alone.domain, alone.source) == ("", "", "")
    with_system = [{"role": "system", "content": "s"}, *row()["messages"]]
    assert len(Record.from_json(row(messages=with_system)).messages) == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": "q"}]}, "no assistant message"),
        ({"messages": [{"role": "assistant", "content": GOOD}]}, "turn 0 is assistant"),
        ({"messages": [{"role": "tool", "content": "q"}]}, "role='tool'"),
        ({"messages": [{"role": "user", "content": " "}]}, "empty"),
        (
            {
                "messages": [
                    {"role": "user", "content": "q"},
                    {"role": "assistant", "content": "no thought"},
                ]
            },
            "0 <think> and 0 </think>",
        ),
    ],
)
def test_broken_rows_are_refused_by_field(changes, message):
    with pytest.raises(ValueError, match=message):
        Record.from_json(row(**changes))


@pytest.mark.parametrize(
    "content",
    [
        "<think>a",
        "a</think>b",
        "<think>a</think>b<think>c</think>",
        "x<think>a</think>b",
        "<think>a</think>  ",
        "</think><think>a",
    ],
)
def test_malformed_thoughts_are_refused(content):
    with pytest.raises(ValueError):
        thinking.check(content)


def test_require_think_can_be_waived():
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "plain"}]
    assert Record.from_json(row(messages=messages), require_think=False)


def test_sample_round_trip_and_refusals():
    sample = Sample("t", "1", 2, "text", 5, "stop", seed=7, choice_order=(1, 0, 2, 3))
    assert Sample.from_json(sample.to_json()) == sample
    for field, value in (
        ("trial", "0"),
        ("finish_reason", "abort"),
        ("text", None),
        ("choice_order", 5),
    ):
        with pytest.raises(ValueError, match=field):
            Sample.from_json(sample.to_json() | {field: value})
