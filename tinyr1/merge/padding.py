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


def padding_fault(left: Checkpoint, other: Checkpoint, allowed: bool) -> str:
    """Why the vocabularies of two models are not one with other padding; "" if they are.

    Where a tokenizer is missing, or where two differ, `allowed` is the user's word for it.
    """
    sizes = vocabulary_size(left), vocabulary_size(other)
    if None in sizes or sizes[0] == sizes[1]:
        return ""
    text = f"vocab_size={sizes[1]}, {left.path} has {sizes[0]}"
    rows = min(size for size in sizes if size is not None)
    tables: list[dict[str, int]] = []
    for model in (left, other):
        if any((model.path / name).exists() for name in TOKENIZER_FILES):
            table = Tokenizer(model.path).vocabulary()
            beyond = sorted((i, token) for token, i in table.items() if i >= rows)
            if beyond:
                i, token = beyond[0]
                return (
                    f"{text}, and {model.path} has a token {i} ({token!r}): this is no padding; "
                    "bring both to one vocabulary first"
                )
            tables.append(table)
    if allowed or (len(tables) == 2 and tables[0] == tables[1]):
        return ""
    why = "their tokenizers differ" if len(tables) == 2 else "not both have a tokenizer"
    return f"{text}; {why}; if the rest is padding: --allow-padding"
