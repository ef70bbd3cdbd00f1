"""The embedded sampler: continuous batching over slots of a KV cache, in plain PyTorch.

Paper section 3.1.2: temperature 0.6, top-p 0.95, no greedy decoding. Prompts come in, samples go
out as they finish. A finished row is replaced at once, so short answers do not wait for long ones:

    slot 0   p p p a a a a a a a .            p prompt   a answer   . end
    slot 1   p p a a . p p p p a a a a
    slot 2   p p p p a a a a . p a a a

The random stream of a sample is f(run seed, task, id, trial, position) and nothing else. So the
samples do not depend on the number of slots, the order of the prompts, or where a run was resumed.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from tinyr1.chat import Tokenizer
from tinyr1.model import KVCache, Qwen2
from tinyr1.record import Prompt, Sample

PREFILL_TOKENS = 16384  # prompt tokens (padding included) that go through the model at once
TOP_CANDIDATES = 128  # sorted exactly; rows whose nucleus is wider are sorted whole


@dataclass(frozen=True)
class SamplingSettings:
    """How tokens are drawn."""

    temperature: float = 0.6
    top_p: float = 0.95
    top_k: int = 0
    max_tokens: int = 32768
    seed: int = 0


# ---------------------------------------------------------------- randomness


def stream_key(seed: int, prompt: Prompt) -> int:
    """The 64-bit key of a sample's random stream."""
    name = f"{seed}\0{prompt.task}\0{prompt.id}\0{prompt.trial}".encode()
    return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "little")


