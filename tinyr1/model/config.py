"""config.json as the model reads it: the sizes, and a refusal of every field it cannot honour."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinyr1.common.errors import UserError
from tinyr1.common.files import read_object
from tinyr1.model.places import check_directory, located

ROPE_AT_TOP = ("rope_theta", "original_max_position_embeddings", "partial_rotary_factor")
# Beyond these a number is a slip of the pen, and would end in an overflow far from its file.
LARGEST_SIZE = 1 << 24
LARGEST_DEPTH = 10_000
LARGEST_NUMBER = 1e12


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
        """Read DIR/config.json; UserError names the first field that this model cannot honour."""
        check_directory(Path(path))
        folder = located(Path(path))
        file = folder / "config.json"
        if not file.exists() and any(folder.glob("*.gguf")):
            raise UserError(f"{path}: GGUF is not read; download the model's safetensors")
        return Qwen2Config.from_dict(read_object(file), str(file))

    @staticmethod
    def from_dict(raw: Mapping[str, Any], where: str = "config") -> Qwen2Config:
        """Read a published config (`rope_theta`) or transformers 5's style (`rope_parameters`)."""
        if not isinstance(raw, Mapping):
            raise UserError(f"{where}: expected a JSON object")
        fields, rope = _Fields(raw, where), _Fields(_rope(raw, where), where)
        _refuse_unsupported(raw, rope.raw, where)
        hidden, heads = fields.whole("hidden_size"), fields.whole("num_attention_heads")
        kv_heads = fields.whole("num_key_value_heads", heads)
        if raw.get("head_dim") is None and hidden % heads:
            raise UserError(
                f"{where}: hidden_size={hidden}: not a multiple of num_attention_heads={heads}"
            )
        head_dim = fields.whole("head_dim", hidden // heads)
        # Grouped-query attention: each key-value head serves heads / kv_heads query heads.
        if heads % kv_heads:
            raise UserError(f"{where}: num_key_value_heads={kv_heads}: does not divide {heads}")
        # Rotary embedding turns pairs of a head's elements.
        if head_dim % 2:
            raise UserError(f"{where}: head_dim={head_dim}: rotary embedding needs an even number")
        max_positions = fields.whole("max_position_embeddings", 32768)
        return Qwen2Config(
            vocab_size=fields.whole("vocab_size"),
            hidden_size=hidden,
            intermediate_size=fields.whole("intermediate_size"),
            num_hidden_layers=fields.whole("num_hidden_layers", largest=LARGEST_DEPTH),
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            head_dim=head_dim,
            max_position_embeddings=max_positions,
            rms_norm_eps=fields.number("rms_norm_eps", 1e-6, low=0.0),
            rope_theta=rope.number("rope_theta", 10000.0, low=1.001),
            tie_word_embeddings=fields.truth("tie_word_embeddings", False),
            yarn=_yarn(rope, max_positions) if _rope_type(rope.raw) == "yarn" else None,
        )


class _Fields:
    """A JSON object whose values are read by type; UserError names the field that has another.

    What is null or missing has its default.
    """

    def __init__(self, raw: Mapping[str, Any], where: str) -> None:
        self.raw = raw
        self.where = where

    def _value(self, name: str, default: Any) -> Any:
        return default if self.raw.get(name) is None else self.raw[name]

    def _wrong(self, name: str, expected: str) -> UserError:
        return UserError(f"{self.where}: {name}={self.raw.get(name)!r}: expected {expected}")

    def whole(self, name: str, default: int | None = None, largest: int = LARGEST_SIZE) -> int:
        """A size."""
        value = self._value(name, default)
        if type(value) is not int or not 1 <= value <= largest:
            raise self._wrong(name, f"a whole number from 1 to {largest}")
        return value

    def number(self, name: str, default: float, low: float) -> float:
        value = self._value(name, default)
        if type(value) not in (int, float) or not low <= value <= LARGEST_NUMBER:
            raise self._wrong(name, f"a number from {low:g} to {LARGEST_NUMBER:g}")
        return float(value)

    def truth(self, name: str, default: bool) -> bool:
        value = self._value(name, default)
        if type(value) is not bool:
            raise self._wrong(name, "true or false")
        return value


def _rope(raw: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Collect the settings of the rotary embedding, from an object of either name or from the top.

    UserError where two places say different things.
    """
    top = {key: raw[key] for key in ROPE_AT_TOP if raw.get(key) is not None}
    found: list[dict[str, Any]] = []
    for name in ("rope_scaling", "rope_parameters"):
        value = {} if raw.get(name) is None else raw[name]
        if not isinstance(value, Mapping) or any(isinstance(v, Mapping) for v in value.values()):
            raise UserError(
                f"{where}: {name}={value!r}: expected an object of plain values or null"
            )
        # A null is a missing value everywhere but in `truncate`, where transformers reads a no.
        mine = {k: v for k, v in value.items() if v is not None or k == "truncate"}
        old_name = {"rope_type": mine.pop("type")} if "type" in mine else {}
        for key, said in (top | old_name).items():
            if mine.setdefault(key, said) != said:
                raise UserError(
                    f"{where}: {key}={said!r}: {name} says {mine[key]!r}, too; keep one"
                )
        found += [mine] if value else []
    if len(found) == 2 and found[0] != found[1]:
        raise UserError(
            f"{where}: rope_scaling={found[0]}: differs from rope_parameters={found[1]}"
        )
    return found[0] if found else top


def _rope_type(rope: Mapping[str, Any]) -> Any:
    return rope.get("rope_type") or "default"


def _refuse_unsupported(raw: Mapping[str, Any], rope: Mapping[str, Any], where: str) -> None:
    """UserError for the first field whose meaning this model does not have."""
    layer_types = raw.get("layer_types") or []
    full = isinstance(layer_types, list) and all(t == "full_attention" for t in layer_types)
    partial = rope.get("partial_rotary_factor", 1.0)
    checks: list[tuple[str, Any, bool]] = [
        ("model_type", raw.get("model_type"), raw.get("model_type") == "qwen2"),
        ("hidden_act", raw.get("hidden_act", "silu"), raw.get("hidden_act", "silu") == "silu"),
        ("use_sliding_window", True, not raw.get("use_sliding_window", False)),
        ("layer_types", layer_types, full),
        ("attention_dropout", raw.get("attention_dropout"), not raw.get("attention_dropout")),
        ("quantization_config", "...", not raw.get("quantization_config")),
        ("rope_type", _rope_type(rope), _rope_type(rope) in ("default", "yarn")),
        ("use_mrope", True, not raw.get("use_mrope", False)),
        ("partial_rotary_factor", partial, partial == 1.0),
    ]
    for field, value, ok in checks:
        if not ok:
            raise UserError(
                f"{where}: {field}={value!r}: this model definition cannot honour it "
                "(dense Qwen2 with full attention and plain or YaRN rotary embedding)"
            )


def _yarn(rope: _Fields, max_positions: int) -> Yarn:
    factor = rope.number("factor", 0.0, low=1.0)

    # Stretched positions flatten the softmax; the paper's remedy is to scale queries and keys by
    # sqrt(1 / temperature) = 0.1 ln(factor) + 1. DeepSeek's configs give a ratio of two such.
    def mscale(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0

    attention = mscale(1.0)
    if rope.raw.get("mscale") and rope.raw.get("mscale_all_dim"):
        whole = rope.number("mscale_all_dim", 1.0, low=0.0)
        attention = mscale(rope.number("mscale", 1.0, low=0.0)) / mscale(whole)
    return Yarn(
        factor=factor,
        original_max_position_embeddings=rope.whole(
            "original_max_position_embeddings", max_positions
        ),
        attention_factor=rope.number("attention_factor", attention, low=1e-6),
        beta_fast=rope.number("beta_fast", 32.0, low=0.0) or 32.0,
        beta_slow=rope.number("beta_slow", 1.0, low=0.0) or 1.0,
        truncate=rope.truth("truncate", "truncate" not in rope.raw),  # a null says no
    )
