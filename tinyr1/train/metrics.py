"""The figures of a training run as it goes: metrics.jsonl, a line a step, TensorBoard, loss.png."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tinyr1.common import plot
from tinyr1.common.errors import needs
from tinyr1.common.files import Journal, finite, write_jsonl
from tinyr1.common.log import Log


class Metrics:
    """The figures of a run, one row a step. On the main rank only: others get `quiet=True`.

    On resume metrics.jsonl is rewound to the checkpoint, so that each step stands once.
    """

    def __init__(
        self, out: Path, step: int, total: int, log: Log, tensorboard: bool, quiet: bool
    ) -> None:
        self._out = out
        self._total = total
        self._log = log
        self._rows: list[dict[str, Any]] = []
        self._journal: Journal | None = None
        self._board: Any = None
        if quiet:
            return
        path = out / "metrics.jsonl"
        with Journal(path, step=int) as journal:
            self._rows = [row for row in journal.rows if row["step"] <= step]
        write_jsonl(path, self._rows)
        self._journal = Journal(path)
        if tensorboard:
            library = needs("torch.utils.tensorboard.writer", "tensorboard", "--tensorboard")
            self._board = library.SummaryWriter(str(out / "tensorboard"))

    @property
    def skipped_steps(self) -> int:
        """Skipped steps so far, of an earlier process of this run."""
        return self._rows[-1].get("skipped_steps", 0) if self._rows else 0

    def add(self, row: dict[str, Any]) -> None:
        """Write one step's figures everywhere."""
        if self._journal is None:
            return
        row = {k: finite(v) if isinstance(v, float) else v for k, v in row.items()}
        self._rows.append(row)
        self._journal.append(row)
        if self._board:
            for name, value in row.items():
                if value is not None:
                    self._board.add_scalar(name, float(value), row["step"])
        self._log.say(_line(row, self._total))

    def close(self) -> None:
        """Close the files and draw loss.png."""
        if self._journal is None:
            return
        self._journal.close()
        if self._board:
            self._board.close()
        if not plot.available():
            self._log.say("no loss.png: install the plot extra for it")
        elif self._rows:
            plot.drawn(plot.loss_curve, self._out / "loss.png", self._rows, self._out.name)


def _number(value: float | None, digits: int = 4) -> str:
    return "not finite" if value is None else f"{value:.{digits}f}"


def _line(row: dict[str, Any], total: int) -> str:
    """One greppable line a step."""
    memory = f" | mem {row['memory_gib']:.1f}G" if "memory_gib" in row else ""
    skipped = " | SKIPPED: not finite" if row.get("skipped") else ""
    mfu = f" | mfu {row['mfu']:.1%}" if "mfu" in row else ""
    held_out = "".join(
        f" | {name.replace('eval_loss', 'eval')} {_number(value)}"
        for name, value in row.items()
        if name.startswith("eval_loss")
    )
    return (
        f"step {row['step']:05d}/{total} | loss {_number(row['loss'])} | "
        f"grad {_number(row['grad_norm'], 2)} | "
        f"lr {row['lr']:.1e} | tok/s {row['tokens_per_s']:,.0f}{mfu}{memory}{held_out}{skipped}"
    )
