"""When a server may be asked: what all slots of a client share.

A server that is asked too much says so to one request and means all of them. So its pause holds for
every slot, the number of requests at once is halved, and each answer lets it grow again, as TCP
does with a network whose room is not known.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import NamedTuple

LONGEST_WAIT_S = 3600.0  # whatever a server asks for
SPACING = 0.5  # seconds between two refusals of a lone request that count: a server may lag
SMOOTHING = 0.1  # weight of the newest answer in the expected length


class GaveUp(Exception):
    """The run ends while a request waits for its turn."""


class Turn(NamedTuple):
    """A request's turn."""

    start: float
    answers: int  # that there were when it began
    expected: float  # tokens


class Gate:
    """Lets requests through: so many at once, so many and so many tokens a minute."""

    def __init__(
        self,
        slots: int,
        requests_per_minute: float = 0.0,
        tokens_per_minute: float = 0.0,
        expected_tokens: float = 1000.0,
    ) -> None:
        self.slots = slots
        self.room = float(slots)  # requests that the server seems to take at once
        self.answers = 0
        self._running = 0
        self._closed = False
        self._changed = threading.Condition()
        self._request_s = 60.0 / requests_per_minute if requests_per_minute else 0.0
        self._token_s = 60.0 / tokens_per_minute if tokens_per_minute else 0.0
        self._expected = expected_tokens  # of a request, prompt and answer
        self._next_request = self._next_token = self._paused_until = self._slowed = 0.0
        self._pauses = 0  # since the last answer
        self._alone = 0  # of these, for a request that was the only one
        self._counted = 0.0  # when the last of them was

    def enter(self) -> Turn:
        """Wait for a turn; GaveUp where the gate is closed meanwhile."""
        with self._changed:
            while True:
                if self._closed:
                    raise GaveUp
                now = time.monotonic()
                start = max(self._paused_until, self._next_request, self._next_token)
                if start <= now and self._running < max(1, int(self.room)):
                    break
                self._changed.wait(min(start - now, 1.0) if start > now else 1.0)
            self._running += 1
            self._next_request = max(now, self._next_request) + self._request_s
            self._next_token = max(now, self._next_token) + self._expected * self._token_s
            return Turn(now, self.answers, self._expected)

    def leave(self, turn: Turn, tokens: int | None = None) -> None:
        """Give a turn back; with `tokens`, prompt and answer, it was answered."""
        with self._changed:
            self._running -= 1
            if tokens is not None:
                self.answers += 1
                self._pauses = self._alone = 0
                self.room = min(float(self.slots), self.room + 1 / self.room)
                self._next_token += (tokens - turn.expected) * self._token_s
                self._expected += SMOOTHING * (tokens - self._expected)
            self._changed.notify_all()

    def slow_down(self, turn: Turn, wait_s: float | None, backoff_s: float) -> int:
        """The server is busy: nobody asks for `wait_s`, or longer each time if it says nothing.

        Returns how often it said so in a row to a request that it had to itself.
        """
        with self._changed:
            now = time.monotonic()
            if turn.start >= self._slowed:  # it was asked after the last time that it said so
                self._slowed = now
                self._pauses += 1
                self.room = max(1.0, min(self.room, float(self._running)) / 2)
                if self._running == 1 and now - self._counted > SPACING:
                    self._alone += 1
                    self._counted = now
            if wait_s is None:
                wait_s = min(backoff_s * 2.0 ** min(self._pauses - 1, 10), 60.0)
            self._paused_until = max(self._paused_until, now + wait_s)
            return self._alone

    def pause(self, seconds: float) -> None:
        """Nobody asks for so long."""
        with self._changed:
            self._paused_until = max(self._paused_until, time.monotonic() + seconds)

    def close(self) -> None:
        """Nobody is let through any more."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()


def asked_wait(headers: Mapping[str, str]) -> float | None:
    """Seconds that a server asks to wait before the next attempt, None where it says nothing.

    Retry-After has seconds or a date (RFC 9110), retry-after-ms milliseconds.
    """
    said = headers.get("retry-after", "")
    milliseconds = _number(headers.get("retry-after-ms", ""))
    wait = milliseconds / 1000 if milliseconds is not None else _number(said)
    if wait is None and said:
        try:
            then = parsedate_to_datetime(said)
            now = parsedate_to_datetime(headers["date"]) if "date" in headers else None
        except ValueError:
            return None
        if then.tzinfo is None:
            then = then.replace(tzinfo=UTC)
        if now is None or now.tzinfo is None:
            now = datetime.now(UTC)
        wait = max(0.0, (then - now).total_seconds())
    return min(wait, LONGEST_WAIT_S) if wait is not None and wait >= 0 else None  # NaN is not


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
