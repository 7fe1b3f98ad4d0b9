"""How long a query may stay with an accelerator before it must go back to the CPU to be in time."""

from __future__ import annotations

import math

from scheduler.query import Query

MARGIN_S = 0.002
"""What handing over and back takes beside the inference itself."""
CPU_MARGIN = 0.25
"""How far the CPU may run behind its prediction, as a share of it."""
PATIENCE = 2.0
"""How many targets an attempt may last where nothing is gained by ending it sooner: p99 has that long."""
TIME_MARGIN = 0.2
"""What is left for a machine that is busy just then, as a share of the time that the query had on arrival."""


def attempt_s(query: Query, cpu_s: float, now: float) -> float:
    """Return the seconds that an attempt may take; at or below 0 the CPU keeps the query.

    They leave the CPU, which would take ``cpu_s`` seconds from now, the time to answer after the attempt: before the
    client's deadline, or without one within the target. Where the CPU would miss the deadline in any case, being busy,
    the accelerator is the better hope and has all that is left. A target is no deadline: where the CPU would miss it,
    or leave the accelerator less than half of it, the accelerator has PATIENCE times the target. An answer that comes
    late is not lost, and one that is cut off at the target is later still and has cost both.
    """
    plan = query.plan
    assert plan is not None
    hard = query.expires_s < math.inf
    end_s = query.expires_s if hard else query.arrival_s + plan.sla_s
    if end_s == math.inf:
        return math.inf
    left_s = end_s - now - MARGIN_S
    cautious_s = cpu_s * (1 + CPU_MARGIN)
    spare_s = left_s - cautious_s - TIME_MARGIN * (end_s - query.arrival_s)
    if hard:
        return left_s if cautious_s > left_s else spare_s
    if spare_s < left_s / 2:  # so also where the CPU would miss the target
        return query.arrival_s + PATIENCE * plan.sla_s - now
    return spare_s


def is_hopeless(query: Query, cpu_s: float, now: float) -> bool:
    """Whether the client's deadline is still to come but the CPU is predicted to miss it; never without one."""
    return now < query.expires_s < now + cpu_s
