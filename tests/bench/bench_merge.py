"""Merge speed and memory beside mergekit, `cp` and reading, interleaved in one run.

    pip install -c constraints.txt -e '.[bench]'
    python tests/bench/bench_merge.py --shape 0.5b --rounds 3

Makes two checkpoints of Qwen2.5's shapes that differ as two experts of one model do, then runs in
turn: ours, mergekit 0.1.5 (where `mergekit-yaml` is on the PATH), a copy of one checkpoint, and a
read of both. Everything counts: start-up, hashing, flushing to disk, the picture.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import shutil
import statistics
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parents[2]
# hidden, layers, query heads, key-value heads, mlp, vocabulary, tied head
SHAPES = {
    "tiny": (64, 2, 4, 2, 128, 512, True),
    "0.5b": (896, 24, 14, 2, 4864, 151_936, True),
    "1.5b": (1536, 28, 12, 2, 8960, 151_936, True),
    "7b": (3584, 28, 28, 4, 18_944, 152_064, False),
    "32b-layer": (5120, 1, 40, 8, 27_648, 152_064, False),
}
# Standard deviation of an expert's changes, and of the hundredth of them that are larger.
EXPERTS = {"left": (6e-5, 6e-4), "right": (1e-4, 1e-3)}
SHARD_BYTES = 5 * 10**9


def tensor_shapes(shape: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a Qwen2 checkpoint."""
    hidden, layers, heads, kv_heads, mlp, vocabulary, tied = SHAPES[shape]
    kv = hidden // heads * kv_heads
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocabulary, hidden)}
    for i in range(layers):
        block = f"model.layers.{i}."
        for name, size in (("k", kv), ("q", hidden), ("v", kv)):
            shapes[f"{block}self_attn.{name}_proj.bias"] = (size,)
            shapes[f"{block}self_attn.{name}_proj.weight"] = (size, hidden)
        shapes[f"{block}self_attn.o_proj.weight"] = (hidden, hidden)
        shapes[f"{block}mlp.gate_proj.weight"] = shapes[f"{block}mlp.up_proj.weight"] = (
            mlp,
            hidden,
        )
        shapes[f"{block}mlp.down_proj.weight"] = (hidden, mlp)
        for norm in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"{block}{norm}.weight"] = (hidden,)
    shapes["model.norm.weight"] = (hidden,)
    if not tied:
        shapes["lm_head.weight"] = (vocabulary, hidden)
    return shapes


def make_expert(out: Path, shape: str, seed: int, scale: float, outlier: float) -> None:
    """Write a bf16 checkpoint: weights that all experts share, and changes of its own."""
    import torch
    from safetensors.torch import save_file

    out.mkdir(parents=True)
    groups: list[dict[str, tuple[int, ...]]] = [{}]
    for name, dims in tensor_shapes(shape).items():
        if sum(2 * math.prod(d) for d in groups[-1].values()) > SHARD_BYTES:
            groups.append({})
        groups[-1][name] = dims
    shared = torch.Generator().manual_seed(0)
    own = torch.Generator().manual_seed(seed)
    weight_map: dict[str, str] = {}
    for i, group in enumerate(groups, 1):
        file = f"model-{i:05d}-of-{len(groups):05d}.safetensors"
        tensors = {}
        for name, dims in group.items():
            base = torch.randn(dims, generator=shared) * 0.02 + float("norm" in name)
            change = torch.randn(dims, generator=own) * scale
            large = torch.rand(dims, generator=own) < 0.01
            change[large] *= outlier / scale
            tensors[name] = (base.bfloat16().float() + change).bfloat16()
            weight_map[name] = file
        save_file(tensors, out / file, metadata={"format": "pt"})
    (out / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    hidden, layers, heads, kv_heads, mlp, vocabulary, tied = SHAPES[shape]
    config = {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": mlp,
        "vocab_size": vocabulary,
        "tie_word_embeddings": tied,
        "torch_dtype": "bfloat16",
        "max_position_embeddings": 32_768,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "hidden_act": "silu",
    }
    (out / "config.json").write_text(json.dumps(config))


def measure(command: list[str]) -> dict[str, float]:
    """Wall seconds, CPU seconds and peak resident bytes of a command and its children."""
    started = time.perf_counter()
    pid = os.posix_spawn(command[0], command, dict(os.environ), file_actions=_to_null())
    _, status, usage = os.wait4(pid, 0)
    if status:
        sys.exit(f"{' '.join(command)}: status {status}")
    return {
        "wall_s": time.perf_counter() - started,
        "cpu_s": usage.ru_utime + usage.ru_stime,
        "peak_mb": usage.ru_maxrss * 1024 / 1e6,
    }


def _to_null() -> list[tuple[int, int, str, int, int]]:
    return [(os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_WRONLY, 0) for fd in (1, 2)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=list(SHAPES), default="0.5b")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--dir", type=Path, help="where the checkpoints go (default: a temporary one)"
    )
    parser.add_argument(
        "--mergekit", default=shutil.which("mergekit-yaml"), help="its mergekit-yaml"
    )
    parser.add_argument("--options", default="", help="further options of merge.py")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.dir) as folder:
        run(Path(folder), args)


