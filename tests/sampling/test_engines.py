"""Our engine and the HTTP client against one conformance suite; text, faults, many processes."""

import itertools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT, checked, run, task_rows, write_rows
from engine_conformance import MAX_MODEL_LEN, Conformance, collect, settings_of
from fake_server import PIECES, fake_server

from tinyr1.common.errors import RunStopped, UserError
from tinyr1.common.ranks import Ranks
from tinyr1.evaluate.tasks import make_prompts
from tinyr1.graders.grading import grade
from tinyr1.model.qwen2 import Qwen2
from tinyr1.model.tokenizer import Tokenizer
from tinyr1.record import Prompt
from tinyr1.sampling.engine import TorchEngine
from tinyr1.sampling.options import EngineConfig
from tinyr1.sampling.run import prompt_hashes
from tinyr1.sampling.sampler import SamplingSettings, TextStream, cut_at_stop
from tinyr1.sampling.vllm import VLLM, take_gpus

pytest.importorskip("httpx")
from tinyr1.sampling.openai import OpenAI
from tinyr1.sampling.patience import LONGEST_WAIT_S, asked_wait


@pytest.fixture(scope="module")
def folder(tiny):
    return tiny


@pytest.fixture(scope="module")
def prompts(tiny):
    return make_prompts(checked(task_rows(4)), Tokenizer(tiny), "deepseek_r1", "plain", 3, False)


class TestTorch(Conformance):
    @pytest.fixture
    def make(self, tiny):
        model, tokenizer = Qwen2.from_pretrained(tiny), Tokenizer(tiny)
        return lambda slots=4, **settings: TorchEngine(
            model, tokenizer, settings_of(tiny, **settings), slots, MAX_MODEL_LEN
        )


opened = []


@pytest.fixture(autouse=True)
def close_all():
    yield
    while opened:
        opened.pop().close()


def client(server, folder, slots=4, api="completions", tokenizer=True, patience=60.0, **settings):
    options = {"api": api, "chunk_timeout_s": patience, "backoff_s": 0.01, "attempts": 3}
    sampler = OpenAI(
        server.url,
        "tiny",
        Tokenizer(folder) if tokenizer else None,
        settings_of(folder, **settings),
        slots,
        MAX_MODEL_LEN,
        **options,
    )
    opened.append(sampler)
    return sampler


@pytest.mark.parametrize("style", ["vllm", "plain"])
class TestOpenAI(Conformance):
    @pytest.fixture
    def make(self, tiny, style):
        with fake_server(tiny, max_model_len=MAX_MODEL_LEN, style=style) as server:
            yield lambda **options: client(server, tiny, **options)

    def test_greedy_is_the_same_text_everywhere(self, make, folder, prompts, style):
        """Without token ids and usage the count is that of the text, without its end."""
        theirs = collect(make(temperature=0.0), prompts[::3])
        for key, sample in self.ours(folder, prompts[::3], temperature=0.0).items():
            assert theirs[key].text == sample.text
            assert theirs[key].finish_reason == sample.finish_reason
            if style == "vllm":
                assert theirs[key] == sample

    def test_limits(self, make, prompts, style):
        if style == "plain":
            pytest.skip("counts of text encoded again may differ")
        super().test_limits(make, prompts)

    def test_every_prompt_once_with_its_figures(self, make, prompts, style):
        if style == "plain":
            pytest.skip("counts of text encoded again may differ")
        super().test_every_prompt_once_with_its_figures(make, prompts)


# ---------------------------------------------------------------- the HTTP client


@pytest.mark.parametrize("fault", [429, 500, 503, "cut", "silent", "error", *PIECES])
def test_faults_that_pass_are_retried(tiny, prompts, fault):
    with fake_server(tiny) as server:
        reference = collect(client(server, tiny), prompts[:3])
        asked = len(server.seen)
        server.faults = [fault, fault]
        patience = 1.0 if fault == "silent" else 60.0
        assert collect(client(server, tiny, patience=patience), prompts[:3]) == reference
        assert len(server.seen) >= asked + 5


