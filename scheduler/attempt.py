"""How long a query may stay with an accelerator before it must go back to the CPU to be in time."""

from __future__ import annotations

import math

from scheduler.query import Query

MARGIN_S = 0.002
"""What handing over and back takes beside the inference itself."""
CPU_MARGIN = 0.25
"""How far the CPU may run behind its prediction, as a share of it."""
TIME_MARGIN = 0.2
"""What is left for a machine that is busy just then, as a share of the time that the query had on arrival."""


def attempt_s(query: Query, cpu_s: float, now: float) -> float:
    """Return the seconds that an attempt may take so that ``cpu_s`` seconds of CPU after it still end in time.

    In time is the client's deadline, or without one the target. At or below 0 there is no time for an attempt.
    """
    plan = query.plan
    assert plan is not None
    end_s = query.expires_s if query.expires_s < math.inf else query.arrival_s + plan.sla_s
    margin_s = MARGIN_S + CPU_MARGIN * cpu_s + TIME_MARGIN * (end_s - query.arrival_s)
    return end_s - now - cpu_s - margin_s


def is_hopeless(query: Query, cpu_s: float, now: float) -> bool:
    """Whether the client's deadline is still to come but the CPU is predicted to miss it; never without one."""
    return now < query.expires_s < now + cpu_s
