"""The loss of held-out conversations: what a training or a merge changed, before accuracy shows it.

    a model, training files -> nats of each document's targets -> loss per target, with its error

A score of thirty questions has an error of nine points; the loss of as many documents is known to a
percent, and of two models on the same documents the difference is known better still.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from tinyr1.common.config import given
from tinyr1.common.errors import UserError
from tinyr1.common.files import (
    hash_file,
    owned,
    read_jsonl,
    read_object,
    real,
    write_json,
    write_jsonl,
)
from tinyr1.common.log import Log, counted
from tinyr1.common.ranks import Ranks
from tinyr1.common.tables import Table
from tinyr1.evaluate.options import EvalConfig
from tinyr1.evaluate.stats import mean, standard_error
from tinyr1.model.chat import check_template, guess_template, render
from tinyr1.model.config import Qwen2Config
from tinyr1.model.places import model_name
from tinyr1.model.qwen2 import Qwen2
from tinyr1.model.records import read_records
from tinyr1.model.tokenizer import Tokenizer
from tinyr1.model.weights import DTYPES, Checkpoint

LOSSES, DOCUMENTS = "losses.json", "losses.jsonl"


class DocumentLoss(NamedTuple):
    """The summed cross-entropy of a document's targets, in nats."""

    file: str
    row: int  # the line of the file
    nats: float
    targets: int


def measure(config: EvalConfig, log: Log) -> None:
    """Print the loss of each --loss file, and with --out keep it for --compare."""
    folder = given(config.model, "MODEL")
    names = [path.name for path in config.loss]
    if len(set(names)) < len(names):
        raise UserError(f"--loss={' '.join(names)}: two files have one name")
    shape = Qwen2Config.from_pretrained(folder)
    tokenizer = Tokenizer(folder, config.system)
    tokenizer.check_size(shape.vocab_size)
    template = guess_template(tokenizer) if config.template == "auto" else config.template
    check_template(tokenizer, template)
    limit = config.max_model_len or shape.max_position_embeddings
    examples = {path.name: _examples(path, tokenizer, template, limit) for path in config.loss}
    device = Ranks().device
    dtype = config.dtype or ("bf16" if device.type == "cuda" else "fp32")
    model = Qwen2.from_pretrained(folder, DTYPES[dtype], device)
    losses: list[DocumentLoss] = []
    total = sum(len(found) for found, _ in examples.values())
    with log.bar(total=total, unit="document") as bar, torch.inference_mode():
        for name, (found, _) in examples.items():
            for row, tokens, is_target in found:
                losses.append(DocumentLoss(name, row, *_loss(model, tokens, is_target, device)))
                bar.update()
    files = {
        path.name: {"sha256": hash_file(path), "too_long": examples[path.name][1]}
        | summary([loss for loss in losses if loss.file == path.name])
        for path in config.loss
    }
    print(losses_table({model_name(folder): (files, losses)}).markdown())
    for name, (_, too_long) in examples.items():
        if too_long:
            log.warn(
                f"{name}: {counted(too_long, 'document')} of more than {limit} tokens left out"
            )
    if config.out:
        settings = {
            "model": real(folder).name,
            "model_fingerprint": Checkpoint(folder).fingerprint(),
            "template": template,
            "system": tokenizer.system,
            "dtype": dtype,
        }
        with owned(config.out):
            write_jsonl(config.out / DOCUMENTS, [loss._asdict() for loss in losses])
            write_json(config.out / LOSSES, {"settings": settings, "files": files})
        log.say(f"losses: {config.out / LOSSES}")
        log.lead_on(f"python evaluate.py --compare OTHER_LOSSES {config.out}")


def _examples(
    path: Path, tokenizer: Tokenizer, template: Any, limit: int
) -> tuple[list[tuple[int, list[int], list[bool]]], int]:
    """(line, tokens, which are targets) of each document, and how many were too long."""
    found: list[tuple[int, list[int], list[bool]]] = []
    too_long = 0
    for number, record in read_records(path, require_think=False):
        if isinstance(record, ValueError):
            raise UserError(f"{path}:{number}: {record}")
        try:
            tokens, is_target = render(tokenizer, record.messages, template)
        except ValueError as error:
            raise UserError(f"{path}:{number}: {error}") from None
        if len(tokens) > limit:
            too_long += 1
        else:
            found.append((number, tokens, is_target))
    if not found:
        raise UserError(f"{path}: no document of at most {limit} tokens")
    return found, too_long


