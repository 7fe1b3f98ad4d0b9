"""Which setting is the best, and what the table says."""

from __future__ import annotations

import json
import math
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from google.protobuf import text_format
from rich.console import Console
from tritonclient.grpc import model_config_pb2

from benchmarks.live.findings import Findings
from benchmarks.peers import study
from benchmarks.peers.contestants import LITSERVE_PEER, PEERS, PLAIN, SPLIT, TRITON, WHOLE
from benchmarks.peers.described import described
from benchmarks.peers.process import PeerFailedError
from benchmarks.peers.study import best, best_peer, settings_to_try, summary
from benchmarks.peers.table import geometric_mean, over_best, ratios, table
from benchmarks.peers.triton_repository import triton_repository
from benchmarks.peers.venvs import PeerInstallError, environment
from deeprecsys import AsyncRankClient

ROOT = Path(__file__).parents[3]


def found(qps: float) -> dict[str, object]:
    return {"qps": qps, "target_ms": 40.0, "pss_mib": 300.0}


def row(model: str, **qps: float) -> dict[str, object]:
    return {"model": model, "target_ms": 40.0, **{name: found(rate) for name, rate in qps.items()}}


ROWS = [
    row("wnd", ours=300.0, plain=200.0, litserve=100.0, triton=900.0),
    row("ncf", ours=400.0, plain=100.0, litserve=200.0, triton=900.0),
    row("din", ours=50.0, plain=0.0),
]
"""The last: measured, and the target is met by no peer."""


def test_the_best_setting_has_the_least_tail_and_failed_ones_come_last() -> None:
    trials = [
        {"p95_ms": None, "failed": "no answer"},
        {"p95_ms": 30.0},
        {"p95_ms": 20.0},
        {"p95_ms": None, "unanswered": 70},
        {"p95_ms": None, "unanswered": 40},
    ]
    tried = [({"threads": k}, trial) for k, trial in enumerate(trials)]
    order = []
    while tried:
        order.append(int(best(tried)[0]["threads"]))
        tried.remove(best(tried))
    assert order == [2, 1, 4, 3, 0]


def test_a_peer_outside_the_comparison_is_never_the_best_nor_in_a_mean() -> None:
    peers = [*WHOLE, *SPLIT]
    assert [peer.name if peer else None for peer in (best_peer(each, peers) for each in ROWS)] == [
        "plain",
        "litserve",
        None,
    ]
    assert over_best(ROWS, peers) == [1.5, 2.0]
    assert ratios(ROWS, PLAIN) == [1.5, 4.0]
    assert geometric_mean([1.5, 6.0]) == pytest.approx(3.0)
    assert math.isnan(geometric_mean([]))
    assert {peer.name for peer in PEERS if not peer.compared} == {"triton", "triton-split"}


def test_the_table_says_what_is_not_measured_what_meets_nothing_and_what_is_left_out() -> None:
    console = Console(width=250, record=True)
    console.print(table(ROWS, [PLAIN, LITSERVE_PEER, TRITON]))
    lines = {line.split("│")[1].strip(): line for line in console.export_text().splitlines() if "│" in line}
    cells = {name: [cell.strip() for cell in line.split("│")[2:-1]] for name, line in lines.items()}
    assert cells[PLAIN.title] == ["200.0 (300)", "100.0 (300)", "none (300)", "2.45 over 2"]
    assert cells[LITSERVE_PEER.title] == ["100.0 (300)", "200.0 (300)", "not measured", "2.45 over 2"]
    assert cells[TRITON.title][-1] == "outside every mean"
    last = cells["this service / the best peer"]
    assert last == ["1.50 (plain)", "2.00 (litserve)", "no peer meets it", "1.73 over 2"]
    only = table([row("wnd", ours=300.0, triton=900.0)], [PLAIN, TRITON])
    assert list(only.columns[1].cells)[-1] == "not measured"


def test_a_peer_that_cannot_be_installed_is_named_and_not_tried(tmp_path: Path, monkeypatch) -> None:
    def prepare() -> dict[str, str]:
        raise PeerInstallError("no wheel for this Python")

    def refuse(*_: object) -> None:
        pytest.fail("it was started")

    peer = replace(PLAIN, name="gone", prepare=prepare, serve=refuse)
    findings = Findings(tmp_path / "peers.jsonl")
    findings.found["lone/wnd"] = {"lone_s": 0.01, "peak_qps": 100.0}
    findings.found["found/wnd/ours"] = findings.found["found/wnd/ours again"] = found(80.0)
    study.study(findings, tmp_path, "wnd", [peer])
    assert findings.found["installed/gone"] == {"reason": "no wheel for this Python"}
    assert summary(findings, "wnd", [peer]) == {"model": "wnd", "target_ms": 40.0, "ours": found(80.0)}
    assert summary(findings, "ncf", [peer]) is None


