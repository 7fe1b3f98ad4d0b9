"""The breaker of one model at one accelerator endpoint: whether queries may be sent there, or only a probe.

A state machine without clock or I/O: every event carries its time. It opens at once when the endpoint is away, and
after a few failures in a row otherwise. While it is open probes ask at growing intervals; one that succeeds closes it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum


class BreakerState(StrEnum):
    """Closed: queries go. Open: none goes. Half-open: a probe is on its way, and its outcome decides."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"


@dataclass(frozen=True, slots=True)
class Patience:
    """How soon a breaker gives up and how often it asks again.

    ``strikes``: failures in a row, without any answer in between, that open it once they span ``silent_s`` seconds, so
    that a few attempts with very little time left are not taken for an outage. ``hang_s``: an endpoint that has calls
    and says nothing for so long hangs, however much time the calls have left. ``first_wait_s``: from the opening to
    the first probe; each probe that fails doubles it, up to ``longest_wait_s``. ``steady_s``: one that opens again
    sooner than this after it closed goes on doubling.
    """

    strikes: int = 3
    silent_s: float = 0.1
    hang_s: float = 1.0
    first_wait_s: float = 0.25
    longest_wait_s: float = 1.0
    steady_s: float = 10.0


class Breaker:
    """Begins open with a probe due at once, since nothing is known yet."""

    __slots__ = (
        "_closed_s",
        "_heard_s",
        "_patience",
        "_silent_since_s",
        "_strikes",
        "_wait_s",
        "probe_due_s",
        "state",
    )

    def __init__(self, patience: Patience | None = None) -> None:
        self._patience = patience or Patience()
        self._strikes = 0
        self._silent_since_s = math.inf  # when the first of the failures in a row was sent
        self._heard_s = -math.inf  # the last answer of any kind
        self._closed_s = -math.inf  # the last time it closed
        self._wait_s = self._patience.first_wait_s
        self.state = BreakerState.OPEN
        self.probe_due_s = -math.inf

    # ---- what became of calls ----

    def answered(self, now: float) -> None:
        """Note an answer, be it a refusal: somebody is there."""
        self._heard_s = now
        self._strikes = 0
        self._silent_since_s = math.inf

    def failed(self, sent_s: float, now: float) -> bool:
        """Note a call that failed or ran out of time; return whether that opened the breaker.

        One that was sent before the last answer came says nothing: the endpoint is slow, not silent.
        """
        if self.state is not BreakerState.CLOSED or sent_s <= max(self._heard_s, self._closed_s):
            return False
        self._strikes += 1
        self._silent_since_s = min(self._silent_since_s, sent_s)
        if self._strikes < self._patience.strikes or now - self._silent_since_s < self._patience.silent_s:
            return False
        self._open(now)
        return True

    def hang_due_s(self, oldest_s: float) -> float:
        """Return when the endpoint hangs if it says nothing until then; ``oldest_s``: when its oldest call was sent."""
        return max(oldest_s, self._heard_s, self._closed_s) + self._patience.hang_s

    def hangs(self, oldest_s: float, now: float) -> bool:
        """Return whether the endpoint hangs, which opens the breaker."""
        if self.state is not BreakerState.CLOSED or now < self.hang_due_s(oldest_s):
            return False
        self._open(now)
        return True

    def away(self, sent_s: float, now: float) -> bool:
        """Note that the endpoint, or the model there, is gone; return whether that opened the breaker.

        A call that was sent before the breaker last closed tells of an outage that is over.
        """
        if self.state is not BreakerState.CLOSED or sent_s <= self._closed_s:
            return False
        self._open(now)
        return True

    # ---- probing ----

    def begin_probe(self, now: float) -> bool:
        """Return whether a probe is to be sent now; it is then on its way until one of the next two is called."""
        if self.state is not BreakerState.OPEN or now < self.probe_due_s:
            return False
        self.state = BreakerState.HALF_OPEN
        return True

    def probe_succeeded(self, now: float) -> None:
        """Close the breaker; ValueError where no probe was on its way."""
        self._end_probe()
        self.state = BreakerState.CLOSED
        self._closed_s = now
        self._strikes = 0
        self._silent_since_s = math.inf

    def probe_failed(self, now: float, wait_s: float | None = None) -> None:
        """Stay open until ``probe_due_s``; ``wait_s`` replaces the growing interval. ValueError without a probe."""
        self._end_probe()
        self.state = BreakerState.OPEN
        self.probe_due_s = now + (self._wait_s if wait_s is None else wait_s)
        self._wait_s = min(2 * self._wait_s, self._patience.longest_wait_s)

    def _end_probe(self) -> None:
        if self.state is not BreakerState.HALF_OPEN:
            raise ValueError(f"no probe is on its way: the breaker is {self.state}")

    def _open(self, now: float) -> None:
        if now - self._closed_s >= self._patience.steady_s:
            self._wait_s = self._patience.first_wait_s
        self.state = BreakerState.OPEN
        self.probe_due_s = now + self._wait_s
