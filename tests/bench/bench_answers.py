"""Mathematical answers graded per CPU second, beside math-verify, and what each gets wrong.

    python tests/bench/bench_answers.py --rounds 3

The pairs are those of tests/golden/grading/math_rules.jsonl and field_math.jsonl; each harness gets
reference and answer as text, interleaved. Our parsed references are forgotten before each round.
`wrong` counts verdicts that differ from the table's: accepted where it says no, and the reverse.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tinyr1.graders.answer import last_box
from tinyr1.graders.math import equal_answers, parse

GOLDEN = Path(__file__).parents[1] / "golden" / "grading"


def pairs() -> list[tuple[str, str, bool]]:
    """(reference, answer, whether they are equal)."""
    rules = map(json.loads, (GOLDEN / "math_rules.jsonl").read_text().splitlines())
    field = map(json.loads, (GOLDEN / "field_math.jsonl").read_text().splitlines())
    return [(row["gold"], row["answer"], row["equal"]) for row in rules] + [
        (row["gold"], last_box(row["response"]) or "", row["expected"]) for row in field
    ]


def ours(reference: str, answer: str) -> bool:
    return equal_answers(reference, answer)


def math_verify(reference: str, answer: str) -> bool:
    import math_verify as peer

    return bool(peer.verify(peer.parse(f"${reference}$"), peer.parse(f"\\boxed{{{answer}}}")))


def measure(
    grade: Callable[[str, str], bool], rows: list[tuple[str, str, bool]]
) -> dict[str, float]:
    parse.cache_clear()
    accepted = refused = 0
    started = time.process_time()
    for reference, answer, equal in rows:
        verdict = grade(reference, answer)
        accepted += verdict and not equal
        refused += equal and not verdict
    seconds = time.process_time() - started
    return {"per_s": len(rows) / seconds, "accepted": accepted, "refused": refused}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    rows = pairs()
    runs = {"ours": ours, "math-verify": math_verify}
    for grade in runs.values():
        grade("1", "1")  # imports
    results: dict[str, list[dict[str, float]]] = {name: [] for name in runs}
    for i in range(rounds):
        for name, grade in runs.items():
            results[name].append(measure(grade, rows))
            print(json.dumps({"round": i, "run": name} | results[name][-1]))
    speeds = {n: statistics.median(r["per_s"] for r in runs_) for n, runs_ in results.items()}
    for name, measured in results.items():
        last = measured[-1]
        print(
            f"{name}: {speeds[name]:,.0f} answers a CPU second, of {len(rows)} "
            f"{last['accepted']:.0f} falsely accepted, {last['refused']:.0f} falsely refused"
        )
    print(f"ratio {speeds['ours'] / speeds['math-verify']:.0f}")


if __name__ == "__main__":
    main()
