"""A training run before any GPU is asked: its options, its tokens, and which packs make which step.

    TrainConfig (recipe and command line) -> Corpus -> Plan: (epoch, step) -> packs -> micro-batches

Everything that is decided here is decided by (seed, epoch, step), so a run can be resumed from the
number of its last step alone.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import torch
import tyro

from tinyr1.chat import TEMPLATE_END, TemplateName, ThinkIn, check_template
from tinyr1.config import check_range, given, to_json
from tinyr1.corpus import Corpus, Rendering, build_corpus
from tinyr1.errors import UserError
from tinyr1.flops import TrainingFlops
from tinyr1.log import Log
from tinyr1.model import tensor_shapes
from tinyr1.model_config import Qwen2Config
from tinyr1.optim import Schedule
from tinyr1.packing import Packing, Weighting, epoch_packs, make_batch
from tinyr1.parallel import ActivationCheckpointing, Sharding
from tinyr1.ranks import Ranks
from tinyr1.record import Batch, Pack
from tinyr1.tokenizer import Tokenizer
from tinyr1.weights import DTYPES, Checkpoint, dtype_name

Dtype = Literal["fp32", "bf16"]


@dataclass(frozen=True)
class TrainConfig:
    """Fine-tune a Qwen2 checkpoint on teacher trajectories."""

    recipe: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RECIPE")] = ""
    """A name under tinyr1/recipes (math, coding, science, mixture, ...) or the path of a TOML file:
    the defaults of the options below."""
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
    export_every: int = 0
    """Steps between Hugging Face exports under OUT/exports (0: only the finished model)."""
    eval_data: tuple[Path, ...] = ()
    """Held-out files of the same kind: their loss per target is reported."""
    eval_every: int = 100
    """Steps between evaluations of --eval-data (one is always made at the end)."""
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
    offload_checkpoints: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Keep the inputs of recomputed blocks in host memory between forward and backward."""
    replicate: int = 1
    """Copies of the sharded model (HSDP): shard within a node, replicate over nodes."""
    cpu_offload: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Keep weights, gradients and moments in host memory and update them there."""
    compile: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Compile each block (minutes at the start, faster steps on a GPU)."""
    deterministic: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Only kernels that give the same bits every time (slower on a GPU; a CPU's always do)."""
    cache_dir: Path | None = None
    """Where the tokenised data lie (by default OUT/cache)."""
    template: TemplateName = "deepseek_r1"
    """Chat template."""
    think_in: ThinkIn = "target"
    """Whether the opening <think> is learned or given with the prompt."""
    require_think: bool = True
    """Refuse training rows without a well-formed <think>...</think>."""
    resume: bool = True
    """Continue from the newest checkpoint in --out; --no-resume refuses a used --out."""
    dry_run: bool = False
    """Print the plan and the memory per GPU, train nothing."""
    world_size: int = 8
    """GPUs that --dry-run plans for."""
    gpu_memory_gib: float = 80.0
    """Memory of a GPU that --dry-run plans for."""
    peak_tflops: float = 989.0
    """Dense bf16 peak of a GPU that --dry-run plans for (H100, H800, H200)."""
    assumed_mfu: float = 0.4
    """Share of that peak from which --dry-run computes hours."""
    tensorboard: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Also write the metrics to OUT/tensorboard."""
    preview: bool = False
    """Print the first packs as text, ids and targets, train nothing."""
    quiet: bool = False
    """No progress on standard error."""

    def __post_init__(self) -> None:
        check_range(self, 1, math.inf, "epochs", "batch_size", "micro_batch_size", "save_every")
        check_range(self, 1, math.inf, "keep", "world_size", "eval_every", "replicate")
        check_range(self, 2, math.inf, "seq_len")
        check_range(self, 0, math.inf, "max_steps", "export_every", "lr", "eps", "weight_decay")
        check_range(self, 0, 1, "warmup_ratio")
        check_range(self, 1e-12, math.inf, "gpu_memory_gib", "peak_tflops")
        if self.clip_norm != math.inf:
            check_range(self, 1e-12, math.inf, "clip_norm")
        check_range(self, 1e-9, 1, "assumed_mfu")
        if len(self.betas) != 2 or not all(0 <= b < 1 for b in self.betas):
            raise UserError(f"--betas={self.betas}: expected two numbers in [0, 1)")
        if self.offload_checkpoints and self.activation_checkpointing in ("none", "selective"):
            raise UserError(
                f"--offload-checkpoints: needs --activation-checkpointing full, "
                f"not {self.activation_checkpointing}"
            )

    def check_world(self, world_size: int, option: str) -> None:
        """UserError where so many ranks cannot share this run's work."""
        if world_size % self.replicate:
            raise UserError(f"--replicate={self.replicate}: does not divide {option}")
        if self.batch_size < world_size:
            raise UserError(
                f"--batch-size={self.batch_size}: leaves some of {option} without any work; "
                "use a larger batch or fewer ranks"
            )

    def compute_dtype(self, device: torch.device) -> torch.dtype:
        return DTYPES[self.dtype or ("bf16" if device.type == "cuda" else "fp32")]

    def sharding(self, device: torch.device) -> Sharding:
        """How the model is spread over the ranks."""
        recompute = device.type == "cuda" or self.offload_checkpoints
        return Sharding(
            compute_dtype=self.compute_dtype(device),
            checkpointing=self.activation_checkpointing or ("full" if recompute else "none"),
            offload_checkpoints=self.offload_checkpoints,
            cpu_offload=self.cpu_offload,
            compile=self.compile,
        )


class Plan:
    """Which packs each optimizer step trains on: a pure function of (corpus, config)."""

    def __init__(self, corpus: Corpus, config: TrainConfig, flops: TrainingFlops) -> None:
        self.corpus, self.config, self.flops = corpus, config, flops
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

    def all_packs(self) -> list[Pack]:
        """The packs of the first epoch, which hold every document once."""
        self._load(0)
        return self._packs

    def total(self, of: Callable[[Pack], float]) -> float:
        """The sum of `of(pack)` over the run; each whole epoch counts as the first."""
        epochs, steps = divmod(self.total_steps, self.steps_per_epoch)
        rest = [pack for s in range(steps) for pack in self.packs(self.total_steps - s)]
        return sum(epochs * of(pack) for pack in self.all_packs()) + sum(map(of, rest))

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
        # On a GPU there are only so many shapes, so that memory does not fragment. One would do for
        # full packs, but a row a document (`--packing none`) would be two thirds padding.
        shapes = 16
        multiple = -(-self.config.seq_len * size // shapes) if ranks.device.type == "cuda" else 1
        return [
            make_batch(
                dealt[ranks.rank],
                self.corpus.read,
                self.config.packing,
                self.config.loss_weighting,
                multiple,
            )
            for dealt in self.deal(packs, ranks.world_size)
        ]

    def deal(self, packs: Sequence[Pack], world_size: int) -> list[list[list[Pack]]]:
        """Micro-step by micro-step, the packs of each rank.

        Ranks wait for the slowest in every micro-step, so packs of about equal cost share one:
        they are dealt in order of predicted operations, forwards and backwards in turn.
        """
        costly_first = sorted(packs, key=self.pack_flops, reverse=True)
        share = world_size * self.config.micro_batch_size
        micro_steps: list[list[list[Pack]]] = []
        for start in range(0, len(costly_first), share):
            hands: list[list[Pack]] = [[] for _ in range(world_size)]
            for i, pack in enumerate(costly_first[start : start + share]):
                lap, seat = divmod(i, world_size)
                hands[seat if lap % 2 == 0 else world_size - 1 - seat].append(pack)
            micro_steps.append(hands)
        return micro_steps

    def pack_flops(self, pack: Pack) -> float:
        """Operations that training on a pack needs."""
        lengths = [self.corpus.lengths[d] for d in pack.documents]
        if self.config.packing == "naive":
            lengths = [pack.token_count]
        targets = sum(self.corpus.target_counts[d] for d in pack.documents)
        return self.flops.of_sequences(lengths, targets)


class Prepared(NamedTuple):
    """A run before any GPU is asked: all that it reads, opened once and checked."""

    config: TrainConfig
    model_config: Qwen2Config
    weights: Checkpoint | None  # None where no step is taken (--dry-run, --preview)
    tokenizer: Tokenizer
    corpus: Corpus
    plan: Plan
    held_out: Plan | None  # of --eval-data; its one epoch is the evaluation


def prepare(config: TrainConfig, log: Log) -> Prepared:
    """Open model and tokenizer, tokenise, plan; UserError for everything that can be wrong."""
    model = given(config.model, "--model")
    data = given(config.data, "--data")
    planning = config.dry_run or config.preview  # these take no step and leave nothing behind
    model_config = Qwen2Config.from_pretrained(model)
    weights = None
    if not planning:  # before hours of tokenising
        weights = Checkpoint(model)
        weights.check(tensor_shapes(model_config), model_config.tie_word_embeddings)
    tokenizer = Tokenizer(model)
    check_template(tokenizer, config.template)
    temporary = tempfile.TemporaryDirectory() if planning and not config.cache_dir else None
    cache_dir = Path(temporary.name) if temporary else config.cache_dir
    if cache_dir is None:
        cache_dir = given(config.out, "--out") / "cache"
    end = tokenizer.special(TEMPLATE_END[config.template])
    if end not in tokenizer.eos_ids():
        log.warn(
            f"{model}: --template {config.template} trains token {end} to end an "
            "answer, which neither the tokenizer nor generation_config.json names as a stop"
        )
    tokenizer.check_size(model_config.vocab_size)
    if config.seq_len > model_config.max_position_embeddings:
        log.warn(
            f"--seq-len={config.seq_len}: beyond {model}'s max_position_embeddings="
            f"{model_config.max_position_embeddings}"
        )

    rendering = Rendering(
        tokenizer, config.seq_len, config.template, config.think_in, config.require_think
    )
    corpus = build_corpus(data, rendering, cache_dir, log)
    flops = TrainingFlops.of(model_config)
    plan = Plan(corpus, config, flops)
    held_out = None
    if config.eval_data:
        # Isolated documents, one vote a target: what is measured does not depend on the recipe.
        plain = replace(config, packing="neat", loss_weighting="token")
        unseen = build_corpus(config.eval_data, rendering, cache_dir, log)
        held_out = Plan(unseen, plain, flops)
    if temporary:
        temporary.cleanup()  # the files stay mapped until the corpus is dropped
    return Prepared(config, model_config, weights, tokenizer, corpus, plan, held_out)


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
        f"{plan.total(lambda pack: pack.token_count):,.0f} tokens",
    ]


# Options that the checkpoints of a run depend on: resuming with others is refused.
TRAJECTORY = (
    *("batch_size", "seq_len", "lr", "schedule", "warmup_ratio", "betas", "eps", "weight_decay"),
    *("clip_norm", "packing", "loss_weighting", "seed", "optim_dtype"),
)
CHANGED_BY = {  # of those that are no option themselves
    "data and template": " (by --data, --template, --think-in, --require-think or --seq-len)",
    "total_steps": " (by --epochs or --max-steps; the learning rate depends on it)",
}


def trajectory(
    config: TrainConfig, plan: Plan, dtype: torch.dtype, fingerprint: str
) -> dict[str, Any]:
    """All that decides which weights a run has after a step."""
    values = to_json(config)
    settings = {name: values[name] for name in TRAJECTORY}
    settings["dtype"] = dtype_name(dtype)
    settings["model"] = fingerprint
    settings["data and template"] = plan.corpus.key
    if config.schedule != "constant" or config.warmup_ratio:
        settings["total_steps"] = plan.total_steps  # the rate depends on it
    return settings


def check_trajectory(mine: dict[str, Any], theirs: dict[str, Any], out: Path) -> None:
    """UserError naming the first setting in which the checkpoints of `out` differ."""
    for name, value in mine.items():
        if str(theirs.get(name)) != str(value):  # infinity was written as a number once
            how = CHANGED_BY.get(name, "")
            raise UserError(
                f"{name}={value}{how}: the checkpoints in {out} were made with "
                f"{theirs.get(name)}; use that value or another --out"
            )
