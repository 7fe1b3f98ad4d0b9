"""Errors become statuses and come back as the same errors."""

from __future__ import annotations

import grpc
import pytest
from grpc_status import rpc_status

from deeprecsys import errors
from deeprecsys.status import CODES, to_error, to_status


class Failure(grpc.RpcError):
    """A failed call as a client sees it."""

    def __init__(
        self, code: grpc.StatusCode, details: str, metadata: tuple[tuple[str, bytes], ...] = ()
    ) -> None:
        self._answer = (code, details, metadata)

    def code(self) -> grpc.StatusCode:
        return self._answer[0]

    def details(self) -> str:
        return self._answer[1]

    def trailing_metadata(self) -> tuple[tuple[str, bytes], ...]:
        return self._answer[2]


def through_the_wire(error: errors.RankError) -> errors.RankError:
    status = rpc_status.to_status(to_status(error))
    return to_error(Failure(status.code, status.details, status.trailing_metadata))


@pytest.mark.parametrize("kind", CODES)
def test_every_error_comes_back_as_itself(kind: type[errors.RankError]) -> None:
    error = (
        kind([errors.FieldViolation("top_k", "must be 0")])
        if kind is errors.InvalidQueryError
        else kind("what happened")
    )
    back = through_the_wire(error)
    assert type(back) is kind
    assert str(back) == str(error)


def test_violations_and_the_advice_to_retry_survive() -> None:
    violations = [
        errors.FieldViolation("inputs[ids].data", "too large"),
        errors.FieldViolation("task", "unknown"),
    ]
    wrong = through_the_wire(errors.InvalidQueryError(violations))
    assert isinstance(wrong, errors.InvalidQueryError)
    assert list(wrong.violations) == violations
    busy = through_the_wire(errors.OverloadedError("full", retry_after_s=0.25))
    assert isinstance(busy, errors.OverloadedError)
    assert busy.retry_after_s == 0.25


@pytest.mark.parametrize(
    ("code", "details", "kind"),
    [
        (
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            "Received message larger than max (5 vs. 4)",
            errors.MessageTooLargeError,
        ),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "Concurrent RPC limit exceeded!", errors.OverloadedError),
        (grpc.StatusCode.UNAVAILABLE, "failed to connect", errors.UnavailableError),
        (grpc.StatusCode.CANCELLED, "the server went away", errors.UnavailableError),
        (grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded", errors.DeadlineExceededError),
        (grpc.StatusCode.INVALID_ARGUMENT, "bad", errors.InvalidQueryError),
        (grpc.StatusCode.UNKNOWN, "?", errors.InternalError),
    ],
)
def test_statuses_of_grpc_itself_become_errors_by_their_code(
    code: grpc.StatusCode, details: str, kind: type[errors.RankError]
) -> None:
    assert type(to_error(Failure(code, details))) is kind
