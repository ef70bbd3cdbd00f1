"""Supervised fine-tuning of one branch (paper sections 2.1 and 3.1.1), from the top down.

    train -> _train (model, optimizer, checkpoint) -> _loop -> train_step -> forward

The loss of an optimizer step is the sum over its targets divided once by their number over all
ranks and micro-steps, so neither packing nor accumulation nor the number of GPUs changes the
gradient. Everything that is decided is decided by (seed, epoch, step): a run that was killed and
resumed takes the same steps as one that was not.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import nn

from tinyr1.check import warn_of_faults
from tinyr1.common.config import check_given, given, to_json
from tinyr1.common.errors import RunStopped, UserError
from tinyr1.common.files import read_object, real, write_json
from tinyr1.common.log import Log
from tinyr1.common.ranks import Ranks, StopSignal
from tinyr1.common.threads import keep_freed_memory
from tinyr1.model.config import Qwen2Config
from tinyr1.model.qwen2 import Qwen2
from tinyr1.model.weights import DTYPES, dtype_name
from tinyr1.record import Batch, Pack
from tinyr1.train.flops import peak_tflops
from tinyr1.train.metrics import Metrics
from tinyr1.train.optim import learning_rate, make_optimizer
from tinyr1.train.options import TrainConfig
from tinyr1.train.parallel import clip_gradients, load_weights, make_mesh, shard
from tinyr1.train.plan import Plan, Prepared, describe, difference, prepare, trajectory
from tinyr1.train.saver import (
    Saver,
    completed_steps,
    export,
    fault_of,
    gather,
    load,
    read_meta,
    set_aside,
    step_path,
)
from tinyr1.train.space import check_disk

MAX_BAD_STEPS = 3  # non-finite steps in a row before the run stops


def train(config: TrainConfig, log: Log, ranks: Ranks) -> None:
    """Run a recipe to its end, or to the next SIGTERM; the same call again continues."""
    out = _check_out(config, ranks)
    config.check_world(ranks.world_size, f"{ranks.world_size} ranks")
    if config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts
        torch.use_deterministic_algorithms(True, warn_only=True)
    if ranks.device.type == "cpu":
        keep_freed_memory()
    if not (out / "config.json").exists():  # of a run that is not at its end
        is_bf16 = config.compute_dtype(ranks.device) == torch.bfloat16
        plain = replace(config, dtype="bf16" if is_bf16 else "fp32")
        check_disk(Qwen2Config.from_pretrained(given(config.model, "--model")), plain, out, log)
    # Hours of tokenising, perhaps: before the process group, which would time out meanwhile.
    prepared = prepare(config, log)
    for line in describe(prepared):
        log.say(line)
    # First --out, then the others: a rank that has to end here lets nobody wait.
    with ranks.owning(out):
        ranks.connect()
        stop = StopSignal()
        try:
            with ranks.listening():
                _train(prepared, out, log, ranks, stop)
            ranks.barrier()  # nobody leaves while another still talks
        finally:
            stop.restore()
            ranks.disconnect()


def _check_out(config: TrainConfig, ranks: Ranks) -> Path:
    """--out; UserError where a run must not write into it."""
    check_given(config, "model", "data", "out")
    model, out = given(config.model, "--model"), given(config.out, "--out")
    if out.exists() and not out.is_dir():
        raise UserError(f"--out={out}: expected a directory")
    there = {p.name for p in out.iterdir()} if out.exists() else set[str]()
    if ranks.is_main and not config.resume and there - {"cache"}:  # tokens alone are no run
        raise UserError(f"--out={out}: not empty, and --no-resume was given")
    if real(out) == real(model):
        raise UserError(f"--out={out}: is --model; choose another place")
    if "config.json" in there and "train_config.json" not in there:
        raise UserError(f"--out={out}: holds a model that no run made; choose another place")
    return out


def _train(prepared: Prepared, out: Path, log: Log, ranks: Ranks, stop: StopSignal) -> None:
    """The run itself, with the process group up and --out to itself."""
    config, plan = prepared.config, prepared.plan
    compute_dtype = config.compute_dtype(ranks.device)
    export_dtype = DTYPES.get(config.export_dtype or "", compute_dtype)

    # A model without memory is sharded first; then each rank reads its own rows of the weights.
    assert prepared.weights is not None
    with torch.device("meta"):
        model = Qwen2(prepared.model_config)
    # FSDP2 before memory: at 32B no rank could hold the whole model.
    mesh = make_mesh(ranks.device.type, ranks.world_size, config.replicate)
    shard(model, mesh, config.sharding(ranks.device))
    home = torch.device("cpu") if config.cpu_offload else ranks.device
    faulty = gather(load_weights(model, prepared.weights, home))
    if names := list(dict.fromkeys(itertools.chain.from_iterable(faulty))):
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        raise UserError(
            f"--model={config.model}: not finite: {', '.join(names[:3])}{more}; `python -m "
            f"tinyr1.check {config.model}` names all; download it again, or choose another"
        )
    optimizer = make_optimizer(
        model,
        config.lr,
        config.betas,
        config.eps,
        config.weight_decay,
        DTYPES[config.optim_dtype],
    )

    # From the newest checkpoint on, or from the beginning.
    settings = trajectory(config, plan, compute_dtype, prepared.weights.fingerprint())
    step = newest_usable(out, settings, plan.total_steps, log, ranks)
    if step:
        load(out, step, model, optimizer)
        log.say(f"resuming after step {step} of {plan.total_steps}")
    finished = out / "config.json"  # what an export writes last
    if step == plan.total_steps and finished.exists():
        exported = read_object(finished)
        if dtype_name(export_dtype) in (exported.get("torch_dtype"), exported.get("dtype")):
            log.say(f"already trained: {out} (another --export-dtype would export it again)")
            return
    ranks.barrier()
    if ranks.is_main:
        finished.unlink(missing_ok=True)  # of a shorter run that this one continues
        write_json(out / "train_config.json", to_json(config))

    def export_to(folder: Path) -> None:
        source = given(config.model, "--model")
        export(model, source, folder, export_dtype, ranks, prepared.end_token)
        for fault in warn_of_faults(folder) if ranks.is_main else ():
            log.warn(f"{folder}: {fault}")

    if _loop(prepared, out, model, optimizer, step, settings, export_to, log, ranks, stop):
        export_to(out)
        log.say(f"finished: {out} (loss.png and metrics.jsonl have its course)")
        place = shlex.quote(str(out))
        log.lead_on(
            f"python -m tinyr1.check {place}",
            f'python evaluate.py {place} --ask "a question"',
            f"python merge.py {place} OTHER_EXPERT MERGED",
        )


def newest_usable(
    out: Path, settings: dict[str, Any], total_steps: int, log: Log, ranks: Ranks
) -> int:
    """Step of the newest checkpoint that is whole and of this run, 0 where there is none at all.

    Others are said and set aside. UserError where none can be used, or the run has other settings.
    """
    faults: dict[Path, str] = {}
    for step in reversed(completed_steps(out)):
        folder = step_path(out, step)
        fault = fault_of(folder, ranks)
        other = "" if fault else difference(settings, read_meta(folder)["settings"], out)
        if other:
            # One that came from elsewhere has others beside it that are ours.
            older = [step_path(out, s) for s in completed_steps(out) if s < step]
            if not any(is_of(folder, settings, out) for folder in older):
                raise UserError(other)
            fault = "made with other settings than those before it"
        if not fault:
            if step > total_steps:
                raise UserError(
                    f"--out={out}: its checkpoints go to step {step}, this run has only "
                    f"{total_steps}; use more --epochs or --max-steps, or another --out"
                )
            ranks.barrier()  # everyone has read them
            for unusable, why in faults.items() if ranks.is_main else ():
                set_aside(unusable)
                log.warn(f"{unusable}: {why}; set aside, {folder.name} is used")
            return step
        faults[folder] = fault
    for folder, why in faults.items():
        raise UserError(
            f"{folder}: {why}; no checkpoint can be used: restore one, or move {folder.parent} "
            "away to begin anew"
        )
    return 0


def is_of(folder: Path, settings: dict[str, Any], out: Path) -> bool:
    """True for a checkpoint of a run with these settings."""
    try:
        return not difference(settings, read_meta(folder)["settings"], out)
    except ValueError:
        return False


def _loop(
    prepared: Prepared,
    out: Path,
    model: Qwen2,
    optimizer: torch.optim.Optimizer,
    step: int,
    settings: dict[str, Any],
    export_to: Callable[[Path], None],
    log: Log,
    ranks: Ranks,
    stop: StopSignal,
) -> bool:
    """Step until done (True) or asked to stop (False); either way a checkpoint is on disk."""
    config, plan, total = prepared.config, prepared.plan, prepared.plan.total_steps
    saver = Saver(out, ranks, config.keep)  # first: all ranks meet in it, and one may fail below
    metrics = Metrics(out, step, total, log, config.tensorboard, quiet=not ranks.is_main)
    saved = step
    bad_steps = 0  # in a row
    skipped = metrics.skipped_steps
    stopped = False
    about = {"settings": settings, "world_size": ranks.world_size}
    exports = _step_exports(config, out, total)
    if step in exports and not (exports[step] / "config.json").exists():
        export_to(exports[step])  # the run was killed in it, with the checkpoint whole
    with (
        contextlib.closing(metrics),  # also of a run that stops: its curve is wanted most
        log.bar(total=total, initial=step, desc="training", unit="step") as bar,
    ):
        # Steps are counted from 1: step n is the n-th that has been taken, and its checkpoint's
        # name.
        while step < total and not stopped:
            started = time.perf_counter()
            step += 1
            packs = plan.packs(step)
            lr = learning_rate(step, total, config.lr, config.schedule, config.warmup_ratio)
            for group in optimizer.param_groups:
                group["lr"] = lr
            batches = plan.batches(packs, ranks)
            waited = time.perf_counter() - started
            stats = train_step(
                model,
                batches,
                plan.total_weight(packs),
                optimizer,
                ranks,
                config.clip_norm,
                stop.requested,
            )
            stopped = stats.stop_requested
            skipped += not stats.updated
            row = {"step": step, "epoch": plan.epoch_of(step) + 1, "lr": lr}
            row |= _figures(stats, packs, plan, ranks, time.perf_counter() - started)
            row |= {"data_seconds": waited, "skipped_steps": skipped}

            # Whoever stops us does not wait long; but what the last step leaves out is never done.
            eval_due = step % config.eval_every == 0 and not stopped
            if prepared.held_out and (eval_due or step == total):
                row |= held_out_losses(model, prepared.held_out, ranks)
            metrics.add(row)
            bar.update()

            bad_steps = 0 if stats.updated else bad_steps + 1
            if bad_steps and (step == total or bad_steps == MAX_BAD_STEPS):
                if step == total and saved < step - bad_steps:  # what was made before is not lost
                    saver.save(step - bad_steps, model, optimizer, about)
                saver.wait()
                raise RunStopped(_why_stopped(stats, step, bad_steps, total, packs, plan))
            save_due = step % config.save_every == 0 or stopped
            # A step that changed nothing must not push out the checkpoint of one that did.
            if step == total or (save_due and stats.updated):
                saver.save(step, model, optimizer, about)
                saved = step
            if step in exports:
                export_to(exports[step])
        saver.wait()
    if step < total:
        log.say(f"stopped after step {saved}; the same command continues")
    return step == total


class StepStats(NamedTuple):
    """One optimizer step's report, over all ranks."""

    loss: float
    grad_norm: float
    updated: bool
    stop_requested: bool


