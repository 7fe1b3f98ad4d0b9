"""The one error tree of the project: what a server answers and a client raises are the same classes.

``deeprecsys.status`` holds the one table between these classes and gRPC codes, used in both directions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class DeepRecSysError(Exception):
    """The root: catch this to catch everything that DeepRecSys raises on purpose."""


class InvalidSettingError(DeepRecSysError):
    """A flag, an environment variable, a file entry or an argument has a value that cannot work."""


class ExportError(DeepRecSysError):
    """A model could not be exported, or failed its check; nothing was published."""


class RepositoryError(DeepRecSysError):
    """A model directory cannot be served; the message says which file and why."""


class RankError(DeepRecSysError):
    """A query got no ranking. The subclasses say whose fault it was and whether a retry can help."""


class FieldViolation(NamedTuple):
    """One field of a query that breaks a rule: ``field`` as a path, ``description`` says what would be right."""

    field: str
    description: str


class InvalidQueryError(RankError):
    """The query itself is wrong; sending it again cannot help. ``violations`` names each wrong field."""

    def __init__(self, violations: Sequence[FieldViolation], message: str | None = None) -> None:
        self.violations = tuple(violations)
        super().__init__(message or "; ".join(f"{v.field}: {v.description}" for v in self.violations))


class ModelNotFoundError(RankError):
    """No such model or version is served here; the message names the known ones."""


class OverloadedError(RankError):
    """The query was refused to protect the others; ``retry_after_s`` is the server's advice in seconds.

    ``limit``: what was at its end, for the server's own counts; a client gets it in the message only.
    """

    def __init__(self, message: str, retry_after_s: float | None = None, limit: str = "") -> None:
        self.retry_after_s = retry_after_s
        self.limit = limit
        super().__init__(message)


class MessageTooLargeError(RankError):
    """The request or the response exceeds the message limit of one of the two sides."""


class DeadlineExceededError(RankError):
    """The deadline passed, or would certainly have passed, before an answer was ready."""


class CancelledQueryError(RankError):
    """The caller gave the query up."""


class UnavailableError(RankError):
    """The server is not there, is starting or is draining: the same query may succeed elsewhere or later."""


class InternalError(RankError):
    """A fault of the server; its log has the trace."""
