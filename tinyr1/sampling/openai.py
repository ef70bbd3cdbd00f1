"""Any server that speaks OpenAI's HTTP interface: vLLM, SGLang, DeepSeek's API and others.

`completions` sends our token ids, so the template is ours; `chat` sends messages, for servers that
take nothing else. Answers are streamed (answers.py), and a time limit holds between two pieces, not
for a whole answer of half an hour; when a request is sent is decided for all slots together
(patience.py). The key comes from an environment variable and is never written anywhere.
"""

from __future__ import annotations

import contextlib
import os
import queue
import random
import re
import socket
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tinyr1.common.errors import RunStopped, UserError, needs
from tinyr1.model.tokenizer import Tokenizer
from tinyr1.record import Prompt, Sample
from tinyr1.sampling.answers import Answer, Refused, RetryLater, quoted, split_lines
from tinyr1.sampling.patience import Gate, GaveUp, asked_wait
from tinyr1.sampling.sampler import (
    SamplingSettings,
    Status,
    TextStream,
    Usage,
    cut_at_stop,
    finished_sample,
    request_seed,
)

Api = Literal["completions", "chat"]
REFUSED_AT_ONCE = 3  # refusals before any answer: then it is not the prompts
REFUSED_IN_A_ROW = 8  # refusals after answers: then it is not the prompts either
FAILED_IN_A_ROW = 16  # beyond the requests in flight: then the server does not work
CONNECT_S = 4.0  # to a server that was never reached, twice: a wrong address is said in ten seconds
AFTER_S = 5.0  # for the usage that may follow a complete answer
EMPTY_ATTEMPTS = 2  # after which an answer without text is what the model means
BUSY = 429
PASSING = {408, 409, 425}  # and every 5xx
IN_THE_REQUEST = {400, 413, 422}  # what may be wrong with one prompt
_UNKNOWN_FIELD = re.compile(
    r"unknown|unrecognized|unexpected|extra[_ ](?:fields?|inputs?|forbidden)|not permitted|"
    r"unsupported (?:parameter|field)|additional propert",
    re.IGNORECASE,
)


class Busy(Exception):
    """The server takes no more requests for now."""

    def __init__(self, reason: str, wait_s: float | None) -> None:
        super().__init__(reason)
        self.wait_s = wait_s


class Failed(Refused):
    """The server did not answer this request, however often it was asked."""


