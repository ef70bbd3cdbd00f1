"""The HTTP client against servers with moods: what is complete, whose a fault is, when to ask."""

import json
import threading
import time

import pytest
from conftest import checked, run, task_rows, write_rows
from engine_conformance import settings_of
from fake_server import AFTERWARDS, Body, fake_server

from tinyr1.common.errors import RunStopped, UserError
from tinyr1.evaluate.tasks import make_prompts
from tinyr1.model.tokenizer import Tokenizer
from tinyr1.record import Message, Prompt
from tinyr1.sampling import openai, patience
from tinyr1.sampling.answers import LENGTHS, STOPS, Answer, split_lines
from tinyr1.sampling.openai import OpenAI
from tinyr1.sampling.patience import Gate

PROMPT = Prompt("t", "1", 0, (), messages=(Message("user", "?"),))


@pytest.fixture
def client(tiny):
    opened = []

    def make(server, slots=4, **options):
        options = {"api": "chat", "backoff_s": 0.01, "attempts": 3} | options
        said = []
        sampler = OpenAI(
            server if isinstance(server, str) else server.url, "tiny", Tokenizer(tiny),
            settings_of(tiny), slots, 200, said.append, **options,
        )  # fmt: skip
        sampler.said = said
        opened.append(sampler)
        return sampler

    yield make
    for sampler in opened:
        sampler.close()


@pytest.fixture
def prompts(tiny):
    rows = checked(task_rows(6))
    return make_prompts(rows, Tokenizer(tiny), "deepseek_r1", "plain", 1, False)


def gathered(sampler, prompts, got):
    for part in sampler.generate(prompts):
        got += part


def texts(sampler, prompts):
    return {s.key: s.text for part in sampler.generate(prompts) for s in part}


# ---------------------------------------------------------------- lines and pieces


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_lines_end_at_cr_and_lf_only(end, size):
    lines = ["data: a\u2028b\u2029c\x85d\x0be\x0cf\x1cg", "", ": ü", "data: [DONE]"]
    data = end.join(lines).encode()
    chunks = [data[i : i + size] for i in range(0, len(data), size)]
    assert list(split_lines(chunks)) == lines
    assert list(split_lines([*chunks, end.encode()])) == lines


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_line_ends_of_unicode_stand_within_an_answer(tiny, prompts, client, monkeypatch, end):
    with fake_server(tiny, style="plain") as server:
        reference = texts(client(server), prompts)
        server.raw, server.line_end = True, end
        original = server.sample

        def odd(body, chat):
            sample, tokens = original(body, chat)
            text = "\u2028".join(sample.text[i : i + 3] for i in range(0, len(sample.text), 3))
            return type(sample)(**(sample.__dict__ | {"text": text})), tokens

        server.sample = odd
        got = texts(client(server), prompts)
    assert {key: text.replace("\u2028", "") for key, text in got.items()} == reference


@pytest.mark.parametrize("fault", AFTERWARDS)
def test_a_complete_answer_is_one_whatever_comes_after_it(
    tiny, prompts, client, monkeypatch, fault
):
    monkeypatch.setattr(openai, "AFTER_S", 0.2)
    with fake_server(tiny, style="plain") as server:
        reference = texts(client(server), prompts)
        asked = len(server.seen)
        server.faults = [fault] * len(prompts)
        started = time.monotonic()
        assert texts(client(server), prompts) == reference
        assert time.monotonic() - started < 20
        again = sum(not text.strip() for text in reference.values())
        assert len(server.seen) - asked <= len(prompts) + 2 * again  # nothing was asked twice


def whole(text="<think>a</think>b", **choice):
    message = {"message": {"content": text}, "finish_reason": "stop"} | choice
    return Body(json.dumps({"choices": [message], "usage": {"completion_tokens": 5}}))


