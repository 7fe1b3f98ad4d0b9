"""What the report reads: the shapes of the JSON results, as far as it needs them.

A shape is known by the names in its file (``known_by``), so that a result may lie under any file name.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field


class Origin(StrEnum):
    """Where a figure comes from; written beside each."""

    MEASURED = "measured"
    SIMULATED = "simulated"
    PACED = "PACED"


MEANING = {
    Origin.MEASURED: "measured on the machine that is named, by the program that is named",
    Origin.SIMULATED: "computed by the simulator from measured seconds by batch size; no front end, no transport",
    Origin.PACED: "served live beside a stand-in for an accelerator, which waits as long as a modelled one would take",
}


class _Part(BaseModel):
    """A part of a result. What the report does not need is passed over; a number is a finite one."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False, frozen=True)


class MachineOf(_Part):
    """The machine of a figure, as ``services.machine`` describes it."""

    cpu: str
    cores: int
    memory_bytes: int
    system: str
    python: str
    versions: dict[str, str]


class Result(_Part):
    """One file. ``known_by``: the names that it has at its top or in its rows, and no other shape has all of."""

    known_by: ClassVar[frozenset[str]]
    what: ClassVar[str]
    origin: ClassVar[Origin] = Origin.MEASURED

    @property
    def measured_on(self) -> MachineOf | None:
        """The machine, where the file names it."""
        found: MachineOf | None = getattr(self, "machine", None)
        return found

    @property
    def drawn_from(self) -> str:
        """The seeds and sizes of the run, as text; empty where the file names none."""
        named = [(name, getattr(self, name, None)) for name in ("seed", "seeds", "queries")]
        return ", ".join(f"{name} {_words(value)}" for name, value in named if value is not None)


def _words(value: Any) -> str:
    if isinstance(value, dict):
        return " and ".join(f"{v} ({k})" for k, v in value.items())
    if isinstance(value, list | tuple):
        return " ".join(map(str, value))
    return f"{value:,}" if isinstance(value, int) else str(value)


class Simulated(Result):
    """A result of ``benchmarks.simulated_case``."""

    origin = Origin.SIMULATED
    profiled_machine: MachineOf
    queries: int

    @property
    def measured_on(self) -> MachineOf | None:
        """The machine of the profiles."""
        return self.profiled_machine


# --- throughput of the policies ---


class PolicyRow(_Part):
    """One model under one target; no rates where no policy can meet it."""

    model: str
    target: str
    sizes: str
    sla_ms: float
    lone_ms: float
    static_qps: float | None = None
    paper_qps: float | None = None
    adaptive_qps: float | None = None


class Policies(Simulated):
    """`python -m benchmarks.policies`."""

    known_by = frozenset({"kind", "sizes", "lone_ms", "static_qps"})
    what = "latency-bounded throughput of the policies"
    seed: int
    rows: list[PolicyRow]


class Borne(_Part):
    """What one policy bore live: the mean over seeds, the least and the most."""

    qps: float
    least_qps: float
    most_qps: float
    seeds: int
    batch_size: int | None = None


class LiveRow(_Part):
    """One model under one target, live."""

    model: str
    target_ms: float | None = None
    lone_ms: float
    static: Borne | None = None
    paper: Borne | None = None
    adaptive: Borne | None = None


class Change(_Part):
    """How the live controller followed one change."""

    model: str
    scenario: str
    target_ms: float
    qps: float
    pinned_inside: float
    steered_inside: float
    settled_s: float | None


class Live(Result):
    """`python -m benchmarks.live`."""

    known_by = frozenset({"machine", "scaled", "medium", "change"})
    what = "the policies on a live server"
    machine: MachineOf
    scaled: list[LiveRow] = []
    low: list[LiveRow] = []
    medium: list[LiveRow] = []
    high: list[LiveRow] = []
    change: list[Change] = []


# --- one run of load, a search, a sweep ---


class SlaOf(_Part):
    """A tail-latency target."""

    percentile: float
    seconds: float


class Tail(_Part):
    """What a run showed; None for the infinity of queries without an answer."""

    offered_qps: float
    p50_s: float | None
    p95_s: float | None
    p99_s: float | None
    tail_s: float | None
    invalid: str | None = None


class Settings(_Part):
    """How the load was drawn."""

    sizes: str
    arrivals: str
    seed: int

    @property
    def in_words(self) -> str:
        """The laws and the seed, as text."""
        return f"seed {self.seed}, {self.sizes} sizes, {self.arrivals} arrivals"


class ProbeOf(_Part):
    """One rate of a search."""

    qps: float
    measurement: Tail
    shortfall: str | None


class CapacityOf(_Part):
    """The highest rate within the target, and the way there."""

    qps: float
    probes: list[ProbeOf]