def uniforms(keys: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """One number in [0, 1) for each (key, position), by SplitMix64. uint64 in, float64 out."""
    with np.errstate(over="ignore"):
        x = keys + (positions.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        x ^= x >> np.uint64(31)
    return (x >> np.uint64(11)).astype(np.float64) * 2.0**-53


def draw(logits: Tensor, u: Tensor, temperature: float, top_p: float, top_k: int = 0) -> Tensor:
    """One token a row: temperature, then top-k, then top-p, then the inverse of the CDF at u.

    logits (B, V), u (B,) in [0, 1) -> (B,) int64. Temperature 0 is greedy. Top-p keeps a token
    while the mass before it is below p. Only the largest logits are sorted; a row whose nucleus
    reaches beyond them is sorted whole, so the result is exact.
    """
    if temperature == 0:
        return logits.argmax(-1)
    scaled = logits.float() / temperature
    size = scaled.shape[-1]
    count = min(top_k or TOP_CANDIDATES, size)
    values, ids = scaled.topk(count)
    total = (values if top_k else scaled).logsumexp(-1, keepdim=True)
    mass = (values - total).exp().cumsum(-1)
    if not top_k and count < size and bool((mass[:, -1] < top_p).any()):
        values, ids = scaled.sort(descending=True)
        mass = (values - total).exp().cumsum(-1)
    probability = (values - total).exp()
    kept = torch.where(mass - probability < top_p, probability, 0.0).double().cumsum(-1)
    threshold = u.to(kept)[:, None] * kept[:, -1:]
    index = (kept <= threshold).sum(-1).clamp(max=kept.shape[1] - 1)
    return ids.gather(1, index[:, None])[:, 0]


# ---------------------------------------------------------------- the engine


@dataclass
class _Row:
    """A sequence in a slot."""

    prompt: Prompt
    key: int
    max_new: int
    tokens: list[int] = field(default_factory=list)

    @property
    def length(self) -> int:
        """Tokens whose keys and values are in the cache."""
        return len(self.prompt.tokens) + len(self.tokens) - 1


class Engine:
    """Samples from our own Qwen2 on one device."""

    def __init__(
        self,
        model: Qwen2,
        tokenizer: Tokenizer,
        settings: SamplingSettings,
        slots: int,
        max_model_len: int,
        stop_ids: Sequence[int],
    ) -> None:
        self.model, self.tokenizer, self.settings = model, tokenizer, settings
        self.max_model_len = max_model_len
        self.stop_ids = set(stop_ids)
        weight = model.lm_head.weight
        self.device = weight.device
        self.slots = slots
        self.cache = KVCache(model.config, slots, KVCache.GROWTH, weight.dtype, self.device)
        self.rows: list[_Row] = []  # row i lives in slot i
        self.tokens_out = 0

    @torch.inference_mode()
    def generate(self, prompts: Sequence[Prompt]) -> Iterator[list[Sample]]:
        """Yield samples in lists, as they finish; prompts must be shorter than max_model_len."""
        waiting = deque(prompts)
        while waiting or self.rows:
            if waiting and len(self.rows) < self.slots:
                self._admit(waiting)
            else:
                self._decode()
            finished = self._collect()
            if finished:
                yield finished

    def _admit(self, waiting: deque[Prompt]) -> None:
        """Read new prompts into free slots, each distinct one once, and draw first tokens."""
        start = len(self.rows)
        groups: dict[tuple[int, ...], list[Prompt]] = {}
        count = longest = 0
        while waiting and start + count < self.slots:
            prompt = waiting[0]
            width = max(longest, len(prompt.tokens))
            distinct = len(groups) + (prompt.tokens not in groups)
            if groups and width * distinct > PREFILL_TOKENS:
                break
            groups.setdefault(waiting.popleft().tokens, []).append(prompt)
            longest, count = width, count + 1
        # Distinct prompts take the first free slots, their further trials the slots after these.
        firsts = [group[0] for group in groups.values()]
        self.cache.reserve(max(longest, self.cache.length if self.rows else 0))
        logits = self._read(firsts, start, longest)
        order, sources = list(firsts), list(range(len(firsts)))
        for source, group in enumerate(groups.values()):
            for prompt in group[1:]:
                slot = start + len(order)
                self.cache.copy_slot(start + source, slot, len(prompt.tokens))
                order.append(prompt)
                sources.append(source)
        rows = [self._row(prompt) for prompt in order]
        self.rows += rows
        self._extend(rows, logits[sources])

    def _row(self, prompt: Prompt) -> _Row:
        max_new = min(self.settings.max_tokens, self.max_model_len - len(prompt.tokens))
        return _Row(prompt, stream_key(self.settings.seed, prompt), max_new)

    def _read(self, prompts: list[Prompt], first_slot: int, longest: int) -> Tensor:
        """Fill slots with prompts (padded on the right: nothing looks at what follows)."""
        tokens = torch.zeros(len(prompts), longest, dtype=torch.int64)
        for i, prompt in enumerate(prompts):
            tokens[i, : len(prompt.tokens)] = torch.tensor(prompt.tokens)
        self.cache.first = first_slot
        if longest == 1:  # a one-token prompt is a decoding step at position 0
            positions = torch.zeros(len(prompts), 1, dtype=torch.int64, device=self.device)
            hidden = self.model.model(tokens.to(self.device), positions, cache=self.cache)
        else:
            hidden = self.model.model(tokens.to(self.device), cache=self.cache)
        self.cache.first = 0
        last = torch.tensor([len(p.tokens) - 1 for p in prompts], device=self.device)
        return self.model.lm_head(hidden[torch.arange(len(prompts), device=self.device), last])

    def _decode(self) -> None:
        """One token for every row."""
        lengths = [row.length for row in self.rows]
        self.cache.reserve(max(lengths) + 1)
        tokens = torch.tensor([[row.tokens[-1]] for row in self.rows], device=self.device)
        positions = torch.tensor(lengths, device=self.device)[:, None]
        hidden = self.model.model(tokens, positions, cache=self.cache)
        self._extend(self.rows, self.model.lm_head(hidden[:, 0]))

    def _extend(self, rows: list[_Row], logits: Tensor) -> None:
        """Draw the next token of each row from its logits."""
        keys = np.array([row.key for row in rows], dtype=np.uint64)
        positions = np.array([len(row.tokens) for row in rows])
        u = torch.from_numpy(uniforms(keys, positions)).to(self.device)
        s = self.settings
        drawn = draw(logits, u, s.temperature, s.top_p, s.top_k).tolist()
        for row, token in zip(rows, drawn, strict=True):
            row.tokens.append(token)
        self.tokens_out += len(rows)

    def _collect(self) -> list[Sample]:
        """Take finished rows out; the last row moves into the hole, so that slots stay dense."""
        finished: list[Sample] = []
        for i in range(len(self.rows) - 1, -1, -1):
            row = self.rows[i]
            stopped = row.tokens[-1] in self.stop_ids
            if not stopped and len(row.tokens) < row.max_new:
                continue
            finished.append(self._sample(row, stopped))
            last = self.rows.pop()
            if last is not row:
                self.cache.copy_slot(len(self.rows), i, last.length)
                self.rows[i] = last
        return finished

    def _sample(self, row: _Row, stopped: bool) -> Sample:
        prompt = row.prompt
        return Sample(
            task=prompt.task,
            id=prompt.id,
            trial=prompt.trial,
            text=self.tokenizer.decode(row.tokens[:-1] if stopped else row.tokens),
            token_count=len(row.tokens),
            finish_reason="stop" if stopped else "length",
            seed=row.key >> 1,  # 63 bits: readers of JSON with signed integers can hold it
            think_open=prompt.think_open,
            choice_order=prompt.choice_order,
        )
