"""What the metrics say after real queries over a real socket: each one moves for its event, and for no other."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from http import HTTPStatus
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from deeprecsys import AsyncRankClient
from deeprecsys.errors import (
    InvalidQueryError,
    InvalidSettingError,
    ModelNotFoundError,
    OverloadedError,
    RankError,
)
from deeprecsys.v1 import control_pb2, control_pb2_grpc
from scheduler.query import Query
from services.rank.metrics import SHED, Metrics
from services.triton_server.process import free_ports
from tests.services.rank.fake_triton import FakeTriton, fake_triton
from tests.services.rank.test_dispatcher import SPEC

LIMIT_S = 10.0


def query(size: int) -> dict[str, np.ndarray]:
    return {"dense": np.zeros((size, 3), np.float32), "ids": np.zeros((size, 2), np.int32)}


def fetch(port: int, path: str, method: str = "GET", **headers: str) -> tuple[int, str, str]:
    """The status, content type and body of a page."""
    connection = HTTPConnection("127.0.0.1", port, timeout=LIMIT_S)
    try:
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.headers["Content-Type"], answer.read().decode()
    finally:
        connection.close()


class Scrape:
    """The samples of one scrape; what the labels leave open is summed, and what is not there is None."""

    def __init__(self, text: str) -> None:
        self.samples = [s for family in text_string_to_metric_families(text) for s in family.samples]

    def __call__(self, name: str, **labels: str) -> float | None:
        found = [
            sample.value
            for sample in self.samples
            if sample.name in (f"deeprecsys_{name}", name) and labels.items() <= sample.labels.items()
        ]
        return sum(found) if found else None


class Watched:
    """A client of a server, and that server's metrics."""

    def __init__(self, client: AsyncRankClient, address: str, port: int) -> None:
        self.client = client
        self.address = address
        self.port = port

    async def scrape(self) -> Scrape:
        status, _, text = await asyncio.to_thread(fetch, self.port, "/metrics")
        assert status == 200, text
        return Scrape(text)

    async def until(self, condition: Callable[[Scrape], bool]) -> Scrape:
        async with asyncio.timeout(LIMIT_S):
            while not condition(found := await self.scrape()):  # noqa: ASYNC110 - from outside
                await asyncio.sleep(0.01)
        return found


@asynccontextmanager
async def watched(running, repository: Path, **settings: Any) -> AsyncIterator[Watched]:
    port = free_ports().metrics
    async with running(repository, metrics_port=port, **settings) as address:
        async with AsyncRankClient(address, timeout_s=LIMIT_S) as client:
            yield Watched(client, address, port)


async def test_an_answered_query_is_counted_timed_and_sized(repository, running) -> None:
    async with watched(running, repository, workers=1, batch_size=20) as w:
        before = await w.scrape()
        answered = {"model": "linear", "backend": "cpu", "code": "OK"}
        assert before("queries_total", **answered) == 0
        assert before("sla_violations_total", model="linear") == 0
        for _ in range(3):
            await w.client.rank("linear", query(60))
        after = await w.scrape()
    assert after("queries_total", **answered) == after("queries_total") == 3
    assert after("query_latency_seconds_count", model="linear", backend="cpu") == 3
    assert after("query_latency_seconds_count", model="two_task") == 0
    assert after("query_queue_seconds_count", model="linear") == 3
    assert after("query_batches_sum", model="linear") == 9
    assert after("batch_candidates_count", model="linear") == 9
    assert after("batch_candidates_sum", model="linear") == 180
    assert after("batch_candidates_bucket", model="linear", le="16.0") == 0
    assert after("batch_candidates_bucket", model="linear", le="32.0") == 9
    engine_s, held_s = (
        after("engine_seconds_total", model="linear"),
        after("batch_seconds_sum", model="linear"),
    )
    assert 0 < engine_s < held_s
    assert after("query_latency_seconds_sum", model="linear") > 0
    assert after("batches_shared_total", model="linear") == 0
    assert after("queries_shed_total") == 0


