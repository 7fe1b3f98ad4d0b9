from __future__ import annotations

from pathlib import Path

import pytest

from services.models.export import Exported, Progress, export
from services.models.spec import SLUGS


@pytest.fixture(scope="session")
def steps() -> list[Progress]:
    return []


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory, steps: list[Progress]) -> dict[str, Exported]:
    """All eight at scale tiny, exported once for the whole run: read only."""
    repository = tmp_path_factory.mktemp("repository")
    return {found.slug: found for found in export(SLUGS, repository, "tiny", seed=3, progress=steps.append)}


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    return tmp_path / "models"