@pytest.mark.parametrize(
    "fault",
    [
        whole(),
        whole(message={"content": "b", "reasoning_content": "a"}),
        Body(json.dumps(json.loads(whole().text), indent=2), "text/plain"),
    ],
)
def test_a_body_that_is_plain_json_is_the_answer(tiny, prompts, client, fault):
    with fake_server(tiny) as server:
        server.faults = [fault]
        (text,) = texts(client(server), prompts[:1]).values()
    assert text.split("</think>")[-1].strip() == "b"


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (Body('{"error": {"message": "engine\\nis dead"}}'), "the server says '{.*engine.*is dead"),
        (Body("<html>\n\x1b[31mSign in\x07</html>" + "x" * 900, "text/html"), "none of this"),
        (Body('{"object": "list"}'), "a body without an answer: .*object"),
        (Body(""), "ended in the middle of an answer"),
        (whole(text=""), "an answer without text"),
    ],
)
def test_other_bodies_are_quoted_in_a_line_and_asked_again(tiny, prompts, client, fault, said):
    with fake_server(tiny) as server:
        reference = texts(client(server), prompts[:1])
        server.faults = [fault]
        sampler = client(server)
        assert texts(sampler, prompts[:1]) == reference
        (line,) = [text for text in sampler.said if "asked again" in text]
    import re

    assert re.search(said, line)
    assert line.isprintable()
    assert len(line) < 330


# ---------------------------------------------------------------- reasons


@pytest.mark.parametrize("reason", [*sorted(STOPS), "STOP", "End_Turn"])
def test_known_stops_are_stop(reason):
    assert ended(reason) == "stop"


@pytest.mark.parametrize("reason", [*sorted(LENGTHS), "MAX_TOKENS"])
def test_known_lengths_are_length(reason):
    assert ended(reason) == "length"


def ended(reason, text="a"):
    answer = Answer(PROMPT)
    answer.take(f"data: {json.dumps({'choices': [{'text': text, 'finish_reason': reason}]})}")
    return answer.ended()


def test_an_unknown_reason_keeps_the_answer_and_is_said_once(tiny, prompts, client):
    with fake_server(tiny, style="plain") as server:
        reference = texts(client(server), prompts)
        server.reason = "repetition"
        sampler = client(server)
        assert texts(sampler, prompts) == reference
        assert sum("finish_reason=repetition: not known" in text for text in sampler.said) <= 1


@pytest.mark.parametrize("reason", ["abort", "error", "insufficient_system_resource"])
def test_passing_reasons_are_asked_again(tiny, prompts, client, reason):
    with fake_server(tiny) as server:
        reference = texts(client(server), prompts[:1])
        server.faults = [whole(finish_reason=reason)]
        assert texts(client(server), prompts[:1]) == reference


def test_a_content_filter_is_a_refusal_of_that_prompt(tiny, prompts, client):
    with fake_server(tiny) as server:
        server.faults = [None, whole(finish_reason="content_filter")]
        got = []
        with pytest.raises(RunStopped, match=r"1 requests were not answered; .*content filter"):
            gathered(client(server, slots=1), prompts, got)
        assert len(got) == len(prompts) - 1


# ---------------------------------------------------------------- statuses


@pytest.mark.parametrize("status", [408, 409, 425, 429, 500, 503, 520, 529, 599])
def test_passing_statuses_are_asked_again(tiny, prompts, client, status):
    with fake_server(tiny) as server:
        reference = texts(client(server), prompts[:2])
        server.faults = [status, status]
        sampler = client(server)
        assert texts(sampler, prompts[:2]) == reference
        assert sum(f"HTTP {status}" in text for text in sampler.said) == 1  # the first of its kind
        assert sampler.status.usage.retried_answers >= 2


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413])
def test_after_an_answer_a_refusal_is_that_prompts_own(tiny, prompts, client, status):
    with fake_server(tiny) as server:
        server.faults = [None, status]
        got = []
        with pytest.raises(RunStopped, match=rf"1 requests .* the first: .*: HTTP {status}"):
            gathered(client(server, slots=1), prompts, got)
        assert len(got) == len(prompts) - 1


def test_refusals_in_a_row_end_the_run_and_what_is_in_flight_may_finish(tiny, prompts, client):
    many = [Prompt(p.task, f"{p.id}-{i}", 0, p.tokens, messages=p.messages)
            for i in range(10) for p in prompts]  # fmt: skip
    with fake_server(tiny) as server:
        server.faults = [None] * 3 + [402] * 200
        got = []
        with pytest.raises(RunStopped, match=r"requests were not answered; .*HTTP 402"):
            gathered(client(server, slots=2), many, got)
        assert len(got) == 3
        assert len(server.seen) < 20


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_wrong_key_or_address_ends_the_run_at_once(tiny, prompts, client, status):
    with fake_server(tiny) as server:
        server.faults = [status] * 99
        with pytest.raises(UserError, match=rf"--base-url=.* --model-name=tiny: HTTP {status}"):
            texts(client(server, slots=1), prompts)
        assert len(server.seen) <= 2


