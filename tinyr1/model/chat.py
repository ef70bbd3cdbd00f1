"""Conversations as token ids: the two chat templates, as rules on ids.

A conversation becomes an `Example`: tokens, and which of them the model must learn to say. The
prompt is never a target; the end-of-sequence token always is. The thinking of an assistant turn is
never stripped (the published Jinja template removes it, which would train a model not to think).

  deepseek_r1   BOS system <|User|> question <|Assistant|> answer EOS       (names abbreviated)
  qwen          <|im_start|>role\\n text <|im_end|>\\n ...                    ChatML

Ids are built piece by piece between the special tokens and never from one rendered string, so a
BOS cannot double; a message that contains a marker of its template is refused.
"""

from __future__ import annotations

import itertools
from typing import Literal, get_args

from tinyr1 import thinking
from tinyr1.common.errors import UserError
from tinyr1.model.tokenizer import Tokenizer
from tinyr1.record import Example, Message

TemplateName = Literal["deepseek_r1", "qwen"]
ThinkIn = Literal["target", "prompt"]

BOS, EOS = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
USER, ASSISTANT = "<｜User｜>", "<｜Assistant｜>"
IM_START, IM_END = "<|im_start|>", "<|im_end|>"
R1_TURNS = {"system": ((), ()), "user": ((USER,), ()), "assistant": ((ASSISTANT,), (EOS,))}
TEMPLATE_END = {"deepseek_r1": EOS, "qwen": IM_END}  # what ends an answer
TEMPLATE_TOKENS = {"deepseek_r1": (BOS, EOS, USER, ASSISTANT), "qwen": (IM_START, IM_END)}


def check_template(tokenizer: Tokenizer, template: str) -> None:
    """UserError unless every marker of `template` is one id of this tokenizer."""
    if template not in get_args(TemplateName):
        raise UserError(f"template={template}: expected one of {', '.join(get_args(TemplateName))}")
    for token in TEMPLATE_TOKENS[template]:
        if not tokenizer.has(token):
            raise UserError(
                f"template={template}: {tokenizer.path} has no single token {token!r}; "
                f"use --template {'qwen' if template == 'deepseek_r1' else 'deepseek_r1'}"
            )


def guess_template(tokenizer: Tokenizer) -> TemplateName:
    """The template whose markers this tokenizer has; deepseek_r1 where it has both."""
    for name in get_args(TemplateName):
        if all(tokenizer.has(token) for token in TEMPLATE_TOKENS[name]):
            return name
    raise UserError(
        f"{tokenizer.path}: has the special tokens of neither template; give --template"
    )


def stop_ids(tokenizer: Tokenizer, template: TemplateName) -> tuple[int, ...]:
    """Every id that ends an answer: the tokenizer's and the one that `template` trains."""
    end = tokenizer.special(TEMPLATE_END[template])
    return tuple(sorted({*tokenizer.eos_ids(), end}))


def with_system(
    tokenizer: Tokenizer, messages: tuple[Message, ...], template: TemplateName
) -> tuple[Message, ...]:
    """The messages, after the system message that the user or a ChatML template puts first."""
    if messages and messages[0].role == "system":
        return messages
    text = tokenizer.default_system() if template == "qwen" else tokenizer.system
    return (Message("system", text), *messages) if text else messages


def check_markers(
    tokenizer: Tokenizer, messages: tuple[Message, ...], template: TemplateName
) -> None:
    """ValueError where a message contains a marker: it would begin a turn, or end one."""
    for message in messages:
        for token in (*TEMPLATE_TOKENS[template], *tokenizer.end_markers):
            if token in message.content:
                raise ValueError(f"content: the {message.role} message contains {token!r}")


def render(
    tokenizer: Tokenizer,
    messages: tuple[Message, ...],
    template: TemplateName,
    think_in: ThinkIn = "target",
) -> Example:
    """A conversation as tokens, with every assistant turn (and its EOS) a target.

    `think_in="prompt"` makes the opening `<think>\\n` part of the prompt, as the published
    generation prompt does; by default the model learns to write it itself. ValueError for a
    message that contains a marker of the template.
    """
    messages = with_system(tokenizer, messages, template)
    check_markers(tokenizer, messages, template)
    # Piece by piece, never as one string: tokenised as a whole, a template's text would get a
    # second BOS, and a marker that a user typed would become the marker.
    tokens: list[int] = []
    is_target: list[bool] = []

    def add(ids: list[int], target: bool = False) -> None:
        tokens.extend(ids)
        is_target.extend([target] * len(ids))

    for i, message in enumerate(messages):
        if message.role != "assistant":
            add(_turn_ids(tokenizer, message, template, first=i == 0))
            continue
        # The assistant's marker belongs to the prompt: the model is never asked to begin its own
        # turn.
        add(_assistant_start(tokenizer, template))
        content = message.content
        if think_in == "prompt" and (rest := thinking.without_opening(content)) is not None:
            # Cut where the generation prompt ends, so that training sees the tokens of sampling.
            add(tokenizer.encode(thinking.OPENING))
            content = rest
        end = tokenizer.special(TEMPLATE_END[template])
        # EOS is a target, or a trained model would not know how to stop.
        add([*tokenizer.encode(content), end], target=True)
        # ChatML has a line break between turns that nobody says.
        if template == "qwen" and i + 1 < len(messages):
            add(tokenizer.encode("\n"))
    return Example(tokens, is_target)


def marked(tokenizer: Tokenizer, example: Example) -> str:
    """The text with its targets between >> and <<; special tokens stay visible."""
    parts: list[str] = []
    pairs = zip(*example, strict=True)
    for is_target, run in itertools.groupby(pairs, key=lambda pair: pair[1]):
        span = tokenizer.decode_raw([token for token, _ in run])
        parts.append(f">>{span}<<" if is_target else span)
    return "".join(parts)


def render_prompt(
    tokenizer: Tokenizer,
    messages: tuple[Message, ...],
    template: TemplateName,
    open_thinking: bool = False,
) -> list[int]:
    """The ids after which the model answers: the conversation and the assistant's marker.

    ValueError for a message that contains a marker of the template.
    """
    messages = with_system(tokenizer, messages, template)
    check_markers(tokenizer, messages, template)
    ids: list[int] = []
    for i, message in enumerate(messages):
        ids += _turn_ids(tokenizer, message, template, first=i == 0)
    ids += _assistant_start(tokenizer, template)
    if open_thinking:
        ids += tokenizer.encode(thinking.OPENING)
    return ids


def _turn_ids(
    tokenizer: Tokenizer, message: Message, template: TemplateName, first: bool
) -> list[int]:
    """Ids of a turn of a prompt, with what opens the conversation when it is the first."""
    if template == "deepseek_r1":
        before, after = R1_TURNS[message.role]
        before = (BOS, *before) if first else before
        special = tokenizer.special
        return [*map(special, before), *tokenizer.encode(message.content), *map(special, after)]
    text = tokenizer.encode(f"{message.role}\n{message.content}")
    start, end = tokenizer.special(IM_START), tokenizer.special(IM_END)
    return [start, *text, end, *tokenizer.encode("\n")]


def _assistant_start(tokenizer: Tokenizer, template: TemplateName) -> list[int]:
    if template == "deepseek_r1":
        return [tokenizer.special(ASSISTANT)]
    return [tokenizer.special(IM_START), *tokenizer.encode("assistant\n")]
