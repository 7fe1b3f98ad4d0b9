"""Throughput by threshold beside a modelled accelerator, SIMULATED from profiles.

    python -m benchmarks.threshold_sweep [--queries 5000] [MODEL ...]

A hill climb finds batch size and threshold (policy `adaptive`, target `scaled`, size law `production`); then every
threshold of its ladder is searched at that batch size, on the same queries. The accelerator is that of
benchmarks.tuner_quality: one query at a time, this machine's batches as much faster as a GTX 1080 Ti was than a Skylake
core. A search ends within 2 %; differences below 5 % are none.
"""

from __future__ import annotations

from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.simulated_case import Case, Finished, Row, gpu_speedup, load_profile, parser, write
from scheduler.plan import POLICIES, OperatingPoint
from scheduler.tune import THRESHOLDS, hill_climb

SEED = 0
TARGET, SIZES = "scaled", "production"


def sweep(case: Case) -> Row:
    """Return one row: the tuned point, and queries/s within the target by threshold."""
    policy = POLICIES["adaptive"]
    tuned = hill_climb(case.measure(policy, SEED), case.sla, case.start_qps)
    return {
        "model": case.profile.model,
        "sla_ms": case.sla.seconds * 1e3,
        "batch_size": tuned.point.batch_size,
        "tuned_offload_from": tuned.point.offload_from,
        "sweep": [
            {
                "offload_from": threshold,
                "qps": case.capacity(policy, OperatingPoint(tuned.point.batch_size, threshold), SEED).qps,
            }
            for threshold in THRESHOLDS
        ],
    }


def main() -> None:
    options = parser(__doc__, queries=5000)
    options.set_defaults(models=["wnd", "rmc1", "ncf", "dien", "din"])
    arguments = options.parse_args()
    console, finished = Console(width=150), Finished(arguments.state)
    cases = [
        Case(
            load_profile(arguments.profiles, model),
            TARGET,
            finished,
            SIZES,
            arguments.queries,
            gpu_speedup(model),
        )
        for model in arguments.models
    ]
    rows = [sweep(case) for case in track(cases, "threshold sweep", console=console)]
    table = Table(title="SIMULATED, modelled accelerator: queries/s within the target by threshold")
    for heading in ("model", "batch size", *(str(t or "none") for t in THRESHOLDS), "tuned"):
        table.add_column(heading, justify="left" if heading == "model" else "right")
    for r in rows:
        rates = (f"{each['qps']:.0f}" for each in r["sweep"])
        table.add_row(r["model"], str(r["batch_size"]), *rates, str(r["tuned_offload_from"] or "none"))
    console.print(table)
    write("threshold_simulated.json", arguments, rows, target=TARGET, sizes=SIZES, seed=SEED)


if __name__ == "__main__":
    main()