async def test_state_is_read_as_it_stands(repository, running) -> None:
    settings = {"workers": 1, "batch_size": 20, "max_queries": 7, "max_waiting": 300}
    async with watched(running, repository, **settings) as w:
        linear = {"model": "linear", "version": "1"}
        found = await w.scrape()
        assert found("operating_point_batch_size", **linear) == 20
        assert found("operating_point_offload_from", **linear) == 0
        assert found("operating_point_pinned", **linear) == 1
        assert found("sla_target_seconds", model="linear") == 0.05
        assert found("sla_budget_ratio", model="linear") == pytest.approx(0.05)
        assert found("in_flight_queries_limit") == 7
        assert found("waiting_candidates_limit") == 300
        assert found("waiting_candidates", **linear) == found("in_flight_queries") == 0
        assert found("model_ready", model="two_task") == found("workers") == 1
        assert found("tail_seen_seconds", **linear) is None
        assert found("decisions_total", **linear, reason="pinned") == 1
        async with grpc.aio.insecure_channel(w.address) as channel:
            stub: Any = control_pb2_grpc.ControlServiceStub(channel)
            point = control_pb2.OperatingPoint(batch_size=8)
            await stub.PinOperatingPoint(control_pb2.PinOperatingPointRequest(model="linear", point=point))
        found = await w.scrape()
        assert found("operating_point_batch_size", **linear) == 8
        assert found("decisions_total", **linear, reason="pinned") == 2
        assert found("process_resident_memory_bytes") > 1e6
        assert found("process_cpu_seconds_total") > 0
        assert found("build_info") == 1


@pytest.mark.parametrize(
    ("model", "inputs", "error", "counted", "code"),
    [
        ("linear", {}, InvalidQueryError, "linear", "INVALID_ARGUMENT"),
        ("what_a_client_writes", query(1), ModelNotFoundError, "", "NOT_FOUND"),
    ],
)
async def test_a_clients_mistake_is_counted_but_breaks_no_promise(
    repository, running, model, inputs, error, counted, code
) -> None:
    async with watched(running, repository) as w:
        with pytest.raises(error):
            await w.client.rank(model, inputs)
        found = await w.scrape()
        _, _, text = await asyncio.to_thread(fetch, w.port, "/metrics")
    assert found("queries_total", model=counted, backend="", code=code) == found("queries_total") == 1
    assert found("sla_violations_total") == found("queries_shed_total") == 0
    assert found("query_latency_seconds_count") == 0
    assert "what_a_client_writes" not in text


async def test_refused_queries_are_counted_by_the_limit_that_was_at_its_end(repository, running) -> None:
    async def flood(w: Watched) -> int:
        calls = [w.client.rank("linear", query(1500)) for _ in range(60)]
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        assert all(isinstance(o, OverloadedError) for o in outcomes if isinstance(o, BaseException))
        return sum(isinstance(o, OverloadedError) for o in outcomes)

    for reason, limit in (("server_full", {"max_queries": 2}), ("queue_full", {"max_waiting": 100})):
        async with watched(running, repository, workers=1, batch_size=1, **limit) as w:
            refused = await flood(w)
            found = await w.scrape()
        assert refused > 0
        assert (
            found("queries_shed_total", model="linear", reason=reason)
            == found("queries_shed_total")
            == refused
        )
        assert found("queries_total", model="linear", code="RESOURCE_EXHAUSTED") == refused
        assert found("queries_total", model="linear", code="OK") == 60 - refused
        assert found("sla_violations_total", model="linear") >= refused


async def test_a_deadline_that_passes_here_is_told_from_a_client_that_gives_up(repository, running) -> None:
    # In order of arrival, so that the small query cannot overtake.
    settings = {"workers": 1, "policy": "paper", "batch_size": 1, "max_waiting": 10**6}
    async with watched(running, repository, **settings) as w:
        busy = [asyncio.create_task(w.client.rank("linear", query(4000))) for _ in range(20)]
        await w.until(lambda found: found("in_flight_queries") > 15 and found("waiting_candidates") > 40_000)
        with pytest.raises(RankError):
            await w.client.rank("linear", query(1), timeout_s=0.2)
        late = await w.until(lambda found: found("queries_total", code="DEADLINE_EXCEEDED") == 1)
        assert late("queries_shed_total", model="linear", reason="expired") == late("queries_shed_total") == 1
        for call in busy:
            call.cancel()
        await asyncio.wait(busy)
        ended = await w.until(lambda found: found("in_flight_queries") == 0)
        assert ended("queries_total", code="CANCELLED") + ended("queries_total", code="OK") == 20
        assert ended("queries_total", code="CANCELLED") > 0
        assert ended("queries_shed_total") == 1


