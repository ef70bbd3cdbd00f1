"""The backbone: Qwen2 (DeepSeek-R1-Distill-Qwen, Qwen2, Qwen2.5) in one file, no rank in it.

Input is tokens (B, T); output is logits (B, T, V), or the summed cross-entropy when targets are
given. One forward serves three uses, which differ only in who may attend to whom:
  plain batches    every row is one causal sequence;
  packed rows      `cu_seqlens` says where documents start: causal inside each, nothing across;
  decoding         `cache` holds the keys and values of what was read before.
Parameter names are those of the published checkpoints, so weights load without a map.
Left out: dropout, sliding windows, attention masks for padding (padding is a document of its own).

Shapes: B rows, T tokens per row, D model, H query heads, K kv heads, Dh head dim, F mlp, V vocab,
Y targets.

    model = Qwen2.from_pretrained("DeepSeek-R1-Distill-Qwen-32B", dtype=torch.bfloat16)
    logits = model(tokens)
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tinyr1.model.config import Qwen2Config
from tinyr1.model.loss import cross_entropy_sum

Attend = Callable[[Tensor, Tensor, Tensor, int], Tensor]


# ---------------------------------------------------------------- rotary embedding


def rotary_frequencies(config: Qwen2Config, device: torch.device) -> Tensor:
    """Angular frequency of each pair of channels, (Dh / 2,) float32."""
    dim = config.head_dim
    exponent = torch.arange(0, dim, 2, device=device, dtype=torch.float32) / dim
    frequencies = config.rope_theta**-exponent
    if config.yarn is None:
        return frequencies
    yarn = config.yarn

    def channel(turns: float) -> float:
        """The (fractional) channel that turns so often within the original context."""
        ratio = yarn.original_max_position_embeddings / (turns * 2 * math.pi)
        return dim * math.log(ratio) / (2 * math.log(config.rope_theta))

    low, high = channel(yarn.beta_fast), channel(yarn.beta_slow)
    if yarn.truncate:
        low = math.floor(low)
        high = math.ceil(high)
    low = max(low, 0)
    high = min(high, dim - 1)
    # Fast channels keep their frequency, slow ones are stretched, a ramp lies between.
    index = torch.arange(dim // 2, device=device, dtype=torch.float32)
    stretch = ((index - low) / max(high - low, 1e-3)).clamp(0, 1)
    return frequencies / yarn.factor * stretch + frequencies * (1 - stretch)


def rotary_tables(
    config: Qwen2Config, positions: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """cos and -sin | sin for `positions` (B, T), each (B, T, 1, Dh); see `rotate`.

    Angles are computed in float32 whatever the model's dtype: in bfloat16 neighbouring positions
    beyond a few hundred would fall together.
    """
    angles = positions.float()[..., None, None] * rotary_frequencies(config, positions.device)
    scale = config.yarn.attention_factor if config.yarn else 1.0
    cos, sin = (angles.cos() * scale).to(dtype), (angles.sin() * scale).to(dtype)
    return torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the pairs (x[i], x[i + Dh/2]) of x (B, T, H, Dh) by their angles.

    (a, b) becomes (a cos - b sin, b cos + a sin): the halves change places, and the table of
    sines has their signs.
    """
    return x * cos + x.roll(x.shape[-1] // 2, -1) * sin


# ---------------------------------------------------------------- who attends to whom


def causal_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Every row one causal sequence. q (B, T, H, Dh), k and v (B, T, K, Dh) -> (B, T, H, Dh)."""
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # (B, H|K, T, Dh)
    out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    return out.transpose(1, 2)  # (B, T, H, Dh)


def document_attention(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, max_len: int) -> Tensor:
    """Causal inside each document, nothing across. Shapes as above with B = 1.

    On CUDA one variable-length kernel; elsewhere a loop over documents, which never computes the
    scores between documents that a dense mask would compute and throw away.
    """
    if q.is_cuda and q.dtype in (torch.bfloat16, torch.float16):
        return _variable_length_kernel()(q[0], k[0], v[0], cu_seqlens, max_len)[None]
    lengths: list[int] = cu_seqlens.diff().tolist()
    parts = zip(q.split(lengths, 1), k.split(lengths, 1), v.split(lengths, 1), strict=True)
    return torch.cat([_causal_on_cpu(*part) for part in parts], dim=1)


def _causal_on_cpu(q: Tensor, k: Tensor, v: Tensor, block: int = 128) -> Tensor:
    """`causal_attention` of documents that torch's CPU kernel would compute in full.

    It skips what the mask hides in steps of 512 keys only. Here a few queries at a time see just
    the keys up to theirs, which takes a fifth off a document of some hundred tokens.
    """
    length = q.shape[1]
    if not block < length <= 1024:
        return causal_attention(q, k, v)
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # (1, H|K, T, Dh)
    outs: list[Tensor] = []
    for start in range(0, length, block):
        stop = min(start + block, length)
        seen = torch.ones(stop - start, stop, dtype=torch.bool, device=q.device).tril(start)
        keys = k[:, :, :stop], v[:, :, :stop]
        outs.append(
            F.scaled_dot_product_attention(
                q[:, :, start:stop], *keys, attn_mask=seen, enable_gqa=True
            )
        )
    return torch.cat(outs, 2).transpose(1, 2)  # (1, T, H, Dh)


@functools.cache
def _variable_length_kernel() -> Callable[[Tensor, Tensor, Tensor, Tensor, int], Tensor]:
    """torch's varlen attention, or flash-attn where torch has none; arguments by signature."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        from flash_attn import flash_attn_varlen_func  # pyright: ignore

        return lambda q, k, v, cu, longest: flash_attn_varlen_func(
            q, k, v, cu, cu, longest, longest, causal=True
        )
    names = inspect.signature(varlen_attn).parameters
    causal: dict[str, Any] = (
        {"window_size": (-1, 0)} if "window_size" in names else {"is_causal": True}
    )
    if "enable_gqa" in names:
        causal["enable_gqa"] = True

    def kernel(q: Tensor, k: Tensor, v: Tensor, cu: Tensor, longest: int) -> Tensor:
        if "enable_gqa" not in names:  # releases before 2.13 want as many kv heads as query heads
            group = q.shape[1] // k.shape[1]
            k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
        out = varlen_attn(q, k, v, cu, cu, longest, longest, **causal)
        return out if isinstance(out, Tensor) else out[0]

    return kernel


class KVCache:
    """Keys and values already computed, for `slots` sequences.

    Row i of a forward belongs to slot `first + i`. What lies in a slot beyond the current
    position is never read, so a slot needs no clearing before it is used again. Memory grows with
    the longest sequence that is there, not with the longest that may come.
    """

    GROWTH = 128  # tokens; growing copies everything, so it must not happen at each step

    def __init__(
        self, config: Qwen2Config, slots: int, dtype: torch.dtype, device: torch.device | str
    ) -> None:
        shape = (slots, config.num_key_value_heads, self.GROWTH, config.head_dim)
        layers = range(config.num_hidden_layers)
        self.keys = [torch.zeros(shape, dtype=dtype, device=device) for _ in layers]
        self.values = [torch.zeros(shape, dtype=dtype, device=device) for _ in layers]
        self.first = 0
        self.length = self.capacity  # of the longest sequence: what decoding looks at
        self._visible = torch.empty(0)  # (B, 1, 1, length) while decoding

    @property
    def capacity(self) -> int:
        return self.keys[0].shape[2]

    def reserve(self, length: int) -> None:
        """Make room for sequences of up to `length` tokens, keeping what is there."""
        self.length = length
        if length > self.capacity:
            more = -(-length // self.GROWTH) * self.GROWTH - self.capacity
            for store in (self.keys, self.values):
                for layer, old in enumerate(store):  # one by one: never all of it twice
                    store[layer] = F.pad(old, (0, 0, 0, more))

    def copy_slot(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` tokens of one slot to another."""
        for store in (*self.keys, *self.values):
            store[target, :, :length] = store[source, :, :length]

    def begin(self, positions: Tensor) -> None:
        """Before a forward: what each row may look at."""
        seen = torch.arange(self.length, device=positions.device) <= positions[:, -1:]
        self._visible = seen[:, None, None, :]

    def attend(self, q: Tensor, k: Tensor, v: Tensor, layer: int, positions: Tensor) -> Tensor:
        """Store k and v at `positions` (B, T) and attend to everything up to there.

        T > 1, or position 0, reads prompts into empty slots: positions are 0..T-1 in each row.
        T = 1 decodes one token per row.
        """
        rows, new_tokens = positions.shape
        last = self.first + rows
        keys, values = self.keys[layer][self.first : last], self.values[layer][self.first : last]
        if new_tokens > 1:
            keys[:, :, :new_tokens] = k.transpose(1, 2)
            values[:, :, :new_tokens] = v.transpose(1, 2)
            return causal_attention(q, k, v)
        row = torch.arange(rows, device=q.device)
        keys[row, :, positions[:, 0]] = k[:, 0]
        values[row, :, positions[:, 0]] = v[:, 0]
        keys, values = keys[:, :, : self.length], values[:, :, : self.length]
        # The query heads that share a kv head become that head's queries: no key is copied.
        grouped = q.view(rows, keys.shape[1], -1, q.shape[3])  # (B, K, H / K, Dh)
        out = F.scaled_dot_product_attention(grouped, keys, values, attn_mask=self._visible)
        return out.reshape(rows, 1, -1, q.shape[3])  # (B, 1, H, Dh)


# ---------------------------------------------------------------- the network


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last dimension."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


class Attention(nn.Module):
    """Grouped-query attention with biases on q, k and v."""

    def __init__(self, config: Qwen2Config) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        q_size = config.num_attention_heads * config.head_dim
        kv_size = config.num_key_value_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, q_size, bias=True)
        self.k_proj = nn.Linear(config.hidden_size, kv_size, bias=True)
        self.v_proj = nn.Linear(config.hidden_size, kv_size, bias=True)
        self.o_proj = nn.Linear(q_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, attend: Attend, layer: int) -> Tensor:
        split = (*x.shape[:2], -1, self.head_dim)
        q = rotate(self.q_proj(x).view(split), cos, sin)  # (B, T, H, Dh)
        k = rotate(self.k_proj(x).view(split), cos, sin)  # (B, T, K, Dh)
        v = self.v_proj(x).view(split)  # (B, T, K, Dh)
        return self.o_proj(attend(q, k, v, layer).flatten(2))  # (B, T, D)


class MLP(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x))."""

    def __init__(self, config: Qwen2Config) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    """One transformer layer, pre-norm: attention, then MLP, each added to the residual stream."""

    def __init__(self, config: Qwen2Config) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, attend: Attend, layer: int) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, attend, layer)
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    """Embedding, blocks and the final norm: tokens (B, T) -> hidden states (B, T, D)."""

    def __init__(self, config: Qwen2Config) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        max_len: int | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        if positions is None:
            positions = torch.arange(tokens.shape[1], device=tokens.device).expand(tokens.shape)
        longest = max_len or tokens.shape[1]
        if cache is not None:
            cache.begin(positions)

        def attend(q: Tensor, k: Tensor, v: Tensor, layer: int) -> Tensor:
            if cache is not None:
                return cache.attend(q, k, v, layer, positions)
            if cu_seqlens is not None:
                return document_attention(q, k, v, cu_seqlens, longest)
            return causal_attention(q, k, v)

        x = self.embed_tokens(tokens)  # (B, T, D)
        cos, sin = rotary_tables(self.config, positions, x.dtype)
        for layer, block in enumerate(self.layers):
            x = block(x, cos, sin, attend, layer)
        return self.norm(x)


class Head(nn.Linear):
    """The output projection. With targets it computes the loss, so that under FSDP the weight is
    whole exactly while the loss is computed."""

    def forward(
        self, input: Tensor, targets: Tensor | None = None, weights: Tensor | None = None
    ) -> Tensor:
        if targets is None:
            return super().forward(input)  # (..., V)
        return cross_entropy_sum(input, self.weight, targets, weights)


class Qwen2(nn.Module):
    """The language model. See the module's docstring for the three uses of `forward`."""

    def __init__(self, config: Qwen2Config) -> None:
        super().__init__()
        self.config = config
        self.model = Decoder(config)
        self.lm_head = Head(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    def forward(
        self,
        tokens: Tensor,
        *,
        positions: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        max_len: int | None = None,
        cache: KVCache | None = None,
        target_rows: Tensor | None = None,
        targets: Tensor | None = None,
        weights: Tensor | None = None,
    ) -> Tensor:
        """Logits (B, T, V); with `targets`, the summed cross-entropy, a float32 scalar.

        tokens      (B, T) int64; B = 1 with cu_seqlens
        positions   (B, T), by default 0..T-1 in each row
        cu_seqlens  (N + 1,) int32: document n spans rows cu_seqlens[n] .. cu_seqlens[n + 1]
        max_len     the longest document, by default T (a bound is enough)
        cache       decode against these keys and values
        target_rows, targets, weights   (Y,): row r of the flattened batch predicts its target,
                    counted `weight` times
        """
        hidden = self.model(tokens, positions, cu_seqlens, max_len, cache)
        if target_rows is None:
            return self.lm_head(hidden)
        return self.lm_head(hidden.flatten(0, 1)[target_rows], targets, weights)

    @staticmethod
    def from_pretrained(
        path: str | Path, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
    ) -> Qwen2:
        """Load a Hugging Face checkpoint directory tensor by tensor (never two copies in memory).

        Raises UserError when config.json asks for what this model is not, or when names, shapes
        or dtypes of the tensors do not fit it (one line for each).
        """
        from tinyr1.model.weights import Checkpoint  # here only: the definition needs no files

        config = Qwen2Config.from_pretrained(path)
        checkpoint = Checkpoint(Path(path))
        checkpoint.check(tensor_shapes(config), tied=config.tie_word_embeddings)
        with torch.device("meta"):
            model = Qwen2(config)
        model = model.to(dtype).to_empty(device=device)
        if config.tie_word_embeddings:  # to_empty gave each of the two names a tensor of its own
            model.lm_head.weight = model.model.embed_tokens.weight
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(checkpoint.tensor(name))
        return model.eval()


def tensor_shapes(config: Qwen2Config) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor in a checkpoint of this model (no head when tied)."""
    with torch.device("meta"):
        parameters = Qwen2(config).named_parameters()  # a tied head once, as the embedding
        return {name: tuple(p.shape) for name, p in parameters}


def parameter_count(config: Qwen2Config) -> int:
    return sum(math.prod(shape) for shape in tensor_shapes(config).values())
