"""The options of an evaluation (paper section 3.1.2); sampling's are sampling.EngineConfig."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import tyro

from tinyr1.common.command_line import Groups
from tinyr1.common.config import check_range
from tinyr1.common.errors import UserError
from tinyr1.evaluate.benchmarks import LCB_WINDOW
from tinyr1.evaluate.tasks import Preset
from tinyr1.graders.sandbox import Level
from tinyr1.sampling.options import ENGINE_GROUPS, EngineConfig


@dataclass(frozen=True)
class EvalConfig(EngineConfig):
    """Sample a model on tasks, grade the answers, report pass@1 with standard errors."""

    tasks: str = ""
    """Built-in benchmarks, with commas: aime24,aime25,math500,gpqa_diamond,livecodebench."""
    data: Path | None = None
    """Directory with the benchmarks' files as published (without it: the hub)."""
    task_file: Path | None = None
    """Tasks of your own as JSON lines (docs/formats.md)."""
    lcb_start: str = LCB_WINDOW[0]
    """First contest day of livecodebench."""
    lcb_end: str = LCB_WINDOW[1]
    """Last contest day of livecodebench."""
    out: Path | None = None
    """Directory for samples, grades and the report."""
    regrade: Path | None = None
    """Grade this samples.jsonl; no model is loaded."""
    choice_order: Literal["recorded", "listed", "seeded"] = "recorded"
    """In which order a sample to --regrade that lacks `choice_order` saw shuffled options: it must
    have one, as the row lists them, or as this program shuffles them by --seed."""
    compare: tuple[Path, ...] = ()
    """Compare finished evaluations (their --out directories) by paired differences."""
    ask: str | None = None
    """Stream one answer to this question to the terminal."""
    loss: tuple[Path, ...] = ()
    """Measure the loss of these held-out training files instead of asking questions."""
    show_prompts: bool = False
    """Print the prompts as JSON lines, sample nothing."""
    preset: Preset = "tinyr1"
    """Prompts and trials: the paper's, DeepSeek's advice, or the row's prompt and no more."""
    system: str | None = None
    """System message of prompts that have none ('': not even that of the ChatML template)."""
    trials: int | None = None
    """Samples of each question (by default the preset's)."""
    limit: int | None = None
    """Only the first so many rows of each task."""
    jobs: int = 2
    """Programs graded at once."""
    sandbox: Level = "namespaces"
    """Isolation of programs; rlimits is weaker and protects no files."""
    symbolic: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Ask math-verify too where the exact rules refuse an answer: a column of its own."""
    also_grade: Literal["released"] | None = None
    """Add what the released scripts' rules would have said: a column of its own."""
    quiet: bool = False
    """No progress on standard error."""

    groups: ClassVar[Groups] = {
        "model, questions and output": "model tasks data task_file out",
        "instead of an evaluation": "ask loss compare regrade show_prompts",
        "what is asked": "preset system trials limit lcb_start lcb_end",
        **ENGINE_GROUPS,
        "grading": "jobs sandbox symbolic also_grade choice_order",
        "progress": "quiet",
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.system and not self.system.strip():
            raise UserError("--system: blank; '' is for none")
        if self.system == "" and self.api == "chat" and self.engine == "openai":
            raise UserError(
                "--system '': a chat server puts its template's own; --api completions sends ours"
            )
        check_range(self, 1, math.inf, "trials", "limit", "jobs")