async def test_queries_that_share_a_batch_are_seen(repository, running) -> None:
    async with watched(running, repository, workers=1) as w:
        async with asyncio.timeout(LIMIT_S):
            while not (await w.scrape())("batches_shared_total", model="linear"):
                await asyncio.gather(*(w.client.rank("linear", query(2)) for _ in range(20)))
        found = await w.scrape()
    assert found("batches_shared_total", model="linear") < found("batch_candidates_count", model="linear")
    assert found("batch_candidates_sum") == 2 * found("queries_total", code="OK")


def metrics_of_the_model_m() -> Metrics:
    metrics = Metrics(1)
    metrics.add(SPEC)
    return metrics


@pytest.mark.parametrize(
    ("code", "seconds", "missed"),
    [
        ("RESOURCE_EXHAUSTED", 0.0, 1),
        ("INTERNAL", 0.0, 1),
        ("DEADLINE_EXCEEDED", 0.09, 0),
        ("DEADLINE_EXCEEDED", 0.11, 1),
        ("CANCELLED", 0.11, 1),
        ("UNAVAILABLE", 0.0, 0),
    ],
)
def test_a_failure_misses_the_target_of_100_ms_when_it_is_the_servers(code, seconds, missed) -> None:
    metrics = metrics_of_the_model_m()
    metrics.failed("m", code, "", seconds)
    assert metrics.registry.get_sample_value("deeprecsys_sla_violations_total", {"model": "m"}) == missed


def test_an_answer_misses_the_target_when_it_is_later() -> None:
    metrics = metrics_of_the_model_m()
    for seconds in (0.1, 0.1001, 3.0):
        metrics.answered("m", "cpu", seconds)
    assert metrics.registry.get_sample_value("deeprecsys_sla_violations_total", {"model": "m"}) == 2
    within = {"model": "m", "backend": "cpu", "le": "0.1"}
    assert metrics.registry.get_sample_value("deeprecsys_query_latency_seconds_bucket", within) == 1


def test_versions_of_a_model_are_counted_together_and_every_reason_from_0_on() -> None:
    metrics = metrics_of_the_model_m()
    metrics.add(replace(SPEC, version="2"))
    for key in ("m/1", "m/2"):
        query = Query(key, 3, arrival_s=1.0)
        query.started_s, query.batches = 1.5, 2
        metrics.observe(query, 2.0)
    value = metrics.registry.get_sample_value
    assert value("deeprecsys_query_queue_seconds_sum", {"model": "m"}) == 1.0
    assert value("deeprecsys_query_batches_sum", {"model": "m"}) == 4
    for reason in SHED:
        assert value("deeprecsys_queries_shed_total", {"model": "m", "reason": reason}) == 0


@pytest.fixture
async def fake() -> AsyncIterator[FakeTriton]:
    async with fake_triton() as made:
        made.largest = 64
        yield made


@pytest.fixture
def echo(tmp_path: Path) -> Path:
    """The model `m` that the fake Triton has: x FP32 [N, 1] to y, the same."""
    from onnx import TensorProto, helper

    from tests.conftest import _model, write_model

    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 1]) for name in "xy")
    place = tmp_path / "echo"
    write_model(
        place, "m", _model([helper.make_node("Identity", ["x"], ["y"])], [x], [y], {}), "max_batch_size: 64"
    )
    return place


