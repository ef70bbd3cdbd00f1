"""Text to token ids and back: the tokenizer and the two chat templates, as rules on ids.

A conversation becomes an `Example`: tokens, and which of them the model must learn to say. The
prompt is never a target; the end-of-sequence token always is. The thinking of an assistant turn is
never stripped (the published Jinja template removes it, which would train a model not to think).

  deepseek_r1   BOS system <|User|> question <|Assistant|> answer EOS       (names abbreviated)
  qwen          <|im_start|>role\\n text <|im_end|>\\n ...                    ChatML

Ids are built piece by piece between the special tokens and never from one rendered string, so a
BOS cannot double; a message that contains a marker of its template is refused.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from tokenizers import AddedToken
from tokenizers import Tokenizer as FastTokenizer

from tinyr1.errors import UserError
from tinyr1.files import read_json
from tinyr1.record import Example, Message

TemplateName = Literal["deepseek_r1", "qwen"]
ThinkIn = Literal["target", "prompt"]

THINK_OPEN, THINK_CLOSE = "<think>", "</think>"
BOS, EOS = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
USER, ASSISTANT = "<｜User｜>", "<｜Assistant｜>"
IM_START, IM_END = "<|im_start|>", "<|im_end|>"
QWEN_SYSTEM = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model")
TEMPLATE_END = {"deepseek_r1": EOS, "qwen": IM_END}  # what ends an answer
TEMPLATE_TOKENS = {"deepseek_r1": (BOS, EOS, USER, ASSISTANT), "qwen": (IM_START, IM_END)}


class Tokenizer:
    """tokenizer.json through `tokenizers`; tokenizer.model through the sentencepiece extra."""

    def __init__(self, path: Path) -> None:
        self.path = path
        config_file = path / "tokenizer_config.json"
        self.config: dict[str, Any] = read_json(config_file) if config_file.exists() else {}
        if (path / "tokenizer.json").exists():
            try:
                self._fast = FastTokenizer.from_file(str(path / "tokenizer.json"))
            except Exception as error:  # the library raises plain Exception for any bad file
                raise UserError(f"{path / 'tokenizer.json'}: cannot be read ({error})") from None
        elif (path / "tokenizer.model").exists():
            self._fast = _SentencePiece(path / "tokenizer.model")
        else:
            raise UserError(f"{path}: neither tokenizer.json nor tokenizer.model in it")
        # Special tokens do not belong to a text, but the thinking tags do, however they are marked.
        self._hidden = {
            token_id
            for token_id, token in self._fast.get_added_tokens_decoder().items()
            if token.special and token.content not in (THINK_OPEN, THINK_CLOSE)
        }

    @property
    def vocab_size(self) -> int:
        return self._fast.get_vocab_size(with_added_tokens=True)

    def encode(self, text: str) -> list[int]:
        """Ids of `text` and nothing else: no BOS, no template."""
        # As a batch of one: unlike `encode`, this lets other threads work meanwhile.
        return self._fast.encode_batch([text], add_special_tokens=False)[0].ids

    def decode(self, ids: list[int]) -> str:
        """Text of `ids` without special tokens, but with the thinking tags."""
        return self._fast.decode(
            [i for i in ids if i not in self._hidden], skip_special_tokens=False
        )

    def decode_raw(self, ids: list[int]) -> str:
        """Text of `ids` with every special token written out."""
        return self._fast.decode(ids, skip_special_tokens=False)

    def special(self, token: str) -> int:
        """The single id of a special token; UserError when this tokenizer has none."""
        token_id = self._fast.token_to_id(token)
        if token_id is None:
            raise UserError(f"{self.path}: tokenizer has no single token {token!r}")
        return token_id

    def has(self, token: str) -> bool:
        return self._fast.token_to_id(token) is not None

    def eos_ids(self) -> tuple[int, ...]:
        """Ids that end an answer: the tokenizer's EOS and generation_config.json's, united."""
        ids: set[int] = set()
        eos = self.config.get("eos_token")
        eos = eos.get("content") if isinstance(eos, dict) else eos
        if isinstance(eos, str) and self.has(eos):
            ids.add(self.special(eos))
        generation = self.path / "generation_config.json"
        if generation.exists():
            stop = read_json(generation).get("eos_token_id")
            ids.update([stop] if isinstance(stop, int) else stop or [])
        return tuple(sorted(ids))

    def fingerprint(self) -> str:
        """Hash of everything that decides what ids a text gets."""
        return hashlib.sha256(self._fast.to_str().encode()).hexdigest()

    def opens_thinking(self) -> bool:
        """Whether the published chat template's generation prompt ends in `<think>\\n`."""
        template = json.dumps(self.config.get("chat_template", ""))
        jinja = self.path / "chat_template.jinja"
        if jinja.exists():
            template = json.dumps(jinja.read_text(encoding="utf-8"))
        tail = template[template.rfind("add_generation_prompt") :]
        return THINK_OPEN in tail


