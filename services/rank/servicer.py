"""RankService: messages in, messages out. What lies between is the decoder's and the dispatcher's."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any, NoReturn, TypeVar

import grpc
import numpy as np
from grpc_status import rpc_status

from deeprecsys.errors import InternalError, RankError, UnavailableError
from deeprecsys.status import to_status
from deeprecsys.tensors import fill_tensor
from deeprecsys.v1 import rank_pb2, rank_pb2_grpc
from services.rank.catalogue import Catalogue, ServedModel
from services.rank.dispatcher import Dispatcher, Scored
from services.rank.query_decoder import DecodedQuery, decode

_log = logging.getLogger(__name__)

_Request = TypeVar("_Request")
_Response = TypeVar("_Response")
Context = grpc.aio.ServicerContext[Any, Any]


class RankServicer(rank_pb2_grpc.RankServiceServicer):
    """Answers RankService. ``draining`` is set once no new query may begin."""

    def __init__(self, catalogue: Catalogue, dispatcher: Dispatcher, max_candidates: int) -> None:
        self._catalogue = catalogue
        self._dispatcher = dispatcher
        self._max_candidates = max_candidates
        self.draining = False

    async def Rank(self, request: rank_pb2.RankRequest, context: Context) -> rank_pb2.RankResponse:  # noqa: N802
        """Score and rank the candidates of one query."""
        return await _answer(self._rank, request, context)

    async def ListModels(  # noqa: N802
        self, request: rank_pb2.ListModelsRequest, context: Context
    ) -> rank_pb2.ListModelsResponse:
        """Describe every model directory."""
        return await _answer(self._list_models, request, context)

    async def GetModel(  # noqa: N802
        self, request: rank_pb2.GetModelRequest, context: Context
    ) -> rank_pb2.GetModelResponse:
        """Describe one model."""
        return await _answer(self._get_model, request, context)

    async def _rank(self, request: rank_pb2.RankRequest, context: Context) -> rank_pb2.RankResponse:
        if self.draining:
            raise UnavailableError("the server is draining")
        model = self._catalogue.find(request.model, request.version)
        decoded = decode(request, model.spec, model.spec.largest_query(self._max_candidates))
        scored = await self._dispatcher.score(model, decoded, context.time_remaining())
        return build_response(request, model, decoded, scored)

    async def _list_models(self, _: Any, __: Context) -> rank_pb2.ListModelsResponse:
        names = self._catalogue.names()
        return rank_pb2.ListModelsResponse(models=[self._catalogue.describe(name) for name in names])

    async def _get_model(self, request: rank_pb2.GetModelRequest, _: Context) -> rank_pb2.GetModelResponse:
        return rank_pb2.GetModelResponse(model=self._catalogue.describe(request.name, request.version))


def build_response(
    request: rank_pb2.RankRequest, model: ServedModel, decoded: DecodedQuery, scored: Scored
) -> rank_pb2.RankResponse:
    """Return the message of an answer: scores as float32 [N] or [N, tasks], the ranking best first."""
    spec = model.spec
    scores = np.asarray(scored.outputs[0], dtype=np.float32)
    if len(spec.tasks) <= 1:
        scores = scores.reshape(len(scores))
    by_task = scores if scores.ndim == 1 else scores[:, decoded.task]
    ranking = np.argsort(-by_task, kind="stable")[: decoded.top_k or None]
    if decoded.candidate_ids is not None:
        ranking = decoded.candidate_ids[ranking]
    # Filled in place: messages handed to a constructor are copied.
    response = rank_pb2.RankResponse(model=spec.name, version=spec.version, request_id=request.request_id)
    if spec.tasks:
        response.task = spec.tasks[decoded.task]
    fill_tensor(response.scores, spec.score_output, scores)
    fill_tensor(response.ranking, "ranking", ranking)
    if decoded.outputs:
        others = (name for name in decoded.outputs if name != spec.score_output)
        by_name = dict(zip((spec.score_output, *others), scored.outputs, strict=True))
        for name in decoded.outputs:
            fill_tensor(response.outputs.add(), name, by_name[name])
    execution = response.execution
    execution.backend = scored.backend
    execution.batches = scored.batches
    execution.queue_seconds = scored.queue_s
    execution.compute_seconds = scored.compute_s
    return response


async def _answer(
    handle: Callable[[_Request, Context], Awaitable[_Response]], request: _Request, context: Context
) -> _Response:
    """Await a handler and turn its errors into statuses; a fault that nobody foresaw is logged and not shown."""
    try:
        return await handle(request, context)
    except RankError as error:
        await _abort(context, error)
    except grpc.aio.AbortError:
        raise
    except Exception:  # noqa: BLE001 - the boundary: the trace goes to the log, INTERNAL to the client
        _log.exception("unforeseen fault", extra={"request_id": getattr(request, "request_id", "")[:128]})
        await _abort(context, InternalError("internal fault; the server's log has the trace"))


async def _abort(context: Context, error: RankError) -> NoReturn:
    status = rpc_status.to_status(to_status(error))
    await context.abort(status.code, status.details, status.trailing_metadata)
