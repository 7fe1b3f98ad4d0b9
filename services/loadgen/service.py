"""What is driven: how its models are learnt, how a query is written for it, and the way to it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from functools import partial

from deeprecsys.client import AsyncRankClient
from deeprecsys.v1 import rank_pb2
from services.loadgen.settings import ModelShare
from services.loadgen.transport import Transport, grpc_transport

CONNECT_TIMEOUT_S = 10.0


def _as_it_is(request: bytes) -> bytes:
    return request


def _count_scores(answer: bytes) -> int:
    return next(iter(rank_pb2.RankResponse.FromString(answer).scores.shape), 0)


@dataclass(frozen=True)
class Service:
    """A service that can be driven. Another than RankService needs a transport and two translations.

    models: returns for each model of the run what its queries look like (names, types, shapes, ids, target).
    connect: opens a transport for as long as the block lasts. Driver processes get it pickled: a function of a
        module, or a ``functools.partial`` of one.
    encode: a serialised RankRequest as this service wants it; called before the run, once for each request.
    count_scores: how many scores an answer has; 0 for what is no answer.
    """

    models: Callable[[Sequence[ModelShare]], Awaitable[list[rank_pb2.Model]]]
    connect: Callable[[], AbstractAsyncContextManager[Transport]]
    encode: Callable[[bytes], bytes] = _as_it_is
    count_scores: Callable[[bytes], int] = _count_scores


def rank_service(target: str, channels: int = 1) -> Service:
    """Return the RankService at ``target``, reached over so many connections, taken in turn."""

    async def models(shares: Sequence[ModelShare]) -> list[rank_pb2.Model]:
        async with AsyncRankClient(target, timeout_s=CONNECT_TIMEOUT_S) as client:
            return [await client.model(share.name, version=share.version) for share in shares]

    return Service(models, partial(grpc_transport, target, channels))
