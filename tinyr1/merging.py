"""Merging checkpoints, tensor by tensor (paper section 2.2 and 3.3).

    models -> faults, or a plan -> OUT.partial, one tensor at a time -> OUT + merge_report.json

Everything that can be wrong is found before any work and listed at once. A run that was killed
continues with the tensors that it had not finished; the result is the same to the bit.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from torch import Tensor

from tinyr1.config import check_range
from tinyr1.errors import UserError
from tinyr1.files import Journal, fsync_directory, hash_json, owned, read_json, write_json
from tinyr1.fusion import fuse
from tinyr1.log import Log
from tinyr1.methods import METHODS, MergeParams
from tinyr1.weights import SIDE_FILES, Checkpoint, CheckpointWriter, TensorSpec, copy_side_files

MethodName = Literal[
    "arcee_fusion",
    "linear",
    "slerp",
    "nuslerp",
    "multislerp",
    "karcher",
    "task_arithmetic",
    "ties",
    "dare_linear",
    "dare_ties",
    "della",
    "della_linear",
    "breadcrumbs",
    "breadcrumbs_ties",
    "sce",
    "ram",
    "ramplus_tl",
    "model_stock",
    "nearswap",
    "passthrough",
]
WITHOUT_WEIGHTS = (
    *("arcee_fusion", "slerp", "karcher", "sce", "ram", "ramplus_tl", "model_stock", "nearswap"),
    "passthrough",
)
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
SYNC_BYTES = 1 << 30  # finished tensors are made durable and journalled in portions of this size


@dataclass(frozen=True)
class MergeConfig:
    """Merge checkpoints of one architecture: merge.py LEFT RIGHT OUT."""

    paths: Annotated[tuple[Path, ...], tyro.conf.Positional] = ()
    """Checkpoint directories; the last one is OUT. The first is Left, whose files go along."""
    method: MethodName = "arcee_fusion"
    """How tensors are merged."""
    arithmetic: Literal["exact", "mergekit", "paper"] = "exact"
    """How Arcee Fusion is computed: without rounding noise, as mergekit 0.1.5, or literally."""
    then: tuple[Path, ...] = ()
    """Merge the result, as Right, into each of these Lefts in turn, in the same pass."""
    base: Path | None = None
    """The common ancestor, for methods that work on changes."""
    lam: float | None = None
    """Lambda (by default 1.5 for arcee_fusion, 1.0 for the task-vector methods)."""
    weights: tuple[float, ...] = ()
    """One weight a model (by default 1 each)."""
    normalize: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Divide by the sum of the weights (the default of linear, multislerp, ties and della)."""
    no_normalize: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Do not divide by the sum of the weights (the default of the others)."""
    density: float = 1.0
    """Share of each task vector that is kept (ties, dare, della, breadcrumbs)."""
    gamma: float = 0.01
    """Share of largest changes that breadcrumbs drops."""
    epsilon: float | None = None
    """della: spread of the keeping probability (0.15); ram: smallest change that counts (1e-5)."""
    t: float = 0.5
    """slerp: 0 is the first model, 1 the second; nearswap: the swap threshold."""
    select_topk: float = 1.0
    """Share of most varying elements that sce keeps."""
    dtype: Literal["bf16", "fp16", "fp32"] | None = None
    """Type of the output (by default Left's, tensor by tensor)."""
    seed: int = 0
    """Seed of methods that draw at random."""
    shard_size: float = 5.0
    """Largest output shard in GB."""
    allow_nonfinite: bool = False
    """Copy tensors with NaN or infinity from Left instead of refusing them."""
    diff: tuple[Path, ...] = ()
    """Compare two checkpoints instead of merging: --diff A B."""
    dry_run: bool = False
    """Check the inputs and print the plan; write nothing."""
    quiet: bool = False
    """No progress on standard error."""

    def __post_init__(self) -> None:
        check_range("--shard-size", self.shard_size, 1e-6)
        for name in ("density", "gamma", "select_topk"):
            check_range(f"--{name.replace('_', '-')}", getattr(self, name), 0, 1)


class Merge:
    """A checked merge: its models, its options, and what the output will hold."""

    def __init__(self, config: MergeConfig) -> None:
        self.config = config
        method = METHODS[config.method]
        *inputs, self.out = config.paths or (Path(),)
        if len(inputs) < method.min_models or len(inputs) > (method.max_models or len(inputs)):
            expected = method.max_models or f"{method.min_models} or more"
            raise UserError(
                f"--method {config.method}: {len(inputs)} models given, expected {expected} "
                "and then OUT"
            )
        if config.arithmetic != "exact" and config.method != "arcee_fusion":
            raise UserError(f"--arithmetic: has no meaning with --method {config.method}")
        if config.weights and config.method in WITHOUT_WEIGHTS:
            raise UserError(f"--weights: has no meaning with --method {config.method}")
        if config.then and config.method != "arcee_fusion":
            raise UserError("--then: goes with --method arcee_fusion only")
        if config.weights and len(config.weights) != len(inputs):
            raise UserError(f"--weights: {len(config.weights)} given for {len(inputs)} models")
        if (
            config.method == "linear"
            and not config.no_normalize
            and sum(config.weights or (1,)) == 0
        ):
            raise UserError("--weights: sum to 0; use --no-normalize")
        if config.normalize and config.no_normalize:
            raise UserError("--normalize and --no-normalize: choose one")
        if method.needs_base != (config.base is not None) and not method.takes_base:
            need = "is required" if method.needs_base else "has no meaning"
            raise UserError(f"--base: {need} with --method {config.method}")
        _check_out(self.out, [*inputs, *config.then])
        self.models = [Checkpoint(path) for path in inputs]
        self.then = [Checkpoint(path) for path in config.then]
        self.base = Checkpoint(config.base) if config.base else None
        # The last Left is the one whose files, names and dtypes the output has.
        self.left = self.then[-1] if self.then else self.models[0]
        self.check()
        self.specs = {
            name: TensorSpec(spec.shape, DTYPES[config.dtype] if config.dtype else spec.dtype)
            for name, spec in self.left.specs.items()
        }

    @property
    def lam(self) -> float:
        """Lambda as it is used."""
        default = 1.5 if self.config.method == "arcee_fusion" else 1.0
        return default if self.config.lam is None else self.config.lam

    @property
    def params(self) -> MergeParams:
        """The options as the methods take them."""
        c = self.config
        return MergeParams(
            weights=c.weights,
            lam=self.lam,
            normalize=True if c.normalize else (False if c.no_normalize else None),
            density=c.density,
            gamma=c.gamma,
            epsilon=c.epsilon,
            t=c.t,
            select_topk=c.select_topk,
        )

    @property
    def inputs(self) -> list[Checkpoint]:
        return [*self.models, *self.then, *([self.base] if self.base else [])]

    @property
    def output_bytes(self) -> int:
        return sum(spec.byte_count for spec in self.specs.values())

    def check(self) -> None:
        """UserError listing every difference in names, shapes and head, and a full disk."""
        faults: list[str] = []
        tied = read_json(self.left.path / "config.json").get("tie_word_embeddings", False)
        for other in self.inputs:
            faults += [f"{other.path}: {line}" for line in other.dtype_faults()]
            if other is self.left:
                continue
            faults += differences(self.left, other)
            other_tied = read_json(other.path / "config.json").get("tie_word_embeddings", False)
            if other_tied != tied:
                faults.append(
                    f"{other.path}: tie_word_embeddings={other_tied}, {self.left.path} has {tied}"
                )
        if faults:
            raise UserError("the models do not fit together:\n  " + "\n  ".join(faults))

    def check_disk(self, partial: Path) -> None:
        needed = sum(spec.byte_count for spec in self.specs.values())
        there = (
            sum(f.stat().st_blocks * 512 for f in partial.glob("*.partial"))
            if partial.exists()
            else 0
        )
        free = shutil.disk_usage(_existing_parent(self.out)).free
        if free < needed - there:
            raise UserError(
                f"OUT={self.out}: {needed - there:,} bytes needed, {free:,} free on that disk"
            )

    def identity(self) -> dict[str, Any]:
        """Inputs and options: what the output depends on, without paths and times."""
        c = self.config
        roles = [(f"model {i}", m) for i, m in enumerate(self.models)]
        roles += [(f"then {i}", m) for i, m in enumerate(self.then)]
        roles += [("base", self.base)] if self.base else []
        return {
            "method": c.method,
            "arithmetic": c.arithmetic if c.method == "arcee_fusion" else None,
            "lam": self.lam,
            "weights": list(c.weights),
            "normalize": c.normalize or (False if c.no_normalize else None),
            "density": c.density,
            "gamma": c.gamma,
            "epsilon": c.epsilon,
            "t": c.t,
            "select_topk": c.select_topk,
            "dtype": c.dtype,
            "seed": c.seed,
            "allow_nonfinite": c.allow_nonfinite,
            "inputs": [_identity(role, model) for role, model in roles],
        }


def _identity(role: str, model: Checkpoint) -> dict[str, Any]:
    headers = {n: [list(s.shape), str(s.dtype), model.shards[n]] for n, s in model.specs.items()}
    return {
        "role": role,
        "name": model.path.resolve().name,
        "tensors": len(model.specs),
        "bytes": sum(spec.byte_count for spec in model.specs.values()),
        "headers_sha256": hash_json(headers),
        "fingerprint": model.fingerprint(),
    }


def differences(left: Checkpoint, other: Checkpoint) -> list[str]:
    """One line for each tensor that is missing, unexpected or of another shape in `other`."""
    faults = [f"{other.path}: {n}: missing" for n in left.specs if n not in other.specs]
    for name, spec in other.specs.items():
        if name not in left.specs:
            faults.append(f"{other.path}: {name}: not in {left.path}")
        elif spec.shape != left.specs[name].shape:
            wanted = list(left.specs[name].shape)
            faults.append(f"{other.path}: {name}: shape {list(spec.shape)}, Left has {wanted}")
    return faults


def _check_out(out: Path, inputs: Sequence[Path]) -> None:
    resolved = out.resolve()
    for path in inputs:
        if resolved == path.resolve() or path.resolve() in resolved.parents:
            raise UserError(f"OUT={out}: lies in the input {path}; choose another place")


def _existing_parent(path: Path) -> Path:
    path = path.resolve()
    while not path.exists():
        path = path.parent
    return path


# ---------------------------------------------------------------- one tensor


def merge_tensor(merge: Merge, name: str) -> tuple[Tensor, dict[str, Any]]:
    """The merged tensor and its entry in the report."""
    config = merge.config
    tensors = [m.tensor(name) for m in merge.models]
    lefts = [m.tensor(name) for m in merge.then]
    base = merge.base.tensor(name) if merge.base else None
    everything = [*tensors, *lefts, *([base] if base is not None else [])]
    spec = merge.specs[name]
    if not all(bool(t.isfinite().all()) for t in everything):
        if not config.allow_nonfinite:
            raise UserError(f"{name}: NaN or infinity in an input; --allow-nonfinite copies Left")
        left = (lefts or tensors)[-1 if lefts else 0]
        return left.to(spec.dtype), {"flags": ["nonfinite_input"]}
    if config.method == "arcee_fusion":
        left, result = tensors
        steps: list[dict[str, Any]] = []
        for following in [left, *lefts]:
            result, step = _fuse_step(following, result, merge, name)
            steps.append(step)
        entry = steps[-1] if len(steps) == 1 else {"steps": steps}
    else:
        method = METHODS[config.method]
        generator = torch.Generator().manual_seed(_tensor_seed(config.seed, name))
        try:
            result = method.fn(tensors, base, merge.params, generator)
        except ValueError as error:  # options that this tensor does not allow
            raise UserError(f"{name}: {error}") from None
        entry = _change(tensors[0], result)
    return result.to(spec.dtype), entry


def _fuse_step(
    left: Tensor, right: Tensor, merge: Merge, name: str
) -> tuple[Tensor, dict[str, Any]]:
    generator = torch.Generator().manual_seed(_tensor_seed(merge.config.seed, name))
    result, stats = fuse(left, right, merge.lam, merge.config.arithmetic, generator)
    n = max(left.numel(), 1)
    right = right.to(left.dtype)
    return result, {
        "threshold": stats.threshold,
        "quartiles": list(stats.quartiles),
        "share_changed": int((left != right).sum()) / n,
        "share_taken": stats.taken / n,
        "max_change": _largest(left, result),
        "flags": ["threshold_collapsed"] if stats.collapsed else [],
    }


def _change(left: Tensor, result: Tensor) -> dict[str, Any]:
    share = int((left != result).sum()) / max(left.numel(), 1)
    return {"share_changed": share, "max_change": _largest(left, result), "flags": []}


def _largest(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b.double()).abs().max()) if a.numel() else 0.0