@pytest.mark.parametrize(
    ("header", "wait"),
    [
        ({}, None),
        ({"retry-after": "2.5"}, 2.5),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0.0),
        (
            {
                "retry-after": "Wed, 21 Oct 2015 07:28:30 GMT",
                "date": "Wed, 21 Oct 2015 07:28:00 GMT",
            },
            30.0,
        ),
        ({"retry-after": "soon"}, None),
        ({"retry-after-ms": "250", "retry-after": "9"}, 0.25),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "-1"}, None),
        ({"retry-after": "1e99"}, LONGEST_WAIT_S),
    ],
)
def test_what_a_server_asks_to_wait(header, wait):
    assert asked_wait(header) == wait


def test_faults_that_stay_end_the_run_by_name(tiny, prompts):
    with fake_server(tiny) as server:
        server.faults = [503] * 3
        with pytest.raises(RunStopped, match=r"math/q-0/0: HTTP 503.*3 attempts"):
            collect(client(server, tiny, slots=1), prompts[:1])
        server.faults = [404]
        with pytest.raises(UserError, match=r"--model-name=tiny: HTTP 404.*no such model"):
            collect(client(server, tiny), prompts[:1])
    with pytest.raises(RunStopped, match="ConnectError"):
        collect(client(server, tiny), prompts[:1])


def test_a_refused_prompt_costs_no_other_its_answer(tiny, prompts):
    with fake_server(tiny) as server:
        server.faults = [None, 400]
        got, one = [], client(server, tiny, slots=1)
        with pytest.raises(RunStopped, match=r"1 requests were not answered; .*HTTP 400"):
            got.extend(itertools.chain.from_iterable(one.generate(prompts[:5])))
        assert len(got) == 4
        server.faults = [400] * 9
        asked = len(server.seen)
        with pytest.raises(UserError, match="HTTP 400"):  # all of them: it is not the prompts
            collect(client(server, tiny, slots=1), prompts[:5])
        assert len(server.seen) == asked + 3


def test_a_prompt_that_always_fails_costs_no_other_its_answer(tiny, prompts):
    with fake_server(tiny) as server:
        server.faults = [500] * 3  # attempts of the first prompt
        got, one = [], client(server, tiny, slots=1)
        with pytest.raises(RunStopped, match=r"1 requests were not answered; .*HTTP 500.*again"):
            got.extend(itertools.chain.from_iterable(one.generate(prompts[:5])))
        assert len(got) == 4
        server.faults = [500] * 1000
        asked = len(server.seen)
        with pytest.raises(RunStopped, match="18 requests were not answered"):  # it is the server
            collect(client(server, tiny, slots=1), prompts * 3)
        assert len(server.seen) == asked + 18 * 3


def test_no_more_requests_at_once_than_slots(tiny, prompts):
    with fake_server(tiny) as server:
        collect(client(server, tiny, slots=3), prompts)
        assert 1 < server.most_running <= 3


@pytest.mark.parametrize("style", ["vllm", "deepseek", "plain"])
def test_chat_puts_the_thought_back_into_its_tags(tiny, world, style):
    """Whether the server splits the reasoning off, and under which name, makes no difference."""
    prompts = make_prompts(checked(task_rows(6)), Tokenizer(tiny), "deepseek_r1", "plain", 2, False)
    with fake_server(tiny, style="plain") as server:
        reference = collect(client(server, tiny, api="chat", seed=1), prompts)
    without_ids = [
        Prompt(p.task, p.id, p.trial, (), p.think_open, messages=p.messages) for p in prompts
    ]
    with fake_server(tiny, style=style) as server:
        got = collect(client(server, tiny, api="chat", tokenizer=False, seed=1), without_ids)
        body = server.seen[0][1]
    assert body["messages"][-1]["role"] == "user"
    assert "prompt" not in body
    assert "top_k" not in body
    thoughts = 0
    for key, sample in got.items():
        whole = reference[key].text
        assert re.sub(r"</?think>|\s", "", sample.text) == re.sub(r"</?think>|\s", "", whole)
        assert sample.finish_reason == reference[key].finish_reason
        if style != "plain" and "</think>" in whole:
            thoughts += 1
            assert sample.text.startswith("<think>")
            assert "</think>" in sample.text or whole.endswith("</think>")
    assert thoughts or style == "plain"


