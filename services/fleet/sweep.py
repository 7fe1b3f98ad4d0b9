"""A sweep: cases simulated somewhere, each row kept as soon as it is there, so that an interrupted sweep goes on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

import scheduler
from deeprecsys.errors import InvalidSettingError, RepositoryError
from scheduler.fleet_result import known
from scheduler.fleet_rounds import TAILS, simulate_until_known, widest
from scheduler.sketch import merged
from services.fleet.fleet_file import Case

Row = dict[str, Any]
"""What is kept of a case, JSON-able."""

_BEGINNING = '{"key": '
"""Of each line of a state file."""

Runner = Callable[[Sequence[tuple[Case, int]]], Iterator[tuple[int, Row]]]
"""Runs (case, seed) pairs somewhere; gives their index and row in whatever order they are done."""


def run_case(case: Case, seed: int) -> Row:
    """Simulate one case: the same wherever it runs."""
    spec = case.spec
    rounds = simulate_until_known(
        spec, [seed], within=case.within, least=case.least_rounds, most=case.most_rounds
    )
    target = {t.model: t.sla for t in spec.traffic}
    models = {}
    for model in sorted({m for seen in rounds for m in seen.models}):
        sketches = [seen.latency(model) for seen in rounds]
        whole, sla = merged(sketches), target[model]
        tails = {f"p{p:g}": known(sketches, p) for p in TAILS}
        models[model] = {
            "queries": whole.count,
            "failed": whole.failed,
            "p50_ms": _ms(whole.percentile(50)),
            **{f"{name}_ms": _ms(tail.seconds) for name, tail in tails.items()},
            **{f"{name}_within": _finite(tail.relative) for name, tail in tails.items()},
            "sla_ms": 1e3 * sla.seconds,
            "met": whole.percentile(sla.percentile) <= sla.seconds,
            "sketch": whole.to_dict(),
        }
    return {
        "labels": case.labels,
        "hour": case.at_h,
        "qps": spec.qps * float(spec.day.at(np.array([spec.start_s + spec.warmup_s]))[0]),
        "rounds": len(rounds),
        "known": widest(rounds) <= case.within,
        "nodes": spec.nodes,
        "simulated_nodes": len(rounds[0].nodes),
        "queries": sum(seen.queries for seen in rounds),
        "offloaded": sum(node.offloaded for seen in rounds for node in seen.nodes),
        "decisions": sum(node.decisions for seen in rounds for node in seen.nodes),
        "busy": _mean([seen.busy for seen in rounds]),
        "accelerator_busy": _mean([n.accelerator_busy for seen in rounds for n in seen.nodes]),
        "watts": _mean([seen.watts for seen in rounds]),
        "price": sum(group.kind.price * group.count for group in spec.groups),
        "origins": sorted({group.kind.origin.value for group in spec.groups}),
        "models": models,
    }


def run_sweep(
    cases: Sequence[Case], seed: int, state: Path, runner: Runner, progress: Callable[[int, int], None]
) -> list[Row]:
    """Return the rows of all cases in their order; those in the state file are not simulated again.

    ``progress``: told how many are done, and of how many. Raises InvalidSettingError for a state file that is something
    else, RepositoryError when it cannot be written.
    """
    keys = [_key(case, seed) for case in cases]
    found = _finished(state)
    wanted = [k for k, key in enumerate(keys) if key not in found]
    progress(len(cases) - len(wanted), len(cases))
    done = len(cases) - len(wanted)
    for index, row in runner([(cases[k], seed) for k in wanted]):
        key = keys[wanted[index]]
        found[key] = row
        _keep(state, key, row)
        done += 1
        progress(done, len(cases))
    return [found[key] for key in keys]


def one_after_the_other(jobs: Sequence[tuple[Case, int]]) -> Iterator[tuple[int, Row]]:
    """Run the jobs in this process."""
    for index, (case, seed) in enumerate(jobs):
        yield index, run_case(case, seed)


def _keep(state: Path, key: str, row: Row) -> None:
    try:
        with state.open("a", encoding="utf-8") as file:
            # What a killed sweep was writing has no end; it must not swallow this row.
            end = "\n" if _cut_off(state) else ""
            file.write(f"{end}{json.dumps({'key': key, 'row': row})}\n")
    except OSError as error:
        raise RepositoryError(
            f"cannot write {state}: {error.strerror}; choose another with --state"
        ) from error


def _cut_off(state: Path) -> bool:
    with state.open("rb") as file:
        if not file.seek(0, 2):
            return False
        file.seek(-1, 2)
        return file.read() != b"\n"


def _finished(state: Path) -> dict[str, Row]:
    found: dict[str, Row] = {}
    try:
        lines = state.read_text(encoding="utf-8").splitlines() if state.exists() else []
    except OSError as error:
        raise InvalidSettingError(f"cannot read {state}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InvalidSettingError(f"{state} is no state of a sweep: it is no text in UTF-8") from error
    for number, line in enumerate(lines, start=1):
        try:
            entry = json.loads(line)
        except ValueError:
            entry = None
        if isinstance(entry, dict) and {"key", "row"} <= entry.keys():
            found[entry["key"]] = entry["row"]
        elif entry is not None or not line.startswith(_BEGINNING[: len(line)]):
            raise InvalidSettingError(f"{state}, line {number}: is no finished part of a sweep")
        # Else it is the last line of a sweep that was killed.
    return found


def _key(case: Case, seed: int) -> str:
    return hashlib.sha256(f"{_code()} {seed} {case!r}".encode()).hexdigest()


@cache
def _code() -> str:
    """Return a digest of what decides, so that no row is used that the code would now change."""
    folder = Path(scheduler.__file__).parent
    return hashlib.sha256(b"".join(path.read_bytes() for path in sorted(folder.glob("*.py")))).hexdigest()


def _ms(seconds: float) -> float | None:
    return _finite(1e3 * seconds)


def _finite(value: float) -> float | None:
    return value if value < float("inf") else None


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
