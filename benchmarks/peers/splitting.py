"""Splitting by the client: what one does with a server that takes a query as it comes.

A query becomes several requests of at most so many candidates, sent at once; its answer is there when the last of
them is. In the driver such a query is one payload: each request's length, then each request; and so is its answer.
"""

from __future__ import annotations

import asyncio
import itertools
import struct
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from functools import partial

from deeprecsys.v1 import rank_pb2
from services.loadgen.service import Service
from services.loadgen.transport import Transport

_COUNT = struct.Struct("<I")


def split_by_client(service: Service, candidates: int) -> Service:
    """Return the same service, each query of which goes there in requests of at most so many candidates."""
    return replace(
        service,
        connect=partial(_splitting, service.connect),
        encode=lambda request: join([service.encode(part) for part in cut(request, candidates)]),
        count_scores=lambda answer: sum(map(service.count_scores, parts(answer))),
    )


def cut(request: bytes, candidates: int) -> list[bytes]:
    """Return serialised RankRequests of at most so many candidates each, about equal, that make up ``request``.

    An input with a first axis of 1 in a query of several candidates is repeated in each.
    """
    whole = rank_pb2.RankRequest.FromString(request)
    size = max(tensor.shape[0] for tensor in whole.inputs)
    number = -(-size // candidates)
    edges = [size * k // number for k in range(number + 1)]
    return [_rows(whole, size, start, stop).SerializeToString() for start, stop in itertools.pairwise(edges)]


def _rows(whole: rank_pb2.RankRequest, size: int, start: int, stop: int) -> rank_pb2.RankRequest:
    part = rank_pb2.RankRequest()
    part.CopyFrom(whole)
    for tensor in part.inputs:
        if tensor.shape[0] == size:
            row_bytes = len(tensor.data) // size
            tensor.data = tensor.data[start * row_bytes : stop * row_bytes]
            tensor.shape[0] = stop - start
    return part


def join(pieces: Sequence[bytes]) -> bytes:
    """Return the pieces as one payload; :func:`parts` is the way back."""
    lengths = (_COUNT.pack(number) for number in (len(pieces), *map(len, pieces)))
    return b"".join((*lengths, *pieces))


def parts(joined: bytes) -> list[bytes]:
    """Return the pieces that :func:`join` was given."""
    (number,) = _COUNT.unpack_from(joined)
    lengths = struct.unpack_from(f"<{number}I", joined, _COUNT.size)
    found, offset = [], _COUNT.size * (1 + number)
    for length in lengths:
        found.append(joined[offset : offset + length])
        offset += length
    return found


class _SplittingTransport:
    def __init__(self, inner: Transport) -> None:
        self._inner = inner

    async def send(self, payload: bytes, timeout_s: float | None) -> bytes:
        """Send the pieces at once and return their answers, in order; the first that fails fails the query."""
        pieces = parts(payload)
        if len(pieces) == 1:
            return join([await self._inner.send(pieces[0], timeout_s)])
        return join(await asyncio.gather(*(self._inner.send(piece, timeout_s) for piece in pieces)))


@asynccontextmanager
async def _splitting(
    connect: Callable[[], AbstractAsyncContextManager[Transport]],
) -> AsyncIterator[Transport]:
    async with connect() as inner:
        yield _SplittingTransport(inner)
