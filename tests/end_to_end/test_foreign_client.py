"""Any language can use the protos: proven by a client that shares nothing with this project but them."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from services.models.spec import SLUGS

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]


def generate_stubs(folder: Path) -> None:
    protos = ROOT / "protos"
    subprocess.run(
        [
            sys.executable,
            "-m",
            "grpc_tools.protoc",
            f"-I{protos}",
            f"--python_out={folder}",
            f"--grpc_python_out={folder}",
            "deeprecsys/v1/rank.proto",
        ],
        cwd=protos,
        check=True,
    )


async def test_a_foreign_client_gets_a_ranking_from_each_of_the_eight(
    eight: Path, running, tmp_path: Path
) -> None:
    generate_stubs(tmp_path)
    async with running(eight) as address:
        client = await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",
            str(Path(__file__).with_name("foreign_client.py")),
            str(tmp_path),
            address,
            cwd=tmp_path,
            env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
            stdout=asyncio.subprocess.PIPE,
        )
        out, _ = await asyncio.wait_for(client.communicate(), 60)
    assert client.returncode == 0
    answers = {answer["model"]: answer for answer in map(json.loads, out.decode().splitlines())}
    assert sorted(answers) == sorted(SLUGS)
    for answer in answers.values():
        columns = max(1, len(answer["tasks"]))
        first = answer["scores"][::columns]
        assert answer["ranking"] == sorted(range(11), key=lambda i: -first[i])[:3]
