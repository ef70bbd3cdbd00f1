"""FSDP2 from outside: sharding and the sharded load. The model never hears of it.

Order of application: activation checkpointing of each block, then `fully_shard` of each block, of
the embedding and the head, and last of the whole.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, fully_shard
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from tinyr1.model.qwen2 import Qwen2
from tinyr1.model.rows import all_finite
from tinyr1.model.weights import Checkpoint

ActivationCheckpointing = Literal["full", "selective", "none"]


@dataclass(frozen=True)
class Sharding:
    """A model's way of being spread over the ranks."""

    compute_dtype: torch.dtype = torch.float32
    checkpointing: ActivationCheckpointing = "none"
    offload_checkpoints: bool = False  # what full checkpointing keeps waits on the host
    cpu_offload: bool = False  # parameters live on the host and are updated there
    compile: bool = False


def make_mesh(device_type: str, world_size: int, replicate: int = 1) -> DeviceMesh:
    """All ranks in a row; with `replicate`, so many copies of the sharded model (HSDP)."""
    if replicate == 1:
        return init_device_mesh(device_type, (world_size,))
    shape = (replicate, world_size // replicate)
    return init_device_mesh(device_type, shape, mesh_dim_names=("replicate", "shard"))


def shard(model: Qwen2, mesh: DeviceMesh, how: Sharding) -> None:
    """Split every parameter of `model` (its first dimension) over the ranks, in place.

    Parameters stay in their own dtype; with a lower compute dtype they are cast when gathered,
    and gradients are summed in float32. Gradients come out averaged over ranks (gloo knows no
    premultiplied sum): the training step multiplies its loss by the world size.
    """
    wrap = functools.partial(fully_shard, mesh=mesh, **_policies(mesh, how))
    for block in model.model.layers:
        # From inside out: recompute the block, compile what is recomputed, gather its weights
        # around both.
        checkpoint_activations(block, how.checkpointing, how.offload_checkpoints)
        if how.compile:
            block.compile()
        wrap(block)
    if not model.config.tie_word_embeddings:  # tied weights must stay in one unit: the root's
        wrap(model.model.embed_tokens)
        wrap(model.lm_head)
    # The root has what is left: the final norm, and a tied embedding.
    wrap(model)


def _policies(mesh: DeviceMesh, how: Sharding) -> dict[str, Any]:
    policies: dict[str, Any] = {}
    if how.compute_dtype != torch.float32:
        # Inputs stay as they are: the loss weights among them must not be rounded.
        policies["mp_policy"] = MixedPrecisionPolicy(
            how.compute_dtype, torch.float32, cast_forward_inputs=False
        )
    if how.cpu_offload:
        policies["offload_policy"] = CPUOffloadPolicy(pin_memory=mesh.device_type == "cuda")
    return policies


def checkpoint_activations(
    block: nn.Module, mode: ActivationCheckpointing, offload: bool = False
) -> None:
    """Recompute the block in backward: all of it, or all but the outputs of attention.

    With `offload` the block's input, the one thing that is kept for it, waits in host memory.
    """
    if mode == "none":
        return
    # There is no dropout, so no random state need be kept for the second forward.
    options: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}
    if mode == "selective":
        contexts = functools.partial(create_selective_checkpoint_contexts, _keep_attention)
        options["context_fn"] = contexts
    recomputed = functools.partial(checkpoint, block.forward, **options)

    def on_host(*args: Any, **kwargs: Any) -> Any:
        with torch.autograd.graph.save_on_cpu(pin_memory=torch.cuda.is_available()):
            return recomputed(*args, **kwargs)

    block.forward = on_host if offload else recomputed


def _keep_attention(ctx: Any, op: Any, *_: Any, **__: Any) -> CheckpointPolicy:
    attention = "attention" in str(op) or "attn" in str(op)
    return CheckpointPolicy.MUST_SAVE if attention else CheckpointPolicy.PREFER_RECOMPUTE


def load_weights(model: Qwen2, source: Checkpoint, device: torch.device) -> list[str]:
    """Fill a sharded meta-device model; each rank reads only its own rows of each tensor.

    Returns the names of those whose rows here are not all finite.
    """
    model.to_empty(device=device)
    faulty: list[str] = []
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            local = cast("Any", parameter).to_local()
            start = first_row(parameter)
            # The last ranks may hold no row of a small tensor.
            if len(local):
                local.copy_(source.rows(name, start, start + len(local)))
                if not all_finite(local):
                    faulty.append(name)
    return faulty


def clip_gradients(model: nn.Module, max_norm: float) -> Tensor:
    """Scale the gradients to a global norm of at most `max_norm`; returns the norm before it."""
    norm = nn.utils.clip_grad_norm_(model.parameters(), max_norm)
    full = getattr(norm, "full_tensor", None)
    return norm if full is None else full()


def first_row(parameter: Tensor) -> int:
    """Index of this rank's first row in a parameter that FSDP2 has cut, 0 in one that is whole.

    It cuts dimension 0 as torch.chunk does: equal parts, the last ones shorter.
    """
    mesh: Any = getattr(parameter, "device_mesh", None)
    if mesh is None or not parameter.ndim:
        return 0
    rows = -(-parameter.shape[0] // mesh.size(-1))
    return min(mesh.get_coordinate()[-1] * rows, parameter.shape[0])


def local_part(tensor: Tensor) -> Tensor:
    """This rank's part of a sharded tensor, or the tensor."""
    to_local = getattr(tensor, "to_local", None)
    return tensor if to_local is None else to_local()
