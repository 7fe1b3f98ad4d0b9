"""`make triton` without the download: where it refuses, and what an interrupted installation leaves."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from services.triton_server import install as installing
from services.triton_server.install import TritonInstallError, install, is_installed, main
from services.triton_server.launcher import launcher_text


@pytest.fixture
def filled(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Replaces the download by two files; the places that were filled."""
    places: list[Path] = []

    def fill(server: Path) -> None:
        (server / "backends" / "onnxruntime").mkdir(parents=True)
        (server / "recipe").write_text(installing._recipe())
        places.append(server)

    monkeypatch.setattr(installing, "_check_platform", lambda: None)
    monkeypatch.setattr(installing, "_fill", fill)
    return places


@pytest.mark.parametrize(
    ("system", "machine"), [("Darwin", "arm64"), ("Linux", "aarch64"), ("Windows", "AMD64")]
)
def test_another_platform_is_refused_in_one_line(
    system: str, machine: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(platform, "system", lambda: system)
    monkeypatch.setattr(platform, "machine", lambda: machine)
    with pytest.raises(SystemExit) as caught:
        main()
    assert str(caught.value).startswith("error: Triton comes for Linux on x86-64 only")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_python_without_a_stub_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(installing, "PYTHONS", ((2, 7),))
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    with pytest.raises(TritonInstallError, match=r"needs Python 3\.11 or 3\.12, not"):
        install(tmp_path)


def test_a_second_installation_does_nothing_but_refresh_our_own_files(
    filled: list[Path], tmp_path: Path
) -> None:
    assert install(tmp_path)
    backend = tmp_path / "server" / "backends" / "onnxruntime" / "model.py"
    written = backend.read_text()
    backend.write_text("old")
    assert not install(tmp_path)
    assert len(filled) == 1
    assert backend.read_text() == written
    assert os.access(tmp_path / "tritonserver", os.X_OK)


def test_other_pins_replace_the_whole_server(
    filled: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path)
    (tmp_path / "server" / "old").touch()
    pins = tmp_path / "pins.txt"
    pins.write_text("numpy==1.26.3\n")
    monkeypatch.setattr(installing, "CONSTRAINTS", pins)
    assert not is_installed(tmp_path)
    assert install(tmp_path)
    assert not (tmp_path / "server" / "old").exists()


def test_a_failed_installation_leaves_nothing_that_looks_whole(
    filled: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(server: Path) -> None:
        (server / "backends").mkdir()
        raise TritonInstallError("pip cannot install numpy: no network")

    (tmp_path / ".building-killed").mkdir()
    with monkeypatch.context() as patched:
        patched.setattr(installing, "_fill", fail)
        with pytest.raises(TritonInstallError, match="no network"):
            install(tmp_path)
    assert not is_installed(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]
    assert install(tmp_path)


def test_the_launcher_stays_on_loopback_and_lets_the_caller_have_the_last_word(tmp_path: Path) -> None:
    program = tmp_path / "server" / "packages" / "pytriton" / "tritonserver" / "bin" / "tritonserver"
    program.parent.mkdir(parents=True)
    program.write_text(
        f'#!/bin/sh\nexec {sys.executable} -c "import os, sys; print(os.environ, sys.argv)" "$@"\n'
    )
    program.chmod(0o755)
    launcher = tmp_path / "tritonserver"
    launcher.write_text(launcher_text(Path("packages"), Path("/lib with space")))
    launcher.chmod(0o755)
    link = tmp_path / "link"
    link.symlink_to(launcher)
    shown = subprocess.run(
        [str(link), "--grpc-address=0.0.0.0"],
        env={**os.environ, "PYTHONPATH": "/elsewhere"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    for kind in ("http", "grpc", "metrics"):
        assert f"'--{kind}-address=127.0.0.1'" in shown
    assert shown.rstrip().endswith("'--grpc-address=0.0.0.0']")
    assert f"/lib with space:{tmp_path}/server/packages/nvidia_pytriton.libs" in shown
    assert "'PYTHONPATH'" not in shown
