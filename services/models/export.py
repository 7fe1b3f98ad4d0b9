"""Export: from a spec to a checked, published model in Triton's repository layout.

A version is built and checked in a hidden folder of the repository and then renamed into its place, so that a
server sees all of it or nothing, and a published version is never written to again: ONNX Runtime maps the
file of a live session.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from deeprecsys.errors import ExportError, InvalidSettingError
from services.models import parity
from services.models.parity import Parity, first_line
from services.models.spec import SLUGS, ModelSpec, spec_for
from services.models.triton_config import CONFIG_FILE, config_text

if TYPE_CHECKING:
    from torch import nn

Step = Literal["build", "write", "check", "publish", "already there"]
STEPS: tuple[Step, ...] = ("build", "write", "check", "publish")

MAX_SEED = 2**63 - 1
SPARE_BYTES = 100_000_000  # for what is beside the tables


class Progress(NamedTuple):
    """A step about to begin: of which model, and the how-manyth model of how many (from 1)."""

    slug: str
    step: Step
    model: int
    models: int


@dataclass(frozen=True)
class Exported:
    """One model's result. ``parity`` is None where the version was there already and nothing was done."""

    slug: str
    version: int
    path: Path
    file_bytes: int
    table_bytes: int
    parity: Parity | None
    seconds: float

    @property
    def already_there(self) -> bool:
        """Whether this version had been published before."""
        return self.parity is None


def export(
    slugs: Sequence[str] = SLUGS,
    repository: Path = Path("model_repository"),
    scale: str = "laptop",
    seed: int = 0,
    version: int = 1,
    overrides: Mapping[str, object] | None = None,
    progress: Callable[[Progress], None] = lambda _: None,
) -> tuple[Exported, ...]:
    """Publish ``slugs`` as ``<repository>/<slug>/<version>/model.onnx`` with a ``config.pbtxt`` each.

    ``overrides`` change every one of the specs (see ``spec_for``). A version that was published from the same
    recipe (spec and seed) is left as it is. Raises InvalidSettingError for settings that cannot work, before
    anything is written, and ExportError if a model cannot be built, written, or does not pass its check, or if
    the version is taken by another recipe; models published before that stay.
    """
    specs = [spec_for(slug, scale, **(overrides or {})) for slug in slugs]
    if version < 1:
        raise ExportError(f"a version is a number from 1 on, not {version}")
    if not 0 <= seed <= MAX_SEED:
        raise InvalidSettingError(f"a seed is a number from 0 to {MAX_SEED}, not {seed}")
    results = []
    for number, spec in enumerate(specs, start=1):

        def report(step: Step, spec: ModelSpec = spec, number: int = number) -> None:
            progress(Progress(spec.slug, step, number, len(specs)))

        results.append(export_one(spec, repository, seed, version, report))
    return tuple(results)


def export_one(
    spec: ModelSpec,
    repository: Path,
    seed: int = 0,
    version: int = 1,
    report: Callable[[Step], None] = lambda _: None,
    build: Callable[[ModelSpec, int], nn.Module] | None = None,
) -> Exported:
    """Publish one model; ``build`` replaces the way its torch module is made. Raises as ``export`` does."""
    started = time.monotonic()
    torch_side = _torch_side()
    recipe = recipe_of(spec, seed)
    place = repository / spec.slug / str(version)
    measured = None
    with _disk_errors(repository, spec.slug):
        if place.exists():
            report("already there")
            _same_recipe(torch_side, place, recipe)
            _write_config(spec, place.parent, keep=True)
        else:
            measured = _publish(torch_side, spec, seed, recipe, place, report, build)
        file_bytes = sum(file.stat().st_size for file in place.iterdir())
    return Exported(
        slug=spec.slug,
        version=version,
        path=place,
        file_bytes=file_bytes,
        table_bytes=spec.table_bytes,
        parity=measured,
        seconds=time.monotonic() - started,
    )


def recipe_of(spec: ModelSpec, seed: int) -> str:
    """Return what a model is made from, as JSON; it is kept in the model's metadata."""
    fields = dataclasses.asdict(spec)
    del fields["scale"]  # a name for row counts, which are there themselves
    return json.dumps({"seed": seed, "spec": fields}, sort_keys=True, separators=(",", ":"))


