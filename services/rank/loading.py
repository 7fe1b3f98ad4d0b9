"""Loading: from model directories to models that answer, one after the other, on a thread of their own."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

from deeprecsys.errors import RepositoryError
from scheduler.first_plan import first_plan
from scheduler.plan import Plan
from services.rank.catalogue import Catalogue, ServedModel
from services.rank.cpu import CpuEngine
from services.rank.repository import Listing, build_spec, read_listing
from services.rank.settings import ServeSettings
from services.rank.warmup import warm_up

_log = logging.getLogger(__name__)

SetHealth = Callable[[str, bool], Coroutine[Any, Any, None]]
Add = Callable[[ServedModel, Plan], Plan]
"""Takes a model with the plan that its timing suggests, and returns the one that it begins with."""


async def load_all(
    directories: Sequence[Path],
    catalogue: Catalogue,
    settings: ServeSettings,
    add: Add,
    set_health: SetHealth,
) -> None:
    """Load and warm up every model; a broken one is reported and does not stop the others.

    Raises RepositoryError when none can be served. Cancelling leaves the model that is being loaded out.
    """
    for directory in directories:
        catalogue.expect(directory.name)
        await set_health(directory.name, False)
    for directory in directories:
        await _load_directory(directory, catalogue, settings, add)
        await set_health(directory.name, catalogue.is_ready(directory.name))
    if not any(catalogue.is_ready(d.name) for d in directories):
        raise RepositoryError(
            f"no model of {settings.repository} can be served; run `deeprecsys export`, or mend what is named above"
        )


async def _load_directory(directory: Path, catalogue: Catalogue, settings: ServeSettings, add: Add) -> None:
    try:
        listing = read_listing(directory)
    except RepositoryError as error:
        _broken(catalogue, directory.name, str(error))
        return
    for version in listing.versions:
        try:
            model, timed = await asyncio.to_thread(_load, listing, version, settings)
        except RepositoryError as error:
            _broken(catalogue, directory.name, f"version {version}: {error}")
            continue
        plan = add(model, timed)
        catalogue.ready(model)
        _log.info("model ready", extra={"model": model.spec.key, "batch_size": plan.point.batch_size})


def _broken(catalogue: Catalogue, name: str, fault: str) -> None:
    catalogue.broken(name, fault)
    _log.error("model cannot be served", extra={"model": name, "reason": fault})


def _load(listing: Listing, version: str, settings: ServeSettings) -> tuple[ServedModel, Plan]:
    """Open one version and time its first batches."""
    try:
        return _open(listing, version, settings)
    except RepositoryError:
        raise
    except Exception as error:
        _log.exception("model cannot be served", extra={"model": f"{listing.name}/{version}"})
        raise RepositoryError(f"{type(error).__name__} while loading; the log has the trace") from error


def _open(listing: Listing, version: str, settings: ServeSettings) -> tuple[ServedModel, Plan]:
    engine = CpuEngine(listing.model_file(version))
    spec = build_spec(listing, version, engine.ports())
    timing = warm_up(engine, spec, settings.warmup_s)
    plan = first_plan(
        timing.sizes,
        timing.seconds,
        sla_s=spec.sla.seconds,
        largest_batch=spec.largest_batch,
        whole=spec.whole,
    )
    return ServedModel(spec, engine), plan
