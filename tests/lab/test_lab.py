"""The laboratory: its world, its tokenizer, and the whole experiment at quick sizes."""

import html
import json
import math
import random
import re
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT, call, fork_server, run, strongest_sandbox
from safetensors.torch import load_file

from tinyr1 import thinking
from tinyr1.common.errors import RunStopped
from tinyr1.common.log import Log
from tinyr1.lab import findings, initial, seeds, stages
from tinyr1.lab.world import DOMAINS, World, write_tokenizer
from tinyr1.model.chat import render
from tinyr1.model.tokenizer import Tokenizer
from tinyr1.record import Message
from tinyr1.train import sft


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
        patch.setattr(stages, "ended", lambda child: (child.wait(), 1.0))
        done = laboratory(out, "--sandbox", strongest_sandbox())
    torch.set_num_threads(threads)
    signal.signal(signal.SIGTERM, handler)
    assert done.returncode == 0, done.stderr[-2000:]
    return out


def test_the_report_of_a_laboratory(quick_lab):
    results = json.loads((quick_lab / "results.json").read_text())
    assert len(results["models"]) >= 9
    assert results["findings"] == []  # they would mean nothing
    report = (quick_lab / "report.md").read_text()
    assert "the numbers below mean nothing" in report
    page = (quick_lab / "report.html").read_text()
    assert page.index('class="warned"') < page.index("<table>")
    places = set(re.findall(r'href="([^"]+)"', page))
    assert {"evaluations/initial/report.html", "models/mixture/loss.png"} <= places
    assert "models/fusion_ms_c/README.md" in places
    assert all((quick_lab / place).exists() for place in places)
    question = json.loads((quick_lab / "data" / "heldout.jsonl").read_text().splitlines()[0])
    answers = (quick_lab / "evaluations" / "initial" / "report.html").read_text()
    assert html.escape(question["prompt"]) in answers
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


def test_the_cost_of_a_command_is_its_cpu_seconds(tmp_path, monkeypatch):
    """Those of its own processes too, and not the time that it waits."""
    script = "import os, time\nend = time.process_time() + 0.3\nif os.fork():\n    os.wait()\n"
    script += "    time.sleep(0.5)\nelse:\n    while time.process_time() < end: pass\n"
    script += "open('made', 'w').close()\n"
    (tmp_path / "job.py").write_text(script)
    monkeypatch.setattr(stages, "ROOT", tmp_path)
    lab = stages.Lab(tmp_path / "lab", stages.QUICK, 0, "rlimits", Log(quiet=True))
    assert 0.3 <= lab.run("job", "job.py", "made") < 0.6
    lab.jobs.close()


def test_interrupted_attempts_count(tmp_path, monkeypatch):
    """Their CPU seconds, and the wall seconds of their stage."""
    script = "import time\nend = time.process_time() + 0.2\nwhile time.process_time() < end: pass\n"
    (tmp_path / "job.py").write_text(script + "time.sleep(60)\n")
    monkeypatch.setattr(stages, "ROOT", tmp_path)
    lab = stages.Lab(tmp_path / "lab", stages.QUICK, 0, "rlimits", Log(quiet=True))
    real, calls = stages.ended, []

    def interrupted(child):
        calls.append(child)
        if len(calls) == 1:  # as Ctrl-C does, after a while
            time.sleep(0.5)
            raise KeyboardInterrupt
        return real(child)

    monkeypatch.setattr(stages, "ended", interrupted)
    with pytest.raises(KeyboardInterrupt):
        lab.stage("merges", lambda: {"x": lab.run("job", "job.py", "made")})
    assert 0.2 <= lab.jobs.rows[0]["seconds"] < 1
    assert lab.children[0].returncode == -signal.SIGTERM
    before = json.loads((tmp_path / "lab" / "stages" / "merges.spent.json").read_text())["seconds"]
    assert before >= 0.5
    assert lab.stage("merges", dict)["seconds"] >= before
    assert not (tmp_path / "lab" / "stages" / "merges.spent.json").exists()
    lab.jobs.close()


