"""The paper's own numbers (arXiv 2503.04872), to stand beside ours.

32B models on 8x H800; pass@1 in percent over 16, 4 and 4 trials. No standard errors are given.
"""

from __future__ import annotations

from typing import NamedTuple

from tinyr1.evaluate.stats import mean

BENCHMARKS = ("aime24", "livecodebench", "gpqa_diamond")  # the columns: math, coding, science


class PaperRow(NamedTuple):
    """A model of the paper's tables; None where a cell is empty there."""

    model: str
    scores: tuple[float | None, float | None, float | None]
    tokens: tuple[float, float, float] | None = None  # thousands, the thinking included
    gpu_hours: float | None = None  # of merging or retraining, the experts not counted

    @property
    def average(self) -> float:
        """Mean of the scores that there are."""
        return mean([score for score in self.scores if score is not None])


TABLE_1 = (
    PaperRow("DeepSeek-R1-Distill-Qwen-32B", (72.6, 57.2, 62.1), (9.6, 10.1, 5.3)),
    PaperRow("DeepSeek-R1-Distill-Llama-70B", (70.0, 57.5, 65.2)),
    PaperRow("DeepSeek-R1", (79.8, 65.9, 71.5), (9.6, 10.4, 5.3)),
    PaperRow("TinyR1-32B-Preview", (78.1, 61.6, 65.0), (11.8, 12.4, 8.6)),
)
TABLE_2 = (
    PaperRow("math expert", (73.1, None, None)),
    PaperRow("coding expert", (None, 63.4, None)),
    PaperRow("science expert", (None, None, 64.5)),
    PaperRow("data mixture", (75.3, 61.0, 65.7), gpu_hours=740),
    PaperRow("(math & coding) & science", (77.3, 63.8, 64.0), gpu_hours=4),
    PaperRow("(math & science) & coding", (78.1, 61.6, 65.0), gpu_hours=4),
)
