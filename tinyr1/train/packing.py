"""Sequence packing (paper section 3.1.1, "neat packing"): several documents share one row.

    capacity 12    | doc 4: a a a a a | doc 1: b b b b | doc 0: c c c |
    positions        0 1 2 3 4          0 1 2 3          0 1 2
    cu_seqlens       0                  5                9              12

Nothing is cut and nothing is lost: a document lies whole in one pack. Documents cannot attend to
each other (model.document_attention), and the last token of one never predicts the first of the
next. `naive` packing is what plain trainers do: one causal sequence over the whole pack.
"""

from __future__ import annotations

import bisect
import random
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Literal

import numpy as np
import torch

from tinyr1.record import Batch, Pack

Packing = Literal["neat", "naive", "none"]
Weighting = Literal["token", "sequence", "pack"]
ReadExample = Callable[[int], "tuple[np.ndarray, np.ndarray]"]


def plan_packs(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Best-fit decreasing: the longest document first, each into the fullest pack that has room.

    Returns lists of indices into `lengths`. Deterministic; ties go by index. Raises ValueError
    for a length outside 1..capacity.
    """
    for i, length in enumerate(lengths):
        if not 1 <= length <= capacity:
            raise ValueError(f"lengths[{i}]={length}: expected 1..{capacity}")
    packs: list[list[int]] = []
    # (room left, -pack number), sorted: the first entry with enough room is the best fit, and of
    # equally full packs the newest.
    room: list[tuple[int, int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        at = bisect.bisect_left(room, (lengths[i], -len(packs)))
        if at < len(room):
            left, number = room.pop(at)
            packs[-number].append(i)
        else:
            left = capacity
            number = -len(packs)
            packs.append([i])
        if left > lengths[i]:
            bisect.insort(room, (left - lengths[i], number))
    return packs


def epoch_packs(
    lengths: Sequence[int], capacity: int, packing: Packing, seed: int, epoch: int
) -> list[Pack]:
    """The packs of one epoch in training order, a pure function of the arguments.

    Documents are shuffled before they are packed (so that equal lengths meet others in each
    epoch) and the packs afterwards (best fit leaves them sorted by length).
    """
    rng = random.Random(f"{seed}:{epoch}")
    order = list(range(len(lengths)))
    rng.shuffle(order)
    # Without packing a row is one document, and an epoch has as many rows as documents.
    if packing == "none":
        return [Pack((i,), lengths[i]) for i in order]
    plans = plan_packs([lengths[i] for i in order], capacity)
    rng.shuffle(plans)
    return [
        Pack(tuple(order[i] for i in plan), sum(lengths[order[i]] for i in plan)) for plan in plans
    ]


def make_batch(
    packs: Sequence[Pack],
    read: ReadExample,
    packing: Packing,
    weighting: Weighting = "token",
    multiple: int = 1,
) -> Batch:
    """Lay packs out as one flat row with its targets.

    read(i) gives the tokens (int) and the target mask (bool) of document i. `weighting` says what
    has one vote in the loss: each target token, each document, or each pack. The row is filled up
    to a `multiple` (to one, without packs) by a document of padding, which has no targets.
    """
    empty: np.ndarray = np.zeros(0)  # so that a rank without packs gets an empty batch
    tokens, rows, targets, weights = [empty], [empty], [empty], [empty]
    segment_lengths: list[int] = []
    start = 0
    for pack in packs:
        counts: list[int] = []
        lengths: list[int] = []
        for document in pack.documents:
            document_tokens, is_target = read(document)
            # Row t predicts token t + 1 of its own document; its last row predicts nothing.
            predicts = np.flatnonzero(is_target[1:])
            tokens.append(document_tokens)
            rows.append(predicts + start)
            targets.append(document_tokens[1:][predicts])
            counts.append(len(predicts))
            start += len(document_tokens)
            lengths.append(len(document_tokens))
        # A segment is what attends to itself: each document, or naively the whole pack.
        segment_lengths += [sum(lengths)] if packing == "naive" else lengths
        weights += _weights(counts, weighting)
    token_count = start
    # Padding is a document of its own: nobody attends to it, and it has no targets.
    padding = max(1, -(-start // multiple)) * multiple - start
    if padding:
        tokens.append(np.zeros(padding, dtype=np.int64))
        segment_lengths.append(padding)
    boundaries = [0, *accumulate(segment_lengths)]
    return Batch(
        tokens=torch.as_tensor(np.concatenate(tokens).astype(np.int64)),
        positions=torch.cat([torch.arange(n) for n in segment_lengths]),
        cu_seqlens=torch.tensor(boundaries, dtype=torch.int32),
        max_len=max(segment_lengths),
        target_rows=torch.as_tensor(np.concatenate(rows).astype(np.int64)),
        targets=torch.as_tensor(np.concatenate(targets).astype(np.int64)),
        weights=torch.as_tensor(np.concatenate(weights).astype(np.float32)),
        token_count=token_count,
    )


def _weights(target_counts: list[int], weighting: Weighting) -> list[np.ndarray]:
    """The weight of each target of one pack's documents."""
    if weighting == "token":
        return [np.ones(n) for n in target_counts]
    if weighting == "sequence":
        return [np.full(n, 1 / max(n, 1)) for n in target_counts]
    total = max(sum(target_counts), 1)
    return [np.full(n, 1 / total) for n in target_counts]
