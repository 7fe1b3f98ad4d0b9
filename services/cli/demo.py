"""`deeprecsys demo`: from nothing to eight served models under load, and everything stopped again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from deeprecsys import RankClient
from deeprecsys.v1 import rank_pb2
from services.cli.export import print_exported, run_export
from services.cli.rank import print_ranking
from services.cli.server_process import server_process
from services.loadgen.request_pool import random_inputs
from services.loadgen.result import ModelResult
from services.loadgen.run import run_load
from services.loadgen.settings import MIB, LoadSettings, ModelShare, Users
from services.models.spec import SLUGS

LOAD_SHARE = 0.4
"""Of what the server answers with eight queries always in flight: a rate at which targets should be met."""


def demo(
    repository: Annotated[Path, typer.Option(help="where the models are, or go")] = Path("model_repository"),
    scale: Annotated[str, typer.Option(help="rows of the tables: tiny, laptop or paper")] = "laptop",
    seed: Annotated[int, typer.Option(help="seed of the weights", min=0)] = 0,
    seconds: Annotated[float, typer.Option(help="seconds of load on each model", min=1)] = 4.0,
) -> None:
    """Export the eight models, serve them, rank a query, drive each with Poisson arrivals, and stop."""
    console = Console()
    console.rule("export")
    print_exported(console, run_export(console, list(SLUGS), repository, scale, seed), repository)
    console.rule("serve")
    with console.status("loading and warming up"), server_process(repository) as (_, target):
        console.print(f"the Rank service listens on {target}")
        console.rule("rank one query")
        _rank_one(console, target)
        console.rule("load")
        console.print(
            f"Poisson arrivals at {LOAD_SHARE:.0%} of what the service answers with eight queries in flight, "
            f"heavy-tailed sizes (`production`), {seconds:g} s a model"
        )
        results = _drive_all(console, target, seconds)
    console.print(_table(results))
    for name, result in results:
        if result.shortfall is not None:
            console.print(f"{name}: {result.shortfall}", markup=False)
    console.print("stopped cleanly")


def _rank_one(console: Console, target: str) -> None:
    with RankClient(target, timeout_s=10) as client:
        inputs = random_inputs(client.model("wnd"), 100, np.random.default_rng(0))
        print_ranking(console, client.rank("wnd", inputs, top_k=10))


def _drive_all(console: Console, target: str, seconds: float) -> list[tuple[str, ModelResult]]:
    """Drive each model; those with inputs of the user's side both with a row per candidate and with one for all."""
    with RankClient(target, timeout_s=10) as client:
        runs = [(model, users) for model in client.models() for users in _ways(model) if model.ready]
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    results = []
    with Progress(
        *columns, console=console, transient=True, auto_refresh=False, disable=not console.is_interactive
    ) as progress:
        task = progress.add_task("load", total=len(runs))
        for model, users in runs:
            name = model.name if users == "per_candidate" else f"{model.name}, user once"
            progress.update(task, description=name, refresh=True)
            results.append((name, _drive(target, model.name, users, seconds)))
            progress.advance(task)
    return results


def _ways(model: rank_pb2.Model) -> list[Users]:
    return ["per_candidate", "shared"] if any(i.user_side for i in model.inputs) else ["per_candidate"]


def _drive(target: str, model: str, users: Users, seconds: float) -> ModelResult:
    shares = (ModelShare(model),)
    common = {"target": target, "models": shares, "users": users, "pool_bytes": 64 * MIB}
    probe = run_load(LoadSettings(**common, count=120, concurrency=8, warmup_s=0.0, min_queries=1))  # type: ignore[arg-type]
    qps = LOAD_SHARE * probe.models[0].measurement.completed_qps
    settings = LoadSettings(**common, qps=qps, duration_s=seconds, warmup_s=0.5, min_queries=20)  # type: ignore[arg-type]
    return run_load(settings).models[0]


def _table(results: list[tuple[str, ModelResult]]) -> Table:
    table = Table(title="eight models, one after the other")
    for heading in ("model", "SLA p95 ms", "p50", "p95", "p99", "queries/s", "cand./s", "SLA met"):
        table.add_column(heading, justify="left" if heading in ("model", "SLA met") else "right")
    for name, result in results:
        m = result.measurement
        times = (f"{seconds * 1e3:.1f}" for seconds in (result.sla.seconds, m.p50_s, m.p95_s, m.p99_s))
        met = "not valid" if m.invalid else "no" if result.shortfall else "yes"
        table.add_row(name, *times, f"{m.completed_qps:.0f}", f"{m.candidates_per_s:.0f}", met)
    return table
