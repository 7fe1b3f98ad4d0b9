"""What a peer is: a way to serve one model at one setting, and the settings that it may choose from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.peers.described import Described, described
from benchmarks.peers.splitting import split_by_client
from services.loadgen.service import Service

Setting = Mapping[str, float]


@dataclass(frozen=True)
class Case:
    """One model of a repository under a target in milliseconds."""

    repository: Path
    model: str
    target_ms: float

    def described(self) -> Described:
        """Return the model as the driver and the peers need to know it."""
        return described(self.repository, self.model, self.target_ms)


@dataclass(frozen=True)
class Serving:
    """A server that answers: the process that all of it hangs from, and how it is driven."""

    pid: int
    service: Service


Serve = Callable[[Case, Setting], AbstractContextManager[Serving]]


@dataclass(frozen=True)
class Peer:
    """One way to serve the models.

    grid: the settings that are tried, the best of which is measured. prepare: makes what it runs in, returns the
    versions; PeerInstallError when it cannot be had. compared: whether it counts in ratios and means.
    """

    name: str
    title: str
    serve: Serve
    grid: tuple[Setting, ...]
    prepare: Callable[[], Mapping[str, str]] = dict
    compared: bool = True


def split(peer: Peer, grid: tuple[Setting, ...]) -> Peer:
    """Return the peer with its clients splitting: ``split`` of a setting is the candidates of a request at most."""

    @contextmanager
    def serve(case: Case, setting: Setting) -> Iterator[Serving]:
        theirs = {key: value for key, value in setting.items() if key != "split"}
        with peer.serve(case, theirs) as serving:
            yield replace(serving, service=split_by_client(serving.service, int(setting["split"])))

    return replace(
        peer, name=f"{peer.name}-split", title=f"{peer.title}, client splits", serve=serve, grid=grid
    )
