"""DeepRecSched offline, on a live service: points are pinned over ControlService and driven with load."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc

from deeprecsys.errors import InvalidSettingError, UnavailableError
from deeprecsys.status import to_error
from deeprecsys.v1 import control_pb2, control_pb2_grpc
from scheduler.measure import Measurement, Sla
from scheduler.plan import OperatingPoint
from scheduler.tune import THRESHOLDS, Tried, Tuned, exhaustive, hill_climb
from services.loadgen.loop import precise_loop
from services.loadgen.session import LoadSession, open_session
from services.loadgen.settings import LoadSettings

CALL_TIMEOUT_S = 10.0

Key = tuple[OperatingPoint, float]


class Finished:
    """Measurements that outlive an interrupted tuning, in a file of one JSON object a line, the settings first.

    Raises InvalidSettingError for a file of another tuning, or one that cannot be read or written.
    """

    def __init__(self, path: Path, settings: LoadSettings) -> None:
        self._path = path
        self.found: dict[Key, Measurement] = {}
        head = {**dataclasses.asdict(settings), "qps": None, "target": None}
        try:
            lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
            if not lines:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(json.dumps(head) + "\n", encoding="utf-8")
        except OSError as error:
            raise InvalidSettingError(f"cannot use {path}: {error.strerror}") from error
        if lines and json.loads(lines[0]) != json.loads(json.dumps(head)):
            raise InvalidSettingError(f"{path} holds measurements under other settings; name another file")
        for line in lines[1:]:
            self._read(line)

    def save(self, point: OperatingPoint, qps: float, measurement: Measurement) -> None:
        """Append one measurement."""
        self.found[point, qps] = measurement
        plain = {k: None if v == math.inf else v for k, v in dataclasses.asdict(measurement).items()}
        entry = {
            "batch_size": point.batch_size,
            "offload_from": point.offload_from,
            "qps": qps,
            "measured": plain,
        }
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def _read(self, line: str) -> None:
        try:
            entry = json.loads(line)
        except ValueError:
            return  # the last line of a run that was killed
        point = OperatingPoint(entry["batch_size"], entry["offload_from"])
        plain: dict[str, Any] = {
            k: math.inf if v is None and k.endswith("_s") else v for k, v in entry["measured"].items()
        }
        self.found[point, entry["qps"]] = Measurement(**plain)


def tune_live(
    settings: LoadSettings,
    finished: Finished,
    *,
    grid: bool = False,
    batch_sizes: tuple[int, ...],
    thresholds: tuple[int | None, ...] = THRESHOLDS,
    progress: Callable[[Tried], None] | None = None,
) -> Tuned:
    """Tune the one model of ``settings``, starting its searches at ``settings.qps``, and leave it pinned at the best.

    Thresholds are tuned where the service has an accelerator; empty ``thresholds`` leave it out. Raises what
    ``run_load`` raises, InvalidSettingError for several models, and UnavailableError while an accelerator that the
    service was given does not take the model: what is tuned without it would not hold with it.
    """
    if len(settings.models) != 1 or settings.concurrency is not None:
        raise InvalidSettingError("tuning takes one model, in open loop")
    search = exhaustive if grid else hill_climb
    with _service(settings) as service:
        tuned = search(
            service.measure,
            service.sla,
            settings.qps,
            batch_sizes=batch_sizes,
            thresholds=thresholds if thresholds and service.has_accelerator() else (),
            finished=finished.found,
            save=finished.save,
            progress=progress,
        )
        service.pin(tuned.point)
    return tuned


@contextmanager
def _service(settings: LoadSettings) -> Iterator[_Service]:
    """Yield the running service, its requests built."""
    with (
        asyncio.Runner(loop_factory=precise_loop) as runner,
        grpc.insecure_channel(settings.target) as channel,
    ):
        opened = open_session(settings, pool_queries=4096)
        session = runner.run(opened.__aenter__())
        try:
            yield _Service(runner, session, control_pb2_grpc.ControlServiceStub(channel))
        finally:
            runner.run(opened.__aexit__(None, None, None))


class _Service:
    """One model of a running service, driven at points that are pinned over ControlService."""

    def __init__(
        self, runner: asyncio.Runner, session: LoadSession, stub: control_pb2_grpc.ControlServiceStub
    ) -> None:
        self._runner = runner
        self._session = session
        self._stub = stub
        self._share = session.settings.models[0]

    @property
    def sla(self) -> Sla:
        """The model's target."""
        return self._session.lanes[0].sla

    def has_accelerator(self) -> bool:
        """Whether queries can be offloaded; UnavailableError where they should be but cannot."""
        accelerators = self._operation().accelerators
        if accelerators and (away := self._away()):
            raise UnavailableError(f"{away}; start it, or tune the CPU alone with --cpu-only")
        return bool(accelerators)

    def measure(self, point: OperatingPoint, qps: float) -> Measurement:
        """Measure the point; invalid where it offloads and no accelerator was there at the end."""
        self.pin(point)
        result = self._runner.run(self._session.run(qps))
        if self._session.stopped:
            raise KeyboardInterrupt
        measurement = result.models[0].measurement
        if point.offload_from is not None and (away := self._away()):
            return dataclasses.replace(measurement, invalid=away)
        return measurement

    def pin(self, point: OperatingPoint) -> None:
        """Hold the model at a point."""
        asked = control_pb2.OperatingPoint(batch_size=point.batch_size, offload_from=point.offload_from or 0)
        request = control_pb2.PinOperatingPointRequest(
            model=self._share.name, version=self._share.version, point=asked
        )
        try:
            self._stub.PinOperatingPoint(request, timeout=CALL_TIMEOUT_S)
        except grpc.RpcError as failure:
            raise to_error(failure) from failure

    def _away(self) -> str | None:
        """Return why no accelerator takes the model; None when one does."""
        accelerators = self._operation().accelerators
        if any(accelerator.ready for accelerator in accelerators):
            return None
        reasons = "; ".join(f"{each.endpoint}: {each.reason}" for each in accelerators)
        return f"no accelerator takes {self._share.name} ({reasons})"

    def _operation(self) -> control_pb2.ModelOperation:
        request = control_pb2.ListOperatingPointsRequest(model=self._share.name)
        try:
            found = self._stub.ListOperatingPoints(request, timeout=CALL_TIMEOUT_S).models
        except grpc.RpcError as failure:
            raise to_error(failure) from failure
        served = {operation.version: operation for operation in found}
        return served[
            self._session.lanes[0].model.versions[0] if not self._share.version else self._share.version
        ]
