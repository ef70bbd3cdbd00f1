"""`merge.py --diff A B`: what a merge or a fine-tuning changed, tensor by tensor."""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

from tinyr1.common import plot
from tinyr1.common.errors import UserError, install_line
from tinyr1.common.files import finite, real, write_atomic, write_json
from tinyr1.common.log import Log
from tinyr1.common.tables import Table
from tinyr1.merge.card import draw_by_layer
from tinyr1.model.rows import Rows, row_parts
from tinyr1.model.weights import Checkpoint


class TensorDiff(NamedTuple):
    """The difference of B from A in one tensor."""

    share_changed: float  # of the elements
    relative_norm: float | None  # |B - A| / |A|; None where A is zero
    cosine: float  # between A and B, flattened
    largest: float  # max |B - A|


def diff_rows(a: Rows, b: Rows, shape: tuple[int, ...]) -> TensorDiff:
    """Compare two tensors of one shape, in float64, some rows at a time."""
    changed = 0
    largest = 0.0
    squares_a = squares_b = squares_change = product = 0.0
    for part in row_parts(shape):
        x, y = a[part].double(), b[part].double()
        change = y - x
        changed += int(((x != y) & ~(x.isnan() & y.isnan())).sum())
        largest = float(change.abs().max().clamp(min=largest))  # NaN stays NaN
        squares_a += float(x.square().sum())
        squares_b += float(y.square().sum())
        squares_change += float(change.square().sum())
        product += float((x * y).sum())
    norms = math.sqrt(squares_a) * math.sqrt(squares_b)
    relative = None if squares_change else 0.0  # of nothing there is no share
    if squares_a:
        relative = math.sqrt(squares_change / squares_a)
    return TensorDiff(
        share_changed=changed / max(math.prod(shape), 1),
        relative_norm=relative,
        cosine=product / norms if norms else float(squares_a == squares_b),
        largest=largest,
    )


def run_diff(paths: tuple[Path, ...], save: Path | None, log: Log) -> None:
    """Print a Markdown table of all tensors that both checkpoints have; name the others.

    With `save`, also write diff.md, diff.json and, where matplotlib is installed, diff.png.
    """
    if len(paths) != 2:
        raise UserError(f"--diff: {len(paths)} directories given, expected 2")
    a, b = Checkpoint(paths[0]), Checkpoint(paths[1])
    if save and real(save) in (real(a.path), real(b.path)):
        raise UserError(f"--save={save}: is one of the two; choose another place")
    diffs = _diff_tensors(a, b, log)
    if not diffs:
        raise UserError(f"--diff: {a.path} and {b.path} have no tensor in common")
    rows = [
        [
            name,
            f"{100 * d.share_changed:.2f}",
            "-" if d.relative_norm is None else f"{d.relative_norm:.3e}",
            f"{d.cosine:.8f}",
            f"{d.largest:.3e}",
        ]
        for name, d in diffs.items()
    ]
    header = ["tensor", "changed %", "|B - A| / |A|", "cosine", "max |B - A|"]
    text = Table(header, rows).markdown()
    print(text)
    if save:
        write_atomic(save / "diff.md", text + "\n")
        names = {"a": real(a.path).name, "b": real(b.path).name}
        tensors = {
            name: {k: None if v is None else finite(v) for k, v in d._asdict().items()}
            for name, d in diffs.items()
        }
        write_json(save / "diff.json", names | {"tensors": tensors})
        if plot.available():
            norms = {name: d.relative_norm for name, d in diffs.items()}
            values = {name: 100 * norm for name, norm in norms.items() if norm is not None}
            plot.drawn(draw_by_layer, save / "diff.png", values, "|B - A| / |A|", "%")
        else:
            log.warn(f"matplotlib is not installed: no diff.png; {install_line('plot')}")


def _diff_tensors(a: Checkpoint, b: Checkpoint, log: Log) -> dict[str, TensorDiff]:
    for mine, other in ((a, b), (b, a)):
        for name in mine.specs.keys() - other.specs.keys():
            log.warn(f"{name}: only in {mine.path}")
    diffs: dict[str, TensorDiff] = {}
    unsupported = a.unsupported.keys() | b.unsupported.keys()
    for model in (a, b):
        for line in model.dtype_faults():
            log.warn(f"{model.path}: {line}; left out")
    for name in log.bar([n for n in a.specs if n in b.specs], desc="comparing", unit="tensor"):
        if not (a.specs[name].is_floating and b.specs[name].is_floating) or name in unsupported:
            continue
        if a.specs[name].shape != b.specs[name].shape:
            log.warn(f"{name}: shape {a.specs[name].shape} and {b.specs[name].shape}")
            continue
        with a.mapped(name) as rows_a, b.mapped(name) as rows_b:
            diffs[name] = diff_rows(rows_a, rows_b, a.specs[name].shape)
    return diffs
