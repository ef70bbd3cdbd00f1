"""Merging checkpoints, tensor by tensor (paper sections 2.2 and 3.3).

    a checked Merge -> OUT.partial, tensor by tensor -> OUT with merge_report.json

Arcee Fusion (exact) and element-wise methods stream rows from the mapped inputs into the output,
several tensors at a time; the others hold whole tensors. A run that was killed continues with the
tensors that it had not finished. Under torchrun every rank merges its share of the tensors into
the same files. Threads, ranks and interruptions change no bit of the result.
"""

from __future__ import annotations

import hashlib
import math
import os
import shlex
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from tinyr1.common.errors import UserError
from tinyr1.common.files import (
    Journal,
    finite,
    fsync_directory,
    read_object,
    write_json,
    write_jsonl,
)
from tinyr1.common.log import Log, counted
from tinyr1.common.ranks import Ranks
from tinyr1.common.threads import keep_freed_memory, one_core
from tinyr1.merge.card import write_card
from tinyr1.merge.fusion import ExactFusion, FusionStats, NonFiniteError, fuse
from tinyr1.merge.options import MergeConfig
from tinyr1.merge.plan import Merge, main_dtype, plan_lines, warn_differences
from tinyr1.merge.quartiles import count_true, differing
from tinyr1.model.rows import MappedRows, Rows, all_finite, matrix_shape, row_parts
from tinyr1.model.weights import Checkpoint, dtype_name
from tinyr1.model.writer import CheckpointWriter, copy_side_files

SYNC_BYTES = 1 << 28  # finished tensors are made durable and journalled in portions of this size
WINDOW_BYTES = 1 << 26  # of the inputs may be resident, over all threads
DONE_NAME = "merge_journal.jsonl"  # what earlier runs finished; each rank adds a journal of its own
Entry = dict[str, Any]  # what the report says of a tensor

# ---------------------------------------------------------------- one tensor


class MergedTensor(Protocol):
    """A merged tensor whose rows are computed as they are asked for, `parts` in order."""

    parts: list[slice]

    def __getitem__(self, part: slice, /) -> Tensor: ...

    def entry(self) -> Entry:
        """The tensor's figures for the report, once all parts have been asked for."""
        ...


class FusedTensor:
    """Arcee Fusion of Left and Right, and of each further Left with the result so far."""

    def __init__(self, merge: Merge, name: str, stack: ExitStack) -> None:
        shape = merge.shape(name)
        self.parts = row_parts(shape)
        self._size = math.prod(shape)
        params = merge.params.at(name)
        left, right = (stack.enter_context(_mapped(merge, model, name)) for model in merge.models)
        lefts = [left, *(stack.enter_context(_mapped(merge, model, name)) for model in merge.then)]
        self._rows: Rows = right
        # A streamed fusion knows its figures only when its last rows have been asked for.
        self._steps: list[ExactFusion | FusionStats | None] = []
        for left in lefts:
            try:
                if params.arithmetic == "exact":
                    options = params.fusion_options()
                    self._rows = ExactFusion(left, self._rows, shape, options, merge.device)
                    self._steps.append(self._rows)
                else:
                    generator = torch.Generator().manual_seed(_tensor_seed(merge.config.seed, name))
                    options = params.fusion_options(generator)
                    a, b = _whole(left, shape, merge), _whole(self._rows, shape, merge)
                    result, stats = fuse(a, b, options, params.arithmetic)
                    self._rows = result.view(matrix_shape(shape))
                    self._steps.append(stats)
            except NonFiniteError:
                if not merge.config.allow_nonfinite:
                    raise
                self._rows = left  # as it would have been written
                self._steps.append(None)

    def __getitem__(self, part: slice, /) -> Tensor:
        return self._rows[part]

    def entry(self) -> Entry:
        steps = [self._step_entry(step) for step in self._steps]
        return steps[0] if len(steps) == 1 else {"steps": steps}

    def _step_entry(self, step: ExactFusion | FusionStats | None) -> Entry:
        if step is None:
            return {"flags": ["nonfinite_input"]}
        stats = step.stats if isinstance(step, ExactFusion) else step
        count = max(self._size, 1)
        return {
            "threshold": finite(stats.threshold),
            "quartiles": [finite(value) for value in stats.quartiles],
            "share_changed": stats.changed / count,
            "share_taken": stats.taken / count,
            "max_change": stats.max_change,
            "flags": ["threshold_collapsed"] if stats.collapsed else [],
        }


