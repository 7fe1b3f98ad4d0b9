"""This service against its peers, on this machine, in one run.

    python -m benchmarks.peers [--repository model_repository] [--minutes 90] [--peers NAME ...] [MODEL ...]

The same exported models, schedule, target (four times what a lone query of the p95 size takes here), tail rule and
driver. Each peer tries its grid of settings for some seconds at 0.6 of the rate that this service bears, and the one
with the least p95 is searched; models beyond the first four take the setting that was the best most often. This service
is measured before the peers and after them, and the lower rate counts. Peers are installed into .peers/, each into an
environment of its own. Findings are kept in benchmarks/results/peers.jsonl and never measured twice: an interrupted
run goes on where it was.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import signal
import sys
import time
from pathlib import Path

from rich.console import Console

from benchmarks.live.findings import Findings, OutOfTimeError
from benchmarks.peers.contestants import OURS, SPLIT, WHOLE
from benchmarks.peers.study import CLOSELY, study, summary
from benchmarks.peers.table import geometric_mean, over_best, ratios, table
from services.machine import describe_machine
from services.models.spec import SLUGS

RESULTS = Path(__file__).parent.parent / "results"
PEERS = {peer.name: peer for peer in (*WHOLE, *SPLIT)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repository", type=Path, default=Path("model_repository"))
    parser.add_argument("--minutes", type=float, default=90.0, help="begin nothing more after so long")
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS), metavar="NAME")
    parser.add_argument("models", nargs="*", metavar="MODEL", help=", ".join(SLUGS))
    arguments = parser.parse_args()
    if unknown := set(arguments.models) - set(SLUGS):
        parser.error(f"there is no model {', '.join(sorted(unknown))}; known: {', '.join(SLUGS)}")
    findings = Findings(RESULTS / "peers.jsonl", time.monotonic() + 60 * arguments.minutes)
    # A signal that ended this process at once would leave the server of the moment behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped: run it again to go on"))
    console = Console(width=200)
    peers = [PEERS[name] for name in arguments.peers]
    ordered = [*CLOSELY, *(slug for slug in SLUGS if slug not in CLOSELY)]
    try:
        for model in arguments.models or ordered:
            study(findings, arguments.repository, model, peers)
    except OutOfTimeError:
        console.print("out of time: run it again to go on")
    rows = [row for model in ordered if (row := summary(findings, model, list(PEERS.values()))) is not None]
    console.print(table(rows, list(PEERS.values())))
    missing = {
        name: found["reason"]
        for name in PEERS
        if "reason" in (found := findings.found.get(f"installed/{name}", {}))
    }
    for name, reason in missing.items():
        console.print(f"{name} could not be installed: {reason}")
    result = {
        "machine": dataclasses.asdict(describe_machine()),
        "rows": rows,
        "over_best_peer": geometric_mean(over_best(rows, list(PEERS.values()))),
        "over_each": {
            peer.name: geometric_mean(each)
            for peer in PEERS.values()
            if peer.compared and (each := ratios(rows, peer))
        },
        "not_installed": missing,
        "titles": {peer.name: peer.title for peer in (OURS, *PEERS.values())},
    }
    (RESULTS / "peers.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
