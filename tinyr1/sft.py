"""Supervised fine-tuning of one branch (paper section 2.1 and 3.1.1): the step and the loop.

    TrainConfig -> Corpus -> Plan (which packs make up which step) -> train_step ... -> export

The loss of an optimizer step is the sum over its targets divided once by their number over all
ranks and micro-steps, so neither packing nor accumulation nor the number of GPUs changes the
gradient. Everything that is decided is decided by (seed, epoch, step): a run that was killed and
resumed takes the same steps as one that was not.
"""

from __future__ import annotations

import contextlib
import math
import signal
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import nn

from tinyr1 import checkpoint, plot
from tinyr1.chat import TemplateName, ThinkIn, Tokenizer, check_template
from tinyr1.config import check_range, require, to_json
from tinyr1.corpus import Corpus, build_corpus
from tinyr1.errors import RunStopped, UserError
from tinyr1.files import Journal, owned, write_json, write_jsonl
from tinyr1.log import Log
from tinyr1.model import Qwen2, Qwen2Config
from tinyr1.optim import Schedule, learning_rate, make_optimizer
from tinyr1.packing import Packing, Weighting, epoch_packs, make_batch
from tinyr1.parallel import ActivationCheckpointing, clip_gradients, load_weights, shard
from tinyr1.ranks import Ranks
from tinyr1.record import Batch, Pack
from tinyr1.weights import Checkpoint

