"""Each peer in a virtual environment of its own, from the package index, with the ONNX Runtime that is used here."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import venv
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

PLACE = Path(".peers")
LIMIT_S = 600.0
_LIST = (
    "import importlib.metadata as m, json; print(json.dumps({d.name: d.version for d in m.distributions()}))"
)
_DONE = ".installed"


class PeerInstallError(Exception):
    """A peer cannot be installed here; the message says why."""


def environment(name: str, requirements: Sequence[str], same: Sequence[str], place: Path = PLACE) -> Path:
    """Return the Python of a peer's environment, made when it is missing; PeerInstallError when it cannot be.

    ``same``: further packages, each in the version that is installed here.
    """
    folder = place / name
    python = (folder / "bin" / "python").absolute()
    wanted = [*requirements, *(f"{package}=={version(package)}" for package in same)]
    recipe = json.dumps([sys.version, wanted])
    done = folder / _DONE
    if done.is_file() and done.read_text(encoding="utf-8") == recipe:
        return python
    shutil.rmtree(folder, ignore_errors=True)
    venv.create(folder, with_pip=True, symlinks=True)
    _install(python, wanted)
    done.write_text(recipe, encoding="utf-8")
    return python


def _install(python: Path, wanted: Sequence[str]) -> None:
    command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    try:
        run = subprocess.run(
            [*command, "--only-binary=:all:", *wanted],
            check=False,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
        )
    except subprocess.TimeoutExpired as late:
        raise PeerInstallError(f"pip was not done after {LIMIT_S:g} s") from late
    if run.returncode:
        reasons = [line for line in run.stderr.splitlines() if line.startswith("ERROR")]
        raise PeerInstallError((reasons or [f"pip's exit code was {run.returncode}"])[-1])


def installed_versions(python: Path) -> dict[str, str]:
    """Return the versions of all packages of an environment."""
    listed = subprocess.run([str(python), "-c", _LIST], check=True, capture_output=True, text=True)
    found: dict[str, str] = json.loads(listed.stdout)
    return dict(sorted(found.items()))