def run(folder: Path, args: argparse.Namespace) -> None:
    left, right = folder / "left", folder / "right"
    if not (child := os.fork()):  # or its memory would count as that of what is measured
        for seed, (name, (scale, outlier)) in enumerate(EXPERTS.items(), 1):
            make_expert(folder / name, args.shape, seed, scale, outlier)
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        sys.exit("the checkpoints could not be made")
    files = [str(p) for p in (*left.glob("*.safetensors"), *right.glob("*.safetensors"))]
    size = sum(os.path.getsize(f) for f in files) / 2
    recipe = folder / "mergekit.yml"
    recipe.write_text(
        f"merge_method: arcee_fusion\nbase_model: {left}\nmodels:\n  - model: {right}\n"
        "dtype: bfloat16\nout_dtype: bfloat16\n"
    )
    out = folder / "out"
    commands = {
        "ours": [
            *(sys.executable, str(ROOT / "merge.py"), str(left), str(right), str(out), "--quiet"),
            *args.options.split(),
        ],
        "cp": [shutil.which("cp") or "/bin/cp", "-r", str(left), str(out)],
        "read": [shutil.which("cat") or "/bin/cat", *files],
    }
    if args.mergekit:
        commands["mergekit"] = [args.mergekit, str(recipe), str(out)]
    print(f"# {args.shape}: {size / 1e9:.3f} GB a checkpoint, {platform.processor() or 'CPU'}, "
          f"{len(os.sched_getaffinity(0))} cores, torch {version('torch')}, "
          f"Python {platform.python_version()}")  # fmt: skip
    results: dict[str, list[dict[str, float]]] = {name: [] for name in commands}
    for i in range(args.rounds):
        for name, command in commands.items():
            shutil.rmtree(out, ignore_errors=True)
            row = measure(command)
            results[name].append(row)
            rounded = {key: round(value, 2) for key, value in row.items()}
            print(json.dumps({"round": i + 1, "run": name, **rounded}), flush=True)
    print("\n| run | wall s | CPU s | peak MB | merged GB/s |\n|---|---:|---:|---:|---:|")
    medians = {
        name: {key: statistics.median(row[key] for row in rows) for key in rows[0]}
        for name, rows in results.items()
    }
    for name, m in medians.items():
        print(f"| {name} | {m['wall_s']:.2f} | {m['cpu_s']:.2f} | {m['peak_mb']:.0f} "
              f"| {size / 1e9 / m['wall_s']:.3f} |")  # fmt: skip
    for peer in ("mergekit", "cp", "read"):
        if peer in medians:
            ratios = {k: medians["ours"][k] / max(medians[peer][k], 1e-9) for k in medians["ours"]}
            print(f"ours / {peer}: wall {ratios['wall_s']:.2f}, CPU {ratios['cpu_s']:.2f}, "
                  f"memory {ratios['peak_mb']:.2f}")  # fmt: skip


if __name__ == "__main__":
    main()
