import numpy as np
import pytest

from deeprecsys.v1 import rank_pb2
from scheduler.ids import parse_ids, reuse
from scheduler.locality import stack_distances
from scheduler.reuse import ReuseProfile
from services.loadgen.look_ups import LookUps

ALWAYS_NEW = reuse(ReuseProfile(np.array([1]), np.array([0.0]), 1.0))
HALF_AGAIN = reuse(ReuseProfile(np.array([3]), np.array([0.5]), 0.5))
INT = np.dtype("<i4")


def ids_input(*rows: int, name: str = "ids") -> rank_pb2.Input:
    return rank_pb2.Input(name=name, data_type=rank_pb2.DATA_TYPE_INT32, shape=[-1, 2, 4], id_rows=rows)


def look_ups(law, spec, measured=0) -> LookUps:
    return LookUps(rank_pb2.Model(name="m", inputs=[spec]), law, measured)


@pytest.mark.parametrize("rows", [(1000, 1000), (1000, 500), (1000,)])
def test_each_table_goes_on_with_its_own_stack_from_request_to_request(rows):
    spec, rng = ids_input(*rows), np.random.default_rng(0)
    drawn = look_ups(HALF_AGAIN, spec)
    parts = [drawn.draw(spec, (50, 2, 4), INT, rng) for _ in range(20)]
    for table in (0, 1):
        distances = stack_distances(np.concatenate([part[:, table].ravel() for part in parts]))
        assert set(distances[distances < 500].tolist()) == {0, 3}
        assert (distances == 3).mean() == pytest.approx(0.5, abs=0.03)


def test_an_input_without_a_second_axis_is_one_table():
    spec = rank_pb2.Input(name="ids", data_type=rank_pb2.DATA_TYPE_INT32, shape=[-1], id_rows=[2000])
    drawn = look_ups(ALWAYS_NEW, spec, measured=1000)
    assert len(set(drawn.draw(spec, (400,), INT, np.random.default_rng(0)).tolist())) == 400
    assert drawn.locality().tables == 1


def test_locality_is_that_of_the_first_look_ups_of_each_table():
    spec, rng = ids_input(100, 400), np.random.default_rng(0)
    drawn = look_ups(ALWAYS_NEW, spec, measured=150)
    assert drawn.locality() is None
    for _ in range(10):
        drawn.draw(spec, (5, 2, 4), INT, rng)
    found = drawn.locality()
    assert (found.look_ups, found.tables, found.distinct_share) == (150, 2, 1.0)
    assert found.mean_reuse_distance is None


def test_one_number_of_rows_is_that_of_every_table():
    spec = ids_input(1000)
    drawn = look_ups(parse_ids("uniform"), spec, measured=400)
    ids = drawn.draw(spec, (50, 2, 4), INT, np.random.default_rng(0))
    found = drawn.locality()
    assert (found.look_ups, found.tables) == (400, 2)
    assert found.distinct_share == sum(len(set(ids[:, k].ravel().tolist())) for k in (0, 1)) / 400


def test_nothing_is_kept_where_nothing_is_measured():
    spec = ids_input(100, 400)
    drawn = look_ups(parse_ids("uniform"), spec)
    drawn.draw(spec, (5, 2, 4), INT, np.random.default_rng(0))
    assert drawn.locality() is None
