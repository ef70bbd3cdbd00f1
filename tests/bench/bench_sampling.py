"""Sampling speed beside transformers and vLLM, on the same prompts and lengths.

    pip install -c constraints.txt -e '.[test]'
    python tests/bench/bench_sampling.py --shape tiny --rounds 3

Prompts of 20 to 199 random tokens, several trials each, each with a length drawn from an
exponential distribution (no stop token ends a sample): some answers are long, most are short, as in
reality. Runs: `ours` with so many slots; `generate`, transformers in batches of as many rows, each
batch until its longest is done; `continuous`, transformers' continuous batching; `vllm` where it
can be imported. T = 0.6, top-p 0.95, float32 on CPUs. Runs are interleaved; the figure is tokens
per CPU-second (of all processes) or, on CUDA, per second.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import random
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from tinyr1.model.config import Qwen2Config
from tinyr1.model.qwen2 import Qwen2
from tinyr1.record import Prompt
from tinyr1.sampling.engine import TorchEngine
from tinyr1.sampling.sampler import SamplingSettings

# hidden, layers, query heads, key-value heads, mlp, vocabulary
SHAPES = {
    "tiny": (256, 8, 8, 2, 1024, 8192),
    "tiny-152k": (256, 8, 8, 2, 1024, 151_936),
    "m100": (768, 12, 12, 4, 2048, 8192),
    "1.5b": (1536, 28, 12, 2, 8960, 151_936),
    "7b": (3584, 28, 28, 4, 18_944, 152_064),
}


class NoText:
    """Decoding text is nobody's part of this benchmark."""

    def decode(self, ids: list[int]) -> str:
        return ""


def workload(questions: int, trials: int, mean: float, cap: int, vocabulary: int):
    rng = random.Random(0)
    made = []
    for q in range(questions):
        tokens = tuple(rng.randrange(10, vocabulary) for _ in range(rng.randrange(20, 200)))
        for t in range(trials):
            made.append(
                (Prompt("bench", str(q), t, tokens), min(cap, 1 + int(rng.expovariate(1 / mean))))
            )
    return made


def save(shape: str, folder: Path) -> Qwen2Config:
    """A random model whose logits are as spread as a trained one's, for every engine to load."""
    from transformers import Qwen2Config as TheirConfig
    from transformers import Qwen2ForCausalLM

    hidden, layers, heads, kv_heads, mlp, vocabulary = SHAPES[shape]
    torch.manual_seed(0)
    config = TheirConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=mlp,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=4096,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
    )
    model = Qwen2ForCausalLM(config)
    with torch.no_grad():
        model.lm_head.weight.mul_(10.0)
    model.save_pretrained(folder)
    return Qwen2Config.from_pretrained(folder)


class Forced(SamplingSettings):
    """Settings under which each sample has its own length."""

    def __init__(self, lengths: dict[tuple[str, str, int], int]) -> None:
        super().__init__()
        object.__setattr__(self, "lengths", lengths)

    def limit(self, prompt: Prompt, max_model_len: int) -> int:
        return self.lengths[prompt.key]


def ours(folder: Path, work: list, slots: int, device: str, dtype: torch.dtype, compile: bool):
    model = Qwen2.from_pretrained(folder, dtype, device)
    settings = Forced({p.key: n for p, n in work})
    engine = TorchEngine(model, NoText(), settings, slots, 4096, compile)

    def run() -> int:
        return sum(s.token_count for part in engine.generate([p for p, _ in work]) for s in part)

    return run


def generate(folder: Path, work: list, slots: int, device: str, dtype: torch.dtype):
    from transformers import Qwen2ForCausalLM

    model = Qwen2ForCausalLM.from_pretrained(folder, dtype=dtype).to(device).eval()

    def run() -> int:
        total = 0
        for start in range(0, len(work), slots):
            rows = work[start : start + slots]
            width = max(len(p.tokens) for p, _ in rows)
            ids = torch.zeros(len(rows), width, dtype=torch.int64)
            mask = torch.zeros_like(ids)
            for i, (prompt, _) in enumerate(rows):
                ids[i, width - len(prompt.tokens) :] = torch.tensor(prompt.tokens)
                mask[i, width - len(prompt.tokens) :] = 1
            model.generate(
                ids.to(device),
                attention_mask=mask.to(device),
                do_sample=True,
                temperature=0.6,
                top_p=0.95,
                top_k=0,
                max_new_tokens=max(n for _, n in rows),
                pad_token_id=0,
            )
            total += sum(n for _, n in rows)
        return total

    return run


