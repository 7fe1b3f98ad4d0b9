from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from deeprecsys.errors import InvalidSettingError
from scheduler.locality import stack_distances
from services.loadgen.law_files import id_law, size_law


def file(tmp_path: Path, text: str, name: str = "f.csv") -> Path:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


def test_sizes_come_from_lines_or_a_column_of_csv_or_parquet(tmp_path):
    lines = file(tmp_path, "3\n3\n9\n", "lines.txt")
    table = file(tmp_path, "when,size\n0,3\n1,3\n2,9\n")
    pyarrow.parquet.write_table(pyarrow.table({"size": [3, 3, 9]}), tmp_path / "p.parquet")
    for where in (f"{lines}", f"{table},size", f"{tmp_path}/p.parquet,size"):
        law = size_law(f"empirical:{where}")
        drawn = law.draw(np.random.default_rng(0), 30_000)
        assert set(drawn.tolist()) == {3, 9}
        assert (drawn == 3).mean() == pytest.approx(2 / 3, abs=0.01)
        assert law.spec == f"empirical:{where}"


@pytest.mark.parametrize(
    ("text", "column", "message"),
    [
        ("", "", "{} has no rows"),
        ("3\n-1\n", "", "{}, row 2, size: -1 is no whole number of candidates of at least 1"),
        ("3\n0\n", "", "{}, row 2, size: 0 is no whole number of candidates of at least 1"),
        ("3\n2.5\n", "", "{}, row 2, size: 2.5 is no whole number of candidates of at least 1"),
        ("3\nmany\n", "", "{}, row 2, size: 'many' is no number"),
        ("3\n3000000000\n", "", "{}, row 2, size: 3e+09 is no whole number of candidates of at least 1"),
        ("n\n3\n-7\n", ",n", "{}, row 3, n: -7 is no whole number of candidates of at least 1"),
        ("n\n3\n", ",m", "{} has no column m; it has n"),
    ],
)
def test_a_file_that_gives_no_sizes_is_refused_by_row_and_field(tmp_path, text, column, message):
    path = file(tmp_path, text)
    with pytest.raises(InvalidSettingError) as caught:
        size_law(f"empirical:{path}{column}")
    assert str(caught.value) == message.format(path)


def test_unknown_laws_are_refused_with_those_that_read_files_too(tmp_path):
    with pytest.raises(
        InvalidSettingError, match=r"unknown size law 'x'; known: .*empirical:FILE\[,COLUMN\]"
    ):
        size_law("x")
    with pytest.raises(
        InvalidSettingError, match=r"unknown id law 'x'; known: uniform, zipf:EXPONENT, reuse:FILE"
    ):
        id_law("x")
    with pytest.raises(InvalidSettingError, match="must be written reuse:FILE"):
        id_law("reuse")


def test_a_profile_gives_the_look_ups_its_distances(tmp_path):
    path = file(tmp_path, "distance,probability\n50,0.25\nnew,0.5\n2,0.25\n")
    ids = id_law(f"reuse:{path}").draw(np.random.default_rng(0), 1_000_000, 100_000, np.int32)
    share = np.bincount(stack_distances(ids)) / len(ids)
    assert [share[k] for k in (0, 2, 50)] == pytest.approx([0.5, 0.25, 0.25], abs=0.01)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("1,0.5\nnew,0.4\n", "{}, probability: the probabilities with that of new rows sum to 1, not to 0.9"),
        ("1,0.5\nnew,-0.5\n", "{}, row 3, probability: -0.5 is below 0"),
        ("1,0.5\nnew,nan\n", "{}, row 3, probability: 'nan' is no number"),
        ("0,0.5\nnew,0.5\n", "{}, row 2, distance: 0 is no whole distance of at least 1"),
        ("new,0.5\nfar,0.5\n", "{}, row 3, distance: 'far' is no number"),
        ("7,0.25\nnew,0.5\n7,0.25\n", "{}, row 4, distance: 7 is there twice"),
        ("", "{} has no rows"),
    ],
)
def test_a_profile_that_is_no_distribution_is_refused_by_row_and_field(tmp_path, rows, message):
    path = file(tmp_path, "distance,probability\n" + rows)
    with pytest.raises(InvalidSettingError) as caught:
        id_law(f"reuse:{path}")
    assert str(caught.value).removeprefix(f"id law 'reuse:{path}': ") == message.format(path)
