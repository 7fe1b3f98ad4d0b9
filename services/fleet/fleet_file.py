"""Fleet files: TOML in, the specs of a sweep out, one clear line for whatever is wrong."""

from __future__ import annotations

import itertools
import math
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from deeprecsys.errors import InvalidSettingError
from scheduler.arrivals import MAX_QUERIES
from scheduler.first_plan import first_plan
from scheduler.fleet import INDEPENDENT
from scheduler.fleet_spec import Event, FleetSpec, Group, MachineKind, Traffic, Trouble, rolling_restart
from scheduler.measure import Sla
from scheduler.plan import OperatingPoint
from scheduler.rate_curve import RateCurve, diurnal
from scheduler.sizes import PRODUCTION_MAX_SIZE, parse_sizes
from services.fleet.kinds import Kind, machine, one_line, read_kinds

HOUR_S = 3600.0
DAY_S = 24 * HOUR_S

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
AtLeast0 = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
ByModel = Count | dict[str, Count]
PolicyName = Literal["static", "paper", "adaptive"]
RouterName = Literal["random", "round-robin", "power-of-two", "least-outstanding", "size-aware"]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Model(_Part):
    """``[[models]]``: one model's part of the traffic. ``sizes``: a law, or [from hour, law] pairs."""

    name: str
    share: Positive = 1.0
    sla_ms: Positive
    percentile: Annotated[float, Field(gt=0, lt=100)] = 95.0
    sizes: str | list[tuple[AtLeast0, str]] = "production"


class Nodes(_Part):
    """``[[nodes]]``: nodes alike. ``batch_size`` and ``offload_from``: one for all models, or by model."""

    kind: str
    count: Count
    accelerator: str | None = None
    models: list[str] | None = None
    batch_size: ByModel | None = None
    offload_from: ByModel | None = None
    weight: Positive | None = None
    front_end_us: AtLeast0 = 0.0


class Day(_Part):
    """``[day]``: the rate over 24 hours, and which parts of it are simulated.

    ``trough`` at midnight as a share of the peak at noon, or ``curve`` of [hour, share] pairs. ``points`` evenly spread
    parts of ``warmup_s`` and ``duration_s``, each again with further seeds until p95 and p99 of every model are known
    within ``within`` of themselves, or ``most_rounds`` times.
    """

    trough: Annotated[float, Field(gt=0, le=1)] | None = None
    curve: list[tuple[AtLeast0, AtLeast0]] | None = None
    points: Count = 1
    start_h: AtLeast0 = 0.0
    warmup_s: AtLeast0 = 2.0
    duration_s: Positive = 10.0
    within: Positive = 0.02
    least_rounds: Annotated[int, Field(ge=1)] = 5
    most_rounds: Count = 20


class Hardship(_Part):
    """``[[troubles]]``: ``failed``, ``slow`` (``times``) or ``restart`` (each for ``each_s``, ``at_once`` together)."""

    kind: Literal["failed", "slow", "restart"]
    at_h: AtLeast0
    hours: Positive | None = None
    nodes: list[int] | None = None
    share: Annotated[float, Field(gt=0, le=1)] | None = None
    times: Positive = 2.0
    each_s: Positive = 60.0
    at_once: Count = 1


class Sweep(_Part):
    """``[sweep]``: every combination of these is simulated, each with the file's other settings."""

    peak_qps: list[Positive] | None = None
    router: list[RouterName] | None = None
    policy: list[PolicyName] | None = None
    steered: list[bool] | None = None
    batch_size: list[Count] | None = None
    sampled: list[Count] | None = None
    noise: list[AtLeast0] | None = None


class FleetFile(_Part):
    """A whole file."""

    peak_qps: Positive
    models: Annotated[list[Model], Field(min_length=1)]
    nodes: Annotated[list[Nodes], Field(min_length=1)]
    router: RouterName = "random"
    policy: PolicyName = "adaptive"
    steered: bool = False
    noise: AtLeast0 = 0.0
    noise_seed: Annotated[int, Field(ge=0)] = 0
    sampled: Count | None = None
    max_waiting: Count = 65_536
    kinds: list[str] = []
    day: Day = Day()
    troubles: list[Hardship] = []
    sweep: Sweep = Sweep()


@dataclass(frozen=True)
class Case:
    """One thing to simulate: its labels, its spec, and how well it is to be known. ``at_h``: the hour of the day."""

    labels: dict[str, Any]
    at_h: float
    spec: FleetSpec
    within: float
    least_rounds: int
    most_rounds: int