def continuous(folder: Path, work: list, slots: int, device: str, dtype: torch.dtype):
    from transformers import ContinuousBatchingConfig, GenerationConfig, Qwen2ForCausalLM

    kernel = "paged|sdpa"
    model = Qwen2ForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation=kernel)
    model = model.to(device).eval()
    settings = GenerationConfig(
        do_sample=True, temperature=0.6, top_p=0.95, top_k=0, pad_token_id=0, eos_token_id=-1,
        max_new_tokens=max(n for _, n in work),
    )  # fmt: skip
    blocks = ContinuousBatchingConfig(page_size=32, num_blocks=512, max_requests_per_batch=slots)

    def run() -> int:
        with model.continuous_batching_context_manager(
            generation_config=settings, continuous_batching_config=blocks
        ) as manager:
            for prompt, n in work:
                manager.add_request(list(prompt.tokens), max_new_tokens=n)
            total = done = 0
            while done < len(work):
                result = manager.get_result(timeout=1)
                if result is not None and result.is_finished():
                    done += 1
                    total += len(result.generated_tokens)
        return total

    return run


def vllm(folder: Path, work: list, slots: int, device: str, dtype: torch.dtype):
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    from vllm import LLM, SamplingParams

    llm = LLM(
        model=str(folder),
        dtype=dtype,
        skip_tokenizer_init=True,
        max_model_len=4096,
        enforce_eager=device == "cpu",
        max_num_seqs=slots,
        generation_config="vllm",
    )
    prompts = [{"prompt_token_ids": list(p.tokens)} for p, _ in work]
    params = [
        SamplingParams(
            temperature=0.6, top_p=0.95, seed=i, max_tokens=n, ignore_eos=True, detokenize=False
        )
        for i, (_, n) in enumerate(work)
    ]

    def run() -> int:
        outputs = llm.generate(prompts, params, use_tqdm=False)
        return sum(len(o.outputs[0].token_ids) for o in outputs)

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=list(SHAPES), default="tiny")
    parser.add_argument("--questions", type=int, default=12)
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--mean", type=float, default=32)
    parser.add_argument("--cap", type=int, default=192)
    parser.add_argument("--slots", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", nargs="+", default=["ours", "generate", "continuous", "vllm"])
    parser.add_argument("--compile", action="store_true", help="compile our blocks")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    if importlib.util.find_spec("vllm") is None:
        args.runs = [name for name in args.runs if name != "vllm"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = save(args.shape, folder)
        work = workload(args.questions, args.trials, args.mean, args.cap, config.vocab_size)
        place = (folder, work, args.slots, device, dtype)
        makers: dict[str, Callable[[], Callable[[], int]]] = {
            "ours": lambda: ours(*place, args.compile),
            "generate": lambda: generate(*place),
            "continuous": lambda: continuous(*place),
            "vllm": lambda: vllm(*place),
        }
        runs = {run: makers[run]() for run in args.runs}
    tokens = sum(n for _, n in work)
    print(
        f"# {args.shape}, {args.questions} prompts x {args.trials}, {tokens} tokens, {args.slots} "
        f"slots, {device}, {dtype}, {args.threads} threads, torch {torch.__version__}"
    )
    seconds: dict[str, list[float]] = {run: [] for run in runs}
    for i in range(args.rounds):
        for run, sample in runs.items():
            wall, cpu = time.perf_counter(), cpu_seconds()
            count = sample()
            assert count == tokens, (run, count, tokens)
            taken = cpu_seconds() - cpu if device == "cpu" else time.perf_counter() - wall
            seconds[run].append(taken)
            row = {"round": i, "run": run, "s": round(taken, 2)}
            print(json.dumps(row | {"wall_s": round(time.perf_counter() - wall, 2)}), flush=True)
    print("\n| run | tokens per second | ratio of ours to it |\n|---|---:|---:|")
    medians = {run: statistics.median(values) for run, values in seconds.items()}
    for run, median in medians.items():
        ratio = median / medians.get("ours", median)
        print(f"| {run} | {tokens / median:,.0f} | {ratio:.2f} |")


def cpu_seconds() -> float:
    """CPU time of this process, all its threads, and children that have ended."""
    own = resource.getrusage(resource.RUSAGE_SELF)
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


if __name__ == "__main__":
    main()
