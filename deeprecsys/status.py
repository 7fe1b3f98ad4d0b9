"""The one table between errors and gRPC statuses, used by servers and clients alike.

Each status carries google.rpc.ErrorInfo (its reason is the error's class), beside BadRequest for a wrong query and
RetryInfo for shed load.
"""

from __future__ import annotations

import re

import grpc
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from deeprecsys.errors import (
    CancelledQueryError,
    DeadlineExceededError,
    FieldViolation,
    InternalError,
    InvalidQueryError,
    MessageTooLargeError,
    ModelNotFoundError,
    OverloadedError,
    RankError,
    UnavailableError,
)

DOMAIN = "deeprecsys"
"""ErrorInfo.domain of every status that this project makes."""

CODES: dict[type[RankError], grpc.StatusCode] = {
    InvalidQueryError: grpc.StatusCode.INVALID_ARGUMENT,
    ModelNotFoundError: grpc.StatusCode.NOT_FOUND,
    OverloadedError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    MessageTooLargeError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    DeadlineExceededError: grpc.StatusCode.DEADLINE_EXCEEDED,
    CancelledQueryError: grpc.StatusCode.CANCELLED,
    UnavailableError: grpc.StatusCode.UNAVAILABLE,
    InternalError: grpc.StatusCode.INTERNAL,
}
"""The code of each error."""

_CLASSES = {code: error for error, code in reversed(CODES.items())}
_REASONS = {re.sub(r"(?<!^)(?=[A-Z])", "_", c.__name__.removesuffix("Error")).upper(): c for c in CODES}
_REASON_OF = {error: reason for reason, error in _REASONS.items()}


def to_status(error: RankError) -> status_pb2.Status:
    """Return the rich status of an error."""
    status = status_pb2.Status(code=CODES[type(error)].value[0], message=str(error))
    info = error_details_pb2.ErrorInfo(reason=_REASON_OF[type(error)], domain=DOMAIN)
    status.details.add().Pack(info)
    if isinstance(error, InvalidQueryError):
        bad_request = error_details_pb2.BadRequest()
        for field, description in error.violations:
            bad_request.field_violations.add(field=field, description=description)
        status.details.add().Pack(bad_request)
    if isinstance(error, OverloadedError) and error.retry_after_s is not None:
        delay = Duration()
        delay.FromNanoseconds(round(error.retry_after_s * 1e9))
        status.details.add().Pack(error_details_pb2.RetryInfo(retry_delay=delay))
    return status


def to_error(failure: grpc.RpcError) -> RankError:
    """Return the error of a failed call: from its rich status where the server sent one, else from its code."""
    code: grpc.StatusCode = failure.code()
    message: str = failure.details() or code.name
    status = rpc_status.from_call(failure)
    if status is not None:
        return _from_status(status, code)
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and "larger than max" in message:
        return MessageTooLargeError(message)
    if code is grpc.StatusCode.CANCELLED:
        # The clients never cancel and raise: a bare CANCELLED is a server that stopped before the query began.
        return UnavailableError(message)
    return _make(_CLASSES.get(code, InternalError), message)


def _from_status(status: status_pb2.Status, code: grpc.StatusCode) -> RankError:
    info = error_details_pb2.ErrorInfo()
    bad_request = error_details_pb2.BadRequest()
    retry = error_details_pb2.RetryInfo()
    for detail in status.details:
        for message in (info, bad_request, retry):
            detail.Unpack(message)
    kind = _REASONS.get(info.reason) or _CLASSES.get(code, InternalError)
    if kind is InvalidQueryError:
        violations = [FieldViolation(v.field, v.description) for v in bad_request.field_violations]
        return InvalidQueryError(violations, status.message)
    if kind is OverloadedError and retry.HasField("retry_delay"):
        return OverloadedError(status.message, retry.retry_delay.ToNanoseconds() / 1e9)
    return _make(kind, status.message)


def _make(kind: type[RankError], message: str) -> RankError:
    return InvalidQueryError([], message) if kind is InvalidQueryError else kind(message)