def _tensor_seed(seed: int, name: str) -> int:
    digest = hashlib.sha256(f"{seed}\0{name}".encode()).digest()
    return int.from_bytes(digest[:7], "little")


# ---------------------------------------------------------------- the run


def run_merge(config: MergeConfig, log: Log) -> None:
    """Merge into OUT, or continue a merge that was interrupted."""
    merge = Merge(config)
    for line in plan_lines(merge):
        print(line) if config.dry_run else log.say(line)
    warn_tokenizers(merge, log)
    out, partial = merge.out, merge.out.with_name(merge.out.name + ".partial")
    if config.dry_run:
        merge.check_disk(partial)
        return
    if out.exists() and any(out.iterdir()):
        raise UserError(f"OUT={out}: not empty; choose another place or remove it")
    merge.check_disk(partial)
    started = time.perf_counter()
    with owned(partial):
        _merge_into(partial, merge, log)
    log.say(f"merged {len(merge.specs)} tensors in {time.perf_counter() - started:.1f} s: {out}")


def _merge_into(partial: Path, merge: Merge, log: Log) -> None:
    """Fill OUT.partial and give it its name."""
    for torn in partial.glob(".*.partial"):  # of a process that was killed while writing it
        torn.unlink()
    _check_same_merge(partial / "merge_state.json", merge)
    entries = _write_tensors(merge, partial, log)
    report = {"merge": merge.identity(), "tensors": entries}
    copy_side_files(merge.left.path, partial, _main_dtype(merge))
    write_json(partial / "merge_report.json", report)
    (partial / "merge_journal.jsonl").unlink()
    (partial / "merge_state.json").unlink()
    if merge.out.exists():
        merge.out.rmdir()  # empty, or we would not be here
    os.replace(partial, merge.out)
    fsync_directory(merge.out.parent)


