"""Which result a file holds, and what is said of one that holds none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from deeprecsys.errors import InvalidSettingError
from services.report.results import SHAPES as KNOWN
from services.report.results import Load, Profile, Sweep
from services.report.sources import read_sources, shape_of
from tests.services.report.conftest import PROFILES, RESULTS, load_run, sweep, write_latencies


def refusal(path: Path, content: str | None = None) -> str:
    if content is not None:
        path.write_text(content)
    with pytest.raises(InvalidSettingError) as refused:
        read_sources([path])
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_every_shape_is_known_by_its_names_and_taken_for_no_other(everything: list[Path]) -> None:
    sources = read_sources(everything)
    assert {type(source.result) for source in sources.known} == set(KNOWN)
    for source in sources.known:
        data = json.loads(source.path.read_text())
        names = set(data).union(*data.get("rows", []))
        fits = [shape for shape in KNOWN if shape.known_by <= names]
        assert fits == [type(source.result)], source.path


def test_the_results_of_the_repository_are_read_whatever_their_files_are_called(tmp_path: Path) -> None:
    for number, path in enumerate(sorted(PROFILES.glob("*.json"))):
        (tmp_path / f"{number}.json").write_bytes(path.read_bytes())
    assert len(read_sources([tmp_path]).of(Profile)) == 8


def test_what_a_folder_holds_besides_is_named_and_passed_over(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps(load_run()))
    (tmp_path / "other.json").write_text('{"cases": []}')
    sources = read_sources([tmp_path])
    assert [path.name for path in sources.passed_over] == ["other.json"]
    assert [run.qps for run in sources.of(Load)] == [50.0]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "is not JSON"),
        ("[1, 2]", "holds a list, not an object"),
        ("{}", "it is empty"),
        ('{"cases": [], "other": 1}', "is no result that the report knows; its names are cases, other"),
    ],
)
def test_a_named_file_that_is_no_result_is_refused_in_one_line(
    content: str, said: str, tmp_path: Path
) -> None:
    message = refusal(tmp_path / "some.json", content)
    assert said in message
    assert str(tmp_path / "some.json") in message


def test_a_file_that_is_missing_is_named(tmp_path: Path) -> None:
    assert "No such file" in refusal(tmp_path / "none.json")
    assert "holds no .json or .parquet file" in refusal(tmp_path)


def test_bytes_that_are_no_text_are_no_json(tmp_path: Path) -> None:
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    assert "is not JSON" in refusal(tmp_path / "binary.json")


def test_the_wrong_entry_of_a_result_is_named(tmp_path: Path) -> None:
    wrong = sweep()
    wrong["points"][2]["models"][0]["qps"] = "many"
    message = refusal(tmp_path / "sweep.json", json.dumps(wrong))
    assert "points.2.models.0.qps" in message
    nothing = refusal(tmp_path / "sweep.json", json.dumps(sweep() | {"points": []}))
    assert "points" in nothing
    nan = refusal(tmp_path / "run.json", json.dumps(load_run() | {"qps": float("nan")}))
    assert "qps" in nan
    assert "finite" in nan


def test_a_number_that_the_report_does_not_need_may_be_anything(tmp_path: Path) -> None:
    path = tmp_path / "sweep.json"
    path.write_text(json.dumps(sweep() | {"news": [None, {}]}))
    assert len(read_sources([path]).of(Sweep)[0].points) == 4


def test_latencies_are_those_of_the_measured_queries_ascending(tmp_path: Path) -> None:
    path = write_latencies(tmp_path / "some.parquet", {50.0: [9.0, 0.02, None, 0.01], 80.0: [9.0, 0.03]})
    (slow, fast) = read_sources([path]).latencies[path]
    assert (slow.load.qps, fast.load.qps) == (50.0, 80.0)
    assert slow.latency_s["wnd"].tolist() == [0.01, 0.02, float("inf")]
    assert fast.latency_s["wnd"].tolist() == [0.03]


def test_a_parquet_file_of_something_else_is_refused(tmp_path: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    assert "is no Parquet file" in refusal(tmp_path / "some.parquet", "text")
    parquet.write_table(pa.table({"run": [0]}), tmp_path / "some.parquet")
    assert "it has no column model" in refusal(tmp_path / "some.parquet")
    columns = {"run": [0], "model": ["wnd"], "latency_s": [0.1], "measured": [True]}
    parquet.write_table(pa.table(columns), tmp_path / "some.parquet")
    assert "no result of run 0" in refusal(tmp_path / "some.parquet")
    parquet.write_table(
        pa.table(columns).replace_schema_metadata({"deeprecsys.run.0": "{}"}), tmp_path / "some.parquet"
    )
    assert "run 0: settings: Field required" in refusal(tmp_path / "some.parquet")


def test_a_shape_needs_names_not_a_mapping() -> None:
    assert shape_of([]) is None
    assert shape_of({"rows": 3}) is None
    assert RESULTS.is_dir()