class _TorchSide(NamedTuple):
    """The modules that need the extra."""

    build: ModuleType
    onnx_file: ModuleType


def _torch_side() -> _TorchSide:
    """Import what needs torch, onnx and onnxscript: the one place where the extra may be missing."""
    try:
        import onnxscript  # noqa: F401 (torch imports it in the middle of an export)

        from services.models import build, onnx_file
    except ModuleNotFoundError as missing:
        raise ExportError(
            f'exporting needs {missing.name}; install the extra: pip install "deeprecsys[export]"'
        ) from missing
    return _TorchSide(build, onnx_file)


def _publish(
    torch_side: _TorchSide,
    spec: ModelSpec,
    seed: int,
    recipe: str,
    place: Path,
    report: Callable[[Step], None],
    build: Callable[[ModelSpec, int], nn.Module] | None,
) -> Parity:
    """Build, write and check in a hidden folder, then rename it to ``place``."""
    repository = place.parent.parent
    repository.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng([seed, 1])
    _enough_space(repository, spec)
    with _hidden_folder(repository, spec.slug) as folder:
        report("build")
        with _torch_faults(spec.slug, "build"):
            model = (build or torch_side.build.build)(spec, seed)
            # torch answers first: its tables are gone before ONNX Runtime maps the file.
            expected = parity.references(spec, torch_side.build.scorer(model, spec), rng)
        report("write")
        with _torch_faults(spec.slug, "write"):
            torch_side.onnx_file.write_onnx(model, spec, recipe, folder)
        del model
        report("check")
        measured = parity.check(spec, folder / torch_side.onnx_file.MODEL_FILE, expected, rng)
        report("publish")
        place.parent.mkdir(exist_ok=True)
        _write_config(spec, place.parent, keep=False)
        folder.chmod(0o755)
        folder.rename(place)  # fails, and replaces nothing, if another export was faster
    return measured


def _enough_space(repository: Path, spec: ModelSpec) -> None:
    free = shutil.disk_usage(repository).free
    needed = spec.table_bytes + SPARE_BYTES
    if free < needed:
        raise ExportError(
            f"{spec.slug}: needs {needed / 1e9:.1f} GB in {repository}, but {free / 1e9:.1f} GB are free; "
            "choose another with --repository, or a smaller --scale"
        )


@contextmanager
def _hidden_folder(repository: Path, slug: str) -> Iterator[Path]:
    """Make a folder in the repository's own file system, gone afterwards unless it was renamed."""
    folder = Path(tempfile.mkdtemp(prefix=f".export-{slug}-", dir=repository))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _disk_errors(repository: Path, slug: str) -> Iterator[None]:
    """Turn what the file system refuses into one line."""
    try:
        yield
    except OSError as error:
        what = error.strerror or type(error).__name__
        where = f" ({error.filename})" if error.filename else ""
        raise ExportError(
            f"{slug}: cannot write to {repository}: {what}{where}; choose another with --repository"
        ) from error


@contextmanager
def _torch_faults(slug: str, step: Step) -> Iterator[None]:
    """Turn what torch and numpy raise, for want of memory most of all, into one line."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        raise ExportError(f"{slug}: cannot {step} the model: {first_line(error)}") from error


def _same_recipe(torch_side: _TorchSide, place: Path, recipe: str) -> None:
    """Raise ExportError unless the published version is whole and was made from ``recipe``."""
    found = torch_side.onnx_file.published_recipe(place)
    if found is None:
        raise ExportError(f"{place} is not a whole model: remove it, or export another with --version")
    if found != recipe:
        raise ExportError(
            f"{place} was published from other settings (scale, seed, overrides) and is never changed: "
            "export another version with --version, or to another repository with --repository"
        )


def _write_config(spec: ModelSpec, folder: Path, *, keep: bool) -> None:
    """Write ``config.pbtxt`` in one rename; an existing one is left alone if ``keep`` or if it is the same."""
    config, text = folder / CONFIG_FILE, config_text(spec)
    if config.exists() and (keep or config.read_text(encoding="utf-8") == text):
        return
    draft = folder / f".{CONFIG_FILE}.{os.getpid()}"
    draft.write_text(text, encoding="utf-8")
    draft.replace(config)
