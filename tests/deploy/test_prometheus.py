"""The scrape configuration, the alerts and the dashboard, against a live server and by the real Prometheus."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from services.triton_server.process import free_ports
from tests.conftest import ServerFactory
from tests.services.rank.fake_triton import fake_triton
from tests.services.rank.test_metrics import Watched, echo, watched

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "deploy" / "prometheus" / "prometheus.yml"
ALERTS = ROOT / "deploy" / "prometheus" / "alerts.yml"
CASES = Path(__file__).with_name("alert_cases.yml")
GRAFANA = ROOT / "deploy" / "grafana"
DASHBOARD: dict[str, Any] = json.loads((GRAFANA / "dashboards" / "rank.json").read_text(encoding="utf-8"))
SERVICES: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))[
    "services"
]
START_LIMIT_S = END_LIMIT_S = 30.0
POLL_S = 0.1

__all__ = ["echo"]  # the fixture


def expressions() -> dict[str, str]:
    """The dashboard's queries by panel, with Grafana's variables filled in."""
    found = {}
    for panel in DASHBOARD["panels"]:
        for target in panel["targets"]:
            expr = target["expr"].replace("$model", ".*").replace("$__rate_interval", "1m")
            assert "$" not in expr
            found[f"{panel['title']} {target['refId']}"] = expr
    return found


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load(ALERTS.read_text(encoding="utf-8"))["groups"]
    return [rule for group in groups for rule in group["rules"]]


@pytest.fixture(scope="session")
def tools() -> tuple[str, str]:
    """The commands `prometheus` and `promtool`, or a skip that says how to get them."""
    prometheus, promtool = shutil.which("prometheus"), shutil.which("promtool")
    if prometheus is None or promtool is None:
        pytest.skip("no `prometheus` and `promtool`: the package prometheus of Debian and Ubuntu has both")
    return prometheus, promtool


def run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_promtool_finds_nothing_wrong_with_the_configuration(tools) -> None:
    assert "1 rule files found" in run(tools[1], "check", "config", str(CONFIG))


def test_promtool_finds_nothing_wrong_with_the_rules(tools) -> None:
    assert f"{len(rules())} rules found" in run(
        tools[1], "check", "rules", "--lint=all", "--lint-fatal", str(ALERTS)
    )


def test_every_alert_goes_off_when_it_should_and_only_then(tools, tmp_path: Path) -> None:
    cases = yaml.safe_load(CASES.read_text(encoding="utf-8"))
    cases["rule_files"] = [str(ALERTS)]
    (tmp_path / "cases.yml").write_text(yaml.safe_dump(cases))
    assert "SUCCESS" in run(tools[1], "test", "rules", str(tmp_path / "cases.yml"))
    tried = {
        test["alertname"]
        for case in cases["tests"]
        for test in case.get("alert_rule_test", [])
        if test["exp_alerts"]
    }
    assert tried == {rule["alert"] for rule in rules() if "alert" in rule}


def test_compose_gives_both_containers_their_files_and_the_addresses_they_name() -> None:
    mounted = {
        target: ROOT / source
        for name in ("prometheus", "grafana")
        for source, target, mode in (v.split(":") for v in SERVICES[name]["volumes"] if v.startswith("./"))
        if mode == "ro"
    }
    assert mounted["/etc/prometheus/prometheus.yml"] == CONFIG
    (rule_file,) = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))["rule_files"]
    assert mounted[f"/etc/prometheus/{rule_file}"] == ALERTS
    provider = yaml.safe_load(
        (GRAFANA / "provisioning/dashboards/deeprecsys.yml").read_text(encoding="utf-8")
    )
    place = mounted[provider["providers"][0]["options"]["path"]]
    assert (place / "rank.json").is_file()
    assert mounted["/etc/grafana/provisioning"] == GRAFANA / "provisioning"
    source = yaml.safe_load((GRAFANA / "provisioning/datasources/prometheus.yml").read_text(encoding="utf-8"))
    assert source["datasources"][0]["url"] == "http://prometheus:9090"
    used = {panel["datasource"]["uid"] for panel in DASHBOARD["panels"]}
    assert used == {source["datasources"][0]["uid"]}
    flags = SERVICES["rank"]["command"]
    (job,) = [
        job for job in yaml.safe_load(CONFIG.read_text())["scrape_configs"] if job["job_name"] == "rank"
    ]
    assert job["static_configs"][0]["targets"] == [f"rank:{flags[flags.index('--metrics-port') + 1]}"]
    assert flags[flags.index("--metrics-host") + 1] == "0.0.0.0"
    assert not any("8501" in port for port in SERVICES["rank"]["ports"])


@asynccontextmanager
async def served(running: ServerFactory, repository: Path) -> AsyncIterator[Watched]:
    """A server that has answered on both backends and refused a query."""
    async with fake_triton() as fake:
        fake.largest = 64
        async with watched(running, repository, triton=(fake.address,), offload_from=5) as w:
            await w.until(lambda found: found("breaker_state") == 0)
            for size in (2, 10, 2):
                await w.client.rank("m", {"x": np.full((size, 1), 2, np.float32)})
            yield w


async def test_every_metric_of_the_dashboard_and_the_alerts_is_one_that_a_server_has(running, echo) -> None:
    async with served(running, echo) as w:
        found = await w.scrape()
    there = {sample.name for sample in found.samples}
    asked_for = {rule["alert"] if "alert" in rule else rule["record"]: rule["expr"] for rule in rules()}
    asked_for |= expressions()
    without_samples = {
        "deeprecsys_tail_seen_seconds",
        "deeprecsys_tail_predicted_seconds",
    }  # 50 queries in a window
    named = set()
    for place, expr in asked_for.items():
        names = set(re.findall(r"(?<![:\w])(?:deeprecsys|process)_\w+", expr))
        assert names <= there | without_samples, place
        named |= names
    assert len(named) > 25
    text = DASHBOARD["templating"]["list"][0]["definition"]
    assert set(re.findall(r"deeprecsys_\w+", text)) <= there
    # What is in reserve for a closer look; everything else that a server has is shown or watched.
    unused = {name for name in there if name.startswith("deeprecsys_")} - named
    unused = {name for name in unused if not re.search(r"_(bucket|sum|count)$", name)}
    assert unused == {"deeprecsys_build_info", "deeprecsys_operating_point_pinned"}


class Prometheus:
    """The real one as a child process on the loopback, with the deployed rules and the address of one server."""

    def __init__(self, command: str, place: Path, target: str) -> None:
        config = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
        config["global"] = {
            "scrape_interval": "200ms",
            "scrape_timeout": "200ms",
            "evaluation_interval": "200ms",
        }
        config["scrape_configs"] = [job for job in config["scrape_configs"] if job["job_name"] == "rank"]
        config["scrape_configs"][0]["static_configs"] = [{"targets": [target]}]
        shutil.copy(ALERTS, place / "alerts.yml")
        (place / "prometheus.yml").write_text(yaml.safe_dump(config))
        port = free_ports().http
        self.url = f"http://127.0.0.1:{port}"
        self.log = place / "prometheus.log"
        with self.log.open("wb") as log:
            self.child = subprocess.Popen(
                [
                    command,
                    f"--config.file={place / 'prometheus.yml'}",
                    f"--storage.tsdb.path={place / 'data'}",
                    f"--web.listen-address=127.0.0.1:{port}",
                ],
                stdout=log,
                stderr=log,
            )

    def stop(self) -> None:
        self.child.terminate()
        try:
            self.child.wait(END_LIMIT_S)
        except subprocess.TimeoutExpired:
            self.child.kill()
            self.child.wait()

    def ask(self, path: str, **parameters: str) -> Any:
        """The data of an answer of its HTTP API; None while it does not listen."""
        url = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{parameters}: {error.read().decode()}") from error
        except urllib.error.URLError:
            assert self.child.poll() is None, self.log.read_text()
            return None

    async def query(self, expr: str) -> list[Any]:
        data = await asyncio.to_thread(self.ask, "query", query=expr)
        return data["result"] if data else []

    async def until_found(self, expr: str) -> list[Any]:
        async with asyncio.timeout(START_LIMIT_S):
            while not (found := await self.query(expr)):  # noqa: ASYNC110 - from outside
                await asyncio.sleep(POLL_S)
        return found


@pytest.fixture
def prometheus(tools, tmp_path: Path) -> Iterator[Any]:
    started: list[Prometheus] = []

    def start(target: str) -> Prometheus:
        started.append(Prometheus(tools[0], tmp_path, target))
        return started[-1]

    yield start
    for each in started:
        each.stop()


@pytest.mark.slow
async def test_prometheus_scrapes_a_live_server_and_answers_every_panel(running, echo, prometheus) -> None:
    async with served(running, echo) as w:
        watching = prometheus(f"127.0.0.1:{w.port}")
        expected = 'deeprecsys_queries_total{job="rank",model="m",backend="cpu",code="OK"} == 2'
        (series,) = await watching.until_found(expected)
        assert series["metric"]["instance"] == f"127.0.0.1:{w.port}"
        assert (await watching.query('up{job="rank"}'))[0]["value"][1] == "1"
        for _ in range(60):  # enough in one window for a tail that is seen
            await w.client.rank("m", {"x": np.full((2, 1), 2, np.float32)})
        await watching.until_found('sum(rate(deeprecsys_query_batches_count{model="m"}[1m])) > 0')
        await watching.until_found("deeprecsys_tail_seen_seconds > 0")
        for place, expr in expressions().items():
            if place != "Tail seen and predicted B":  # nothing was predicted: the point is held
                assert await watching.query(expr), place
        await watching.until_found("model:deeprecsys_sla_burn:rate1m >= 0")
        groups = (await asyncio.to_thread(watching.ask, "rules"))["groups"]
        states = {rule["name"]: rule["health"] for group in groups for rule in group["rules"]}
        assert set(states) == {rule.get("alert") or rule["record"] for rule in rules()}
        assert set(states.values()) == {"ok"}
        firing = await asyncio.to_thread(watching.ask, "alerts")
        assert not [alert for alert in firing["alerts"] if alert["state"] == "firing"]
