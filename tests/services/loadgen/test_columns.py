import builtins
import datetime
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from deeprecsys.errors import InvalidSettingError
from services.loadgen.columns import read_columns, read_lines


def csv(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "t.csv"
    path.write_text(text, encoding="utf-8")
    return path


def parquet(tmp_path: Path, **columns: list) -> Path:
    path = tmp_path / "t.parquet"
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    return path


def refusal(path: Path) -> str:
    with pytest.raises(InvalidSettingError) as caught:
        read_columns(path, ["a"]).numbers("a")
    return str(caught.value)


def test_csv_columns_are_found_by_name_whatever_their_order_and_beside_others(tmp_path):
    columns = read_columns(csv(tmp_path, "\ufeffb, a ,c\nx,1,9\n\n y ,2.5e1,9\n"), ["a"], ["b", "d"])
    assert columns.numbers("a").tolist() == [1.0, 25.0]
    assert columns.texts("b") == ["x", "y"]
    assert list(columns.row) == [2, 4]
    assert set(columns.values) == {"a", "b"}


def test_parquet_columns_are_the_same(tmp_path):
    columns = read_columns(parquet(tmp_path, b=["x", None], a=[1, 25], c=[0, 0]), ["a"], ["b", "d"])
    assert columns.numbers("a").tolist() == [1.0, 25.0]
    assert columns.numbers("a").dtype == np.float64
    assert columns.texts("b") == ["x", ""]
    assert list(columns.row) == [1, 2]


def test_nothing_stays_nothing_where_parquet_keeps_its_words_in_a_dictionary(tmp_path):
    words = pyarrow.array(["x", None, "y"]).dictionary_encode()
    assert read_columns(parquet(tmp_path, a=words), ["a"]).texts("a") == ["x", "", "y"]


def test_lines_are_a_column_without_a_header(tmp_path):
    columns = read_lines(csv(tmp_path, "3\n\n 4 \n"), "size")
    assert columns.numbers("size").tolist() == [3.0, 4.0]
    assert list(columns.row) == [1, 3]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "{} is empty"),
        ("a\n", "{} has no rows"),
        ("b,c\n1,2\n", "{} has no column a; it has b, c"),
        ("a,a\n1,2\n", "{} has two columns a"),
        ("a,b\n1,2\n3\n", "{}, row 3: 1 fields, but the header has 2"),
        ("a\n1\nten\n", "{}, row 3, a: 'ten' is no number"),
        ("a\n1\nnan\n", "{}, row 3, a: 'nan' is no number"),
        ("a\ninf\n", "{}, row 2, a: 'inf' is no number"),
        ("a,b\n1,2\n,2\n", "{}, row 3, a: '' is no number"),
    ],
)
def test_a_csv_that_cannot_be_used_is_refused_by_file_row_and_field(tmp_path, text, message):
    path = csv(tmp_path, text)
    assert refusal(path) == message.format(path)


def test_a_broken_quote_and_what_is_no_text_are_refused(tmp_path):
    path = csv(tmp_path, 'a\n"1\n')
    assert refusal(path).startswith(f"{path}, row 2")
    path.write_bytes(b"a\n\xff\xfe\n")
    assert refusal(path) == f"{path} is no text in UTF-8"
    with pytest.raises(InvalidSettingError, match="is no text in UTF-8"):
        read_lines(path, "a")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1.0, None], "row 2, a: nan is no number"),
        ([1.0, float("nan")], "row 2, a: nan is no number"),
        (["1", "x"], "row 2, a: 'x' is no number"),
        (["1", None], "row 2, a: nothing is no number"),
        ([datetime.datetime(2020, 1, 1)], "row 1, a: 2020-01-01T00:00:00.000000 is no number"),
        ([True, False], "row 1, a: True is no number"),
        ([], "has no rows"),
    ],
)
def test_a_parquet_column_that_holds_no_numbers_is_refused_by_row(tmp_path, values, message):
    assert refusal(parquet(tmp_path, a=values)).endswith(message)


def test_files_that_are_not_there_or_not_what_they_are_called_are_refused(tmp_path):
    missing = tmp_path / "none.csv"
    assert refusal(missing) == f"cannot read {missing}: No such file or directory"
    with pytest.raises(InvalidSettingError, match="cannot read .*none.csv: No such file"):
        read_lines(missing, "a")
    assert "No such file" in refusal(tmp_path / "none.parquet")
    assert refusal(tmp_path) == f"cannot read {tmp_path}: Is a directory"
    fake = tmp_path / "fake.parquet"
    fake.write_text("a\n1\n")
    assert refusal(fake).startswith(f"cannot read {fake}: ")
    assert "\n" not in refusal(fake)


def test_without_pyarrow_parquet_is_refused_with_the_extra_that_brings_it(tmp_path, monkeypatch):
    path = parquet(tmp_path, a=[1])
    real = builtins.__import__

    def without(name, *rest):
        if name.startswith("pyarrow"):
            raise ModuleNotFoundError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    assert refusal(path) == f"{path}: Parquet files need pyarrow: pip install 'deeprecsys[parquet]'"
