from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from typer.testing import CliRunner

from deeprecsys.errors import InvalidSettingError
from services.cli import rank as command
from services.cli.app import app


async def invoke(*arguments: str):
    return await asyncio.to_thread(CliRunner(env={"COLUMNS": "160"}).invoke, app, ["rank", *arguments])


async def test_a_random_query_is_ranked_and_shown(running, repository: Path) -> None:
    async with running(repository) as target:
        outcome = await invoke("linear", "--target", target, "--candidates", "7", "--top-k", "3")
    assert outcome.exit_code == 0, outcome.output
    assert "linear version 1" in outcome.output
    assert "7 candidates on cpu" in outcome.output


async def test_too_many_candidates_are_refused_before_one_is_drawn(
    running, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "random_inputs", lambda *_: pytest.fail("drawn"))
    async with running(repository, max_candidates=100) as target:
        outcome = await invoke("linear", "--target", target, "--candidates", "2000000000")
    assert isinstance(outcome.exception, InvalidSettingError)
    assert str(outcome.exception) == "--candidates is 2000000000, but a query of linear has at most 100"
