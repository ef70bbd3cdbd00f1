"""The embedded sampler: continuous batching over slots of a KV cache, in plain PyTorch.

Prompts come in, samples go out as they finish. A finished sequence is replaced at once, so short
answers do not wait for long ones:

    slot 0   p p p a a a a a a a .            p prompt   a answer   . end
    slot 1   p p a a . p p p p a a a a
    slot 2   p p p p a a a a . p a a a

The random stream of a sample is f(run seed, task, id, trial, position) and nothing else. So the
samples do not depend on the number of slots, the order of the prompts, or where a run was resumed.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from tinyr1.common.errors import RunStopped
from tinyr1.model.qwen2 import KVCache, Qwen2
from tinyr1.model.tokenizer import Tokenizer
from tinyr1.record import Prompt, Sample
from tinyr1.sampling.draw import draw, uniforms
from tinyr1.sampling.sampler import (
    SamplingSettings,
    Status,
    TextStream,
    finished_sample,
    stream_key,
)

PREFILL_TOKENS = 16384  # prompt tokens (padding included) that go through the model at once
_Places = dict[tuple[int, ...], int]  # of a prompt's tokens, the slot that begins with them


@dataclass
class _Sequence:
    """A sequence in a slot."""

    prompt: Prompt
    key: int
    max_new: int
    text: TextStream | None  # where stop strings have to be found
    tokens: list[int] = field(default_factory=list)

    @property
    def length(self) -> int:
        """Tokens whose keys and values are in the cache."""
        return len(self.prompt.tokens) + len(self.tokens) - 1


class _Prefix(NamedTuple):
    """The prompt that lies at the beginning of a slot, in use or not, and what it leads to."""

    tokens: tuple[int, ...]
    logits: Tensor  # (V,)


class TorchEngine:
    """Samples from our own Qwen2 on one device."""

    def __init__(
        self,
        model: Qwen2,
        tokenizer: Tokenizer,
        settings: SamplingSettings,
        slots: int,
        max_model_len: int,
        compile: bool = False,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.settings = settings
        self.max_model_len = max_model_len
        weight = model.lm_head.weight
        self.device = weight.device
        self.slots = slots
        self.cache = KVCache(model.config, slots, weight.dtype, self.device)
        self.prefixes: list[_Prefix | None] = [None] * slots
        self.sequences: list[_Sequence] = []  # number i lives in slot i
        self.tokens_out = self.prompts_read = 0
        if compile:
            model.model.compile(dynamic=True)  # as a whole: blocks would be compiled one by one

    @property
    def status(self) -> Status:
        longest = max((len(one.tokens) for one in self.sequences), default=0)
        return Status(self.tokens_out, len(self.sequences), longest)

    def close(self) -> None:
        """Nothing to end: the model is the caller's."""

    @torch.inference_mode()
    def generate(self, prompts: Iterable[Prompt]) -> Iterator[list[Sample]]:
        """See Sampler. Between steps no sequence is half done: one may stop at any yield."""
        self.sequences.clear()
        waiting = _Waiting(prompts)
        while self.sequences or waiting:
            if len(self.sequences) < self.slots and waiting:
                self._admit(waiting)
            else:
                self._decode()
            yield self._collect()

    @torch.inference_mode()
    def stream(self, prompt: Prompt) -> Iterator[str]:
        self.sequences.clear()
        text = TextStream(self.tokenizer, self.settings.stop, self.settings.stop_ids)
        shown = 0
        self._admit(_Waiting([prompt]))
        (one,) = self.sequences
        while True:
            yield text.add(*one.tokens[shown:])
            shown = len(one.tokens)
            if self._collect():
                yield text.finish()
                return
            self._decode()

    # ------------------------------------------------------------ prompts in

    def _admit(self, waiting: _Waiting) -> None:
        """Put waiting prompts into free slots, each distinct one read once; draw first tokens."""
        # Distinct prompts are read in one batch; further trials of a prompt copy its keys and
        # values.
        start = len(self.sequences)
        unread, further, places = self._choose(waiting)
        longest = max(len(prompt.tokens) for prompt in (*unread, *further))
        self.cache.reserve(max(longest, self.cache.length if self.sequences else 0))
        if unread:
            for slot, logits in enumerate(self._read(unread, start, longest), start):
                self.prefixes[slot] = _Prefix(unread[slot - start].tokens, logits.clone())
        for slot, prompt in enumerate(further, start + len(unread)):
            source = places[prompt.tokens]
            if slot != source:
                self.cache.copy_slot(source, slot, len(prompt.tokens))
                self.prefixes[slot] = self.prefixes[source]
        self.sequences += [self._begin(prompt) for prompt in (*unread, *further)]
        prefixes = self.prefixes[start : len(self.sequences)]
        self._extend(self.sequences[start:], torch.stack([p.logits for p in prefixes if p]))

    def _choose(self, waiting: _Waiting) -> tuple[list[Prompt], list[Prompt], _Places]:
        """Take prompts for the free slots: those to be read, further trials of what lies in a slot
        or soon will, and in which slot."""
        start = len(self.sequences)
        longest = 0
        place = self._place_of(waiting.head.tokens)  # of the prompt whose trials came before
        places: _Places = {} if place is None else {waiting.head.tokens: place}
        unread: list[Prompt] = []
        further: list[Prompt] = []
        while start + len(unread) + len(further) < self.slots and waiting:
            tokens = waiting.head.tokens
            longest = max(longest, len(tokens))
            if tokens in places:
                further.append(waiting.take())
            elif place is not None or (unread and longest * (len(unread) + 1) > PREFILL_TOKENS):
                break
            else:
                places[tokens] = start + len(unread)
                unread.append(waiting.take())
        return unread, further, places

    def _place_of(self, tokens: tuple[int, ...]) -> int | None:
        """A slot, free or not, that begins with this prompt."""
        return next((i for i, p in enumerate(self.prefixes) if p and p.tokens == tokens), None)

    def _begin(self, prompt: Prompt) -> _Sequence:
        s = self.settings
        text = TextStream(self.tokenizer, s.stop) if s.stop else None
        return _Sequence(
            prompt, stream_key(s.seed, prompt), s.limit(prompt, self.max_model_len), text
        )

    def _read(self, prompts: list[Prompt], first_slot: int, longest: int) -> Tensor:
        """Fill slots with prompts (padded on the right: nothing looks at what follows)."""
        self.prompts_read += len(prompts)
        tokens = torch.zeros(len(prompts), longest, dtype=torch.int64)
        for i, prompt in enumerate(prompts):
            tokens[i, : len(prompt.tokens)] = torch.tensor(prompt.tokens)
        self.cache.first = first_slot
        # The head is asked for one position a prompt: at 152,064 words all of them would not fit.
        hidden = self.model.model(tokens.to(self.device), cache=self.cache)  # (B, T, D)
        self.cache.first = 0
        last = torch.tensor([len(p.tokens) - 1 for p in prompts], device=self.device)
        return self.model.lm_head(hidden[torch.arange(len(prompts), device=self.device), last])

    # ------------------------------------------------------------ tokens out

    def _decode(self) -> None:
        """One token for every sequence."""
        lengths = [one.length for one in self.sequences]
        self.cache.reserve(max(lengths) + 1)
        tokens = torch.tensor([[one.tokens[-1]] for one in self.sequences], device=self.device)
        positions = torch.tensor(lengths, device=self.device)[:, None]
        hidden = self.model.model(tokens, positions, cache=self.cache)
        self._extend(self.sequences, self.model.lm_head(hidden[:, 0]))

    def _extend(self, sequences: list[_Sequence], logits: Tensor) -> None:
        """Draw the next token of each sequence from its logits (B, V)."""
        if not bool(logits.isfinite().all()):
            raise RunStopped("the model's logits are not finite; python -m tinyr1.check looks why")
        keys = np.array([one.key for one in sequences], dtype=np.uint64)
        positions = np.array([len(one.tokens) for one in sequences])
        u = torch.from_numpy(uniforms(keys, positions)).to(self.device)
        s = self.settings
        # The only wait for the device in a step is this list.
        drawn: list[int] = draw(logits, u, s.temperature, s.top_p, s.top_k).tolist()
        for one, token in zip(sequences, drawn, strict=True):
            one.tokens.append(token)
            if one.text:
                one.text.add(token)
        self.tokens_out += len(sequences)

    def _collect(self) -> list[Sample]:
        """Take finished sequences out; the last moves into the hole, so that slots stay dense."""
        finished: list[Sample] = []
        for i in range(len(self.sequences) - 1, -1, -1):
            one = self.sequences[i]
            stopped = one.tokens[-1] in self.settings.stop_ids
            stopped |= one.text is not None and one.text.stopped
            if not stopped and len(one.tokens) < one.max_new:
                continue
            finished.append(
                finished_sample(one.prompt, one.tokens, stopped, self.tokenizer, self.settings)
            )
            # The last sequence moves into the hole, with its keys and values.
            last = self.sequences.pop()
            if last is not one:
                self.cache.copy_slot(len(self.sequences), i, last.length)
                self.prefixes[i] = self.prefixes[len(self.sequences)]
                self.sequences[i] = last
        return finished


class _Waiting:
    """Prompts with a view of the next one, true while there is one."""

    def __init__(self, prompts: Iterable[Prompt]) -> None:
        self._rest = iter(prompts)
        self._next: list[Prompt] = []

    def __bool__(self) -> bool:
        if not self._next:
            self._next = list(itertools.islice(self._rest, 1))
        return bool(self._next)

    @property
    def head(self) -> Prompt:
        if not self:
            raise IndexError("no prompt is waiting")
        return self._next[0]

    def take(self) -> Prompt:
        head = self.head
        self._next = []
        return head
