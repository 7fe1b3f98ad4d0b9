import numpy as np
import pytest

from deeprecsys.errors import InvalidSettingError
from deeprecsys.tensors import to_array
from deeprecsys.v1 import rank_pb2
from scheduler.ids import parse_ids, reuse
from scheduler.reuse import ReuseProfile, ReuseStream
from scheduler.sizes import parse_sizes
from services.loadgen.request_pool import MAX_STRATA, build_pool, largest_size, request_bytes

UNIFORM = parse_ids("uniform")


def message(*inputs: rank_pb2.Input, **facts) -> rank_pb2.Model:
    return rank_pb2.Model(name="m", versions=["1"], inputs=inputs, **facts)


DENSE = rank_pb2.Input(name="dense", data_type=rank_pb2.DATA_TYPE_FLOAT32, shape=[-1, 4], user_side=True)
IDS = rank_pb2.Input(name="ids", data_type=rank_pb2.DATA_TYPE_INT32, shape=[-1, 2, 3], id_rows=[7, 1000])
MODEL = message(DENSE, IDS)


def pool(sizes, model=MODEL, *, users="per_candidate", budget_bytes=1 << 20, ids=UNIFORM, seed=(0,)):
    array = np.asarray(sizes, dtype=np.int32)
    return build_pool(model, array, seed=list(seed), ids=ids, users=users, budget_bytes=budget_bytes)


def arrays(payload: bytes) -> dict[str, np.ndarray]:
    return {t.name: to_array(t) for t in rank_pb2.RankRequest.FromString(payload).inputs}


@pytest.mark.parametrize("ids", ["uniform", "zipf:1.1"])
def test_requests_are_valid_by_the_models_description(ids):
    built = pool([5, 80, 80], ids=parse_ids(ids))
    for payload, size in zip(built.payloads, built.size, strict=True):
        inputs = arrays(payload)
        assert inputs["dense"].shape == (size, 4)
        assert inputs["dense"].dtype == np.float32
        assert (inputs["dense"] >= 0).all() and (inputs["dense"] <= 1).all()  # noqa: PT018
        assert inputs["ids"].shape == (size, 2, 3)
        assert inputs["ids"].dtype == np.int32
        assert inputs["ids"].min() >= 0
        assert inputs["ids"][:, 0].max() < 7
        assert inputs["ids"][:, 1].max() < 1000
    assert inputs["ids"][:, 1].max() >= 7


def test_shared_users_send_one_row_of_user_side_inputs():
    (payload,) = pool([9], users="shared").payloads
    assert arrays(payload)["dense"].shape == (1, 4)
    assert arrays(payload)["ids"].shape == (9, 2, 3)


def test_every_element_type_can_be_drawn_and_free_axes_have_length_one():
    types = [t for t in rank_pb2.DataType.values() if t]
    model = message(*(rank_pb2.Input(name=str(t), data_type=t, shape=[-1, -1, 2]) for t in types))
    (payload,) = pool([3], model).payloads
    assert {a.shape for a in arrays(payload).values()} == {(3, 1, 2)}
    assert len(arrays(payload)) == 12


def test_one_number_of_rows_holds_for_all_tables_whatever_the_id_type():
    for data_type in (rank_pb2.DATA_TYPE_INT64, rank_pb2.DATA_TYPE_UINT8, rank_pb2.DATA_TYPE_UINT32):
        spec = rank_pb2.Input(name="ids", data_type=data_type, shape=[-1, 5], id_rows=[3])
        (payload,) = pool([40], message(spec)).payloads
        assert np.unique(arrays(payload)["ids"]).tolist() == [0, 1, 2]


def test_with_room_every_query_has_a_request_of_its_own_and_of_its_size():
    sizes = np.array([30, 5, 5, 900, 30, 5], dtype=np.int32)
    built = pool(sizes)
    chosen = built.assign(sizes)
    assert sorted(chosen.tolist()) == list(range(6))
    assert built.size[chosen].tolist() == sizes.tolist()
    assert len(set(built.payloads)) == 6
    assert built.distinct_candidates == 975
    assert built.id_references == 975 * 6


def test_without_room_strata_keep_the_budget_the_mean_and_the_tail():
    sizes = parse_sizes("production").draw(np.random.default_rng(0), 20_000)
    built = pool(sizes, budget_bytes=1 << 20)
    taken = built.size[built.assign(sizes)]

    assert built.payload_bytes <= 1 << 20
    assert len(built.edge) <= MAX_STRATA
    assert taken.mean() == pytest.approx(sizes.mean(), rel=0.01)
    for percent in (50, 75, 95, 99):
        assert np.percentile(taken, percent) == pytest.approx(np.percentile(sizes, percent), rel=0.08)


