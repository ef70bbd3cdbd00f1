"""Checking that a server can load a checkpoint and that it will end its answers.

    python -m tinyr1.check DIR

Weights, config.json, generation_config.json, tokenizer and chat template must agree with each
other: a wrong one of them shows up only as answers that never end, or never think. It is run after
every export, but for the values of the weights, where a fault is a warning; after a merge it is
yours to run.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro

from tinyr1.common.config import parse
from tinyr1.common.errors import RunStopped, UserError, run_main
from tinyr1.common.files import read_object
from tinyr1.model.chat import TEMPLATE_END, guess_template
from tinyr1.model.config import Qwen2Config
from tinyr1.model.qwen2 import tensor_shapes
from tinyr1.model.tokenizer import TOKENIZER_FILES, Tokenizer, id_list
from tinyr1.model.weights import Checkpoint, dtype_name


@dataclass(frozen=True)
class CheckConfig:
    """Check a checkpoint before a server or a merge meets it."""

    folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")]
    """The checkpoint directory."""


def faults(folder: Path, values: bool = True) -> list[str]:
    """One line for each thing that does not fit; empty for a sound checkpoint.

    With `values` all weights are read, to see that they are finite. UserError where the directory
    is no checkpoint of this architecture at all.
    """
    config = Qwen2Config.from_pretrained(folder)
    weights = Checkpoint(folder)
    found: list[str] = []
    try:
        weights.check(tensor_shapes(config), config.tie_word_embeddings)
    except UserError as error:
        found.append(str(error))
    if values:
        known = (name for name in weights.specs if name not in weights.unsupported)
        found += [f"{name}: NaN or infinity in it" for name in known if not weights.is_finite(name)]
    raw = read_object(folder / "config.json")
    stated = raw.get("torch_dtype", raw.get("dtype"))
    types = {dtype_name(spec.dtype) for spec in weights.specs.values()}
    if stated is not None and {str(stated)} != types:
        found.append(f"config.json: torch_dtype={stated}, the tensors are {', '.join(types)}")
    if not any((folder / name).exists() for name in TOKENIZER_FILES):
        return [*found, f"no tokenizer: neither {' nor '.join(TOKENIZER_FILES)}"]
    # Servers stop at generation_config.json's ids; where it is missing, at config.json's.
    config_eos = id_list(raw, "eos_token_id", folder / "config.json")
    return found + _tokenizer_faults(folder, config, config_eos)


def _tokenizer_faults(folder: Path, config: Qwen2Config, config_eos: list[int]) -> list[str]:
    found: list[str] = []
    tokenizer = Tokenizer(folder)
    if tokenizer.largest_id >= config.vocab_size:
        found.append(
            f"tokenizer: an id {tokenizer.largest_id}, but the embedding has {config.vocab_size}"
        )
    try:
        end = TEMPLATE_END[guess_template(tokenizer)]
    except UserError as error:
        return [*found, str(error)]
    stops = tokenizer.eos_ids()
    if beyond := [i for i in stops if i >= config.vocab_size]:
        found.append(f"stop tokens {beyond}: the embedding has only {config.vocab_size} rows")
    if tokenizer.special(end) not in stops:
        found.append(
            f"generation_config.json, tokenizer_config.json: neither stops at {end!r} "
            f"({tokenizer.special(end)}), with which answers end; add it to eos_token_id"
        )
    if not (folder / "generation_config.json").exists():
        found.append("no generation_config.json: servers fall back on config.json's eos_token_id")
        if not set(config_eos) & set(stops):
            found.append(f"config.json: eos_token_id={config_eos}: none of {list(stops)} in it")
    if not tokenizer.has_chat_template():
        found.append("no chat template in tokenizer_config.json or chat_template.jinja")
    return found


def warn_of_faults(folder: Path) -> list[str]:
    """`faults` of something just written, for whoever prints warnings; other architectures pass."""
    try:
        return faults(folder, values=False)
    except UserError:
        return []


def main() -> None:
    config = parse(CheckConfig, sys.argv[1:], "python -m tinyr1.check", description=__doc__)
    folder = config.folder
    torch.set_num_threads(1)
    found = faults(folder)
    if found:
        raise RunStopped(f"{folder}:\n  " + "\n  ".join(found))
    tokenizer = Tokenizer(folder)
    opens = "opens" if tokenizer.opens_thinking() else "does not open"
    print(
        f"{folder}: sound; stops at {list(tokenizer.eos_ids())}, its template {opens} the thinking"
    )


if __name__ == "__main__":
    run_main(main)
