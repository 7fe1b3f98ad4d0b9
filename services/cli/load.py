"""``deeprecsys load``: open-loop load on a running server, and the highest rate within a target."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, cast

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from deeprecsys.errors import InvalidSettingError
from services.loadgen import recording
from services.loadgen.result import LoadResult, MaxResult, ModelResult
from services.loadgen.run import find_max as find_max_rate
from services.loadgen.run import run_load
from services.loadgen.settings import MIB, LoadSettings, Users, parse_model_share


def load(
    *,
    model: Annotated[
        list[str], typer.Option(help="Model to drive, as NAME or NAME=WEIGHT; repeat for several.")
    ],
    target: Annotated[str, typer.Option(help="host:port of the server.")] = "127.0.0.1:8500",
    qps: Annotated[float, typer.Option(help="Queries per second over all models.")] = 50.0,
    duration: Annotated[float, typer.Option(help="Seconds to measure.")] = 10.0,
    warmup: Annotated[float, typer.Option(help="Seconds driven before that, not measured.")] = 2.0,
    sizes: Annotated[str, typer.Option(help="Law of the query sizes.")] = "production",
    arrivals: Annotated[str, typer.Option(help="Law of the arrivals.")] = "poisson",
    ids: Annotated[str, typer.Option(help="Law of the table rows: uniform or zipf:EXPONENT.")] = "uniform",
    users: Annotated[
        str, typer.Option(help="User-side inputs: per_candidate or shared rows.")
    ] = "per_candidate",
    seed: Annotated[int, typer.Option(help="Seed of everything that is drawn.", min=0)] = 0,
    deadline_ms: Annotated[float | None, typer.Option(help="Deadline of every query.")] = None,
    sla_ms: Annotated[float | None, typer.Option(help="Replaces the target that the server names.")] = None,
    find_max: Annotated[
        bool, typer.Option("--find-max", help="Search the highest rate within the target.")
    ] = False,
    concurrency: Annotated[
        int | None, typer.Option(help="Closed loop: so many queries always in flight; needs --queries.")
    ] = None,
    queries: Annotated[int | None, typer.Option(help="Closed loop: how many queries in all.")] = None,
    channels: Annotated[int, typer.Option(help="Connections, taken in turn.")] = 1,
    pool_mib: Annotated[float, typer.Option(help="Most memory for pre-built requests, in MiB.")] = 256.0,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the result to this file.")] = None,
) -> None:
    """Drive a server with queries drawn from a seed and report tail latency, rate and errors per model."""
    settings = LoadSettings(
        target=target,
        models=tuple(parse_model_share(text) for text in model),
        qps=qps,
        duration_s=duration,
        warmup_s=warmup if concurrency is None else 0.0,
        sizes=sizes,
        arrivals=arrivals,
        ids=ids,
        users=cast(Users, users),
        seed=seed,
        deadline_s=_seconds(deadline_ms),
        sla_s=_seconds(sla_ms),
        concurrency=concurrency,
        count=queries,
        pool_bytes=_bytes(pool_mib),
        channels=channels,
    )
    _check_writable(json_file)
    console = Console()
    with _live(console) as show:
        result = find_max_rate(settings, on_progress=show) if find_max else run_load(settings, show)
    _write(json_file, result.as_dict())
    if isinstance(result, MaxResult):
        _print_search(console, result)
    else:
        _print_run(console, result)


def _seconds(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1e3


def _bytes(mib: float) -> int:
    # Written so that NaN is refused too.
    if not 0 < mib < 1 << 20:
        raise InvalidSettingError(f"pool size must be above 0 MiB, not {mib}")
    return max(1, int(mib * MIB))


def _check_writable(path: Path | None) -> None:
    """Raise InvalidSettingError for a file that cannot be written: before the run, not after it."""
    if path is None:
        return
    if path.is_dir():
        raise InvalidSettingError(f"cannot write {path}: it is a directory")
    if not path.parent.is_dir():
        raise InvalidSettingError(f"cannot write {path}: there is no directory {path.parent}")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise InvalidSettingError(f"cannot write {path}: permission denied")


def _write(path: Path | None, result: dict[str, Any]) -> None:
    if path is None:
        return
    try:
        path.write_text(json.dumps(result, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise InvalidSettingError(f"cannot write {path}: {error.strerror}") from error


# --- what a person sees ---


@contextmanager
def _live(console: Console) -> Iterator[Callable[[recording.Progress], None]]:
    """Show one line that follows the run, gone when it ends."""
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    # Refreshed by hand: rich's own thread redraws ten times a second and makes the driver send late.
    with Progress(
        *columns, console=console, transient=True, auto_refresh=False, disable=not console.is_interactive
    ) as bar:
        task = bar.add_task("connecting, building requests", total=None)

        def show(now: recording.Progress) -> None:
            tail = " ".join(
                f"{name} {_ms(value)} ms"
                for name, value in (("p50", now.p50_s), ("p95", now.p95_s), ("p99", now.p99_s))
            )
            errors = " ".join(f"[red]{code} {n}[/red]" for code, n in now.codes.items() if code != "OK")
            bar.update(
                task, description=f"{tail} {errors}", completed=now.sent, total=now.total, refresh=True
            )

        yield show


def _print_run(console: Console, result: LoadResult) -> None:
    console.print(_table(result.models))
    if result.cut_short is not None:
        console.print(f"[yellow]cut short: {result.cut_short}[/yellow]")
    for m in result.models:
        if m.shortfall is not None:
            console.print(f"{m.model}: {m.shortfall}", markup=False)
    s, d = result.settings, result.driver
    how = (
        f"{s.arrivals} arrivals at {result.qps:g}/s"
        if s.concurrency is None
        else f"{s.concurrency} in flight"
    )
    console.print(f"{how}, {s.sizes} sizes, {s.ids} ids, {s.users} users, seed {s.seed}", markup=False)
    console.print(
        f"driver: {d.cpu_s / d.wall_s if d.wall_s else 0:.2f} cores, {d.cpu_share:.0%} of the machine's "
        f"{result.machine.cores}; sent {d.lag_p50_s * 1e3:.2f} ms late at p50, {d.lag_p99_s * 1e3:.2f} ms at p99"
    )


def _print_search(console: Console, result: MaxResult) -> None:
    table = Table(
        title=f"{result.model}: p{result.sla.percentile:g} within {_ms(result.sla.seconds)} ms",
        box=SIMPLE_HEAD,
    )
    for column in ("queries/s", "p50 ms", "p95 ms", "p99 ms", "met"):
        table.add_column(column, justify="right" if column != "met" else "left")
    for probe in result.capacity.probes:
        m = probe.measurement
        table.add_row(f"{probe.qps:.1f}", _ms(m.p50_s), _ms(m.p95_s), _ms(m.p99_s), probe.shortfall or "yes")
    console.print(table)
    best = result.capacity.measurement
    if best is None:
        console.print(f"no rate meets the target: {result.capacity.why}", markup=False)
        return
    rate = f"{result.capacity.qps:.1f} queries/s ({best.candidates_per_s:.0f} candidates/s)"
    console.print(f"highest rate within the target: {rate}", markup=False)
    console.print(f"above it: {result.capacity.why}", markup=False)


def _table(models: tuple[ModelResult, ...]) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("model")
    for column in ("SLA ms", "p50 ms", "p95 ms", "p99 ms", "queries/s", "candidates/s"):
        table.add_column(column, justify="right")
    table.add_column("SLA met")
    table.add_column("errors")
    for r in models:
        m = r.measurement
        met = (
            "[green]yes[/green]"
            if r.shortfall is None
            else "[yellow]invalid[/yellow]"
            if m.invalid
            else "[red]no[/red]"
        )
        errors = ", ".join(f"{code} {n}" for code, n in r.errors.items()) or "none"
        sla = f"p{r.sla.percentile:g} {_ms(r.sla.seconds)}"
        tail = (_ms(m.p50_s), _ms(m.p95_s), _ms(m.p99_s))
        table.add_row(r.model, sla, *tail, f"{m.completed_qps:.1f}", f"{m.candidates_per_s:.0f}", met, errors)
    return table


def _ms(seconds: float) -> str:
    """Write milliseconds with three figures; "none" for the infinity of a query without an answer."""
    if seconds == float("inf"):
        return "none"
    return f"{seconds * 1e3:.3g}" if seconds < 0.1 else f"{seconds * 1e3:.0f}"
