"""What the server counts for Prometheus: queries where their call ends, batches where they come back.

What the server knows anyway is not counted twice: ``state_metrics`` reads it when it is asked for. The labelled
children are looked up once, so that a query costs a few additions. Each of prometheus-client's holds a lock for the
length of one, against whoever renders them on another thread at that moment: once in some seconds, for as short.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import NamedTuple

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    Info,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
)

from scheduler.query import Batch, Query
from services.rank.model import ModelSpec

LATENCY_S = (
    *(0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.025, 0.035, 0.05, 0.075),
    *(0.1, 0.15, 0.2, 0.3, 0.4, 0.6, 0.8, 1.2, 2.0, 5.0),
)
"""Fixed, since buckets that follow each model's target could not be added up nor compared across models. The
targets of the eight models are among them; how many queries missed a target, whatever it is, is told exactly by a
counter of its own."""

COARSE_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
CANDIDATES = tuple(1 << power for power in range(12))
BATCHES = (1, 2, 3, 4, 6, 8, 16, 32, 64)

SHED = ("queue_full", "server_full", "accelerator", "expired", "draining")
BROKEN_PROMISES = {"RESOURCE_EXHAUSTED", "INTERNAL"}
"""Codes that miss the target however soon they come. A deadline of the client's that is shorter than the target, its
mistakes, and a server that says that it is going away do not."""


class _Model(NamedTuple):
    """The children of one model that every query or batch touches."""

    sla_s: float
    missed: Counter
    queue: Histogram
    query_batches: Histogram
    batch_size: Histogram
    batch_s: Histogram
    shared: Counter


class Metrics:
    """One server's counts, in a registry of their own; an Observer of the dispatcher and a CallObserver.

    Use it on the loop thread. ``registry`` is rendered on whichever thread.
    """

    def __init__(self, workers: int) -> None:
        # A creation time beside every series, in all of the process, doubles some of them and is of no use here.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = registry = CollectorRegistry()
        for collect in (ProcessCollector, PlatformCollector, GCCollector):
            collect(registry=registry)
        Info("deeprecsys_build", "Versions of what runs", registry=registry).info(
            {name: version(name) for name in ("deeprecsys", "onnxruntime", "grpcio", "numpy")}
        )
        Gauge("deeprecsys_workers", "CPU worker threads", registry=registry).set(workers)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"deeprecsys_{name}", text, labels, registry=registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            return Histogram(f"deeprecsys_{name}", text, labels, registry=registry, buckets=buckets)

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(f"deeprecsys_{name}", text, ["model"], registry=registry)

        self._queries = counter(
            "queries_total",
            'Queries that ended, by gRPC code; backend "" where none answered, model "" where it is not served',
            *("model", "backend", "code"),
        )
        self._shed = counter(
            "queries_shed_total",
            "Queries that were refused or given up for lack of room or time",
            *("model", "reason"),
        )
        self._latency = histogram(
            "query_latency_seconds",
            "From the parsed request to the response, of queries that were answered",
            LATENCY_S,
            *("model", "backend"),
        )
        self._missed = counter(
            "sla_violations_total",
            "Queries that took longer than the target, or ended with RESOURCE_EXHAUSTED or INTERNAL",
            "model",
        )
        self._queue = histogram(
            "query_queue_seconds",
            "From arrival to a CPU worker's first batch of the query",
            COARSE_S,
            "model",
        )
        self._query_batches = histogram(
            "query_batches", "CPU batches that a query was scored in", BATCHES, "model"
        )
        self._batch_size = histogram("batch_candidates", "Candidates in one CPU batch", CANDIDATES, "model")
        self._batch_s = histogram(
            "batch_seconds", "How long a CPU batch held its worker, handed over and back", COARSE_S, "model"
        )
        self._shared = counter("batches_shared_total", "CPU batches that scored several queries", "model")
        self._sla_s = gauge("sla_target_seconds", "The tail-latency target")
        self._sla_budget = gauge("sla_budget_ratio", "The share of queries that may miss the target")
        self._models: dict[str, _Model] = {}
        self._by_key: dict[str, _Model] = {}
        self._ended: dict[tuple[str, str, str], Counter] = {}
        self._answered: dict[tuple[str, str], Histogram] = {}
        for reason in SHED:
            self._shed.labels("", reason)

    def add(self, spec: ModelSpec) -> None:
        """Count a version of a model from now on, beginning at 0, so that the first rate is right."""
        name = spec.name
        if name not in self._models:
            self._models[name] = _Model(
                spec.sla.seconds,
                self._missed.labels(name),
                self._queue.labels(name),
                self._query_batches.labels(name),
                self._batch_size.labels(name),
                self._batch_s.labels(name),
                self._shared.labels(name),
            )
            self._sla_s.labels(name).set(spec.sla.seconds)
            self._sla_budget.labels(name).set(1 - spec.sla.percentile / 100)
            self._count(name, "cpu", "OK")
            self._answered[name, "cpu"] = self._latency.labels(name, "cpu")
            for reason in SHED:
                self._shed.labels(name, reason)
        self._by_key[spec.key] = self._models[name]

    # ---- what the dispatcher tells ----

    def observe_arrival(self, query: Query, now: float) -> None:
        """Nothing: a query is counted when its call ends."""

    def observe_batch(self, batch: Batch, run_s: float) -> None:
        """Count a CPU batch."""
        model = self._by_key[batch.model]
        model.batch_size.observe(batch.size)
        model.batch_s.observe(run_s)
        if len(batch.slices) > 1:
            model.shared.inc()

    def observe(self, query: Query, now: float) -> None:  # noqa: ARG002 - the protocol's
        """Count how a query got through the CPU workers."""
        if not query.offloaded:
            model = self._by_key[query.model]
            model.queue.observe(query.started_s - query.arrival_s)
            model.query_batches.observe(query.batches)

    # ---- what the servicer tells ----

    def answered(self, name: str, backend: str, seconds: float) -> None:
        """Count a call that was answered after so many seconds."""
        self._count(name, backend, "OK").inc()
        latency = self._answered.get((name, backend))
        if latency is None:
            latency = self._answered[name, backend] = self._latency.labels(name, backend)
        latency.observe(seconds)
        model = self._models[name]
        if seconds > model.sla_s:
            model.missed.inc()

    def failed(self, name: str, code: str, shed: str, seconds: float) -> None:
        """Count a call that got no answer; ``name`` is what the client wrote, ``shed`` one of SHED or ""."""
        model = self._models.get(name)
        if model is None:
            name = ""  # a client must not make labels
        elif seconds > model.sla_s or code in BROKEN_PROMISES:
            model.missed.inc()
        self._count(name, "", code).inc()
        if shed:
            self._shed.labels(name, shed).inc()

    def _count(self, name: str, backend: str, code: str) -> Counter:
        child = self._ended.get((name, backend, code))
        if child is None:
            child = self._ended[name, backend, code] = self._queries.labels(name, backend, code)
        return child
