"""Text to token ids and back, and nothing of conversations (these are in chat.py)."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import AddedToken
from tokenizers import Tokenizer as FastTokenizer

from tinyr1 import thinking
from tinyr1.common.errors import UserError, needs
from tinyr1.common.files import read_object

# As Jinja text has it: the words between the markers, with no expression or end of a string among
# them, where a backslash takes the next character with it.
_DEFAULT_SYSTEM = re.compile(
    r"<\|im_start\|>system(?:\\n|\n)((?:[^'\"\\\n{]|\\.|\{(?![{%]))+?)<\|im_end\|>"
)
_ESCAPES = {"n": "\n", "t": "\t"}
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model")


class Tokenizer:
    """tokenizer.json through `tokenizers`; tokenizer.model through the sentencepiece extra."""

    def __init__(self, path: Path, system: str | None = None) -> None:
        self.path = path
        self.system = system  # of conversations without one (None: what the template says)
        config_file = path / "tokenizer_config.json"
        self.config: dict[str, Any] = read_object(config_file) if config_file.exists() else {}
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
        # A text is compared and graded without its special tokens.
        self._hidden = {
            token_id
            for token_id, token in self._fast.get_added_tokens_decoder().items()
            if token.special and token.content not in (thinking.OPEN, thinking.CLOSE)
        }

    @property
    def largest_id(self) -> int:
        """Ids need not be dense: the largest says how many rows an embedding must have."""
        return max(self.vocabulary().values(), default=-1)

    def vocabulary(self) -> dict[str, int]:
        """Every token and its id, added ones among them."""
        return self._fast.get_vocab(with_added_tokens=True)

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
            ids.update(id_list(read_object(generation), "eos_token_id", generation))
        return tuple(sorted(ids))

    @cached_property
    def end_markers(self) -> tuple[str, ...]:
        """The special tokens, as text, that end an answer."""
        added = self._fast.get_added_tokens_decoder()
        return tuple(added[i].content for i in self.eos_ids() if i in added)

    def check_size(self, vocab_size: int) -> None:
        """UserError where a model of `vocab_size` has no row for some of the ids."""
        if self.largest_id >= vocab_size:
            raise UserError(
                f"{self.path}: the tokenizer has the id {self.largest_id}, config.json says "
                f"vocab_size={vocab_size}"
            )

    def fingerprint(self) -> str:
        """Hash of everything that decides what ids a text gets."""
        return hashlib.sha256(self._fast.to_str().encode()).hexdigest()

    def _chat_template(self) -> str:
        """The published template, wherever it is kept; "" where there is none."""
        jinja = self.path / "chat_template.jinja"
        if jinja.is_file():
            try:
                return jinja.read_text(encoding="utf-8")
            except UnicodeDecodeError as error:
                raise UserError(f"{jinja}: not UTF-8 text ({error})") from None
        template = self.config.get("chat_template")
        if isinstance(template, list):  # several by name
            named = [t for t in template if isinstance(t, dict) and t.get("name") == "default"]
            template = named[0].get("template") if named else None
        return template if isinstance(template, str) else ""

    def default_system(self) -> str:
        """The system message that a ChatML template puts where a conversation has none."""
        if self.system is not None:
            return self.system
        found = _DEFAULT_SYSTEM.search(self._chat_template())
        return re.sub(r"\\(.)", lambda c: _ESCAPES.get(c[1], c[1]), found[1]) if found else ""

    def has_chat_template(self) -> bool:
        return bool(self._chat_template())

    def opens_thinking(self) -> bool:
        """True where the published chat template's generation prompt ends in `<think>\\n`."""
        _, found, prompt = self._chat_template().rpartition("add_generation_prompt")
        return bool(found) and thinking.template_opens(prompt)


def id_list(config: Mapping[str, Any], field: str, where: Path) -> list[int]:
    """A field that holds a token id, several, or null; UserError for anything else."""
    value = config.get(field)
    ids = [] if value is None else value if isinstance(value, list) else [value]
    if any(type(i) is not int or i < 0 for i in ids):
        raise UserError(f"{where}: {field}={value!r}: expected a token id or a list of them")
    return ids


class _Ids(NamedTuple):
    ids: list[int]


class _SentencePiece:
    """tokenizer.model behind the few methods of `tokenizers.Tokenizer` that are used here."""

    def __init__(self, path: Path) -> None:
        library = needs("sentencepiece", "sentencepiece", f"{path}")
        try:
            self.model: Any = library.SentencePieceProcessor(model_file=str(path))
        except (OSError, RuntimeError) as error:
            raise UserError(f"{path}: cannot be read ({error})") from None

    def get_vocab(self, with_added_tokens: bool = True) -> dict[str, int]:
        return {self.model.id_to_piece(i): i for i in range(self.model.vocab_size())}

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