def test_fields_that_a_server_does_not_know(tiny, prompts, client):
    with fake_server(tiny) as server:
        sampler = client(server, extra_body={"top_k": 3}, omit_fields=("stream_options", "n"))
        texts(sampler, prompts[:1])
        body = server.seen[-1][1]
        assert body["top_k"] == 3
        assert "stream_options" not in body
        assert "n" not in body


# ---------------------------------------------------------------- patience


def test_a_server_that_takes_four_at_once_loses_none_of_160(tiny, client, prompts):
    many = [Prompt(p.task, f"{p.id}-{i}", 0, p.tokens, messages=p.messages)
            for i in range(160 // len(prompts) + 1) for p in prompts][:160]  # fmt: skip
    with fake_server(tiny) as server:
        server.capacity, server.delay_s = 4, 0.01
        sampler = client(server, slots=64)
        got = texts(sampler, many)
        assert len(got) == 160
        assert server.busy  # it was asked too much, and said so
        assert sampler._gate.room < 20


def test_a_server_that_is_always_busy_ends_the_run(tiny, client, prompts):
    with fake_server(tiny) as server:
        server.faults = [429] * 999
        with pytest.raises(RunStopped, match=r"HTTP 429.* \(3 times in a row\); finished samples"):
            texts(client(server, slots=8), prompts)
        assert len(server.seen) < 60


def test_a_pause_holds_for_every_slot_and_room_grows_again():
    gate = Gate(8)
    turns = [gate.enter() for _ in range(8)]
    gate.slow_down(turns[0], 0.3, 1.0)
    gate.slow_down(turns[1], 0.3, 1.0)  # of the same burst: halved once
    assert gate.room == 4
    for turn in turns:
        gate.leave(turn)
    started = time.monotonic()
    turn = gate.enter()
    assert 0.2 < time.monotonic() - started < 5
    for _ in range(40):
        gate.leave(turn, tokens=10)
        turn = gate.enter()
    assert gate.room == 8


def test_what_an_unavailable_server_asks_to_wait_holds_for_all():
    gate = Gate(4)
    gate.pause(0.3)
    started = time.monotonic()
    gate.enter()
    assert 0.2 < time.monotonic() - started < 5


def test_no_more_at_once_than_there_is_room_for():
    gate = Gate(8)
    gate.room = 3.9
    inside = []

    def enter():
        try:
            inside.append(gate.enter())
        except patience.GaveUp:
            inside.append(None)

    threads = [threading.Thread(target=enter) for _ in range(6)]

    def settles(count):
        deadline = time.monotonic() + 30
        while len(inside) < count and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.2)  # in which no further one may come
        return len(inside) == count

    for thread in threads:
        thread.start()
    assert settles(3)
    gate.leave(inside[0], tokens=1)
    assert settles(5)  # an answer makes room for one more
    gate.close()
    for thread in threads:
        thread.join(5)
    assert inside.count(None) == 1


def test_requests_and_tokens_a_minute(monkeypatch):
    clock = [100.0]
    waits = []

    class Condition(threading.Condition().__class__):
        def wait(self, timeout=None):
            waits.append(timeout)
            clock[0] += timeout

    monkeypatch.setattr(patience.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(patience.threading, "Condition", Condition)
    gate = Gate(64, requests_per_minute=30)
    starts = [gate.enter().start for _ in range(4)]
    assert starts == pytest.approx([100, 102, 104, 106])
    clock[0] = 0.0
    gate = Gate(64, tokens_per_minute=6000, expected_tokens=100)
    first = gate.enter()
    gate.leave(first, tokens=600)  # more than was expected: paid for by the next
    assert gate.enter().start == pytest.approx(6.0)


def test_a_dead_address_is_said_within_ten_seconds(prompts, client):
    started = time.monotonic()
    with pytest.raises(RunStopped, match=r"--base-url=http://127.0.0.1:1.*cannot be reached"):
        texts(client("http://127.0.0.1:1/v1", attempts=8, backoff_s=1.0), prompts)
    with pytest.raises(RunStopped, match=r"--base-url=http://127.0.0.1:1"):
        list(client("http://127.0.0.1:1/v1", attempts=8, backoff_s=1.0).stream(prompts[0]))
    assert time.monotonic() - started < 20


def test_a_streamed_answer_has_the_same_patience(tiny, prompts, client):
    with fake_server(tiny) as server:
        reference = "".join(client(server).stream(prompts[0]))
        server.faults = [503, 429, Body('{"error": "no"}')]
        assert "".join(client(server, attempts=5).stream(prompts[0])) == reference
        server.faults = [503] * 9
        with pytest.raises(RunStopped, match="HTTP 503"):
            list(client(server).stream(prompts[0]))
        server.faults = [401]
        with pytest.raises(UserError, match="HTTP 401"):
            list(client(server).stream(prompts[0]))


# ---------------------------------------------------------------- the teacher


def test_a_teacher_meets_it_all_at_once(tiny, tmp_path):
    rows = [{"id": str(i), "domain": "science", "question": f"Name {i}?"} for i in range(40)]
    questions = write_rows(tmp_path / "q.jsonl", rows)
    out = tmp_path / "answers.jsonl"
    (tmp_path / "system.txt").write_text("Be short.\n")
    with fake_server(tiny) as server:
        server.capacity = 4
        server.raw, server.line_end = True, "\r\n"
        server.faults = [
            503, "cut", whole(), Body("<html>", "text/html"), 529, "reset after the reason", 400,
            whole(finish_reason="content_filter"), "[DONE] without a reason", None, "error", 413,
        ]  # fmt: skip
        arguments = ["--questions", questions, "--out", out, "--engine", "openai", "--api", "chat"]
        arguments += ["--model-name", "r1", "--max-tokens", 30, "--slots", 16, "--price", 1e6]
        arguments += ["--prompt-price", 1e6, "--system", tmp_path / "system.txt"]
        arguments += ["--extra-body", '{"top_k": 5}', "--omit-fields", "n"]
        done = run("-m", "tinyr1.teacher", *arguments, "--base-url", server.url)
        assert done.returncode == 1, done.stderr
        assert "Traceback" not in done.stderr
        body = server.seen[-1][1]
        assert body["messages"][0] == {"role": "system", "content": "Be short."}
        assert (body["top_k"], "n" in body) == (5, False)
        meta = json.loads(out.with_suffix(".meta.json").read_text())
        missing = meta["answers_missing"]
        assert 1 <= missing <= 3  # what was refused, and no more
        assert meta["answers"] == 40 - missing
        usage = meta["usage"]
        # One whose connection breaks before it is read counts for us and not for the server.
        assert 0 <= usage["requests"] - len(server.seen) <= 1
        assert usage["retried_answers"] >= 5
        assert meta["cost"] == usage["answer_tokens"] + usage["prompt_tokens"]
        rejected = map(json.loads, out.with_suffix(".rejected.jsonl").read_text().splitlines())
        assert all(isinstance(row["text"], str) for row in rejected)
    with fake_server(tiny) as server:  # another address of the same model goes on
        done = run("-m", "tinyr1.teacher", *arguments, "--base-url", server.url)
        assert done.returncode == 0, done.stderr
        assert missing <= len(server.seen) < 12


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--extra-body", "{"], "--extra-body={: not valid JSON"),
        (["--extra-body", "[1]"], "--extra-body=[1]: expected a JSON object"),
        (["--system", "nowhere.txt"], "nowhere.txt: no such file"),
        (["--tokens-per-minute", "-1"], "--tokens-per-minute=-1.0"),
    ],
)
def test_wrong_options_are_said(tmp_path, arguments, message):
    from conftest import call

    row = {"id": "1", "domain": "math", "question": "?"}
    questions = write_rows(tmp_path / "q.jsonl", [row])
    common = ["--questions", questions, "--out", tmp_path / "o.jsonl", "--engine", "openai"]
    common += ["--api", "chat", "--base-url", "http://127.0.0.1:1/v1", "--model-name", "m"]
    done = call("tinyr1.teacher", *common, *arguments)
    assert done.returncode == 2
    assert message in done.stderr
