"""Valid random requests, built and serialised before a run so that the driver only sends bytes.

Real queries have heavy-tailed sizes and fresh ids; a handful of repeated requests would sit in the server's caches
and flatter it. So a run's queries each get a request of their own where memory allows, and otherwise share a pool in
which sizes are grouped into strata and every stratum's requests are taken in turn.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from deeprecsys.client import build_request
from deeprecsys.errors import InvalidSettingError
from deeprecsys.tensors import DTYPES, data_type_name
from deeprecsys.v1 import rank_pb2
from scheduler.ids import IdLaw, parse_ids
from scheduler.locality import Locality
from scheduler.sizes import I32Array
from services.loadgen.look_ups import LOCALITY_LOOK_UPS, LookUps
from services.loadgen.settings import Users

UNIFORM_IDS = parse_ids("uniform")

MAX_STRATA = 64
MAX_REQUESTS = 16_384
"""Small requests are bounded by number: beyond this building them takes longer than it adds variety."""


@dataclass(frozen=True, eq=False)
class RequestPool:
    """Serialised requests of one model, those that were drawn ordered by size, those that were recorded after them.

    payloads: [R] serialised RankRequests. size: int32 [R], the candidates of each.
    edge: int32 [S], the largest query size that each stratum stands for; first: int64 [S], its first request.
    id_references: how many table rows all drawn requests together look up. drawn: how many requests were drawn.
    locality: of the first look-ups of the drawn ones; None for a model without tables.
    """

    payloads: tuple[bytes, ...]
    size: I32Array
    edge: I32Array
    first: NDArray[np.int64]
    id_references: int
    drawn: int
    locality: Locality | None

    @property
    def payload_bytes(self) -> int:
        """The memory that the serialised requests take."""
        return sum(map(len, self.payloads))

    @property
    def distinct_candidates(self) -> int:
        """The candidates over all requests, none of which repeats another's."""
        return int(self.size.sum(dtype=np.int64))

    def assign(self, size: I32Array, recorded: I32Array | None = None) -> NDArray[np.int64]:
        """Return for each query (sizes int32 [Q]) the index of a request: of its stratum, taken in turn.

        recorded: int32 [Q], which of the recorded requests is a query's own, -1 for none.
        """
        if recorded is None:
            return _in_turn(self.edge, self.first, self.drawn, size)
        chosen = self.drawn + recorded.astype(np.int64)
        free = recorded < 0
        chosen[free] = _in_turn(self.edge, self.first, self.drawn, size[free])
        return chosen

    def with_recorded(self, payloads: tuple[bytes, ...], size: I32Array) -> RequestPool:
        """Return a pool that also has recorded requests, [K], and the candidates of each, int32 [K]."""
        return replace(self, payloads=self.payloads + payloads, size=np.append(self.size, size))


def build_pool(
    model: rank_pb2.Model,
    sizes: I32Array,
    *,
    seed: list[int],
    ids: IdLaw,
    users: Users,
    budget_bytes: int,
    version: str = "",
) -> RequestPool:
    """Build the requests for queries of the given sizes (int32 [Q]) within a budget.

    Raises InvalidSettingError when the budget is too small for one request, or the model has an input that cannot
    be drawn.
    """
    edge, rep, copies = _plan(model, sizes, users, budget_bytes)
    rng = np.random.default_rng(seed)
    size = np.repeat(rep, copies)
    first = np.concatenate(([0], np.cumsum(copies)[:-1])).astype(np.int64)
    look_ups = LookUps(model, ids, LOCALITY_LOOK_UPS)
    payloads = [b""] * len(size)
    # In the order in which queries first send them, so that rows come back as the server sees them come back.
    sent, first_query = np.unique(_in_turn(edge, first, len(size), sizes), return_index=True)
    for k in sent[np.argsort(first_query)].tolist():
        inputs = _inputs(model, int(size[k]), rng, users, look_ups)
        payloads[k] = build_request(model.name, inputs, version=version).SerializeToString()
    references = sum(int(size.sum(dtype=np.int64)) * _row_numbers(i) for i in model.inputs if i.id_rows)
    return RequestPool(tuple(payloads), size, edge, first, references, len(size), look_ups.locality())


def random_inputs(
    model: rank_pb2.Model,
    size: int,
    rng: Generator,
    users: Users = "per_candidate",
    ids: IdLaw = UNIFORM_IDS,
) -> dict[str, NDArray[Any]]:
    """Draw every input of one query of ``size`` candidates, by name; raises as ``build_pool`` does."""
    return _inputs(model, size, rng, users, LookUps(model, ids))


