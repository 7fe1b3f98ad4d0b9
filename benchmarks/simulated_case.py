"""What the simulated benchmarks share: one model of a profile under one target, and measurements that outlive a run.

Every figure made with these is SIMULATED: the server's own Batcher on a simulated node whose batches take what
`deeprecsys profile` measured (benchmarks/data/profiles). No front end and no transport is simulated.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import hashlib
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np

import scheduler
from scheduler.first_plan import untuned_plan
from scheduler.latency import BackendProfile, LatencyProfile, LinearFit, accelerated
from scheduler.measure import Capacity, Measure, Measurement, Sla, feasible, max_qps
from scheduler.plan import OperatingPoint, Plan, Policy
from scheduler.service_law import measured
from scheduler.simulator import Node, simulated_load
from scheduler.sizes import parse_sizes
from scheduler.tune import hill_climb
from services.models.spec import SLUGS, spec_for
from services.profiles import read_profile

DATA = Path(__file__).parent / "data"
RESULTS = Path(__file__).parent / "results"
STATE = Path(__file__).parent.parent / ".tuning-simulated.jsonl"

TARGETS = {"medium": 1.0, "low": 0.5, "high": 1.5}
"""Multiples of the target that the paper gives; a fourth, ``scaled``, is SCALED times a lone query."""

SCALED = 4.0
BATCH_SIZES = (32, 64, 128, 256, 512, 1024)
"""Batch sizes of the searches without an accelerator. From 32 on a batch's fixed cost is at most a seventh of it in all
models but ncf, which wants 512; smaller ones cost the most simulation, and when tried were the best of no model."""

Row = dict[str, Any]
"""One line of a result, as it is written to JSON."""

_DECIDING = (
    *("batching", "latency", "measure", "plan", "query", "service_law", "simulator"),
    *("workload", "arrivals", "rate_curve", "sizes"),
)


class Finished:
    """Measurements that outlive an interrupted benchmark: one JSON object a line, each under the key of its settings.

    The key holds a digest of the profile and of the scheduler's code, so none is used that either would now change.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._found: dict[str, dict[str, Any]] = {}
        for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
            try:
                entry = json.loads(line)
            except ValueError:
                continue  # the last line of a run that was killed
            self._found[entry["key"]] = entry["measured"]

    def remembering(self, measure: Measure, name: str) -> Measure:
        """Return the measure that looks its answers up first; ``name`` holds every setting but point and rate."""

        def remembered(point: OperatingPoint, qps: float) -> Measurement:
            key = f"{name} {point.batch_size} {point.offload_from} {qps!r}"
            known = self._found.get(key)
            if known is not None:
                return Measurement(**known)
            found = measure(point, qps)
            self._found[key] = dataclasses.asdict(found)
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"key": key, "measured": self._found[key]}) + "\n")
            return found

        return remembered


@dataclass(frozen=True, eq=False)
class Case:
    """One model of a profile under one target and size law.

    ``target``: ``scaled`` or one of TARGETS. ``speedup``: by batch size, of a modelled accelerator with one slot;
    None for none. ``queries``: of each simulated run, the first tenth being warm-up.
    """

    profile: LatencyProfile
    target: str
    finished: Finished
    sizes: str = "production"
    queries: int = 10_000
    speedup: dict[int, float] | None = None

    @property
    def lone_s(self) -> float:
        """Seconds of a lone query of the p95 size cut evenly over all cores: no target below it can be met."""
        return self._cpu.busy.mean_s(math.ceil(p95_size(self.sizes) / self.profile.cores))

    @property
    def sla(self) -> Sla:
        """The target, p95."""
        if self.target == "scaled":
            return Sla(95.0, SCALED * self.lone_s)
        return Sla(95.0, TARGETS[self.target] * spec_for(self.profile.model).sla_ms / 1e3)

    @property
    def feasible(self) -> bool:
        """Whether any policy can meet the target."""
        return self.lone_s <= self.sla.seconds

    @property
    def fit(self) -> LinearFit:
        """Seconds of a batch with all cores busy."""
        return self._cpu.busy.fit()

    @property
    def start_qps(self) -> float:
        """The rate at which searches start: about half of what the cores can do."""
        return likely_qps(self.profile)

    @property
    def plan(self) -> Plan:
        """The plan but for its point."""
        return untuned_plan(self.fit, self.sla.seconds)

    @cached_property
    def node(self) -> Node:
        """The simulated machine."""
        model, cores = self.profile.model, self.profile.cores
        cpu = {model: measured(self._cpu, cores)}
        if self.speedup is None:
            return Node(cores, cpu)
        return Node(cores, cpu, {model: measured(accelerated(self._cpu, self.speedup), 1)})

    def measure(self, policy: Policy, seed: int) -> Measure:
        """Return the simulated Measure of a policy; the same seed gives all policies and points the same queries."""
        live = simulated_load(
            self.node,
            policy,
            self.profile.model,
            self.plan,
            self.sla,
            parse_sizes(self.sizes),
            queries=self.queries,
            seed=seed,
        )
        return self.finished.remembering(live, f"{self._name} {_shape(policy)} {self.queries} {seed}")

    def capacity(
        self, policy: Policy, point: OperatingPoint, seed: int, start_qps: float | None = None
    ) -> Capacity:
        """Return the highest rate within the target; ``start_qps`` that is nearly right makes it cheaper."""
        measure = self.measure(policy, seed)
        stride = 2.0 if start_qps is None else 1.15
        floor_qps = self.start_qps / 256
        start_qps = max(start_qps or self.start_qps, floor_qps)
        return max_qps(
            lambda qps: measure(point, qps), self.sla, start_qps, stride=stride, floor_qps=floor_qps
        )

    @property
    def _cpu(self) -> BackendProfile:
        return self.profile.backend("cpu")

    @property
    def _name(self) -> str:
        made_of = json.dumps([self.profile.to_dict(), self.speedup]) + _code()
        return f"{hashlib.sha256(made_of.encode()).hexdigest()[:12]} {self.profile.model} {self.target} {self.sizes}"


