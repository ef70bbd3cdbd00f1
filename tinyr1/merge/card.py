"""The model card README.md and the picture merge.png of a merge.

Both are made from merge_report.json alone, so they are the same for every rerun.
"""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tinyr1.common import plot
from tinyr1.common.config import flag
from tinyr1.common.files import write_atomic
from tinyr1.common.log import counted
from tinyr1.merge.methods import DEFAULT_METHOD, METHODS, MergeParams

MAX_CELLS = 4000  # a picture with more would be unreadable
LAYER = re.compile(r"^(?P<before>.*?\.)(?P<layer>\d+)\.(?P<kind>.+)$")

_FORMULAS = {
    "exact": "Right's elements where |R - L| x KL(softmax R row || softmax L row) reaches the "
    "median + lambda x IQR of its tensor, computed without rounding noise; else Left's",
    "mergekit": "as mergekit 0.1.5 computes it, in the models' own dtype",
    "paper": "equations 1 to 4 of arXiv 2503.04872 to the letter",
}


_FLAGS = {
    "threshold_collapsed": ". There most elements are equal in both models, so that quartiles and "
    "threshold are 0, and whatever differs is Right's; `--quantiles changed` takes the quartiles "
    "of what differs.",
    "nonfinite_input": " with NaN or infinity, copied from Left.",
    "not_selected": ", copied from Left.",
}


def write_card(folder: Path, report: Mapping[str, Any]) -> None:
    """Write README.md and, where matplotlib is installed, merge.png into `folder`."""
    pictured = plot.drawn(draw_shares, folder / "merge.png", report)
    write_atomic(folder / "README.md", card(report, pictured))


def card(report: Mapping[str, Any], pictured: bool) -> str:
    """The model card: what was merged, how, and what came of it."""
    merge, tensors = report["merge"], report["tensors"]
    others = {key: merge[key] for key in ("quantiles", "dtype", "device", "seed")}
    others |= {key: merge.get(key) for key in ("only", "except")}
    options = {k: v for k, v in (merge["options"] | others).items() if v not in (None, [])}
    lines = [*_front_matter(merge), "", f"# A merge by {merge['method']}", ""]
    if merge["arithmetic"]:
        lines += [
            f"Arcee Fusion, arithmetic `{merge['arithmetic']}`: {_FORMULAS[merge['arithmetic']]}.",
            "",
        ]
    lines += ["| role | model | bytes | fingerprint (SHA-256) |", "|---|---|---:|---|"]
    for model in merge["inputs"]:
        lines.append(
            f"| {_role(model['role'], merge['method'])} | {model['name']} | {model['bytes']:,} "
            f"| `{model['fingerprint'][:16]}` |"
        )
    shown = {k: " ".join(map(str, v)) if isinstance(v, list) else v for k, v in options.items()}
    lines += ["", "Options: " + ", ".join(f"`{k}` {v}" for k, v in shown.items()) + "."]
    lines += ["", "Made by this command, where the models lie under these names:", ""]
    lines += ["```", command(merge), "```", ""]
    lines += _outcome(tensors)
    if pictured:
        lines += ["", "![share of each tensor that differs from Left](merge.png)"]
    lines += ["", "`merge_report.json` has the figures and the SHA-256 of each tensor.", ""]
    return "\n".join(lines)


def _front_matter(merge: Mapping[str, Any]) -> list[str]:
    """What a hub reads of a card. It knows models by owner and name, so no others are listed."""
    lines = ["---", "library_name: transformers"]
    names = [model["name"] for model in merge["inputs"] if "/" in model["name"]]
    if names:
        lines += ["base_model:", *(f"- {name}" for name in dict.fromkeys(names))]
        lines += ["base_model_relation: merge"]
    return [*lines, "tags:", "- merge", "- tinyr1", "---"]


