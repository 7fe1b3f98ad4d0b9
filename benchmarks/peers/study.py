"""For one model: this service's throughput within its target, each peer's best setting, and what that one bears."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.live.findings import Findings
from benchmarks.live.search import probe, searched
from benchmarks.live.throughput import LIKELY_SHARE, lone, targets_ms
from benchmarks.peers.contestants import OURS
from benchmarks.peers.peer import Case, Peer, Setting
from benchmarks.peers.process import PeerFailedError, memory_mib
from benchmarks.peers.venvs import PeerInstallError
from deeprecsys.errors import DeepRecSysError
from services.loadgen.run import run_load
from services.loadgen.settings import LoadSettings

TARGET = "scaled"
CLOSELY = ("wnd", "rmc1", "ncf", "dien")
"""Models for which every setting of a peer's grid is tried; the others take the one that was best most often."""

SEED = 0
AGAIN = f"{OURS.name} again"
"""This service is measured before the peers and after them, since a machine has better and worse hours."""

TRIED_SHARE, TRIED_S = 0.6, 4.0
"""Settings are tried at this share of what this service bears, for so many seconds after the warm-up."""

FALL_BACK = 0.7
"""Where a tried setting misses the target, its search begins at this share of the rate it was tried at."""


def study(findings: Findings, repository: Path, model: str, peers: list[Peer]) -> None:
    """Measure this service and then the peers, as far as they are not known yet; OutOfTimeError when time is up."""
    alone = findings.once(f"lone/{model}", lambda: lone(repository, model))
    case = Case(repository, model, targets_ms(model, alone["lone_s"])[TARGET])
    ours = findings.once(
        f"found/{model}/{OURS.name}", lambda: _bears(case, OURS, {}, LIKELY_SHARE * alone["peak_qps"])
    )
    if not ours["qps"]:
        return
    for peer in peers:
        _measure(findings, case, peer, TRIED_SHARE * ours["qps"])
    findings.once(f"found/{model}/{AGAIN}", lambda: _bears(case, OURS, {}, FALL_BACK * ours["qps"]))


def _measure(findings: Findings, case: Case, peer: Peer, tried_qps: float) -> None:
    """Find a peer's best setting by driving each at one rate, and what it bears there."""
    if "reason" in findings.once(f"installed/{peer.name}", lambda: _prepare(peer)):
        return
    tried = []
    for setting in settings_to_try(findings, case.model, peer):
        key = f"tried/{case.model}/{peer.name}/{_words(setting)}"
        tried.append((setting, findings.once(key, partial(_try, case, peer, setting, tried_qps))))
    setting, trial = best(tried)
    key = f"found/{case.model}/{peer.name}"
    if "failed" in trial:
        findings.once(key, lambda: {"qps": 0.0, "failed": trial["failed"]})
        return
    in_time = trial["p95_ms"] is not None and trial["p95_ms"] <= case.target_ms
    start_qps = tried_qps if in_time else FALL_BACK * tried_qps
    findings.once(key, partial(_bears, case, peer, setting, start_qps))


def settings_to_try(findings: Findings, model: str, peer: Peer) -> tuple[Setting, ...]:
    """Return the whole grid for a model of CLOSELY, and where nothing is known; else the usually best setting."""
    if model in CLOSELY:
        return peer.grid
    known = [findings.found.get(f"found/{each}/{peer.name}") for each in CLOSELY]
    settings: list[Setting] = [found["setting"] for found in known if found is not None and found["qps"]]
    if not settings:
        return peer.grid
    return (max(settings, key=settings.count),)


def _words(setting: Setting) -> str:
    return ",".join(f"{name}={value:g}" for name, value in setting.items())


def _prepare(peer: Peer) -> dict[str, Any]:
    try:
        return {"versions": dict(peer.prepare())}
    except PeerInstallError as error:
        return {"reason": str(error)}


def best(tried: list[tuple[Setting, dict[str, Any]]]) -> tuple[Setting, dict[str, Any]]:
    """Return the setting with the least p95; where that is no answer (None), with the fewest of those.

    Those that could not be driven come last.
    """
    return min(tried, key=lambda each: _rank(each[1]))


def _rank(trial: dict[str, Any]) -> tuple[int, float]:
    if "failed" in trial:
        return 2, 0.0
    return (0, trial["p95_ms"]) if trial["p95_ms"] is not None else (1, trial["unanswered"])


def _try(case: Case, peer: Peer, setting: Setting, qps: float) -> dict[str, Any]:
    """Drive one setting for some seconds; ``failed`` says why it could not be driven."""
    try:
        with peer.serve(case, setting) as serving:
            settings = replace(_probe(case, peer, qps), duration_s=TRIED_S, min_queries=1)
            result = run_load(settings, service=serving.service)
    except (PeerFailedError, DeepRecSysError) as error:
        return {"p95_ms": None, "failed": str(error)}
    if result.cut_short is not None:
        raise KeyboardInterrupt
    measured = result.models[0].measurement
    return {"p95_ms": measured.p95_s * 1e3, "queries": measured.count, "unanswered": measured.failed}


def _bears(case: Case, peer: Peer, setting: Setting, start_qps: float) -> dict[str, Any]:
    """Search the highest rate within the target, with the memory that the server holds after it."""
    with peer.serve(case, setting) as serving:
        found = searched(_probe(case, peer, start_qps), service=serving.service)
        memory = memory_mib(serving.pid)
    return {"target_ms": case.target_ms, "setting": dict(setting), **found, **memory}


def _probe(case: Case, peer: Peer, qps: float) -> LoadSettings:
    return probe(peer.name, case.model, qps, SEED)


def summary(findings: Findings, model: str, peers: list[Peer]) -> dict[str, Any] | None:
    """Return one row: what is known of each peer for the model, by name; None before this service is measured.

    Of this service's two measurements the row has the lower one.
    """
    found = [findings.found.get(f"found/{model}/{name}") for name in (OURS.name, AGAIN)]
    if found[0] is None:
        return None
    ours = min((each for each in found if each is not None), key=lambda each: float(each["qps"]))
    row: dict[str, Any] = {"model": model, "target_ms": ours["target_ms"], OURS.name: ours}
    for peer in peers:
        theirs = findings.found.get(f"found/{model}/{peer.name}")
        if theirs is not None:
            row[peer.name] = theirs
    return row


def best_peer(row: dict[str, Any], peers: list[Peer]) -> Peer | None:
    """Return the compared peer that bears most; None where none meets the target, or none is measured."""
    measured = [peer for peer in peers if peer.compared and row.get(peer.name, {}).get("qps")]
    return max(measured, key=lambda peer: row[peer.name]["qps"], default=None)
