"""The four tools that reach every operation: ``search``, ``schema``, ``call``, ``batch``.

They stand in for the tools of the single operations where these are too many for a model to be shown at once.
"""

import asyncio
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from alknet.call.codecs import JSON, EncodeError
from alknet.call.errors import CallError
from alknet.call.specs import MAX_NAME_CHARS
from alknet.gateway.mcp.backend import Backend
from alknet.gateway.mcp.results import MAX_RESULT_BYTES, Result, encoded, failed
from alknet.gateway.problems import error_fields

__all__ = ["BATCH", "CALL", "DIRECT", "MAX_BATCH", "NAMES", "SCHEMA", "SEARCH", "TOOLS", "Asked", "batch", "call_of"]

SEARCH: Final = "search"
SCHEMA: Final = "schema"
CALL: Final = "call"
BATCH: Final = "batch"
NAMES: Final = (SEARCH, SCHEMA, CALL, BATCH)
"""No operation's tool has one of these names: each of those has a dot."""
DIRECT: Final[Mapping[str, str]] = {SEARCH: "services/list", SCHEMA: "services/schema"}
"""Which operation a tool is, under another name."""
MAX_BATCH: Final = 50
"""Calls in one batch."""
MAX_CONCURRENT: Final = 8
"""Calls of one batch that run at the same time."""
MAX_PEER_CHARS: Final = 256

_PEER: Final = {
    "type": "string",
    "description": "A connected peer of this node, whose operation is meant; without it, this node's own.",
}
_OPERATION: Final = {
    "type": "object",
    "properties": {
        "operation": {"type": "string", "description": "Its name, such as fs/read."},
        "input": {"type": "object", "description": "Its input, as its schema says.", "default": {}},
        "peer": _PEER,
    },
    "required": ["operation"],
    "additionalProperties": False,
}
_READ_ONLY: Final = {"readOnlyHint": True, "destructiveHint": False, "idempotentHint": True}
_ANYTHING: Final = {"readOnlyHint": False, "destructiveHint": True, "idempotentHint": False}

TOOLS: Final[tuple[Mapping[str, Any], ...]] = (
    {
        "name": BATCH,
        "title": "Call several operations",
        "description": f"Call up to {MAX_BATCH} operations at once. They fail or succeed one by one; the results are in"
        " the order of the calls.",
        "inputSchema": {
            "type": "object",
            "properties": {"calls": {"type": "array", "items": _OPERATION, "maxItems": MAX_BATCH}},
            "required": ["calls"],
            "additionalProperties": False,
        },
        "outputSchema": {
            "type": "object",
            "properties": {
                "results": {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "properties": {
                            "isError": {"type": "boolean"},
                            "output": {"description": "What the operation answered, if it did not fail."},
                            "error": {"type": "object", "description": "How it failed: code, message, retryable, …"},
                        },
                        "required": ["isError"],
                    },
                }
            },
            "required": ["results"],
        },
        "annotations": _ANYTHING,
    },
    {
        "name": CALL,
        "title": "Call an operation",
        "description": "Call an operation by its name. Find it with 'search'; 'schema' says what it takes. The result"
        " of a subscription is an object with its items, which also come as progress.",
        "inputSchema": _OPERATION,
        "annotations": _ANYTHING,
    },
    {
        "name": SCHEMA,
        "title": "How an operation is called",
        "description": "What an operation takes and answers (JSON Schemas), its errors, and what it asks of callers.",
        "inputSchema": {
            "type": "object",
            "properties": {
                "name": {"type": "string", "description": "The operation, such as fs/read."},
                "peer": _PEER,
            },
            "required": ["name"],
            "additionalProperties": False,
        },
        "outputSchema": {"type": "object"},
        "annotations": _READ_ONLY,
    },
    {
        "name": SEARCH,
        "title": "Find operations",
        "description": "The operations that you may call. 'query' is words that are looked for in names, summaries and"
        " tags; without it all are listed. 'next_cursor' as 'cursor' gives the next page.",
        "inputSchema": {
            "type": "object",
            "properties": {
                "query": {"type": "string"},
                "namespace": {"type": "string", "description": "Only of this namespace, such as fs."},
                "kind": {"type": "string", "description": "Only query, mutation or subscription."},
                "cursor": {"type": "string"},
                "limit": {"type": "integer", "minimum": 1, "maximum": 1000},
                "peer": _PEER,
            },
            "additionalProperties": False,
        },
        "outputSchema": {
            "type": "object",
            "properties": {
                "operations": {"type": "array", "items": {"type": "object"}},
                "next_cursor": {"type": ["string", "null"]},
            },
            "required": ["operations", "next_cursor"],
        },
        "annotations": _READ_ONLY,
    },
)
"""In the order of their names; the same in both revisions."""


