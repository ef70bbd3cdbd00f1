"""Graded tests per second beside LiveCodeBench's style (in this process) and plain subprocesses.

    python tests/bench/bench_grading.py --tests 200 --jobs 2

One small program reads numbers and prints their sum, after the same import preamble everywhere.
Runs, interleaved: `ours` at each level that this machine gives; `subprocess`, a fresh interpreter a
test without any isolation; `in process`, exec in this interpreter, which isolates nothing. `start`
is an interpreter that runs the preamble alone: what no fresh process can be faster than.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tinyr1.graders.code import grade_program
from tinyr1.graders.sandbox import SandboxUnavailable, open_sandbox
from tinyr1.record import ProgramTests, TaskRow

PREAMBLE = """from string import *
from re import *
from datetime import *
from collections import *
from heapq import *
from bisect import *
from copy import *
from math import *
from random import *
from statistics import *
from itertools import *
from functools import *
from operator import *
from io import *
from sys import *
from json import *
from builtins import *
from typing import *
import string, re, datetime, collections, heapq, bisect, copy, math, random, statistics
import itertools, functools, operator, io, sys, json
"""
PROGRAM = "print(sum(int(x) for x in input().split()))"
ROW = TaskRow("bench", "0", "code", "", tests=ProgramTests(("1 2 3\n",), ("6\n",)))


def ours(level: str) -> Callable[[], None]:
    def one() -> None:
        assert grade_program(PROGRAM, ROW, open_sandbox(level)) == ""

    return one


def process(program: str, expected: str) -> Callable[[], None]:
    def one() -> None:
        command = [sys.executable, "-I", "-S", "-B", "-c", PREAMBLE + program]
        done = subprocess.run(command, input=b"1 2 3\n", capture_output=True, timeout=30)
        assert done.stdout.decode() == expected

    return one


def in_process() -> None:
    out, stdin = io.StringIO(), sys.stdin
    sys.stdin = io.StringIO("1 2 3\n")
    try:
        with contextlib.redirect_stdout(out):
            exec(PREAMBLE + PROGRAM, {})
    finally:
        sys.stdin = stdin
    assert out.getvalue() == "6\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tests", type=int, default=200)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    runs = {"start": process("", ""), "subprocess": process(PROGRAM, "6\n")}
    for level in ("rlimits", "namespaces"):
        try:
            open_sandbox(level)
            runs[f"ours, {level}"] = ours(level)
        except SandboxUnavailable as error:
            print(f"# {error}")
    seconds: dict[str, list[float]] = {name: [] for name in (*runs, "in process")}
    print(f"# {args.tests} tests a run, {args.jobs} at once, Python {sys.version.split()[0]}")
    for i in range(args.rounds):
        for name, one in (*runs.items(), ("in process", in_process)):
            jobs = 1 if name == "in process" else args.jobs  # it owns this interpreter's streams
            started = time.perf_counter()
            with ThreadPoolExecutor(jobs) as pool:
                for future in [pool.submit(one) for _ in range(args.tests)]:
                    future.result()
            seconds[name].append(time.perf_counter() - started)
            row = {"round": i, "run": name, "s": round(seconds[name][-1], 3)}
            print(json.dumps(row), flush=True)
    print("\n| run | tests per second | ms a test over an interpreter's start |\n|---|---:|---:|")
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    for name, median in medians.items():
        jobs = 1 if name == "in process" else args.jobs
        over = 1000 * (median * jobs - medians["start"] * args.jobs) / args.tests
        print(f"| {name} | {args.tests / median:,.0f} | {over:+.1f} |")


if __name__ == "__main__":
    main()
