"""Every query of a run is in the Parquet file as it was measured, with the whole result beside it."""

import json

import grpc
import numpy as np
import pytest
from pyarrow import parquet

from deeprecsys.errors import InvalidSettingError
from services.loadgen import latencies
from services.loadgen.latencies import require_parquet, write_latencies
from services.loadgen.run import sweep
from services.loadgen.settings import LoadSettings, ModelShare


@pytest.fixture
def swept(stand_in_elsewhere):
    stand_in_elsewhere.behave = lambda nth, request: grpc.StatusCode.INTERNAL if nth % 10 == 9 else None
    settings = LoadSettings(
        stand_in_elsewhere.target,
        (ModelShare("tiny"), ModelShare("other")),
        duration_s=0.2,
        warmup_s=0.1,
        seed=4,
        min_queries=1,
    )
    return sweep(settings, (100.0, 200.0))


def test_each_row_is_a_query_and_nothing_is_lost(swept, tmp_path):
    path = tmp_path / "all.parquet"
    write_latencies(path, swept.points)
    table = parquet.read_table(path)

    assert table.column_names == [
        *("run", "qps", "model", "version", "scheduled_s", "latency_s", "candidates", "code", "measured")
    ]
    assert {str(table.schema.field(name).type.value_type) for name in ("model", "version", "code")} == {
        "string"
    }
    rows = table.to_pydict()
    for k, run in enumerate(swept.points):
        for model in run.models:
            mine = [
                i
                for i, (index, name) in enumerate(zip(rows["run"], rows["model"], strict=True))
                if (index, name) == (k, model.model)
            ]
            samples = model.samples
            assert np.array_equal([rows["scheduled_s"][i] for i in mine], samples.scheduled_s)
            assert np.array_equal([rows["candidates"][i] for i in mine], samples.size)
            got = [np.inf if rows["latency_s"][i] is None else rows["latency_s"][i] for i in mine]
            assert np.array_equal(got, samples.latency_s)
            assert {rows["qps"][i] for i in mine} == {run.qps}
            assert sum(rows["measured"][i] for i in mine) == model.measurement.count < len(mine)
            inside = [rows["code"][i] for i in mine if rows["measured"][i]]
            assert {code: inside.count(code) for code in set(inside)} == model.codes
    assert None in rows["latency_s"]


def test_the_result_of_every_run_is_in_the_metadata(swept, tmp_path):
    path = tmp_path / "all.parquet"
    write_latencies(path, swept.points)
    facts = parquet.read_schema(path).metadata
    for k, run in enumerate(swept.points):
        assert json.loads(facts[f"deeprecsys.run.{k}".encode()]) == json.loads(json.dumps(run.as_dict()))


def test_no_run_makes_an_empty_table(tmp_path):
    write_latencies(tmp_path / "none.parquet", [])
    assert parquet.read_table(tmp_path / "none.parquet").num_rows == 0


def test_a_file_that_cannot_be_written_and_a_missing_pyarrow_are_clear(tmp_path, monkeypatch):
    with pytest.raises(InvalidSettingError, match="cannot write"):
        write_latencies(tmp_path / "missing" / "x.parquet", [])
    require_parquet()
    monkeypatch.setattr(latencies, "find_spec", lambda name: None)
    with pytest.raises(InvalidSettingError, match=r"pip install 'deeprecsys\[parquet\]'"):
        require_parquet()
