"""`deeprecsys tune --profile`: the same search, in the simulator."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from deeprecsys.errors import InvalidSettingError
from scheduler.latency import BackendProfile, LatencyCurve, LatencyPoint, LatencyProfile
from scheduler.plan import OperatingPoint
from scheduler.tune import THRESHOLDS, Tried, Tuned
from services.cli import tune as command
from services.cli.app import app
from services.profiles import read_profile, write_profile


def point(batch_size: int) -> LatencyPoint:
    mean_s = 5e-4 + 6e-5 * batch_size
    return LatencyPoint(batch_size, mean_s, mean_s, 1.1 * mean_s, 1.2 * mean_s)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    curve = LatencyCurve(tuple(point(n) for n in (1, 8, 64, 512)))
    path = tmp_path / "profiles" / "mlp.json"
    write_profile(path, LatencyProfile("mlp", 2, (BackendProfile("cpu", curve, curve),)))
    return path


def refusal(*arguments: str) -> str:
    outcome = CliRunner().invoke(app, ["tune", *arguments])
    assert isinstance(outcome.exception, InvalidSettingError)
    return str(outcome.exception)


def test_a_profile_is_tuned_without_a_service_and_said_to_be_simulated(path: Path) -> None:
    arguments = [
        "tune",
        "mlp",
        "--profile",
        str(path),
        "--sla-ms",
        "42",
        "--largest",
        "8",
        "--queries",
        "1000",
    ]
    outcome = CliRunner().invoke(app, arguments, terminal_width=200)
    assert outcome.exit_code == 0
    assert "SIMULATED" in outcome.stdout
    assert "batch size 8" in outcome.stdout  # its fixed cost is that of eight candidates


def test_what_a_simulated_tuning_needs_is_named(path: Path) -> None:
    assert "--sla-ms must be given" in refusal("mlp", "--profile", str(path))
    assert "profile of mlp, not of wnd" in refusal("wnd", "--profile", str(path), "--sla-ms", "42")
    assert "--policy must be one of" in refusal(
        "mlp", "--profile", str(path), "--sla-ms", "42", "--policy", "best"
    )
    assert "known" in refusal("mlp", "--profile", str(path), "--sla-ms", "42", "--sizes", "huge")
    for sla_ms in ("0", "inf", "nan"):
        assert "--sla-ms must be given" in refusal("mlp", "--profile", str(path), "--sla-ms", sla_ms)
    for qps in ("0", "-1", "inf", "nan"):
        assert "--start-qps must be" in refusal(
            "mlp", "--profile", str(path), "--sla-ms", "42", "--start-qps", qps
        )


def test_options_that_would_have_no_effect_are_refused(path: Path) -> None:
    simulated = ("mlp", "--profile", str(path), "--sla-ms", "42")
    for flags in (("--target", "h:1"), ("--duration", "5"), ("--cpu-only",), ("--finished", "f")):
        assert f"{flags[0]} measures a service" in refusal(*simulated, *flags)
    for flags in (("--sla-ms", "42"), ("--policy", "static"), ("--queries", "2000")):
        assert f"{flags[0]} is for a simulated search" in refusal("mlp", *flags)


def test_a_simulated_tuning_says_that_no_point_meets_the_target(path: Path) -> None:
    arguments = [
        "tune",
        "mlp",
        "--profile",
        str(path),
        "--sla-ms",
        "0.1",
        "--largest",
        "2",
        "--queries",
        "1000",
    ]
    outcome = CliRunner().invoke(app, arguments)
    assert outcome.exit_code == 0
    assert "no point meets the target" in outcome.stdout


def test_a_profile_that_cannot_be_used_is_named_with_its_reason(path: Path, tmp_path: Path) -> None:
    profile = read_profile(path)
    assert profile.backend("cpu").busy.mean_s(8) == pytest.approx(5e-4 + 8 * 6e-5)
    with pytest.raises(InvalidSettingError, match="No such file"):
        read_profile(tmp_path / "none.json")
    path.write_text("{")
    with pytest.raises(InvalidSettingError, match="is not JSON"):
        read_profile(path)
    path.write_text(json.dumps({"model": "mlp", "cores": 2}))
    with pytest.raises(InvalidSettingError, match="backends is missing"):
        read_profile(path)


@pytest.mark.parametrize(("flags", "thresholds"), [((), THRESHOLDS), (("--cpu-only",), ())])
def test_thresholds_are_tuned_unless_the_cpu_alone_is_asked_for(
    flags: tuple[str, ...],
    thresholds: tuple[int | None, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[object] = []

    def tune_live(*_: object, **options: object) -> Tuned:
        asked.append(options["thresholds"])
        tried = (
            Tried(OperatingPoint(64), 80.0, "p95"),
            Tried(OperatingPoint(64, 256), 120.0, "p95"),
            Tried(OperatingPoint(64, 1), 0.0, "p99", pruned=True),
        )
        return Tuned(OperatingPoint(64, 256), 120.0, tried, 9, 1)

    monkeypatch.setattr(command, "tune_live", tune_live)
    arguments = ["tune", "mlp", "--finished", str(tmp_path / "finished.jsonl"), *flags]
    outcome = CliRunner().invoke(app, arguments, terminal_width=200)
    assert outcome.exit_code == 0, outcome.output
    assert asked == [thresholds]
    assert "best at batch size 64, offloading from 256" in " ".join(outcome.stdout.split())
    rows = [line.split()[1:6:2] for line in outcome.stdout.splitlines() if " 64 " in line and "│" in line]
    assert rows == [["64", "none", "80.0"], ["64", "1", "<"], ["64", "256", "120.0"]]
