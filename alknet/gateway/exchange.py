"""One HTTP request and its answer, as the gateway's routes see them."""

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import parse_qsl

from starlette.types import Message, Receive, Scope, Send

from alknet.access import Identity
from alknet.alpn.streams import Connection
from alknet.call.codecs import JSON, EncodeError
from alknet.call.context import Caller
from alknet.call.errors import CallError, FrameError
from alknet.gateway.problems import PROBLEM, HttpError, problem_of, status_of

__all__ = ["JSON_TYPE", "Exchange", "Visit", "too_large"]

JSON_TYPE: Final = b"application/json"
LENGTH: Final = b"content-length"
MAX_QUERY_FIELDS: Final = 100
WITHOUT_CONTENT: Final = (204, 304)
REQUEST_ID: Final = b"alknet-request-id"
"""Under which the audit log has the call or the refusal."""
NO_STORE: Final = ((b"cache-control", b"no-store"), (b"x-content-type-options", b"nosniff"))


@dataclass(slots=True, eq=False)
class Visit:
    """One connection of an HTTP client. `known` are the credentials (``via``) that it was let in with."""

    connection: Connection
    scheme: str
    surface: str
    is_outside: bool = False
    """In plaintext, and not from this machine."""
    known: set[str] = field(default_factory=set)
    bearer: tuple[bytes, object, Identity] | None = None
    """The last credential that was good: the header, the policy that it was good by, and whose it is."""
    good_host: tuple[str | None, object] | None = None
    """The last Host that was good, and the settings that it was good by."""
    refused: int = 0
    """Credentials that it has shown in vain."""
    is_guest: bool = False
    """It has one of the places for those who are nobody."""
    take_body: Callable[[Scope], bytes | None] = lambda scope: None
    """The body of the request of this scope, if all of it is there."""
    write_answer: Callable[[Scope, int, Iterable[tuple[bytes, bytes]], bytes], bool] = lambda *answer: False
    """Writes the whole answer to the request of this scope at once; False, and nothing is done, if that cannot be."""
    cut: Callable[[], None] = lambda: None
    """Ends the connection at once, in the middle of an answer."""
    over: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the connection has ended, as HTTP or as a WebSocket."""


class Exchange:
    """A request and its answer. Use the methods in that order: read, then answer once."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scope = scope
        self.visit: Visit = scope["state"]["visit"]
        self.path: str = scope["path"]
        self.is_websocket = scope["type"] == "websocket"
        self.method: str = "GET" if self.is_websocket else scope["method"]
        self.receive = receive
        self.send = send
        self._start: Message | None = None
        """Of an answer that is known to come whole, until it does."""
        self.headers: dict[bytes, bytes] = {}
        self.repeated: set[bytes] = set()
        for name, value in scope["headers"]:
            if name in self.headers:
                self.repeated.add(name)
            else:
                self.headers[name] = value
        self.identity: Identity | None = None
        self.traceparent = ""
        self.more_headers: list[tuple[bytes, bytes]] = []
        """Go with every answer."""
        self.has_begun = False
        """Whether an answer's first bytes are on their way."""

    # --- the request ------------------------------------------------------------------------------------------------

    def header(self, name: bytes) -> str | None:
        """A header's value; None where it is missing or stands there twice."""
        value = self.headers.get(name)
        return None if value is None or name in self.repeated else value.decode("latin-1")

    def caller(self, surface: str | None = None) -> Caller:
        """Who sends this, as the dispatcher has it."""
        connection = self.visit.connection
        host = None if connection.remote is None else connection.remote.host
        return Caller(self.identity, surface or self.visit.surface, connection.id, host)

    def query(self) -> list[tuple[str, str]]:
        """The fields of the query string; raises `HttpError`."""
        try:
            return parse_qsl(
                self.scope["query_string"].decode("ascii"),
                keep_blank_values=True,
                strict_parsing=bool(self.scope["query_string"]),
                errors="strict",
                max_num_fields=MAX_QUERY_FIELDS,
            )
        except ValueError as exc:
            raise HttpError(400, "INVALID_INPUT", f"the query string cannot be read: {exc}") from exc

    async def body(self, limit: int) -> bytes:
        """The whole body; raises `HttpError` for one above `limit` bytes."""
        length = self.header(b"content-length")
        if length is not None and length.isdigit() and int(length) > limit:
            raise too_large(limit)
        whole = self.visit.take_body(self.scope)
        if whole is not None:
            if len(whole) > limit:
                raise too_large(limit)
            return whole
        message = await self._receive_body()
        body: bytes = message.get("body", b"")
        if not message.get("more_body", False):
            if len(body) > limit:
                raise too_large(limit)
            return body
        parts, size = [body], len(body)
        while message.get("more_body", False):
            message = await self._receive_body()
            body = message.get("body", b"")
            parts.append(body)
            size += len(body)
            if size > limit:
                raise too_large(limit)
        return b"".join(parts)

    async def _receive_body(self) -> Message:
        message = await self.receive()
        if message["type"] != "http.request":  # what has arrived must not pass for the whole
            raise HttpError(400, "INVALID_INPUT", "the body was cut short")
        return message

    async def json(self, limit: int) -> Any:
        """The body as a JSON value, None if there is none; raises `HttpError`."""
        kind = self.headers.get(b"content-type", b"")
        if kind.partition(b";")[0].strip().lower() != JSON_TYPE:
            body = await self.body(limit)
            if not body and not kind:
                return None
            told = f"is {kind.decode('latin-1')[:100]!r}" if kind else "has no Content-Type"
            raise HttpError(
                415,
                "INVALID_INPUT",
                f"the body {told}; send JSON with Content-Type: application/json",
                headers=[(b"accept", JSON_TYPE)],
            )
        body = await self.body(limit)
        if not body:
            return None
        try:
            return JSON.decode(body)
        except FrameError as exc:
            raise HttpError(400, "INVALID_INPUT", f"the body {exc}") from exc

    def forget(self) -> None:
        """Let go of the headers: what lives as long as the connection must not hold them."""
        self.scope["headers"].clear()
        self.headers.clear()
        self.more_headers.clear()

    # --- the answer -------------------------------------------------------------------------------------------------

    async def reply(
        self,
        status: int,
        body: bytes = b"",
        content_type: bytes = JSON_TYPE,
        headers: Iterable[tuple[bytes, bytes]] = (),
    ) -> None:
        """Answer with a whole body."""
        if self.is_websocket:
            return await self._reply_instead(status, body, content_type, headers)
        self.has_begun = True
        fields = [*NO_STORE, *self.more_headers, *headers]
        if status not in WITHOUT_CONTENT:
            fields += [(b"content-type", content_type), (b"content-length", b"%d" % len(body))]
        if not self.visit.write_answer(self.scope, status, fields, body):
            await self.send({"type": "http.response.start", "status": status, "headers": fields})
            await self.send({"type": "http.response.body", "body": body})
        return None

    async def relay(self, message: Message) -> None:
        """Send a message of ASGI that an application has made. What comes in two and is known to end with the second is
        written at once."""
        start, self._start = self._start, None
        if start is not None:
            if not message.get("more_body", False) and self.visit.write_answer(
                self.scope, start["status"], start["headers"], message.get("body", b"")
            ):
                return
            await self.send(start)
        elif message["type"] == "http.response.start" and any(name == LENGTH for name, _ in message["headers"]):
            self._start = message
            return
        await self.send(message)

    async def reply_json(self, value: Any, status: int = 200, headers: Iterable[tuple[bytes, bytes]] = ()) -> None:
        """Answer with a JSON value; raises `CallError` for one that JSON cannot carry, with nothing sent."""
        try:
            body = JSON.encode(value)
        except EncodeError as exc:
            raise CallError("INTERNAL", f"the answer cannot be sent: {exc}") from exc
        await self.reply(status, body, headers=headers)

    async def fail(self, error: CallError, *, spec: Any = None, request_id: str | None = None) -> None:
        """Answer with a problem document."""
        status = status_of(error, spec, is_anonymous=self.identity is None)
        body, headers, _ = problem_of(error, status, request_id)
        if known := request_id or error.request_id:
            headers.append((REQUEST_ID, known.encode("ascii")))
        await self.reply(status, body, PROBLEM, headers)

    async def _reply_instead(
        self, status: int, body: bytes, content_type: bytes, headers: Iterable[tuple[bytes, bytes]]
    ) -> None:
        """Turn an upgrade down."""
        self.has_begun = True
        fields = [(b"content-type", content_type), *NO_STORE, *self.more_headers, *headers]
        await self.send({"type": "websocket.http.response.start", "status": status, "headers": fields})
        await self.send({"type": "websocket.http.response.body", "body": body})


def too_large(limit: int) -> HttpError:
    """The body is more than is taken; the connection ends, for the rest of it is not read."""
    return HttpError(
        413,
        "RESOURCE_EXHAUSTED",
        f"the body has more than {limit} bytes; larger values travel in pieces",
        retryable=False,
        headers=[(b"connection", b"close")],
    )