async def test_what_goes_to_an_endpoint_and_what_becomes_of_it_there(fake, echo, running) -> None:
    large = {"x": np.full((10, 1), 2, np.float32)}
    async with watched(running, echo, workers=1, triton=(fake.address,), offload_from=5) as w:
        there = {"endpoint": fake.address, "model": "m", "version": "1"}
        await w.until(lambda found: found("breaker_state", **there) == 0)
        assert (await w.client.rank("m", large)).backend == "triton"
        found = await w.scrape()
        assert found("operating_point_offload_from", model="m", version="1") == 5
        assert found("queries_total", model="m", backend="triton", code="OK") == 1
        assert found("query_latency_seconds_count", model="m", backend="triton") == 1
        assert found("query_queue_seconds_count") == found("batch_candidates_count") == 0
        assert found("attempts_total", **there, outcome="answered") == found("attempts_total") == 1

        fake.held.clear()
        call = asyncio.create_task(w.client.rank("m", large))
        found = await w.until(lambda found: found("endpoint_in_flight_queries", endpoint=fake.address) == 1)
        assert found("endpoint_in_flight_candidates", endpoint=fake.address) == 10
        assert found("endpoint_in_flight_bytes", endpoint=fake.address) == 40
        assert found("endpoint_in_flight_queries_limit") == 128
        call.cancel()
        with suppress(asyncio.CancelledError):
            await call
        await w.until(lambda found: found("attempts_total", **there, outcome="cancelled") == 1)
        fake.held.set()

        for fault, outcome in (
            ((grpc.StatusCode.UNAVAILABLE, "Exceeds maximum queue size"), "busy"),
            ((grpc.StatusCode.INTERNAL, "onnx runtime error"), "failed"),
        ):
            fake.fault = fault
            assert (await w.client.rank("m", large)).backend == "cpu"
            found = await w.scrape()
            assert found("attempts_total", **there, outcome=outcome) == 1
            assert (found("breaker_state", **there), found("breaker_openings_total", **there)) == (0, 0)

        fake.fault, fake.down = None, (grpc.StatusCode.UNAVAILABLE, "Socket closed")
        assert (await w.client.rank("m", large)).backend == "cpu"
        found = await w.scrape()
        assert (
            found("attempts_total", **there, outcome="away") == found("breaker_openings_total", **there) == 1
        )
        assert found("breaker_state", **there) in (1, 2)
        assert found("operating_point_offload_from", model="m") == 0
        assert found("decisions_total", model="m", reason="accelerator_gone") == 1
        fake.down = None
        await w.until(lambda found: found("breaker_state", **there) == 0)
        assert found("queries_total", model="m", backend="cpu", code="OK") == 3


async def test_two_servers_in_one_process_count_for_themselves(repository, running) -> None:
    async with watched(running, repository) as one, watched(running, repository) as other:
        await one.client.rank("linear", query(3))
        assert (await one.scrape())("queries_total", code="OK") == 1
        assert (await other.scrape())("queries_total", code="OK") == 0


async def test_the_pages_and_nothing_else(repository, running) -> None:
    async with watched(running, repository) as w:
        pages = {
            path: await asyncio.to_thread(fetch, w.port, path)
            for path in ("/healthz", "/readyz", "/metrics?x")
        }
        assert pages["/healthz"] == (200, "text/plain; charset=utf-8", "alive\n")
        assert pages["/readyz"] == (200, "text/plain; charset=utf-8", "ready\n")
        assert pages["/metrics?x"][1].startswith("text/plain; version=")
        assert (await asyncio.to_thread(fetch, w.port, "/etc/passwd"))[0] == 404
        assert (await asyncio.to_thread(fetch, w.port, "/metrics", "POST"))[0] == 501
        accept = "application/openmetrics-text; version=1.0.0"
        _, kind, text = await asyncio.to_thread(fetch, w.port, "/metrics", Accept=accept)
        assert kind.startswith("application/openmetrics-text")
        assert text.endswith("# EOF\n")