def _check_same_merge(state: Path, merge: Merge) -> None:
    """OUT.partial may only be continued by the merge that began it, on unchanged inputs."""
    stamps = [
        [shard, (m.path / shard).stat().st_mtime_ns]
        for m in merge.inputs
        for shard in sorted(set(m.shards.values()))
    ]
    mine = {"merge": merge.identity(), "shards": stamps, "shard_size": merge.config.shard_size}
    if not state.exists():
        write_json(state, mine)
    elif read_json(state) != mine:
        raise UserError(
            f"{state.parent}: holds an unfinished merge of other inputs or options; remove it"
        )


def _write_tensors(merge: Merge, partial: Path, log: Log) -> dict[str, Any]:
    """Merge and write every tensor that the journal does not have; returns all entries."""
    with Journal(partial / "merge_journal.jsonl") as journal:
        entries = {row.pop("name"): row for row in journal.rows}
        size = int(merge.config.shard_size * 1e9)
        with (
            CheckpointWriter(partial, merge.specs, size, resume=bool(entries)) as writer,
            log.bar(total=merge.output_bytes, unit="B", unit_scale=True) as bar,
        ):
            # The journal vouches for bytes in shards that are still there, and for no others.
            entries = {n: e for n, e in entries.items() if writer.shards[n] in writer.kept}
            if entries:
                log.say(f"continuing: {len(entries)} of {len(merge.specs)} tensors are done")
                bar.update(sum(merge.specs[name].byte_count for name in entries))
            pending: list[dict[str, Any]] = []
            pending_bytes = 0
            for name, spec in merge.specs.items():
                if name in entries:
                    continue
                tensor, entry = merge_tensor(merge, name)
                data = writer.write(name, tensor)
                facts = {"shape": list(spec.shape), "dtype": str(spec.dtype).removeprefix("torch.")}
                entries[name] = facts | entry | {"sha256": hashlib.sha256(data).hexdigest()}
                pending.append({"name": name, **entries[name]})
                pending_bytes += spec.byte_count
                if pending_bytes >= SYNC_BYTES:
                    writer.sync()  # the bytes first, then the line that vouches for them
                    journal.append(*pending)
                    pending, pending_bytes = [], 0
                bar.update(spec.byte_count)
    return {name: entries[name] for name in merge.specs}