def train_step(
    model: nn.Module,
    batches: Sequence[Batch],
    total_weight: float,
    optimizer: torch.optim.Optimizer,
    ranks: Ranks,
    clip_norm: float,
    stop: bool = False,
) -> StepStats:
    """One optimizer step on sum(w * cross-entropy) / total_weight over every rank's batches.

    We count first and divide once. A mean of per-batch means would let a row with 10 targets
    weigh as much as a row with 10,000, and packing would change the gradient. A step whose loss
    or gradient is not finite changes nothing. `stop` is this rank's wish to end the run; it
    travels with the loss, so that all ranks end at the same step.
    """
    loss_sum = torch.zeros((), device=ranks.device)
    for batch in batches:
        loss = forward(model, batch, ranks.device)
        # FSDP averages gradients over ranks; times the world size that is the sum we want.
        (loss * (ranks.world_size / total_weight)).backward()
        loss_sum += loss.detach()
    norm = clip_gradients(model, clip_norm)
    wish = torch.tensor(float(stop), device=ranks.device)
    sums = ranks.sum(torch.stack((loss_sum / total_weight, wish)))
    loss_value, wishes, norm_value = [*sums.tolist(), float(norm)]  # the host sync of the step
    finite = math.isfinite(loss_value) and math.isfinite(norm_value)
    if finite:
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return StepStats(loss_value, norm_value, finite, wishes > 0)