def test_a_thought_that_never_ended_is_no_answer_under_chat(tiny):
    """Chat servers open the thinking themselves: our prompt's `<think>` was never sent."""
    with fake_server(tiny, style="vllm") as server:
        sampler = client(server, tiny, api="chat", tokenizer=False)
        for opened in (True, False):
            answer = sampler._new_answer(Prompt("t", "1", 0, (), opened))
            answer.reasoning, answer.finish_reason = "so \\boxed{5} maybe", "stop"
            sample = sampler._sample(answer)
            assert sample.text == "<think>\nso \\boxed{5} maybe"
            row = {"task": "t", "id": "1", "kind": "math", "prompt": "?", "answer": "5"}
            assert not grade(row, sample.text, "stop", think_open=sample.think_open).correct
        answer.reasoning, answer.content = "", "\ud83d\ude00"  # a character in two pieces
        assert sampler._sample(answer).text == "\U0001f600"


@pytest.mark.parametrize(
    ("options", "key", "message"),
    [
        ({"base_url": "http://localhost:8000:8000/v1"}, "k", "--base-url=http://localhost"),
        ({}, "sk-\nSECRET", "--api-key-env=THE_KEY: what it holds is no key"),
    ],
)
def test_a_bad_address_or_key_is_said_at_once(tiny, monkeypatch, options, key, message):
    monkeypatch.setenv("THE_KEY", key)
    arguments = {"base_url": "http://localhost:1/v1"} | options
    with pytest.raises(UserError) as caught:
        OpenAI(
            **arguments,
            model_name="m",
            tokenizer=Tokenizer(tiny),
            settings=settings_of(tiny),
            slots=1,
            max_model_len=100,
            api_key_env="THE_KEY",
        )
    assert message in str(caught.value)
    assert "SECRET" not in str(caught.value)


