"""`deeprecsys load` in a process: Ctrl-C from a terminal, which reaches every process of the group."""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

LONG_S = "600"
ENOUGH_S = 20
"""What a process gets to end in: a fraction of what the run would take."""


def interrupted(stand_in, result: Path, *options: str, after: int = 40) -> tuple[dict, str]:
    """Start a long run, interrupt it after so many queries, and return what it wrote and printed."""
    reached = threading.Event()

    def note(nth, request):
        if nth >= after:
            reached.set()

    stand_in.behave = note
    process = subprocess.Popen(
        [
            *(
                sys.executable,
                "-m",
                "services.cli.app",
                "load",
                "--target",
                stand_in.target,
                "--model",
                "tiny",
            ),
            *("--sizes", "fixed:2", "--duration", LONG_S, "--warmup", "0", "--qps", "100"),
            *("--json", str(result), *options),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        assert reached.wait(60)
        os.killpg(process.pid, signal.SIGINT)
        output, _ = process.communicate(timeout=ENOUGH_S)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0, output
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)
    return json.loads(result.read_text()), output


@pytest.mark.parametrize("drivers", ["1", "2"])
def test_ctrl_c_ends_a_run_and_keeps_what_was_measured(stand_in_elsewhere, tmp_path, drivers):
    latencies = tmp_path / "all.parquet"
    result, output = interrupted(
        stand_in_elsewhere,
        tmp_path / "result.json",
        *("--drivers", drivers, "--latencies", str(latencies)),
    )
    assert result["cut_short"] == "stopped by the user"
    assert result["driver"]["processes"] == int(drivers)
    (tiny,) = result["models"]
    assert 30 <= tiny["measurement"]["count"] == tiny["codes"]["OK"]
    assert tiny["measurement"]["p95_s"] > 0
    assert "cut short" in result["invalid"]
    assert "cut short: stopped by the user" in output
    assert latencies.stat().st_size > 0


def test_ctrl_c_ends_a_sweep_and_keeps_its_points(stand_in_elsewhere, tmp_path):
    result, _ = interrupted(stand_in_elsewhere, tmp_path / "result.json", "--sweep", "50,100")
    assert (result["kind"], result["cut_short"]) == ("sweep", "stopped by the user")
    (point,) = result["points"]
    assert point["models"][0]["codes"]["OK"] >= 30
    assert "cut short" in point["invalid"]


def test_ctrl_c_ends_a_search_and_keeps_its_probes(stand_in_elsewhere, tmp_path):
    result, _ = interrupted(
        stand_in_elsewhere,
        tmp_path / "result.json",
        *("--find-max", "--qps", "500", "--duration", "0.5"),
        after=1000,
    )
    assert (result["kind"], result["cut_short"]) == ("search", "stopped by the user")
    probes = result["capacity"]["probes"]
    assert len(probes) >= 1
    met = [probe["qps"] for probe in probes if probe["shortfall"] is None]
    assert result["capacity"]["qps"] == max(met, default=0.0)
    assert result["capacity"]["why"] == f"the search was stopped by the user after {len(probes)} probes"


def test_ctrl_c_ends_loadgen_without_a_verdict(stand_in_elsewhere, tmp_path):
    result, output = interrupted(
        stand_in_elsewhere, tmp_path / "result.json", "--mlperf", str(tmp_path / "logs")
    )
    assert (result["kind"], result["verdict"]) == ("mlperf", None)
    assert result["cut_short"] == "stopped by the user"
    assert result["codes"]["OK"] >= 30
    assert "none" in output
