"""What a run records: codes, a look at it under way, and the trace that it leaves."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import grpc
import numpy as np
from numpy.typing import NDArray

from scheduler.measure import percentiles

OK = 0
NOT_SENT = -1
"""The run ended before the query's time came."""
UNFINISHED = -2
"""Still without an answer when the run ended."""
DROPPED = -3
"""Not sent, because too many queries were in flight for the driver's memory."""

_GRPC_NAMES = {code.value[0]: code.name for code in grpc.StatusCode}
_OWN_NAMES = {NOT_SENT: "NOT_SENT", UNFINISHED: "UNFINISHED", DROPPED: "DROPPED_BY_DRIVER"}


def code_name(code: int) -> str:
    """Return the name of a recorded code: gRPC's, or one of the driver's own below 0."""
    return _OWN_NAMES.get(code) or _GRPC_NAMES.get(code) or str(code)


@dataclass(frozen=True, eq=False)
class Progress:
    """A look at a run under way.

    codes: how many queries ended with each code. latest_s: float64, latencies of the latest answers and failures (at
    most 2000), the latter infinite; of these are the percentiles.
    """

    elapsed_s: float
    total_s: float
    sent: int
    total: int
    codes: dict[str, int]
    latest_s: NDArray[np.float64]

    @cached_property
    def _tail(self) -> tuple[float, ...]:
        return percentiles(self.latest_s, 50, 95, 99)

    @property
    def p50_s(self) -> float:
        """The median of the latest latencies."""
        return self._tail[0]

    @property
    def p95_s(self) -> float:
        """The 95th percentile of the latest latencies."""
        return self._tail[1]

    @property
    def p99_s(self) -> float:
        """The 99th percentile of the latest latencies."""
        return self._tail[2]


@dataclass(frozen=True, eq=False)
class Trace:
    """What a run recorded. All arrays are [K], one entry per kept query in the order of the plan.

    query: int64, index in the plan. scheduled_s: seconds from the start. latency_s: from the scheduled time, infinite
    without an answer. lag_s: how late it was sent, NaN if never. code: int16, see ``code_name``.
    wall_s, cpu_s: seconds that the run took, and CPU seconds of the driving processes over it. cut_short: why the run
    ended early, None if it did not; then only queries that got an answer or a failure are kept.
    """

    query: NDArray[np.int64]
    scheduled_s: NDArray[np.float64]
    latency_s: NDArray[np.float64]
    lag_s: NDArray[np.float64]
    code: NDArray[np.int16]
    wall_s: float
    cpu_s: float
    cut_short: str | None
