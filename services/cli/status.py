"""`deeprecsys status`."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Annotated, Any

import grpc
import typer
from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from deeprecsys.status import to_error
from deeprecsys.v1 import control_pb2, control_pb2_grpc

REFRESH_S = 1.0
SHOWN_DECISIONS = 12


def status(
    target: Annotated[str, typer.Option(help="host:port of the service")] = "127.0.0.1:8500",
    once: Annotated[bool, typer.Option("--once", help="print once and end")] = False,
) -> None:
    """Show every model's operating point, load and tail, and the latest decisions; Ctrl-C ends it."""
    try:
        asyncio.run(_show(Console(), target, once))
    except grpc.RpcError as failure:
        raise to_error(failure) from failure
    except KeyboardInterrupt:
        return


async def _show(console: Console, target: str, once: bool) -> None:
    async with grpc.aio.insecure_channel(target) as channel:
        stub: Any = control_pb2_grpc.ControlServiceStub(channel)
        if once:
            console.print(_models(await _list(stub)))
            return
        decisions: deque[control_pb2.Decision] = deque(maxlen=SHOWN_DECISIONS)
        with Live(console=console, auto_refresh=False) as live:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(_watch(stub, decisions))
                while True:
                    models = _models(await _list(stub))
                    live.update(Group(models, _decisions(decisions)), refresh=True)
                    await asyncio.sleep(REFRESH_S)


async def _list(stub: Any) -> control_pb2.ListOperatingPointsResponse:
    response: control_pb2.ListOperatingPointsResponse = await stub.ListOperatingPoints(
        control_pb2.ListOperatingPointsRequest(), timeout=5
    )
    return response


async def _watch(stub: Any, decisions: deque[control_pb2.Decision]) -> None:
    async for response in stub.WatchDecisions(control_pb2.WatchDecisionsRequest()):
        decisions.appendleft(response.decision)


def _models(found: control_pb2.ListOperatingPointsResponse) -> Table:
    table = Table(title="models")
    for heading in (
        "model",
        "batch",
        "offload from",
        "accelerator",
        "pinned",
        "queries/s",
        "waiting",
        "target",
        "tail seen",
    ):
        table.add_column(heading, justify="left" if heading == "model" else "right")
    for m in found.models:
        late = m.seen_tail_seconds > m.sla_seconds
        seen = f"{m.seen_tail_seconds * 1e3:.1f} ms" if m.seen_tail_seconds else "-"
        table.add_row(
            escape(f"{m.model}/{m.version}"),
            str(m.point.batch_size),
            str(m.point.offload_from) if m.point.offload_from else "never",
            _accelerators(m.accelerators),
            "yes" if m.pinned else "",
            f"{m.arrival_qps:.1f}",
            str(m.waiting_candidates),
            f"p{m.sla_percentile:g} {m.sla_seconds * 1e3:g} ms",
            f"[red]{seen}[/red]" if late else seen,
        )
    return table


def _accelerators(found: Sequence[control_pb2.Accelerator]) -> str:
    """Return how many endpoints are used for a model, and why others are not."""
    if not found:
        return "-"
    away = [f"{a.endpoint}: {a.reason}" for a in found if not a.ready]
    return "\n".join([f"{len(found) - len(away)} of {len(found)} ready", *map(escape, away)])


def _point(point: control_pb2.OperatingPoint) -> str:
    return (
        f"{point.batch_size}, offload from {point.offload_from}"
        if point.offload_from
        else f"{point.batch_size}"
    )


def _decisions(decisions: deque[control_pb2.Decision]) -> Table:
    table = Table(title="decisions, latest first")
    for heading in ("time", "model", "batch", "reason"):
        table.add_column(heading)
    for d in decisions:
        change = f"{_point(d.old_point)} -> {_point(d.new_point)}"
        model = escape(f"{d.model}/{d.version}")
        table.add_row(d.time.ToDatetime().strftime("%H:%M:%S"), model, change, escape(d.reason))
    return table
