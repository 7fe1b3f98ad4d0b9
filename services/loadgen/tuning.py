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

from deeprecsys.errors import InvalidSettingError
from deeprecsys.status import to_error
from deeprecsys.v1 import control_pb2, control_pb2_grpc
from scheduler.measure import Measure, Measurement
from scheduler.plan import OperatingPoint
from scheduler.tune import Tried, Tuned, exhaustive, hill_climb
from services.loadgen.run import open_session, precise_loop
from services.loadgen.settings import LoadSettings

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
    progress: Callable[[Tried], None] | None = None,
) -> Tuned:
    """Tune the one model of ``settings``, starting its searches at ``settings.qps``, and leave it pinned at the best.

    Raises what ``run_load`` raises, and InvalidSettingError for several models.
    """
    if len(settings.models) != 1 or settings.concurrency is not None:
        raise InvalidSettingError("tuning takes one model, in open loop")
    search = exhaustive if grid else hill_climb
    with _live_measure(settings) as (measure, sla, pin):
        tuned = search(
            measure,
            sla,
            settings.qps,
            batch_sizes=batch_sizes,
            thresholds=(),
            finished=finished.found,
            save=finished.save,
            progress=progress,
        )
        pin(tuned.point)
    return tuned


@contextmanager
def _live_measure(settings: LoadSettings) -> Iterator[tuple[Measure, Any, Callable[[OperatingPoint], None]]]:
    """Yield a Measure of the running service, its target, and what pins a point."""
    share = settings.models[0]
    with (
        asyncio.Runner(loop_factory=precise_loop) as runner,
        grpc.insecure_channel(settings.target) as channel,
    ):
        stub = control_pb2_grpc.ControlServiceStub(channel)
        opened = open_session(settings, pool_queries=4096)
        session = runner.run(opened.__aenter__())

        def pin(point: OperatingPoint) -> None:
            asked = control_pb2.OperatingPoint(
                batch_size=point.batch_size, offload_from=point.offload_from or 0
            )
            request = control_pb2.PinOperatingPointRequest(
                model=share.name, version=share.version, point=asked
            )
            try:
                stub.PinOperatingPoint(request, timeout=10)
            except grpc.RpcError as failure:
                raise to_error(failure) from failure

        def measure(point: OperatingPoint, qps: float) -> Measurement:
            pin(point)
            result = runner.run(session.run(qps))
            if session.stopped:
                raise KeyboardInterrupt
            return result.models[0].measurement

        try:
            yield measure, session.lanes[0].sla, pin
        finally:
            runner.run(opened.__aexit__(None, None, None))
