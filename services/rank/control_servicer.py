"""ControlService: what DeepRecSched has chosen, why, and how to overrule it."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from typing import Any

from deeprecsys.errors import FieldViolation, InvalidQueryError, ModelNotFoundError
from deeprecsys.v1 import control_pb2, control_pb2_grpc
from scheduler.batching import Batcher
from scheduler.controller import Controller
from scheduler.plan import OperatingPoint
from services.rank.answering import Context, abort_on_error, answer
from services.rank.catalogue import Catalogue
from services.rank.model import ModelSpec
from services.rank.offloading import Offloader
from services.rank.steering import DatedDecision, Steering


class ControlServicer(control_pb2_grpc.ControlServiceServicer):
    """Answers ControlService from the steering of this server."""

    def __init__(
        self,
        catalogue: Catalogue,
        steering: Steering,
        controller: Controller,
        batcher: Batcher,
        offloader: Offloader | None = None,
    ) -> None:
        self._catalogue = catalogue
        self._steering = steering
        self._controller = controller
        self._batcher = batcher
        self._offloader = offloader

    async def ListOperatingPoints(  # noqa: N802
        self, request: control_pb2.ListOperatingPointsRequest, context: Context
    ) -> control_pb2.ListOperatingPointsResponse:
        """Return where each model stands."""
        return await answer(self._list, request, context)

    async def PinOperatingPoint(  # noqa: N802
        self, request: control_pb2.PinOperatingPointRequest, context: Context
    ) -> control_pb2.PinOperatingPointResponse:
        """Hold a model at a point."""
        return await answer(self._pin, request, context)

    async def UnpinOperatingPoint(  # noqa: N802
        self, request: control_pb2.UnpinOperatingPointRequest, context: Context
    ) -> control_pb2.UnpinOperatingPointResponse:
        """Let the controller choose."""
        return await answer(self._unpin, request, context)

    async def Retune(  # noqa: N802
        self, request: control_pb2.RetuneRequest, context: Context
    ) -> control_pb2.RetuneResponse:
        """Learn anew."""
        return await answer(self._retune, request, context)

    async def WatchDecisions(  # noqa: N802
        self, request: control_pb2.WatchDecisionsRequest, context: Context
    ) -> AsyncIterator[control_pb2.WatchDecisionsResponse]:
        """Stream decisions until the caller hangs up or the server drains."""
        async with abort_on_error(context):
            if request.model:
                self._catalogue.find(request.model, "")
        queue = self._steering.watch()
        try:
            while True:
                dated = await queue.get()
                if request.model in ("", dated.spec.name):
                    yield control_pb2.WatchDecisionsResponse(decision=_decision(dated))
        finally:
            self._steering.unwatch(queue)

    async def _list(
        self, request: control_pb2.ListOperatingPointsRequest, _: Context
    ) -> control_pb2.ListOperatingPointsResponse:
        specs = [s for s in self._steering.specs() if request.model in ("", s.name)]
        if request.model and not specs:
            raise ModelNotFoundError(f'model "{request.model[:100]}" is not served here')
        specs.sort(key=lambda spec: (spec.name, spec.version))
        return control_pb2.ListOperatingPointsResponse(models=[self._operation(spec) for spec in specs])

    async def _pin(
        self, request: control_pb2.PinOperatingPointRequest, _: Context
    ) -> control_pb2.PinOperatingPointResponse:
        spec = self._spec(request)
        self._steering.pin(spec, _point(request.point, spec, may_offload=self._offloader is not None))
        return control_pb2.PinOperatingPointResponse(model=self._operation(spec))

    async def _unpin(
        self, request: control_pb2.UnpinOperatingPointRequest, _: Context
    ) -> control_pb2.UnpinOperatingPointResponse:
        spec = self._spec(request)
        self._steering.unpin(spec)
        return control_pb2.UnpinOperatingPointResponse(model=self._operation(spec))

    async def _retune(self, request: control_pb2.RetuneRequest, _: Context) -> control_pb2.RetuneResponse:
        spec = self._spec(request)
        self._steering.retune(spec)
        return control_pb2.RetuneResponse(model=self._operation(spec))

    def _spec(self, request: Any) -> ModelSpec:
        return self._catalogue.find(request.model, request.version).spec

    def _operation(self, spec: ModelSpec) -> control_pb2.ModelOperation:
        seen = self._controller.seen(spec.key)
        return control_pb2.ModelOperation(
            model=spec.name,
            version=spec.version,
            point=_message(self._batcher.plan(spec.key).point),
            pinned=self._controller.pinned(spec.key) is not None,
            sla_percentile=spec.sla.percentile,
            sla_seconds=spec.sla.seconds,
            arrival_qps=seen.qps,
            waiting_candidates=self._batcher.waiting(spec.key),
            seen_tail_seconds=_or_zero(seen.tail_s),
            accelerators=self._accelerators(spec),
        )

    def _accelerators(self, spec: ModelSpec) -> list[control_pb2.Accelerator]:
        states = [] if self._offloader is None else self._offloader.states(spec.key)
        return [control_pb2.Accelerator(endpoint=s.endpoint, ready=s.ready, reason=s.reason) for s in states]


def _point(message: control_pb2.OperatingPoint, spec: ModelSpec, *, may_offload: bool) -> OperatingPoint:
    """Return the point that a caller asks for; InvalidQueryError for one that cannot be run."""
    violations = []
    if not 1 <= message.batch_size <= spec.largest_batch:
        rule = f"must be from 1 to {spec.largest_batch}; it is {message.batch_size}"
        violations.append(FieldViolation("point.batch_size", rule))
    if message.offload_from < 0 or (message.offload_from and not may_offload):
        rule = "must be 0 for none, or more" if may_offload else "must be 0: no accelerator is configured"
        violations.append(FieldViolation("point.offload_from", f"{rule}; it is {message.offload_from}"))
    if violations:
        raise InvalidQueryError(violations)
    return OperatingPoint(message.batch_size, message.offload_from or None)


def _message(point: OperatingPoint) -> control_pb2.OperatingPoint:
    return control_pb2.OperatingPoint(batch_size=point.batch_size, offload_from=point.offload_from or 0)


def _decision(dated: DatedDecision) -> control_pb2.Decision:
    decision = dated.decision
    message = control_pb2.Decision(
        model=dated.spec.name,
        version=dated.spec.version,
        old_point=_message(decision.old),
        new_point=_message(decision.new),
        reason=decision.reason,
        predicted_tail_seconds=_or_zero(decision.predicted_tail_s),
        seen_tail_seconds=_or_zero(decision.seen_tail_s),
    )
    message.time.FromNanoseconds(round(dated.time_s * 1e9))
    return message


def _or_zero(seconds: float) -> float:
    return 0.0 if math.isnan(seconds) else seconds
