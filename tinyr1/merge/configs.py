"""Differences between two models' files: of configs, tokenizers, templates.

Absent is unknown: only what both state can differ.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tinyr1.common.files import read_object
from tinyr1.model.tokenizer import TOKENIZER_FILES

# Of a config.json: what says nothing of the model's numbers.
MEANINGLESS = {"_name_or_path", "transformers_version", "_commit_hash", "use_cache"}
MEANINGLESS |= {"torch_dtype", "dtype", "_attn_implementation", "attn_implementation", "auto_map"}
MEANINGLESS |= {"architectures"}
# With another value of these the same tensors are another function.
BREAKING = {"num_attention_heads", "num_key_value_heads", "head_dim", "hidden_act", "model_type"}
BREAKING |= {"rope_theta", "rope_scaling", "tie_word_embeddings", "sliding_window"}
SIDE_CONFIGS = ("generation_config.json", "tokenizer_config.json")
COMPARED = (*TOKENIZER_FILES, "vocab.json", "vocab.txt", "merges.txt", "chat_template.jinja")
TEXT = 60  # characters of a value that are shown


def flat(config: dict[str, Any], before: str = "") -> dict[str, Any]:
    """A config as one table, parts of composite ones with dots; rope in its old spelling."""
    table: dict[str, Any] = {}
    for key, value in config.items():
        name = f"{before}{key}"
        if key == "rope_parameters" and isinstance(value, dict):
            value = dict(value)
            theta = value.pop("rope_theta", None)
            kind = value.get("rope_type", "default")
            table |= {} if theta is None else {f"{before}rope_theta": float(theta)}
            table[f"{before}rope_scaling"] = None if kind == "default" else value
        elif key == "rope_scaling":
            value = {("rope_type" if k == "type" else k): v for k, v in (value or {}).items()}
            table[name] = value or None
        elif key == "rope_theta" and isinstance(value, (int, float)):
            table[name] = float(value)
        elif isinstance(value, dict):
            table |= flat(value, f"{name}.")
        else:
            table[name] = value
    if f"{before}rope_theta" in table:  # without a scaling there is none
        table.setdefault(f"{before}rope_scaling", None)
    return table


def config_differences(
    mine: dict[str, Any], theirs: dict[str, Any]
) -> Iterator[tuple[str, str, bool]]:
    """(key, how it differs, True where it breaks a merge) of two config.json's."""
    left, other = flat(mine), flat(theirs)
    for key in left.keys() & other.keys():
        last = key.rpartition(".")[2]
        if last not in MEANINGLESS and last != "vocab_size" and left[key] != other[key]:
            text = f"{key}={shown(other[key])}, Left has {shown(left[key])}"
            yield key, text, last in BREAKING


def side_differences(left: Path, other: Path) -> Iterator[str]:
    """One line for each difference of tokenizer, template and generation config."""
    for name in SIDE_CONFIGS:
        if (left / name).exists() and (other / name).exists():
            mine, theirs = (flat(read_object(folder / name)) for folder in (left, other))
            for key in sorted(mine.keys() & theirs.keys()):
                if key not in MEANINGLESS and mine[key] != theirs[key]:
                    yield f"{name}: {key}={shown(theirs[key])}, Left has {shown(mine[key])}"
    for name in COMPARED:
        a, b = left / name, other / name
        if a.exists() and b.exists() and a.read_bytes() != b.read_bytes():
            yield f"{name}: differs from Left's"


def shown(value: Any) -> str:
    """A value in a line; of a long one its beginning and a hash."""
    text = str(value)
    if len(text) <= TEXT:
        return text
    digest = hashlib.sha256(text.encode(errors="replace")).hexdigest()[:8]
    return f"{text[:TEXT]!r}... ({len(text):,} characters, {digest})"
