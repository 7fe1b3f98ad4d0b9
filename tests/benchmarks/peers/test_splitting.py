"""Splitting by the client, and the smallest of the peers for real."""

from __future__ import annotations

import asyncio
from pathlib import Path

import grpc
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.peers.contestants import PLAIN
from benchmarks.peers.peer import Case, split
from benchmarks.peers.splitting import cut, join, parts, split_by_client
from deeprecsys.client import build_request
from deeprecsys.tensors import to_array
from deeprecsys.v1 import rank_pb2
from services.loadgen.run import run_load
from services.loadgen.service import Service, rank_service
from services.loadgen.settings import LoadSettings, ModelShare
from services.loadgen.transport import SendFailedError
from tests.conftest import linear_scores


def request(size: int, shared: bool = False) -> bytes:
    rng = np.random.default_rng(size)
    dense = rng.random((1 if shared else size, 3), np.float32)
    ids = rng.integers(0, 8, (size, 2), np.int32)
    return build_request("linear", {"dense": dense, "ids": ids}).SerializeToString()


def arrays(payload: bytes) -> dict[str, np.ndarray]:
    return {tensor.name: to_array(tensor) for tensor in rank_pb2.RankRequest.FromString(payload).inputs}


@given(st.lists(st.binary()))
def test_what_was_joined_comes_apart_again(pieces: list[bytes]) -> None:
    assert parts(join(pieces)) == pieces


@given(st.integers(1, 100), st.integers(1, 40))
def test_the_pieces_of_a_query_are_small_enough_about_equal_and_make_it_up(size: int, most: int) -> None:
    whole, pieces = arrays(request(size)), [arrays(piece) for piece in cut(request(size), most)]
    sizes = [len(piece["ids"]) for piece in pieces]
    assert max(sizes) <= most
    assert max(sizes) - min(sizes) <= 1
    assert len(pieces) == -(-size // most)
    for name, array in whole.items():
        np.testing.assert_array_equal(np.concatenate([piece[name] for piece in pieces]), array)


def test_the_side_of_the_user_goes_with_every_piece() -> None:
    pieces = [arrays(piece) for piece in cut(request(10, shared=True), 4)]
    assert [len(piece["ids"]) for piece in pieces] == [3, 3, 4]
    assert [len(piece["dense"]) for piece in pieces] == [1, 1, 1]


def test_a_query_fails_as_its_first_piece_does() -> None:
    class Refusing:
        async def send(self, payload: bytes, timeout_s: float | None) -> bytes:
            if payload == b"bad":
                raise SendFailedError(grpc.StatusCode.RESOURCE_EXHAUSTED)
            return payload

    async def sent(*pieces: bytes) -> bytes:
        async with service.connect() as transport:
            return await transport.send(join(pieces), 1.0)

    class Opened(Refusing):
        async def __aenter__(self) -> Refusing:
            return self

        async def __aexit__(self, *_: object) -> None:
            return None

    service = split_by_client(Service(rank_service("nowhere").models, Opened), 8)
    assert parts(asyncio.run(sent(b"good", b"", b"better"))) == [b"good", b"", b"better"]
    with pytest.raises(SendFailedError) as caught:
        asyncio.run(sent(b"good", b"bad"))
    assert caught.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.parametrize(
    "peer", [PLAIN, split(PLAIN, ({**PLAIN.grid[2], "split": 7},))], ids=lambda p: p.name
)
def test_the_plain_peer_scores_a_query_and_bears_load(repository: Path, peer) -> None:
    case = Case(repository, "linear", 5000.0)
    payload = request(40)
    with peer.serve(case, peer.grid[0]) as serving:
        service = serving.service

        async def ask() -> bytes:
            async with service.connect() as transport:
                return await transport.send(service.encode(payload), 10.0)

        answer = asyncio.run(ask())
        settings = LoadSettings("peer", (ModelShare("linear"),), 50.0, 1.0, 0.0, min_queries=1)
        found = run_load(settings, service=service).models[0]
    assert service.count_scores(answer) == 40
    answers = parts(answer) if "split" in peer.grid[0] else [answer]
    assert len(answers) == (6 if "split" in peer.grid[0] else 1)
    scores = np.concatenate([to_array(rank_pb2.RankResponse.FromString(each).scores) for each in answers])
    sent = arrays(payload)
    np.testing.assert_allclose(scores[:, 0], linear_scores(sent["dense"], sent["ids"]), rtol=1e-5)
    assert found.sla.seconds == 5.0
    assert set(found.codes) == {"OK"}