def test_an_interrupted_program_does_not_wait_for_a_silent_server(tiny, tmp_path):
    tasks = write_rows(tmp_path / "tasks.jsonl", task_rows(2))
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/v1"
        command = [sys.executable, ROOT / "evaluate.py", tiny, "--engine", "openai"]
        command += ["--base-url", url, "--model-name", "m", "--task-file", tasks]
        command += ["--out", tmp_path / "out", "--preset", "plain", "--max-model-len", "200"]
        command += ["--sandbox", "rlimits"]
        with subprocess.Popen(
            [*map(str, command)],
            # A shell's background job, as these tests may be, ignores the signal.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        ) as program:
            connection, _ = silent.accept()
            try:
                program.send_signal(signal.SIGINT)
                assert program.wait(timeout=60) == 130  # its patience is 300 s
            finally:
                program.kill()
                connection.close()


def test_the_key_goes_to_the_server_and_nowhere_else(tiny, tmp_path):
    tasks = write_rows(tmp_path / "tasks.jsonl", task_rows(2))
    with fake_server(tiny) as server:
        done = run(
            "evaluate.py", tiny, "--engine", "openai",
            "--base-url", server.url, "--model-name", "m",
            "--task-file", tasks, "--out", tmp_path / "out", "--preset", "plain", "--api-key-env",
            "MY_KEY", "--max-tokens", 20, "--max-model-len", 200, "--sandbox", "rlimits",
            env={**os.environ, "MY_KEY": "s3cret-value"},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        headers, body = server.seen[0]
    assert headers["Authorization"] == "Bearer s3cret-value"
    assert body["model"] == "m"
    written = b"".join(p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file())
    assert b"s3cret" not in written
    assert "s3cret" not in done.stderr + done.stdout
    settings = json.loads((tmp_path / "out" / "results.json").read_text())["settings"]
    assert (settings["engine"], settings["model_name"]) == ("openai", "m")
    assert settings["model_fingerprint"] is None


# ---------------------------------------------------------------- text


@pytest.fixture(scope="module")
def bytewise(tmp_path_factory):
    """A tokenizer in which every byte outside of English words is a token of its own."""
    from tokenizers import Tokenizer as Library
    from tokenizers import decoders, models, pre_tokenizers, trainers

    library = Library(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=280, initial_alphabet=alphabet, show_progress=False)
    library.train_from_iterator(["one two three END of it, plain words"] * 9, trainer)
    folder = tmp_path_factory.mktemp("bytewise")
    library.save(str(folder / "tokenizer.json"))
    return Tokenizer(folder)


@pytest.mark.parametrize("text", ["plain words", "naïve café — 数学 😀👩‍👩‍👧 end", "\ufffd", "a😀"])
def test_streamed_text_equals_text_decoded_at_once(bytewise, text):
    ids = bytewise.encode(text)
    stream = TextStream(bytewise)
    pieces = [stream.add(i) for i in ids]
    assert all("\ufffd" not in p for p in pieces) or "\ufffd" in text
    assert "".join(pieces) + stream.finish() == bytewise.decode(ids) == text


def test_tokens_that_come_together_are_streamed_as_one_by_one(bytewise):
    """The last one is half a character; what was whole before it is given out."""
    ids = [*bytewise.encode("one two"), *bytewise.encode("😀")[:-1]]
    end = bytewise.encode(" END")[-1]
    stream = TextStream(bytewise, stop_ids=(end,))
    assert stream.add(*ids, end) == "one two"
    stopped = TextStream(bytewise, (" two",))
    assert (stopped.add(*ids), stopped.add(*ids), stopped.finish()) == ("one", "", "")


def test_half_a_character_at_the_end_is_not_lost(bytewise):
    ids = bytewise.encode("ok 😀")[:-1]
    stream = TextStream(bytewise)
    pieces = [stream.add(i) for i in ids]
    assert "\ufffd" not in "".join(pieces)
    assert "".join(pieces) + stream.finish() == bytewise.decode(ids)


def test_stop_strings_over_token_borders(bytewise):
    text = "one two three END of it"
    for stop in ("three EN", "END of", " ", "one", "it", "tw"):
        stream = TextStream(bytewise, (stop, "ENDE", "onee"))
        shown = ""
        for token in bytewise.encode(text):
            shown += stream.add(token)
            assert text.startswith(shown)
            if stream.stopped:
                break
        assert stream.stopped
        assert shown + stream.finish() == cut_at_stop(text, (stop,)) == text[: text.find(stop)]
    stream = TextStream(bytewise, ("it is",))
    shown = "".join(stream.add(t) for t in bytewise.encode(text))
    assert shown == text[:-2]  # "it" may yet become a stop
    assert shown + stream.finish() == text


# ---------------------------------------------------------------- our engine


@pytest.mark.parametrize("slots", [1, 5, 16])
def test_a_prompt_is_read_once_for_all_its_trials(tiny, slots):
    prompts = make_prompts(
        checked(task_rows(4)), Tokenizer(tiny), "deepseek_r1", "plain", 16, False
    )
    model, tokenizer = Qwen2.from_pretrained(tiny), Tokenizer(tiny)
    engine = TorchEngine(model, tokenizer, settings_of(tiny), slots, MAX_MODEL_LEN)
    samples = collect(engine, prompts)
    assert engine.prompts_read == 4
    assert len(samples) == 64
    if slots != 16:
        other = TorchEngine(model, tokenizer, settings_of(tiny), 16, MAX_MODEL_LEN)
        assert collect(other, prompts) == samples


def test_cache_grows_with_what_is_generated(tiny, prompts):
    model, tokenizer = Qwen2.from_pretrained(tiny), Tokenizer(tiny)
    engine = TorchEngine(model, tokenizer, settings_of(tiny, max_tokens=5), 4, 10**9)
    collect(engine, prompts)
    assert engine.cache.capacity == 128


# ---------------------------------------------------------------- processes


@pytest.fixture(scope="module")
def evaluation(tiny, tmp_path_factory):
    """Arguments of a run, and what one process makes of it."""
    folder = tmp_path_factory.mktemp("runs")
    tasks = write_rows(folder / "tasks.jsonl", task_rows(6, ("math", "science")))
    arguments = [tiny, "--task-file", tasks, "--preset", "plain", "--trials", 3]
    arguments += ["--max-tokens", 60, "--max-model-len", 200, "--slots", 2, "--jobs", 1]
    done = run("evaluate.py", *arguments, "--out", folder / "one")
    assert done.returncode == 0, done.stderr
    return arguments, folder / "one"


def same_results(a, b):
    for name in ("grades.jsonl", "results.json", "report.md", "report.html"):
        assert (a / name).read_bytes() == (b / name).read_bytes(), name
    rows = [sorted((x / "samples.jsonl").read_text().splitlines()) for x in (a, b)]
    assert rows[0] == rows[1]
    assert {p.name for p in a.iterdir()} == {p.name for p in b.iterdir()}


def test_two_ranks_share_the_requests(evaluation, tmp_path):
    arguments, one = evaluation
    done = run("evaluate.py", *arguments, "--out", tmp_path / "two", ranks=2)
    assert done.returncode == 0, done.stderr
    same_results(one, tmp_path / "two")


def test_replicas_are_processes_of_their_own(evaluation, tmp_path):
    arguments, one = evaluation
    done = run("evaluate.py", *arguments, "--out", tmp_path / "two", "--replicas", 2)
    assert done.returncode == 0, done.stderr
    same_results(one, tmp_path / "two")


def test_replicas_that_are_interrupted_or_killed_say_so_in_a_line(evaluation, tmp_path):
    arguments, one = evaluation
    command = [sys.executable, ROOT / "evaluate.py", *arguments, "--out", tmp_path / "two"]
    command += ["--replicas", 2, "--quiet"]
    for victim, said, code in ((None, "interrupted", 130), (0, "was ended by SIGKILL", 1)):
        process = subprocess.Popen(
            list(map(str, command)), stderr=subprocess.PIPE, text=True, start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )  # fmt: skip
        deadline = time.monotonic() + 60
        files = lambda: [*(tmp_path / "two").glob("samples*.jsonl")]  # noqa: E731
        before = sum(f.stat().st_size for f in files())
        while sum(f.stat().st_size for f in files()) <= before and time.monotonic() < deadline:
            time.sleep(0.01)
        children = [
            int(c)
            for c in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        ]
        if victim is None:
            process.send_signal(signal.SIGINT)
        else:
            os.kill(children[victim], signal.SIGKILL)
        _, stderr = process.communicate(timeout=60)
        assert process.returncode == code, stderr
        assert said in stderr
        assert "Traceback" not in stderr
    done = run("evaluate.py", *arguments, "--out", tmp_path / "two")
    assert done.returncode == 0, done.stderr
    same_results(one, tmp_path / "two")


def test_bad_input_that_only_the_replicas_meet_ends_with_2(evaluation, tmp_path):
    arguments, _ = evaluation
    (tmp_path / "two").mkdir()
    (tmp_path / "two" / "samples.jsonl").write_text("[1]\n")
    done = run("evaluate.py", *arguments, "--out", tmp_path / "two", "--replicas", 2)
    assert done.returncode == 2
    assert "samples.jsonl: damaged after byte 0" in done.stderr
    assert "Traceback" not in done.stderr


def test_kill_9_of_two_ranks_and_resume_by_one(evaluation, tmp_path):
    arguments, one = evaluation
    out = tmp_path / "out"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += [str(ROOT / "evaluate.py"), *map(str, arguments), "--out", str(out), "--quiet"]
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(command, start_new_session=True, stdout=quiet, stderr=quiet)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        parts = [*out.glob("samples.rank1.jsonl")]
        if parts and parts[0].stat().st_size and (out / "samples.jsonl").stat().st_size:
            break
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    # On a busy machine the ranks may outlive their parent for a moment, and hold what they own.
    deadline = time.monotonic() + 60
    while True:
        done = run("evaluate.py", *arguments, "--out", out)
        if "another process is writing into it" not in done.stderr or time.monotonic() > deadline:
            break
    assert done.returncode == 0, done.stderr
    same_results(one, out)


def test_what_vllm_aborted_is_missing_not_cut_off(tiny, prompts):
    """Its client without the library: an engine whose every second request is aborted."""
    engine = VLLM.__new__(VLLM)
    engine.tokenizer, engine.settings, engine.slots = Tokenizer(tiny), settings_of(tiny), 2
    engine._running = {}

    def step():
        ended = [
            (p, [5, 6], "abort" if p.trial % 2 else "length") for p in engine._running.values()
        ]
        engine._running.clear()
        return ended

    engine._submit = lambda prompt: engine._running.update({str(prompt.key): prompt})
    engine._step = step
    got = []
    with pytest.raises(RunStopped, match=r"1 requests ended .*'math', 'q-0', 1"):
        got.extend(itertools.chain.from_iterable(engine.generate(prompts[:3])))
    assert [(s.trial, s.finish_reason) for s in got] == [(0, "length"), (2, "length")]


def test_each_replica_sees_its_own_gpus(monkeypatch):
    for rank, mine in ((0, "4,5"), (1, "6,7")):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
        take_gpus(Ranks(rank, rank, 2, 2), 2)
        assert os.environ["CUDA_VISIBLE_DEVICES"] == mine
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6")
    with pytest.raises(UserError, match="3 visible GPUs are not enough"):
        take_gpus(Ranks(1, 1, 2, 2), 2)


def test_ask_streams_one_answer(tiny):
    arguments = ["--max-tokens", 30, "--max-model-len", 100, "--temperature", 0]
    done = run("evaluate.py", tiny, "--ask", "What is 2 + 2?", *arguments)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    done = run("evaluate.py", tiny, "--ask", "x " * 200, *arguments)
    assert done.returncode == 2
    assert "task=ask" in done.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engine": "openai"}, "--base-url: required"),
        ({"engine": "openai", "base_url": "http://x/v1"}, "--model-name: required"),
        ({"engine": "openai", "base_url": "x:1", "model_name": "m"}, "expected http://"),
        ({"replicas": 0}, "--replicas=0"),
        ({"chunk_timeout": 0.0}, "--chunk-timeout=0.0"),
    ],
)
def test_bad_engine_options(options, message):
    with pytest.raises(UserError, match=message):
        EngineConfig(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stop": ("",)}, "--stop=''"),
        ({"stop_ids": (-1,)}, "--stop-token-ids"),
        ({"top_p": 2.0}, "--top-p=2.0"),
        ({"temperature": 1e-5}, "--temperature=1e-05: expected 0"),
        ({"max_tokens": 0}, "--max-tokens=0"),
    ],
)
def test_bad_sampling_settings(options, message):
    with pytest.raises(UserError, match=message):
        SamplingSettings(**options)


def test_prompts_are_told_apart_whatever_their_ids_hold():
    """`a/b`, `c` and `a`, `b/c` are two questions."""
    prompts = [Prompt("a/b", "c", 0, (1,)), Prompt("a", "b/c", 0, (2,))]
    assert len(prompt_hashes(prompts)) == 2


def test_replicas_warn_once(evaluation, tmp_path):
    """What looks for faults before torchrun is started says nothing else."""
    arguments = [2000 if argument == 200 else argument for argument in evaluation[0]]
    done = run("evaluate.py", *arguments, "--out", tmp_path / "two", "--replicas", 2)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("beyond") == 1
