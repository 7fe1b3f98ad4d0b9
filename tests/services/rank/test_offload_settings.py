"""What `deeprecsys serve` can be told of accelerators, and where models begin then."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from deeprecsys.errors import InvalidSettingError
from scheduler.plan import OperatingPoint, Plan
from services.cli import serve as serve_command
from services.cli.app import app
from services.rank.learnt_points import LearntPoints
from services.rank.settings import ServeSettings, load_settings
from services.rank.starting_point import starting_point
from tests.services.rank.test_dispatcher import SPEC


@pytest.mark.parametrize(
    "address",
    [
        "localhost:8001",
        "triton:8001",
        "10.0.0.1:1",
        "[::1]:65535",
        "a.b-c.d:80",
        "dns:///a:1",
        "dns:///[::1]:8001",
    ],
)
def test_addresses_are_host_and_port(address: str) -> None:
    assert load_settings(None, {"triton": [address]}).triton == (address,)


@pytest.mark.parametrize(
    "address",
    [
        "localhost",
        ":8001",
        "localhost:0",
        "localhost:70000",
        "http://a:80",
        "a b:1",
        "::1:8",
        "unix:/tmp/triton.sock",
        "unix:///t:1",
        "dns:a:1",
        "dns://b/a:1",
        "dns:///a",
    ],
)
def test_what_is_no_address_is_refused_with_the_flag_and_the_form(address: str) -> None:
    with pytest.raises(InvalidSettingError, match=r"triton \(from --triton\): .*must be host:port"):
        load_settings(None, {"triton": [address]})


def test_an_address_given_twice_is_refused() -> None:
    with pytest.raises(InvalidSettingError, match="twice"):
        load_settings(None, {"triton": ["a:1", "a:1"]})


def test_the_environment_gives_several_separated_by_commas_and_flags_win(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DEEPRECSYS_TRITON", "a:1, b:2,")
    assert load_settings(None, {"triton": []}).triton == ("a:1", "b:2")
    assert load_settings(None, {"triton": ["c:3"]}).triton == ("c:3",)
    monkeypatch.setenv("DEEPRECSYS_TRITON", "")
    assert load_settings(None, {}).triton == ()


def test_a_file_gives_a_list(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text('triton = ["a:1", "b:2"]\noffload_from = 7\n')
    settings = load_settings(file, {})
    assert (settings.triton, settings.offload_from) == (("a:1", "b:2"), 7)


def test_the_flag_may_be_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[ServeSettings] = []

    async def note(settings: ServeSettings) -> None:
        seen.append(settings)

    monkeypatch.setattr(serve_command, "_serve", note)
    monkeypatch.setattr(serve_command, "configure_logs", lambda _: None)
    result = CliRunner().invoke(app, ["serve", "--triton", "a:1", "--triton", "b:2", "--offload-from", "9"])
    assert result.exit_code == 0, result.output
    assert (seen[0].triton, seen[0].offload_from) == (("a:1", "b:2"), 9)


def test_a_threshold_without_an_accelerator_is_refused() -> None:
    with pytest.raises(InvalidSettingError, match="--triton"):
        load_settings(None, {"offload_from": 7})


TIMED = Plan(OperatingPoint(32), sla_s=0.1, per_candidate_s=1e-4)


@pytest.mark.parametrize(
    ("settings", "point", "pinned"),
    [
        ({}, OperatingPoint(32), False),
        ({"triton": "a:1"}, OperatingPoint(32), False),
        ({"triton": "a:1", "offload_from": 7}, OperatingPoint(32, 7), True),
        ({"triton": "a:1", "offload_from": 7, "batch_size": 5}, OperatingPoint(5, 7), True),
        ({"triton": "a:1", "batch_size": 5}, OperatingPoint(5), True),
        ({"triton": "a:1", "offload_from": 7, "policy": "static"}, OperatingPoint(500, 7), True),
    ],
)
def test_a_threshold_that_is_asked_for_is_held(settings: dict, point: OperatingPoint, pinned: bool) -> None:
    start = starting_point(ServeSettings(**settings), SPEC, TIMED, LearntPoints(None), 2)
    assert (start.plan.point, start.pinned) == (point, pinned)


def test_a_kept_threshold_is_held_by_the_policy_that_holds_what_was_tuned_and_where_there_is_an_accelerator(
    tmp_path: Path,
) -> None:
    learnt = LearntPoints(tmp_path)
    learnt.keep(SPEC, OperatingPoint(64, 300))
    for settings, point in (
        (ServeSettings(policy="paper", triton="a:1"), OperatingPoint(64, 300)),
        (ServeSettings(policy="paper"), OperatingPoint(64)),
        (ServeSettings(policy="adaptive", triton="a:1"), OperatingPoint(64)),
    ):
        assert starting_point(settings, SPEC, TIMED, learnt, 2).plan.point == point


async def test_without_an_accelerator_the_service_says_that_it_is_cpu_only(
    repository, running, caplog
) -> None:
    caplog.set_level("INFO")
    async with running(repository):
        (serving,) = [record for record in caplog.records if record.message == "serving"]
        assert serving.accelerator == "none is configured: CPU only"