class Search(Result):
    """`deeprecsys load --find-max --json`."""

    known_by = frozenset({"settings", "machine", "sla", "capacity"})
    what = "search for the highest rate within the target"
    settings: Settings
    machine: MachineOf
    model: str
    sla: SlaOf
    capacity: CapacityOf

    @property
    def drawn_from(self) -> str:
        """The laws and the seed."""
        return self.settings.in_words


class LoadedModel(_Part):
    """One model of a run."""

    model: str
    sla: SlaOf
    qps: float
    measurement: Tail
    shortfall: str | None
    codes: dict[str, int]


class Run(_Part):
    """One rate of a sweep; the settings and the machine are the sweep's."""

    qps: float
    models: list[LoadedModel]


class Load(Result):
    """`deeprecsys load --json`."""

    known_by = frozenset({"settings", "machine", "models", "driver"})
    what = "one run of load"
    settings: Settings
    qps: float
    machine: MachineOf
    models: list[LoadedModel]
    cut_short: str | None = None

    @property
    def drawn_from(self) -> str:
        """The laws and the seed."""
        return self.settings.in_words


class Sweep(Result):
    """`deeprecsys load --sweep --json`: one run for each rate."""

    known_by = frozenset({"settings", "machine", "points"})
    what = "tails by rate"
    settings: Settings
    machine: MachineOf
    points: list[Run] = Field(min_length=1)
    cut_short: str | None = None

    @property
    def drawn_from(self) -> str:
        """The laws and the seed."""
        return self.settings.in_words


class Judged(Result):
    """A test that MLPerf LoadGen ran and judged; ``verdict`` None when it was cut short."""

    known_by = frozenset({"settings", "machine", "verdict", "loadgen_version"})
    what = "a test by MLPerf LoadGen"
    settings: Settings
    machine: MachineOf
    model: str
    sla: SlaOf
    verdict: str | None
    loadgen_version: str
    codes: dict[str, int]
    p50_s: float | None
    p95_s: float | None
    p99_s: float | None

    @property
    def drawn_from(self) -> str:
        """The laws and the seed."""
        return self.settings.in_words


# --- seconds by batch size ---


class PointOf(_Part):
    """Seconds of one batch size."""

    batch_size: int = Field(ge=1)
    mean_s: float = Field(gt=0)
    p50_s: float = Field(gt=0)
    p95_s: float = Field(gt=0)


class CurveOf(_Part):
    """Seconds by batch size."""

    points: list[PointOf] = Field(min_length=1)


class BackendOf(_Part):
    """One backend: a core alone, and all cores busy."""

    name: str
    alone: CurveOf
    busy: CurveOf
    modelled: bool = False


class Profile(Result):
    """`deeprecsys profile`."""

    known_by = frozenset({"model", "cores", "backends"})
    what = "seconds by batch size"
    machine: MachineOf | None = None
    model: str
    cores: int
    backends: list[BackendOf] = Field(min_length=1)


# --- what limits a model ---


class GatherOf(_Part):
    """Random rows read in a second."""

    row_bytes: int
    bytes_per_s: float


class CeilingsOf(_Part):
    """The best that so many cores do at once."""

    cores: int
    read_bytes_per_s: float = Field(gt=0)
    copy_bytes_per_s: float = Field(gt=0)
    gather: list[GatherOf] = Field(min_length=1)
    flops_per_s: float = Field(gt=0)


class WorkOf(_Part):
    """What one candidate takes."""

    macs: float
    gathered_bytes: float
    streamed_bytes: float


class RateOf(_Part):
    """What batches of one size achieve."""

    batch_size: int
    cores: int
    bytes_per_s: float = Field(gt=0)
    flops_per_s: float = Field(gt=0)
    flops_per_byte: float = Field(gt=0)


class BatchOf(_Part):
    """The size of a batch that was taken apart."""

    batch_size: int


class ShareOf(_Part):
    """A part of a model: its share of an inference's seconds."""

    part: str
    share: float


class BottleneckOf(_Part):
    """What a model spends its time on, and the ceiling that this is against."""

    classes: list[str] = Field(min_length=1)
    limit: str
    of_roof: float


class OperatorsOf(_Part):
    """One batch size taken apart."""

    breakdown: BatchOf
    parts: list[ShareOf]


class Characterised(Result):
    """`deeprecsys profile`: the file beside the profile."""

    known_by = frozenset({"schema", "ceilings", "rates", "operators", "bottleneck"})
    what = "what limits a model"
    machine: MachineOf
    model: str
    ceilings: list[CeilingsOf] = Field(min_length=1)
    work: WorkOf
    rates: list[RateOf] = Field(min_length=1)
    operators: list[OperatorsOf]
    bottleneck: BottleneckOf


# --- offloading ---


