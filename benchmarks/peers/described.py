"""A model as the load driver needs to know it, read from the repository for services that cannot be asked."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from deeprecsys.client import build_request
from deeprecsys.v1 import rank_pb2
from services.loadgen.request_pool import random_inputs
from services.loadgen.settings import ModelShare
from services.rank.cpu import CpuEngine
from services.rank.model import describe
from services.rank.repository import build_spec, read_listing
from services.rank.settings import ServeSettings


@dataclass(frozen=True)
class Described:
    """One model of a repository: its newest version's file, and what RankService would say of it."""

    path: Path
    message: rank_pb2.Model

    async def models(self, shares: Sequence[ModelShare]) -> list[rank_pb2.Model]:
        """Return what a ``Service`` returns of the one model."""
        assert [share.name for share in shares] == [self.message.name]
        return [self.message]

    def one_candidate(self) -> bytes:
        """Return a serialised RankRequest of one candidate."""
        inputs = random_inputs(self.message, 1, np.random.default_rng(0))
        return build_request(self.message.name, inputs).SerializeToString()


Models = Callable[[Sequence[ModelShare]], Awaitable[list[rank_pb2.Model]]]


def described(repository: Path, model: str, target_ms: float) -> Described:
    """Read a model, with the target in milliseconds and the limits that `deeprecsys serve` has by default."""
    listing = read_listing(repository / model)
    version = listing.versions[0]
    path = listing.model_file(version)
    spec = build_spec(listing, version, CpuEngine(path).ports())
    limits = ServeSettings(repository=repository)
    message = describe(spec)
    message.versions.append(version)
    message.ready = True
    message.sla.seconds = target_ms / 1e3
    message.max_candidates = spec.largest_query(limits.max_candidates)
    message.max_request_bytes = message.max_response_bytes = limits.max_message_bytes
    return Described(path.resolve(), message)
