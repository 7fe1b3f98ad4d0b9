"""The characterisation of one model on one machine: what is measured, and the file that holds it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from deeprecsys.errors import InvalidSettingError, RepositoryError
from scheduler.latency import LatencyPoint, LatencyProfile
from services.characterise.ceilings import Ceilings
from services.characterise.dataflow import Part
from services.characterise.latency import measure_profile
from services.characterise.operators import Breakdown, break_down
from services.characterise.roofline import Bottleneck, PartPoint, classify, part_points
from services.characterise.work import ModelWork, Work, count_work, read_graph
from services.machine import Machine, describe_machine
from services.rank.cpu import CpuEngine
from services.rank.model import ModelSpec
from services.rank.repository import Listing, build_spec

SCHEMA = 1
CLASS_AT = 64
"""The bottleneck of a model is that at this batch size, or at the largest measured below it."""


@dataclass(frozen=True)
class Rate:
    """What batches of one size achieve on ``cores`` cores at once, all together.

    ``bytes_per_s`` counts the bytes that must move (rows, inputs, outputs, weights once a batch), ``flops_per_s`` two
    operations for each multiply-accumulate. ``mean_s`` to ``p99_s`` are seconds of one batch.
    """

    batch_size: int
    cores: int
    mean_s: float
    p50_s: float
    p95_s: float
    p99_s: float
    candidates_per_s: float
    bytes_per_s: float
    flops_per_s: float
    flops_per_byte: float


@dataclass(frozen=True)
class OperatorShares:
    """One batch size on one core: seconds by operator, what each part is limited by, the bottleneck."""

    breakdown: Breakdown
    parts: tuple[PartPoint, ...]
    bottleneck: Bottleneck


@dataclass(frozen=True)
class Characterisation:
    """One model on one machine; the file ``<model>.characterisation.json`` holds these entries by their names.

    ``file_sha256`` is that of the ONNX file without the weights beside it. ``seconds`` were spent on each batch size.
    ``ceilings`` are this machine's at the time: one core, then all. ``work`` is a candidate's, ``work_by_part`` its
    parts', both computed from the graph. ``rates`` are measured by batch size, on one core and then on all.
    ``inputs_of_zeros``: inputs of whole numbers whose range nothing states; as ids they hit one row, in the cache.
    """

    schema: int
    machine: Machine
    model: str
    version: str
    file_sha256: str
    seconds: float
    ceilings: tuple[Ceilings, ...]
    work: Work
    work_by_part: Mapping[Part, Work]
    not_counted: tuple[str, ...]
    rates: tuple[Rate, ...]
    operators: tuple[OperatorShares, ...]
    bottleneck: Bottleneck
    inputs_of_zeros: tuple[str, ...] = ()


@dataclass(frozen=True)
class Subject:
    """A model that is to be characterised: its files have been read, nothing has been run."""

    listing: Listing
    graph: Any
    work: ModelWork
    file_sha256: str

    @property
    def name(self) -> str:
        """The model's name in the repository."""
        return self.listing.name


def read_subject(listing: Listing) -> Subject:
    """Read a model's graph and compute its work. Raises RepositoryError, naming the model, where it cannot be done."""
    path = listing.model_file(listing.versions[0])
    if not path.is_file():
        raise RepositoryError(
            f"{listing.name}: {path.parent.name}/{path.name} is missing; run `deeprecsys export`"
        )
    try:
        graph = read_graph(path)
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return Subject(listing, graph, count_work(graph), digest)
    except RepositoryError as error:
        raise RepositoryError(f"{listing.name}: {error}") from error


def open_model(listing: Listing) -> tuple[CpuEngine, ModelSpec]:
    """Open a model in the engine that serves it."""
    version = listing.versions[0]
    engine = CpuEngine(listing.model_file(version))
    return engine, build_spec(listing, version, engine.ports())


