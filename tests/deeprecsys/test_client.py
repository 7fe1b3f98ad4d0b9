from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from importlib.resources import files

import numpy as np
import pytest

import deeprecsys
from deeprecsys import AsyncRankClient, RankClient
from deeprecsys.client import build_request
from deeprecsys.errors import FieldViolation, InvalidQueryError, UnavailableError

INPUTS = {"x": np.zeros((2, 1), np.float32)}


@pytest.mark.parametrize(
    "ids",
    [
        [1, 2],
        (-(2**63), 2**63 - 1),
        np.array([3, 250], np.uint8),
        np.array([0, 2**63 - 1], np.uint64),
        np.array([1, -1], ">i4"),
        np.arange(4)[::2],
    ],
)
def test_candidate_ids_travel_as_they_are(ids: object) -> None:
    sent = np.frombuffer(build_request("m", INPUTS, candidate_ids=ids).candidate_ids, "<i8")
    assert sent.tolist() == [int(number) for number in ids]


@pytest.mark.parametrize(
    "ids",
    [
        [1.7, 2.2],
        [1.0, 2.0],
        np.array([1, 2**63 + 5], np.uint64),
        [2**63, 1],
        [-1, 2**63],
        [2**64, 1],
        [-(2**63) - 1, 1],
        ["1", "2"],
        [True, False],
        [None, 1],
        [[1], [2, 3]],
        [],
    ],
)
def test_ids_that_would_become_others_are_violations_of_their_field(ids: object) -> None:
    with pytest.raises(InvalidQueryError) as caught:
        build_request("m", INPUTS, candidate_ids=ids)
    (violation,) = caught.value.violations
    assert violation.field == "candidate_ids"
    assert "\n" not in violation.description


def test_an_id_that_is_too_large_is_named() -> None:
    with pytest.raises(InvalidQueryError) as caught:
        build_request("m", INPUTS, candidate_ids=[2**63])
    assert caught.value.violations == (
        FieldViolation("candidate_ids", f"{2**63} is above {2**63 - 1}, the largest INT64"),
    )


@pytest.mark.parametrize("wrong", [{"top_k": 2**40}, {"top_k": -(2**70)}, {"version": 5}, {"outputs": [1]}])
def test_what_no_message_can_hold_is_an_invalid_query(wrong: dict[str, object]) -> None:
    with pytest.raises(InvalidQueryError):
        build_request("m", INPUTS, **wrong)


@pytest.fixture
def silent() -> Iterator[str]:
    """The address of a server that takes connections and never says a word."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield f"127.0.0.1:{listening.getsockname()[1]}"


def test_a_closed_client_is_unavailable(silent: str) -> None:
    with RankClient(silent) as client:
        pass
    for call in (client.models, lambda: client.model("m"), lambda: client.rank("m", INPUTS)):
        with pytest.raises(UnavailableError, match="^the client is closed$"):
            call()


async def test_a_closed_async_client_is_unavailable(silent: str) -> None:
    async with AsyncRankClient(silent) as client:
        pass
    for call in (client.models, lambda: client.model("m"), lambda: client.rank("m", INPUTS)):
        with pytest.raises(UnavailableError, match="^the client is closed$"):
            await call()


def test_closing_ends_the_calls_in_flight(silent: str) -> None:
    client, caught = RankClient(silent), []

    def call() -> None:
        try:
            client.models()
        except UnavailableError as error:
            caught.append(error)

    caller = threading.Thread(target=call)
    caller.start()
    client.close()
    caller.join()
    assert len(caught) == 1


async def test_closing_ends_the_async_calls_in_flight(silent: str) -> None:
    client = AsyncRankClient(silent)
    call = asyncio.create_task(client.models())
    await asyncio.sleep(0)
    await client.close()
    with pytest.raises(UnavailableError, match="^the client is closed$"):
        await call


async def test_a_cancelled_caller_is_cancelled_and_nothing_else(silent: str) -> None:
    async with AsyncRankClient(silent) as client:
        call = asyncio.create_task(client.models())
        await asyncio.sleep(0)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call


def test_the_package_says_that_it_is_typed() -> None:
    assert (files(deeprecsys) / "py.typed").is_file()
