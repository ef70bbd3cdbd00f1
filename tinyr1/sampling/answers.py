"""One answer of a server with OpenAI's interface, as its pieces come.

An answer is complete at `[DONE]`, or when a finish reason came (its usage may follow); what the
connection does afterwards costs nothing. A body that is plain JSON is one answer, or an error.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from tinyr1 import thinking
from tinyr1.record import FinishReason, Prompt

# What servers call the end of an answer, in small letters.
STOPS = {"stop", "eos", "eos_token", "stop_sequence", "end_turn", "stop_token", "end", "complete"}
LENGTHS = {"length", "max_tokens", "max_length", "max_output_tokens", "model_length", "token_limit"}
REFUSALS = {"content_filter", "safety", "refusal", "prohibited_content", "recitation", "blocklist"}
PASSING = {"abort", "aborted", "error", "insufficient_system_resource", "cancelled", "timeout"}
LONGEST_BODY = 64 << 20  # bytes of an answer that does not come in pieces
_LINE_END = re.compile(rb"\r\n|\n|\r")
_FIELD = re.compile(r"(data|event|id|retry)(:|$)|:")  # of server-sent events; `:` is a comment


class RetryLater(Exception):
    """The server could not answer now. `kind` is what reasons of one kind have in common.

    `wait_s` is what it asks everybody to wait, `unreachable` that there was nobody to ask.
    """

    def __init__(
        self,
        reason: str,
        kind: str = "",
        unreachable: bool = False,
        wait_s: float | None = None,
    ) -> None:
        super().__init__(reason)
        self.kind = kind or reason
        self.unreachable = unreachable
        self.wait_s = wait_s


class Refused(Exception):
    """The server will not answer this request; `fatal` if that may be so of every one."""

    def __init__(self, where: str, reason: str, fatal: bool = False) -> None:
        super().__init__(f"{where}: {reason}")
        self.reason = reason
        self.fatal = fatal


@dataclass
class Answer:
    """The part of one request's answer that has come."""

    prompt: Prompt
    think_open: bool = False  # the prompt's template had opened the thinking
    reasoning: str = ""
    content: str = ""
    token_ids: list[int] = field(default_factory=list)
    pieces: int = 0
    usage: int | None = None  # completion tokens, as the server counts them
    prompt_usage: int | None = None
    finish_reason: str | None = None
    done: bool = False  # [DONE] came
    _body: list[str] = field(default_factory=list)  # lines that are no events
    _body_size: int = 0

    @property
    def is_complete(self) -> bool:
        return self.done or self.finish_reason is not None

    @property
    def token_count(self) -> int:
        """Tokens that have come, as well as it is known."""
        if self.token_ids:
            return len(self.token_ids)
        return self.pieces if self.usage is None else self.usage

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

    def take(self, line: str) -> None:
        """A line of the body; RetryLater where it is none of the interface."""
        if not _FIELD.match(line):
            if line.strip():
                self._body.append(line)
                self._body_size += len(line)
                if self._body_size > LONGEST_BODY:
                    raise RetryLater("an answer without end that is no stream", "no stream")
        elif line.startswith("data:") and (data := line[5:].strip()):
            if data == "[DONE]":
                self.done = True
            elif not self.done:
                self._add(data, "a piece")

    def ended(self) -> FinishReason:
        """How the complete answer ended, "stop" also where the reason is not known.

        Raises RetryLater where it is not complete, or is none; Refused where a filter ended it.
        """
        if not self.is_complete and self._body:
            self._add("\n".join(self._body), "a body")
            if not self.is_complete:
                raise RetryLater(f"a body without an answer: {quoted(self._body)}", "other body")
        if not self.is_complete:
            raise RetryLater("the stream ended in the middle of an answer", "cut off")
        reason = (self.finish_reason or "").lower()
        where = f"{self.prompt.task}/{self.prompt.id}"
        if reason in REFUSALS:
            raise Refused(where, f"stopped by the content filter (finish_reason={reason})")
        if reason in PASSING:
            raise RetryLater(f"finish_reason={self.finish_reason}")
        return "length" if reason in LENGTHS else "stop"

    @property
    def is_empty(self) -> bool:
        """True for a complete answer without text, which a model seldom means."""
        return not (self.text().strip() or self.token_ids)

    @property
    def has_known_end(self) -> bool:
        return (self.finish_reason or "").lower() in STOPS | LENGTHS

    def _add(self, data: str, what: str) -> None:
        try:
            self._add_piece(json.loads(data))
        except (ValueError, RecursionError, AttributeError, TypeError):
            kind = f"{what} of another kind"
            raise RetryLater(
                f"{what} that is none of this interface: {quoted([data])}", kind
            ) from None

    def _add_piece(self, piece: dict[str, Any]) -> None:
        """Add a piece; AttributeError or TypeError where it has another shape."""
        if error := piece.get("error"):
            raise RetryLater(f"the server says {quoted([json.dumps(error)])}", "an error")
        if usage := piece.get("usage"):
            self.usage = _count(usage.get("completion_tokens"))
            self.prompt_usage = _count(usage.get("prompt_tokens"))
        for choice in piece.get("choices") or ():
            said = choice.get("delta") or choice.get("message") or {}
            self.reasoning += said.get("reasoning") or said.get("reasoning_content") or ""
            self.content += choice.get("text") or said.get("content") or ""
            ids = choice.get("token_ids") or []
            if not all(type(i) is int and 0 <= i < 1 << 31 for i in ids):
                raise TypeError("token_ids")
            self.token_ids += ids
            reason = choice.get("finish_reason")
            if reason is not None and not isinstance(reason, str):
                raise TypeError("finish_reason")
            self.finish_reason = reason or self.finish_reason
            self.pieces += 1


def _count(value: Any) -> int | None:
    return value if type(value) is int and 0 <= value < 1 << 31 else None


def quoted(lines: Iterable[str]) -> str:
    """The beginning of a body, for one line of a message: no control codes."""
    text = " ".join(lines)[:2000]
    plain = "".join(c if c.isprintable() else " " for c in text)
    return repr(" ".join(plain.split())[:200])


def split_lines(chunks: Iterable[bytes]) -> Iterator[str]:
    """Lines that end at CR, LF or CRLF, and at nothing else that Unicode calls a line's end."""
    held: list[bytes] = []
    for chunk in chunks:
        if held and held[-1].endswith(b"\r"):  # whose LF may be the next chunk's first byte
            chunk = held.pop() + chunk
        if b"\n" not in chunk and b"\r" not in chunk:
            held.append(chunk)
            continue
        *lines, rest = _LINE_END.split(chunk)
        if chunk.endswith(b"\r"):
            rest = lines.pop() + b"\r"
        for line in lines:
            yield b"".join([*held, line]).decode("utf-8", "replace")
            held.clear()
        if rest:
            held.append(rest)
    if held:
        yield b"".join(held).decode("utf-8", "replace").rstrip("\r")
