"""A torch model as ONNX bytes that hold nothing but the model: the same model gives the same bytes."""

from __future__ import annotations

import contextlib
import gc
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx_ir
import torch
from google.protobuf.message import DecodeError
from torch import nn

from services.models.build import as_tensors, one_thread
from services.models.candidates import random_candidates
from services.models.spec import ModelSpec

MODEL_FILE = "model.onnx"
DATA_FILE = "model.onnx.data"
RECIPE_KEY = "deeprecsys.recipe"
EXAMPLE_CANDIDATES = 3
EXTERNAL_FROM_BYTES = 1 << 20  # smaller tensors stay inside the file


def write_onnx(model: nn.Module, spec: ModelSpec, recipe: str, folder: Path) -> None:
    """Write ``model`` to ``folder/model.onnx``, its large tensors beside it in ``model.onnx.data``.

    The first axis of every input and output is free. ``recipe`` is kept in the file's metadata. Raises OSError
    when the disk refuses.
    """
    example = as_tensors(random_candidates(spec, EXAMPLE_CANDIDATES, np.random.default_rng(0)))
    # torch wants a range that holds the example; the file does not state where the axis ends.
    batch = torch.export.Dim("batch", min=1, max=max(spec.max_batch_size, EXAMPLE_CANDIDATES))
    with one_thread(), _quiet(), torch.no_grad():
        program = torch.onnx.export(
            model,
            kwargs=example,
            input_names=list(spec.inputs),
            output_names=list(spec.outputs),
            dynamic_shapes={name: {0: batch} for name in example},
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    _strip(program.model)
    program.model.metadata_props[RECIPE_KEY] = recipe
    weights = program.model.graph.initializers.values()
    tensors = [value.const_value for value in weights]
    large = any(tensor is not None and tensor.nbytes >= EXTERNAL_FROM_BYTES for tensor in tensors)
    onnx_ir.save(
        program.model,
        folder / MODEL_FILE,
        external_data=DATA_FILE if large else None,
        size_threshold_bytes=EXTERNAL_FROM_BYTES,
    )
    for value in weights:
        value.const_value = None  # something in the exporter keeps the graph alive, and with it the tables
    del program, tensors
    gc.collect()


def published_recipe(folder: Path) -> str | None:
    """Return the recipe of the model in ``folder``, "" for a foreign model; None if it is not a whole model."""
    path = folder / MODEL_FILE
    if not path.is_file() or not path.stat().st_size:
        return None
    try:
        model = onnx_ir.load(path)
    except DecodeError:
        return None
    tensors = [value.const_value for value in model.graph.initializers.values()]
    ends = [(t.offset or 0) + (t.length or 0) for t in tensors if isinstance(t, onnx_ir.ExternalTensor)]
    data = folder / DATA_FILE
    if ends and (not data.is_file() or data.stat().st_size < max(ends)):
        return None
    return model.metadata_props.get(RECIPE_KEY, "")


def _strip(model: onnx_ir.Model) -> None:
    """Remove what the exporter notes about itself: source paths, stack traces, module names."""
    graph = model.graph
    model.doc_string = graph.doc_string = None
    values = [*graph.inputs, *graph.initializers.values()]
    for node in graph.all_nodes():
        node.doc_string = None
        values.extend(node.outputs)
        node.metadata_props.clear()
    for value in values:
        value.doc_string = None
        value.metadata_props.clear()
        if value.const_value is not None:
            value.const_value.metadata_props.clear()
    graph.metadata_props.clear()
    model.metadata_props.clear()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's notes about its own deprecations and about packages that are not needed."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