Dtype = Literal["fp32", "bf16"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
MAX_BAD_STEPS = 3  # non-finite steps in a row before the run stops


@dataclass(frozen=True)
class TrainConfig:
    """Fine-tune a Qwen2 checkpoint on teacher trajectories."""

    model: Path | None = None
    """Hugging Face checkpoint directory to start from (download first)."""
    data: tuple[Path, ...] = ()
    """Training files (JSON lines); their union is used, shuffled by --seed."""
    out: Path | None = None
    """Directory for metrics, checkpoints and the finished model."""
    epochs: int = 5
    """Passes over the data."""
    batch_size: int = 96
    """Packs per optimizer step over all ranks; rows where --packing none."""
    micro_batch_size: int = 1
    """Packs that one rank puts into one forward."""
    seq_len: int = 16384
    """Capacity of a pack in tokens; longer examples are dropped and counted."""
    lr: float = 1e-5
    """Peak learning rate."""
    schedule: Schedule = "constant"
    """What the rate does after warm-up."""
    warmup_ratio: float = 0.0
    """Share of all steps in which the rate rises linearly from 0."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's decay rates of the two moments."""
    eps: float = 1e-8
    """AdamW's epsilon."""
    weight_decay: float = 0.01
    """Decoupled decay of matrices; biases and norms do not decay."""
    clip_norm: float = 1.0
    """Largest global gradient norm (inf: no clipping)."""
    packing: Packing = "neat"
    """neat: documents isolated; naive: one causal sequence a pack; none: one example a row."""
    loss_weighting: Weighting = "token"
    """What has one vote in the loss: each target token, each document or each pack."""
    seed: int = 42
    """Order of the data."""
    save_every: int = 100
    """Steps between checkpoints (one is always written at the end)."""
    keep: int = 2
    """Checkpoints kept."""
    max_steps: int = 0
    """End after so many steps (0: all epochs); the schedule spans what will run."""
    optim_dtype: Dtype = "fp32"
    """Type of AdamW's moments; bf16 rounds stochastically."""
    dtype: Dtype | None = None
    """Compute type (by default bf16 on CUDA, fp32 on CPU); master weights are fp32 always."""
    export_dtype: Dtype | None = None
    """Type of the finished checkpoint (by default --dtype's)."""
    activation_checkpointing: ActivationCheckpointing | None = None
    """Recompute blocks in backward (by default full on CUDA, none on CPU)."""
    cache_dir: Path | None = None
    """Where the tokenised data lie (by default OUT/cache)."""
    template: TemplateName = "deepseek_r1"
    """Chat template."""
    think_in: ThinkIn = "target"
    """Whether the opening <think> is learned or given with the prompt."""
    require_think: bool = True
    """Refuse training rows without a well-formed <think>...</think>."""
    resume: bool = True
    """Continue from the newest checkpoint in --out; --no-resume refuses a non-empty --out."""
    dry_run: bool = False
    """Print the plan and the memory per GPU, train nothing."""
    world_size: int = 8
    """GPUs that --dry-run plans for."""
    preview: bool = False
    """Print the first packs as text, ids and targets, train nothing."""
    quiet: bool = False
    """No progress on standard error."""

    def __post_init__(self) -> None:
        for name in (
            "epochs",
            "batch_size",
            "micro_batch_size",
            "save_every",
            "keep",
            "world_size",
        ):
            check_range(f"--{name.replace('_', '-')}", getattr(self, name), 1)
        check_range("--seq-len", self.seq_len, 2)
        check_range("--max-steps", self.max_steps, 0)
        check_range("--lr", self.lr, 0)
        check_range("--eps", self.eps, 0)
        check_range("--warmup-ratio", self.warmup_ratio, 0, 1)
        check_range("--weight-decay", self.weight_decay, 0)
        check_range("--clip-norm", self.clip_norm, 1e-12)
        if len(self.betas) != 2 or not all(0 <= b < 1 for b in self.betas):
            raise UserError(f"--betas={self.betas}: expected two numbers in [0, 1)")

    def compute_dtype(self, device: torch.device) -> torch.dtype:
        return DTYPES[self.dtype or ("bf16" if device.type == "cuda" else "fp32")]


class Plan:
    """Which packs each optimizer step trains on: a pure function of (corpus, config)."""

    def __init__(self, corpus: Corpus, config: TrainConfig) -> None:
        self.corpus, self.config = corpus, config
        self._epoch = -1
        self._packs: list[Pack] = []
        self._load(0)
        # Best fit sees only lengths, so every epoch has the same number of packs.
        self.packs_per_epoch = len(self._packs)
        self.steps_per_epoch = math.ceil(self.packs_per_epoch / config.batch_size)
        whole = self.steps_per_epoch * config.epochs
        self.total_steps = min(config.max_steps, whole) if config.max_steps else whole

    def _load(self, epoch: int) -> None:
        if epoch != self._epoch:
            c = self.config
            self._packs = epoch_packs(self.corpus.lengths, c.seq_len, c.packing, c.seed, epoch)
            self._epoch = epoch

    def epoch_of(self, step: int) -> int:
        """The epoch (from 0) of step 1..total_steps."""
        return (step - 1) // self.steps_per_epoch

    def packs(self, step: int) -> list[Pack]:
        """The packs of a step; the last step of an epoch may have fewer."""
        self._load(self.epoch_of(step))
        start = (step - 1) % self.steps_per_epoch * self.config.batch_size
        return self._packs[start : start + self.config.batch_size]

    def total_weight(self, packs: Sequence[Pack]) -> float:
        """What the summed loss of these packs is divided by, known before the first forward."""
        counts = [[self.corpus.target_counts[d] for d in p.documents] for p in packs]
        if self.config.loss_weighting == "token":
            return float(sum(sum(c) for c in counts))
        if self.config.loss_weighting == "sequence":
            return float(sum(n > 0 for c in counts for n in c))
        return float(sum(sum(c) > 0 for c in counts))

    def batches(self, packs: Sequence[Pack], ranks: Ranks) -> list[Batch]:
        """This rank's micro-batches. All ranks get equally many: FSDP's collectives need it."""
        size = self.config.micro_batch_size
        # On a GPU every micro-batch has one shape, so that memory does not fragment.
        pad_to = self.config.seq_len * size if ranks.device.type == "cuda" else 1
        mine = packs[ranks.rank :: ranks.world_size]
        most = math.ceil(len(packs) / ranks.world_size)
        return [
            make_batch(
                mine[start : start + size],
                self.corpus.read,
                self.config.packing,
                self.config.loss_weighting,
                pad_to,
            )
            for start in range(0, most, size)
        ]


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
        loss = model(
            batch.tokens[None].to(ranks.device),
            positions=batch.positions[None].to(ranks.device),
            cu_seqlens=batch.cu_seqlens.to(ranks.device),
            max_len=batch.max_len,
            target_rows=batch.target_rows.to(ranks.device),
            targets=batch.targets.to(ranks.device),
            weights=batch.weights.to(ranks.device),
        )
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


class StopSignal:
    """SIGTERM and SIGINT ask for a checkpoint and a clean end.

    Repetitions are ignored, since launchers and terminals send several; SIGKILL ends at once.
    """

    def __init__(self) -> None:
        self.requested = False
        self._previous = {
            number: signal.signal(number, self._request)
            for number in (signal.SIGTERM, signal.SIGINT)
        }

    def _request(self, number: int, frame: Any) -> None:
        self.requested = True

    def restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)


# Settings that the checkpoints of a run depend on: resuming with others is refused.
TRAJECTORY = (
    *("batch_size", "seq_len", "lr", "schedule", "warmup_ratio", "betas", "eps", "weight_decay"),
    *("clip_norm", "packing", "loss_weighting", "seed", "optim_dtype", "dtype"),
)