class _Ids(NamedTuple):
    ids: list[int]


class _SentencePiece:
    """tokenizer.model behind the few methods of `tokenizers.Tokenizer` that are used here."""

    def __init__(self, path: Path) -> None:
        try:
            from sentencepiece import SentencePieceProcessor
        except ImportError:
            raise UserError(
                f"{path}: needs the sentencepiece extra: pip install 'tinyr1[sentencepiece]'"
            ) from None
        try:
            self.model: Any = SentencePieceProcessor(model_file=str(path))
        except (OSError, RuntimeError) as error:
            raise UserError(f"{path}: cannot be read ({error})") from None

    def get_vocab_size(self, with_added_tokens: bool = True) -> int:
        return self.model.vocab_size()

    def get_added_tokens_decoder(self) -> dict[int, AddedToken]:
        control = (i for i in range(self.model.vocab_size()) if self.model.is_control(i))
        return {i: AddedToken(self.model.id_to_piece(i), special=True) for i in control}

    def encode_batch(self, texts: list[str], add_special_tokens: bool = False) -> list[_Ids]:
        return [_Ids(self.model.encode(text)) for text in texts]

    def decode(self, ids: list[int], skip_special_tokens: bool = False) -> str:
        """Control tokens decode to nothing in the library; here they are written out."""
        parts: list[str] = []
        for is_control, group in itertools.groupby(ids, self.model.is_control):
            run = list(group)
            parts += (
                [self.model.id_to_piece(i) for i in run] if is_control else [self.model.decode(run)]
            )
        return "".join(parts)

    def token_to_id(self, token: str) -> int | None:
        token_id = self.model.piece_to_id(token)
        return None if token_id == self.model.unk_id() else token_id

    def to_str(self) -> str:
        return self.model.serialized_model_proto().hex()


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


def check_markers(messages: tuple[Message, ...], template: TemplateName) -> None:
    """ValueError where a message contains a marker: it would become a turn of its own."""
    for message in messages:
        for token in TEMPLATE_TOKENS[template]:
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
    check_markers(messages, template)
    tokens: list[int] = []
    is_target: list[bool] = []

    def add(ids: list[int], target: bool = False) -> None:
        tokens.extend(ids)
        is_target.extend([target] * len(ids))

    for i, message in enumerate(messages):
        if message.role != "assistant":
            add(_turn_ids(tokenizer, message, template, first=i == 0))
            continue
        add(_assistant_start(tokenizer, template))
        content = message.content
        if think_in == "prompt" and content.startswith(THINK_OPEN):
            # Cut where the generation prompt ends, so that training sees the tokens of sampling.
            add(tokenizer.encode(THINK_OPEN + "\n"))
            content = content.removeprefix(THINK_OPEN).removeprefix("\n")
        end = tokenizer.special(TEMPLATE_END[template])
        add([*tokenizer.encode(content), end], target=True)
        if template == "qwen" and i + 1 < len(messages):
            add(tokenizer.encode("\n"))
    return Example(tokens, is_target)


def render_prompt(
    tokenizer: Tokenizer,
    messages: tuple[Message, ...],
    template: TemplateName,
    open_thinking: bool = False,
) -> list[int]:
    """The ids after which the model answers: the conversation and the assistant's marker.

    ValueError for a message that contains a marker of the template.
    """
    check_markers(messages, template)
    ids: list[int] = []
    for i, message in enumerate(messages):
        ids += _turn_ids(tokenizer, message, template, first=i == 0)
    ids += _assistant_start(tokenizer, template)
    return ids + (tokenizer.encode(THINK_OPEN + "\n") if open_thinking else [])


def _turn_ids(
    tokenizer: Tokenizer, message: Message, template: TemplateName, first: bool
) -> list[int]:
    """Ids of a system or user turn, with what opens the conversation when it is the first."""
    if template == "deepseek_r1":
        start = [tokenizer.special(BOS)] if first else []
        marker = [tokenizer.special(USER)] if message.role == "user" else []
        return start + marker + tokenizer.encode(message.content)
    head: list[int] = []
    if first and message.role != "system":
        head = _turn_ids(tokenizer, Message("system", QWEN_SYSTEM), template, first=False)
    text = tokenizer.encode(f"{message.role}\n{message.content}")
    start, end = tokenizer.special(IM_START), tokenizer.special(IM_END)
    return [*head, start, *text, end, *tokenizer.encode("\n")]


def _assistant_start(tokenizer: Tokenizer, template: TemplateName) -> list[int]:
    if template == "deepseek_r1":
        return [tokenizer.special(ASSISTANT)]
    return [tokenizer.special(IM_START), *tokenizer.encode("assistant\n")]
