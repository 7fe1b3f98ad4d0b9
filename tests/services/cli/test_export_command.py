from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from deeprecsys.errors import DeepRecSysError, ExportError, InvalidSettingError
from services.cli import export as command
from services.cli.app import app
from services.models import export as exporting


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """The overrides that reached the exporter, which does nothing here."""
    found: dict[str, object] = {}

    def take(*_: object, overrides: dict[str, object], **__: object) -> tuple[()]:
        found.update(overrides)
        return ()

    monkeypatch.setattr(exporting, "export", take)
    return found


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("sla_ms=2.5", 2.5),
        ("sla_ms=25", 25),
        ("sla_ms=1e2", 100.0),
        ("top=", ()),
        ("top=64,1", (64, 1)),
        ("top=,", ()),
        ("tasks=buy, return", ("buy", "return")),
        ("interaction=dot", "dot"),
        ("sla_ms=nan", "nan"),
        (" sla_ms = 3 ", 3),
    ],
)
def test_set_reads_whole_numbers_fractions_words_lists_and_the_empty_list(
    asked: dict[str, object], text: str, value: object
) -> None:
    outcome = CliRunner().invoke(app, ["export", "rmc1", "--set", text])
    assert outcome.exit_code == 0, outcome.output
    (found,) = asked.values()
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (["--set", "sla_ms"], "--set takes NAME=VALUE"),
        (["--set", "sla_ms=nan"], "sla_ms cannot be 'nan'"),
        (["--set", "dim=2.5"], "dim cannot be 2.5"),
        (["--set", "top="], "top must end in 1"),
        (["--set", "tasks=a,b"], "tasks is for wnd and mt_wnd only"),
        (["--set", "ids_rows="], "ids_rows needs a number"),
    ],
)
def test_a_setting_that_cannot_work_is_one_clear_line(tmp_path: Path, settings: list[str], says: str) -> None:
    place = tmp_path / "models"
    outcome = CliRunner().invoke(app, ["export", "rmc1", "--repository", str(place), *settings])
    assert isinstance(outcome.exception, InvalidSettingError)
    assert says in str(outcome.exception)
    assert not place.exists()


@pytest.mark.parametrize("arguments", [["export"], ["rank", "ncf"], ["load", "--model", "ncf"], ["demo"]])
def test_a_seed_below_zero_is_a_usage_error_of_every_command(arguments: list[str]) -> None:
    outcome = CliRunner().invoke(app, [*arguments, "--seed", "-1"])
    assert outcome.exit_code == 2
    assert "--seed" in outcome.output
    assert isinstance(outcome.exception, SystemExit)


def test_an_error_is_not_preceded_by_an_empty_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ExportError("no")

    monkeypatch.setattr(exporting, "export", fail)
    with pytest.raises(DeepRecSysError):
        command.export(["ncf"], tmp_path)
    assert capsys.readouterr() == ("", "")
