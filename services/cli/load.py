"""``deeprecsys load``: open-loop load on a running server, and the highest rate within a target."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, cast

import typer
from rich.console import Console

from deeprecsys.errors import InvalidSettingError
from services.cli.load_output import LoadOutcome, live_line, print_outcome
from services.cli.replay import replayed
from services.cli.result_files import check_writable, write_json
from services.loadgen.latencies import require_parquet, write_latencies
from services.loadgen.mlperf import run_mlperf
from services.loadgen.rates import parse_rates
from services.loadgen.result import LoadResult, MaxResult, SweepResult
from services.loadgen.run import find_max as find_max_rate
from services.loadgen.run import run_load
from services.loadgen.run import sweep as drive_sweep
from services.loadgen.settings import MIB, LoadSettings, Users, parse_model_share


def load(
    context: typer.Context,
    *,
    model: Annotated[
        list[str] | None,
        typer.Option(
            help="Model to drive, as NAME or NAME=WEIGHT; repeat for several. A trace names its own."
        ),
    ] = None,
    target: Annotated[str, typer.Option(help="host:port of the server.")] = "127.0.0.1:8500",
    qps: Annotated[float, typer.Option(help="Queries per second over all models.")] = 50.0,
    duration: Annotated[float, typer.Option(help="Seconds to measure.")] = 10.0,
    warmup: Annotated[float, typer.Option(help="Seconds driven before that, not measured.")] = 2.0,
    sizes: Annotated[str, typer.Option(help="Law of the query sizes.")] = "production",
    arrivals: Annotated[str, typer.Option(help="Law of the arrivals.")] = "poisson",
    ids: Annotated[
        str, typer.Option(help="Law of the table rows: uniform, zipf:EXPONENT or reuse:FILE.")
    ] = "uniform",
    trace: Annotated[
        Path | None,
        typer.Option(
            help="Replay recorded queries: CSV or Parquet with time, size, model and perhaps inputs."
        ),
    ] = None,
    speedup: Annotated[float, typer.Option(help="How many times as fast to replay them.")] = 1.0,
    users: Annotated[
        str, typer.Option(help="User-side inputs: per_candidate or shared rows.")
    ] = "per_candidate",
    seed: Annotated[int, typer.Option(help="Seed of everything that is drawn.", min=0)] = 0,
    deadline_ms: Annotated[float | None, typer.Option(help="Deadline of every query.")] = None,
    sla_ms: Annotated[float | None, typer.Option(help="Replaces the target that the server names.")] = None,
    find_max: Annotated[
        bool, typer.Option("--find-max", help="Search the highest rate within the target.")
    ] = False,
    sweep: Annotated[
        str | None,
        typer.Option(help="A run at each of these rates instead of --qps: 50,100,200 or LO:HI:N."),
    ] = None,
    mlperf: Annotated[
        Path | None, typer.Option(help="Let MLPerf LoadGen drive and judge; its logs go to this folder.")
    ] = None,
    concurrency: Annotated[
        int | None, typer.Option(help="Closed loop: so many queries always in flight; needs --queries.")
    ] = None,
    queries: Annotated[int | None, typer.Option(help="Closed loop: how many queries in all.")] = None,
    drivers: Annotated[
        int, typer.Option(help="Processes that share the schedule, for rates that one cannot keep up with.")
    ] = 1,
    unavailable_limit: Annotated[
        int, typer.Option(help="So many UNAVAILABLE in a row end the run; 0 goes on to its end.", min=0)
    ] = 500,
    channels: Annotated[int, typer.Option(help="Connections, taken in turn.")] = 1,
    pool_mib: Annotated[float, typer.Option(help="Most memory for pre-built requests, in MiB.")] = 256.0,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the result to this file.")] = None,
    latencies: Annotated[
        Path | None, typer.Option(help="Write every query's latency to this Parquet file.")
    ] = None,
) -> None:
    """Drive a server with queries drawn from a seed and report tail latency, rate and errors per model.

    Ctrl-C ends it early and keeps what was measured, marked as cut short.
    """
    models = tuple(parse_model_share(text) for text in model or ())
    replay = replayed(context, trace, models, qps, speedup, duration, warmup)
    settings = LoadSettings(
        target=target,
        models=replay.models,
        qps=replay.qps,
        duration_s=replay.duration_s,
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
        unavailable_limit=unavailable_limit or None,
        drivers=drivers,
        trace=replay.trace,
    )
    rates = None if sweep is None else parse_rates(sweep)
    _check_mode(find_max, sweep, mlperf, latencies)
    check_writable(json_file)
    check_writable(latencies)
    console = Console()
    result: LoadOutcome
    with live_line(console) as show:
        if mlperf is not None:
            result = run_mlperf(settings, mlperf, show)
        elif rates is not None:
            result = drive_sweep(settings, rates, on_progress=show)
        elif find_max:
            result = find_max_rate(settings, on_progress=show)
        else:
            result = run_load(settings, show)
    write_json(json_file, result.as_dict())
    if latencies is not None:
        write_latencies(latencies, _runs(result))
    print_outcome(console, result)


def _check_mode(find_max: bool, sweep: str | None, mlperf: Path | None, latencies: Path | None) -> None:
    if sum((find_max, sweep is not None, mlperf is not None)) > 1:
        raise InvalidSettingError("--find-max, --sweep and --mlperf exclude each other")
    if latencies is not None:
        if mlperf is not None:
            raise InvalidSettingError("--latencies cannot be had of LoadGen, which keeps them to itself")
        require_parquet()


def _runs(result: LoadOutcome) -> Sequence[LoadResult]:
    """Return the runs whose latencies are known: of a search, the one at the rate that it found."""
    if isinstance(result, SweepResult):
        return result.points
    if isinstance(result, MaxResult):
        return [result.best] if result.best is not None else []
    return [result] if isinstance(result, LoadResult) else []


def _seconds(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1e3


def _bytes(mib: float) -> int:
    # Written so that NaN is refused too.
    if not 0 < mib < 1 << 20:
        raise InvalidSettingError(f"pool size must be above 0 MiB, not {mib}")
    return max(1, int(mib * MIB))
