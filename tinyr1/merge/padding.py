"""Vocabularies of one tokenizer that differ by padding rows at the end.

Embeddings are often larger than their vocabulary, for the sake of round sizes, and not every
trainer pads alike. Rows that all models have are merged; of the rest the output has Left's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tinyr1.common.files import read_object
from tinyr1.merge.configs import flat
from tinyr1.model.tokenizer import TOKENIZER_FILES, Tokenizer
from tinyr1.model.weights import Checkpoint


def vocabulary_size(model: Checkpoint) -> int | None:
    """The rows that config.json says; None where it does not."""
    config: dict[str, Any] = flat(read_object(model.path / "config.json"))
    sizes = [v for k, v in config.items() if k in ("vocab_size", "text_config.vocab_size")]
    return sizes[0] if sizes and type(sizes[0]) is int else None


def shared_rows(left: Checkpoint, models: Sequence[Checkpoint]) -> dict[str, int]:
    """The rows that all models have, of tensors that differ in the size of the vocabulary only."""
    sizes = [vocabulary_size(model) for model in models]
    rows: dict[str, int] = {}
    for name, spec in left.specs.items():
        if any(name not in model.specs for model in models):
            continue
        shapes = [model.specs[name].shape for model in models]
        is_vocabulary = all(
            shape and shape[0] == size and shape[1:] == spec.shape[1:]
            for shape, size in zip(shapes, sizes, strict=True)
        )
        if is_vocabulary and len(set(shapes)) > 1:
            rows[name] = min(shape[0] for shape in shapes)
    return rows


def padding_faults(left: Checkpoint, models: Sequence[Checkpoint], allowed: bool) -> list[str]:
    """Why vocabularies of several sizes are not one with other padding; none where they are.

    Where a tokenizer is missing, or where two differ, `allowed` is the user's word for it.
    """
    sizes = [vocabulary_size(model) for model in models]
    known = [size for size in sizes if size is not None]
    if len(set(known)) < 2:
        return []
    rows = min(known)
    faults: list[str] = []
    mine = _tokens(left)
    for model, size in zip(models, sizes, strict=True):
        tokens = _tokens(model)
        beyond = sorted((i, token) for token, i in (tokens or {}).items() if i >= rows)
        if beyond:
            i, token = beyond[0]
            faults.append(
                f"{model.path}: vocab_size={size}, the smallest of these models has {rows}, and a "
                f"token {i} ({token!r}) here: this is no padding; bring all to one vocabulary first"
            )
        elif not allowed and model is not left and (tokens is None or tokens != mine):
            missing = tokens is None or mine is None
            why = "not both have a tokenizer" if missing else "their tokenizers differ"
            faults.append(
                f"{model.path}: vocab_size={size}, {left.path} has {vocabulary_size(left)}; {why}; "
                "if the rest is padding: --allow-padding"
            )
    return faults


def _tokens(model: Checkpoint) -> dict[str, int] | None:
    """A model's tokens and their ids; None where it has no tokenizer."""
    if any((model.path / name).exists() for name in TOKENIZER_FILES):
        return Tokenizer(model.path).vocabulary()
    return None
