"""Supervised fine-tuning of one branch (paper section 2.1 and 3.1.1): the step and the loop.

    Plan -> train_step, train_step, ... -> export

The loss of an optimizer step is the sum over its targets divided once by their number over all
ranks and micro-steps, so neither packing nor accumulation nor the number of GPUs changes the
gradient. Everything that is decided is decided by (seed, epoch, step): a run that was killed and
resumed takes the same steps as one that was not.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import nn

from tinyr1 import checkpoint
from tinyr1.check import warn_of_faults
from tinyr1.config import given, to_json
from tinyr1.errors import RunStopped, UserError
from tinyr1.files import read_object, real, write_json
from tinyr1.flops import peak_tflops
from tinyr1.log import Log
from tinyr1.metrics import Metrics
from tinyr1.model import Qwen2, tensor_shapes
from tinyr1.model_config import Qwen2Config
from tinyr1.optim import learning_rate, make_optimizer
from tinyr1.parallel import Sharding, clip_gradients, load_weights, make_mesh, shard
from tinyr1.ranks import Ranks, StopSignal
from tinyr1.record import Batch
from tinyr1.train_plan import Prepared, TrainConfig, check_trajectory, describe, prepare, trajectory
from tinyr1.weights import DTYPES, Checkpoint, dtype_name

MAX_BAD_STEPS = 3  # non-finite steps in a row before the run stops


class StepStats(NamedTuple):
    """What one optimizer step reports, over all ranks."""

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


class Run:
    """A training run in progress: the sharded model, its optimizer, and where it stands."""

    def __init__(self, config: TrainConfig, prepared: Prepared, ranks: Ranks, log: Log) -> None:
        self.config, self.ranks, self.log = config, ranks, log
        self.corpus, self.plan = prepared.corpus, prepared.plan
        self.held_out = prepared.held_out
        self.source = given(config.model, "--model")
        self.out = given(config.out, "--out")
        self.compute_dtype = config.compute_dtype(ranks.device)
        self.export_dtype = DTYPES.get(config.export_dtype or "", self.compute_dtype)
        model_config = Qwen2Config.from_pretrained(self.source)
        weights = Checkpoint(self.source)
        self.fingerprint = weights.fingerprint()
        weights.check(tensor_shapes(model_config), model_config.tie_word_embeddings)
        with torch.device("meta"):
            self.model = Qwen2(model_config)
        on_gpu = ranks.device.type == "cuda"
        sharding = Sharding(
            compute_dtype=self.compute_dtype,
            checkpointing=config.activation_checkpointing
            or ("full" if on_gpu or config.offload_checkpoints else "none"),
            offload_checkpoints=config.offload_checkpoints,
            cpu_offload=config.cpu_offload,
            compile=config.compile,
        )
        mesh = make_mesh(ranks.device.type, ranks.world_size, config.replicate)
        shard(self.model, mesh, sharding)
        load_weights(
            self.model, weights, torch.device("cpu") if config.cpu_offload else ranks.device
        )
        self.optimizer = make_optimizer(
            self.model,
            config.lr,
            config.betas,
            config.eps,
            config.weight_decay,
            DTYPES[config.optim_dtype],
        )
        self.trajectory = trajectory(config, self.plan, self.compute_dtype, self.fingerprint)
        self.step, self.skipped = self._resume(), 0
        self.saver = checkpoint.Saver(self.out, ranks, config.keep)

    def _resume(self) -> int:
        """Restore the newest checkpoint that this run may continue; returns its step or 0."""
        done = checkpoint.completed_steps(self.out)
        if not done:
            return 0
        if done[-1] > self.plan.total_steps:
            raise UserError(
                f"--out={self.out}: its checkpoints go to step {done[-1]}, this run has only "
                f"{self.plan.total_steps}; use more --epochs or --max-steps, or another --out"
            )
        check_trajectory(self.trajectory, checkpoint.read_settings(self.out, done[-1]), self.out)
        checkpoint.load(self.out, done[-1], self.model, self.optimizer)
        self.log.say(f"resuming after step {done[-1]} of {self.plan.total_steps}")
        return done[-1]

    def save(self) -> None:
        """Begin a checkpoint of the step just taken."""
        meta = {"settings": self.trajectory, "world_size": self.ranks.world_size}
        self.saver.save(self.step, self.model, self.optimizer, meta)

    def export(self, out: Path) -> None:
        """Write the model as a Hugging Face checkpoint."""
        checkpoint.export(self.model, self.source, out, self.export_dtype, self.ranks)
        for fault in warn_of_faults(out) if self.ranks.is_main else ():
            self.log.warn(f"{out}: {fault}")

    @property
    def step_export(self) -> Path | None:
        """Where the model of this step goes with --export-every, if it goes anywhere."""
        every = self.config.export_every
        due = every and 0 < self.step < self.plan.total_steps and self.step % every == 0
        return self.out / "exports" / f"step-{self.step:06d}" if due else None

    def take_step(self, stop: bool) -> tuple[StepStats, dict[str, Any]]:
        """Train on the next step's packs; returns its figures as they go to metrics.jsonl."""
        started = time.perf_counter()
        step, config = self.step + 1, self.config
        packs = self.plan.packs(step)
        lr = learning_rate(
            step, self.plan.total_steps, config.lr, config.schedule, config.warmup_ratio
        )
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        batches = self.plan.batches(packs, self.ranks)
        waited = time.perf_counter() - started
        stats = train_step(
            self.model,
            batches,
            self.plan.total_weight(packs),
            self.optimizer,
            self.ranks,
            config.clip_norm,
            stop,
        )
        self.step = step
        self.skipped += not stats.updated
        seconds = time.perf_counter() - started
        tokens = sum(p.token_count for p in packs)
        row: dict[str, Any] = {
            "step": step,
            "epoch": self.plan.epoch_of(step) + 1,
            "loss": stats.loss,
            "grad_norm": stats.grad_norm,
            "lr": lr,
            "tokens": tokens,
            "target_tokens": sum(self.corpus.target_counts[d] for p in packs for d in p.documents),
            "tokens_per_s": tokens / seconds,
            "seconds": seconds,
            "data_seconds": waited,
            "skipped_steps": self.skipped,
        }
        flops = sum(self.plan.pack_flops(p) for p in packs)
        row["tflops_per_gpu"] = flops / seconds / self.ranks.world_size / 1e12
        if self.ranks.device.type == "cuda":
            row["memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
            if peak := peak_tflops(torch.cuda.get_device_name()):
                row["mfu"] = row["tflops_per_gpu"] / peak
        if not stats.updated:
            row["skipped"] = True
        return stats, row

    @torch.no_grad()
    def evaluate(self) -> float:
        """Mean loss per target of the held-out documents, each alone in its context."""
        assert self.held_out is not None
        sums = torch.zeros((), device=self.ranks.device)
        for batch in self.held_out.batches(self.held_out.all_packs(), self.ranks):
            sums += forward(self.model, batch, self.ranks.device)
        cast("Any", self.model).reshard()  # a backward would; an export needs the shards
        targets = sum(self.held_out.corpus.target_counts)
        return float(self.ranks.sum(sums)) / max(targets, 1)

    def culprits(self) -> str:
        """The records of the step just taken, for the message of a run that stops."""
        ids = [self.corpus.ids[d] for p in self.plan.packs(self.step) for d in p.documents]
        return ", ".join(ids[:20]) + (" ..." if len(ids) > 20 else "")


def train(config: TrainConfig, log: Log, ranks: Ranks) -> None:
    """Run a recipe to its end, or to the next SIGTERM; the same call again continues."""
    model = given(config.model, "--model")
    given(config.data, "--data")
    out = given(config.out, "--out")
    if out.exists() and not out.is_dir():
        raise UserError(f"--out={out}: expected a directory")
    there = {p.name for p in out.iterdir()} if out.exists() else set[str]()
    if ranks.is_main and not config.resume and there - {"cache"}:  # tokens alone are no run
        raise UserError(f"--out={out}: not empty, and --no-resume was given")
    if real(out) == real(model):
        raise UserError(f"--out={out}: is --model; choose another place")
    if "config.json" in there and "train_config.json" not in there:
        raise UserError(f"--out={out}: holds a model that no run made; choose another place")
    config.check_world(ranks.world_size, f"{ranks.world_size} ranks")
    shape = Qwen2Config.from_pretrained(model)  # before hours of tokenising
    Checkpoint(model).check(tensor_shapes(shape), shape.tie_word_embeddings)
    if config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts
        torch.use_deterministic_algorithms(True, warn_only=True)
    prepared = prepare(config, log)
    for line in describe(config, prepared.corpus, prepared.plan):
        log.say(line)
    # First --out, then the others: who has to end here lets nobody wait.
    with ranks.owning(out):
        ranks.connect()
        stop = StopSignal()
        try:
            with ranks.listening():
                _train(config, prepared, ranks, log, stop)
            ranks.barrier()  # nobody leaves while another still talks
        finally:
            stop.restore()
            ranks.disconnect()


def _train(
    config: TrainConfig, prepared: Prepared, ranks: Ranks, log: Log, stop: StopSignal
) -> None:
    """The run itself, with the process group up and --out to itself."""
    run = Run(config, prepared, ranks, log)
    finished = run.out / "config.json"  # what an export writes last
    if run.step == run.plan.total_steps and finished.exists():
        exported = read_object(finished)
        if dtype_name(run.export_dtype) in (exported.get("torch_dtype"), exported.get("dtype")):
            log.say(f"already trained: {run.out} (another --export-dtype would export it again)")
            return
    ranks.barrier()
    if ranks.is_main:
        finished.unlink(missing_ok=True)  # of a shorter run that this one continues
        write_json(run.out / "train_config.json", to_json(config))
    if _loop(run, stop):
        run.export(run.out)
        log.say(f"finished: {run.out}")


def _loop(run: Run, stop: StopSignal) -> bool:
    """Step until done (True) or asked to stop (False); either way a checkpoint is on disk."""
    config, total = run.config, run.plan.total_steps
    metrics = Metrics(
        run.out, run.step, total, run.log, config.tensorboard, quiet=not run.ranks.is_main
    )
    bad_steps, saved = 0, run.step
    if (out := run.step_export) and not (out / "config.json").exists():
        run.export(out)  # it was killed in it, with the checkpoint whole
    run.skipped = metrics.skipped_steps
    with (
        contextlib.closing(metrics),  # also of a run that stops: its curve is wanted most
        run.log.bar(total=total, initial=run.step, desc="training", unit="step") as bar,
    ):
        while run.step < total:
            stats, row = run.take_step(stop.requested)
            # Who stops us does not wait long; but what the last step does not do is never done.
            eval_due = run.step % config.eval_every == 0 and not stats.stop_requested
            if run.held_out and (eval_due or run.step == total):
                row["eval_loss"] = run.evaluate()
            metrics.add(row)
            bar.update()
            bad_steps = 0 if stats.updated else bad_steps + 1
            if bad_steps == MAX_BAD_STEPS:
                run.saver.wait()
                raise RunStopped(
                    f"loss={stats.loss} grad_norm={stats.grad_norm} at step {run.step}: "
                    f"{bad_steps} non-finite steps in a row; records {run.culprits()}"
                )
            save_due = run.step % config.save_every == 0 or stats.stop_requested
            # A step that changed nothing must not push out the checkpoint of one that did.
            if run.step == total or (save_due and stats.updated):
                run.save()
                saved = run.step
            if out := run.step_export:
                run.export(out)
            if stats.stop_requested and run.step < total:
                run.log.say(f"stopped after step {saved}; the same command continues")
                break
        run.saver.wait()
    return run.step == total