class Swept(_Part):
    """What one threshold bears; ``no_more_than`` where the search ended without a rate."""

    qps: float
    no_more_than: float | None = None


class LiveSweep(_Part):
    """Throughput by threshold, live."""

    model: str
    accelerator: str
    sweep: dict[str, Swept]
    best: str
    tuner: str


class Crossover(_Part):
    """From which size a lone query is faster on the accelerator."""

    model: str
    measured_from: int | None
    predicted_from: int | None
    largest: int
    largest_cpu_ms: float
    largest_offloaded_ms: float


class Offload(Result):
    """`python -m benchmarks.offload`."""

    known_by = frozenset({"machine", "accelerators", "hop", "threshold"})
    what = "what offloading costs"
    origin = Origin.PACED
    machine: MachineOf
    crossover: list[Crossover] = []
    threshold: list[LiveSweep] = []


class SweptAt(_Part):
    """Throughput at one threshold; None is never."""

    offload_from: int | None
    qps: float


class SimulatedSweep(_Part):
    """Throughput by threshold, simulated."""

    model: str
    sla_ms: float
    batch_size: int
    tuned_offload_from: int | None
    sweep: list[SweptAt] = Field(min_length=1)


class Thresholds(Simulated):
    """`python -m benchmarks.threshold_sweep`."""

    known_by = frozenset({"kind", "sweep", "tuned_offload_from"})
    what = "throughput by threshold"
    seed: int
    rows: list[SimulatedSweep]


# --- decisions over time ---


class Held(_Part):
    """An operating point."""

    batch_size: int
    offload_from: int | None


class Decided(Held):
    """A decision, and when."""

    at_s: float
    why: str
    reason: str


class Followed(_Part):
    """One run by seconds."""

    inside: float
    tail_ms: list[float | None]
    offloaded: float


class Pinned(Followed, Held):
    """The run of the tuned point."""


class Story(_Part):
    """One model under one scenario."""

    model: str
    scenario: str
    accelerator: str | None
    sla_ms: float
    percentile: float
    full_load_qps: float
    arrived_qps: list[float]
    start: Held
    steered: Followed
    pinned: Pinned
    decisions: list[Decided]


class Decisions(Simulated):
    """`python -m benchmarks.decisions`."""

    known_by = frozenset({"kind", "arrived_qps", "decisions"})
    what = "the controller's decisions over time"
    seeds: dict[str, int]
    rows: list[Story]


# --- what things cost ---


class CostRow(_Part):
    """CPU milliseconds of one model's query."""

    model: str
    server_ms: float
    bare_ms: float
    transport_ms: float
    beyond_transport_ms: float


class Costs(Result):
    """`python -m benchmarks.serving_cost`."""

    known_by = frozenset({"machine", "server_ms", "bare_ms", "transport_ms"})
    what = "what a query costs"
    machine: MachineOf
    rows: list[CostRow]


class AblationRow(_Part):
    """Throughput of one model after each step."""

    model: str
    sla_ms: float
    qps: dict[str, float]


class Ablation(Simulated):
    """`python -m benchmarks.ablation`."""

    known_by = frozenset({"kind", "settle_s"})
    what = "what each part of the scheduler brings"
    seed: int
    rows: list[AblationRow]


class BoundRow(_Part):
    """What adaptive bears beside the best order that was tried."""

    model: str
    target: str
    sla_ms: float
    adaptive: float
    bound: float


class Bound(Simulated):
    """`python -m benchmarks.throughput_bound`."""

    known_by = frozenset({"kind", "bound_qps", "peak_qps"})
    what = "throughput beside the offline peak"
    seed: int
    rows: list[BoundRow]


class ClimbRow(_Part):
    """The hill climb beside the grid."""

    model: str
    sla_ms: float
    climb_batch_size: int
    climb_offload_from: int | None
    climb_qps: float
    grid_qps: float
    quality: float
    cost: float


class Climb(Simulated):
    """`python -m benchmarks.tuner_quality`."""

    known_by = frozenset({"kind", "climb_qps", "grid_qps"})
    what = "the hill climb beside the whole grid"
    rows: list[ClimbRow]


class SchedulerCost(Result):
    """`python -m benchmarks.scheduler_cost`."""

    known_by = frozenset({"decide_mean_ms_cpu"})
    what = "what the scheduler itself costs"
    decide_mean_ms_cpu: float
    decide_max_ms_cpu: float
    decide_mean_ms_accelerator: float
    batcher_and_observe_us_per_query_at_32: float
    batcher_and_observe_us_per_query_at_256: float


SHAPES: tuple[type[Result], ...] = (
    *(Policies, Live, Search, Sweep, Load, Judged, Profile, Characterised, Offload, Thresholds, Decisions),
    *(Costs, Ablation, Bound, Climb, SchedulerCost),
)
"""All shapes that the report knows."""