def prepare(config: TrainConfig, log: Log) -> tuple[Tokenizer, Corpus, Plan]:
    """Tokenise and plan; needs no process group, so nothing can time out meanwhile."""
    require(config, "model", "data")
    assert config.model is not None
    model_config = Qwen2Config.from_pretrained(config.model)
    tokenizer = Tokenizer(config.model)
    check_template(tokenizer, config.template)
    planning = config.dry_run or config.preview  # these leave nothing behind
    temporary = tempfile.TemporaryDirectory() if planning and not config.cache_dir else None
    cache_dir = config.cache_dir or (Path(temporary.name) if temporary else None)
    if cache_dir is None:
        require(config, "out")
        cache_dir = config.out / "cache"  # pyright: ignore[reportOptionalOperand]
    corpus = build_corpus(
        config.data,
        tokenizer,
        config.template,
        config.think_in,
        config.require_think,
        config.seq_len,
        cache_dir,
        log,
    )
    if temporary:
        temporary.cleanup()  # the files stay mapped until the corpus is dropped
    if tokenizer.vocab_size > model_config.vocab_size:
        raise UserError(
            f"{config.model}: the tokenizer has {tokenizer.vocab_size} tokens, "
            f"config.json says vocab_size={model_config.vocab_size}"
        )
    return tokenizer, corpus, Plan(corpus, config)


def describe(config: TrainConfig, corpus: Corpus, plan: Plan) -> list[str]:
    """The arithmetic of a run, for people."""
    meta = corpus.meta
    fill = meta["tokens"] / (plan.packs_per_epoch * config.seq_len)
    unit = "rows" if config.packing == "none" else f"packs ({fill:.1%} full)"
    return [
        f"data: {meta['documents']:,} examples, {meta['tokens']:,} tokens, "
        f"{meta['target_tokens']:,} targets; {meta['dropped_over_long']:,} longer than "
        f"{config.seq_len:,} dropped (longest {meta['longest']:,})",
        f"epoch: {plan.packs_per_epoch:,} {unit}, {plan.steps_per_epoch:,} steps "
        f"of {config.batch_size}",
        f"run: {plan.total_steps:,} steps, {config.epochs} epochs at most, "
        f"{meta['tokens'] * plan.total_steps / plan.steps_per_epoch:,.0f} tokens",
    ]