def test_the_best_setting_is_searched_from_the_rate_that_it_was_tried_at(tmp_path: Path, monkeypatch) -> None:
    p95_ms = {2.0: 60.0, 1.0: 50.0}
    begun = []

    def searched(case, peer, setting, start_qps):
        begun.append((peer.name, setting.get("at_once"), start_qps))
        return found(30.0)

    def tried(case, peer, setting, qps):
        assert qps == pytest.approx(0.6 * 80.0)
        known = p95_ms.get(setting["at_once"])
        return {"p95_ms": None, "failed": "no answer"} if known is None else {"p95_ms": known}

    monkeypatch.setattr(study, "_try", tried)
    monkeypatch.setattr(study, "_bears", searched)
    findings = Findings(tmp_path / "peers.jsonl")
    findings.found["lone/wnd"] = {"lone_s": 0.01, "peak_qps": 100.0}
    findings.found["found/wnd/ours"] = found(80.0)
    peer = replace(PLAIN, grid=tuple({"at_once": k} for k in (2.0, 1.0, 4.0)))
    for _ in range(2):  # the second time all is known
        study.study(findings, tmp_path, "wnd", [peer])
    assert begun == [
        ("plain", 1.0, pytest.approx(0.7 * 0.6 * 80.0)),
        ("ours", None, pytest.approx(0.7 * 80.0)),
    ]
    assert summary(findings, "wnd", [peer])["ours"]["qps"] == 30.0  # the lower of 80 and 30
    assert [key for key in findings.found if key.startswith("tried/")] == [
        f"tried/wnd/plain/at_once={k}" for k in (2, 1, 4)
    ]


def test_a_peer_that_serves_at_no_setting_is_named_with_the_reason(tmp_path: Path) -> None:
    @contextmanager
    def broken(case, setting):
        raise PeerFailedError("ended with code 1: no such file")
        yield

    findings = Findings(tmp_path / "peers.jsonl")
    findings.found["lone/wnd"] = {"lone_s": 0.01, "peak_qps": 100.0}
    findings.found["found/wnd/ours"] = findings.found["found/wnd/ours again"] = found(80.0)
    peer = replace(PLAIN, serve=broken)
    study.study(findings, tmp_path, "wnd", [peer])
    assert findings.found["found/wnd/plain"] == {"qps": 0.0, "failed": "ended with code 1: no such file"}
    last = table([summary(findings, "wnd", [peer])], [peer]).columns[1]
    assert list(last.cells) == ["80.0 (300)", "does not serve", "no peer meets it"]


def test_models_that_are_not_looked_at_closely_take_the_setting_that_was_the_best_most_often(
    tmp_path: Path,
) -> None:
    findings = Findings(tmp_path / "peers.jsonl")
    assert settings_to_try(findings, "rmc2", PLAIN) == PLAIN.grid
    for model, k in (("wnd", 0), ("rmc1", 2), ("dien", 2)):
        findings.found[f"found/{model}/plain"] = {"setting": dict(PLAIN.grid[k]), "qps": 9.0}
    assert settings_to_try(findings, "rmc2", PLAIN) == (PLAIN.grid[2],)
    assert settings_to_try(findings, "ncf", PLAIN) == PLAIN.grid


async def test_the_description_is_the_one_that_the_server_gives(repository: Path, running) -> None:
    async with running(repository) as address, AsyncRankClient(address, timeout_s=10) as client:
        theirs = await client.model("linear")
    assert described(repository, "linear", 50.0).message == theirs


def test_triton_gets_the_model_at_the_setting() -> None:
    model = ROOT / "model_repository" / "wnd"
    config = model_config_pb2.ModelConfig()
    setting = {"instances": 2, "threads": 1, "batching": 1, "delay_us": 500}
    with triton_repository(model, setting) as folder:
        text_format.Parse((folder / "wnd" / "config.pbtxt").read_text(), config)
        assert config.instance_group[0].count == 2
        assert config.dynamic_batching.max_queue_delay_microseconds == 500
        assert config.parameters["intra_op_thread_count"].string_value == "1"
    with triton_repository(model, {**setting, "batching": 0}) as folder:
        config = text_format.Parse(
            (folder / "wnd" / "config.pbtxt").read_text(), model_config_pb2.ModelConfig()
        )
        assert not config.HasField("dynamic_batching")


@pytest.mark.slow
def test_pip_says_why_a_peer_cannot_be_installed(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(PeerInstallError, match="No matching distribution found for no-such-peer"):
        environment("gone", ["no-such-peer"], [], tmp_path)
    assert not (tmp_path / "gone" / ".installed").exists()


def test_the_committed_findings_can_be_read() -> None:
    path = ROOT / "benchmarks" / "results" / "peers.jsonl"
    keys = [json.loads(line)["key"] for line in path.read_text().splitlines()]
    assert len(keys) == len(set(keys))