def test_the_initial_model_goes_on_to_the_same_bits(tmp_path, monkeypatch):
    """Interrupted in each of its two stages."""
    monkeypatch.setattr(initial, "SAVE_EVERY", 2)
    torch.set_num_threads(1)
    schedules = initial.Schedule(4, 3, 0.0, 4), initial.Schedule(1, 3, 0.0, 4)

    def make(name, stop_at=math.inf):
        folder = tmp_path / name
        write_tokenizer(World(0), folder)
        steps = 0

        def train_step(*arguments, **options):
            nonlocal steps
            steps += 1
            if steps > stop_at:
                raise KeyboardInterrupt
            return sft.train_step(*arguments, **options)

        monkeypatch.setattr(initial, "train_step", train_step)
        saved = initial.Saved(tmp_path / f"{name}.pt")
        report = initial.make_initial_model(
            World(0), Tokenizer(folder), folder, 0, schedules, set(), Log(quiet=True), saved
        )
        assert not saved.path.exists()
        return report, load_file(folder / "model.safetensors"), steps

    report, tensors, _ = make("whole")
    for stop_at in (5, 5):  # in pre-training, then, five steps on, in the rough distillation
        with pytest.raises(KeyboardInterrupt):
            make("parts", stop_at)
    again, same, steps = make("parts")
    assert steps < 4
    assert again == report
    assert all(torch.equal(same[name], tensors[name]) for name in tensors)


def outcomes(share, count=300):
    """Verdicts of so many questions: the first ones are right."""
    return {f"q{i}": [i < share * count] for i in range(count)}


@pytest.mark.parametrize(
    ("ours", "other", "paper", "group", "said"),
    [
        (0.8, 0.5, "above", "appeared", "is 30.0 ± 2.7 points above the data mixture on math"),
        (0.5, 0.8, "above", "did not appear", "is 30.0 ± 2.7 points below the data mixture"),
        (0.5, 0.501, "above", "undecided", "points apart on math: no clear difference"),
        (0.5, 0.501, "level", "appeared", "no clear difference (the paper: about level)."),
        (0.8, 0.5, "level", "did not appear", "above the data mixture on math (the paper: about"),
    ],
)
def test_findings_stand_under_what_became_of_them(ours, other, paper, group, said):
    results = findings.Results.__new__(findings.Results)
    results.outcomes = {"linear": {"math": outcomes(ours)}, "mixture": {"math": outcomes(other)}}
    difference = results.compare("linear", "mixture", ["math"])
    found = findings.finding("linear", "mixture", "on math", difference, paper)
    assert found.group == group
    assert found.text.startswith("The linear average ")
    assert said in found.text


def test_seeds_have_means_and_their_spread():
    def run(seed, score):
        tasks = {d: {"pass_at_1": score, "question_se": 0.02} for d in DOMAINS}
        cost = {"core_seconds": {"mixture": 10.0 + seed}, "seconds": 60.0}
        stages_ = {"branches": cost, "merges": {"core_seconds": {}, "seconds": 1.0}}
        return {"seed": seed, "models": {m.folder: tasks for m in stages.MODELS}, "stages": stages_}

    table = seeds.seeds_table([run(0, 0.5), run(1, 0.6), run(2, 0.7)])
    row = next(row for row in table.rows if row[0] == "data mixture")
    assert row[1:] == [*["60.0 ± 10.0 (2.0)"] * 3, "60.0 ± 10.0", "11.0"]
    assert table.rows[0][-1] == "-"


@pytest.mark.slow
def test_two_seeds(tmp_path):
    command = [sys.executable, "-m", "tinyr1.lab", "--out", str(tmp_path / "lab"), "--quick"]
    command += ["--sandbox", strongest_sandbox(), "--seeds", "2", "--seed", "3"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=900)
    assert done.returncode == 0, done.stderr[-2000:]
    page = (tmp_path / "lab" / "report.html").read_text()
    for place in ("seed-3/report.html", "seed-4/report.html"):
        assert f'href="{place}"' in page
        assert (tmp_path / "lab" / place).exists()


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
