"""Any server that speaks OpenAI's HTTP interface: vLLM, SGLang, DeepSeek's API and others.

`completions` sends our token ids, so the template is ours; `chat` sends messages, for servers that
take nothing else. Answers are streamed, and a time limit holds between two pieces, not for a whole
answer of half an hour. The key comes from an environment variable and is never written anywhere.
"""

from __future__ import annotations

import json
import os
import queue
import random
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from tinyr1 import thinking
from tinyr1.common.errors import RunStopped, UserError, needs
from tinyr1.model.tokenizer import Tokenizer
from tinyr1.record import Prompt, Sample
from tinyr1.sampling.sampler import (
    SamplingSettings,
    Status,
    TextStream,
    cut_at_stop,
    finished_sample,
    request_seed,
)

Api = Literal["completions", "chat"]
REFUSED_AT_ONCE = 3  # refusals before any answer: then it is not the prompts
FAILED_IN_A_ROW = 16  # beyond the requests in flight: then the server does not work
LONGEST_WAIT_S = 3600.0  # whatever a server asks for
RETRIED = {408, 409, 425, 429, 500, 502, 503, 504}


class RetryLater(Exception):
    """The server could not answer now."""

    def __init__(self, reason: str, wait_s: float | None = None, unreachable: bool = False) -> None:
        super().__init__(reason)
        self.wait_s = wait_s
        self.unreachable = unreachable


class Refused(Exception):
    """The server will not answer this request."""


class Failed(Refused):
    """The server did not answer this request, however often it was asked."""


@dataclass
class _Answer:
    """The part of one request's answer that has come."""

    prompt: Prompt
    think_open: bool = False  # the prompt's template had opened the thinking
    reasoning: str = ""
    content: str = ""
    token_ids: list[int] = field(default_factory=list)
    pieces: int = 0
    usage: int | None = None  # completion tokens, as the server counts them
    finish_reason: str | None = None

    def text(self) -> str:
        """One text, the thought in its tags wherever the server put it."""
        text = self.content
        if self.reasoning:
            thought = self.reasoning.strip("\n")
            if self.content:
                text = thinking.join(thought, self.content.lstrip(), self.think_open)
            else:
                text = thinking.unfinished(thought, self.think_open)
        # A character may come in two pieces, as the halves of a surrogate pair.
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