@dataclass(frozen=True)
class Borne:
    """A policy at a point, and the highest rate within the target that it bears on the queries of one seed."""

    policy: Policy
    point: OperatingPoint
    qps: float


def climb(case: Case, policy: Policy, seed: int) -> Borne:
    """Tune the batch size of a policy by hill climb, without an accelerator."""
    tuned = hill_climb(
        case.measure(policy, seed), case.sla, case.start_qps, batch_sizes=BATCH_SIZES, thresholds=()
    )
    return Borne(policy, tuned.point, tuned.qps)


def best_of(case: Case, best: Borne, policies: Iterable[Policy], seed: int) -> Borne:
    """Return the best of all policies and batch sizes, starting from one that is known.

    The exhaustive grid's answer without its cost: a point that misses the target 2 % above the best so far, the
    tolerance of a search, is not the best, and one run says so.
    """
    for policy in policies:
        measure = case.measure(policy, seed)
        for point in map(OperatingPoint, BATCH_SIZES):
            above_qps = 1.02 * best.qps
            if best.qps > 0 and not feasible(measure(point, above_qps), case.sla):
                continue
            found = case.capacity(policy, point, seed, above_qps or None)
            if found.qps > best.qps:
                best = Borne(policy, point, found.qps)
    return best


@cache
def p95_size(sizes: str) -> int:
    """Return the 95th percentile of a size law, in candidates."""
    return int(np.percentile(parse_sizes(sizes).draw(np.random.default_rng(0), 100_000), 95))


@cache
def _code() -> str:
    folder = Path(scheduler.__file__).parent
    return hashlib.sha256(b"".join((folder / f"{name}.py").read_bytes() for name in _DECIDING)).hexdigest()


def _shape(policy: Policy) -> str:
    return f"{policy.overtaking} {policy.coalesce} {policy.cut}"


def load_profile(folder: Path, model: str) -> LatencyProfile:
    """Read what `deeprecsys profile` wrote of one model."""
    return read_profile(folder / f"{model}.json")


def likely_qps(profile: LatencyProfile) -> float:
    """Return about half of what the cores can do, where a search begins."""
    return 0.5 * profile.cores / profile.backend("cpu").busy.fit().run_s(100)


def profiled_machine(folder: Path, model: str) -> Any:
    """Return the description of the machine that a profile was measured on."""
    return json.loads((folder / f"{model}.json").read_text(encoding="utf-8"))["machine"]


def gpu_speedup(model: str) -> dict[int, float]:
    """Return the GTX 1080 Ti's speed-up over a CPU core by batch size, see benchmarks/data/README.md."""
    with (DATA / "gpu1080ti_speedup_over_skylake.csv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if row.pop("model").lower().replace("-", "_") == model:
                return {int(column[1:]): float(factor) for column, factor in row.items()}
    raise ValueError(f"the table of speed-ups lacks {model}")


def parser(description: str | None, queries: int) -> argparse.ArgumentParser:
    """Return the options that all simulated benchmarks have."""
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--profiles", type=Path, default=DATA / "profiles", help="made by `deeprecsys profile`")
    made.add_argument("--state", type=Path, default=STATE, help="finished measurements, to go on from")
    made.add_argument("--queries", type=int, default=queries, help="in each simulated run")
    made.add_argument("models", nargs="*", default=list(SLUGS))
    return made


def write(name: str, arguments: argparse.Namespace, rows: list[Row], **settings: Any) -> None:
    """Write rows to benchmarks/results, with what they were simulated from."""
    result = {
        "kind": "SIMULATED",
        "profiled_machine": profiled_machine(arguments.profiles, rows[0]["model"]),
        "queries": arguments.queries,
        **settings,
        "rows": rows,
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / name).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def geometric_mean(values: list[float]) -> str:
    """Return the geometric mean and over how many models it is; those without a value are not among them."""
    if not values:
        return "none"
    mean = math.exp(sum(map(math.log, values)) / len(values))
    return f"{mean:.2f} over {len(values)} models"