def _main_dtype(merge: Merge) -> torch.dtype:
    """The dtype of most bytes, which config.json names."""
    sizes: dict[torch.dtype, int] = {}
    for spec in merge.specs.values():
        sizes[spec.dtype] = sizes.get(spec.dtype, 0) + spec.byte_count
    return max(sizes, key=lambda dtype: sizes[dtype])


def plan_lines(merge: Merge) -> list[str]:
    """What will be done, for people."""
    names = " + ".join(m.path.name for m in merge.models)
    lines = [f"method: {merge.config.method} of {names}"]
    lines += [f"then: Left {m.path.name}" for m in merge.then]
    lines.append(
        f"output: {len(merge.specs)} tensors, {merge.output_bytes:,} bytes, "
        f"{_main_dtype(merge)}, files from {merge.left.path.name}"
    )
    largest = max(spec.byte_count for spec in merge.specs.values())
    lines.append(f"largest tensor: {largest:,} bytes; whole tensors are held one at a time")
    return lines


def warn_tokenizers(merge: Merge, log: Log) -> None:
    """Warn where an input's tokenizer is not Left's: its tokens would mean other words."""
    for name in SIDE_FILES:
        if not name.startswith("tokenizer."):
            continue
        mine = merge.left.path / name
        for other in merge.inputs:
            theirs = other.path / name
            if mine.exists() and theirs.exists() and mine.read_bytes() != theirs.read_bytes():
                log.warn(f"{theirs}: differs from {mine}, which the output gets")