class MethodTensor:
    """Any other method: by parts if it works element by element, otherwise on whole tensors."""

    def __init__(self, merge: Merge, name: str, stack: ExitStack) -> None:
        shape = merge.shape(name)
        self.parts = row_parts(shape)
        self._size = math.prod(shape)
        self._params = merge.params.at(name)
        self._merge = merge
        self._method = merge.method
        self._dtype = merge.specs[name].dtype
        self._models = [stack.enter_context(_mapped(merge, model, name)) for model in merge.models]
        self._base = stack.enter_context(_mapped(merge, merge.base, name)) if merge.base else None
        self._generator = torch.Generator().manual_seed(_tensor_seed(merge.config.seed, name))
        for rows in [*self._models, *([self._base] if self._base else [])]:
            if not all(all_finite(rows[part]) for part in self.parts):
                raise NonFiniteError
        self._result: Tensor | None = None
        if not self._method.elementwise:
            whole = [_whole(rows, shape, merge) for rows in self._models]
            base = _whole(self._base, shape, merge) if self._base else None
            self._result = self._apply(whole, base).view(matrix_shape(shape))
        self._changed = 0
        self._largest = 0.0

    def _apply(self, models: list[Tensor], base: Tensor | None) -> Tensor:
        try:
            return self._method.unrounded(models, base, self._params, self._generator)
        except ValueError as error:  # options that this tensor does not allow
            raise UserError(str(error)) from None

    def __getitem__(self, part: slice, /) -> Tensor:
        device = self._merge.device
        left = self._models[0][part].to(device)
        if self._result is None:
            models = [left, *(rows[part].to(device) for rows in self._models[1:])]
            result = self._apply(models, self._base[part].to(device) if self._base else None)
        else:
            result = self._result[part]
        rounded = result.to(self._dtype)
        same_type = left.dtype == rounded.dtype
        self._changed += count_true(differing(left, rounded) if same_type else left != rounded)
        lowest, highest = map(float, (rounded.to(result) - left.to(result)).aminmax())
        if not (math.isfinite(lowest) and math.isfinite(highest)):
            raise UserError(f"values beyond the range of {self._dtype}; use another --dtype")
        self._largest = max(self._largest, -lowest, highest)
        return rounded

    def entry(self) -> Entry:
        share = self._changed / max(self._size, 1)
        return {"share_changed": share, "max_change": self._largest, "flags": []}


class CopiedTensor:
    """Left as it is: an empty tensor, one of integers, or with --allow-nonfinite one with NaN."""

    def __init__(self, merge: Merge, name: str, stack: ExitStack, flags: list[str]) -> None:
        self.parts = row_parts(merge.shape(name))
        self._flags = flags
        self._rows = stack.enter_context(_mapped(merge, merge.left, name))

    def __getitem__(self, part: slice, /) -> Tensor:
        return self._rows[part]

    def entry(self) -> Entry:
        return {"flags": self._flags}


def merge_tensor(
    merge: Merge, name: str, writer: CheckpointWriter, done: Callable[[int], object]
) -> Entry:
    """Merge one tensor into the output; `done` hears of bytes written. Returns its entry."""
    spec = merge.specs[name]
    with ExitStack() as stack:
        kind = FusedTensor if merge.config.method == "arcee_fusion" else MethodTensor
        merged: MergedTensor
        try:
            if not merge.wants(name):
                merged = CopiedTensor(merge, name, stack, ["not_selected"])
            elif not spec.element_count or not spec.is_floating:
                merged = CopiedTensor(merge, name, stack, [])
            else:
                merged = kind(merge, name, stack)
                if not all(all_finite(rows) for rows in padding(merge, name)):
                    raise NonFiniteError
        except NonFiniteError:
            if not merge.config.allow_nonfinite:
                raise
            merged = CopiedTensor(merge, name, stack, ["nonfinite_input"])

        def parts() -> Iterator[Tensor]:
            for part in merged.parts:
                rows = merged[part].to("cpu")
                if rows.dtype != spec.dtype:
                    rows = _cast(rows, spec.dtype)
                yield rows
                done(rows.nbytes)
            for rows in padding(merge, name):
                yield rows
                done(rows.nbytes)

        digest = writer.write_parts(name, parts())
        facts = {"shape": list(spec.shape), "dtype": dtype_name(spec.dtype)}
        return facts | merged.entry() | {"sha256": digest}


def padding(merge: Merge, name: str) -> Iterator[Tensor]:
    """Left's rows of padding, which not all models have, in the output's dtype."""
    start = merge.shared_rows.get(name)
    if start is not None:
        shape = merge.specs[name].shape
        with merge.left.mapped(name, start=start) as rows:
            for part in row_parts((shape[0] - start, *shape[1:])):
                yield _cast(rows[part], merge.specs[name].dtype)