def read_fleet(path: Path) -> list[Case]:
    """Return the cases of a fleet file; InvalidSettingError names the file and the field that is wrong."""
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidSettingError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise InvalidSettingError(f"{path} is not TOML: {error}") from error
    try:
        file = FleetFile.model_validate(data)
    except ValidationError as error:
        raise InvalidSettingError(f"{path}: {one_line(error)}") from error
    kinds = read_kinds([path.parent / folder for folder in file.kinds])
    try:
        return list(_cases(file, kinds))
    except ValueError as error:
        raise InvalidSettingError(f"{path}: {error}") from error


def _cases(file: FleetFile, kinds: dict[str, Kind]) -> Iterator[Case]:
    axes = {name: values for name, values in file.sweep if values}
    for combination in itertools.product(*axes.values()):
        labels = dict(zip(axes, combination, strict=True))
        own = {name: value for name, value in labels.items() if name != "batch_size"}
        swept = file.model_copy(update=own)
        if "batch_size" in labels:
            nodes = [n.model_copy(update={"batch_size": labels["batch_size"]}) for n in file.nodes]
            swept = swept.model_copy(update={"nodes": nodes})
        spec = _spec(swept, kinds)
        for k in range(file.day.points):
            at_h = (file.day.start_h + 24 * k / file.day.points) % 24
            # What is simulated begins with the warm-up, so that the hour is that of what is counted.
            start_s = max(0.0, at_h * HOUR_S - file.day.warmup_s)
            day = file.day
            yield Case(
                labels, at_h, replace(spec, start_s=start_s), day.within, day.least_rounds, day.most_rounds
            )


def _spec(file: FleetFile, kinds: dict[str, Kind]) -> FleetSpec:
    traffic = tuple(_traffic(model, k) for k, model in enumerate(file.models))
    groups = tuple(_group(file, kinds, traffic, k) for k in range(len(file.nodes)))
    total = sum(group.count for group in groups)
    events = [event for k, trouble in enumerate(file.troubles) for event in _events(trouble, k, total)]
    day = _day(file.day)
    drawn_apart = total if file.router == INDEPENDENT else 1
    queries = file.peak_qps * day.most(0.0, DAY_S) * (file.day.warmup_s + file.day.duration_s) / drawn_apart
    if queries > MAX_QUERIES:
        raise ValueError(
            f"peak_qps: {queries:.3g} queries at once exceed {MAX_QUERIES}: lower it, or day.duration_s"
        )
    if file.sampled is not None and file.router != INDEPENDENT:
        raise ValueError(
            f"sampled: nodes cannot stand for the fleet with the router {file.router}, only with random"
        )
    return FleetSpec(
        groups,
        traffic,
        file.peak_qps,
        router=file.router,
        policy=file.policy,
        steered=file.steered,
        day=day,
        events=tuple(events),
        noise=file.noise,
        noise_seed=file.noise_seed,
        warmup_s=file.day.warmup_s,
        duration_s=file.day.duration_s,
        sampled=file.sampled,
        max_waiting=file.max_waiting,
    )


def _traffic(model: Model, k: int) -> Traffic:
    pairs = [(0.0, model.sizes)] if isinstance(model.sizes, str) else model.sizes
    hours = [hour for hour, _ in pairs]
    if not hours or hours[0] != 0 or hours != sorted(set(hours)):
        raise ValueError(f"models.{k}.sizes: the hours ascend from 0, not {hours}")
    for _, law in pairs:
        try:
            parse_sizes(law)
        except ValueError as error:
            raise ValueError(f"models.{k}.sizes: {error}") from error
    sla = Sla(model.percentile, model.sla_ms / 1e3)
    return Traffic(model.name, model.share, sla, tuple((hour * HOUR_S, law) for hour, law in pairs))


