from pathlib import Path

import numpy as np
import pytest

from deeprecsys.errors import InvalidSettingError
from deeprecsys.tensors import to_array
from deeprecsys.v1 import rank_pb2
from services.loadgen.recorded_requests import RecordedRequests, recorded_requests
from services.loadgen.trace_file import read_trace

MODEL = rank_pb2.Model(
    name="m",
    inputs=[
        rank_pb2.Input(name="dense", data_type=rank_pb2.DATA_TYPE_FLOAT32, shape=[-1, 4], user_side=True),
        rank_pb2.Input(name="ids", data_type=rank_pb2.DATA_TYPE_INT32, shape=[-1, -1], id_rows=[7]),
    ],
)


def save(path: Path, size: int, **changes: np.ndarray) -> dict[str, np.ndarray]:
    arrays = {
        "dense": np.random.default_rng(size).random((1, 4), dtype=np.float32),
        "ids": np.arange(size * 3, dtype=np.int32).reshape(size, 3) % 7,
    }
    arrays = {k: v for k, v in {**arrays, **changes}.items() if v is not None}
    np.savez(path, **arrays)
    return arrays


def built(tmp_path: Path, rows: str, *, max_size=1000, budget_bytes=1 << 20) -> RecordedRequests:
    path = tmp_path / "trace.csv"
    path.write_text("time,model,size,inputs\n" + rows, encoding="utf-8")
    return recorded_requests(
        read_trace(path), MODEL, version="3", max_size=max_size, budget_bytes=budget_bytes
    )


def test_each_file_of_a_model_becomes_one_request_with_its_arrays(tmp_path):
    five, six = save(tmp_path / "five.npz", 5), save(tmp_path / "six.npz", 6)
    found = built(tmp_path, "1,m,5,five.npz\n2,m,9,\n3,other,5,theirs.npz\n4,m,6,six.npz\n5,m,5,five.npz\n")
    assert found.size.tolist() == [5, 6]
    assert found.request_of.tolist() == [0, 1, -1]
    for payload, arrays in zip(found.payloads, (five, six), strict=True):
        request = rank_pb2.RankRequest.FromString(payload)
        assert (request.model, request.version) == ("m", "3")
        assert {t.name: to_array(t).tolist() for t in request.inputs} == {
            name: array.tolist() for name, array in arrays.items()
        }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ids": None}, "holds dense, the inputs of m are dense, ids"),
        ({"more": np.zeros(1)}, "holds dense, ids, more, the inputs of m are dense, ids"),
        ({"ids": np.zeros((4, 3), np.int32)}, "ids has shape [4, 3], not [5, any]"),
        ({"dense": np.zeros((5, 3), np.float32)}, "dense has shape [5, 3], not [5, 4]"),
        ({"dense": np.zeros(5, np.float32)}, "dense has shape [5], not [5, 4]"),
        ({"ids": np.zeros((5, 3), np.int64)}, "ids holds int64, the model takes int32"),
        ({"ids": np.array([[None]])}, "is no .npz of plain arrays"),
    ],
)
def test_arrays_that_do_not_fit_the_model_are_refused_by_row(tmp_path, changes, message):
    save(tmp_path / "x.npz", 5, **changes)
    with pytest.raises(InvalidSettingError) as caught:
        built(tmp_path, "1,m,5,\n2,m,5,x.npz\n")
    assert str(caught.value) == f"{tmp_path}/trace.csv, row 3, inputs: {tmp_path}/x.npz: {message}"


def test_files_that_are_no_archives_of_arrays_are_refused(tmp_path):
    np.save(tmp_path / "lone.npy", np.zeros(5))
    (tmp_path / "text.npz").write_text("hello")
    (tmp_path / "empty.npz").write_bytes(b"")
    (tmp_path / "torn.npz").write_bytes(b"PK\x03\x04torn")
    for name in ("lone.npy", "text.npz", "empty.npz", "torn.npz"):
        with pytest.raises(
            InvalidSettingError, match=rf"row 2, inputs: .*{name}: is no .npz of plain arrays"
        ):
            built(tmp_path, f"1,m,5,{name}\n2,m,5,\n")
    with pytest.raises(InvalidSettingError, match="none.npz: cannot be read: No such file or directory"):
        built(tmp_path, "1,m,5,none.npz\n2,m,5,\n")


def said_of(tmp_path: Path) -> str:
    """Return why a trace with ``x.npz`` is refused, or nothing."""
    try:
        built(tmp_path, "1,m,5,x.npz\n2,m,5,\n")
    except InvalidSettingError as error:
        return str(error)
    return ""


def test_a_damaged_file_is_refused_in_one_line_wherever_it_is_damaged(tmp_path):
    path = tmp_path / "x.npz"
    ids = np.arange(5000, dtype=np.int32).reshape(5, 1000) % 7
    np.savez_compressed(path, dense=np.zeros((1, 4), np.float32), ids=ids)
    whole = path.read_bytes()
    assert said_of(tmp_path) == ""
    said = set()
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x55]) + whole[at + 1 :])
        said.add(said_of(tmp_path))
    where = f"{tmp_path}/trace.csv, row 2, inputs: {path}: "
    assert f"{where}is no .npz of plain arrays" in said
    assert all(line.startswith(where) and "\n" not in line for line in said if line)


def test_one_file_has_one_size_that_the_model_takes_and_all_fit_the_budget(tmp_path):
    save(tmp_path / "x.npz", 5)
    with pytest.raises(
        InvalidSettingError, match="row 3, inputs: .*x.npz: 5 candidates, but this query's size is 6"
    ):
        built(tmp_path, "1,m,5,x.npz\n2,m,6,x.npz\n")
    with pytest.raises(InvalidSettingError, match="row 2, inputs: .*: 5 candidates, the server takes 4"):
        built(tmp_path, "1,m,5,x.npz\n2,m,5,\n", max_size=4)
    with pytest.raises(InvalidSettingError, match="up to here do not fit the request pool"):
        built(tmp_path, "1,m,5,x.npz\n2,m,5,\n", budget_bytes=100)