def command(merge: Mapping[str, Any]) -> str:
    """The command that makes the same tensors again of the models, by their names."""
    names: dict[str, list[str]] = {"model": [], "then": [], "base": []}
    for model in merge["inputs"]:
        names[model["role"].split()[0]].append(model["name"])
    words = ["python", "merge.py", *names["model"], "OUT"]
    for option in ("then", "base"):
        words += [flag(option), *names[option]] if names[option] else []
    method = METHODS[merge["method"]]
    words += [] if merge["method"] == DEFAULT_METHOD else ["--method", merge["method"]]
    usual = method.resolve(MergeParams())
    for name in method.options:
        value = merge["options"].get(name, merge.get(name))
        default = getattr(usual, name)
        if value not in (None, list(default) if isinstance(default, tuple) else default):
            words += _option(name, value)
    for name in ("dtype", "device", "seed", "only", "except", "allow_nonfinite"):
        if merge[name] not in (None, [], False, "cpu", 0):
            words += _option(name, merge[name])
    for name in ("allow_differences", "allow_padding"):
        words += [flag(name)] if merge[name] else []
    return shlex.join(words)


def _option(name: str, value: Any) -> list[str]:
    """An option as it is typed."""
    if isinstance(value, bool):
        return [flag(name) if value else flag(f"no_{name}")]
    if name in ("only", "except"):
        return [word for pattern in value for word in (flag(name), pattern)]
    return [flag(name), *(map(str, value) if isinstance(value, list) else [str(value)])]


def _role(role: str, method: str) -> str:
    if method != "arcee_fusion":
        return role
    if role.startswith("then "):
        return f"Left of merge {int(role.removeprefix('then ')) + 2}"
    return {"model 0": "Left", "model 1": "Right"}[role]


def _outcome(tensors: Mapping[str, Mapping[str, Any]]) -> list[str]:
    sizes = {name: math.prod(entry["shape"]) for name, entry in tensors.items()}
    moved = sum(share(entry) * sizes[name] for name, entry in tensors.items())
    total = max(sum(sizes.values()), 1)
    flags = [name for entry in tensors.values() for name in last_step(entry).get("flags", [])]
    lines = [
        f"{counted(len(tensors), 'tensor')}, {total:,} parameters; {100 * moved / total:.2f} % of "
        "these are not Left's any more."
    ]
    for name in dict.fromkeys(flags):
        lines.append(f"Flag `{name}`: {counted(flags.count(name), 'tensor')}{_FLAGS[name]}")
    return lines


def last_step(entry: Mapping[str, Any]) -> Mapping[str, Any]:
    """The figures of the last merge of a chain."""
    return entry["steps"][-1] if "steps" in entry else entry


def share(entry: Mapping[str, Any]) -> float:
    """The share of a tensor's elements that are not the (last) Left's any more."""
    step = last_step(entry)
    return step.get("share_taken", step.get("share_changed", 0.0))


def draw_shares(path: Path, report: Mapping[str, Any]) -> bool:
    """A heat map of `share`; False if there would be too many tensors to show."""
    values = {name: 100 * share(entry) for name, entry in report["tensors"].items()}
    return draw_by_layer(path, values, "Share of each tensor that is not Left's", "%")


def draw_by_layer(path: Path, values: Mapping[str, float], title: str, label: str) -> bool:
    """A heat map of one value a tensor; tensors outside the layers share a row."""
    matches = {name: LAYER.match(name) for name in values}
    towers = {match["before"] for match in matches.values() if match}
    cells: dict[str, dict[str, float]] = {}
    for name, value in values.items():
        match = matches[name]
        row, column = (match["layer"], match["kind"]) if match else ("outside", name)
        if match and len(towers) > 1:  # encoder and decoder, text and vision
            row = match["before"] + row
        column = column.removesuffix(".weight").removeprefix("model.")
        cells.setdefault(row, {})[column] = value
    rows = sorted(cells, key=lambda row: (row != "outside", len(row), row))
    columns = list(dict.fromkeys(column for row in reversed(rows) for column in cells[row]))
    if not rows or len(rows) * len(columns) > MAX_CELLS:
        return False
    table = [[cells[row].get(column, math.nan) for column in columns] for row in rows]
    plot.heat_map(path, rows, columns, table, title, label)
    return True
