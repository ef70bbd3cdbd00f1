"""The laboratory: its world, its tokenizer, and the whole experiment at quick sizes."""

import json
import random
import subprocess
import sys

import pytest
from conftest import ROOT, strongest_sandbox

from tinyr1 import thinking
from tinyr1.common.errors import RunStopped
from tinyr1.common.log import Log
from tinyr1.lab import stages
from tinyr1.lab.world import DOMAINS, World
from tinyr1.model.chat import render
from tinyr1.model.tokenizer import Tokenizer
from tinyr1.record import Message


def test_world_is_a_function_of_the_seed():
    def draw(seed):
        rng = random.Random(1)
        return [World(seed).problem(d, rng) for d in DOMAINS]

    assert draw(0) == draw(0) != draw(1)


@pytest.mark.parametrize("domain", DOMAINS)
def test_tokenizer_covers_the_world(tiny, world, domain):
    tokenizer, rng = Tokenizer(tiny), random.Random(2)
    unknown = tokenizer.special("<unk>")
    for i in range(300):
        problem = world.problem(domain, rng, easy=i % 2 == 0)
        for text in (
            world.answer(problem, rng, habit=i % 3 == 0),
            world.hasty_answer(problem, rng),
        ):
            thinking.check(text)
            messages = (Message("user", problem.prompt), Message("assistant", text))
            tokens, is_target = render(tokenizer, messages, "deepseek_r1")
            assert unknown not in tokens
            assert len(tokens) < 128
            target = [t for t, yes in zip(tokens, is_target, strict=True) if yes]
            assert tokenizer.decode(target) == text


def test_quick_laboratory_end_to_end_and_second_run_does_nothing(tmp_path):
    command = [sys.executable, "-m", "tinyr1.lab", "--out", str(tmp_path / "lab"), "--quick"]
    command += ["--sandbox", strongest_sandbox()]
    first = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=400)
    assert first.returncode == 0, first.stderr[-2000:]
    out = tmp_path / "lab"
    results = json.loads((out / "results.json").read_text())
    assert len(results["models"]) >= 9
    assert len(results["findings"]) >= 15
    report = (out / "report.md").read_text()
    assert "accuracies mean nothing" in report
    for model in ("math expert", "data mixture", "fusion (math & science) & coding", "linear"):
        assert f"| {model}" in report
    for name in ("report.html", "scores.png", "merge_heat.png"):
        assert (out / name).stat().st_size > 1000
    assert str(tmp_path) not in report
    stamp = {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file()}
    second = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert second.returncode == 0
    assert "report:" in second.stdout
    assert {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file()} == stamp
    other = subprocess.run([*command, "--seed", "1"], capture_output=True, text=True, cwd=ROOT)
    assert other.returncode == 2
    assert "seed=1" in other.stderr
    # A run that was interrupted counts what it had spent, and does not repeat what was done.
    jobs = (out / "stages" / "jobs.jsonl").read_text()
    (out / "stages" / "merges.json").unlink()
    assert subprocess.run(command, capture_output=True, cwd=ROOT, timeout=60).returncode == 0
    assert (out / "stages" / "jobs.jsonl").read_text() == jobs


def test_a_command_that_was_told_to_stop_is_run_again(tmp_path, monkeypatch):
    """As train.py does: it ends with 0, and what it makes is not there."""
    script = "import pathlib\nseen = pathlib.Path('seen')\n"
    script += "pathlib.Path('made').touch() if seen.exists() else seen.touch()\n"
    (tmp_path / "job.py").write_text(script)
    monkeypatch.setattr(stages, "ROOT", tmp_path)
    out = tmp_path / "lab"
    for _ in range(2):  # another process goes on
        lab = stages.Lab(out, stages.QUICK, 0, "rlimits", Log(quiet=True))
        if not (out / "seen").exists():
            with pytest.raises(RunStopped, match="told to stop"):
                lab.run("job", "job.py", "made")
        else:
            seconds = lab.run("job", "job.py", "made")
            assert lab.run("job", "job.py", "made") == seconds
        lab.jobs.close()
    rows = [json.loads(line) for line in (out / "stages" / "jobs.jsonl").read_text().splitlines()]
    assert [row["done"] for row in rows] == [False, True]
    assert seconds == sum(row["seconds"] for row in rows)


@pytest.mark.slow
def test_figure_2_after_the_experiment(tmp_path):
    command = [sys.executable, "-m", "tinyr1.lab", "--out", str(tmp_path / "lab"), "--quick"]
    command += ["--sandbox", strongest_sandbox(), "--figure2"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=400)
    assert done.returncode == 0, done.stderr[-2000:]
    out = tmp_path / "lab" / "figure2"
    scores = json.loads((out / "results.json").read_text())["models"]
    assert len(scores) == 3 + 11
    assert all(set(s) >= {"math", "science"} for s in scores.values())
    assert "| arcee_fusion paper |" in (out / "report.md").read_text()
    assert (out / "figure2.png").stat().st_size > 1000