def _group(file: FleetFile, kinds: dict[str, Kind], traffic: tuple[Traffic, ...], k: int) -> Group:
    nodes, where = file.nodes[k], f"nodes.{k}"
    kind = _kind(kinds, nodes.kind, "machine", f"{where}.kind")
    accelerator = None
    if nodes.accelerator is not None:
        accelerator = _kind(kinds, nodes.accelerator, "accelerator", f"{where}.accelerator")
    wanted = [t.model for t in traffic] if nodes.models is None else nodes.models
    known = {t.model: t for t in traffic}
    for model in wanted:
        if model not in known:
            raise ValueError(
                f"{where}.models: {model} has no traffic; models with traffic: {', '.join(known)}"
            )
        if model not in kind.models:
            have = ", ".join(sorted(kind.models))
            raise ValueError(f"{where}.kind: {kind.name} has no profile of {model}; it has {have}")
    for name, by_model in (("batch_size", nodes.batch_size), ("offload_from", nodes.offload_from)):
        unknown = [m for m in by_model if m not in wanted] if isinstance(by_model, dict) else []
        if unknown:
            raise ValueError(f"{where}.{name}: {unknown[0]} is none of its models: {', '.join(wanted)}")
    made = machine(kind, accelerator, nodes.front_end_us / 1e6)
    points = {model: _point(file, nodes, made, known[model], where) for model in wanted}
    return Group(made, nodes.count, points, nodes.weight)


def _kind(kinds: dict[str, Kind], name: str, what: str, where: str) -> Kind:
    known = {n: kind for n, kind in kinds.items() if kind.what == what}
    if name not in known:
        raise ValueError(f"{where}: unknown {what} {name!r}; known: {', '.join(sorted(known))}")
    return known[name]


def _point(file: FleetFile, nodes: Nodes, kind: MachineKind, traffic: Traffic, where: str) -> OperatingPoint:
    """Return the point that is given, else the one that the policy would begin with."""
    given, threshold = nodes.batch_size, nodes.offload_from
    size = given.get(traffic.model) if isinstance(given, dict) else given
    offload_from = threshold.get(traffic.model) if isinstance(threshold, dict) else threshold
    if offload_from is not None and traffic.model not in kind.accelerator:
        raise ValueError(f"{where}.offload_from: there is no accelerator with a profile of {traffic.model}")
    if size is None and file.policy == "static":
        size = math.ceil(PRODUCTION_MAX_SIZE / kind.cores)
    elif size is None and file.policy == "paper":
        raise ValueError(f"{where}.batch_size: the policy paper needs one for {traffic.model}")
    elif size is None:
        points = kind.cpu[traffic.model].busy.points
        begun = first_plan(
            [p.batch_size for p in points],
            [p.mean_s for p in points],
            sla_s=traffic.sla.seconds,
            largest_batch=points[-1].batch_size,
        )
        size = begun.point.batch_size
    return OperatingPoint(size, offload_from)


def _day(day: Day) -> RateCurve:
    if day.trough is not None and day.curve is not None:
        raise ValueError("day: give either trough or curve")
    if day.trough is not None:
        return diurnal(DAY_S, day.trough)
    if day.curve is None:
        return RateCurve()
    if day.curve[-1:] and day.curve[-1][0] != 24:
        raise ValueError("day.curve: the hours end at 24")
    try:
        hours, shares = zip(*day.curve, strict=True) if day.curve else ((), ())
        return RateCurve(tuple(hour * HOUR_S for hour in hours), tuple(shares), repeats=True)
    except ValueError as error:
        raise ValueError(f"day.curve: {error}") from error


def _events(trouble: Hardship, k: int, total: int) -> tuple[Event, ...]:
    """Return the events; a share is of nodes drawn from the trouble's place in the file, so they stay the same."""
    where = f"troubles.{k}"
    if (trouble.nodes is None) == (trouble.share is None):
        raise ValueError(f"{where}: give either nodes or share")
    nodes = trouble.nodes
    if nodes is None:
        count = max(1, round((trouble.share or 0.0) * total))
        nodes = np.sort(np.random.default_rng([k, 0xFA11]).permutation(total)[:count]).tolist()
    wrong = [node for node in nodes if not 0 <= node < total]
    if wrong:
        raise ValueError(f"{where}.nodes: there is no node {wrong[0]}, they are 0 to {total - 1}")
    if len(set(nodes)) < len(nodes):
        raise ValueError(f"{where}.nodes: name each node once")
    from_s = trouble.at_h * HOUR_S
    if trouble.kind == "restart":
        return rolling_restart(nodes, from_s, trouble.each_s, trouble.at_once)
    until_s = math.inf if trouble.hours is None else from_s + trouble.hours * HOUR_S
    kind = Trouble.FAILED if trouble.kind == "failed" else Trouble.SLOW
    return (Event(kind, tuple(nodes), from_s, until_s, trouble.times),)
