"""config.json as the model reads it: the sizes, and a refusal of every field it cannot honour."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinyr1.errors import UserError
from tinyr1.files import read_json


@dataclass(frozen=True)
class Yarn:
    """YaRN's stretch of the rotary frequencies (arXiv 2309.00071), where the config asks for it."""

    factor: float
    original_max_position_embeddings: int
    attention_factor: float
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True


@dataclass(frozen=True)
class Qwen2Config:
    """The fields of config.json that shape the model, under the same names."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int = 32768
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    tie_word_embeddings: bool = False
    yarn: Yarn | None = None

    @staticmethod
    def from_pretrained(path: str | Path) -> Qwen2Config:
        """Read DIR/config.json; UserError names every field that this model cannot honour."""
        file = Path(path) / "config.json"
        return Qwen2Config.from_dict(read_json(file), str(file))

    @staticmethod
    def from_dict(raw: Mapping[str, Any], where: str = "config") -> Qwen2Config:
        """Read a published config (`rope_theta`) or transformers 5's style (`rope_parameters`)."""
        _refuse_unsupported(raw, where)
        sizes: dict[str, int] = {}
        for name in (
            "vocab_size",
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
        ):
            sizes[name] = _positive_int(raw.get(name), f"{where}: {name}")
        heads, hidden = sizes["num_attention_heads"], sizes["hidden_size"]
        kv_heads = raw.get("num_key_value_heads", heads)
        kv_heads = _positive_int(kv_heads, f"{where}: num_key_value_heads")
        head_dim = raw.get("head_dim")
        if head_dim is None and hidden % heads:
            raise UserError(
                f"{where}: hidden_size={hidden}: not a multiple of num_attention_heads={heads}"
            )
        if heads % kv_heads:
            raise UserError(f"{where}: num_key_value_heads={kv_heads}: does not divide {heads}")
        head_dim = _positive_int(head_dim or hidden // heads, f"{where}: head_dim")
        if head_dim % 2:
            raise UserError(f"{where}: head_dim={head_dim}: rotary embedding needs an even number")
        max_positions = raw.get("max_position_embeddings", 32768)
        max_positions = _positive_int(max_positions, f"{where}: max_position_embeddings")
        rope = dict(raw.get("rope_parameters") or raw.get("rope_scaling") or {})
        return Qwen2Config(
            **sizes,
            num_key_value_heads=kv_heads,
            head_dim=head_dim,
            max_position_embeddings=max_positions,
            rms_norm_eps=raw.get("rms_norm_eps", 1e-6),
            rope_theta=float(rope.get("rope_theta", raw.get("rope_theta", 10000.0))),
            tie_word_embeddings=raw.get("tie_word_embeddings", False),
            yarn=_yarn(rope, max_positions, where),
        )


def _positive_int(value: Any, where: str) -> int:
    if not isinstance(value, int) or value < 1:
        raise UserError(f"{where}={value!r}: expected a positive integer")
    return value


def _refuse_unsupported(raw: Mapping[str, Any], where: str) -> None:
    """UserError for the first field whose meaning this model does not have."""
    if not isinstance(raw, Mapping):
        raise UserError(f"{where}: expected a JSON object")
    layer_types = raw.get("layer_types") or []
    rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    rope_type = rope.get("rope_type", rope.get("type", "default"))
    checks: list[tuple[str, Any, bool]] = [
        ("model_type", raw.get("model_type"), raw.get("model_type") == "qwen2"),
        ("hidden_act", raw.get("hidden_act", "silu"), raw.get("hidden_act", "silu") == "silu"),
        ("use_sliding_window", True, not raw.get("use_sliding_window", False)),
        ("layer_types", layer_types, all(t == "full_attention" for t in layer_types)),
        ("attention_dropout", raw.get("attention_dropout"), not raw.get("attention_dropout")),
        ("quantization_config", "...", not raw.get("quantization_config")),
        ("rope_type", rope_type, rope_type in ("default", "yarn")),
        ("use_mrope", True, not raw.get("use_mrope", False)),
        (
            "partial_rotary_factor",
            rope.get("partial_rotary_factor"),
            rope.get("partial_rotary_factor", 1.0) == 1.0,
        ),
    ]
    for field, value, ok in checks:
        if not ok:
            raise UserError(
                f"{where}: {field}={value!r}: this model definition cannot honour it "
                "(dense Qwen2 with full attention and plain or YaRN rotary embedding)"
            )


def _yarn(rope: Mapping[str, Any], max_positions: int, where: str) -> Yarn | None:
    if rope.get("rope_type", rope.get("type", "default")) != "yarn":
        return None
    factor = rope.get("factor")
    if not isinstance(factor, (int, float)) or factor < 1:
        raise UserError(
            f"{where}: rope_scaling.factor={factor!r}: YaRN needs a number of at least 1"
        )

    def mscale(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0

    attention = rope.get("attention_factor")
    if attention is None and rope.get("mscale") and rope.get("mscale_all_dim"):
        attention = mscale(rope["mscale"]) / mscale(rope["mscale_all_dim"])
    return Yarn(
        factor=float(factor),
        original_max_position_embeddings=rope.get("original_max_position_embeddings")
        or max_positions,
        attention_factor=mscale(1.0) if attention is None else float(attention),
        beta_fast=rope.get("beta_fast") or 32.0,
        beta_slow=rope.get("beta_slow") or 1.0,
        truncate=rope.get("truncate", True),
    )