def forward(model: nn.Module, batch: Batch, device: torch.device) -> torch.Tensor:
    """The weighted sum of a micro-batch's cross-entropies."""
    return model(
        batch.tokens[None].to(device),
        positions=batch.positions[None].to(device),
        cu_seqlens=batch.cu_seqlens.to(device),
        max_len=batch.max_len,
        target_rows=batch.target_rows.to(device),
        targets=batch.targets.to(device),
        weights=batch.weights.to(device),
    )


@torch.no_grad()
def held_out_losses(model: Qwen2, held_out: dict[str, Plan], ranks: Ranks) -> dict[str, float]:
    """Mean loss per target of the held-out documents, each alone in its context.

    Of several files that of each, too: which domain is forgotten shows in no mean.
    """
    sums, targets = dict[str, float](), dict[str, int]()
    for name, plan in held_out.items():
        loss = torch.zeros((), device=ranks.device)
        for batch in plan.batches(plan.all_packs(), ranks):
            loss += forward(model, batch, ranks.device)
        sums[name] = float(ranks.sum(loss))
        targets[name] = sum(plan.corpus.target_counts)
    cast("Any", model).reshard()  # a backward would; an export needs the shards
    losses = {"eval_loss": sum(sums.values()) / max(sum(targets.values()), 1)}
    if len(held_out) > 1:
        losses |= {f"eval_loss.{name}": sums[name] / max(targets[name], 1) for name in sums}
    return losses


