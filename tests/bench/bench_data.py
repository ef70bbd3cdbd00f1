"""Rows per second and peak memory of making a math file, and both as the rows grow.

    python tests/bench/bench_data.py --rows 2000 20000 --tokenizer DIR

Makes OpenR1-shaped parquet files (about 50 KB a row: two generations of some 4,000 words each from
a list of English-like words), then runs `python -m tinyr1.data math` on each.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]


def make(path: Path, count: int) -> None:
    import pyarrow
    import pyarrow.parquet as parquet

    rng = random.Random(0)
    vocabulary = ["".join(rng.choices("etaoinshrdlu", k=rng.randrange(2, 9))) for _ in range(4000)]

    def row(i: int) -> dict:
        texts = []
        for _ in range(2):
            words = rng.choices(vocabulary, k=rng.randrange(2000, 6000))
            texts.append(f"<think>\n{' '.join(words)}\n</think>\n\nIt is \\boxed{{{i}}}.")
        return {
            "problem": f"Find {i}: " + " ".join(rng.choices(vocabulary, k=40)),
            "answer": str(i),
            "question_type": "math-word-problem" if i % 10 else "proof",
            "source": "olympiads",
            "uuid": str(i),
            "generations": texts,
            "is_reasoning_complete": [True, True],
            "correctness_math_verify": [i % 7 > 0, True],
            "finish_reasons": None,
        }

    schema = pyarrow.Table.from_pylist([row(1) | {"finish_reasons": ["stop"]}]).schema
    with parquet.ParquetWriter(path, schema) as writer:
        for start in range(0, count, 500):
            rows = [row(i) for i in range(start, min(start + 500, count))]
            writer.write_table(pyarrow.Table.from_pylist(rows, schema=schema))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[2000, 20000])
    parser.add_argument("--tokenizer", type=Path)
    args = parser.parse_args()
    code = (
        "import resource; from tinyr1.data.__main__ import main; main();"
        "print('PEAK', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    for count in args.rows:
        with tempfile.TemporaryDirectory() as name:
            source, out = Path(name) / "rows.parquet", Path(name) / "math.jsonl"
            make(source, count)
            command = [sys.executable, "-c", code, "math", "--source", str(source)]
            command += ["--out", str(out), "--quiet"]
            if args.tokenizer:
                command += ["--tokenizer", str(args.tokenizer)]
            started = time.perf_counter()
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
            wall = time.perf_counter() - started
            cpu = resource.getrusage(resource.RUSAGE_CHILDREN)
            meta = json.loads(out.with_suffix(".meta.json").read_text())
            row = {
                "rows": count,
                "gb_out": round(out.stat().st_size / 1e9, 3),
                "rows_out": meta["rows_out"],
                "tokens": meta["tokens"],
                "wall_s": round(wall, 1),
                "cpu_s_so_far": round(cpu.ru_utime + cpu.ru_stime, 1),
                "peak_mb": int(done.stdout.split("PEAK ")[1]) // 1000,
            }
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
