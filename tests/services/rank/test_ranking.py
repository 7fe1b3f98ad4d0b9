"""What a valid query is answered with, over a real socket."""

from __future__ import annotations

import asyncio

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from deeprecsys import AsyncRankClient, RankClient
from deeprecsys.errors import DeadlineExceededError, UnavailableError
from deeprecsys.v1 import rank_pb2
from tests.conftest import linear_scores

RNG = np.random.default_rng(0)


def random_query(size: int) -> dict[str, np.ndarray]:
    return {
        "dense": RNG.normal(size=(size, 3)).astype(np.float32),
        "ids": RNG.integers(0, 8, size=(size, 2), dtype=np.int32),
    }


async def test_scores_come_in_the_order_of_the_candidates_and_the_ranking_best_first(
    repository, running
) -> None:
    query = random_query(50)
    async with running(repository) as address, AsyncRankClient(address) as client:
        answer = await client.rank("linear", query)
    expected = linear_scores(query["dense"], query["ids"])
    np.testing.assert_allclose(answer.scores, expected, atol=1e-6)
    assert answer.scores.dtype == np.float32
    assert answer.ranking.tolist() == np.argsort(-answer.scores, kind="stable").tolist()
    assert (answer.model, answer.version, answer.task, answer.backend) == ("linear", "1", "", "cpu")
    assert answer.batches >= 1
    assert answer.queue_s >= 0
    assert answer.compute_s > 0


async def test_equal_scores_keep_the_order_of_the_request(repository, running) -> None:
    query = {"dense": np.zeros((6, 3), np.float32), "ids": np.array([[1, 1], [5, 5]] * 3, np.int32)}
    async with running(repository) as address, AsyncRankClient(address) as client:
        answer = await client.rank("linear", query)
    assert answer.ranking.tolist() == [1, 3, 5, 0, 2, 4]


async def test_candidate_ids_and_top_k_shape_the_ranking_but_not_the_scores(repository, running) -> None:
    query = {
        "dense": np.array([[0, 0, 0], [9, 0, 0], [4, 0, 0]], np.float32),
        "ids": np.zeros((3, 2), np.int32),
    }
    async with running(repository) as address, AsyncRankClient(address) as client:
        answer = await client.rank("linear", query, candidate_ids=[-7, 1 << 40, 3], top_k=2)
        assert answer.ranking.tolist() == [1 << 40, 3]
        assert len(answer.scores) == 3
        assert (await client.rank("linear", query, top_k=99)).ranking.tolist() == [1, 2, 0]


async def test_an_input_of_one_row_holds_for_every_candidate(repository, running) -> None:
    query = random_query(200)
    shared = {"dense": query["dense"][:1], "ids": query["ids"]}
    repeated = {"dense": np.repeat(shared["dense"], 200, axis=0), "ids": query["ids"]}
    async with running(repository, batch_size=16) as address, AsyncRankClient(address) as client:
        answers = await asyncio.gather(*(client.rank("linear", q) for q in (shared, repeated)))
        lone = await client.rank("linear", {"dense": query["dense"][:1], "ids": query["ids"][:1]})
    assert answers[0].scores.tolist() == answers[1].scores.tolist()
    assert lone.scores[0] == answers[0].scores[0]


async def test_a_model_of_several_tasks_ranks_by_the_one_asked_for(repository, running) -> None:
    dense = np.array([[1, 30], [2, 20], [3, 10]], np.float32)
    async with running(repository) as address, AsyncRankClient(address) as client:
        first = await client.rank("two_task", {"dense": dense})
        second = await client.rank("two_task", {"dense": dense}, task="buy")
    assert (first.task, first.ranking.tolist()) == ("click", [2, 1, 0])
    assert (second.task, second.ranking.tolist()) == ("buy", [0, 1, 2])
    assert second.scores.tolist() == dense.tolist()


async def test_further_outputs_come_back_on_request_in_full(repository, running) -> None:
    query = random_query(70)  # more than the model's largest batch: joined from several
    async with running(repository) as address, AsyncRankClient(address) as client:
        answer = await client.rank("linear", query, outputs=["logit", "score"])
        plain = await client.rank("linear", query)
    assert list(answer.outputs) == ["logit", "score"]
    np.testing.assert_allclose(1 / (1 + np.exp(-answer.outputs["logit"][:, 0])), answer.scores, atol=1e-6)
    assert answer.outputs["score"][:, 0].tolist() == answer.scores.tolist() == plain.scores.tolist()
    assert not plain.outputs


async def test_neighbours_that_ask_for_other_outputs_each_get_their_own(repository, running) -> None:
    queries = [random_query(3) for _ in range(40)]
    asked = [["logit"] if i % 2 else [] for i in range(40)]
    async with running(repository, workers=1) as address, AsyncRankClient(address) as client:
        calls = (client.rank("linear", q, outputs=o) for q, o in zip(queries, asked, strict=True))
        answers = await asyncio.gather(*calls)
    for query, names, answer in zip(queries, asked, answers, strict=True):
        np.testing.assert_allclose(answer.scores, linear_scores(query["dense"], query["ids"]), atol=1e-6)
        assert list(answer.outputs) == names


async def test_get_model_tells_all_that_a_valid_query_needs(repository, running) -> None:
    async with running(repository, max_candidates=500, max_message_bytes=1 << 20) as address:
        async with AsyncRankClient(address) as client:
            model = await client.model("linear")
            both = await client.models()
    assert (model.ready, list(model.versions), model.score_output) == (True, ["1"], "score")
    dense, ids = model.inputs
    assert (dense.name, dense.data_type, list(dense.shape)) == ("dense", rank_pb2.DATA_TYPE_FLOAT32, [-1, 3])
    assert (dense.user_side, ids.user_side) == (True, False)
    assert (list(dense.id_rows), list(ids.id_rows)) == ([], [10, 8])
    assert [output.name for output in model.outputs] == ["score", "logit"]
    assert (model.sla.percentile, model.sla.seconds) == (95.0, 0.05)
    assert (model.max_candidates, model.max_request_bytes) == (500, 1 << 20)
    assert [m.name for m in both] == ["linear", "two_task"]
    assert list(both[1].tasks) == ["click", "buy"]


async def test_health_and_reflection_are_on(repository, running) -> None:
    async with running(repository) as address:
        async with grpc.aio.insecure_channel(address) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            for service in ("", "linear", "two_task"):
                answer = await stub.Check(health_pb2.HealthCheckRequest(service=service))
                assert answer.status == health_pb2.HealthCheckResponse.SERVING
        with grpc.insecure_channel(address) as blocking:
            services = await asyncio.to_thread(
                lambda: ProtoReflectionDescriptorDatabase(blocking).get_services()
            )
    assert "deeprecsys.v1.RankService" in services


async def test_the_blocking_client_gives_the_same_answer(repository, running) -> None:
    query = random_query(9)

    def call(address: str) -> tuple[list[float], list[str]]:
        with RankClient(address, timeout_s=10) as client:
            names = [model.name for model in client.models()]
            assert client.model("linear").ready
            return client.rank("linear", query).scores.tolist(), names

    async with running(repository) as address, AsyncRankClient(address) as client:
        scores, names = await asyncio.to_thread(call, address)
        assert scores == (await client.rank("linear", query)).scores.tolist()
        assert names == ["linear", "two_task"]


async def test_a_server_that_is_not_there_is_unavailable(unused_tcp_port: int) -> None:
    async with AsyncRankClient(f"127.0.0.1:{unused_tcp_port}") as client:
        with pytest.raises((UnavailableError, DeadlineExceededError)):
            await client.rank("linear", {}, timeout_s=5)