@dataclass(frozen=True)
class ServerOptions:
    """What a server is asked beyond its address: what its requests hold and how often they come."""

    api: Api = "completions"
    api_key_env: str = "OPENAI_API_KEY"
    chunk_timeout_s: float = 300.0
    requests_per_minute: float = 0.0
    tokens_per_minute: float = 0.0
    attempts: int = 8
    backoff_s: float = 1.0
    extra_body: dict[str, Any] | None = None  # fields added to each request
    omit_fields: tuple[str, ...] = ()  # fields left out of it


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
        warn: Callable[[str], None] = lambda text: None,
        **options: Any,
    ) -> None:
        httpx = needs("httpx", "openai", "--engine openai")
        self.options = o = ServerOptions(**options)
        if o.api == "completions" and tokenizer is None:
            raise UserError("--api=completions: needs MODEL, whose tokenizer makes the prompts")
        self.model_name = model_name
        self.tokenizer = tokenizer
        self.settings = settings
        self.slots = slots
        self.max_model_len = max_model_len
        key = os.environ.get(o.api_key_env, "").strip()
        if not (key.isascii() and key.isprintable()):
            raise UserError(f"--api-key-env={o.api_key_env}: what it holds is no key")
        try:
            self._client = httpx.Client(
                base_url=base_url.rstrip("/") + "/",
                headers={"Authorization": f"Bearer {key}"} if key else {},
                timeout=httpx.Timeout(30.0, read=o.chunk_timeout_s, connect=CONNECT_S),
                limits=httpx.Limits(max_connections=slots, max_keepalive_connections=slots),
            )
        except httpx.InvalidURL as error:
            raise UserError(f"--base-url={base_url}: {error}") from None
        expected = min(settings.max_tokens, 4000)
        self._gate = Gate(slots, o.requests_per_minute, o.tokens_per_minute, expected)
        self._running: dict[tuple[str, str, int], Answer] = {}
        self._closed = threading.Event()
        self._lock = threading.Lock()
        self._warn = warn
        self._told: set[str] = set()
        self.usage = Usage()

    @property
    def status(self) -> Status:
        counts = [answer.pieces for answer in list(self._running.values())]
        tokens = self.usage.answer_tokens - self.usage.retried_tokens + sum(counts)
        return Status(tokens, len(counts), max(counts, default=0), self.usage)

    def generate(self, prompts: Iterable[Prompt]) -> Iterator[list[Sample]]:
        """See Sampler. A server that is gone ends the run, after what is in flight has come.

        A prompt that it refuses or never answers is left out; RunStopped at the end for these.
        """
        waiting = iter(prompts)
        results: queue.Queue[Sample | BaseException] = queue.Queue()
        in_flight = 0
        refused: list[Refused] = []
        in_a_row: list[Refused] = []  # since the last answer
        answered = False
        end: BaseException | None = None  # for which nothing more is asked

        def work(prompt: Prompt) -> None:
            try:
                results.put(self._sample(self._ask_patiently(prompt)))
            except BaseException as error:  # it belongs to whoever waits for the sample
                results.put(error)

        try:
            while True:
                while end is None and in_flight < self.slots:
                    prompt = next(waiting, None)
                    if prompt is None:
                        break
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
                if isinstance(result, Sample):
                    answered = True
                    in_a_row.clear()
                    yield [result]
                elif isinstance(result, Refused):
                    refused.append(result)
                    in_a_row.append(result)
                    end = end or self._too_many(in_a_row, answered)
                elif not isinstance(result, GaveUp):
                    end = end or result
                if end is not None:
                    self._gate.close()  # who waits to ask again gives up; what is in flight may end
            if isinstance(end, UserError) and answered:
                end = None  # it was not the address, nor the key
            if end is not None:
                raise end
            if refused:
                raise RunStopped(
                    f"{len(refused)} requests were not answered; the first: {refused[0]}; "
                    "finished samples are kept, the same command asks again"
                )
        finally:
            self._closed.set()
            self._gate.close()

    def _too_many(self, in_a_row: Sequence[Refused], answered: bool) -> BaseException | None:
        """What ends the run after these refusals, None where they may be the prompts' own."""
        failed = sum(isinstance(why, Failed) for why in in_a_row)
        first = in_a_row[0]
        if not answered and (first.fatal or len(in_a_row) - failed >= REFUSED_AT_ONCE):
            return UserError(self._named(first.reason) if first.fatal else str(first))
        limit = FAILED_IN_A_ROW if failed == len(in_a_row) else REFUSED_IN_A_ROW
        if len(in_a_row) <= limit + (self.slots if failed else 0):
            return None
        return RunStopped(
            f"{len(in_a_row)} requests were not answered; the first: {first}; finished samples are "
            "kept, the same command asks again"
        )

    def _named(self, why: object) -> str:
        return f"--base-url={self._client.base_url} --model-name={self.model_name}: {why}"

    def stream(self, prompt: Prompt) -> Iterator[str]:
        shown = ""
        for attempt in range(1, self.options.attempts + 1):
            answer = self._new_answer(prompt)
            try:
                for piece in self._texts(answer):
                    shown += piece
                    yield piece
                answer.ended()
                return
            except (RetryLater, Busy) as error:
                gone = isinstance(error, RetryLater) and error.unreachable and attempt > 1
                if shown or gone or attempt == self.options.attempts:
                    raise RunStopped(self._named(error)) from None
                self._pause(attempt, error.wait_s or 0.0)
            except Refused as error:
                raise UserError(self._named(error)) from None

    def _texts(self, answer: Answer) -> Iterator[str]:
        """An answer's text as it comes."""
        shown = 0
        s = self.settings
        tokens = None
        if self.tokenizer and self.options.api == "completions":
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

    def _new_answer(self, prompt: Prompt) -> Answer:
        return Answer(prompt, prompt.think_open and self.options.api == "completions")

    def _ask_patiently(self, prompt: Prompt) -> Answer:
        """An answer, after as many attempts as it takes."""
        where = f"{prompt.task}/{prompt.id}/{prompt.trial}"
        attempt = 0
        while True:
            turn = self._gate.enter()
            answer = self._running[prompt.key] = self._new_answer(prompt)
            tokens = None
            try:
                for _ in self._ask(answer):
                    if self._closed.is_set():
                        raise RunStopped("interrupted")
                answer.ended()
                if answer.is_empty and attempt < EMPTY_ATTEMPTS:
                    raise RetryLater("an answer without text", "no text")
                tokens = answer.token_count + self._prompt_tokens(answer)
                return answer
            except Busy as error:
                # A matter of time, and of the server: no attempt of this request.
                pauses = self._gate.slow_down(turn, error.wait_s, self.options.backoff_s)
                if pauses >= self.options.attempts:
                    raise RunStopped(
                        f"{where}: {error} ({pauses} times in a row); finished samples are kept, "
                        "the same command continues"
                    ) from None
                failure: Exception = error
            except RetryLater as error:
                attempt += 1
                failure = error
                self._gate.pause(error.wait_s or 0.0)
                if error.unreachable and attempt > 1 and not self._gate.answers:
                    raise RunStopped(self._named(f"cannot be reached ({error})")) from None
            finally:
                self._count(answer, is_answer=tokens is not None)
                self._running.pop(prompt.key, None)
                self._gate.leave(turn, tokens)
            self._tell(failure)
            if attempt >= self.options.attempts:
                said = f"{failure} ({attempt} attempts)"
                if not getattr(failure, "unreachable", False):
                    raise Failed(where, said) from None
                raise RunStopped(
                    f"{where}: {said}; finished samples are kept, the same command continues"
                ) from None
            if isinstance(failure, RetryLater):  # of a busy server the gate knows when
                self._pause(attempt)

    def _pause(self, attempt: int, asked_s: float = 0.0) -> None:
        """Wait, double each time and never in step with others."""
        wait = self.options.backoff_s * 2 ** (attempt - 1) * random.uniform(0.5, 1.5)
        self._closed.wait(max(asked_s, min(wait, 120.0)))

    def _tell(self, failure: Exception) -> None:
        """The first failure of each kind, aloud."""
        kind = failure.kind if isinstance(failure, RetryLater) else "busy"
        with self._lock:
            first = kind not in self._told
            self._told.add(kind)
        if first:
            self._warn(f"asked again: {failure}")

    def _count(self, answer: Answer, is_answer: bool) -> None:
        """Add a request to the usage: what was answered and thrown away is paid for, too."""
        tokens = answer.token_count
        if is_answer and answer.usage is None and not answer.token_ids and self.tokenizer:
            tokens = len(self.tokenizer.encode(answer.text()))
        with self._lock:
            self.usage.requests += 1
            self.usage.answer_tokens += tokens
            self.usage.prompt_tokens += self._prompt_tokens(answer) if tokens or is_answer else 0
            if not is_answer:
                self.usage.retried_answers += 1
                self.usage.retried_tokens += tokens

    def _prompt_tokens(self, answer: Answer) -> int:
        return len(answer.prompt.tokens) if answer.prompt_usage is None else answer.prompt_usage

    def _ask(self, answer: Answer) -> Iterator[None]:
        """Send one request and fill `answer` as pieces come."""
        import httpx

        path = "completions" if self.options.api == "completions" else "chat/completions"
        with contextlib.ExitStack() as stack:
            try:
                body = self._body(answer.prompt)
                response = stack.enter_context(self._client.stream("POST", path, json=body))
                if response.status_code != 200:
                    response.read()
                    self._refuse(
                        answer.prompt, response.status_code, response.headers, response.text
                    )
                limited = False
                for line in split_lines(response.iter_bytes()):
                    answer.take(line)
                    if answer.is_complete and not limited:
                        limited = True
                        stack.enter_context(_no_longer_than(AFTER_S, response))
                    yield
            except (httpx.HTTPError, httpx.StreamError, OSError) as error:
                if answer.is_complete:
                    return  # what the connection does now costs nothing
                gone = isinstance(error, httpx.ConnectError | httpx.ConnectTimeout)
                kind = type(error).__name__
                raise RetryLater(f"{kind}: {error}", kind, unreachable=gone) from None

    def _refuse(self, prompt: Prompt, status: int, headers: Any, text: str) -> None:
        said = f"HTTP {status}: {quoted([text])}"
        if status == BUSY:
            raise Busy(said, asked_wait(headers))
        if status >= 500 or status in PASSING:
            raise RetryLater(said, f"HTTP {status}", wait_s=asked_wait(headers))
        if status == 400 and _UNKNOWN_FIELD.search(text):
            said += "; --omit-fields leaves fields out, --api chat sends fewer"
        in_the_request = status in IN_THE_REQUEST
        raise Refused(f"{prompt.task}/{prompt.id}", said, fatal=not in_the_request)

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
        if self.options.api == "chat":
            body["messages"] = [{"role": m.role, "content": m.content} for m in prompt.messages]
        else:
            body["prompt"] = list(prompt.tokens)
            # Beyond OpenAI's fields: those of vLLM and SGLang, which take token ids at all.
            body |= {"stop_token_ids": list(s.stop_ids), "return_token_ids": True}
            body |= {"repetition_penalty": 1.0, "skip_special_tokens": False}
        body |= self.options.extra_body or {}
        return {name: v for name, v in body.items() if name not in self.options.omit_fields}

    def _sample(self, answer: Answer) -> Sample:
        prompt, s = answer.prompt, self.settings
        finish_reason = answer.ended()
        if not answer.has_known_end:
            named = answer.finish_reason or "[DONE] without one"
            with self._lock:
                first = named not in self._told
                self._told.add(named)
            if first:
                self._warn(f"finish_reason={named}: not known; its answers are kept as complete")
        if answer.token_ids and self.options.api == "completions" and self.tokenizer:
            stopped = finish_reason == "stop"
            return finished_sample(prompt, answer.token_ids, stopped, self.tokenizer, s)
        text = cut_at_stop(answer.text(), s.stop)
        count = answer.usage
        if count is None:
            count = len(self.tokenizer.encode(text)) if self.tokenizer else answer.pieces
        return Sample(
            task=prompt.task,
            id=prompt.id,
            trial=prompt.trial,
            text=text,
            token_count=count,
            finish_reason=finish_reason,
            seed=request_seed(s.seed, prompt),
            think_open=answer.think_open,
            choice_order=prompt.choice_order,
        )


@contextlib.contextmanager
def _no_longer_than(seconds: float, response: Any) -> Iterator[None]:
    """End the connection of a response that is read for longer."""

    def end() -> None:
        stream = response.extensions.get("network_stream")
        connection = stream.get_extra_info("socket") if stream is not None else None
        if connection is not None:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
