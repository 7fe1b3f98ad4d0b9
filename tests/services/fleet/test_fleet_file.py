"""Fleet files: what they become, and one clear line for whatever is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from deeprecsys.errors import InvalidSettingError
from scheduler.fleet_spec import Origin, Trouble
from scheduler.plan import OperatingPoint
from services.fleet.fleet_file import Case, read_fleet
from services.fleet.kinds import BUILT_IN, read_kinds
from services.models.spec import SLUGS

ROOT = Path(__file__).parents[3]
PLAIN = """
peak_qps = 400
[[models]]
name = "rmc1"
sla_ms = 100
[[nodes]]
kind = "this-machine"
count = 4
"""
NODES_OF_TWO_MODELS = PLAIN.replace("[[nodes]]", '[[models]]\nname = "wnd"\nsla_ms = 25\n[[nodes]]')


def cases(tmp_path: Path, text: str) -> list[Case]:
    path = tmp_path / "fleet.toml"
    path.write_text(text)
    return read_fleet(path)


def refusal(tmp_path: Path, text: str) -> str:
    with pytest.raises(InvalidSettingError) as caught:
        cases(tmp_path, text)
    said = str(caught.value)
    assert said.startswith(str(tmp_path / "fleet.toml"))
    assert "\n" not in said
    return said.removeprefix(f"{tmp_path / 'fleet.toml'}: ")


def test_a_plain_file_is_one_part_of_one_fleet(tmp_path: Path) -> None:
    (case,) = cases(tmp_path, PLAIN)
    assert case.spec.nodes == 4
    assert case.spec.router == "random"
    assert case.spec.traffic[0].sla.seconds == 0.1
    assert case.spec.groups[0].kind.origin is Origin.MEASURED
    assert case.labels == {}


def test_a_day_is_cut_into_parts_and_a_sweep_multiplies_them(tmp_path: Path) -> None:
    made = cases(
        tmp_path,
        PLAIN
        + "[day]\ntrough = 0.5\npoints = 6\nwarmup_s = 2\n"
        + '[sweep]\npeak_qps = [100, 200]\nrouter = ["random", "round-robin"]\n',
    )
    assert len(made) == 24
    assert [case.at_h for case in made[:6]] == [0.0, 4.0, 8.0, 12.0, 16.0, 20.0]
    assert made[3].spec.start_s == 12 * 3600 - 2
    assert {(c.labels["peak_qps"], c.labels["router"]) for c in made} == {
        (c.spec.qps, c.spec.router) for c in made
    }
    assert made[0].spec.day.most(43_199.0, 43_201.0) == pytest.approx(1.0)


def test_batch_sizes_come_from_the_file_or_else_from_the_policy(tmp_path: Path) -> None:
    def points(text: str) -> dict[str, OperatingPoint]:
        return dict(cases(tmp_path, text)[0].spec.groups[0].points)

    assert points(PLAIN + "batch_size = 48\n")["rmc1"] == OperatingPoint(48)
    assert points("policy = 'static'\n" + PLAIN)["rmc1"] == OperatingPoint(500)
    own = points(NODES_OF_TWO_MODELS + "batch_size = { wnd = 8 }\n")
    assert own["wnd"] == OperatingPoint(8)
    assert own["rmc1"].batch_size >= 16
    offloading = points(PLAIN + 'accelerator = "t4-caffe2"\noffload_from = 200\nbatch_size = 64\n')
    assert offloading["rmc1"] == OperatingPoint(64, 200)
    assert points(PLAIN + "batch_size = 48\n[sweep]\nbatch_size = [7]\n")["rmc1"] == OperatingPoint(7)


def test_an_accelerator_makes_a_kind_modelled_and_dearer(tmp_path: Path) -> None:
    (case,) = cases(tmp_path, PLAIN + 'accelerator = "h200-like"\n')
    kind = case.spec.groups[0].kind
    assert kind.name == "this-machine + h200-like"
    assert kind.origin is Origin.MODELLED
    assert kind.accelerator_watts == 700.0
    assert kind.price > 4.0


def test_troubles_become_events(tmp_path: Path) -> None:
    made = cases(
        tmp_path,
        PLAIN
        + '[[troubles]]\nkind = "failed"\nshare = 0.5\nat_h = 10\nhours = 2\n'
        + '[[troubles]]\nkind = "restart"\nnodes = [0, 1]\nat_h = 1\neach_s = 30\n',
    )
    failed, *restarts = made[0].spec.events
    assert (failed.trouble, len(failed.nodes), failed.from_s, failed.until_s) == (
        Trouble.FAILED,
        2,
        36_000,
        43_200,
    )
    assert [(e.nodes, e.from_s) for e in restarts] == [((0,), 3600.0), ((1,), 3630.0)]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("count = 4", "count = 0", "nodes.0.count: Input should be greater than or equal to 1"),
        ("count = 4", "cuont = 4", "nodes.0.count: Field required (and 1 more)"),
        ('"this-machine"', '"laptop"', "nodes.0.kind: unknown machine 'laptop'; known: broadwell-caffe2,"),
        ('"this-machine"', '"t4-caffe2"', "nodes.0.kind: unknown machine 't4-caffe2'; known:"),
        ('"rmc1"', '"rmc9"', "nodes.0.kind: this-machine has no profile of rmc9; it has dien, din,"),
        ("sla_ms = 100", "sla_ms = -1", "models.0.sla_ms: Input should be greater than 0"),
        (
            "sla_ms = 100",
            'sla_ms = 9\nsizes = "huge"',
            "models.0.sizes: unknown size law 'huge'; known: production",
        ),
        ("sla_ms = 100", 'sla_ms = 9\nsizes = [[1, "fixed:9"]]', "models.0.sizes: the hours ascend from 0"),
        ("peak_qps = 400", "peak_qps = inf", "peak_qps: Input should be a finite number"),
        (
            "peak_qps = 400",
            'peak_qps = 4\nrouter = "best"',
            "router: Input should be 'random', 'round-robin',",
        ),
        (
            "peak_qps = 400",
            'peak_qps = 4\nrouter = "round-robin"\nsampled = 2',
            "sampled: nodes cannot stand for",
        ),
        (
            "peak_qps = 400",
            'peak_qps = 4\npolicy = "paper"',
            "nodes.0.batch_size: the policy paper needs one for rmc1",
        ),
        ("count = 4", "count = 4\noffload_from = 9", "nodes.0.offload_from: there is no accelerator"),
        (
            "count = 4",
            'count = 4\naccelerator = "tpu"',
            "nodes.0.accelerator: unknown accelerator 'tpu'; known: gtx",
        ),
        (
            "count = 4",
            'count = 4\nmodels = ["wnd"]',
            "nodes.0.models: wnd has no traffic; models with traffic: rmc1",
        ),
        ("count = 4", "count = 4\nmodels = []", "rmc1 is served by no group"),
        ("count = 4", "count = 4\n[day]\ncurve = [[0, 1], [20, 1]]", "day.curve: the hours end at 24"),
        (
            "count = 4",
            "count = 4\n[day]\ncurve = [[5, 1], [24, 1]]",
            "day.curve: the times of a rate curve ascend",
        ),
        ("count = 4", "count = 4\n[day]\ntrough = 1\ncurve = []", "day: give either trough or curve"),
        (
            "count = 4",
            'count = 4\n[[troubles]]\nkind = "slow"\nnodes = [4]\nat_h = 1',
            "troubles.0.nodes: there is no node 4, they are 0 to 3",
        ),
        (
            "count = 4",
            'count = 4\n[[troubles]]\nkind = "slow"\nat_h = 1',
            "troubles.0: give either nodes or share",
        ),
        (
            "count = 4",
            "count = 4\nbatch_size = { rmcl = 32 }",
            "nodes.0.batch_size: rmcl is none of its models: rmc1",
        ),
        (
            "count = 4",
            'count = 4\naccelerator = "t4-caffe2"\noffload_from = { rmcl = 32 }',
            "nodes.0.offload_from: rmcl is none of its models: rmc1",
        ),
        (
            "count = 4",
            'count = 4\n[[troubles]]\nkind = "slow"\nnodes = [1, 2, 1]\nat_h = 1',
            "troubles.0.nodes: name each node once",
        ),
        ("peak_qps = 400", "peak_qps = 1e9", "peak_qps: 3e+09 queries at once exceed 20000000"),
        ("peak_qps = 400", "peak_qps 400", "is not TOML"),
    ],
)
def test_what_is_wrong_is_one_line_with_its_field(tmp_path: Path, old: str, new: str, said: str) -> None:
    assert old in PLAIN
    assert said in refusal(tmp_path, PLAIN.replace(old, new, 1))


def test_a_file_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(InvalidSettingError, match="cannot read .*none.toml: No such file"):
        read_fleet(tmp_path / "none.toml")


def test_the_example_is_a_fleet() -> None:
    assert {case.spec.nodes for case in read_fleet(ROOT / "examples" / "fleet.toml")} == {300}


# ---- kinds ----


def test_every_built_in_kind_has_all_eight_models_an_origin_and_its_derivation() -> None:
    kinds = read_kinds([])
    assert {name for name, kind in kinds.items() if kind.origin is Origin.MEASURED} == {"this-machine"}
    for kind in kinds.values():
        assert set(kind.models) == set(SLUGS)
        assert kind.derivation
        assert kind.watts > kind.idle_watts > 0
    assert (kinds["broadwell-like"].cores, kinds["skylake-like"].cores) == (28, 40)


def test_broadwell_is_slower_and_its_cores_disturb_each_other_more_at_small_batches() -> None:
    kinds = read_kinds([])
    for model in SLUGS:
        skylake, broadwell = (kinds[f"{name}-like"].profile(model) for name in ("skylake", "broadwell"))
        assert broadwell.busy.mean_s(64) > skylake.busy.mean_s(64)
        slower = [broadwell.busy.mean_s(n) / broadwell.alone.mean_s(n) for n in (16, 1024)]
        assert slower[0] > slower[1] > 1.0


def own_kind(tmp_path: Path, **changes: object) -> str:
    data = json.loads((BUILT_IN / "this-machine.json").read_text()) | {"name": "mine"} | changes
    folder = tmp_path / "kinds"
    folder.mkdir(exist_ok=True)
    (folder / "mine.json").write_text(json.dumps(data))
    return 'kinds = ["kinds"]\n' + PLAIN.replace("this-machine", "mine")


def test_kinds_of_ones_own_lie_in_a_folder_beside_the_file(tmp_path: Path) -> None:
    (case,) = cases(tmp_path, own_kind(tmp_path, cores=6, origin="published"))
    assert (case.spec.groups[0].kind.cores, case.spec.groups[0].kind.origin) == (6, Origin.PUBLISHED)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"cores": 0}, "cores: Input should be greater than or equal to 1"),
        ({"cores": None}, "give either cores (a machine) or slots (an accelerator)"),
        ({"origin": "guessed"}, "origin: Input should be 'measured', 'published' or 'modelled'"),
        ({"models": {}}, "models: Dictionary should have at least 1 item"),
        ({"name": "this-machine"}, "name: there is already a kind this-machine"),
        (
            {"models": {"rmc1": {"alone": [[1, 1, 1, 1, 1], [64, 2, 2, 2, 2]], "busy": [[1, 1, 1, 1, 1]]}}},
            "models.rmc1.alone: batch sizes 1 and 64: a gap of more than a factor of 8",
        ),
        (
            {"models": {"rmc1": {"alone": [[1, 1, 1, 1, 1]], "busy": [[1, 9, 9, 9, 9], [8, 1, 1, 1, 1]]}}},
            "models.rmc1.busy: batch sizes 1 and 8: mean_s falls from 9 to 1",
        ),
    ],
)
def test_what_is_wrong_with_a_kind_names_its_file(
    tmp_path: Path, changes: dict[str, object], said: str
) -> None:
    text = own_kind(tmp_path, **changes)
    with pytest.raises(InvalidSettingError) as caught:
        cases(tmp_path, text)
    assert str(caught.value).startswith(str(tmp_path / "kinds" / "mine.json"))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_without_kinds_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidSettingError, match="has no kinds"):
        cases(tmp_path, 'kinds = ["nowhere"]\n' + PLAIN)