def _loss(
    model: Qwen2, tokens: list[int], is_target: list[bool], device: torch.device
) -> tuple[float, int]:
    """Nats of a document's targets, and their number. Row t predicts token t + 1."""
    rows = [t for t, yes in enumerate(is_target[1:]) if yes]
    ids = torch.tensor(tokens, device=device)
    at = torch.tensor(rows, device=device)
    return float(model(ids[None], target_rows=at, targets=ids[at + 1])), len(rows)


# ---------------------------------------------------------------- figures


def summary(losses: Sequence[DocumentLoss]) -> dict[str, float | None]:
    """Loss per target and per document, in nats, with standard errors over documents.

    One document tells nothing of its error: None.
    """
    loss, error = per_target([x.nats for x in losses], [x.targets for x in losses])
    each = [x.nats / x.targets for x in losses]
    return {
        "documents": len(losses),
        "targets": sum(x.targets for x in losses),
        "loss": loss,
        "loss_se": error,
        "document_loss": mean(each),
        "document_se": standard_error(each) if len(each) > 1 else None,
    }


def per_target(nats: Sequence[float], targets: Sequence[int]) -> tuple[float, float | None]:
    """sum(nats) / sum(targets) and its standard error over documents (of a ratio of two sums)."""
    count = len(nats)
    ratio = sum(nats) / sum(targets)
    if count < 2:
        return ratio, None
    squares = sum((x - ratio * n) ** 2 for x, n in zip(nats, targets, strict=True))
    return ratio, math.sqrt(squares * count / (count - 1)) / sum(targets)


Measured = tuple[Mapping[str, Any], Sequence[DocumentLoss]]  # files of losses.json, documents


def losses_of(folder: Path) -> Measured | None:
    """What an earlier --loss left in a folder; None where there is none."""
    if not (folder / LOSSES).exists():
        return None
    files = read_object(folder / LOSSES).get("files")
    figures = {"sha256": (str,), "loss": (float,), "loss_se": (float, type(None))}
    if not isinstance(files, dict) or not all(_has(about, figures) for about in files.values()):
        raise UserError(f"{folder / LOSSES}: no files with {', '.join(figures)}")
    kinds = {"file": (str,), "row": (int,), "nats": (float,), "targets": (int,)}
    losses: list[DocumentLoss] = []
    for number, row in read_jsonl(folder / DOCUMENTS):
        if not _has(row, kinds):
            raise UserError(f"{folder / DOCUMENTS}:{number}: not a document's loss")
        losses.append(DocumentLoss(row["file"], row["row"], row["nats"], row["targets"]))
    return files, losses


def _has(value: Any, kinds: Mapping[str, tuple[type, ...]]) -> bool:
    """True for an object with fields of these types."""
    return isinstance(value, dict) and all(type(value.get(k)) in kind for k, kind in kinds.items())


def losses_table(measured: Mapping[str, Measured]) -> Table:
    """A row a model: loss per target of each file, and its paired difference to the first model."""
    (first, first_losses), *_ = measured.values()
    names = list(dict.fromkeys(name for files, _ in measured.values() for name in files))
    base = {(x.file, x.row): x for x in first_losses}
    rows: list[list[str]] = []
    for model, (files, losses) in measured.items():
        cells = [model]
        for name in names:
            if name not in files:
                cells.append("-")
                continue
            cell = _shown(f"{files[name]['loss']:.4f}", files[name]["loss_se"])
            same = files is not first and files[name]["sha256"] == first.get(name, {}).get("sha256")
            pairs = [(x, base[name, x.row]) for x in losses if x.file == name and same]
            pairs = [(x, y) for x, y in pairs if x.targets == y.targets]
            if pairs:
                difference = [x.nats - y.nats for x, y in pairs]
                change, error = per_target(difference, [x.targets for x, _ in pairs])
                cell += f" ({_shown(f'{change:+.4f}', error)})"
            cells.append(cell)
        rows.append(cells)
    return Table(["nats per target", *names], rows)


def _shown(figure: str, error: float | None) -> str:
    return figure if error is None else f"{figure} ± {error:.4f}"
