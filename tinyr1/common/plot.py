"""All drawing. matplotlib is imported inside, so that nothing else needs it.

A picture goes along with results and never costs them: `drawn` says whether there is one.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, Literal, ParamSpec

from tinyr1.common.files import write_atomic
from tinyr1.common.log import Log

P = ParamSpec("P")


def available() -> bool:
    """True where the plot extra is installed."""
    from importlib.util import find_spec

    return find_spec("matplotlib") is not None


def drawn(function: Callable[..., Any], path: Path, *args: Any) -> bool:
    """Draw by function(path, *args); True if there is a picture now.

    What goes wrong in drawing is a warning: matplotlib may raise anything.
    """
    if not available():
        return False
    try:
        return function(path, *args) is not False
    except Exception as error:  # of matplotlib, or in importing it
        why = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        Log().warn(f"{path}: not drawn ({why})")
        return False


def _literal(function: Callable[P, None]) -> Callable[P, None]:
    """Draw every text as it stands: two dollar signs in a name are no formula."""

    @functools.wraps(function)
    def literal(*args: P.args, **kwargs: P.kwargs) -> None:
        import matplotlib as mpl

        with mpl.rc_context({"text.parse_math": False}):
            function(*args, **kwargs)

    return literal


def _figure(
    width: float, height: float, layout: Literal["constrained"] | None = "constrained"
) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=120, layout=layout)
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _save(figure: Any, path: Path | BytesIO, **options: Any) -> None:
    picture = BytesIO()
    figure.savefig(picture, **options)
    if isinstance(path, BytesIO):
        path.write(picture.getvalue())
    else:
        write_atomic(path, picture.getvalue())


@_literal
def loss_curve(path: Path, rows: Sequence[Mapping[str, Any]], title: str = "") -> None:
    """Loss and learning rate against the step, from the rows of metrics.jsonl."""
    figure, axes = _figure(7, 3.5)
    steps = [row["step"] for row in rows]
    losses = [float("nan") if row["loss"] is None else row["loss"] for row in rows]
    axes.plot(steps, losses, color="tab:blue", linewidth=1)
    held_out = {name for row in rows for name in row if name.startswith("eval_loss")}
    for name in sorted(held_out):
        found = [(row["step"], row[name]) for row in rows if row.get(name) is not None]
        if found:
            axes.plot(*zip(*found, strict=True), marker=".", linewidth=1, label=name)
    if held_out:
        axes.legend(frameon=False, fontsize=7)
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("loss (nats per target)", color="tab:blue")
    axes.set_title(title)
    axes.set_ylim(*_loss_range(rows))
    rate = axes.twinx()
    rate.plot(steps, [row["lr"] for row in rows], color="tab:gray", linewidth=1, linestyle="--")
    rate.set_ylabel("learning rate", color="tab:gray")
    rate.set_ylim(bottom=0)
    _save(figure, path)


def _loss_range(rows: Sequence[Mapping[str, Any]]) -> tuple[float | None, float | None]:
    """Limits in which the course can be seen: what the first steps alone reach is cut off."""
    names = {name for row in rows for name in row if name == "loss" or name.startswith("eval_loss")}
    later = rows[len(rows) // 20 :]
    values = [row[name] for row in later for name in names if row.get(name) is not None]
    if not values:
        return None, None
    margin = 0.05 * (max(values) - min(values)) or 0.05
    return max(0.0, min(values) - margin), max(values) + margin


@_literal
def grouped_bars(
    path: Path,
    models: Sequence[str],
    groups: Sequence[str],
    values: Sequence[Sequence[float]],
    errors: Sequence[Sequence[float]],
    ylabel: str,
    colours: Sequence[str] = (),
) -> None:
    """One cluster of bars a group, one bar a model: values[model][group] with error bars."""
    import matplotlib as mpl

    palette = mpl.colormaps["tab20"]
    figure, axes = _figure(3 + 2.6 * len(groups), 4.6)
    width = 0.85 / len(models)
    for i, model in enumerate(models):
        at = [g + (i - (len(models) - 1) / 2) * width for g in range(len(groups))]
        axes.bar(
            at,
            values[i],
            width,
            yerr=errors[i],
            label=model,
            color=colours[i] if colours else palette(i % 20),
            edgecolor="white",
            linewidth=0.5,
            error_kw={"elinewidth": 0.8},
        )
    axes.set_xticks(range(len(groups)), groups)
    axes.set_ylabel(ylabel)
    axes.set_ylim(0, 100)
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, fontsize=8)
    _save(figure, path)


@_literal
def histogram(path: Path, values: Sequence[float], unit: str, title: str) -> None:
    """A histogram of lengths."""
    figure, axes = _figure(7, 3.2)
    axes.hist(values, bins=60, color="tab:blue")
    axes.set_xlabel(unit)
    axes.set_ylabel("records")
    axes.set_title(title, fontsize=10)
    _save(figure, path)


@_literal
def heat_map(
    path: Path | BytesIO,
    rows: Sequence[str],
    columns: Sequence[str],
    values: Sequence[Sequence[float]],
    title: str,
    label: str,
) -> None:
    """values[row][column] as colours (NaN stays blank); small maps have the numbers, too."""
    large = len(rows) * len(columns) > 120
    cell_width = 0.75
    cell_height = 0.16 if large else 0.32  # inches
    left = 0.4 + max(0.06 * max(map(len, rows)), 0.03 * len(columns[0]))
    right = 1.7
    bottom = 0.4 + 0.04 * max(map(len, columns))
    top = 0.4
    width = left + cell_width * len(columns) + right
    height = bottom + cell_height * len(rows) + top
    figure, axes = _figure(width, height, layout=None)  # a layout engine would draw it twice
    axes.set_position(
        (left / width, bottom / height, 1 - (left + right) / width, 1 - (bottom + top) / height)
    )
    image = axes.imshow(values, aspect="auto", cmap="viridis")
    axes.set_xticks(range(len(columns)), columns, rotation=35, ha="right", fontsize=8)
    axes.set_yticks(range(len(rows)), rows, fontsize=6 if large else 8)
    middle = (image.norm.vmin + image.norm.vmax) / 2
    for r, row in enumerate(values if not large else ()):
        for c, value in enumerate(row):
            if value == value:  # not NaN
                colour = "white" if value < middle else "black"
                axes.text(c, r, f"{value:.1f}", ha="center", va="center", fontsize=7, color=colour)
    axes.set_title(title, fontsize=10)
    place = axes.get_position()
    beside = figure.add_axes((1 - 1.3 / width, place.y0, 0.2 / width, place.height))
    figure.colorbar(image, cax=beside, label=label)
    _save(figure, path, pil_kwargs={"compress_level": 1})
