"""What the dispatcher asks of a backend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from deeprecsys.tensors import Array


class Engine(Protocol):
    """Runs one model. ``run`` is called from worker threads, several at once, and must release the GIL."""

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> list[Array]:
        """Score n candidates: every input has the first axis n, and so has each of the named outputs returned.

        Raises EngineError when the backend fails.
        """
        ...


class EngineError(Exception):
    """An inference failed inside a backend; the text is for the log and never for a client."""
