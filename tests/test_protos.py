"""The committed stubs are those that the protos give."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_committed_stubs_are_regenerated_byte_for_byte(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "protos", tmp_path / "protos")
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / ".venv").symlink_to(sys.prefix)
    command = ["make", "--assume-old=.venv/.ready", "protos"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, timeout=60)
    made = sorted(path.relative_to(tmp_path) for path in (tmp_path / "deeprecsys").rglob("*.py*"))
    kept = sorted(
        path.relative_to(ROOT)
        for path in (ROOT / "deeprecsys" / "v1").glob("*.py*")
        if path.name != "__init__.py"
    )
    assert made == kept
    for path in made:
        assert (tmp_path / path).read_bytes() == (ROOT / path).read_bytes(), path
