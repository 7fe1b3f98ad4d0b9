"""From a spec to a torch model with seeded, calibrated weights."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from services.models.candidates import Arrays, Scorer, random_candidates
from services.models.dien import Dien
from services.models.din import Din
from services.models.dlrm import Dlrm
from services.models.layers import Dense, calibrate
from services.models.ncf import Ncf
from services.models.spec import Family, ModelSpec
from services.models.wide_deep import WideDeep

CALIBRATION_CANDIDATES = 512
LOGIT_SPREAD = 1.25  # deviation of the logits: scores then spread by about 0.25


class _Scorer(Protocol):
    def logit_layers(self) -> list[Dense]: ...


_FAMILIES: dict[Family, type[nn.Module]] = {
    "dlrm": Dlrm,
    "wide_deep": WideDeep,
    "ncf": Ncf,
    "din": Din,
    "dien": Dien,
}


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Run torch on one thread: sums then have one order, so that the same seed gives the same bytes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def build(spec: ModelSpec, seed: int) -> nn.Module:
    """Return the model of ``spec``, ready to score; it takes the inputs of ``spec.inputs`` in that order.

    Weights depend on ``spec`` and ``seed`` only; torch's global generator is left as it was. The tables are
    held once: ``spec.table_bytes``.
    """
    with one_thread(), torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _FAMILIES[spec.family](spec).eval()
        sample = random_candidates(spec, CALIBRATION_CANDIDATES, np.random.default_rng(seed))
        logits = cast(_Scorer, model).logit_layers()
        calibrate(model, as_tensors(sample), logits, LOGIT_SPREAD)
    return model


def scorer(model: nn.Module, spec: ModelSpec) -> Scorer:
    """Return ``model`` as a function from numpy inputs to numpy outputs by name."""

    def score(inputs: Arrays) -> dict[str, NDArray[np.float32]]:
        with one_thread(), torch.no_grad():
            found = model(**as_tensors(inputs))
        outputs = found if isinstance(found, tuple) else (found,)
        return {name: output.numpy() for name, output in zip(spec.outputs, outputs, strict=True)}

    return score


def as_tensors(inputs: Arrays) -> dict[str, Tensor]:
    """View numpy inputs as torch tensors, without a copy."""
    return {name: torch.from_numpy(array) for name, array in inputs.items()}