def characterise(
    subject: Subject,
    ceilings: tuple[Ceilings, Ceilings],
    *,
    seconds: float,
    progress: Callable[[str], None] = lambda _: None,
) -> tuple[LatencyProfile, Characterisation]:
    """Measure one model: seconds by batch size on one core and on all, then where they go.

    ``progress`` is told what comes next. Raises RepositoryError or EngineError where the model cannot be run.
    """
    engine, spec = open_model(subject.listing)
    one, every = ceilings
    profile = measure_profile(
        engine, spec, every.cores, seconds_each=seconds, progress=lambda size: progress(f"batches of {size}")
    )
    broken = break_down(
        engine,
        spec,
        subject.graph,
        seconds_each=2 * seconds,
        progress=lambda size: progress(f"operators at {size}"),
    )
    shares = tuple(_shares(breakdown, subject.work, one) for breakdown in broken)
    cpu, work = profile.backend("cpu"), subject.work.total
    curves = ((1, cpu.alone), (every.cores, cpu.busy))
    rates = tuple(_rate(point, cores, work) for cores, curve in curves for point in curve.points)
    at = max(size for size in (b.batch_size for b in broken) if size <= max(CLASS_AT, broken[0].batch_size))
    bottleneck = next(s.bottleneck for s in shares if s.breakdown.batch_size == at)
    return profile, Characterisation(
        SCHEMA,
        describe_machine(),
        spec.name,
        spec.version,
        subject.file_sha256,
        seconds,
        ceilings,
        work,
        subject.work.parts,
        subject.work.not_counted,
        rates,
        shares,
        bottleneck,
        tuple(i.name for i in spec.inputs if i.dtype.kind in "iu" and i.id_rows is None),
    )


def _shares(breakdown: Breakdown, work: ModelWork, ceilings: Ceilings) -> OperatorShares:
    points = part_points(breakdown.part_s, work.parts, breakdown.batch_size, ceilings)
    return OperatorShares(breakdown, points, classify(points))


def _rate(point: LatencyPoint, cores: int, work: Work) -> Rate:
    n, moved, flops = point.batch_size, work.moved_bytes(point.batch_size), work.flops(point.batch_size)
    each_s = point.mean_s / cores
    return Rate(
        n,
        cores,
        point.mean_s,
        point.p50_s,
        point.p95_s,
        point.p99_s,
        n / each_s,
        moved / each_s,
        flops / each_s,
        flops / moved,
    )


def characterisation_path(folder: Path, model: str) -> Path:
    """Return where a model's characterisation lies, beside its latency profile."""
    return folder / f"{model}.characterisation.json"


def write_characterisation(folder: Path, found: Characterisation) -> None:
    """Write a characterisation; RepositoryError when the file cannot be written."""
    path = characterisation_path(folder, found.model)
    whole = path.with_suffix(".part")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        whole.write_text(json.dumps(dataclasses.asdict(found), indent=1) + "\n", encoding="utf-8")
        whole.replace(path)
    except OSError as error:
        raise RepositoryError(
            f"cannot write {path}: {error.strerror}; choose another with --output"
        ) from error


def read_characterisation(path: Path) -> Characterisation:
    """Return the characterisation in a file; InvalidSettingError names the entry that is wrong."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InvalidSettingError(f"cannot read {path}: {error.strerror}") from error
    try:
        found = _SCHEMA.validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise InvalidSettingError(f"{path}: {where}: {first['msg']}") from error
    if found.schema != SCHEMA:
        raise InvalidSettingError(f"{path} has schema {found.schema}; this version reads {SCHEMA}")
    return found


def is_finished(folder: Path, subject: Subject, seconds: float) -> bool:
    """Whether a folder holds this model's characterisation, of the same file on the same machine as asked for now."""
    path = characterisation_path(folder, subject.name)
    if not path.is_file() or not (folder / f"{subject.name}.json").is_file():
        return False
    found = read_characterisation(path)
    return (found.file_sha256, found.seconds, found.machine) == (
        subject.file_sha256,
        seconds,
        describe_machine(),
    )


_SCHEMA = TypeAdapter(Characterisation)
