"""The eight models at scale tiny."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from services.models.export import Exported
from services.models.spec import SLUGS


@pytest.fixture(scope="session")
def eight(exported: Mapping[str, Exported]) -> Path:
    """A repository of all eight."""
    paths = [exported[slug].path for slug in SLUGS]
    return paths[0].parents[1]
