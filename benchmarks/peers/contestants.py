"""Who takes part, and the small grid of settings that each may choose from.

The answers of all have the same scores; (a) and this service rank them, too, which the others are spared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from benchmarks.peers import starting
from benchmarks.peers.peer import Peer, Setting, split
from benchmarks.peers.starting import LITSERVE, MLSERVER, RAYSERVE
from benchmarks.peers.venvs import PeerInstallError, environment, installed_versions
from services.triton_server import install


def _versions(name: str, requirements: Sequence[str], same: Sequence[str]) -> Mapping[str, str]:
    return installed_versions(environment(name, requirements, same))


def _triton_versions() -> Mapping[str, str]:
    try:
        install.install(install.PLACE)
    except install.TritonInstallError as error:
        raise PeerInstallError(str(error)) from error
    return {"tritonserver": "2.51"}


OURS = Peer("ours", "this service (adaptive, as it comes)", starting.ours, ({},))

PLAIN = Peer(
    "plain",
    "(a) grpc.aio + ONNX Runtime",
    starting.plain,
    (
        {"threads": 0, "at_once": 2},
        {"threads": 0, "at_once": 1},
        {"threads": 1, "at_once": 2},
        {"threads": 1, "at_once": 4},
    ),
)
MLSERVER_PEER = Peer(
    "mlserver",
    "(b) MLServer",
    starting.mlserver,
    (
        {"workers": 0, "threads": 1, "at_once": 2, "batch": 1, "wait_s": 0.0},
        {"workers": 0, "threads": 1, "at_once": 2, "batch": 4, "wait_s": 0.001},
        {"workers": 0, "threads": 0, "at_once": 1, "batch": 8, "wait_s": 0.002},
        {"workers": 2, "threads": 1, "at_once": 1, "batch": 4, "wait_s": 0.001},
    ),
    partial(_versions, *MLSERVER),
)
RAYSERVE_PEER = Peer(
    "rayserve",
    "(c) Ray Serve",
    starting.rayserve,
    (
        {"replicas": 1, "threads": 1, "at_once": 2, "batch": 1, "wait_s": 0.0},
        {"replicas": 1, "threads": 1, "at_once": 2, "batch": 4, "wait_s": 0.001},
        {"replicas": 2, "threads": 1, "at_once": 1, "batch": 4, "wait_s": 0.001},
        {"replicas": 1, "threads": 0, "at_once": 1, "batch": 8, "wait_s": 0.002},
    ),
    partial(_versions, *RAYSERVE),
)
LITSERVE_PEER = Peer(
    "litserve",
    "(d) LitServe",
    starting.litserve,
    (
        {"workers": 2, "threads": 1, "batch": 1, "wait_s": 0.0},
        {"workers": 2, "threads": 1, "batch": 4, "wait_s": 0.001},
        {"workers": 1, "threads": 0, "batch": 1, "wait_s": 0.0},
        {"workers": 1, "threads": 0, "batch": 8, "wait_s": 0.002},
    ),
    partial(_versions, *LITSERVE),
)
TRITON = Peer(
    "triton",
    "(e) real Triton 2.51 core, dynamic batching, this project's Python-based ONNX backend on the CPU",
    starting.triton,
    (
        {"instances": 2, "threads": 1, "batching": 1, "delay_us": 0},
        {"instances": 2, "threads": 1, "batching": 1, "delay_us": 1000},
        {"instances": 1, "threads": 2, "batching": 1, "delay_us": 0},
        {"instances": 2, "threads": 1, "batching": 0, "delay_us": 0},
    ),
    _triton_versions,
    compared=False,
)


def _cut(setting: Setting, *candidates: int) -> tuple[Setting, ...]:
    return tuple({**setting, "split": each} for each in candidates)


WHOLE = (PLAIN, LITSERVE_PEER, MLSERVER_PEER, RAYSERVE_PEER, TRITON)
"""The peers as they come; none splits a query."""

# One intra-op thread: the pieces of a query are what runs side by side.
SPLIT = (
    split(PLAIN, _cut(PLAIN.grid[2], 128, 256, 512)),
    split(LITSERVE_PEER, _cut(LITSERVE_PEER.grid[0], 128, 256, 512)),
    split(MLSERVER_PEER, _cut(MLSERVER_PEER.grid[0], 128, 256, 512)),
    split(RAYSERVE_PEER, _cut(RAYSERVE_PEER.grid[0], 128, 256, 512)),
    split(TRITON, _cut(TRITON.grid[3], 128, 256, 512)),
)
PEERS = (OURS, *WHOLE, *SPLIT)
