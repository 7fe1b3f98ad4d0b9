"""One model under one policy: calibrate, measure live, simulate, compare."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.fidelity.calibration import Ran, front_end_s, profile_of
from benchmarks.live.findings import Findings
from benchmarks.live.search import capacity, held, probe
from benchmarks.live.served import linked, served
from benchmarks.live.throughput import LIKELY_SHARE, SIZES, lone, targets_ms, tuned_offline
from benchmarks.serving_cost import Child, child
from scheduler.controller import Controller
from scheduler.first_plan import untuned_plan
from scheduler.latency import LatencyProfile
from scheduler.measure import Measurement, Sla, max_qps, summarise
from scheduler.plan import POLICIES, OperatingPoint, Plan
from scheduler.service_law import measured
from scheduler.simulator import Node, simulate
from scheduler.tune import static_point
from scheduler.workload import POISSON, PRODUCTION_MAX_SIZE, draw_schedule, parse_sizes
from services.cores import usable_cores
from services.loadgen.run import run_load

CALIBRATED_BY = "lognormal:4.6,0.7"
"""The size law of the calibration: not that of the judged runs."""

CALIBRATION_LOAD, CALIBRATION_S = 0.5, 25.0
LOADS = (0.3, 0.5, 0.7, 0.9)
LIVE_RUNS, LIVE_S, SETTLE_S = 3, 12.0, 12.0
SIMULATED_QUERIES = 20_000
WITHIN = {0.3: 0.10, 0.5: 0.10, 0.7: 0.10, 0.9: 0.25}
"""How far p95 may be off at each load; p50 within a tenth below 0.9. What lies between the live runs counts."""


def study(findings: Findings, repository: Path, model: str, policy: str) -> None:
    """Measure what is missing for one model and policy."""
    alone = findings.once(f"lone/{model}", lambda: lone(repository, model))
    target_ms = targets_ms(model, alone["lone_s"])["scaled"]
    calibrated = findings.once(
        f"calibration/{model}",
        lambda: calibrate(repository, model, target_ms, CALIBRATION_LOAD * alone["peak_qps"]),
    )
    flags = held(batch_size(model, policy, target_ms))
    likely_qps = LIKELY_SHARE * alone["peak_qps"]
    bears = findings.once(
        f"{policy}/{model}/live",
        lambda: capacity(repository, model, target_ms, policy, flags, likely_qps, seed=0),
    )
    if not bears["qps"]:
        return
    point = OperatingPoint(bears["batch_size"])
    simulated = Simulation(LatencyProfile.from_dict(calibrated["profile"]), calibrated["front_end_s"])
    sla = Sla(95.0, target_ms / 1e3)
    findings.once(
        f"{policy}/{model}/simulated", lambda: {"qps": simulated.bears(policy, point, sla, bears["qps"])}
    )
    for load in LOADS:
        findings.once(
            f"{policy}/{model}/{load}",
            lambda load=load: {  # type: ignore[misc]
                "qps": load * bears["qps"],
                "live": live(repository, model, target_ms, policy, flags, load * bears["qps"]),
                "simulated": tails(simulated.run(policy, point, sla, load * bears["qps"], seed=0)),
            },
        )


def batch_size(model: str, policy: str, target_ms: float) -> int | None:
    """Return the batch size that a policy is held at; None where it steers itself."""
    if policy == "static":
        return static_point(PRODUCTION_MAX_SIZE, usable_cores()).batch_size
    return tuned_offline(model, target_ms / 1e3) if policy == "paper" else None


def calibrate(repository: Path, model: str, target_ms: float, qps: float) -> dict[str, Any]:
    """Record what batches take on a live server under another size law, and what its front end takes."""
    with recorded(repository, model, target_ms) as (recorder, address):
        settings = replace(probe(address, model, qps, seed=7, duration_s=CALIBRATION_S), sizes=CALIBRATED_BY)
        recorder.ask("batches")
        driven = run_load(settings).models[0]
        noted = recorder.ask("batches")
    ran = [Ran(*each) for each in zip(noted["batches"], noted["started_s"], noted["run_s"], strict=True)]
    cores = usable_cores()
    profile = LatencyProfile(model, cores, (profile_of(ran, cores),))
    outside_s = front_end_s(driven.samples.latency_s, np.array(noted["answered_s"]))
    return {"profile": profile.to_dict(), "front_end_s": outside_s, "batches": len(ran), "qps": qps}


@contextmanager
def recorded(repository: Path, model: str, target_ms: float) -> Iterator[tuple[Child, str]]:
    """Serve one model under a target with a note of every batch."""
    with linked(repository, {model: target_ms}) as folder, child("recording_server", str(folder)) as recorder:
        yield recorder, str(recorder.hear()["address"])


def live(
    repository: Path, model: str, target_ms: float, policy: str, flags: list[str], qps: float
) -> list[dict[str, float]]:
    """Return the tails of some runs on one server, which steers itself a while before."""
    with served(repository, {model: target_ms}, policy, flags) as server:
        run_load(probe(server.address, model, qps, seed=99, duration_s=SETTLE_S))
        return [
            tails(run_load(probe(server.address, model, qps, seed, duration_s=LIVE_S)).models[0].measurement)
            for seed in range(LIVE_RUNS)
        ]


def tails(measurement: Measurement) -> dict[str, float]:
    """Return the percentiles that are compared, in milliseconds."""
    return {f"p{p}": 1e3 * getattr(measurement, f"p{p}_s") for p in (50, 95, 99)}


class Simulation:
    """The simulated node of a calibration."""

    def __init__(self, profile: LatencyProfile, front_end_s: float) -> None:
        cpu = profile.backend("cpu")
        self.model = profile.model
        self.node = Node(
            profile.cores, {profile.model: measured(cpu, profile.cores)}, front_end_s=front_end_s
        )
        self.fit = cpu.busy.fit()

    def run(self, policy: str, point: OperatingPoint, sla: Sla, qps: float, seed: int) -> Measurement:
        """Run SIMULATED_QUERIES; a policy that steers itself does so here, from the point that the live one found."""
        schedule = draw_schedule(seed, POISSON, parse_sizes(SIZES), qps, count=SIMULATED_QUERIES)
        plan = replace(untuned_plan(self.fit, sla.seconds), point=point)
        controller = self._controller(plan) if policy == "adaptive" else None
        run = simulate(
            self.node,
            POLICIES[policy],
            {self.model: plan},
            schedule.arrival_s,
            schedule.size,
            self.model,
            seed=seed,
            controller=controller,
            max_waiting=65_536,
        )
        window = float(schedule.arrival_s[SIMULATED_QUERIES // 10]), float(schedule.arrival_s[-1])
        return summarise(sla, schedule.arrival_s, run.latency_s, schedule.size, window=window)

    def bears(self, policy: str, point: OperatingPoint, sla: Sla, start_qps: float) -> float:
        """Return the highest rate within the target."""
        return max_qps(lambda qps: self.run(policy, point, sla, qps, seed=0), sla, start_qps, stride=1.25).qps

    def _controller(self, plan: Plan) -> Controller:
        made = Controller(self.node.cores)
        made.add(self.model, plan)
        return made


def compared(findings: Findings, model: str, policy: str) -> dict[str, Any] | None:
    """Return one row: the throughputs and the tails at each load, and whether they agree; None while one is missing."""
    bears = [findings.found.get(f"{policy}/{model}/{kind}") for kind in ("live", "simulated")]
    at = {load: findings.found.get(f"{policy}/{model}/{load}") for load in LOADS}
    if not all(bears) or not all(at.values()):
        return None
    lived, simulated = (each["qps"] for each in bears if each is not None)
    loads = [_agreement(load, each) for load, each in at.items() if each is not None]
    return {
        "model": model,
        "policy": policy,
        "live_qps": lived,
        "simulated_qps": simulated,
        "throughput_off": simulated / lived - 1,
        "loads": loads,
        "holds": abs(simulated / lived - 1) <= WITHIN[LOADS[0]] and all(each["holds"] for each in loads),
    }


def _agreement(load: float, each: dict[str, Any]) -> dict[str, Any]:
    row: dict[str, Any] = {"load": load, "holds": True}
    for name in ("p50", "p95", "p99"):
        live_ms = sorted(run[name] for run in each["live"])
        simulated_ms = each["simulated"][name]
        off = simulated_ms / float(np.median(live_ms)) - 1
        inside = live_ms[0] <= simulated_ms <= live_ms[-1]
        judged = name == "p95" or (name == "p50" and load < LOADS[-1])
        row[name] = {"live_ms": live_ms, "simulated_ms": simulated_ms, "off": off, "inside": inside}
        row["holds"] = row["holds"] and (not judged or inside or abs(off) <= WITHIN[load])
    return row
