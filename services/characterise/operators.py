"""Where the seconds of one inference go, by operator: what ONNX Runtime's own profiler counts."""

from __future__ import annotations

import json
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from deeprecsys.errors import RepositoryError
from deeprecsys.tensors import Array
from services.characterise.dataflow import PRODUCTS, Dataflow, Part
from services.rank.cpu import FAULTS, CpuEngine, session_options
from services.rank.model import ModelSpec
from services.rank.warmup import random_batch

SIZES = (1, 16, 64, 1024)
"""The batch sizes of the paper's breakdown (section III)."""

MIN_RUNS, MAX_RUNS, MAX_EVENTS = 10, 60, 200_000
_DISCARDED = 2
_SUFFIX = "_kernel_time"
_TABLES_FROM_BYTES = "1024"


@dataclass(frozen=True)
class OperatorTime:
    """What the ``nodes`` of one operator type in one part take in one inference."""

    operator: str
    part: Part
    nodes: int
    seconds: float
    share: float


@dataclass(frozen=True)
class Breakdown:
    """Where one inference of ``batch_size`` candidates on one core goes.

    ``run_s`` is a run without the profiler, ``profiled_s`` the nodes' seconds as the profiler has them over ``runs``
    runs; ``profiler_s`` a node is what was taken off (see ``without_profiler``). Operators come dearest first;
    ``paper_share`` holds their shares under the names of the paper's breakdown (see ``paper_group``).
    """

    batch_size: int
    runs: int
    run_s: float
    profiled_s: float
    profiler_s: float
    operators: tuple[OperatorTime, ...]
    paper_share: Mapping[str, float]

    @property
    def part_s(self) -> dict[Part, float]:
        """Seconds of each part."""
        return {part: sum(o.seconds for o in self.operators if o.part is part) for part in Part}


PAPER_GROUPS = ("FC", "SparseLengthsSum", "Concat", "Relu", "Sum", "RecurrentNetwork", "Softmax", "Other")
"""The paper's operators, which are Caffe2's, and what has no name there."""


def paper_group(operator: str, part: Part) -> str:
    """Return the paper's name for an operator.

    What the embedding part does is one SparseLengthsSum there, what a recurrence does one RecurrentNetwork. Products
    of activations count as FC, as DIN's attention does there; a Relu that is fused into its Gemm counts as FC here.
    """
    if part is Part.EMBEDDING:
        return "SparseLengthsSum"
    if part is Part.RECURRENCE:
        return "RecurrentNetwork"
    if operator in PRODUCTS:
        return "FC"
    if operator in ("Add", "Sum", "Mul", "ReduceSum"):
        return "Sum"
    return operator if operator in PAPER_GROUPS else "Other"


