"""How fast the simulator is: queries a second of one core, with the very Batcher and Controller of the server.

    python -m benchmarks.simulator_speed

Size law ``production``, 70 % load unless it says otherwise, policy ``adaptive``; the cores are those of this machine's
measured profiles, as many as it says. Prints tables and writes benchmarks/results/simulator_speed.json. Times are CPU
times of this process, the best of three. ``events`` are arrivals and batches together.
"""

from __future__ import annotations

import json
import time
from dataclasses import replace
from typing import Any

import numpy as np

from benchmarks.simulated_case import DATA, RESULTS, load_profile
from scheduler.arrivals import POISSON
from scheduler.controller import Controller
from scheduler.first_plan import untuned_plan
from scheduler.fleet import simulate_fleet
from scheduler.fleet_spec import FleetSpec, Group, Traffic
from scheduler.measure import Sla
from scheduler.plan import POLICIES, OperatingPoint
from scheduler.routers import ROUTERS
from scheduler.service_law import measured
from scheduler.simulator import Node, simulate
from scheduler.sizes import parse_sizes
from scheduler.workload import draw_schedule
from services.fleet.kinds import machine, read_kinds

RESULT = RESULTS / "simulator_speed.json"
SIZES = parse_sizes("production")
QUERIES = 40_000
Row = dict[str, Any]


def speed(
    model: str, *, batch_size: int, steered: bool, cores: int = 2, load: float = 0.7, waiting: int = 0
) -> Row:
    """Time a node. ``waiting``: queries that are there when it begins, so that the queue stays about so long."""
    profile = load_profile(DATA / "profiles", model)
    cpu = profile.backend("cpu")
    fit = cpu.busy.fit()
    mean = float(SIZES.draw(np.random.default_rng(0), 20_000).mean())
    schedule = draw_schedule(1, POISSON, SIZES, load * cores / fit.run_s(mean), count=QUERIES)
    arrival_s = np.concatenate((np.zeros(waiting), schedule.arrival_s[: QUERIES - waiting]))
    plan = replace(untuned_plan(fit, 0.1), point=OperatingPoint(batch_size))
    node = Node(cores, {model: measured(cpu, profile.cores)})
    taken_s = []
    for _ in range(3):
        controller = Controller(cores) if steered else None
        if controller is not None:
            controller.add(model, plan)
        begin = time.process_time()
        run = simulate(
            node,
            POLICIES["adaptive"],
            {model: plan},
            arrival_s,
            schedule.size,
            model,
            max_waiting=1 << 40,
            controller=controller,
        )
        taken_s.append(time.process_time() - begin)
    events = (QUERIES + run.batches) / min(taken_s)
    return {
        "model": model,
        "batch_size": batch_size,
        "steered": steered,
        "cores": cores,
        "load": load,
        "waiting": waiting,
        "batches_per_query": round(run.batches / QUERIES, 2),
        "queries_per_s": round(QUERIES / min(taken_s)),
        "events_per_s": round(events),
    }


def fleet_speed(router: str, nodes: int) -> Row:
    """Time a fleet of two-core nodes at 70 % load, all of them simulated."""
    kind = machine(read_kinds([])["this-machine"], None, 0.0)
    group = Group(kind, nodes, {"rmc1": OperatingPoint(64)})
    spec = FleetSpec(
        (group,),
        (Traffic("rmc1", 1.0, Sla(95.0, 0.1)),),
        285.0 * nodes,
        router=router,
        noise=0.05,
        duration_s=60.0 * 20 / nodes,
        warmup_s=0.0,
    )
    begin = time.process_time()
    seen = simulate_fleet(spec, 1)
    taken_s = time.process_time() - begin
    return {"router": router, "nodes": nodes, "queries_per_s": round(seen.queries / taken_s)}


def show(title: str, rows: list[Row]) -> None:
    print(f"\n{title}")
    for row in rows:
        print("  " + "  ".join(f"{key} {value}" for key, value in row.items()))


def main() -> None:
    one_node = [
        speed(model, batch_size=batch_size, steered=steered)
        for model in ("rmc1", "wnd", "ncf")
        for batch_size in (32, 64, 256)
        for steered in (False, True)
    ]
    show("one node, two cores, 70 % load", one_node)
    by_cores = [speed("rmc1", batch_size=64, steered=False, cores=cores) for cores in (2, 4, 8, 16, 32, 64)]
    show("by cores (large queries are cut over more idle cores: more batches a query)", by_cores)
    by_queue = [
        speed("rmc1", batch_size=64, steered=False, load=1.0, waiting=waiting)
        for waiting in (0, 100, 1000, 10_000)
    ]
    show("by queue length, at a load of 1 so that the queue stays", by_queue)
    fleets = [fleet_speed(router, nodes) for router in ROUTERS for nodes in (20, 300, 1000)]
    show("fleets", fleets)
    result = {"one_node": one_node, "by_cores": by_cores, "by_queue": by_queue, "fleets": fleets}
    RESULT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
