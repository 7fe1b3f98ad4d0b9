"""`make triton`: put a real tritonserver with the project's own backend into `.triton/`.

The server is built in a hidden folder and renamed into place, and the launcher is written last: where there is a
launcher there is a whole server. Done again, it does nothing but bring the backend and the launcher up to date.
"""

from __future__ import annotations

import fcntl
import platform
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deeprecsys.errors import DeepRecSysError
from services.triton_server.launcher import LAUNCHER, SERVER, launcher_text

PLACE = Path(".triton")
CONSTRAINTS = Path(__file__).with_name("constraints.txt")
OWN_BACKEND = Path(__file__).with_name("onnxruntime_backend") / "model.py"
PYTHONS = ((3, 11), (3, 12))
"""Versions that the wheel has a stub for and NumPy 1.26 has wheels for."""

_RECIPE = "recipe"
_BUILDING = ".building-"


class TritonInstallError(DeepRecSysError):
    """Triton cannot be installed here; the message says why."""


def main() -> None:
    """Install into `.triton`; an expected failure is one line on standard error and an exit code of 1."""
    try:
        done = install(PLACE)
    except TritonInstallError as error:
        sys.exit(f"error: {error}")
    print(f"{PLACE / LAUNCHER}: {'installed' if done else 'was there already'}")  # noqa: T201


def install(place: Path) -> bool:
    """Install what is missing and return whether that was the server itself; raises TritonInstallError."""
    _check_platform()
    place.mkdir(parents=True, exist_ok=True)
    with _alone(place):
        missing = not is_installed(place)
        if missing:
            _install_server(place)
        _refresh_own_files(place)
    return missing


def is_installed(place: Path) -> bool:
    """Return whether a whole server of the wanted versions is in ``place``."""
    recipe = place / SERVER / _RECIPE
    return recipe.is_file() and recipe.read_text(encoding="utf-8") == _recipe()


def _check_platform() -> None:
    system, machine = platform.system(), platform.machine()
    if (system, machine) != ("Linux", "x86_64"):
        raise TritonInstallError(
            f"Triton comes for Linux on x86-64 only, and this is {system} on {machine}; "
            "everything but the accelerator path works without it"
        )
    if sys.version_info[:2] not in PYTHONS:
        raise TritonInstallError(
            f"Triton's Python backend needs Python 3.11 or 3.12, not {platform.python_version()}"
        )
    if not (_libraries() / f"libpython{_version()}.so.1.0").exists():
        raise TritonInstallError(
            f"Triton's Python backend needs libpython{_version()}.so.1.0, which is not in {_libraries()}"
        )


@contextmanager
def _alone(place: Path) -> Iterator[None]:
    """Let one installation at a time into ``place``, and remove what an interrupted one left."""
    with (place / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for left in place.glob(f"{_BUILDING}*"):
            shutil.rmtree(left)
        yield


def _install_server(place: Path) -> None:
    building = Path(tempfile.mkdtemp(prefix=_BUILDING, dir=place))
    (place / LAUNCHER).unlink(missing_ok=True)
    try:
        _fill(building)
        if (place / SERVER).exists():
            shutil.rmtree(place / SERVER)
        building.chmod(0o755)
        building.rename(place / SERVER)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _fill(server: Path) -> None:
    venv.create(server / "venv", with_pip=True, symlinks=True)
    _pip_install(server, "numpy", "onnxruntime")
    # What pytriton adds to the server is not used here, and neither are its dependencies.
    _pip_install(server, "--no-deps", "nvidia-pytriton")
    wheel = server / _packages() / "pytriton" / "tritonserver"
    python = server / "backends" / "python"
    python.mkdir(parents=True)
    # Copies: Triton refuses links that lead out of a backend's folder.
    for name in ("libtriton_python.so", "triton_python_backend_utils.py"):
        shutil.copy(wheel / "backends" / "python" / name, python)
    shutil.copy(wheel / "python_backend_stubs" / _version() / "triton_python_backend_stub", python)
    (server / "backends" / "onnxruntime").mkdir()
    (server / _RECIPE).write_text(_recipe(), encoding="utf-8")


def _pip_install(server: Path, *what: str) -> None:
    command = [str(server / "venv" / "bin" / "python"), "-m", "pip", "install", "--quiet"]
    run = subprocess.run(  # noqa: S603 - our own
        [*command, "--disable-pip-version-check", "--only-binary=:all:", "-c", str(CONSTRAINTS), *what],
        check=False,
        capture_output=True,
        text=True,
    )
    if run.returncode:
        reasons = [line for line in run.stderr.splitlines() if line.startswith("ERROR")]
        raise TritonInstallError(
            f"pip cannot install {what[-1]}: {(reasons or [f'exit code {run.returncode}'])[-1]}"
        )


def _refresh_own_files(place: Path) -> None:
    backend = OWN_BACKEND.read_text(encoding="utf-8")
    _write(place / SERVER / "backends" / "onnxruntime" / OWN_BACKEND.name, backend, 0o644)
    _write(place / LAUNCHER, launcher_text(_packages(), _libraries()), 0o755)


def _write(path: Path, text: str, mode: int) -> None:
    """Replace a file in one rename."""
    draft = path.with_name(f".{path.name}.draft")
    draft.write_text(text, encoding="utf-8")
    draft.chmod(mode)
    draft.replace(path)


def _recipe() -> str:
    """Return what an installation is made from: the pins and the Python that runs the backends."""
    return f"{sys.base_prefix} {platform.python_version()}\n{CONSTRAINTS.read_text(encoding='utf-8')}"


def _packages() -> Path:
    return Path("venv", "lib", f"python{_version()}", "site-packages")


def _libraries() -> Path:
    return Path(sysconfig.get_config_var("LIBDIR"))


def _version() -> str:
    return f"{sys.version_info.major}.{sys.version_info.minor}"


if __name__ == "__main__":
    main()
