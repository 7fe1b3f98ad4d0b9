from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from deeprecsys.errors import InvalidSettingError
from services.loadgen.trace_file import read_trace

HEAD = "time,model,size,inputs\n"


def trace(tmp_path: Path, rows: str, head: str = HEAD) -> Path:
    path = tmp_path / "trace.csv"
    path.write_text(head + rows, encoding="utf-8")
    return path


def refusal(path: Path, *models: str) -> str:
    with pytest.raises(InvalidSettingError) as caught:
        read_trace(path, models)
    return str(caught.value)


def test_a_trace_has_its_queries_the_files_of_their_inputs_and_their_rows(tmp_path):
    found = read_trace(trace(tmp_path, "10,b,5,one.npz\n\n11,a,6,\n12,b,7,two.npz\n12,b,5,one.npz\n"))
    assert found.queries.models == ("a", "b")
    assert found.queries.time_s.tolist() == [10.0, 11.0, 12.0, 12.0]
    assert found.queries.size.tolist() == [5, 6, 7, 5]
    assert [found.inputs[k].name if k >= 0 else None for k in found.inputs_of] == [
        "one.npz",
        None,
        "two.npz",
        "one.npz",
    ]
    assert {path.parent for path in found.inputs} == {tmp_path}
    assert found.row.tolist() == [2, 4, 5, 6]
    assert found.as_dict() == {
        "path": str(tmp_path / "trace.csv"),
        "queries": 4,
        "seconds": pytest.approx(8 / 3),
        "qps": pytest.approx(1.5),
        "models": {"a": 0.25, "b": 0.75},
        "recorded_inputs": 3,
    }


def test_a_parquet_trace_is_read_as_its_csv_twin(tmp_path):
    path = tmp_path / "trace.parquet"
    table = {"model": ["b", "a"], "time": [10.0, 11.0], "size": [5, 6], "inputs": [None, "x.npz"]}
    pyarrow.parquet.write_table(pyarrow.table(table), path)
    found, twin = read_trace(path), read_trace(trace(tmp_path, "10,b,5,\n11,a,6,x.npz\n"))
    for name in ("time_s", "size", "model", "models"):
        assert np.array_equal(getattr(found.queries, name), getattr(twin.queries, name))
    assert found.inputs == twin.inputs
    assert found.inputs_of.tolist() == twin.inputs_of.tolist() == [-1, 0]


def test_some_models_of_a_trace_keep_their_queries_and_rows(tmp_path):
    found = read_trace(trace(tmp_path, "1,a,5,\n2,b,6,x.npz\n3,c,7,\n4,b,8,\n5,a,9,\n"), ["b", "c"])
    assert found.queries.models == ("b", "c")
    assert found.queries.size.tolist() == [6, 7, 8]
    assert found.row.tolist() == [3, 4, 5]
    assert found.inputs_of.tolist() == [0, -1, -1]


def test_a_trace_without_models_is_of_the_one_that_is_named(tmp_path):
    path = trace(tmp_path, "1,5\n2,6\n", "time,size\n")
    assert read_trace(path, ["rmc1"]).queries.models == ("rmc1",)
    for models in ((), ("a", "b")):
        assert (
            refusal(path, *models)
            == f"{path} has no column model: name the one model that its queries are for"
        )


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("2,a,5,\n1,a,5,\n", "{}, row 3, time: 1 goes back behind 2"),
        ("1,a,5,\nnan,a,5,\n", "{}, row 3, time: 'nan' is no number"),
        ("1,a,5,\n2,a,-5,\n", "{}, row 3, size: -5 is no whole number of candidates of at least 1"),
        ("1,a,5,\n2,a,,\n", "{}, row 3, size: '' is no number"),
        ("1,a,5,\n\n2, ,5,\n", "{}, row 4, model: is empty"),
        ("1,a,5\n", "{}, row 2: 3 fields, but the header has 4"),
        ("", "{} has no rows"),
        ("1,a,5,\n", "{} needs queries at two different times at least"),
    ],
)
def test_a_trace_that_cannot_be_replayed_is_refused_by_file_row_and_field(tmp_path, rows, message):
    path = trace(tmp_path, rows)
    assert refusal(path) == message.format(path)


def test_columns_and_models_that_are_missing_are_named(tmp_path):
    path = trace(tmp_path, "1,5\n", "time,length\n")
    assert refusal(path) == f"{path} has no column size; it has time, length"
    path = trace(tmp_path, "1,a,5,\n2,b,5,\n3,a,5,\n")
    assert refusal(path, "c") == f"{path} has no queries of c; it has a, b"
    assert refusal(path, "b") == f"{path}, queries of b: needs queries at two different times at least"
