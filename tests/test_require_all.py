"""Under DEEPRECSYS_REQUIRE_ALL no skip passes for a success."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
@pytest.mark.parametrize(("required", "code"), [("", 0), ("1", 1)])
def test_a_skip_fails_only_where_everything_is_required(required: str, code: int, tmp_path: Path) -> None:
    (tmp_path / "test_skip.py").write_text("import pytest\n\ndef test_it():\n    pytest.skip('not here')\n")
    run = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-rs",
            "-p",
            "tests.conftest",
            "--rootdir",
            str(tmp_path),
            str(tmp_path),
        ],
        cwd=ROOT,
        env={**os.environ, "DEEPRECSYS_REQUIRE_ALL": required},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == code, run.stdout
    assert "not here" in run.stdout
