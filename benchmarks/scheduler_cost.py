"""What the scheduler itself costs: microseconds a query in the Batcher and in observing, and the cost of deciding.

    python -m benchmarks.scheduler_cost

Size law ``production`` (a mean of about 110 candidates), one event after the other on one core, no inference. Prints a
table and writes benchmarks/results/scheduler_cost.json.
"""

from __future__ import annotations

import heapq
import json
import time
from pathlib import Path

import numpy as np

from scheduler.arrivals import POISSON
from scheduler.batching import Batcher
from scheduler.controller import Controller, Decision
from scheduler.plan import POLICIES, OperatingPoint, Plan
from scheduler.query import Complete, Instruction, Query, Run
from scheduler.service_law import linear
from scheduler.simulator import Node, simulate
from scheduler.sizes import parse_sizes
from scheduler.workload import draw_schedule

RESULT = Path(__file__).parent / "results" / "scheduler_cost.json"
FIXED_S, PER_CANDIDATE_S = 1e-4, 4e-5
QUERIES = 20_000
SIZES = parse_sizes("production")


def drive(batch_size: int, observed: bool) -> float:
    """Return microseconds a query that batcher and controller take, the clock of the drive itself left out."""
    size = SIZES.draw(np.random.default_rng(1), QUERIES).tolist()
    gap_s = (PER_CANDIDATE_S * float(np.mean(size)) + FIXED_S) / 2 / 0.7
    plan = Plan(OperatingPoint(batch_size), 0.1, FIXED_S, PER_CANDIDATE_S, 3)
    batcher, controller = Batcher(2, POLICIES["adaptive"]), Controller(2)
    batcher.set_plan("m", plan)
    controller.add("m", plan)
    ends: list[tuple[float, int, Run]] = []
    spent_ns, clock = 0, time.perf_counter_ns
    count = 0

    def take(instructions: list[Instruction], now: float) -> int:
        nonlocal count
        done = [i.query for i in instructions if isinstance(i, Complete)]
        for i in instructions:
            if isinstance(i, Run):
                count += 1
                heapq.heappush(ends, (now + plan.run_s(i.batch.size), count, i))
        begin = clock()
        if observed:
            for query in done:
                controller.observe(query, now)
        return clock() - begin

    for k, n in enumerate(size):
        now = k * gap_s
        while ends and ends[0][0] <= now:
            at_s, _, run = heapq.heappop(ends)
            begin = clock()
            instructions = batcher.finish(run.worker, at_s)
            if observed:
                controller.observe_batch(run.batch, at_s - run.batch.started_s)
            spent_ns += clock() - begin + take(instructions, at_s)
        query = Query("m", n, now)
        begin = clock()
        instructions = batcher.arrive(query, now)
        if observed:
            controller.observe_arrival(query, now)
        spent_ns += clock() - begin + take(instructions, now)
    return spent_ns / 1e3 / QUERIES


def deciding(accelerator: bool) -> tuple[float, float]:
    """Return the mean and the longest milliseconds of a window's decision while a simulated minute runs."""
    mean = float(SIZES.draw(np.random.default_rng(0), 20_000).mean())
    schedule = draw_schedule(1, POISSON, SIZES, 1.2 / (PER_CANDIDATE_S * mean + FIXED_S), duration_s=60.0)
    plan = Plan(OperatingPoint(64), 0.05)
    controller = Timed(2)
    controller.add("m", plan, accelerator=accelerator)
    node = Node(2, {"m": linear(FIXED_S, PER_CANDIDATE_S, sigma=0.1)}, {"m": linear(2e-3, 1e-5)})
    simulate(
        node,
        POLICIES["adaptive"],
        {"m": plan},
        schedule.arrival_s,
        schedule.size,
        "m",
        controller=controller,
    )
    return float(np.mean(controller.took_ms)), float(np.max(controller.took_ms))


class Timed(Controller):
    """A controller that notes what its decisions cost."""

    def __init__(self, cores: int) -> None:
        super().__init__(cores)
        self.took_ms: list[float] = []

    def decide(self, now: float) -> list[Decision]:
        """Decide, and note how long it took."""
        begin = time.perf_counter()
        decisions = super().decide(now)
        self.took_ms.append((time.perf_counter() - begin) * 1e3)
        return decisions


def simulated_qps(batch_size: int) -> float:
    """Return the queries that the simulator runs in a second of one core."""
    mean = float(SIZES.draw(np.random.default_rng(0), 20_000).mean())
    schedule = draw_schedule(1, POISSON, SIZES, 1.4 / (PER_CANDIDATE_S * mean + FIXED_S), count=QUERIES)
    plan = Plan(OperatingPoint(batch_size), 0.1, FIXED_S, PER_CANDIDATE_S, 3)
    node = Node(2, {"m": linear(FIXED_S, PER_CANDIDATE_S, sigma=0.1)})
    begin = time.process_time()
    simulate(node, POLICIES["adaptive"], {"m": plan}, schedule.arrival_s, schedule.size, "m")
    return QUERIES / (time.process_time() - begin)


def main() -> None:
    result: dict[str, float] = {}
    for batch_size in (32, 64, 256):
        result[f"batcher_us_per_query_at_{batch_size}"] = min(drive(batch_size, False) for _ in range(3))
        result[f"batcher_and_observe_us_per_query_at_{batch_size}"] = min(
            drive(batch_size, True) for _ in range(3)
        )
        result[f"simulated_queries_per_s_at_{batch_size}"] = simulated_qps(batch_size)
    for name, accelerator in (("cpu", False), ("accelerator", True)):
        result[f"decide_mean_ms_{name}"], result[f"decide_max_ms_{name}"] = deciding(accelerator)
    for key, value in result.items():
        print(f"{key:48} {value:12.4g}")
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps({k: round(v, 3) for k, v in result.items()}, indent=2) + "\n")


if __name__ == "__main__":
    main()
