"""A live server of some models under targets of the benchmark's choice."""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc

from deeprecsys.v1 import control_pb2, control_pb2_grpc
from scheduler.plan import OperatingPoint
from services.cli.server_process import server_process

CALL_TIMEOUT_S = 10.0
ADMISSION_S = 30.0
"""How long an accelerator may take to be used."""


@dataclass(frozen=True)
class Served:
    """A running server: its host:port, its operating points and its process id."""

    address: str
    control: control_pb2_grpc.ControlServiceStub
    pid: int

    def pin(self, model: str, batch_size: int, offload_from: int | None = None) -> None:
        """Hold a model at a point."""
        point = control_pb2.OperatingPoint(batch_size=batch_size, offload_from=offload_from or 0)
        self.control.PinOperatingPoint(
            control_pb2.PinOperatingPointRequest(model=model, point=point), timeout=CALL_TIMEOUT_S
        )

    def unpin(self, model: str) -> None:
        """Let the controller choose again."""
        self.control.UnpinOperatingPoint(
            control_pb2.UnpinOperatingPointRequest(model=model), timeout=CALL_TIMEOUT_S
        )

    def point(self, model: str) -> OperatingPoint:
        """Return where a model stands."""
        point = self._operation(model).point
        return OperatingPoint(point.batch_size, point.offload_from or None)

    def await_accelerators(self, model: str) -> None:
        """Wait until every accelerator takes the model; RuntimeError says why one does not."""
        latest_s = time.monotonic() + ADMISSION_S
        while away := [a for a in self._operation(model).accelerators if not a.ready]:
            if time.monotonic() > latest_s:
                raise RuntimeError(f"{model} at {away[0].endpoint}: {away[0].reason}")
            time.sleep(0.05)

    def _operation(self, model: str) -> control_pb2.ModelOperation:
        request = control_pb2.ListOperatingPointsRequest(model=model)
        (operation,) = self.control.ListOperatingPoints(request, timeout=CALL_TIMEOUT_S).models
        return operation


@contextmanager
def served(
    repository: Path, target_ms: Mapping[str, float], policy: str, arguments: Sequence[str] = ()
) -> Iterator[Served]:
    """Serve these models of a repository, each under its target in milliseconds, with a policy."""
    with (
        linked(repository, target_ms) as folder,
        server_process(folder, ["--policy", policy, *arguments]) as (process, address),
        grpc.insecure_channel(address) as channel,
    ):
        yield Served(address, control_pb2_grpc.ControlServiceStub(channel), process.pid)


@contextmanager
def linked(repository: Path, target_ms: Mapping[str, float]) -> Iterator[Path]:
    """Make a repository of these models with other targets, in milliseconds; their versions are links."""
    with tempfile.TemporaryDirectory() as folder:
        for model, sla_ms in target_ms.items():
            _link(repository / model, Path(folder) / model, sla_ms)
        yield Path(folder)


def _link(model: Path, link: Path, sla_ms: float) -> None:
    """Make a model directory with the same versions and another target."""
    link.mkdir()
    config = (model / "config.pbtxt").read_text(encoding="utf-8")
    changed, count = re.subn(
        r'(key: "sla_ms"\s*value \{\s*string_value: )"[^"]*"', rf'\g<1>"{sla_ms:g}"', config
    )
    if count != 1:
        raise ValueError(f"{model}/config.pbtxt does not name its sla_ms once")
    (link / "config.pbtxt").write_text(changed, encoding="utf-8")
    for version in model.iterdir():
        if version.is_dir():
            (link / version.name).symlink_to(version.resolve())
