"""Small fleets for tests."""

from __future__ import annotations

from typing import Any

from scheduler.fleet_spec import FleetSpec, Group, MachineKind, Origin, Traffic
from scheduler.latency import BackendProfile, LatencyCurve, LatencyPoint
from scheduler.measure import Sla
from scheduler.plan import OperatingPoint

FIXED_S, PER_CANDIDATE_S = 2e-4, 4e-5


def backend(fixed_s: float = FIXED_S, per_s: float = PER_CANDIDATE_S, name: str = "cpu") -> BackendProfile:
    """Seconds on a line, with a little noise."""
    points = tuple(
        LatencyPoint(n, s, s, 1.1 * s, 1.15 * s) for n in (1, 8, 64, 512) for s in (fixed_s + per_s * n,)
    )
    curve = LatencyCurve(points)
    return BackendProfile(name, curve, curve)


def kind(cores: int = 2, models: tuple[str, ...] = ("m",), **more: Any) -> MachineKind:
    return MachineKind(f"cores-{cores}", cores, {m: backend() for m in models}, Origin.MEASURED, **more)


def group(count: int, made: MachineKind | None = None, batch_size: int = 64, **more: Any) -> Group:
    made = made or kind()
    return Group(made, count, {model: OperatingPoint(batch_size) for model in made.cpu}, **more)


def spec(nodes: int = 6, per_node_qps: float = 200.0, **more: Any) -> FleetSpec:
    """A fleet of two-core nodes, at 200 queries/s each 45 % busy."""
    settings = {
        "groups": (group(nodes),),
        "traffic": (Traffic("m", 1.0, Sla(95.0, 0.1)),),
        "qps": per_node_qps * nodes,
        "duration_s": 2.0,
        "warmup_s": 0.5,
    }
    return FleetSpec(**{**settings, **more})
