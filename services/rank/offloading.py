"""Offloading: which endpoint gets a query, what becomes of it there, and whether the endpoint gets the next one.

Everything runs on the loop thread. A query's outcome is told exactly once; whoever began the attempt decides what then.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterator, Sequence

from deeprecsys.errors import InvalidSettingError
from deeprecsys.tensors import Array
from scheduler.breaker import Patience
from services.rank.catalogue import ServedModel
from services.rank.engine import EngineError
from services.rank.model import ModelSpec
from services.rank.triton_admission import ModelRefusedError, Sample, admit, take_sample
from services.rank.triton_endpoint import (
    AttemptFailedError,
    Endpoint,
    EndpointAwayError,
    EndpointBusyError,
    SilentError,
    UnresolvedError,
)
from services.rank.triton_link import Attempt, Bounds, Done, Link, LinkState, Offloaded, Part
from services.rank.triton_memory import TensorMemory
from services.rank.triton_messages import request_bytes

_log = logging.getLogger(__name__)

REFUSED_WAIT_S = 5.0
"""How often a model that the server has otherwise is compared again."""

TOLERANCE = 0.05
"""Other weights move scores by as much as they spread; half precision and TensorRT by a hundredth of that."""

Changed = Callable[[ModelSpec, bool], None]
"""Told when a model's first endpoint came, and when its last one went."""


