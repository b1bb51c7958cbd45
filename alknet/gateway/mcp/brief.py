"""A short way for the two requests that make up the traffic: ``tools/call`` and ``tools/list``, answered at once.

The SDK takes several hundred microseconds for a request: tasks, streams and models, each for a reason that a plain
call does not have. So a request that is plainly well formed, and that nothing can be sent along with before its answer,
is answered here with the same message. Whatever is not is the SDK's, errors included: this refuses nothing.

What a client says of itself with each request (the envelope) is judged by the SDK once, and taken as judged when the
same bytes come again.
"""

import asyncio
from collections.abc import Coroutine, Mapping
from functools import lru_cache
from typing import Any, Final

from mcp_types import CLIENT_CAPABILITIES_META_KEY, CLIENT_INFO_META_KEY, PROTOCOL_VERSION_META_KEY
from mcp_types.version import HANDSHAKE_PROTOCOL_VERSIONS

from alknet.call.codecs import JSON
from alknet.gateway.mcp import general
from alknet.gateway.mcp.calling import call_tool
from alknet.gateway.mcp.listing import LIST_TTL_MS, CursorError, page_of
from alknet.gateway.mcp.node import Directory
from alknet.gateway.mcp.results import Result
from alknet.gateway.mcp.server import REQUEST_CANCELLED, Turn
from alknet.gateway.mcp.sessions import OwnedSession
from alknet.gateway.mcp.tools import Revision

__all__ = ["OLD_VERSIONS", "Brief", "Envelopes", "Headers"]

MAX_ENVELOPES: Final = 1000
"""That are known to be good; then all are judged again."""
MAX_ENVELOPE_BYTES: Final = 2048
MAX_ALIKE: Final = 20
"""Of clients with the same name; others with it are judged each time."""
REQUEST_KEYS: Final = frozenset({"jsonrpc", "id", "method", "params"})
CALL_KEYS: Final = frozenset({"name", "arguments", "_meta"})
LIST_KEYS: Final = frozenset({"cursor", "_meta"})
ENVELOPE_KEYS: Final = frozenset({PROTOCOL_VERSION_META_KEY, CLIENT_INFO_META_KEY, CLIENT_CAPABILITIES_META_KEY})
ROUTING_HEADERS: Final = frozenset({b"content-type", b"accept", b"mcp-protocol-version", b"mcp-method", b"mcp-name"})
OLD_VERSIONS: Final = frozenset({None, *(version.encode() for version in HANDSHAKE_PROTOCOL_VERSIONS)})

NEW_VERSION: Final = Revision.NEW.value.encode()
TRACE_KEYS: Final = frozenset({"traceparent", "tracestate"})
"""Other for each request, and read by nobody who judges."""

Headers = Mapping[bytes, bytes]

_CANCELLED: Final = b'"error":{"code":%d,"message":"Request cancelled"}' % REQUEST_CANCELLED


class Envelopes:
    """What clients say of themselves, as far as the SDK has found it good."""

    def __init__(self) -> None:
        self._known: dict[str, list[dict[str, Any]]] = {}
        """By the clients' names, which tell nearly all of them apart."""
        self._count = 0

    def __contains__(self, meta: Any) -> bool:
        found = _judged(meta)
        return found is not None and found in self._known.get(_name(found), ())

    def judged_good(self, meta: Any) -> None:
        """The SDK has served a request with it."""
        found = _judged(meta)
        if found is None or found in self or len(JSON.encode(found)) > MAX_ENVELOPE_BYTES:
            return
        if self._count >= MAX_ENVELOPES:
            self._known.clear()
            self._count = 0
        alike = self._known.setdefault(_name(found), [])
        if len(alike) < MAX_ALIKE:
            alike.append(found)
            self._count += 1