def largest_size(model: rank_pb2.Model, users: Users) -> int:
    """Return the most candidates that a query may have by the model's limits on candidates and message bytes."""
    most = model.max_candidates or 2**31 - 1
    if model.max_request_bytes:
        one, two = request_bytes(model, 1, users), request_bytes(model, 2, users)
        most = min(most, 1 + max(0, model.max_request_bytes - one) // max(1, two - one))
    return most


def request_bytes(model: rank_pb2.Model, size: int, users: Users) -> int:
    """Return an upper bound of the bytes of a serialised request with ``size`` candidates."""
    total = 64 + len(model.name) + max((len(v) for v in model.versions), default=0)
    for spec in model.inputs:
        row_bytes = _row_numbers(spec) * _dtype(model, spec).itemsize
        total += _rows(spec, size, users) * row_bytes + len(spec.name) + 48 + 10 * len(spec.shape)
    return total


# --- which requests to build ---


def _in_turn(edge: I32Array, first: NDArray[np.int64], drawn: int, size: I32Array) -> NDArray[np.int64]:
    stratum = np.minimum(np.searchsorted(edge, size), len(edge) - 1)
    copies = np.diff(np.append(first, drawn))
    order = np.argsort(stratum, kind="stable")
    grouped = stratum[order]
    turn = np.empty(len(size), dtype=np.int64)
    turn[order] = np.arange(len(size)) - np.searchsorted(grouped, grouped)
    return np.asarray(first[stratum] + turn % copies[stratum])


def _plan(
    model: rank_pb2.Model, sizes: I32Array, users: Users, budget_bytes: int
) -> tuple[I32Array, I32Array, NDArray[np.int64]]:
    """Return the largest size, the size to build, and the number of requests of each stratum, all [S]."""
    values, counts = np.unique(sizes, return_counts=True)
    cost = np.array([request_bytes(model, int(v), users) for v in values], dtype=np.int64)
    if len(sizes) <= MAX_REQUESTS and int((cost * counts).sum()) <= budget_bytes:
        return values, values, counts
    strata = MAX_STRATA
    while strata >= 1:
        edge, rep, counts_in = _strata(values, counts, strata)
        cost = np.array([request_bytes(model, int(v), users) for v in rep], dtype=np.int64)
        once = int(cost.sum())
        if once <= budget_bytes:
            more = (budget_bytes - once) / float((cost * counts_in).sum())
            share = min(1.0, more, MAX_REQUESTS / float(counts_in.sum()))
            return edge, rep, np.minimum(1 + (share * counts_in).astype(np.int64), counts_in)
        strata //= 2
    raise InvalidSettingError(
        f"the request pool of {budget_bytes} bytes cannot hold one request of {model.name} "
        f"with {int(rep[0])} candidates ({once} bytes)"
    )


def _strata(
    values: I32Array, counts: NDArray[np.int64], strata: int
) -> tuple[I32Array, I32Array, NDArray[np.int64]]:
    """Group ascending sizes into at most ``strata`` groups; each group's size is its mean, so the mean stays.

    A group's weight is half its share of queries and half its share of candidates: by queries alone the whole
    heavy tail would be a single size.
    """
    if len(values) <= strata:
        return values, values, counts
    mass = values * counts
    weight = counts / counts.sum() / 2 + mass / mass.sum() / 2
    group = np.minimum(((np.cumsum(weight) - weight / 2) * strata).astype(np.int64), strata - 1)
    starts = np.flatnonzero(np.diff(group, prepend=-1))
    in_group = np.add.reduceat(counts, starts)
    rep = np.rint(np.add.reduceat(mass, starts) / in_group).astype(np.int32)
    return values[np.append(starts[1:], len(values)) - 1], rep, in_group


# --- one request ---


def _rows(spec: rank_pb2.Input, size: int, users: Users) -> int:
    return 1 if spec.user_side and users == "shared" else size


def _row_shape(spec: rank_pb2.Input) -> tuple[int, ...]:
    return tuple(1 if length < 0 else length for length in spec.shape[1:])


def _row_numbers(spec: rank_pb2.Input) -> int:
    return math.prod(_row_shape(spec))


def _dtype(model: rank_pb2.Model, spec: rank_pb2.Input) -> np.dtype[np.generic]:
    if spec.data_type not in DTYPES:
        name = data_type_name(spec.data_type)
        raise InvalidSettingError(f"input {spec.name} of {model.name} has the unknown element type {name}")
    return DTYPES[spec.data_type]


def _inputs(
    model: rank_pb2.Model, size: int, rng: Generator, users: Users, look_ups: LookUps
) -> dict[str, NDArray[Any]]:
    return {spec.name: _draw(model, spec, _rows(spec, size, users), rng, look_ups) for spec in model.inputs}


def _draw(
    model: rank_pb2.Model, spec: rank_pb2.Input, rows: int, rng: Generator, look_ups: LookUps
) -> NDArray[Any]:
    """Draw one input: ids below their tables' rows, numbers in [0, 1), and 0 to 9 for integers without a table."""
    dtype, shape = _dtype(model, spec), (rows, *_row_shape(spec))
    if spec.id_rows:
        return look_ups.draw(spec, shape, dtype, rng)
    if dtype.kind == "f":
        # Drawing singles directly halves the time; numpy has no draw of half precision.
        single = dtype.itemsize <= 4
        numbers = rng.random(shape, dtype=np.float32) if single else rng.random(shape)
        return numbers.astype(dtype, copy=False)
    return rng.integers(0, 2 if dtype.kind == "b" else 10, shape, dtype=np.uint8).astype(dtype)