class Asked(NamedTuple):
    """What one of the tools is asked for. `peer`: at which connected peer of the node, if not here."""

    operation: str
    input: Any
    peer: str | None = None


def call_of(name: str, arguments: Mapping[str, Any]) -> Asked:
    """What ``search``, ``schema`` or ``call`` is asked for; raises `CallError`."""
    return Asked(DIRECT[name], arguments) if name in DIRECT else _call(arguments, "input")


async def batch(backend: Backend, arguments: Mapping[str, Any]) -> Result:
    """The answer of ``batch``; cancelling it cancels what runs."""
    calls = arguments.get("calls")
    try:
        if not isinstance(calls, list) or len(arguments) != 1:
            raise _invalid("input: should be an object with 'calls', a list")
        if len(calls) > MAX_BATCH:
            raise _invalid(f"input.calls: should have at most {MAX_BATCH} calls")
    except CallError as exc:
        return failed(exc)
    places = asyncio.Semaphore(MAX_CONCURRENT)
    async with asyncio.TaskGroup() as group:
        running = [group.create_task(_one(backend, places, index, call)) for index, call in enumerate(calls)]
    bodies, room = [], MAX_RESULT_BYTES
    for task in running:
        body = task.result()
        room -= len(body)
        bodies.append(body if room >= 0 else _error(_FULL, None))
    return Result(b'{"results":[%b]}' % b",".join(bodies))


_FULL: Final = CallError(
    "RESOURCE_EXHAUSTED", "the call was made, but its output finds no room in this answer", retryable=False
)


async def _one(backend: Backend, places: asyncio.Semaphore, index: int, call: Any) -> bytes:
    request_id = None
    async with places:
        try:
            asked = _call(call, f"input.calls.{index}")
            run = await backend.begin(asked.operation, asked.input, peer=asked.peer, streaming=False)
            request_id = run.request_id
            return b'{"isError":false,"output":%b}' % encoded(await run.call())
        except CallError as exc:
            return _error(exc, request_id)


def _error(error: CallError, request_id: str | None) -> bytes:
    fields = error_fields(error, request_id)
    try:
        return JSON.encode({"isError": True, "error": fields})
    except EncodeError:  # details that a handler made up
        fields.pop("details", None)
        return JSON.encode({"isError": True, "error": fields})


def _call(call: Any, place: str) -> Asked:
    operation = call.get("operation") if isinstance(call, dict) else None
    if not isinstance(operation, str) or not set(call) <= {"operation", "input", "peer"}:
        raise _invalid(f"{place}: should be an object with 'operation', a name, and 'input' (and 'peer')")
    if len(operation) > MAX_NAME_CHARS + 1:
        raise _invalid(f"{place}.operation: should have at most {MAX_NAME_CHARS} characters")
    peer = call.get("peer")
    if peer is not None and not (isinstance(peer, str) and 0 < len(peer) <= MAX_PEER_CHARS):
        raise _invalid(f"{place}.peer: should be the name of a connected peer")
    return Asked(operation.removeprefix("/"), call.get("input", {}), peer)


def _invalid(words: str) -> CallError:
    return CallError("INVALID_INPUT", words)