class Brief:
    """Answers what can be answered at once. `stamp` is what the SDK has in ``_meta`` of results of the new revision,
    as a member of an object."""

    def __init__(self, directory: Directory, stamp: bytes) -> None:
        self.envelopes = Envelopes()
        self._directory = directory
        self._stamp = stamp

    async def answer(
        self, message: Any, headers: Headers, repeated: set[bytes], turn: Turn, session: OwnedSession | None
    ) -> bytes | None:
        """The message that answers a request; None for one that is the SDK's."""
        if type(message) is not dict or not message.keys() <= REQUEST_KEYS or message.get("jsonrpc") != "2.0":
            return None
        id, method, params = message.get("id"), message.get("method"), message.get("params", {})
        if type(id) is not int and type(id) is not str:
            return None
        if type(params) is not dict or repeated & ROUTING_HEADERS:
            return None
        if not (_is_json(headers.get(b"content-type", b"")) and _accepts_both(headers.get(b"accept", b""))):
            return None
        revision = self._revision(method, params, headers, session)
        if revision is None:
            return None
        if method == "tools/call":
            result = await self._call(id, params, revision, turn, session)
        elif method == "tools/list":
            result = await self._list(params, revision, turn)
        else:
            return None
        if result is None:
            return None
        shown = b"%d" % id if type(id) is int else JSON.encode(id)
        if result is _CANCELLED:
            return b'{"jsonrpc":"2.0","id":%b,%b}' % (shown, result)
        tail = b',"resultType":"complete"' if revision is Revision.NEW else b""
        return b'{"jsonrpc":"2.0","id":%b,"result":{%b%b}}' % (shown, result, tail)

    def _revision(
        self, method: Any, params: dict[str, Any], headers: Headers, session: OwnedSession | None
    ) -> Revision | None:
        """By which rules it is plainly well formed, if by any."""
        version, meta = headers.get(b"mcp-protocol-version"), params.get("_meta")
        if version in OLD_VERSIONS:
            is_known = session is not None and session.is_initialized
            is_quiet = meta is None and "_meta" not in params
            return Revision.OLD if is_known and is_quiet else None
        if version != NEW_VERSION or headers.get(b"mcp-method", b"").decode("latin-1") != method:
            return None
        if method == "tools/call" and headers.get(b"mcp-name", b"").decode("latin-1") != params.get("name"):
            return None  # it may be the same name in another form; that is the SDK's to say
        if type(meta) is not dict or meta.get(PROTOCOL_VERSION_META_KEY) != Revision.NEW.value:
            return None
        return Revision.NEW if meta in self.envelopes else None

    async def _call(
        self, id: int | str, params: dict[str, Any], revision: Revision, turn: Turn, session: OwnedSession | None
    ) -> bytes | None:
        name, arguments = params.get("name"), params.get("arguments", {})
        if type(name) is not str or type(arguments) is not dict or not params.keys() <= CALL_KEYS:
            return None
        if not self._is_plain(name, arguments):
            return None
        call = call_tool(turn.backend, revision, name, arguments)
        if session is None:
            return (await call).json(self._stamp if revision is Revision.NEW else b"")
        return await _within(session, id, call)

    async def _list(self, params: dict[str, Any], revision: Revision, turn: Turn) -> bytes | None:
        cursor = params.get("cursor")
        if not params.keys() <= LIST_KEYS or (cursor is None and "cursor" in params):
            return None
        if not isinstance(cursor, str | None):
            return None
        try:
            tools = await turn.backend.tools()
            page = page_of(tools, revision, cursor, max_tools=turn.max_tools, is_general=turn.is_general)
        except CursorError:
            return None
        if revision is Revision.OLD:
            return page.json()
        return b'%b,"ttlMs":%d,"cacheScope":"private","_meta":{%b}' % (page.json(), LIST_TTL_MS, self._stamp)

    def _is_plain(self, name: str, arguments: dict[str, Any]) -> bool:
        """Whether it is a call that answers once, and in time: a subscription may go on for ever, and has progress."""
        if name in general.DIRECT:
            return True
        if name == general.CALL:
            operation, peer = arguments.get("operation"), arguments.get("peer")
            if type(operation) is not str or not isinstance(peer, str | None):
                return False
            return self._directory.is_plain(operation.removeprefix("/"), peer)
        tool = self._directory.find(name)
        return tool is not None and not tool.is_stream


async def _within(session: OwnedSession, id: int | str, call: Coroutine[Any, Any, Result]) -> bytes:
    """A call that the session's client may cancel with another message, and that ends with the session."""
    task = asyncio.current_task()
    assert task is not None
    is_cancelled = False

    def cancel() -> None:
        nonlocal is_cancelled
        if not is_cancelled:
            is_cancelled = True
            task.cancel()

    key = str(id)
    session.brief[key] = cancel
    session.in_flight += 1
    try:
        return (await call).json()
    except asyncio.CancelledError:
        if not is_cancelled or task.uncancel() > 0:
            raise
        return _CANCELLED
    finally:
        session.in_flight -= 1
        if session.brief.get(key) is cancel:
            del session.brief[key]


def _judged(meta: Any) -> dict[str, Any] | None:
    """What is judged of an envelope; None for one with more than that in it, which is the SDK's each time."""
    if type(meta) is not dict:
        return None
    if meta.keys() <= ENVELOPE_KEYS:
        return meta
    if not meta.keys() <= ENVELOPE_KEYS | TRACE_KEYS or any(type(meta.get(key, "")) is not str for key in TRACE_KEYS):
        return None
    return {key: value for key, value in meta.items() if key in ENVELOPE_KEYS}


def _name(meta: dict[str, Any]) -> str:
    client = meta.get(CLIENT_INFO_META_KEY)
    name = client.get("name") if type(client) is dict else None
    return name if type(name) is str else ""


@lru_cache(64)
def _is_json(content_type: bytes) -> bool:
    return content_type.partition(b";")[0].strip() == b"application/json"


@lru_cache(256)
def _accepts_both(accept: bytes) -> bool:
    """Whether a client takes JSON and event streams, each said plainly."""
    kinds = {kind.partition(b";")[0].strip() for kind in accept.split(b",")}
    return kinds >= {b"application/json", b"text/event-stream"}
