"""The CPU engine: threads of its own none, faults of ONNX Runtime translated."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from deeprecsys.errors import RepositoryError
from services.rank.cpu import CpuEngine
from services.rank.engine import EngineError
from tests.conftest import linear_model, linear_scores


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "1" / "model.onnx"
    path.parent.mkdir()
    path.write_bytes(linear_model())
    return path


def test_a_session_has_one_thread_and_does_not_spin(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[ort.SessionOptions] = []
    real = ort.SessionOptions

    def remembered() -> ort.SessionOptions:
        made.append(real())
        return made[-1]

    monkeypatch.setattr(ort, "SessionOptions", remembered)
    CpuEngine(file)
    (options,) = made
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (1, 1)
    for pool in ("intra_op", "inter_op"):
        assert options.get_session_config_entry(f"session.{pool}.allow_spinning") == "0"


def test_one_session_scores_on_several_threads_at_once(file: Path) -> None:
    engine, rng = CpuEngine(file), np.random.default_rng(0)
    dense, ids = rng.normal(size=(50, 3)).astype(np.float32), rng.integers(0, 8, (50, 2), dtype=np.int32)
    found: list[np.ndarray] = []

    def score() -> None:
        found.extend(engine.run({"dense": dense, "ids": ids}, ["score"])[0] for _ in range(20))

    threads = [threading.Thread(target=score) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 80
    for scores in found:
        np.testing.assert_allclose(scores[:, 0], linear_scores(dense, ids), atol=1e-6)


def test_a_fault_of_the_runtime_is_an_engine_error(file: Path) -> None:
    outside = np.full((1, 2), 99, np.int32)
    with pytest.raises(EngineError):
        CpuEngine(file).run({"dense": np.zeros((1, 3), np.float32), "ids": outside}, ["score"])


def test_a_file_that_is_no_model_is_a_repository_error_without_its_place(file: Path) -> None:
    file.write_bytes(b"no model")
    with pytest.raises(RepositoryError) as broken:
        CpuEngine(file)
    assert str(file.parent.parent) not in str(broken.value)
