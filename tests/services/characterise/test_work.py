"""Work is what a hand computes: multiply-accumulates, rows, inputs, outputs, weights."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import onnx
import pytest

from deeprecsys.errors import RepositoryError
from services.characterise.dataflow import Part
from services.characterise.work import Work, count_work, read_graph
from services.models.spec import spec_for
from tests.conftest import Exports
from tests.services.characterise import graphs


def test_bags_and_layers_count_as_a_hand_counts_them() -> None:
    found = count_work(graphs.bags())
    total = found.total
    assert total.macs == 12 * 5 + 5 * 1
    assert (total.gathered_bytes, total.gathered_rows) == (3 * 8 * 4, 3)
    assert total.streamed_bytes == 3 * 4 + 4 * 4 + 4
    assert (
        total.weight_bytes == 4 * (12 * 5 + 5 + 5 * 1 + 1) + 4 + 8
    )  # the offset of ids, the axis of the sum
    assert total.intermediate_bytes == 3 * 4 + 3 * 8 * 4 + 8 * 4 + 12 * 4 + 5 * 4 + 5 * 4 + 4
    assert found.parts[Part.EMBEDDING].macs == 0
    assert found.parts[Part.MLP].macs == total.macs
    assert found.parts[Part.EMBEDDING].gathered_bytes == total.gathered_bytes
    assert found.not_counted == ()


def test_a_batch_moves_its_rows_and_the_weights_once() -> None:
    work = Work(macs=10, gathered_bytes=96, gathered_rows=3, streamed_bytes=32, weight_bytes=300)
    assert work.moved_bytes(4) == 4 * 128 + 300
    assert work.flops(4) == 80


@pytest.mark.parametrize(
    ("model", "macs"),
    [
        (graphs.gru, 5 * 3 * 2 * (3 + 2)),
        (graphs.unrolled, 3 * 2 * 2 + 2),
        (graphs.attention, 4 * 3 + 4 * 3 + 3),
        (graphs.scan, 5 * 3 * 3),
        (graphs.loop, 4 * 3 * 3),
    ],
)
def test_recurrences_attention_and_bodies_count_every_step(
    model: Callable[[], onnx.ModelProto], macs: int
) -> None:
    assert count_work(model()).total.macs == macs


def test_a_model_of_one_candidate_at_a_time_is_counted_at_one() -> None:
    fixed = graphs.bags()
    for port in fixed.graph.input:
        port.type.tensor_type.shape.dim[0].dim_value = 1
    assert count_work(fixed).total == count_work(graphs.bags()).total


def test_what_is_not_counted_is_named() -> None:
    assert count_work(graphs.loop(trips=None)).not_counted == ("Loop",)


def test_a_shape_that_cannot_be_known_is_named() -> None:
    with pytest.raises(RepositoryError, match='the shape of "where" is unknown'):
        count_work(graphs.unknown_shape())


def test_a_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "1" / "model.onnx"
    path.parent.mkdir()
    path.write_bytes(b"\xff\xff\xff not a model")
    with pytest.raises(RepositoryError, match=r"1/model\.onnx cannot be read"):
        read_graph(path)


def _layers(*widths: int) -> int:
    return sum(a * b for a, b in pairwise(widths))


@pytest.mark.slow
def test_the_exported_models_do_the_work_of_their_table(exported: Exports) -> None:
    rmc1, ncf = spec_for("rmc1", "tiny"), spec_for("ncf", "tiny")
    works = {
        slug: count_work(read_graph(exported[slug].path / "model.onnx")) for slug in ("rmc1", "ncf", "dien")
    }
    found = works["rmc1"].total
    assert found.macs == _layers(256, *rmc1.bottom) + _layers(32 + 8 * 32, *rmc1.top)
    assert (found.gathered_rows, found.gathered_bytes) == (640, 640 * 32 * 4)
    assert found.streamed_bytes == 256 * 4 + 640 * 4 + 4
    assert works["ncf"].total.gathered_bytes == 4 * ncf.dim * 4
    assert works["ncf"].total.macs == _layers(128, *ncf.top) + (ncf.dim + ncf.top[-1])
    dien = works["dien"]
    steps, hidden, dim = 3, 64, 32
    assert dien.parts[Part.RECURRENCE].macs == pytest.approx(
        steps * 3 * hidden * (dim + hidden) + steps * 3 * hidden * hidden
    )
    assert (
        dien.parts[Part.ATTENTION].macs == steps * hidden * 3 * hidden
    )  # the inputs' half of all gates at once
