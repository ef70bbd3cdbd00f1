"""Saving and resuming a run (torch DCP, sharded), and exporting it as a Hugging Face checkpoint.

OUT/checkpoints/step-000120/ holds each rank's shards and `meta.json`. It is written under another
name and renamed when whole, so what has the name can be resumed from, at any world size: besides
weights and moments the state is the step alone, because the order of data is a function of it.
meta.json has the size and hash of every file, so that a checkpoint which was damaged since then
is known, and an older one is used.
"""

from __future__ import annotations

import itertools
import os
import re
import shutil
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_loader import load as load_sharded
from torch.distributed.checkpoint.state_dict_saver import async_save as save_in_background

from tinyr1.common.errors import RunStopped, UserError
from tinyr1.common.files import fsync_directory, hash_file, read_object, remove_torn, write_json
from tinyr1.common.ranks import Ranks
from tinyr1.model.qwen2 import Qwen2
from tinyr1.model.rows import TensorSpec
from tinyr1.model.writer import CheckpointWriter, copy_side_files


@contextmanager
def failing_plainly(action: str) -> Iterator[None]:
    """DCP's own exception is no Exception; make it one line and exit code 1."""
    try:
        yield
    except CheckpointException as error:
        found = (failure[0] for failure in error.failures.values())
        reasons = {_plainly(" ".join(str(reason).split()) or repr(reason)) for reason in found}
        raise RunStopped(f"{action}: {'; '.join(sorted(reasons))}") from None


def _plainly(reason: str) -> str:
    """torch's writer checks what it has written by assertions, whose text helps nobody."""
    wrote_less = "enforce fail" in reason and "inline_container" in reason
    return "a file could not be written whole; is the disk full?" if wrote_less else reason


def step_path(out: Path, step: int) -> Path:
    return out / "checkpoints" / f"step-{step:06d}"


def completed_steps(out: Path) -> list[int]:
    """Steps with a checkpoint under its final name, in order."""
    folder = out / "checkpoints"
    found = folder.glob("step-*") if folder.is_dir() else []
    names = (re.fullmatch(r"step-(\d{6}|[1-9]\d{6,})", path.name) for path in found)
    return sorted(int(name[1]) for name in names if name)  # copies that people made are theirs


class Saver:
    """Writes checkpoints in the background while training goes on, one at a time.

    The state is copied to the host first; threads then write it. Their collectives run on a process
    group of their own: on the training's they would interleave with its collectives.
    """

    def __init__(self, out: Path, ranks: Ranks, keep: int) -> None:
        self.out = out
        self.ranks = ranks
        self.keep = keep
        # Its own group: on the training's, its collectives would interleave with those of the next
        # step.
        self._group = cast("dist.ProcessGroup", dist.new_group(backend="gloo"))
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        if ranks.is_main:
            for torn in (out / "checkpoints").glob("*.partial"):  # of a process that was killed
                shutil.rmtree(torn, ignore_errors=True)
            self._prune()
        self._writing: Future[None] | None = None

    def save(
        self, step: int, model: nn.Module, optimizer: torch.optim.Optimizer, meta: dict[str, Any]
    ) -> None:
        """Begin to write the checkpoint of `step`; it gets its name when it is whole."""
        # One checkpoint at a time: two would need twice the host memory.
        self.wait()
        final = step_path(self.out, step)
        partial = final.with_name(final.name + ".partial")
        if self.ranks.is_main:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
        # No rank writes into a folder that the main one is still clearing.
        self.ranks.barrier()
        weights, moments = get_state_dict(model, optimizer)
        with failing_plainly(f"saving {partial}"):
            written = save_in_background(
                {"model": weights, "optimizer": moments},
                checkpoint_id=str(partial),
                process_group=self._group,
            )
        everything = {"step": step, **meta}
        self._writing = self._thread.submit(self._finish, written, partial, final, everything)

    def _finish(self, written: Any, partial: Path, final: Path, meta: dict[str, Any]) -> None:
        """Give a checkpoint its name. The main rank's part ends only when every rank's has."""
        free = shutil.disk_usage(partial).free
        with failing_plainly(f"saving {partial} ({free / 1e9:.1f} GB were free there)"):
            written.result()
        # Each rank hashes what it wrote itself, while training goes on; .metadata is the main's.
        mine = [*partial.glob(f"__{self.ranks.rank}_*")]
        mine += [partial / ".metadata"] if self.ranks.is_main else []
        files = gather({path.name: identity(path) for path in mine}, self._group)
        if self.ranks.is_main:
            whole = {name: about for part in files for name, about in part.items()}
            write_json(partial / "meta.json", meta | {"files": dict(sorted(whole.items()))})
            if final.exists():
                _remove(final)
            os.replace(partial, final)
            fsync_directory(final.parent)
            self._prune()

    def _prune(self) -> None:
        """Keep the newest checkpoints only."""
        for old in completed_steps(self.out)[: -self.keep]:
            _remove(step_path(self.out, old))

    def wait(self) -> None:
        """Return when nothing is being written any more; RunStopped if it failed."""
        if self._writing is not None:
            self._writing.result()
            self._writing = None
            self.ranks.barrier()


