"""What the server knows anyway, as Prometheus metrics: read when it is asked for, on the loop that owns it."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterable, Iterator, Sequence

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from scheduler.batching import Batcher
from scheduler.breaker import BreakerState
from scheduler.controller import Controller
from services.rank.catalogue import Catalogue
from services.rank.dispatcher import Dispatcher
from services.rank.offloading import Offloader
from services.rank.steering import Steering

READ_LIMIT_S = 5.0
"""A loop that takes longer does not serve either, and a scrape that fails says so."""

MODEL = ("model", "version")
LINK = ("endpoint", *MODEL)
BREAKER = {BreakerState.CLOSED: 0, BreakerState.HALF_OPEN: 1, BreakerState.OPEN: 2}

Row = tuple[Sequence[str], float]
"""The labels' values and the sample."""


class StateMetrics(Collector):
    """Reads the state of one server. Make it on the loop, collect on any other thread: it waits for the loop."""

    def __init__(
        self,
        catalogue: Catalogue,
        steering: Steering,
        controller: Controller,
        batcher: Batcher,
        dispatcher: Dispatcher,
        offloader: Offloader | None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._catalogue = catalogue
        self._steering = steering
        self._controller = controller
        self._batcher = batcher
        self._dispatcher = dispatcher
        self._offloader = offloader

    def collect(self) -> list[Metric]:
        """Return what the loop says; TimeoutError when it says nothing for READ_LIMIT_S."""
        return asyncio.run_coroutine_threadsafe(self._read(), self._loop).result(READ_LIMIT_S)

    async def _read(self) -> list[Metric]:
        found = [*self._server(), *self._models()]
        if self._offloader is not None:
            found += [*_endpoints(self._offloader), *_links(self._offloader)]
        return found

    def _server(self) -> Iterator[Metric]:
        in_flight, most = self._dispatcher.in_flight, self._dispatcher.max_queries
        yield _gauge("in_flight_queries", "Queries that have no answer yet", [((), in_flight)])
        yield _gauge("in_flight_queries_limit", "Beyond so many queries are refused", [((), most)])
        yield _gauge(
            "waiting_candidates_limit", "More may not wait for each model", [((), self._batcher.max_waiting)]
        )
        ready = [((name,), self._catalogue.is_ready(name)) for name in self._catalogue.names()]
        yield _gauge("model_ready", "1 where a model of the repository answers", ready, ["model"])

    def _models(self) -> Iterator[Metric]:
        specs = self._steering.specs()
        labels = {spec.key: (spec.name, spec.version) for spec in specs}

        def gauge(name: str, text: str, values: Iterable[float]) -> Metric:
            return _gauge(name, text, zip(labels.values(), values, strict=True), MODEL)

        points = [self._batcher.plan(key).point for key in labels]
        pinned = [self._controller.pinned(key) is not None for key in labels]
        seen = [self._controller.seen(key) for key in labels]
        text = "The most candidates in one CPU inference: the operating point"
        yield gauge("operating_point_batch_size", text, (point.batch_size for point in points))
        text = "Queries of at least so many candidates go to an accelerator; 0 where none does"
        yield gauge("operating_point_offload_from", text, (point.offload_from or 0 for point in points))
        yield gauge("operating_point_pinned", "1 where the operating point is held", pinned)
        text = "Candidates that wait for a CPU worker"
        yield gauge("waiting_candidates", text, map(self._batcher.waiting, labels))
        text = (
            "Seconds at the target's percentile in the controller's last window; none after too few queries"
        )
        yield gauge("tail_seen_seconds", text, (each.tail_s for each in seen))
        text = (
            "The tail predicted for the operating point when it was chosen; none where it was not predicted"
        )
        yield gauge("tail_predicted_seconds", text, (each.predicted_s for each in seen))
        engine_s = [(labels[key], self._dispatcher.engine_s[key]) for key in labels]
        yield _counter("engine_seconds", "Seconds that workers spent in ONNX Runtime", engine_s, MODEL)
        decided = [((*labels[key], why), count) for (key, why), count in self._steering.decided.items()]
        text = "Changes of the operating point, or of what batches are taken to last"
        yield _counter("decisions", text, decided, (*MODEL, "reason"))


def _endpoints(offloader: Offloader) -> Iterator[Metric]:
    def gauge(name: str, text: str, values: Iterable[float]) -> Metric:
        addresses = [(endpoint.address,) for endpoint in offloader.endpoints]
        return _gauge(f"endpoint_in_flight_{name}", text, zip(addresses, values, strict=True), ["endpoint"])

    every, bounds = offloader.endpoints, offloader.bounds
    yield gauge("queries", "Queries on the way to an endpoint", (e.queries for e in every))
    yield gauge("candidates", "Candidates on the way to an endpoint", (e.candidates for e in every))
    yield gauge("bytes", "Bytes of tensors on the way to an endpoint", (e.tensor_bytes for e in every))
    yield gauge("queries_limit", "Beyond so many the CPU takes the query", (bounds.queries for _ in every))
    yield gauge("bytes_limit", "Beyond so many the CPU takes the query", (bounds.tensor_bytes for _ in every))


def _links(offloader: Offloader) -> Iterator[Metric]:
    links = {(k.endpoint.address, k.spec.name, k.spec.version): k for k in offloader.links()}
    state = [(labels, BREAKER[link.breaker.state]) for labels, link in links.items()]
    yield _gauge(
        "breaker_state", "0: queries are sent. 1: a probe is on its way. 2: none is sent", state, LINK
    )
    openings = [(labels, link.openings) for labels, link in links.items()]
    yield _counter("breaker_openings", "How often an endpoint that was used was left", openings, LINK)
    ended = [((*labels, how), n) for labels, link in links.items() for how, n in link.ended.items()]
    yield _counter(
        "attempts", "Queries sent to an endpoint, by what became of them there", ended, (*LINK, "outcome")
    )


def _gauge(name: str, text: str, rows: Iterable[Row], labels: Sequence[str] = ()) -> Metric:
    """Return a gauge; a sample that is not known is left out."""
    family = GaugeMetricFamily(f"deeprecsys_{name}", text, labels=labels)
    for values, sample in rows:
        if not math.isnan(sample):
            family.add_metric(values, sample)
    return family


def _counter(name: str, text: str, rows: Iterable[Row], labels: Sequence[str]) -> Metric:
    family = CounterMetricFamily(f"deeprecsys_{name}", text, labels=labels)
    for values, sample in rows:
        family.add_metric(values, sample)
    return family