def _mapped(merge: Merge, model: Checkpoint, name: str) -> MappedRows:
    window = WINDOW_BYTES // (merge.thread_count * len(merge.inputs))
    return model.mapped(name, window, stop=merge.shared_rows.get(name))


def _cast(rows: Tensor, dtype: torch.dtype) -> Tensor:
    """`rows` in the output's dtype; UserError where a finite value would become infinite."""
    cast = rows.to(dtype)
    if bool((cast.isinf() & ~rows.isinf()).any()):
        raise UserError(f"values beyond the range of {dtype}; use another --dtype")
    return cast


def _whole(rows: Rows, shape: tuple[int, ...], merge: Merge) -> Tensor:
    count = matrix_shape(shape)[0]
    return rows[slice(0, count)].to(merge.device).view(shape)


def _tensor_seed(seed: int, name: str) -> int:
    digest = hashlib.sha256(f"{seed}\0{name}".encode()).digest()
    return int.from_bytes(digest[:7], "little")


# ---------------------------------------------------------------- the run


def run_merge(config: MergeConfig, log: Log) -> None:
    """Merge into OUT, or continue a merge that was interrupted."""
    ranks = Ranks.from_env()
    merge = Merge(config, ranks)
    for line in plan_lines(merge):
        if config.dry_run and ranks.is_main:
            print(line)
        else:
            log.say(line)
    warn_differences(merge, log)
    if config.dry_run:
        return
    if merge.streams:  # parts are all of a size, so that nothing is kept in vain
        keep_freed_memory()
    started = time.perf_counter()
    with ranks.owning(merge.partial):
        if ranks.world_size > 1:
            ranks.connect(gpu=config.device == "cuda", patience=timedelta(days=7))
        with ranks.listening():
            _merge_into(merge.partial, merge, ranks, log)
    took = time.perf_counter() - started
    out = config.paths[-1]
    place, left = shlex.quote(str(out)), shlex.quote(str(merge.left.path))
    log.say(f"merged {counted(len(merge.specs), 'tensor')} in {took:.1f} s: {out}")
    log.say(f"{out / 'README.md'} says what was taken from where")
    log.lead_on(f"python merge.py --diff {left} {place}")
    if read_object(merge.left.path / "config.json").get("model_type") == "qwen2":  # ours
        log.lead_on(
            f"python -m tinyr1.check {place}",
            f"python evaluate.py {place} --tasks NAMES --out RESULTS",
        )


def _merge_into(partial: Path, merge: Merge, ranks: Ranks, log: Log) -> None:
    """Fill OUT.partial and give it its name. The main rank begins and ends, all merge."""
    if ranks.is_main:
        entries = _begun(partial, merge)
        # The journal vouches for bytes in shards that are still there, and for no others. It says
        # so before new shards are made, or a crash in between would make them pass for old ones.
        there = CheckpointWriter(partial, merge.specs, merge.shard_bytes, True, merge.layout)
        kept = {n: e for n, e in entries.items() if there.shards.get(n) in there.kept}
        for path in partial.glob("*.safetensors.partial"):  # of a layout that was not begun
            if path.stem not in there.shards.values():
                path.unlink()
        write_jsonl(partial / DONE_NAME, [{"name": n, **e} for n, e in kept.items()])
        for journal in partial.glob("merge_journal.*.jsonl"):
            journal.unlink()
        with _writer(merge, partial, resume=bool(kept)):
            pass  # the shards are there now
        if kept:
            log.say(f"continuing: {len(kept)} of {len(merge.specs)} tensors are done")
    ranks.barrier()
    _write_tensors(merge, partial, ranks, log)
    ranks.barrier()
    if ranks.is_main:
        _finish(partial, merge, log)
    ranks.barrier()


@contextmanager
def _writer(merge: Merge, partial: Path, resume: bool) -> Iterator[CheckpointWriter]:
    """The output's shards, open for all threads; closed at the end but not yet named."""
    writer = CheckpointWriter(partial, merge.specs, merge.shard_bytes, resume, merge.layout)
    try:
        writer.open()
        yield writer
    finally:
        writer.close()


def _entries(journals: Iterable[Path]) -> dict[str, Entry]:
    """Read the entries of journals, by tensor name."""
    rows: dict[str, Entry] = {}
    for path in sorted(journals):
        with Journal(path, name=str) as journal:
            rows |= {row.pop("name"): row for row in journal.rows}
    return rows


