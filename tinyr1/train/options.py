"""The options of a training run (paper section 3.1.1); recipes/*.toml has the paper's values."""

from __future__ import annotations

import math
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import torch
import tyro

from tinyr1.common.command_line import Groups
from tinyr1.common.config import check_range
from tinyr1.common.errors import UserError
from tinyr1.model.chat import ThinkIn
from tinyr1.model.weights import DTYPES
from tinyr1.train.optim import Schedule
from tinyr1.train.packing import Packing, Weighting
from tinyr1.train.parallel import ActivationCheckpointing, Sharding

RECIPES = resources.files("tinyr1.train") / "recipes"
Dtype = Literal["fp32", "bf16"]


@dataclass(frozen=True)
class TrainConfig:
    """Fine-tune a Qwen2 checkpoint on teacher trajectories."""

    recipe: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RECIPE")] = ""
    """Required. A name under tinyr1/train/recipes (math, ...) or a TOML file: defaults of what
    follows."""
    model: Path | None = None
    """Required. Hugging Face checkpoint directory to start from (download first)."""
    data: tuple[Path, ...] = ()
    """Required. Training files (JSON lines); their union is used, shuffled by --seed."""
    out: Path | None = None
    """Required to train. Directory for metrics, checkpoints and the finished model."""
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
    """Course of the rate after warm-up."""
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
    """The unit that has one vote in the loss: a target token, a document or a pack."""
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
    """Folder of the tokenised data (by default OUT/cache)."""
    template: Literal["auto", "deepseek_r1", "qwen"] = "deepseek_r1"
    """Chat template; auto goes by the tokenizer's special tokens."""
    system: str | None = None
    """System message of conversations without one ('' for none; by default what the checkpoint's
    own ChatML template says)."""
    think_in: ThinkIn = "target"
    """target: the opening <think> is learned; prompt: it is given with the prompt."""
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

    required: ClassVar[str] = "model data out"
    groups: ClassVar[Groups] = {
        "inputs and output": "recipe model data out",
        "before training": "dry_run preview world_size gpu_memory_gib peak_tflops assumed_mfu",
        "what is trained on": "seq_len packing template system think_in require_think cache_dir",
        "training": "epochs max_steps batch_size micro_batch_size lr schedule warmup_ratio betas "
        "eps weight_decay clip_norm loss_weighting seed deterministic",
        "memory and speed": "dtype optim_dtype activation_checkpointing offload_checkpoints "
        "cpu_offload replicate compile",
        "checkpoints": "resume save_every keep export_every export_dtype",
        "watching": "eval_data eval_every tensorboard quiet",
    }

    def __post_init__(self) -> None:
        if self.system and not self.system.strip():
            raise UserError("--system: blank; '' is for none")
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
        """The options of sharding for this device."""
        recompute = device.type == "cuda" or self.offload_checkpoints
        return Sharding(
            compute_dtype=self.compute_dtype(device),
            checkpointing=self.activation_checkpointing or ("full" if recompute else "none"),
            offload_checkpoints=self.offload_checkpoints,
            cpu_offload=self.cpu_offload,
            compile=self.compile,
        )