def test_the_requests_of_a_stratum_are_taken_in_turn():
    sizes = np.full(40_000, 50, dtype=np.int32)
    built = pool(sizes, budget_bytes=20_000)
    copies = len(built.payloads)
    assert copies > 1
    assert built.assign(sizes[: 2 * copies]).tolist() == [*range(copies)] * 2


def test_sizes_that_a_pool_was_not_built_for_get_the_nearest_stratum_above():
    built = pool([10, 20])
    assert built.size[built.assign(np.array([1, 10, 11, 99], dtype=np.int32))].tolist() == [10, 10, 20, 20]


def test_a_pool_too_small_for_one_request_is_refused():
    with pytest.raises(InvalidSettingError, match="cannot hold one request"):
        pool([1000], budget_bytes=1000)


@pytest.mark.parametrize(
    "spec",
    [
        rank_pb2.Input(name="x", data_type=0, shape=[-1]),
        rank_pb2.Input(name="x", data_type=rank_pb2.DATA_TYPE_FLOAT32, shape=[-1, 2], id_rows=[5]),
        rank_pb2.Input(name="x", data_type=rank_pb2.DATA_TYPE_INT32, shape=[-1, 2], id_rows=[5, 5, 5]),
        rank_pb2.Input(name="x", data_type=rank_pb2.DATA_TYPE_INT32, shape=[-1, 2], id_rows=[0]),
    ],
)
def test_inputs_that_cannot_be_drawn_are_refused(spec):
    with pytest.raises(InvalidSettingError, match="input x of m"):
        pool([3], message(spec))


@pytest.mark.parametrize("users", ["shared", "per_candidate"])
def test_the_estimate_of_bytes_is_an_upper_bound_and_close(users):
    for size in (1, 2, 1000):
        actual = len(pool([size], users=users).payloads[0])
        assert actual <= request_bytes(MODEL, size, users) <= actual + 400


def test_the_largest_size_follows_the_limits_on_candidates_and_bytes():
    assert largest_size(message(DENSE, IDS, max_candidates=300), "shared") == 300
    limited = message(DENSE, IDS, max_candidates=300, max_request_bytes=4000)
    most = largest_size(limited, "per_candidate")
    assert len(pool([most], limited).payloads[0]) <= 4000 < request_bytes(limited, most + 1, "per_candidate")


def test_pools_of_one_seed_are_equal_and_of_two_seeds_are_not():
    assert pool([5, 6]).payloads == pool([5, 6]).payloads != pool([5, 6], seed=(1,)).payloads


def test_requests_are_drawn_in_the_order_in_which_they_are_first_sent():
    # One look-up a candidate, each new: the rows tell the order of drawing.
    spec = rank_pb2.Input(name="ids", data_type=rank_pb2.DATA_TYPE_INT32, shape=[-1], id_rows=[1000])
    law = reuse(ReuseProfile(np.array([1]), np.array([0.0]), 1.0))
    sizes = np.array([3, 1, 2, 1], dtype=np.int32)
    built = pool(sizes, message(spec), ids=law)
    sent = [arrays(built.payloads[k])["ids"] for k in built.assign(sizes)]
    drawn = ReuseStream(ReuseProfile(np.array([1]), np.array([0.0]), 1.0), 1000)
    assert np.concatenate(sent).tolist() == drawn.draw(np.random.default_rng(0), 7, np.int32).tolist()


def test_a_pool_built_from_strata_has_no_request_that_was_never_drawn():
    built = pool(parse_sizes("production").draw(np.random.default_rng(1), 30_000), budget_bytes=1 << 20)
    for payload, size in zip(built.payloads, built.size, strict=True):
        assert arrays(payload)["ids"].shape[0] == size


def test_recorded_requests_are_those_of_their_queries_and_the_others_take_their_turns():
    built = pool([5, 5, 8]).with_recorded((b"one", b"two"), np.array([5, 9], dtype=np.int32))
    assert built.drawn == 3
    recorded = np.array([-1, 1, 0, -1, -1, 1], dtype=np.int32)
    chosen = built.assign(np.array([5, 9, 5, 8, 5, 9], dtype=np.int32), recorded)
    assert chosen.tolist() == [0, 4, 3, 2, 1, 4]
    assert built.size[chosen].tolist() == [5, 9, 5, 8, 5, 9]
    only = pool([]).with_recorded((b"one",), np.array([5], dtype=np.int32))
    assert only.assign(np.array([5, 5], dtype=np.int32), np.zeros(2, np.int32)).tolist() == [0, 0]


def test_a_pool_reports_the_locality_of_its_law():
    skewed, even = (pool([500] * 4, ids=parse_ids(law)).locality for law in ("zipf:1.2", "uniform"))
    assert skewed.look_ups == even.look_ups == 4 * 500 * 6
    assert skewed.top_percent_share > 3 * even.top_percent_share
    assert skewed.mean_reuse_distance < even.mean_reuse_distance
    assert pool([5], message(DENSE)).locality is None