def _begun(partial: Path, merge: Merge) -> dict[str, Entry]:
    """The entries of what earlier runs did; UserError where they were another merge's.

    The inputs must be unchanged. What is allowed does not matter: no tensor with NaN is done
    without it.
    """
    state, report = partial / "merge_state.json", partial / "merge_report.json"
    entries = _entries(partial.glob("merge_journal*.jsonl"))
    stamps = [
        [shard, (m.path / shard).stat().st_mtime_ns]
        for m in merge.inputs
        for shard in sorted(set(m.shards.values()))
    ]
    allowances = ("allow_nonfinite", "allow_differences", "allow_padding")
    same = {k: v for k, v in merge.identity().items() if k not in allowances}
    mine = {"merge": same, "shards": stamps, "shard_size": merge.config.shard_size}
    if not state.exists() and report.exists():  # `_finish` did not get to its last line
        before = read_object(report)
        matches = before.get("merge") == merge.identity()
        entries = before.get("tensors", {})
    elif not state.exists() and any(partial.iterdir()):
        raise UserError(f"{partial}: is no unfinished merge; choose another OUT")
    else:
        matches = not entries or read_object(state) == mine
    if not matches:
        raise UserError(
            f"{partial}: holds an unfinished merge of other inputs or options; remove it"
        )
    write_json(state, mine)
    return entries


def _write_tensors(merge: Merge, partial: Path, ranks: Ranks, log: Log) -> None:
    """Merge this rank's share of the tensors that the journals do not have, largest first."""
    done = _entries([partial / DONE_NAME])
    share = ranks.share({n: s.byte_count for n, s in merge.specs.items() if n not in done})
    # Threads merge, this one thread journals: a line is written only after its bytes are durable.
    with (
        Journal(partial / f"merge_journal.{ranks.rank:05d}.jsonl") as journal,
        _writer(merge, partial, resume=True) as writer,
        log.bar(total=merge.output_bytes // ranks.world_size, unit="B", unit_scale=True) as bar,
        one_core(),  # there are as many tensors at work as cores
    ):
        bar.update(sum(merge.specs[n].byte_count for n in done) // ranks.world_size)
        pending: list[Entry] = []
        pending_bytes = 0
        pool = ThreadPoolExecutor(merge.thread_count)
        futures = {pool.submit(merge_tensor, merge, n, writer, bar.update): n for n in share}
        try:
            for future in as_completed(futures):
                pending.append({"name": futures[future], **_result(future, futures[future], merge)})
                pending_bytes += merge.specs[futures[future]].byte_count
                if pending_bytes >= SYNC_BYTES:
                    writer.sync()  # the bytes first, then the line that vouches for them
                    journal.append(*pending)
                    pending = []
                    pending_bytes = 0
            writer.sync()
            journal.append(*pending)
        finally:
            pool.shutdown(cancel_futures=True)


def _result(future: Future[Entry], name: str, merge: Merge) -> Entry:
    try:
        return future.result()
    except NonFiniteError:
        names = nonfinite_tensors(merge)
        if not names:
            raise UserError(
                f"{name}: a value of Right, or its difference from Left's, is beyond the dtype; "
                "give the wider one first"
            ) from None
        raise UserError(
            "NaN or infinity in inputs (--allow-nonfinite copies Left):\n  " + "\n  ".join(names)
        ) from None
    except UserError as error:
        raise UserError(f"{name}: {error}") from None


def nonfinite_tensors(merge: Merge) -> list[str]:
    """`PATH: NAME` for each tensor of an input that holds NaN or infinity; reads everything."""
    return [
        f"{model.path}: {name}"
        for model in merge.inputs
        for name in model.specs
        if merge.wants(name) and not model.is_finite(name)
    ]


def _finish(partial: Path, merge: Merge, log: Log) -> None:
    """Name the shards, add the other files, and give the directory its name last."""
    entries = _entries(partial.glob("merge_journal*.jsonl"))
    with _writer(merge, partial, resume=True) as writer:
        writer.finish()
    tensors = {name: entries[name] for name in merge.specs}
    # In the order of the checkpoint, whatever order the tensors were finished in.
    report = {"merge": merge.identity(), "tensors": tensors}
    # config.json comes last of these: a directory with it is a whole checkpoint.
    large = copy_side_files(
        merge.left.path, partial, main_dtype(merge), changes=merge.config_changes
    )
    for name in large:
        log.warn(f"{merge.left.path / name}: too large to go along; copy it if the model needs it")
    write_card(partial, report)
    write_json(partial / "merge_report.json", report)
    # From here on the report, which has the journals' entries, says what was done.
    for own in (partial / "merge_state.json", *partial.glob("merge_journal*.jsonl")):
        own.unlink()
    if merge.out.exists():
        merge.out.rmdir()  # empty, or we would not be here
    os.replace(partial, merge.out)
    fsync_directory(merge.out.parent)