# ---------------------------------------------------------------- what is told of a step


def _figures(
    stats: StepStats, packs: Sequence[Pack], plan: Plan, ranks: Ranks, seconds: float
) -> dict[str, Any]:
    """A step's figures as they go to metrics.jsonl (docs/formats.md)."""
    tokens = sum(p.token_count for p in packs)
    counts = plan.corpus.target_counts
    flops = sum(plan.pack_flops(p) for p in packs)
    row: dict[str, Any] = {
        "loss": stats.loss,
        "grad_norm": stats.grad_norm,
        "tokens": tokens,
        "target_tokens": sum(counts[d] for p in packs for d in p.documents),
        "tokens_per_s": tokens / seconds,
        "seconds": seconds,
        "tflops_per_gpu": flops / seconds / ranks.world_size / 1e12,
    }
    if ranks.device.type == "cuda":
        row["memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
        if peak := peak_tflops(torch.cuda.get_device_name()):
            row["mfu"] = row["tflops_per_gpu"] / peak
    if not stats.updated:
        row["skipped"] = True
    return row


def _step_exports(config: TrainConfig, out: Path, total: int) -> dict[int, Path]:
    """Folders of the exports that --export-every asks for, by step; --out has the last."""
    every = config.export_every
    steps = range(every, total, every) if every else ()
    return {step: out / "exports" / f"step-{step:06d}" for step in steps}


def _why_stopped(
    stats: StepStats, step: int, bad_steps: int, total: int, packs: Sequence[Pack], plan: Plan
) -> str:
    """The message of a run that stops for steps that were not finite, with their records."""
    ids = [plan.corpus.ids[d] for p in packs for d in p.documents]
    records = ", ".join(ids[:20]) + (" ..." if len(ids) > 20 else "")
    figures = f"loss={stats.loss} grad_norm={stats.grad_norm} at"
    if bad_steps == MAX_BAD_STEPS:
        return f"{figures} step {step}: {bad_steps} non-finite steps in a row; records {records}"
    return (
        f"{figures} the last step, {step} of {total}: it changed nothing, so nothing is exported; "
        f"a smaller --lr, or other data? records {records}"
    )
