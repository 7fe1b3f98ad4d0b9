"""The boundary between handlers and gRPC: errors become statuses, and faults that nobody foresaw stay in the log."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, NoReturn, TypeVar

import grpc
from grpc_status import rpc_status

from deeprecsys.errors import InternalError, RankError
from deeprecsys.status import to_status

_log = logging.getLogger(__name__)

_Request = TypeVar("_Request")
_Response = TypeVar("_Response")
Context = grpc.aio.ServicerContext[Any, Any]


async def answer(
    handle: Callable[[_Request, Context], Awaitable[_Response]], request: _Request, context: Context
) -> _Response:
    """Await a handler; its RankError becomes the call's status."""
    try:
        return await handle(request, context)
    except RankError as error:
        await abort(context, error)
    except grpc.aio.AbortError:
        raise
    except Exception:  # noqa: BLE001 - the boundary: the trace goes to the log, INTERNAL to the client
        _log.exception("unforeseen fault", extra={"request_id": getattr(request, "request_id", "")[:128]})
        await abort(context, InternalError("internal fault; the server's log has the trace"))


@asynccontextmanager
async def abort_on_error(context: Context) -> AsyncIterator[None]:
    """Turn a RankError of the block into the call's status, for handlers that stream."""
    try:
        yield
    except RankError as error:
        await abort(context, error)


async def abort(context: Context, error: RankError) -> NoReturn:
    """End the call with the status of an error."""
    status = rpc_status.to_status(to_status(error))
    await context.abort(status.code, status.details, status.trailing_metadata)