class OpenAI:
    """Samples from a server, `slots` requests at a time."""

    def __init__(
        self,
        base_url: str,
        model_name: str,
        tokenizer: Tokenizer | None,
        settings: SamplingSettings,
        slots: int,
        max_model_len: int | None,
        api: Api = "completions",
        api_key_env: str = "OPENAI_API_KEY",
        chunk_timeout_s: float = 300.0,
        requests_per_minute: float = 0.0,
        attempts: int = 8,
        backoff_s: float = 1.0,
    ) -> None:
        httpx = needs("httpx", "openai", "--engine openai")
        if api == "completions" and tokenizer is None:
            raise UserError("--api=completions: needs MODEL, whose tokenizer makes the prompts")
        self.model_name = model_name
        self.tokenizer = tokenizer
        self.settings = settings
        self.slots = slots
        self.max_model_len = max_model_len
        self.api = api
        self.attempts = attempts
        self.backoff_s = backoff_s
        key = os.environ.get(api_key_env, "").strip()
        if not (key.isascii() and key.isprintable()):
            raise UserError(f"--api-key-env={api_key_env}: what it holds is no key")
        try:
            self._client = httpx.Client(
                base_url=base_url.rstrip("/") + "/",
                headers={"Authorization": f"Bearer {key}"} if key else {},
                timeout=httpx.Timeout(30.0, read=chunk_timeout_s),
                limits=httpx.Limits(max_connections=slots, max_keepalive_connections=slots),
            )
        except httpx.InvalidURL as error:
            raise UserError(f"--base-url={base_url}: {error}") from None
        self._pace = _Pace(requests_per_minute)
        self._running: dict[tuple[str, str, int], _Answer] = {}
        self._closed = threading.Event()
        self._finished_tokens = 0

    @property
    def status(self) -> Status:
        counts = [answer.pieces for answer in list(self._running.values())]
        return Status(self._finished_tokens + sum(counts), len(counts), max(counts, default=0))

    def generate(self, prompts: Iterable[Prompt]) -> Iterator[list[Sample]]:
        """See Sampler. A server that is gone ends the run, after what has come is given.

        A prompt that it refuses or never answers is left out; RunStopped at the end for these.
        """
        waiting = iter(prompts)
        exhausted = False
        refused: list[Refused] = []
        answered = False
        failed_in_a_row = 0
        results: queue.Queue[Sample | BaseException] = queue.Queue()
        in_flight = 0

        def work(prompt: Prompt) -> None:
            try:
                results.put(self._sample(self._ask_patiently(prompt)))
            except BaseException as error:  # it belongs to whoever waits for the sample
                results.put(error)

        try:
            while True:
                while not exhausted and in_flight < self.slots:
                    prompt = next(waiting, None)
                    exhausted = prompt is None
                    if prompt is not None:
                        # A daemon: an interrupted program does not wait for a silent server.
                        threading.Thread(target=work, args=(prompt,), daemon=True).start()
                        in_flight += 1
                if not in_flight:
                    break
                try:
                    result = results.get(timeout=1.0)
                except queue.Empty:
                    yield []
                    continue
                in_flight -= 1
                if isinstance(result, Refused):
                    refused.append(result)
                    failed_in_a_row += isinstance(result, Failed)
                    at_once = len(refused) - failed_in_a_row >= REFUSED_AT_ONCE
                    if (at_once and not answered) or failed_in_a_row > self.slots + FAILED_IN_A_ROW:
                        break
                elif isinstance(result, BaseException):
                    yield [s for s in _waiting(results) if isinstance(s, Sample)]
                    raise result
                else:
                    answered = True
                    failed_in_a_row = 0
                    yield [result]
            if refused and not answered and not isinstance(refused[0], Failed):
                raise UserError(str(refused[0]))
            if refused:
                raise RunStopped(
                    f"{len(refused)} requests were not answered; the first: {refused[0]}; "
                    "finished samples are kept, the same command asks again"
                )
        finally:
            self._closed.set()  # what still waits to try again gives up

    def stream(self, prompt: Prompt) -> Iterator[str]:
        answer = self._new_answer(prompt)
        shown = 0
        s = self.settings
        tokens = None
        if self.tokenizer and self.api == "completions":
            tokens = TextStream(self.tokenizer, s.stop, s.stop_ids)
        for _ in self._ask(answer):
            if tokens and answer.token_ids:
                yield tokens.add(*answer.token_ids[shown:])
                shown = len(answer.token_ids)
                continue
            text = cut_at_stop(answer.text(), s.stop)
            if not text.endswith("\n"):  # a thought's last line break may yet be cut
                yield text[shown:]
                shown = max(shown, len(text))
        if tokens and answer.token_ids:
            yield tokens.finish()
        else:
            yield cut_at_stop(answer.text(), s.stop)[shown:]

    def close(self) -> None:
        self._closed.set()
        self._client.close()

    # ------------------------------------------------------------ one request

    def _new_answer(self, prompt: Prompt) -> _Answer:
        return _Answer(prompt, prompt.think_open and self.api == "completions")

    def _ask_patiently(self, prompt: Prompt) -> _Answer:
        """An answer, after as many attempts as it takes; waits double and are never in step."""
        for attempt in range(1, self.attempts + 1):
            answer = self._running[prompt.key] = self._new_answer(prompt)
            try:
                for _ in self._ask(answer):
                    if self._closed.is_set():
                        raise RunStopped("interrupted")
                return answer
            except RetryLater as error:
                if attempt == self.attempts:
                    said = f"{prompt.task}/{prompt.id}/{prompt.trial}: {error} ({attempt} attempts)"
                    if not error.unreachable:
                        raise Failed(said) from None
                    raise RunStopped(
                        f"{said}; finished samples are kept, the same command continues"
                    ) from None
                wait = self.backoff_s * 2 ** (attempt - 1) * random.uniform(0.5, 1.5)
                self._closed.wait(max(error.wait_s or 0.0, min(wait, 120.0)))
                if self._closed.is_set():
                    raise RunStopped("interrupted") from None
            finally:
                self._running.pop(prompt.key, None)
        raise AssertionError("unreachable")

    def _ask(self, answer: _Answer) -> Iterator[None]:
        """Send one request and fill `answer` as pieces come."""
        import httpx

        self._pace.wait()
        path = "completions" if self.api == "completions" else "chat/completions"
        try:
            with self._client.stream("POST", path, json=self._body(answer.prompt)) as response:
                if response.status_code != 200:
                    response.read()
                    self._refuse(
                        answer.prompt, response.status_code, response.headers, response.text
                    )
                for line in response.iter_lines():
                    if line.startswith("data:") and (data := line[5:].strip()) != "[DONE]":
                        self._take(answer, data)
                        yield
        except httpx.RequestError as error:  # no connection, silence for too long, not to be read
            gone = isinstance(error, httpx.ConnectError | httpx.ConnectTimeout)
            raise RetryLater(f"{type(error).__name__}: {error}", unreachable=gone) from None
        if answer.finish_reason is None:
            raise RetryLater("the stream ended in the middle of an answer")
        if answer.finish_reason == "content_filter":
            raise Refused(f"{answer.prompt.task}/{answer.prompt.id}: stopped by the content filter")
        if answer.finish_reason not in ("stop", "length"):
            raise RetryLater(f"finish_reason={answer.finish_reason}")

    def _refuse(self, prompt: Prompt, status: int, headers: Any, text: str) -> None:
        if status in RETRIED:
            raise RetryLater(f"HTTP {status}: {text[:200]}", asked_wait(headers))
        said = f"HTTP {status}: {text[:300].strip()}"
        if status in (400, 413, 422):  # something in the request
            raise Refused(f"{prompt.task}/{prompt.id}: {said}")
        where = f"--base-url={self._client.base_url} --model-name={self.model_name}"
        raise UserError(f"{where}: {said}")

    def _body(self, prompt: Prompt) -> dict[str, Any]:
        s = self.settings
        limit = self.max_model_len
        body: dict[str, Any] = {
            "model": self.model_name,
            "temperature": s.temperature,
            "top_p": s.top_p,
            "max_tokens": s.limit(prompt, limit) if limit and prompt.tokens else s.max_tokens,
            "seed": request_seed(s.seed, prompt),
            "n": 1,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if s.stop:
            body["stop"] = list(s.stop)
        if s.top_k:
            body["top_k"] = s.top_k
        if self.api == "chat":
            roles = [{"role": m.role, "content": m.content} for m in prompt.messages]
            return body | {"messages": roles}
        # Beyond OpenAI's fields: those of vLLM and SGLang, which take token ids at all.
        extra = {"stop_token_ids": list(s.stop_ids), "return_token_ids": True}
        neutral = {"repetition_penalty": 1.0, "skip_special_tokens": False}
        return body | {"prompt": list(prompt.tokens)} | extra | neutral

    def _take(self, answer: _Answer, data: str) -> None:
        """One server-sent piece."""
        try:
            self._add(answer, json.loads(data))
        except (ValueError, RecursionError, AttributeError, TypeError):
            raise RetryLater(f"a piece that is none of this interface: {data[:100]!r}") from None

    @staticmethod
    def _add(answer: _Answer, piece: dict[str, Any]) -> None:
        """Add a piece to an answer; AttributeError or TypeError where it has another shape."""
        if piece.get("error"):
            raise RetryLater(f"the server says {json.dumps(piece['error'])[:200]}")
        if usage := piece.get("usage"):
            count = usage.get("completion_tokens")
            answer.usage = count if type(count) is int and 0 <= count < 1 << 31 else None
        for choice in piece.get("choices") or ():
            delta = choice.get("delta") or {}
            answer.reasoning += delta.get("reasoning") or delta.get("reasoning_content") or ""
            answer.content += choice.get("text") or delta.get("content") or ""
            ids = choice.get("token_ids") or []
            if not all(type(i) is int and 0 <= i < 1 << 31 for i in ids):
                raise TypeError("token_ids")
            answer.token_ids += ids
            answer.finish_reason = choice.get("finish_reason") or answer.finish_reason
            answer.pieces += 1

    def _sample(self, answer: _Answer) -> Sample:
        prompt, s = answer.prompt, self.settings
        stopped = answer.finish_reason == "stop"
        if answer.token_ids and self.api == "completions" and self.tokenizer:
            sample = finished_sample(prompt, answer.token_ids, stopped, self.tokenizer, s)
            self._finished_tokens += sample.token_count
            return sample
        text = cut_at_stop(answer.text(), s.stop)
        count = answer.usage
        if count is None:
            count = len(self.tokenizer.encode(text)) if self.tokenizer else answer.pieces
        self._finished_tokens += count
        return Sample(
            task=prompt.task,
            id=prompt.id,
            trial=prompt.trial,
            text=text,
            token_count=count,
            finish_reason="stop" if stopped else "length",
            seed=request_seed(s.seed, prompt),
            think_open=answer.think_open,
            choice_order=prompt.choice_order,
        )


def asked_wait(headers: Mapping[str, str]) -> float | None:
    """Seconds that a server asks to wait before the next attempt, None where it says nothing."""
    try:
        wait = float(headers.get("retry-after", ""))
    except ValueError:  # a date, as HTTP allows
        return None
    return min(wait, LONGEST_WAIT_S) if wait >= 0 else None  # NaN is not


def _waiting(results: queue.Queue[Sample | BaseException]) -> Iterator[Sample | BaseException]:
    """Take what lies in a queue now."""
    while True:
        try:
            yield results.get_nowait()
        except queue.Empty:
            return


class _Pace:
    """At most so many requests a minute, evenly."""

    def __init__(self, per_minute: float) -> None:
        self._interval = 60.0 / per_minute if per_minute else 0.0
        self._lock = threading.Lock()
        self._next = 0.0

    def wait(self) -> None:
        with self._lock:
            now = time.monotonic()
            start = max(now, self._next)
            self._next = start + self._interval
        time.sleep(start - now)
