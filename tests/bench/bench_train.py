"""Training speed beside transformers, on identical documents, interleaved in one run.

    pip install -c constraints.txt -e '.[test]'
    python tests/bench/bench_train.py --vocab 8192 --seq-len 1024 --rounds 5

Ours: the documents of a pack in one row, isolated from one another; chunked cross-entropy on target
rows only; fused AdamW. Theirs: `padded`, one document a row, padded to the longest; and
`position_ids`, the same pack in one row with positions that restart (use_cache=False, no attention
mask), which transformers turns into a block-diagonal mask. All start from the same weights, so the
losses of the first round must agree. Forward, backward, clipping and AdamW count. On CUDA ours is
also given as a share of the card's peak (MFU).
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[2]))

from tinyr1.common.ranks import Ranks
from tinyr1.common.threads import keep_freed_memory
from tinyr1.model.config import Qwen2Config
from tinyr1.model.qwen2 import Qwen2
from tinyr1.record import Pack
from tinyr1.train.flops import TrainingFlops, peak_tflops
from tinyr1.train.optim import make_optimizer
from tinyr1.train.packing import make_batch
from tinyr1.train.sft import train_step

# hidden, layers, query heads, key-value heads, mlp
SHAPES = {
    "small": (256, 8, 8, 2, 1024),
    "1.5b": (1536, 28, 12, 2, 8960),
    "7b": (3584, 28, 28, 4, 18_944),
}


def documents(
    count: int, total: int, vocabulary: int, seed: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """`count` random documents of uneven length that fill `total` tokens; a tenth is prompt."""
    rng = random.Random(seed)
    cuts = sorted(rng.sample(range(total // 20, total - total // 20), count - 1))
    lengths = [b - a for a, b in zip([0, *cuts], [*cuts, total], strict=True)]
    made = []
    for length in lengths:
        tokens = np.random.default_rng(length).integers(0, vocabulary, length)
        made.append((tokens, np.arange(length) >= length // 10))
    return made


def initial(config: Qwen2Config) -> Qwen2:
    """The same weights each time, as small as a trained model's."""
    model = Qwen2(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.02, generator=generator)
            else:
                parameter.fill_(0.0 if parameter.sum() == 0 else 1.0)
    return model


def ours(config: Qwen2Config, docs: list, device: torch.device, dtype: torch.dtype):
    model = initial(config).to(device)
    optimizer = make_optimizer(model, 1e-5, (0.9, 0.95), 1e-8, 0.01, torch.float32)
    pack = Pack(tuple(range(len(docs))), sum(len(t) for t, _ in docs))
    batch = make_batch([pack], lambda i: docs[i], "neat")
    ranks = Ranks()

    def step() -> float:
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            return train_step(model, [batch], len(batch.targets), optimizer, ranks, 1.0).loss

    return step


def theirs(config: Qwen2Config, docs: list, device: torch.device, dtype: torch.dtype, packed: bool):
    from transformers import Qwen2Config as TheirConfig
    from transformers import Qwen2ForCausalLM

    names = "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads"
    names += " num_key_value_heads"
    values = {name: getattr(config, name) for name in names.split()}
    model = Qwen2ForCausalLM(
        TheirConfig(
            **values,
            tie_word_embeddings=False,
            rms_norm_eps=config.rms_norm_eps,
            rope_theta=config.rope_theta,
        )
    )
    model.load_state_dict(initial(config).state_dict())
    model.to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, betas=(0.9, 0.95), weight_decay=0.01)
    tensors = [
        (torch.as_tensor(t), torch.where(torch.as_tensor(m), torch.as_tensor(t), -100))
        for t, m in docs
    ]
    if packed:
        inputs = {
            "input_ids": torch.cat([t for t, _ in tensors])[None],
            "position_ids": torch.cat([torch.arange(len(t)) for t, _ in tensors])[None],
            # The first token of a document is predicted by nobody.
            "labels": torch.cat([torch.cat([y.new_full((1,), -100), y[1:]]) for _, y in tensors])[
                None
            ],
            "use_cache": False,
        }
    else:

        def pad(rows: list[Tensor], value: int) -> Tensor:
            return torch.nn.utils.rnn.pad_sequence(rows, True, value)

        ids = pad([t for t, _ in tensors], 0)
        inputs = {
            "input_ids": ids,
            "attention_mask": pad([torch.ones_like(t) for t, _ in tensors], 0),
            "labels": pad([y for _, y in tensors], -100),
            "use_cache": False,
        }
    inputs = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in inputs.items()}

    def step() -> float:
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            loss = model(**inputs).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=list(SHAPES), default="small")
    parser.add_argument("--vocab", type=int, default=8192)
    parser.add_argument("--seq-len", type=int, default=1024)
    parser.add_argument("--documents", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0, help="of the documents' lengths")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--keep-freed", action="store_true", help="as train.py does on a CPU")
    parser.add_argument("--only", choices=["ours", "padded", "position_ids"], help="for its memory")
    args = parser.parse_args()
    if args.keep_freed:
        keep_freed_memory()
    torch.set_num_threads(args.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    hidden, layers, heads, kv_heads, mlp = SHAPES[args.shape]
    config = Qwen2Config(
        vocab_size=args.vocab,
        hidden_size=hidden,
        intermediate_size=mlp,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=hidden // heads,
    )
    docs = documents(args.documents, args.seq_len, args.vocab, args.seed)
    torch.manual_seed(0)
    makers = {
        "ours": lambda: ours(config, docs, device, dtype),
        "padded": lambda: theirs(config, docs, device, dtype, packed=False),
        "position_ids": lambda: theirs(config, docs, device, dtype, packed=True),
    }
    steps = {name: make() for name, make in makers.items() if args.only in (None, name)}
    print(
        f"# {args.shape}, vocabulary {args.vocab:,}, {args.seq_len} tokens in documents of "
        f"{[len(t) for t, _ in docs]}, {device}, {dtype}, {args.threads} threads, "
        f"torch {torch.__version__}"
    )
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for i in range(args.rounds + 1):
        for name, step in steps.items():
            if device.type == "cuda":
                torch.cuda.synchronize()
            wall, cpu = time.perf_counter(), time.process_time()
            loss = step()
            if device.type == "cuda":
                torch.cuda.synchronize()
            taken = (
                time.process_time() - cpu if device.type == "cpu" else time.perf_counter() - wall
            )
            if i:  # the first round warms up
                seconds[name].append(taken)
            print(
                json.dumps({"round": i, "run": name, "s": round(taken, 3), "loss": round(loss, 4)})
            )
    print("\n| run | tokens per second | ratio of ours to it |\n|---|---:|---:|")
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    for name, median in medians.items():
        ratio = median / medians.get("ours", median)
        print(f"| {name} | {args.seq_len / median:,.0f} | {ratio:.2f} |")
    if device.type == "cuda" and "ours" in medians:
        targets = sum(int(m[1:].sum()) for _, m in docs)
        flops = TrainingFlops.of(config).of_sequences([len(t) for t, _ in docs], targets)
        peak = peak_tflops(torch.cuda.get_device_name())
        if peak:
            print(f"MFU {flops / medians['ours'] / peak / 1e12:.1%}")
    print(f"peak resident memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB")


if __name__ == "__main__":
    main()
