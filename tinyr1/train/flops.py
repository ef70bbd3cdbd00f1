"""Floating-point operations of training: what balances the ranks, and what MFU is a share of.

Only what the mathematics needs counts: no recomputation, no padding, attention within documents,
and the head on rows that have a target.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from tinyr1.model.config import Qwen2Config
from tinyr1.model.qwen2 import tensor_shapes

# Dense bf16 peak of a GPU in TFLOP/s, by a part of its name, the longer one first (the makers'
# data sheets). PCIe and NVL cards have fewer cores or slower ones.
# fmt: off
PEAK_TFLOPS = {
    "B200": 2250, "H200 NVL": 835, "H100 NVL": 835, "H100 PCIe": 756, "H800 PCIe": 756,
    "H200": 989, "H100": 989, "H800": 989, "A100": 312, "A800": 312,
}
# fmt: on


@dataclass(frozen=True)
class TrainingFlops:
    """Operations of forward and backward (three times the forward's)."""

    per_token: float  # matrices of the blocks: 6 a weight
    per_target: float  # the head: 6 a weight, where a target is
    per_square: float  # attention: 12 a layer, head and dimension, half of it masked

    @staticmethod
    def of(config: Qwen2Config) -> TrainingFlops:
        shapes = tensor_shapes(config)
        block = sum(
            shape[0] * shape[1]
            for name, shape in shapes.items()
            if name.startswith("model.layers.0.") and len(shape) == 2
        )
        layers, heads, dim = config.num_hidden_layers, config.num_attention_heads, config.head_dim
        return TrainingFlops(
            per_token=6.0 * layers * block,
            per_target=6.0 * config.vocab_size * config.hidden_size,
            per_square=6.0 * layers * heads * dim,
        )

    def of_sequences(self, segment_lengths: Iterable[int], target_count: int) -> float:
        """Operations of sequences that attend within themselves, with so many targets in all."""
        lengths = list(segment_lengths)
        squares = sum(length * length for length in lengths)
        return (
            self.per_token * sum(lengths)
            + self.per_square * squares
            + self.per_target * target_count
        )


def peak_tflops(device_name: str) -> float | None:
    """The card's peak, or None if it is not known."""
    return next((peak for name, peak in PEAK_TFLOPS.items() if name in device_name), None)
