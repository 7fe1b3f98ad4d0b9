"""What the README says can be done, done: its Python client, its commands, its settings."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from services.rank.settings import ServeSettings

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def block(language: str, containing: str) -> str:
    blocks = re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)
    (found,) = [b for b in blocks if containing in b]
    return found


def test_the_two_commands_are_targets_of_the_makefile() -> None:
    commands = re.findall(r"^make (\S+)", block("sh", "make demo"), flags=re.MULTILINE)
    assert commands == ["demo", "test"]
    for target in [
        *re.findall(r"`make ([a-z-]+)`", README + (ROOT / "ARCHITECTURE.md").read_text()),
        *commands,
    ]:
        subprocess.run(["make", "--dry-run", target], cwd=ROOT, check=True, capture_output=True)


def test_every_setting_is_in_the_readme_with_its_default() -> None:
    table = README.partition("## Settings")[2].partition("##")[0]
    for name, field in ServeSettings.model_fields.items():
        (row,) = [
            line for line in table.splitlines() if line.startswith("|") and f"`{name}`" in line.split("|")[1]
        ]
        assert f"{field.default}".removesuffix(".0") in row, name


@pytest.mark.slow
async def test_the_python_client_runs_as_it_stands(exported, tmp_path: Path, running) -> None:
    (tmp_path / "wnd").symlink_to(exported["wnd"].path.parent)
    code = block("python", "RankClient(").replace("50_000", "100")
    async with running(tmp_path) as address:
        printed = io.StringIO()

        def run() -> None:
            with contextlib.redirect_stdout(printed):
                exec(code.replace("127.0.0.1:8500", address), {})

        await asyncio.to_thread(run)
    assert len(printed.getvalue().replace("\n", " ").split("]")[0].strip(" [").split()) == 10


@pytest.mark.slow
def test_the_demo_runs_to_its_table_and_leaves_nothing_behind(exported, tmp_path: Path) -> None:
    place = exported["wnd"].path.parents[1]
    assert (
        len([exported[slug] for slug in ("ncf", "wnd", "mt_wnd", "rmc1", "rmc2", "rmc3", "din", "dien")]) == 8
    )
    command = [
        sys.executable,
        "-m",
        "services.cli.app",
        "demo",
        "--scale",
        "tiny",
        "--seconds",
        "1",
        "--seed",
        "3",
    ]
    shown = subprocess.run(
        [*command, "--repository", str(place)],
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "120"},
        capture_output=True,
        text=True,
        timeout=180,
        check=True,
    ).stdout
    table = shown.partition("eight models, one after the other")[2]
    for model in ("ncf", "wnd", "mt_wnd", "rmc1", "rmc2", "rmc3", "din, user once", "dien, user once"):
        assert f"│ {model} " in table
    assert "rank" in shown
    assert shown.rstrip().endswith("stopped cleanly")