def _remove(checkpoint: Path) -> None:
    """Remove a checkpoint that, cut short in between, does not pass for a whole one."""
    # The name goes first, so that what a kill leaves is no checkpoint any more.
    going = checkpoint.with_name(checkpoint.name + ".old.partial")
    shutil.rmtree(going, ignore_errors=True)
    os.replace(checkpoint, going)
    shutil.rmtree(going)


def identity(path: Path) -> dict[str, Any]:
    """A file's size and hash."""
    return {"bytes": path.stat().st_size, "sha256": hash_file(path)}


def gather(value: Any, group: dist.ProcessGroup | None = None) -> list[Any]:
    """Every rank's value, on every rank."""
    values: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(values, value, group)
    return values


def read_meta(folder: Path) -> dict[str, Any]:
    """meta.json of a checkpoint; ValueError says what is wrong with it."""
    try:
        meta = read_object(folder / "meta.json")
    except UserError as error:
        raise ValueError(str(error).removeprefix(f"{folder}/")) from None
    except OSError as error:
        raise ValueError(f"meta.json: {(error.strerror or str(error)).lower()}") from None
    if not isinstance(meta.get("settings"), dict):
        raise ValueError("meta.json: no settings")
    step, files = meta.get("step"), meta.get("files")
    if type(step) is not int or step_path(folder, step).name != folder.name:
        raise ValueError(f"meta.json: of step {step}, a copy of another checkpoint")
    if files is None:
        raise ValueError("meta.json: no hashes of the files (an earlier version made it)")
    kinds = {"bytes": int, "sha256": str}
    if not isinstance(files, dict) or not all(
        isinstance(about, dict) and all(type(about.get(k)) is kind for k, kind in kinds.items())
        for about in files.values()
    ):
        raise ValueError("meta.json: files without sizes and hashes")
    if ".metadata" not in files:
        raise ValueError("meta.json: no .metadata among the files")
    return meta


def fault_of(folder: Path, ranks: Ranks) -> str:
    """What is wrong with a checkpoint, "" for nothing. Every rank reads a part of it."""
    faults: list[str] = []
    try:
        files = read_meta(folder)["files"]
        for name in ranks.share({name: about["bytes"] for name, about in files.items()}):
            faults += _file_fault(folder / name, files[name])
    except ValueError as error:
        faults.append(str(error))
    found = [fault for part in gather(faults) for fault in part]
    return found[0] if found else ""


def _file_fault(path: Path, about: dict[str, Any]) -> list[str]:
    if not path.is_file():
        return [f"{path.name}: missing"]
    size = path.stat().st_size
    if size != about["bytes"]:
        return [f"{path.name}: {size:,} bytes of {about['bytes']:,}"]
    return [] if hash_file(path) == about["sha256"] else [f"{path.name}: its bytes have changed"]


def set_aside(folder: Path) -> None:
    """Take the name from a checkpoint that cannot be used."""
    names = itertools.chain([".damaged"], (f".damaged.{i}" for i in itertools.count(2)))
    asides = (folder.with_name(folder.name + end) for end in names)
    os.replace(folder, next(path for path in asides if not path.exists()))
    fsync_directory(folder.parent)


def load(out: Path, step: int, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Restore weights and moments from the checkpoint of `step`."""
    weights, moments = get_state_dict(model, optimizer)
    state = {"model": weights, "optimizer": moments}
    with failing_plainly(f"loading {step_path(out, step)}"):
        load_sharded(state, checkpoint_id=str(step_path(out, step)))
    set_state_dict(
        model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"]
    )


def export(
    model: Qwen2, source: Path, out: Path, dtype: torch.dtype, ranks: Ranks, end_token: int
) -> None:
    """Write the sharded model as a Hugging Face checkpoint at the top of `out`.

    Its generation config stops at `end_token`, with which it was trained to end an answer. One
    tensor at a time is gathered, and only rank 0 keeps it. Tokenizer, generation config and chat
    template come from `source`. config.json is written last: with it the export is whole.
    """
    parameters = dict(model.named_parameters())
    writer = None
    if ranks.is_main:
        remove_torn(out)
        specs = {name: TensorSpec(tuple(p.shape), dtype) for name, p in parameters.items()}
        writer = CheckpointWriter(out, specs)
    # All ranks take part in gathering each tensor, in one order; only one of them keeps it.
    for name, parameter in parameters.items():
        whole = cast("Any", parameter).detach().full_tensor()
        if writer:
            writer.write(name, whole.to(dtype).cpu())
    if writer:
        writer.finish()
        copy_side_files(source, out, dtype, end_token)
    ranks.barrier()
