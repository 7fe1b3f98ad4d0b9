"""How each server is started for one model at one setting, and how it is driven; what the keys of a setting mean.

threads: intra-op threads of ONNX Runtime, 0 for its default. at_once: inferences, or batches, at once in a process.
batch: queries in a batch at most, 1 for no batching. wait_s: how long a batch waits for more.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.live.served import served
from benchmarks.peers import encodings
from benchmarks.peers.described import Described
from benchmarks.peers.http_transport import http_transport
from benchmarks.peers.peer import Case, Serving, Setting
from benchmarks.peers.process import peer_process
from benchmarks.peers.triton_repository import triton_repository
from benchmarks.peers.venvs import environment
from deeprecsys.tensors import DTYPES
from services.loadgen.service import Service, rank_service
from services.loadgen.transport import grpc_transport
from services.triton_server import install
from services.triton_server.launcher import LAUNCHER
from services.triton_server.process import TritonProcess, free_ports

ROOT = Path(__file__).parents[2]
PROGRAMS = Path(__file__).parent / "servers"

LITSERVE = ("litserve", ("litserve",), ("onnxruntime",))
# With a newer uvloop the worker processes of MLServer 1.7.1 end at their start.
MLSERVER = ("mlserver", ("mlserver", "uvloop<0.22"), ("onnxruntime",))
# Its ingress takes our stubs, which want the protobuf and the gRPC that they were made with or a newer one.
RAYSERVE = ("rayserve", ("ray[serve]",), ("onnxruntime", "protobuf", "grpcio", "grpcio-status"))


@contextmanager
def ours(case: Case, setting: Setting) -> Iterator[Serving]:  # noqa: ARG001 - it tunes itself
    with served(case.repository, {case.model: case.target_ms}, "adaptive") as server:
        yield Serving(server.pid, rank_service(server.address))


@contextmanager
def plain(case: Case, setting: Setting) -> Iterator[Serving]:
    """threads: intra-op, 0 for ONNX Runtime's default; at_once: inferences at once."""
    model, port = case.described(), free_ports().grpc
    service = Service(model.models, partial(grpc_transport, f"127.0.0.1:{port}"))
    program = str(PROGRAMS / "plain.py")
    words = (model.path, model.message.score_output, port, setting["threads"], setting["at_once"])
    command = [sys.executable, program, *map(str, words)]
    with peer_process(command, service, model.one_candidate(), {"PYTHONPATH": str(ROOT)}) as pid:
        yield Serving(pid, service)


@contextmanager
def litserve(case: Case, setting: Setting) -> Iterator[Serving]:
    """workers: processes with the model; batch: queries at most; wait_s: how long for them; threads as above."""
    model, port = case.described(), free_ports().http
    order = {
        "path": str(model.path),
        "output": model.message.score_output,
        "port": port,
        "inputs": [{"name": name, **facts} for name, facts in _inputs(model).items()],
        **setting,
    }
    service = Service(
        model.models,
        partial(http_transport, "127.0.0.1", port, "/predict"),
        encodings.body,
        partial(encodings.float_scores, tasks=max(1, len(model.message.tasks))),
    )
    python = environment(*LITSERVE)
    command = [str(python), str(PROGRAMS / "litserve_app.py"), json.dumps(order)]
    with peer_process(command, service, model.one_candidate()) as pid:
        yield Serving(pid, service)


@contextmanager
def mlserver(case: Case, setting: Setting) -> Iterator[Serving]:
    """workers: processes beside the server, 0 runs inside it; batch: requests at most (1: no batching); wait_s."""
    model, ports = case.described(), free_ports()
    inputs = {name: (facts["dtype"], facts["dims"]) for name, facts in _inputs(model).items()}
    extra = {
        "threads": setting["threads"],
        "at_once": setting["at_once"],
        "output": model.message.score_output,
        "inputs": inputs,
    }
    for_model = {
        "name": case.model,
        "implementation": "mlserver_model.OnnxModel",
        "max_batch_size": setting["batch"],
        "max_batch_time": setting["wait_s"],
        "parameters": {"uri": str(model.path), "extra": extra},
    }
    for_server = {
        "debug": False,
        "host": "127.0.0.1",
        "http_port": ports.http,
        "grpc_port": ports.grpc,
        "metrics_endpoint": None,
        "parallel_workers": setting["workers"],
        "grpc_max_message_length": 1 << 30,
    }
    service = Service(
        model.models,
        partial(grpc_transport, f"127.0.0.1:{ports.grpc}", 1, encodings.INFER_METHOD),
        encodings.blobs_encoding(model.message.score_output),
        encodings.infer_scores,
    )
    python = environment(*MLSERVER)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        (place / "settings.json").write_text(json.dumps(for_server), encoding="utf-8")
        (place / "model-settings.json").write_text(json.dumps(for_model), encoding="utf-8")
        command = [str(python.with_name("mlserver")), "start", folder]
        programs = {"PYTHONPATH": str(PROGRAMS)}
        with peer_process(command, service, model.one_candidate(), programs, place) as pid:
            yield Serving(pid, service)


@contextmanager
def rayserve(case: Case, setting: Setting) -> Iterator[Serving]:
    """replicas: processes with the model; batch, wait_s, threads as above; at_once: batches at once in each."""
    model, ports = case.described(), free_ports()
    service = Service(model.models, partial(grpc_transport, f"127.0.0.1:{ports.grpc}"))
    python = environment(*RAYSERVE)
    with tempfile.TemporaryDirectory(prefix="ray") as folder:
        order = {
            "path": str(model.path),
            "output": model.message.score_output,
            "port": ports.grpc,
            "http_port": ports.http,
            "folder": folder,
            **setting,
        }
        command = [str(python), str(PROGRAMS / "ray_app.py"), json.dumps(order)]
        path = {
            "PYTHONPATH": f"{PROGRAMS}/loopback:{PROGRAMS}:{ROOT}",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_AUTH_MODE": "disabled",
        }
        with peer_process(command, service, model.one_candidate(), path) as pid:
            yield Serving(pid, service)


@contextmanager
def triton(case: Case, setting: Setting) -> Iterator[Serving]:
    """instances: processes with the model; threads: intra-op; batching: whether requests share batches; delay_us."""
    model = case.described()
    with (
        triton_repository(case.repository / case.model, setting) as folder,
        TritonProcess(install.PLACE / LAUNCHER, folder, "none") as triton,
    ):
        service = Service(
            model.models,
            partial(grpc_transport, triton.target, 1, encodings.INFER_METHOD),
            encodings.infer_encoding(model.message.score_output),
            encodings.infer_scores,
        )
        yield Serving(triton.pid, service)


def _inputs(model: Described) -> dict[str, dict[str, Any]]:
    """Return each input's numpy type, dims and bytes a candidate, in the order in which requests have them."""
    found = {}
    for each in model.message.inputs:
        dtype, dims = DTYPES[each.data_type], list(each.shape[1:])
        row_bytes = dtype.itemsize
        for length in dims:
            row_bytes *= length
        found[each.name] = {"dtype": dtype.str, "dims": dims, "row_bytes": row_bytes}
    return found
