"""`merge.py --diff A B`: what a merge or an SFT changed, tensor by tensor."""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from tinyr1.errors import UserError
from tinyr1.log import Log
from tinyr1.report import Table
from tinyr1.weights import Checkpoint


class TensorDiff(NamedTuple):
    """How B differs from A in one tensor."""

    share_changed: float  # of the elements
    relative_norm: float  # |B - A| / |A|
    cosine: float  # between A and B, flattened
    largest: float  # max |B - A|


def diff_tensors(a: Tensor, b: Tensor) -> TensorDiff:
    """Compare two tensors of one shape, in float64."""
    x, y = a.double().flatten(), b.double().flatten()
    if not len(x):
        return TensorDiff(0.0, 0.0, 1.0, 0.0)
    change = y - x
    norm_a, norm_b = float(x.norm()), float(y.norm())
    norms = norm_a * norm_b
    return TensorDiff(
        share_changed=float((x != y).double().mean()),
        relative_norm=float(change.norm()) / norm_a if norm_a else (math.inf if norm_b else 0.0),
        cosine=float(x @ y) / norms if norms else 1.0,
        largest=float(change.abs().max()),
    )


def print_diff(paths: tuple[Path, ...], log: Log) -> None:
    """Print a Markdown table of all tensors that both checkpoints have; name the others."""
    if len(paths) != 2:
        raise UserError(f"--diff: {len(paths)} directories given, expected 2")
    a, b = Checkpoint(paths[0]), Checkpoint(paths[1])
    for mine, other in ((a, b), (b, a)):
        for name in mine.specs.keys() - other.specs.keys():
            log.warn(f"{name}: only in {mine.path}")
    rows: list[list[str]] = []
    common = [name for name in a.specs if name in b.specs]
    for name in log.bar(common, desc="comparing", unit="tensor"):
        if a.specs[name].shape != b.specs[name].shape:
            log.warn(f"{name}: shape {a.specs[name].shape} and {b.specs[name].shape}")
            continue
        d = diff_tensors(a.tensor(name), b.tensor(name))
        cells = [f"{100 * d.share_changed:.2f}", f"{d.relative_norm:.3e}", f"{d.cosine:.8f}"]
        rows.append([name, *cells, f"{d.largest:.3e}"])
    header = ["tensor", "changed %", "|B - A| / |A|", "cosine", "max |B - A|"]
    print(Table(header, rows).markdown())
