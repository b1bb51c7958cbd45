"""How a failed call looks over HTTP: a status, and a problem document (RFC 9457) that also has the call's own error."""

import math
from collections.abc import Iterable, Mapping
from http import HTTPStatus
from typing import Any, Final

from alknet.call.codecs import JSON, EncodeError
from alknet.call.errors import CallError
from alknet.call.specs import OperationSpec

__all__ = ["PROBLEM", "STATUS", "HttpError", "error_fields", "problem_of", "status_of"]

PROBLEM: Final = b"application/problem+json"

STATUS: Final = {
    "NOT_FOUND": 404,
    "FORBIDDEN": 403,
    "INVALID_INPUT": 422,
    "INVALID_OPERATION_TYPE": 400,
    "INTERNAL": 500,
    "TIMEOUT": 504,
    "UNAVAILABLE": 503,
    "RESOURCE_EXHAUSTED": 429,
}
"""The HTTP status of each of the protocol's own codes; FORBIDDEN is 401 to somebody who has not said who they are."""
DOMAIN_STATUS: Final = 500
"""Of a declared error that names no status."""
MAX_RETRY_AFTER_S: Final = 86400
RETRY_AFTER_S: Final = 1
"""What a caller is asked to wait when nothing better is known."""


class HttpError(CallError):
    """A request that failed as HTTP, before or beside any operation: it brings its own status and headers."""

    def __init__(
        self, status: int, code: str, message: str, *, headers: Iterable[tuple[bytes, bytes]] = (), **facts: Any
    ) -> None:
        super().__init__(code, message, **facts)
        self.status = status
        self.headers = tuple(headers)


def status_of(error: CallError, spec: OperationSpec | None, *, is_anonymous: bool) -> int:
    """The HTTP status that `error`, of the operation `spec` if it is known, is answered with."""
    if isinstance(error, HttpError):
        return error.status
    if error.code == "FORBIDDEN":
        return 401 if is_anonymous else 403
    if error.code in STATUS:
        return STATUS[error.code]
    declared = None if spec is None else spec.error(error.code)
    return DOMAIN_STATUS if declared is None or declared.http_status is None else declared.http_status


def error_fields(error: CallError, request_id: str | None) -> dict[str, Any]:
    """The call's own error, as every surface has it."""
    fields: dict[str, Any] = {"code": error.code, "message": str(error), "retryable": error.retryable}
    if error.details is not None:
        fields["details"] = error.details
    if error.denial_id is not None:
        fields["denial_id"] = error.denial_id
    if request_id := request_id or error.request_id:
        fields["request_id"] = request_id
    return fields


def problem_of(
    error: CallError, status: int, request_id: str | None
) -> tuple[bytes, list[tuple[bytes, bytes]], Mapping[str, Any]]:
    """(the document, the headers that go with it, the document as a value)."""
    fields = error_fields(error, request_id)
    document = {"type": "about:blank", "title": _title(status), "status": status, "detail": str(error), **fields}
    try:
        body = JSON.encode(document)
    except EncodeError:  # details that a handler made up
        document.pop("details", None)
        body = JSON.encode(document)
    headers = list(error.headers) if isinstance(error, HttpError) else []
    if status == HTTPStatus.UNAUTHORIZED:
        headers.append((b"www-authenticate", b'Bearer realm="alknet"'))
    elif error.retryable and status in (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE):
        headers.append((b"retry-after", b"%d" % _retry_after(error.details)))
    return body, headers, document


def _title(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Error"


def _retry_after(details: Any) -> int:
    """Whole seconds; an operation may say so in its details."""
    told = details.get("retry_after") if isinstance(details, dict) else None
    if not isinstance(told, int | float) or math.isnan(told):
        return RETRY_AFTER_S
    return round(max(RETRY_AFTER_S, min(told, MAX_RETRY_AFTER_S)))
