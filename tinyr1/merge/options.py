"""The options of a merge. Those of the methods are methods.MergeParams, under the same names."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import torch
import tyro

from tinyr1.common.by_name import each
from tinyr1.common.command_line import Groups
from tinyr1.common.config import check_range, flag
from tinyr1.common.errors import UserError
from tinyr1.common.log import counted
from tinyr1.merge.methods import DEFAULT_METHOD, METHODS, MergeParams

if TYPE_CHECKING:  # the names are in one table, which a type checker cannot read
    MethodName = str
else:
    MethodName = Literal[tuple(METHODS)]


@dataclass(frozen=True)
class MergeConfig:
    """Merge checkpoints of one architecture: merge.py LEFT RIGHT OUT."""

    paths: Annotated[
        tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="LEFT RIGHT OUT")
    ] = ()
    """Required. Checkpoint directories: Left (the last Left's other files go along), others, and
    OUT last."""
    method: MethodName = DEFAULT_METHOD
    """The way in which tensors are merged."""
    then: tuple[Path, ...] = ()
    """Merge the result, as Right, into each of these Lefts in turn, in the same pass."""
    base: Path | None = None
    """The common ancestor, for methods that work on changes."""
    params: Annotated[MergeParams, tyro.conf.OmitArgPrefixes] = field(default_factory=MergeParams)
    dtype: Literal["bf16", "fp16", "fp32"] | None = None
    """Type of the output (by default Left's, tensor by tensor)."""
    seed: int = 0
    """Seed of methods that draw at random, and of what --arithmetic mergekit samples."""
    shard_size: float | None = None
    """Largest output shard in GB (by default Left's shards are kept as they are)."""
    threads: int = 0
    """Tensors merged at a time (0: one a core, at most 8; one where whole tensors are held)."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Device of the arithmetic."""
    allow_nonfinite: bool = False
    """Copy tensors with NaN or infinity from Left instead of refusing them."""
    allow_differences: bool = False
    """Merge although config.json's differ in what tensors mean (heads, rope); Left's stays."""
    allow_padding: bool = False
    """Vocabularies of several sizes differ by padding at the end (seen where tokenizers agree)."""
    only: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="REGEX")] = ()
    """Merge the tensors whose names match this expression (repeatable); the others are Left's."""
    except_: Annotated[
        tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(name="except", metavar="REGEX")
    ] = ()
    """Take the tensors whose names match this expression (repeatable) from Left."""
    methods: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """List every method with its models, its base and its options, and end."""
    diff: tuple[Path, ...] = ()
    """Compare two checkpoints instead of merging: --diff A B."""
    save: Path | None = None
    """A folder for diff.json, diff.md and diff.png (with --diff)."""
    dry_run: bool = False
    """Check the inputs and print the plan; write nothing."""
    quiet: bool = False
    """No progress on standard error."""

    groups: ClassVar[Groups] = {
        "models and output": "paths then base method methods only except_ dry_run",
        "arcee_fusion (paper section 2.2)": "lam quantiles arithmetic eps",
        "averages and task vectors": "weights normalize density rescale gamma epsilon",
        "single methods": "t select_topk max_iter tol r alpha filter_wise nuslerp_flatten "
        "nuslerp_row_wise scale",
        "what may differ": "allow_nonfinite allow_differences allow_padding",
        "output and machine": "dtype shard_size seed threads device quiet",
        "comparing two models": "diff save",
    }

    def __post_init__(self) -> None:
        check_range(self, 1e-6, math.inf, "shard_size")
        check_range(self, 0, math.inf, "threads")
        if self.threads > 1 and self.device == "cuda":
            raise UserError(f"--threads={self.threads}: --device cuda merges one tensor at a time")
        for option, patterns in (("--only", self.only), ("--except", self.except_)):
            for pattern in patterns:
                try:
                    re.compile(pattern)
                except re.error as error:
                    raise UserError(
                        f"{option}={pattern}: no regular expression ({error})"
                    ) from None
        if self.diff and self.paths:
            raise UserError("--diff: compares two checkpoints; leave the other paths out")
        if self.save and not self.diff:
            raise UserError("--save: goes with --diff only")


def method_lines() -> list[str]:
    """Every method in a line: models, base, options."""
    lines: list[str] = []
    for name, method in METHODS.items():
        count = f"{method.min_models} or more models"
        if method.max_models:  # no method has a range
            count = f"{method.max_models} models"
        if method.needs_base:
            count += ", --base"
        elif method.takes_base:
            count += ", --base or none"
        options = " ".join(flag(option) for option in method.options)
        lines.append(f"{name:<22} {count}  {options}".rstrip())
    return lines


def check_options(config: MergeConfig, model_count: int) -> None:
    """UserError for options that do not fit the method, or one another."""
    name = config.method
    method = METHODS[config.method]
    params = config.params
    given = len(config.paths)
    if not method.min_models <= model_count <= (method.max_models or model_count):
        expected = method.max_models or f"{method.min_models} or more"
        hint = "; OUT is missing" if given == method.min_models else ""
        if config.then and given <= method.min_models:
            hint += "; --then takes all paths that follow it: put LEFT RIGHT OUT first"
        raise UserError(
            f"LEFT RIGHT OUT: {counted(given, 'path')} given, --method {name} takes "
            f"{expected} models and then OUT{hint}"
        )
    for option in sorted({f.name for f in fields(MergeParams)} - set(method.options)):
        if getattr(params, option) != getattr(MergeParams(), option):
            raise UserError(f"{flag(option)}: has no meaning with --method {name}")
    if config.then and name != "arcee_fusion":
        raise UserError(f"--then: has no meaning with --method {name}")
    divides = name in ("linear", "multislerp") and params.normalize is not False
    for weights in each(params.weights):
        if weights and len(weights) != model_count:
            raise UserError(f"--weights: {len(weights)} given for {model_count} models")
        if divides and sum(weights or (1,)) == 0:
            raise UserError("--weights: sum to 0; use --no-normalize")
    if method.needs_base != (config.base is not None) and not method.takes_base:
        need = "is required" if method.needs_base else "has no meaning"
        raise UserError(f"--base: {need} with --method {name}")
    if config.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: no CUDA device here; leave it out")
