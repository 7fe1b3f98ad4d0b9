"""RankService: messages in, messages out. What lies between is the decoder's and the dispatcher's."""

from __future__ import annotations

import asyncio
import time
from typing import Any, Protocol

import numpy as np

from deeprecsys.errors import DeadlineExceededError, OverloadedError, RankError, UnavailableError
from deeprecsys.status import CODES
from deeprecsys.tensors import fill_tensor
from deeprecsys.v1 import rank_pb2, rank_pb2_grpc
from services.rank.answering import Context, answer
from services.rank.catalogue import Catalogue, ServedModel
from services.rank.dispatcher import Dispatcher, Scored
from services.rank.query_decoder import DecodedQuery, decode


class CallObserver(Protocol):
    """Who learns how each Rank call ended. ``seconds``: from the parsed request to the end."""

    def answered(self, name: str, backend: str, seconds: float) -> None:
        """Note an answer of a model."""

    def failed(self, name: str, code: str, shed: str, seconds: float) -> None:
        """Note a failure: the model asked for, served or not, the gRPC code, and why it was shed, "" if it was not."""


class RankServicer(rank_pb2_grpc.RankServiceServicer):
    """Answers RankService. ``draining`` is set once no new query may begin; ``calls`` counts queries."""

    def __init__(
        self,
        catalogue: Catalogue,
        dispatcher: Dispatcher,
        max_candidates: int,
        observer: CallObserver | None = None,
    ) -> None:
        self._catalogue = catalogue
        self._dispatcher = dispatcher
        self._max_candidates = max_candidates
        self._observer = observer
        self._handle = self._rank if observer is None else self._observed
        self.draining = False
        self.calls = 0

    async def Rank(self, request: rank_pb2.RankRequest, context: Context) -> rank_pb2.RankResponse:  # noqa: N802
        """Score and rank the candidates of one query."""
        return await answer(self._handle, request, context)

    async def ListModels(  # noqa: N802
        self, request: rank_pb2.ListModelsRequest, context: Context
    ) -> rank_pb2.ListModelsResponse:
        """Describe every model directory."""
        return await answer(self._list_models, request, context)

    async def GetModel(  # noqa: N802
        self, request: rank_pb2.GetModelRequest, context: Context
    ) -> rank_pb2.GetModelResponse:
        """Describe one model."""
        return await answer(self._get_model, request, context)

    async def _rank(self, request: rank_pb2.RankRequest, context: Context) -> rank_pb2.RankResponse:
        self.calls += 1
        if self.draining:
            raise UnavailableError("the server is draining")
        model = self._catalogue.find(request.model, request.version)
        decoded = decode(request, model.spec, model.spec.largest_query(self._max_candidates))
        scored = await self._dispatcher.score(model, decoded, context.time_remaining())
        return build_response(request, model, decoded, scored)

    async def _observed(self, request: rank_pb2.RankRequest, context: Context) -> rank_pb2.RankResponse:
        """Rank, and tell the observer how it ended."""
        assert self._observer is not None
        began_s = time.perf_counter()
        try:
            response = await self._rank(request, context)
        except BaseException as error:
            code, shed = self._ending(error, context)
            self._observer.failed(request.model, code, shed, time.perf_counter() - began_s)
            raise
        self._observer.answered(response.model, response.execution.backend, time.perf_counter() - began_s)
        return response

    def _ending(self, error: BaseException, context: Context) -> tuple[str, str]:
        """Return the gRPC code of what ended a call, and why the query was shed, "" if it was not."""
        if isinstance(error, asyncio.CancelledError) and context.time_remaining() == 0:
            error = DeadlineExceededError()  # gRPC cancels a call whose deadline has passed
        code = CODES[type(error)].name if isinstance(error, RankError) else "INTERNAL"
        if isinstance(error, asyncio.CancelledError):
            code = "CANCELLED"
        shed = ""
        if isinstance(error, OverloadedError):
            shed = error.limit
        elif isinstance(error, DeadlineExceededError):
            shed = "expired"
        elif isinstance(error, UnavailableError) and self.draining:
            shed = "draining"
        return code, shed

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