class Offloader:
    """Sends whole queries to the endpoints that are ready for their model; make and use it on the loop thread.

    ``changed`` is told when a model can be offloaded, and when it no longer can. ``tolerance``: how far an endpoint's
    scores of a sample may be from the CPU's, as a share of the sample's spread.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        changed: Changed,
        bounds: Bounds | None = None,
        patience: Patience | None = None,
        tolerance: float = TOLERANCE,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._changed = changed
        self.bounds = bounds or Bounds()
        self._patience = patience or Patience()
        self._tolerance = tolerance
        self._links: dict[str, list[Link]] = {}
        self._samples: dict[str, Sample] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._timers: dict[Link, asyncio.TimerHandle] = {}
        shared_bytes = self.bounds.shared_bytes
        self._memories: dict[Endpoint, TensorMemory | None] = {}
        try:
            for address in addresses:
                memory = TensorMemory(shared_bytes) if shared_bytes else None
                self._memories[Endpoint(address)] = memory
        except InvalidSettingError:
            for made in self._memories.values():
                if made is not None:
                    made.remove()
            raise
        for endpoint in self._memories:
            self._spawn(self._listen(endpoint))

    def add(self, model: ServedModel) -> None:
        """Offload this model to every endpoint that turns out to have it; the asking goes on in the background."""
        links = [Link(endpoint, memory, model, self._patience) for endpoint, memory in self._memories.items()]
        self._links[model.spec.key] = links
        for link in links:
            self._probe_when_due(link)

    def states(self, key: str) -> list[LinkState]:
        """Return where each endpoint stands for a model; KeyError for an unknown one."""
        return [LinkState(link.endpoint.address, link.ready, link.reason) for link in self._links[key]]

    def begin(
        self,
        spec: ModelSpec,
        inputs: Sequence[Array],
        size: int,
        outputs: Sequence[str],
        limit_s: float,
        done: Done,
    ) -> Attempt | None:
        """Send a query to the ready endpoint with the least candidates on the way; None when none takes it.

        ``inputs`` in the model's order, first axis ``size`` or 1. ``done`` gets the outcome on a later turn of the
        loop, within ``limit_s`` seconds, unless the attempt is cancelled first.
        """
        tensor_bytes = request_bytes(inputs, size)
        links = [link for link in self._links[spec.key] if link.takes(outputs, tensor_bytes, self.bounds)]
        if not links:
            return None
        link = min(links, key=lambda link: link.endpoint.candidates)
        attempt = Attempt(link, size, tensor_bytes, self._loop.time(), done)
        attempt.follow(self._spawn(self._make(attempt, inputs, outputs, limit_s)))
        if link.watch is None:
            self._watch_until(link, link.breaker.hang_due_s(attempt.sent_s))
        return attempt

    async def close(self) -> None:
        """Ask no more, cancel what is on the way, and close the channels."""
        for timer in [*self._timers.values(), *(link.watch for link in self.links() if link.watch)]:
            timer.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for endpoint, memory in self._memories.items():
            if memory is not None:
                await memory.close(endpoint)
            await endpoint.close()

    @property
    def endpoints(self) -> list[Endpoint]:
        """The endpoints, in the order in which they were named."""
        return list(self._memories)

    def links(self) -> Iterator[Link]:
        """Iterate over every model at every endpoint."""
        for links in self._links.values():
            yield from links

    # ---- attempts ----

    async def _make(
        self, attempt: Attempt, inputs: Sequence[Array], outputs: Sequence[str], limit_s: float
    ) -> None:
        parts: list[Part] = []
        fault: EngineError | None = None
        try:
            parts = await attempt.link.infer(inputs, attempt.size, outputs, limit_s)
        except EngineError as error:
            fault = error
        except Exception as error:  # noqa: BLE001 - the task's boundary: a query must have its outcome whatever happens
            _log.exception("unforeseen fault", extra={"endpoint": attempt.link.endpoint.address})
            fault = AttemptFailedError(f"{type(error).__name__}: {error}")
        if attempt.over:
            return
        if fault is None:
            attempt.link.breaker.answered(self._loop.time())
            attempt.finish(Offloaded(parts, None))
            return
        opened = self._is_outage(attempt, fault)
        attempt.finish(Offloaded([], fault))
        if opened:
            _take_back(attempt.link, fault)

    def _is_outage(self, attempt: Attempt, fault: EngineError) -> bool:
        """Tell the breaker of a fault, and all who rely on the link if that opened it; return whether it did."""
        link, now = attempt.link, self._loop.time()
        if isinstance(fault, EndpointBusyError):
            link.breaker.answered(now)
            return False
        note = link.breaker.away if isinstance(fault, EndpointAwayError) else link.breaker.failed
        opened = note(attempt.sent_s, now)
        if opened:
            self._opened(link, fault)
        elif link.ready and now - link.reported_s >= 1.0:
            link.reported_s = now
            extra = {"model": link.spec.key, "endpoint": link.endpoint.address, "reason": str(fault)}
            _log.warning("the accelerator failed on a query; the CPU takes it", extra=extra)
        return opened

    def _watch_until(self, link: Link, due_s: float) -> None:
        link.watch = self._loop.call_at(due_s, self._look, link)

    def _look(self, link: Link) -> None:
        """Take back what is on the way where the endpoint hangs; look again later while anything is."""
        link.watch = None
        if not link.attempts:
            return
        oldest_s = min(attempt.sent_s for attempt in link.attempts)
        due_s = link.breaker.hang_due_s(oldest_s)
        if self._loop.time() < due_s:
            self._watch_until(link, due_s)
        elif link.breaker.hangs(oldest_s, self._loop.time()):
            fault = AttemptFailedError("no answer, and none to any other query, for too long")
            self._opened(link, fault)
            _take_back(link, fault)

    def _opened(self, link: Link, fault: EngineError) -> None:
        link.openings += 1
        link.reason = str(fault)
        extra = {"model": link.spec.key, "endpoint": link.endpoint.address, "reason": link.reason}
        _log.warning("accelerator away", extra=extra)
        self._probe_when_due(link)
        self._tell(link, was_ready=True)

    def _tell(self, link: Link, *, was_ready: bool) -> None:
        """Report the model where this link was the only one that was ready, or is."""
        others = any(other.ready for other in self._links[link.spec.key] if other is not link)
        if not others and link.ready is not was_ready:
            self._changed(link.spec, link.ready)

    async def _listen(self, endpoint: Endpoint) -> None:
        """Ask an endpoint for its models again whenever the connection was lost: another server may answer there.

        What is on the way is left to end by itself: a server that stops in order still answers it.
        """
        while True:
            await endpoint.lost()
            for link in self.links():
                now = self._loop.time()
                if link.endpoint is endpoint and link.breaker.away(now, now):
                    self._opened(link, EndpointAwayError("the connection was lost"))

    # ---- probes ----

    def _probe_when_due(self, link: Link) -> None:
        due_s = max(link.breaker.probe_due_s, self._loop.time())
        self._timers[link] = self._loop.call_at(due_s, self._begin_probe, link)

    def _begin_probe(self, link: Link) -> None:
        # The loop may call a little before the time that it was asked for.
        if link.breaker.begin_probe(max(self._loop.time(), link.breaker.probe_due_s)):
            self._spawn(self._probe(link))

    async def _probe(self, link: Link) -> None:
        """Ask the endpoint for the model once; further queries go there, or the next probe is due later."""
        extra: dict[str, object] = {"model": link.spec.key, "endpoint": link.endpoint.address}
        before = link.reason
        try:
            sample = await self._sample(link.model)
            link.terms = await admit(link.endpoint, link.spec, sample, self._tolerance)
            await _share(link)
        except Exception as fault:  # noqa: BLE001 - the task's boundary: whatever happened, it must be asked again
            if not isinstance(fault, EngineError):
                _log.exception("unforeseen fault", extra=extra)
            link.reason = str(fault) or type(fault).__name__
            wait_s = REFUSED_WAIT_S if isinstance(fault, ModelRefusedError) else None
            link.breaker.probe_failed(self._loop.time(), wait_s)
            self._probe_when_due(link)
            if link.reason != before:
                what = "accelerator refused" if wait_s else "accelerator away"
                _log.warning(what, extra={**extra, "reason": link.reason})
            if isinstance(fault, UnresolvedError | SilentError):
                await link.endpoint.reopen()
            return
        link.reason = ""
        link.breaker.probe_succeeded(self._loop.time())
        _log.info("accelerator ready", extra=extra)
        self._tell(link, was_ready=False)

    async def _sample(self, model: ServedModel) -> Sample:
        """Return what the CPU makes of a sample; computed when an endpoint first asks for it, off the loop."""
        key = model.spec.key
        if key not in self._samples:
            self._samples[key] = await asyncio.to_thread(take_sample, model)
        return self._samples[key]

    def _spawn(self, coroutine: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = self._loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (fault := task.exception()) is not None:
            _log.error("unforeseen fault", exc_info=fault)


async def _share(link: Link) -> None:
    """Offer the endpoint the shared memory; where it cannot have it, tensors travel in messages."""
    if link.memory is None:
        return
    try:
        await link.memory.offer(link.endpoint)
    except EngineError as fault:
        extra = {"endpoint": link.endpoint.address, "reason": str(fault)}
        _log.warning("no shared memory with the accelerator; tensors travel in messages", extra=extra)


def _take_back(link: Link, fault: EngineError) -> None:
    """End what is on the way, oldest first: a dying server may hold it until its time runs out."""
    for attempt in sorted(link.attempts, key=lambda attempt: attempt.sent_s):
        attempt.abandon(EndpointAwayError(str(fault)))
