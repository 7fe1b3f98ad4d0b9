"""`deeprecsys rank`."""

from __future__ import annotations

from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from deeprecsys import RankClient, Ranking
from deeprecsys.errors import InvalidSettingError
from deeprecsys.v1 import rank_pb2
from services.loadgen.request_pool import largest_size, random_inputs


def rank(
    model: Annotated[str, typer.Argument(help="the model's name")],
    candidates: Annotated[int, typer.Option(help="how many candidates the query has", min=1)] = 100,
    target: Annotated[str, typer.Option(help="host:port of the service")] = "127.0.0.1:8500",
    top_k: Annotated[int, typer.Option(help="how many of the best to show", min=1)] = 10,
    task: Annotated[str, typer.Option(help="the task that ranks; the first when not given")] = "",
    seed: Annotated[int, typer.Option(help="seed of the random query", min=0)] = 0,
    timeout: Annotated[float, typer.Option(help="seconds to wait for the answer", min=0.001)] = 10.0,
) -> None:
    """Rank one random query, built from nothing but what the service says of the model."""
    with RankClient(target, timeout_s=timeout) as client:
        described = client.model(model)
        _check_candidates(described, candidates)
        inputs = random_inputs(described, candidates, np.random.default_rng(seed))
        answer = client.rank(model, inputs, top_k=top_k, task=task)
    print_ranking(Console(), answer)


def _check_candidates(model: rank_pb2.Model, candidates: int) -> None:
    """Raise InvalidSettingError, before anything is drawn, for a query that the service would refuse."""
    most = largest_size(model, "per_candidate")
    if candidates > most:
        raise InvalidSettingError(
            f"--candidates is {candidates}, but a query of {model.name} has at most {most}"
        )


def print_ranking(console: Console, answer: Ranking) -> None:
    """Print the best candidates of an answer and how it ran."""
    title = f"{answer.model} version {answer.version}" + (f", task {answer.task}" if answer.task else "")
    table = Table(title=title)
    table.add_column("rank", justify="right")
    table.add_column("candidate", justify="right")
    columns = 1 if answer.scores.ndim == 1 else answer.scores.shape[1]
    for column in range(columns):
        table.add_column("score" if columns == 1 else f"score {column}", justify="right")
    for place, candidate in enumerate(answer.ranking.tolist(), start=1):
        scores = np.atleast_1d(answer.scores[candidate]).tolist()
        table.add_row(str(place), str(candidate), *(f"{score:.6f}" for score in scores))
    console.print(table)
    console.print(
        f"{len(answer.scores)} candidates on {answer.backend} in {answer.batches} batches: "
        f"queue {answer.queue_s * 1e3:.2f} ms, compute {answer.compute_s * 1e3:.2f} ms"
    )
