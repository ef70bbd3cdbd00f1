"""A training run before any GPU is asked: the tokens, and which packs make which step.

    TrainConfig (recipe and command line) -> Corpus -> Plan: (epoch, step) -> packs -> micro-batches

Everything that is decided here is decided by (seed, epoch, step), so a run can be resumed from the
number of its last step alone.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from tinyr1.common.config import check_given, flag, given, to_json
from tinyr1.common.errors import UserError
from tinyr1.common.files import real
from tinyr1.common.log import Log
from tinyr1.common.ranks import Ranks
from tinyr1.model.chat import TEMPLATE_END, check_template, guess_template
from tinyr1.model.config import Qwen2Config
from tinyr1.model.qwen2 import tensor_shapes
from tinyr1.model.tokenizer import Tokenizer
from tinyr1.model.weights import Checkpoint, dtype_name
from tinyr1.record import Batch, Pack
from tinyr1.train.corpus import Corpus, Rendering, build_corpus, system_of
from tinyr1.train.flops import TrainingFlops
from tinyr1.train.options import TrainConfig
from tinyr1.train.packing import epoch_packs, make_batch


class Plan:
    """The packs of each optimizer step: a pure function of (corpus, config)."""

    def __init__(self, corpus: Corpus, config: TrainConfig, flops: TrainingFlops) -> None:
        self.corpus = corpus
        self.config = config
        self.flops = flops
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
        """The divisor of these packs' summed loss, known before the first forward."""
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
    end_token: int  # that ends an answer, in the template
    system: str  # message of conversations that have none
    corpus: Corpus
    plan: Plan
    held_out: dict[str, Plan]  # of each file of --eval-data; its one epoch is the evaluation


def prepare(config: TrainConfig, log: Log) -> Prepared:
    """Open model and tokenizer, tokenise, plan; UserError for everything that can be wrong."""
    check_given(config, "model", "data")
    model = given(config.model, "--model")
    data = given(config.data, "--data")
    planning = config.dry_run or config.preview  # these take no step and leave nothing behind
    model_config = Qwen2Config.from_pretrained(model)
    weights = None
    if not planning:  # before hours of tokenising
        weights = Checkpoint(model)
        weights.check(tensor_shapes(model_config), model_config.tie_word_embeddings)
    tokenizer = Tokenizer(model, config.system)
    template = guess_template(tokenizer) if config.template == "auto" else config.template
    check_template(tokenizer, template)
    end = tokenizer.special(TEMPLATE_END[template])
    if end not in tokenizer.eos_ids():
        log.warn(
            f"{model}: --template {template} trains token {end} to end an answer, which neither "
            "the tokenizer nor generation_config.json names as a stop; the exported model's will"
        )
    tokenizer.check_size(model_config.vocab_size)
    if config.seq_len > model_config.max_position_embeddings:
        log.warn(
            f"--seq-len={config.seq_len}: beyond {model}'s max_position_embeddings="
            f"{model_config.max_position_embeddings}"
        )

    rendering = Rendering(
        tokenizer, config.seq_len, template, config.think_in, config.require_think
    )
    flops = TrainingFlops.of(model_config)
    with contextlib.ExitStack() as stack:  # the files stay mapped until the corpus is dropped
        cache_dir = config.cache_dir
        if cache_dir is None and planning:
            cache_dir = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        if cache_dir is None:
            cache_dir = given(config.out, "--out") / "cache"
        corpus = build_corpus(data, rendering, cache_dir, log)
        plan = Plan(corpus, config, flops)
        # Isolated documents, one vote a target: what is measured does not depend on the recipe.
        plain = replace(config, packing="neat", loss_weighting="token")
        held_out = {
            name: Plan(build_corpus((path,), rendering, cache_dir, log), plain, flops)
            for name, path in _named(config.eval_data).items()
        }
    system = system_of(rendering)
    return Prepared(config, model_config, weights, tokenizer, end, system, corpus, plan, held_out)


def _named(files: Sequence[Path]) -> dict[str, Path]:
    """Files by their names without ends, numbered where these are the same."""
    named: dict[str, Path] = {}
    for path in files:
        if real(path) in map(real, named.values()):
            raise UserError(f"--eval-data={path}: given twice")
        stem = path.name.split(".")[0]
        numbers = itertools.chain([stem], (f"{stem}_{i}" for i in itertools.count(2)))
        named[next(name for name in numbers if name not in named)] = path
    return named


def _shown(text: str) -> str:
    """The beginning of a text, quoted."""
    return repr(text if len(text) <= 60 else text[:57] + "...") if text else ""


def describe(prepared: Prepared) -> list[str]:
    """The arithmetic of a run, for people."""
    config, plan, meta = prepared.config, prepared.plan, prepared.corpus.meta
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
        f"conversations without a system message get {_shown(prepared.system) or 'none'}",
        *(
            f"held out, {name}: {held.corpus.meta['documents']:,} examples; "
            f"{held.corpus.meta['dropped_over_long']:,} longer than {config.seq_len:,} dropped"
            for name, held in prepared.held_out.items()
        ),
    ]


# Options that the checkpoints of a run depend on: resuming with others is refused.
# fmt: off
TRAJECTORY = (
    "batch_size", "seq_len", "lr", "schedule", "warmup_ratio", "betas", "eps", "weight_decay",
    "clip_norm", "packing", "loss_weighting", "seed", "optim_dtype",
)
# fmt: on
CHANGED_BY = {  # of those that are no option themselves
    "data and template": " (or --template, --system, --think-in, --require-think or --seq-len)",
    "total_steps": " (by --epochs or --max-steps; the learning rate depends on it)",
}


# What a run is known by, for people, beside what it is compared by.
NAMES = {"model": "model_name", "data and template": "data_names"}


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
    settings["model_name"] = given(config.model, "--model").name
    settings["data_names"] = ", ".join(path.name for path in config.data)
    return settings


def difference(mine: dict[str, Any], theirs: dict[str, Any], out: Path) -> str:
    """The first setting in which the checkpoints of `out` differ, in a line; "" for none."""
    for key, value in mine.items():
        if key in NAMES.values() or str(theirs.get(key)) == str(value):
            continue  # infinity was written as a number once
        how = CHANGED_BY.get(key, "")
        if other := NAMES.get(key):
            return (
                f"--{key.split()[0]}={mine[other]}{how}: not what the checkpoints in {out} were "
                f"made from ({theirs.get(other) or 'another'}); use that or another --out"
            )
        name = flag(key) if key in TRAJECTORY else key
        return (
            f"{name}={value}{how}: the checkpoints in {out} were made with {theirs.get(key)}; "
            "use that value or another --out"
        )
    return ""