class Run:
    """A training run in progress: the sharded model, its optimizer, and where it stands."""

    def __init__(
        self, config: TrainConfig, corpus: Corpus, plan: Plan, ranks: Ranks, log: Log
    ) -> None:
        assert config.model is not None
        assert config.out is not None
        self.config, self.corpus, self.plan, self.ranks, self.log = config, corpus, plan, ranks, log
        self.source, self.out = config.model, config.out
        self.compute_dtype = config.compute_dtype(ranks.device)
        model_config = Qwen2Config.from_pretrained(self.source)
        weights = Checkpoint(self.source)
        self.fingerprint = weights.fingerprint()
        weights.check(model_config.tensor_shapes(), model_config.tie_word_embeddings)
        with torch.device("meta"):
            self.model = Qwen2(model_config)
        on_gpu = ranks.device.type == "cuda"
        shard(
            self.model,
            ranks,
            self.compute_dtype,
            config.activation_checkpointing or ("full" if on_gpu else "none"),
        )
        load_weights(self.model, weights, ranks)
        self.optimizer = make_optimizer(
            self.model,
            config.lr,
            config.betas,
            config.eps,
            config.weight_decay,
            DTYPES[config.optim_dtype],
        )
        self.step = self._resume()

    def _settings(self) -> dict[str, Any]:
        values = to_json(self.config)
        settings = {name: values[name] for name in TRAJECTORY}
        settings["model"] = self.fingerprint
        settings["data and template"] = self.corpus.key
        if self.config.schedule != "constant" or self.config.warmup_ratio:
            settings["total_steps"] = self.plan.total_steps  # the rate depends on it
        return settings

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
        meta = checkpoint.read_meta(self.out, done[-1])
        for name, value in self._settings().items():
            if meta["settings"].get(name) != value:
                raise UserError(
                    f"{name}={value}: the checkpoints in {self.out} were made with "
                    f"{meta['settings'].get(name)}; use that value or another --out"
                )
        checkpoint.load(self.out, done[-1], self.model, self.optimizer)
        self.log.say(f"resuming after step {done[-1]} of {self.plan.total_steps}")
        return done[-1]

    def save(self) -> None:
        meta = {"settings": self._settings(), "world_size": self.ranks.world_size}
        checkpoint.save(
            self.out, self.step, self.model, self.optimizer, meta, self.ranks, self.config.keep
        )

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
        stats = train_step(
            self.model,
            self.plan.batches(packs, self.ranks),
            self.plan.total_weight(packs),
            self.optimizer,
            self.ranks,
            config.clip_norm,
            stop,
        )
        self.step = step
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
        }
        if self.ranks.device.type == "cuda":
            row["memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
        if not stats.updated:
            row["skipped"] = True
        return stats, row

    def culprits(self) -> str:
        """The records of the step just taken, for the message of a run that stops."""
        ids = [self.corpus.ids[d] for p in self.plan.packs(self.step) for d in p.documents]
        return ", ".join(ids[:20]) + (" ..." if len(ids) > 20 else "")


def train(config: TrainConfig, log: Log, ranks: Ranks) -> None:
    """Run a recipe to its end, or to the next SIGTERM; the same call again continues."""
    require(config, "model", "data", "out")
    assert config.out is not None
    there = {p.name for p in config.out.iterdir()} if config.out.exists() else set[str]()
    if ranks.is_main and not config.resume and there - {"cache"}:  # tokens alone are no run
        raise UserError(f"--out={config.out}: not empty, and --no-resume was given")
    if config.model is not None and config.out.resolve() == config.model.resolve():
        raise UserError(f"--out={config.out}: is --model; choose another place")
    _, corpus, plan = prepare(config, log)
    for line in describe(config, corpus, plan):
        log.say(line)
    ranks.connect()
    stop = StopSignal()
    owner = owned(config.out) if ranks.is_main else contextlib.nullcontext()
    try:
        with owner:
            _train(config, corpus, plan, ranks, log, stop)
        ranks.barrier()  # nobody leaves while another still talks
    finally:
        stop.restore()
        ranks.disconnect()


def _train(
    config: TrainConfig, corpus: Corpus, plan: Plan, ranks: Ranks, log: Log, stop: StopSignal
) -> None:
    """The run itself, with the process group up and --out to itself."""
    assert config.out is not None
    run = Run(config, corpus, plan, ranks, log)
    finished = config.out / "config.json"  # what an export writes last
    if run.step == plan.total_steps and finished.exists():
        log.say(f"already trained: {config.out}")
        return
    ranks.barrier()
    if ranks.is_main:
        finished.unlink(missing_ok=True)  # of a shorter run that this one continues
    if _loop(run, stop):
        export_dtype = DTYPES[config.export_dtype] if config.export_dtype else run.compute_dtype
        checkpoint.export(run.model, run.source, run.out, export_dtype, ranks)
        log.say(f"finished: {config.out}")


def _loop(run: Run, stop: StopSignal) -> bool:
    """Step until done (True) or asked to stop (False); either way a checkpoint is on disk."""
    config, total = run.config, run.plan.total_steps
    metrics = _open_metrics(run) if run.ranks.is_main else None
    bad_steps, saved = 0, run.step
    with run.log.bar(total=total, initial=run.step, desc="training", unit="step") as bar:
        while run.step < total:
            stats, row = run.take_step(stop.requested)
            if metrics:
                metrics.append(row)
            run.log.say(_line(row, total))
            bar.update()
            bad_steps = 0 if stats.updated else bad_steps + 1
            if bad_steps == MAX_BAD_STEPS:
                raise RunStopped(
                    f"loss={stats.loss} grad_norm={stats.grad_norm} at step {run.step}: "
                    f"{bad_steps} non-finite steps in a row; records {run.culprits()}"
                )
            if run.step % config.save_every == 0 or stats.stop_requested or run.step == total:
                run.save()
                saved = run.step
            if stats.stop_requested and run.step < total:
                run.log.say(f"stopped after step {saved}; the same command continues")
                break
    if metrics:
        metrics.close()
        _draw(run, metrics.path)
    return run.step == total


def _open_metrics(run: Run) -> Journal:
    """metrics.jsonl, rewound to the checkpoint so that each step stands once."""
    path = run.out / "metrics.jsonl"
    with Journal(path) as journal:
        rows = [row for row in journal.rows if row["step"] <= run.step]
    write_jsonl(path, rows)
    write_json(run.out / "train_config.json", to_json(run.config))
    return Journal(path)


def _draw(run: Run, metrics: Path) -> None:
    if not plot.available():
        run.log.say("no loss.png: install the plot extra for it")
        return
    with Journal(metrics) as journal:
        rows = journal.rows
    if rows:
        plot.loss_curve(run.out / "loss.png", rows, title=str(run.out.name))


def _line(row: dict[str, Any], total: int) -> str:
    """One greppable line a step."""
    memory = f" | mem {row['memory_gib']:.1f}G" if "memory_gib" in row else ""
    skipped = " | SKIPPED: not finite" if row.get("skipped") else ""
    return (
        f"step {row['step']:05d}/{total} | loss {row['loss']:.4f} | grad {row['grad_norm']:.2f} | "
        f"lr {row['lr']:.1e} | tok/s {row['tokens_per_s']:,.0f}{memory}{skipped}"
    )
