"""The thought format: joined, checked, split, and read from texts of any shape."""

import pytest

from tinyr1 import thinking


def test_what_is_joined_is_normal_checked_and_split():
    text = thinking.join("a\n\nb", "c")
    assert text == "<think>\na\n\nb\n</think>\n\nc"
    assert thinking.is_normal(text)
    thinking.check(text)
    assert thinking.split(text) == ("a\n\nb", "c")
    assert thinking.split(thinking.join("a", "c", opened=True)) == ("a", "c")
    assert thinking.OPENING + thinking.join("a", "c", opened=True) == thinking.join("a", "c")


@pytest.mark.parametrize(
    "text",
    [
        "<think>a</think>b",
        "<think>\n a\n</think>\n\nb",
        "<think>\na\n</think>\nb",
        "<think>\na\n</think>\n\nb\n",
        "<think>\n\n</think>\n\nb",
    ],
)
def test_other_white_space_is_not_normal(text):
    assert not thinking.is_normal(text)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("only an answer", "no_think"),
        ("<think>a", "unfinished_thinking"),
        ("<think>a</think>b</think>", "several_thoughts"),
        ("<think>a<think>b</think>c", "several_thoughts"),
        ("Well. <think>a</think>b", "text_before_thinking"),
        ("a</think><think>b", "text_before_thinking"),
    ],
)
def test_faults_have_reasons(text, reason):
    with pytest.raises(thinking.ThoughtFault) as fault:
        thinking.split(text)
    assert fault.value.reason == reason


@pytest.mark.parametrize(
    ("text", "options", "answer"),
    [
        ("a</think>b", {}, "b"),
        ("<think>a</think>b<think>c</think>d", {}, "d"),
        ("<think>a</think>b<think>c", {}, None),
        ("<think>a", {}, None),
        ("plain", {}, "plain"),
        ("plain", {"think_open": True}, None),
        ("plain", {"finish_reason": "length"}, None),
        ("a</think>b", {"finish_reason": "length"}, "b"),
    ],
)
def test_the_answer_is_what_follows_the_last_thought(text, options, answer):
    assert thinking.after(text, **options) == answer


def test_texts_for_people():
    assert thinking.for_display("<think>a</think>b") == ("<think>a", "b")
    assert thinking.for_display("<think>a") == ("<think>a", "")
    assert thinking.for_display("b") == ("", "b")
    assert thinking.has_thought("<think>\na</think>b")
    assert not thinking.has_thought("<think>\n\n</think>b")
    assert not thinking.has_thought("a")


def test_generation_prompts():
    assert thinking.template_opens("<｜Assistant｜><think>\\n")
    assert not thinking.template_opens("<|im_start|>assistant\\n<think>\\n\\n</think>\\n\\n")
    assert thinking.without_opening("  <think>\na") == "a"
    assert thinking.without_opening("a") is None