async def test_readiness_follows_the_servers_life(repository, running, monkeypatch) -> None:
    """Not ready while models load, ready then, not while the last query is finished; alive all the time."""
    import threading

    import services.rank.loading
    from services.rank.server import serve
    from services.rank.settings import ServeSettings

    loading, go_on = threading.Event(), threading.Event()
    real = services.rank.loading.warm_up

    def held(*arguments: object) -> object:
        loading.set()
        assert go_on.wait(30)
        return real(*arguments)

    monkeypatch.setattr("services.rank.loading.warm_up", held)
    port, stop = free_ports().metrics, asyncio.Event()
    address: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    settings = ServeSettings(
        repository=repository,
        port=0,
        metrics_port=port,
        warmup_s=0.02,
        workers=1,
        batch_size=1,
        max_waiting=10**6,
    )
    life = asyncio.create_task(serve(settings, address.set_result, stop))
    assert await asyncio.to_thread(loading.wait, 30)
    assert (await asyncio.to_thread(fetch, port, "/readyz"))[::2] == (503, "the models are loading\n")
    assert (await asyncio.to_thread(fetch, port, "/healthz"))[0] == 200
    go_on.set()
    async with AsyncRankClient(await address) as client:
        assert (await asyncio.to_thread(fetch, port, "/readyz"))[0] == 200
        calls = [asyncio.create_task(client.rank("linear", query(4000))) for _ in range(5)]
        await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
        stop.set()
        await asyncio.sleep(0)  # a turn of the loop for the drain to begin
        assert (await asyncio.to_thread(fetch, port, "/readyz"))[::2] == (503, "the server is draining\n")
        await asyncio.gather(*calls)
    await life
    with pytest.raises(ConnectionRefusedError):
        fetch(port, "/healthz")


async def test_a_busy_port_is_one_line_that_names_the_flag(repository, running) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(
            InvalidSettingError, match=rf"cannot serve metrics on 127.0.0.1:{port}.*--metrics-port"
        ):
            async with running(repository, metrics_port=port):
                pass


async def test_without_a_port_nothing_listens_and_nothing_is_counted(
    repository, running, monkeypatch
) -> None:
    def made(_: int) -> None:
        raise AssertionError("metrics were made")

    monkeypatch.setattr("services.rank.server.Metrics", made)
    async with running(repository) as address, AsyncRankClient(address) as client:
        assert (await client.rank("linear", query(3))).backend == "cpu"


async def test_a_page_that_fails_is_a_500_and_a_trace_in_the_log(caplog) -> None:
    from services.rank.http_pages import HttpPort

    def fails(_: str) -> Any:
        raise ZeroDivisionError("nobody foresaw this")

    port = HttpPort("127.0.0.1", 0, {"/": fails})
    try:
        number = int(port.address.rpartition(":")[2])
        assert (await asyncio.to_thread(fetch, number, "/"))[::2] == (500, "ZeroDivisionError\n")
    finally:
        await port.close()
    assert "nobody foresaw this" in caplog.text


async def test_more_clients_than_there_may_be_are_hung_up_on_and_one_that_goes_makes_room(
    monkeypatch,
) -> None:
    from services.rank.http_pages import HttpPort, Page

    monkeypatch.setattr("services.rank.http_pages.MOST_CLIENTS", 1)
    port = HttpPort("127.0.0.1", 0, {"/": lambda _: Page(HTTPStatus.OK, "text/plain", b"here")})
    try:
        number = int(port.address.rpartition(":")[2])
        idle = await asyncio.to_thread(socket.create_connection, ("127.0.0.1", number), 5)
        with pytest.raises(ConnectionError):
            await asyncio.to_thread(fetch, number, "/")
        idle.close()
        async with asyncio.timeout(5):
            while True:
                try:
                    status = (await asyncio.to_thread(fetch, number, "/"))[0]
                    break
                except ConnectionError:
                    await asyncio.sleep(0.01)
        assert status == 200
    finally:
        await port.close()


async def test_a_loop_that_stands_still_fails_the_scrape_instead_of_hanging_it(
    repository, running, monkeypatch
) -> None:
    monkeypatch.setattr("services.rank.state_metrics.READ_LIMIT_S", 0.1)
    async with watched(running, repository) as w:
        # Asked from the loop's own thread, which waits for the answer.
        assert fetch(w.port, "/metrics")[::2] == (500, "TimeoutError\n")
