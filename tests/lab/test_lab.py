"""The laboratory: its world, its tokenizer, and the whole experiment at quick sizes."""

import json
import random
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT, call, fork_server, run, strongest_sandbox

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


class Forked:
    """`subprocess.Popen` as the laboratory uses it; its programs are forks (fork_server.py)."""

    def __init__(self, argv, stdout, stderr, env, cwd):
        launcher = [a for a in argv if a.startswith("--nproc-per-node=")]
        ranks = int(launcher[0].rpartition("=")[2]) if launcher else 1
        first = next(i for i, a in enumerate(argv) if a.endswith(".py"))
        done = fork_server().run(argv[first:], cwd, env, ranks)
        stdout.write((done.stdout + done.stderr).encode())
        self.returncode = done.returncode

    def wait(self):
        return self.returncode

    def poll(self):
        return self.returncode


def laboratory(out, *arguments):
    return call("tinyr1.lab.__main__", "--out", out, "--quick", *arguments)


@pytest.fixture(scope="module")
def quick_lab(tmp_path_factory):
    """A whole laboratory at quick sizes; what a test changes in it, it makes again."""
    out = tmp_path_factory.mktemp("quick") / "lab"
    threads, handler = torch.get_num_threads(), signal.getsignal(signal.SIGTERM)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stages, "subprocess", SimpleNamespace(Popen=Forked))
        done = laboratory(out, "--sandbox", strongest_sandbox())
    torch.set_num_threads(threads)
    signal.signal(signal.SIGTERM, handler)
    assert done.returncode == 0, done.stderr[-2000:]
    return out


def test_the_report_of_a_laboratory(quick_lab):
    results = json.loads((quick_lab / "results.json").read_text())
    assert len(results["models"]) >= 9
    assert len(results["findings"]) >= 15
    report = (quick_lab / "report.md").read_text()
    assert "accuracies mean nothing" in report
    for model in ("math expert", "data mixture", "fusion (math & science) & coding", "linear"):
        assert f"| {model}" in report
    for name in ("report.html", "scores.png", "merge_heat.png"):
        assert (quick_lab / name).stat().st_size > 1000
    assert str(quick_lab.parent) not in report


def test_a_second_run_does_nothing(quick_lab):
    stamp = {p: p.stat().st_mtime_ns for p in quick_lab.rglob("*") if p.is_file()}
    arguments = ["-m", "tinyr1.lab", "--out", quick_lab, "--quick"]
    second = run(*arguments, "--sandbox", strongest_sandbox())
    assert second.returncode == 0, second.stderr
    assert "report:" in second.stdout
    assert {p: p.stat().st_mtime_ns for p in quick_lab.rglob("*") if p.is_file()} == stamp
    other = run(*arguments, "--sandbox", strongest_sandbox(), "--seed", "1")
    assert other.returncode == 2
    assert "seed=1" in other.stderr


def test_a_run_that_was_interrupted_does_not_repeat_what_was_done(quick_lab):
    """It counts what it had spent."""
    jobs = (quick_lab / "stages" / "jobs.jsonl").read_text()
    (quick_lab / "stages" / "merges.json").unlink()
    arguments = ["-m", "tinyr1.lab", "--out", quick_lab, "--quick"]
    again = run(*arguments, "--sandbox", strongest_sandbox())
    assert again.returncode == 0, again.stderr
    assert (quick_lab / "stages" / "jobs.jsonl").read_text() == jobs


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
