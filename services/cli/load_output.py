"""What a person sees of load: a line that follows the run, and tables of what it found."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from scheduler.locality import Locality
from services.loadgen import recording
from services.loadgen.result import (
    DriverReport,
    LoadResult,
    MaxResult,
    MlperfResult,
    ModelResult,
    SweepResult,
)
from services.loadgen.settings import LoadSettings

LoadOutcome = LoadResult | MaxResult | SweepResult | MlperfResult


@contextmanager
def live_line(console: Console) -> Iterator[Callable[[recording.Progress], None]]:
    """Show one line that follows the run, gone when it ends."""
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    # Refreshed by hand: rich's own thread redraws ten times a second and makes the driver send late.
    with Progress(
        *columns, console=console, transient=True, auto_refresh=False, disable=not console.is_interactive
    ) as bar:
        task = bar.add_task("connecting, building requests", total=None)

        def show(now: recording.Progress) -> None:
            sent = f"{now.sent}/{now.total}"
            tail = " ".join(
                f"{name} {_ms(value)} ms"
                for name, value in (("p50", now.p50_s), ("p95", now.p95_s), ("p99", now.p99_s))
            )
            errors = " ".join(f"[red]{code} {n}[/red]" for code, n in now.codes.items() if code != "OK")
            line = f"{sent} {tail} {errors}"
            bar.update(task, description=line, completed=now.sent, total=now.total, refresh=True)

        yield show


def print_outcome(console: Console, result: LoadOutcome) -> None:
    """Print a result as tables, and why it does not count where it does not."""
    if isinstance(result, MaxResult):
        _print_search(console, result)
    elif isinstance(result, SweepResult):
        _print_sweep(console, result)
    elif isinstance(result, MlperfResult):
        _print_mlperf(console, result)
    else:
        _print_run(console, result)


def _print_run(console: Console, result: LoadResult) -> None:
    console.print(_models(result.models))
    _print_cut(console, result.cut_short)
    for m in result.models:
        if m.shortfall is not None:
            console.print(f"{m.model}: {m.shortfall}", markup=False)
    console.print(f"{_pace(result)}, {_queries(result.settings)}", markup=False)
    for m in result.models:
        if m.pool.locality is not None:
            console.print(f"{m.model}: {_locality(m.pool.locality)}", markup=False)
    _print_driver(console, result.driver, result.machine.cores)


def _pace(result: LoadResult) -> str:
    s = result.settings
    if s.trace is not None:
        speed = result.qps / s.trace.queries.qps
        return f"{s.trace.path} at {result.qps:.4g}/s, {speed:.4g} times as fast as recorded"
    return (
        f"{s.arrivals} arrivals at {result.qps:g}/s"
        if s.concurrency is None
        else f"{s.concurrency} in flight"
    )


def _queries(s: LoadSettings) -> str:
    sizes = "recorded" if s.trace is not None else s.sizes
    return f"{sizes} sizes, {s.ids} ids, {s.users} users, seed {s.seed}"


def _locality(found: Locality) -> str:
    again = found.mean_reuse_distance
    return (
        f"of the first {found.look_ups} look-ups {found.distinct_share:.1%} touch a new row, "
        f"{found.top_percent_share:.1%} go to the top 1 % of these rows, "
        + ("none comes back" if again is None else f"mean reuse distance {again:.4g} rows")
    )


def _print_cut(console: Console, reason: str | None) -> None:
    if reason is not None:
        console.print(f"[yellow]cut short: {escape(reason)}[/yellow]")


def _print_driver(console: Console, d: DriverReport, cores: int, at: str = "") -> None:
    console.print(
        f"driver{at}: {_processes(d.processes, d.before_others)}, {_cpu(d.cpu_s, d.wall_s, d.cpu_share, cores)}; "
        f"sent {d.lag_p50_s * 1e3:.2f} ms late at p50, {d.lag_p99_s * 1e3:.2f} ms at p99"
    )


def _processes(count: int, before_others: bool) -> str:
    how = "before ordinary ones" if before_others else "without precedence"
    return f"{count} process{'es' if count > 1 else ''} {how}"


def _cpu(cpu_s: float, wall_s: float, share: float, cores: int) -> str:
    return f"{cpu_s / wall_s if wall_s else 0:.2f} cores, {share:.0%} of the machine's {cores}"


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
    _print_cut(console, result.cut_short)
    best = result.capacity.measurement
    if best is None:
        found = (
            "no rate meets the target" if result.cut_short is None else "no rate was found within the target"
        )
        console.print(f"{found}: {result.capacity.why}", markup=False)
        return
    rate = f"{result.capacity.qps:.1f} queries/s ({best.candidates_per_s:.0f} candidates/s)"
    console.print(f"highest rate within the target: {rate}", markup=False)
    above = "above it: " if result.cut_short is None else ""
    console.print(f"{above}{result.capacity.why}", markup=False)


def _print_sweep(console: Console, result: SweepResult) -> None:
    table = Table(title="latency against throughput", box=SIMPLE_HEAD)
    for column in ("offered/s", "model", "p50 ms", "p95 ms", "p99 ms", "queries/s", "SLA met", "errors"):
        table.add_column(column, justify="left" if column in {"model", "SLA met", "errors"} else "right")
    for run in result.points:
        for m in run.models:
            table.add_row(
                f"{m.qps:g}",
                escape(m.model),
                *_tail(m),
                f"{m.measurement.completed_qps:.1f}",
                escape(m.shortfall or "yes"),
                _errors(m.errors),
            )
    console.print(table)
    _print_cut(console, result.cut_short)
    s = result.settings
    arrivals = "recorded" if s.trace is not None else s.arrivals
    console.print(f"{arrivals} arrivals, {s.duration_s:g} s a rate, {_queries(s)}", markup=False)
    if result.points:
        latest = max(result.points, key=lambda run: run.driver.lag_p99_s)
        _print_driver(console, latest.driver, result.machine.cores, f" at {latest.qps:g}/s")


def _print_mlperf(console: Console, result: MlperfResult) -> None:
    log, s = result.loadgen, result.settings
    target = f"p{result.sla.percentile:g} within {_ms(result.sla.seconds)} ms"
    table = Table(
        title=f"MLPerf LoadGen, Server: {escape(result.model)} at {s.qps:g}/s, {target}", box=SIMPLE_HEAD
    )
    for column in (
        "verdict",
        "p50 ms",
        "p95 ms",
        "p99 ms",
        "queries/s",
        "queries",
        "over the target",
        "errors",
    ):
        table.add_column(column, justify="left" if column in {"verdict", "errors"} else "right")
    if result.verdict is not None:
        at = (log[f"result_{p}.00_percentile_latency_ns"] / 1e9 for p in (50, 95, 99))
        rate = f"{log['result_completed_samples_per_sec']:.1f}"
        counts = (str(log["result_query_count"]), str(log["result_overlatency_query_count"]))
        table.add_row(_verdict(result.verdict), *map(_ms, at), rate, *counts, _errors(result.errors))
    else:
        seen = map(_ms, (result.p50_s, result.p95_s, result.p99_s))
        count = str(sum(result.codes.values()))
        table.add_row("[yellow]none[/yellow]", *seen, "", count, "", _errors(result.errors))
    console.print(table)
    _print_cut(console, result.cut_short)
    for key in ("result_invalid_reason", "early_stopping_result"):
        if result.verdict != "VALID" and log.get(key):
            console.print(f"LoadGen: {' '.join(str(log[key]).split())}", markup=False)
    version = result.loadgen_version.partition(" ")[0]
    judge = f"LoadGen {version}, its logs" if version else "LoadGen's logs"
    console.print(f"{_queries(s)}; {judge} in {result.logs}", markup=False)
    cpu = _cpu(result.cpu_s, result.wall_s, result.cpu_share, result.machine.cores)
    console.print(f"driver: {_processes(1, result.before_others)}, {cpu}")


def _verdict(verdict: str) -> str:
    return f"[green]{verdict}[/green]" if verdict == "VALID" else f"[red]{escape(verdict)}[/red]"


def _models(models: tuple[ModelResult, ...]) -> Table:
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
        sla = f"p{r.sla.percentile:g} {_ms(r.sla.seconds)}"
        rates = (f"{m.completed_qps:.1f}", f"{m.candidates_per_s:.0f}")
        table.add_row(escape(r.model), sla, *_tail(r), *rates, met, _errors(r.errors))
    return table


def _tail(model: ModelResult) -> tuple[str, ...]:
    m = model.measurement
    return _ms(m.p50_s), _ms(m.p95_s), _ms(m.p99_s)


def _errors(errors: Mapping[str, int]) -> str:
    return ", ".join(f"{code} {n}" for code, n in errors.items()) or "none"


def _ms(seconds: float) -> str:
    """Write milliseconds with three figures; "none" for the infinity of a query without an answer."""
    if seconds == float("inf"):
        return "none"
    return f"{seconds * 1e3:.3g}" if seconds < 0.1 else f"{seconds * 1e3:.0f}"
