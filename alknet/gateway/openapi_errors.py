"""How calls fail, for an OpenAPI document: the problem document, and the statuses that every operation may answer."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from alknet.gateway.problems import DOMAIN_STATUS, PROBLEM

__all__ = ["DOMAIN_STATUS", "PROBLEM_SCHEMA", "components", "headers_of", "problem_content", "responses_of"]

PROBLEM_TYPE: Final = PROBLEM.decode("ascii")
PROBLEM_SCHEMA: Final[dict[str, Any]] = {
    "type": "object",
    "description": "Why a call failed: a problem document (RFC 9457) that also holds the call's own error.",
    "required": ["type", "title", "status", "detail", "code", "message", "retryable"],
    "properties": {
        "type": {"type": "string", "description": "What kind of problem it is, as a URI; about:blank."},
        "title": {"type": "string", "description": "The status in words."},
        "status": {"type": "integer", "description": "The HTTP status."},
        "detail": {"type": "string", "description": "What went wrong, in a sentence."},
        "code": {"type": "string", "description": "What went wrong, for programs: NOT_FOUND, OUT_OF_STOCK, …"},
        "message": {"type": "string", "description": "The same as detail."},
        "retryable": {"type": "boolean", "description": "Whether the same call may succeed later."},
        "details": {"description": "More about it. For INVALID_INPUT a list of mistakes, each with path and message."},
        "denial_id": {"type": "string", "description": "Names a refusal, which the node's operator can look up."},
        "request_id": {"type": "string", "description": "Names this call in the node's audit log."},
    },
}


@dataclass(frozen=True, slots=True)
class _Response:
    """An answer that does not depend on the operation. `headers` are names in components/headers."""

    name: str
    description: str
    only: str = ""
    """Where it can occur when that is not everywhere: ``body`` or ``key`` (of idempotency)."""
    headers: tuple[str, ...] = ()


_RESPONSES: Final = {
    400: _Response("BadRequest", "The request cannot be read: its body is no JSON, or a header makes no sense."),
    401: _Response(
        "Unauthorized", "The token is not valid, or there is none and the operation is not public.",
        headers=("WWW-Authenticate",),
    ),
    403: _Response("Forbidden", "The caller may not do this; denial_id names the refusal."),
    404: _Response("NotFound", "There is no such operation, or it did not find what it was asked for."),
    408: _Response("RequestTimeout", "The body did not arrive in time.", only="body"),
    409: _Response(
        "Conflict",
        "The request with this Idempotency-Key is being done, was cut short, or had an answer too large to keep.",
        only="key",
    ),
    413: _Response("ContentTooLarge", "The body is larger than the node takes.", only="body"),
    415: _Response("UnsupportedMediaType", "The body is not sent as application/json.", only="body"),
    422: _Response("InvalidInput", "The input is not as the schema says; details say where."),
    429: _Response("TooManyRequests", "A limit of the node or of the caller is reached.", headers=("Retry-After",)),
    500: _Response("InternalError", "The operation failed unexpectedly; the node's log says why."),
    503: _Response("Unavailable", "The node shuts down, or cannot reach what it needs.", headers=("Retry-After",)),
    504: _Response("Timeout", "The call took longer than it may."),
}  # fmt: skip
"""By status: what every operation may answer besides its own errors."""

_HEADERS: Final[dict[str, Any]] = {
    "Alknet-Request-Id": {
        "description": "Names this call in the node's audit log.",
        "schema": {"type": "string"},
    },
    "Idempotent-Replayed": {
        "description": "true where the answer is the one that was given the first time.",
        "schema": {"type": "string"},
    },
    "Retry-After": {"description": "Seconds to wait before the next try.", "schema": {"type": "integer"}},
    "WWW-Authenticate": {"description": "Bearer.", "schema": {"type": "string"}},
}


def components() -> dict[str, Any]:
    """``components/responses`` and ``components/headers``."""
    return {
        "responses": {
            one.name: {
                "description": one.description,
                **headers_of(one.headers),
                "content": problem_content([{"$ref": "#/components/schemas/Problem"}]),
            }
            for one in sorted(_RESPONSES.values(), key=lambda one: one.name)
        },
        "headers": dict(_HEADERS),
    }


def problem_content(schemas: list[dict[str, Any]]) -> dict[str, Any]:
    """A body that is a problem of one of these schemas.

    The general one, last in the list, fits declared errors as well, hence anyOf; those differ by their code.
    """
    is_open = any(schema.get("$ref") == "#/components/schemas/Problem" for schema in schemas)
    schema = schemas[0] if len(schemas) == 1 else {"anyOf" if is_open else "oneOf": schemas}
    return {PROBLEM_TYPE: {"schema": schema}}


def responses_of(
    declared: Mapping[int, list[tuple[str, dict[str, Any]]]], *, has_body: bool, has_key: bool
) -> dict[str, Any]:
    """Every failure of an operation by status. `declared` are its own: (description, reference to the schema)."""
    possible = {"": True, "body": has_body, "key": has_key}
    common = {status: one for status, one in _RESPONSES.items() if possible[one.only]}
    found: dict[str, Any] = {}
    for status in sorted({*common, *declared}):
        own = declared.get(status, [])
        shared = common.get(status)
        if shared is not None and not own:
            found[str(status)] = {"$ref": f"#/components/responses/{shared.name}"}
            continue
        words = [description for description, _ in own] + ([] if shared is None else [shared.description])
        schemas = [schema for _, schema in own]
        if shared is not None:
            schemas.append({"$ref": "#/components/schemas/Problem"})
        found[str(status)] = {
            "description": "\n\n".join(dict.fromkeys(words)),
            **headers_of(() if shared is None else shared.headers),
            "content": problem_content(schemas),
        }
    return found


def headers_of(names: Iterable[str]) -> dict[str, Any]:
    """The headers of a response, by reference; nothing for none."""
    found = {name: {"$ref": f"#/components/headers/{name}"} for name in names}
    return {"headers": found} if found else {}