def break_down(
    engine: CpuEngine,
    spec: ModelSpec,
    model: Any,
    *,
    sizes: Sequence[int] = SIZES,
    seconds_each: float = 1.0,
    progress: Callable[[int], None] = lambda _: None,
) -> list[Breakdown]:
    """Profile batches of each size on one core, fresh inputs in every run, in turns with runs without the profiler.

    ``model`` is the ``onnx.ModelProto`` of the engine's file without external data. The graph that ONNX Runtime made
    of it, with the tables, is written to a temporary folder: the disk must have room for the model once more.
    """
    with tempfile.TemporaryDirectory(prefix="deeprecsys-profile-") as folder:
        profiled = ProfiledModel(model, spec.path.parent, Path(folder))
        most = max(MIN_RUNS, min(MAX_RUNS, MAX_EVENTS // (len(sizes) * max(1, len(model.graph.node)))))
        timed: dict[int, _Timed] = {}
        for size in (size for size in sizes if size <= spec.largest_batch):
            progress(size)
            timed[size] = _run_in_turns(engine, profiled, spec, size, seconds_each, most)
        trace, parts = profiled.finish()
    found = []
    for size, runs in timed.items():
        mine, trace = trace[: len(runs.profiled_s)], trace[len(runs.profiled_s) :]
        found.append(_breakdown(size, runs, mine, parts))
    return found


@dataclass(frozen=True)
class _Timed:
    """Wall seconds of each run, without and with the profiler."""

    bare_s: list[float]
    profiled_s: list[float]


def _run_in_turns(
    engine: CpuEngine, profiled: ProfiledModel, spec: ModelSpec, size: int, seconds: float, most: int
) -> _Timed:
    rng = np.random.default_rng([size, 0, 3])  # latency.py draws with 1 and 2
    timed = _Timed([], [])
    deadline_s = time.perf_counter() + seconds
    while len(timed.bare_s) < _DISCARDED + MIN_RUNS or (
        time.perf_counter() < deadline_s and len(timed.bare_s) < _DISCARDED + most
    ):
        for run, seconds_of in ((engine.run, timed.bare_s), (profiled.run, timed.profiled_s)):
            inputs = random_batch(spec, size, rng)
            started_s = time.perf_counter()
            run(inputs, [spec.score_output])
            seconds_of.append(time.perf_counter() - started_s)
    return timed


@dataclass(frozen=True)
class ProfiledRun:
    """One run in a trace: seconds of each top-level node by name, and those of the executor over them all."""

    node_s: Mapping[str, float]
    executor_s: float


class ProfiledModel:
    """A session with the server's own options, and the profiler on.

    The nodes get names of their own, so that the trace can be told apart whatever the file calls them.
    """

    def __init__(self, model: Any, data_folder: Path, folder: Path) -> None:
        named = type(model)()
        named.CopyFrom(model)
        for index, node in enumerate(named.graph.node):
            node.name = f"{node.op_type}:{index}"
        self._optimised = folder / "optimised.onnx"
        options = session_options()
        options.enable_profiling = True
        options.profile_file_prefix = str(folder / "trace")
        options.optimized_model_filepath = str(self._optimised)
        for key, value in (
            ("optimized_model_external_initializers_file_name", "optimised.data"),
            ("optimized_model_external_initializers_min_size_in_bytes", _TABLES_FROM_BYTES),
            ("model_external_initializers_file_folder_path", str(data_folder.resolve())),
        ):
            options.add_session_config_entry(f"session.{key}", value)
        try:
            self._session = ort.InferenceSession(
                named.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
        except FAULTS as error:
            reason = str(error).splitlines()[0][:300]
            raise RepositoryError(f"the model cannot be profiled in {folder}: {reason}") from error

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> list[Array]:
        """Score one batch, as CpuEngine does."""
        return self._session.run(outputs, inputs)  # type: ignore[no-any-return]

    def finish(self) -> tuple[list[ProfiledRun], dict[str, tuple[str, Part]]]:
        """End the profile; return its runs, and the operator and part of each node that ran, by name."""
        import onnx  # noqa: PLC0415 (an extra: a serving image has none)

        events = json.loads(Path(self._session.end_profiling()).read_text(encoding="utf-8"))
        graph = onnx.load(self._optimised, load_external_data=False).graph
        parts = {
            node.name: (node.op_type, part)
            for node, part in zip(graph.node, Dataflow(graph).parts(), strict=True)
        }
        return read_trace(events, parts), parts


def read_trace(events: Sequence[Mapping[str, Any]], nodes: Mapping[str, object]) -> list[ProfiledRun]:
    """Read the events of ONNX Runtime's profiler into runs, first to last.

    Only the ``nodes`` count: what runs inside the body of a loop is in the loop's own time. Raises RepositoryError
    where a run lacks a node, which happens when the profiler's memory is full.
    """
    runs: list[ProfiledRun] = []
    node_s: Counter[str] = Counter()
    executor_us = 0.0
    for event in events:
        name = event["name"]
        if event["cat"] == "Node" and name.endswith(_SUFFIX) and name.removesuffix(_SUFFIX) in nodes:
            node_s[name.removesuffix(_SUFFIX)] += event["dur"] / 1e6
        elif name == "SequentialExecutor::Execute":
            executor_us = event["dur"]
        elif name == "model_run":
            if set(node_s) != set(nodes):
                missing = sorted(set(nodes) - set(node_s))
                raise RepositoryError(
                    f"the profile of run {len(runs)} lacks the nodes {', '.join(missing[:3])}"
                )
            runs.append(ProfiledRun(dict(node_s), executor_us / 1e6))
            node_s = Counter()
    return runs


def without_profiler(node_s: Mapping[str, float], executor_s: float) -> tuple[dict[str, float], float]:
    """Take the profiler's own time off: as much of every node, so that all take the ``executor_s`` of a bare run.

    The profiler adds some microseconds to each node, which at batch 1 is most of what a small one seems to take.
    Never more than the quickest node took, and never below 0. Returns the seconds by node, and what was taken off each.
    """
    excess_s = (sum(node_s.values()) - executor_s) / len(node_s)
    each_s = max(0.0, min(excess_s, *node_s.values()))
    return {name: seconds - each_s for name, seconds in node_s.items()}, each_s


def _breakdown(
    size: int, timed: _Timed, trace: Sequence[ProfiledRun], nodes: Mapping[str, tuple[str, Part]]
) -> Breakdown:
    bare_s = _undisturbed(timed.bare_s[_DISCARDED:])
    calls_s = [wall_s - run.executor_s for wall_s, run in zip(timed.profiled_s, trace, strict=True)]
    kept = trace[_DISCARDED:]
    quick = np.argsort([run.executor_s for run in kept])[: (len(kept) + 1) // 2]
    raw_s = {name: float(np.mean([kept[i].node_s[name] for i in quick])) for name in nodes}
    clean_s, each_s = without_profiler(raw_s, bare_s - float(np.median(calls_s[_DISCARDED:])))
    kinds = Counter(nodes.values())
    seconds: dict[tuple[str, Part], float] = dict.fromkeys(kinds, 0.0)
    for name, kind in nodes.items():
        seconds[kind] += clean_s[name]
    total_s = sum(seconds.values())
    operators = tuple(
        OperatorTime(*kind, nodes=kinds[kind], seconds=of_s, share=of_s / total_s)
        for kind, of_s in sorted(seconds.items(), key=lambda item: -item[1])
    )
    paper_share = dict.fromkeys(PAPER_GROUPS, 0.0)
    for operator in operators:
        paper_share[paper_group(operator.operator, operator.part)] += operator.share
    return Breakdown(size, len(kept), bare_s, sum(raw_s.values()), each_s, operators, paper_share)


def _undisturbed(run_s: Sequence[float]) -> float:
    """Return the mean of the quicker half: whatever disturbs a run only makes it slower."""
    return float(np.mean(sorted(run_s)[: (len(run_s) + 1) // 2]))
