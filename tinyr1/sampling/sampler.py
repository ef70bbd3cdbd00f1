"""The promise of every engine: a stream of prompts in, lists of finished samples out.

The random stream of a sample is f(run seed, task, id, trial, position) in our engine; the others
get the key of it as the request's seed.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass
from typing import Annotated, NamedTuple, Protocol

import tyro

from tinyr1.common.config import check_range, check_zero_or_range
from tinyr1.common.errors import UserError
from tinyr1.model.tokenizer import Tokenizer
from tinyr1.record import Prompt, Sample


@dataclass(frozen=True)
class SamplingSettings:
    """Settings of drawing tokens and of ending an answer (paper section 3.1.2)."""

    temperature: float = 0.6
    """0 is greedy."""
    top_p: float = 0.95
    """Nucleus mass."""
    top_k: int = 0
    """Largest logits considered (0: all)."""
    max_tokens: int = 32768
    """New tokens a sample may have."""
    seed: int = 0
    """Seed of all random streams."""
    stop_ids: Annotated[tuple[int, ...], tyro.conf.arg(name="stop-token-ids")] = ()
    """Further stop tokens, besides the model's own."""
    stop: tuple[str, ...] = ()
    """Texts that end an answer and are cut off, besides the stop tokens."""

    def __post_init__(self) -> None:
        check_range(self, 1, math.inf, "max_tokens")
        check_range(self, 0, math.inf, "temperature", "top_k")
        check_range(self, 1e-9, 1, "top_p")
        check_zero_or_range(self, 0.001, "temperature")
        if min(self.stop_ids, default=0) < 0:
            raise UserError(f"--stop-token-ids={self.stop_ids}: expected token ids, from 0")
        if "" in self.stop:
            raise UserError("--stop='': expected a text of at least one character")

    def limit(self, prompt: Prompt, max_model_len: int) -> int:
        """New tokens that this prompt may get."""
        return min(self.max_tokens, max_model_len - len(prompt.tokens))


@dataclass
class Usage:
    """What a server was asked and answered, as it is paid for."""

    requests: int = 0
    prompt_tokens: int = 0
    answer_tokens: int = 0  # those of answers that were thrown away, too
    retried_answers: int = 0  # requests that were not, or not wholly, answered
    retried_tokens: int = 0  # what had come of these

    def __add__(self, other: Usage) -> Usage:
        pairs = zip(astuple(self), astuple(other), strict=True)
        return Usage(*(mine + theirs for mine, theirs in pairs))


class Status(NamedTuple):
    """A sampler's progress."""

    tokens: int  # sampled so far
    running: int  # samples in progress
    longest: int  # tokens of the longest of these
    usage: Usage | None = None  # of a server


class Sampler(Protocol):
    """An engine."""

    def generate(self, prompts: Iterable[Prompt]) -> Iterator[list[Sample]]:
        """Yield samples as they finish; empty lists meanwhile, as a sign of life.

        `prompts` is pulled only when there is room for another, so that several processes can
        share one queue. Each prompt is shorter than the model's limit.
        """
        ...

    def stream(self, prompt: Prompt) -> Iterator[str]:
        """Yield one answer's text as it comes."""
        ...

    @property
    def status(self) -> Status: ...

    def close(self) -> None: ...


def stream_key(seed: int, prompt: Prompt) -> int:
    """The 64-bit key of a sample's random stream."""
    name = f"{seed}\0{prompt.task}\0{prompt.id}\0{prompt.trial}".encode()
    return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "little")


def request_seed(seed: int, prompt: Prompt) -> int:
    """The key in 63 bits: readers of JSON with signed integers can hold it."""
    return stream_key(seed, prompt) >> 1


def finished_sample(
    prompt: Prompt,
    tokens: Sequence[int],
    stopped: bool,
    tokenizer: Tokenizer,
    settings: SamplingSettings,
) -> Sample:
    """The sample of a row of tokens; a stop token and what follows a stop string are cut off."""
    shown = tokens[:-1] if tokens and tokens[-1] in settings.stop_ids else tokens
    return Sample(
        task=prompt.task,
        id=prompt.id,
        trial=prompt.trial,
        text=cut_at_stop(tokenizer.decode(list(shown)), settings.stop),
        token_count=len(tokens),
        finish_reason="stop" if stopped else "length",
        seed=request_seed(settings.seed, prompt),
        think_open=prompt.think_open,
        choice_order=prompt.choice_order,
    )


def cut_at_stop(text: str, stops: Sequence[str]) -> str:
    """`text` before the first occurrence of any of `stops`."""
    return text[: min((text.find(s) for s in stops if s in text), default=len(text))]


class TextStream:
    """Tokens to text as they come: whole characters only, and never a part of a stop string.

    A byte-level token may end within a character, so a token's own text means nothing: what is
    decoded is always the last piece together with what came before it.
    """

    def __init__(
        self, tokenizer: Tokenizer, stops: Sequence[str] = (), stop_ids: Sequence[int] = ()
    ) -> None:
        self.tokenizer = tokenizer
        self.stops = stops
        self.stop_ids = stop_ids
        self.stopped = False
        self._ids: list[int] = []
        self._start = self._end = 0  # the piece that was given out last
        self._held = ""  # perhaps the beginning of a stop string

    def add(self, *tokens: int) -> str:
        """The text that is certain now and was not before."""
        return "".join(self._add(token) for token in tokens if token not in self.stop_ids)

    def _add(self, token: int) -> str:
        if self.stopped:
            return ""
        self._ids.append(token)
        before = self.tokenizer.decode(self._ids[self._start : self._end])
        now = self.tokenizer.decode(self._ids[self._start :])
        if len(now) <= len(before) or now.endswith("\ufffd"):
            return ""
        self._start = self._end
        self._end = len(self._ids)
        return self._release(now[len(before) :])

    def _release(self, piece: str) -> str:
        text = self._held + piece
        cut = cut_at_stop(text, self.stops)
        if len(cut) < len(text):
            self.stopped = True
            self._held = ""
            return cut
        longest = max((len(stop) - 1 for stop in self.stops), default=0)
        for size in range(min(longest, len(text)), 0, -1):
            if any(stop.startswith(text[-size:]) for stop in self.stops):
                self._held = text[-size:]
                return text[:-size]
        self._held = ""
        return text

    def finish(self) -> str:
        """Give out what was held back: half a stop string, or bytes that are no character."""
        if self.stopped:
            return ""
        before = self.tokenizer.decode(self._ids[self._start : self._end])
        rest = self.tokenizer.decode(self._ids[self._start :])[len(before) :]
        return cut_at_stop(self._held + rest, self.stops)
