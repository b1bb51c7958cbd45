"""uvicorn's HTTP and WebSocket protocols with the bounds that they lack, and with an end to what nobody waits for."""

import asyncio
from collections.abc import Callable, Iterable
from typing import Any, Final, NoReturn

from starlette.types import Scope
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from uvicorn.server import ServerState
from websockets.frames import Frame

from alknet.gateway.exchange import NO_STORE, Visit
from alknet.gateway.patience import Patience
from alknet.gateway.problems import PROBLEM, HttpError, problem_of
from alknet.gateway.settings import (
    KEEP_ALIVE_S,
    LINGER_S,
    MAX_FRAGMENTS,
    MAX_HEADER_BYTES,
    MAX_HEADERS,
    MAX_URL_BYTES,
    REQUEST_OVERHEAD_BYTES,
    STALLED_WRITE_S,
    WEBSOCKET_CLOSE_S,
    GatewaySettings,
)
from alknet.gateway.wire import whole_answer

__all__ = ["HttpProtocol", "WebSocketProtocol"]

HEADERS: Final = "headers"
BODY: Final = "body"
EXPECT: Final = b"expect"
CODING: Final = b"transfer-encoding"
VERSIONS: Final = ("1.0", "1.1")
POLICY_VIOLATION: Final = 1008
UNSUPPORTED_DATA: Final = 1003
TOO_MANY_HEADERS: Final = f"more than {MAX_HEADERS} headers, or {MAX_HEADER_BYTES} bytes of them"


class HttpProtocol(HttpToolsProtocol):
    """One connection. `settings` tells the current ones.

    It takes one request at a time. A client that sends the next one before it has its answer gets that answer, the
    connection ends, and nothing after it was looked at (RFC 9112 section 9.3.2 has such a client send it again): so
    nobody can have requests pile up here, and reading goes on, which is how it is noticed that a client is gone.
    """

    def __init__(
        self,
        config: Config,
        state: ServerState,
        visit: Visit,
        settings: Callable[[], GatewaySettings],
    ) -> None:
        super().__init__(config, state, {"visit": visit})
        self.visit = visit
        self._settings = settings
        self._reading: str | None = None
        """`HEADERS`, `BODY`, or None between two requests."""
        self._header_bytes = 0
        self._codings = 0
        self._bytes = 0
        """Of the request that is being read, from its first to its last."""
        self._refusal: HttpError | None = None
        """Why the parser was stopped."""
        self._patience = Patience(self.loop, self._too_slow)
        self._running: asyncio.Task[None] | None = None
        self._is_over = False
        self._is_last = False
        """The request that is being answered is the last one; what else arrives is dropped."""
        self._unsent = 0
        self._unsent_since = 0.0
        self.is_websocket = False

    # --- the connection ---------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.scheme = self.visit.scheme  # type: ignore[assignment]
        remote, local = self.visit.connection.remote, self.visit.connection.local
        self.client = None if remote is None else (remote.host, remote.port)
        self.server = None if local is None else (local.host, local.port)
        self.visit.cut = self.cut
        self.visit.take_body = self.take_body
        self.visit.write_answer = self.write_answer
        self._sink = _Sink(transport.write, transport.is_closing, self._finish)
        self._patience.begin(self._settings().header_timeout)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._is_over = True
        self._patience.close()
        if (task := self.running) is not None:
            self.tasks.add(task)  # until now this protocol kept it
            task.add_done_callback(self.tasks.discard)
            task.cancel()  # nobody waits for the answer any more
        self.visit.over.set()

    def look_at_writing(self, now: float) -> None:
        """Cut off a client that for `STALLED_WRITE_S` has taken nothing of what waits for it. To be called now and
        then with the event loop's time, as long as the connection lives, whatever is spoken on it: closing alone would
        wait for such a client for ever."""
        if self.transport is None:
            return  # it has not begun
        unsent = self.transport.get_write_buffer_size()
        if unsent != self._unsent:
            self._unsent, self._unsent_since = unsent, now
        elif unsent and now - self._unsent_since >= STALLED_WRITE_S:
            self.transport.abort()

    def shutdown(self) -> None:
        """End the connection when its request is answered; a WebSocket is ended by what runs on it."""
        if not self.is_websocket and self.transport is not None:
            super().shutdown()

    def end(self) -> None:
        """End the connection, whatever runs on it."""
        if self.cycle is not None:
            self.cycle.disconnected = True
        if self.transport is not None:
            self.transport.close()
        if self._running is not None:
            self._running.cancel()

    def cut(self) -> None:
        """End the connection at once, so that nothing that was sent looks complete."""
        if not self._is_over:
            if self.cycle is not None:
                self.cycle.disconnected = True
            self.transport.abort()

    @property
    def running(self) -> "asyncio.Task[None] | None":
        """The task of the request that is being answered."""
        return None if self._running is None or self._running.done() else self._running

    # --- reading requests within bounds -----------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        if self._is_over or self._is_last or self.transport.is_closing():
            return
        self._bytes += len(data)
        if self._reading is BODY and self._bytes > self._settings().max_body + REQUEST_OVERHEAD_BYTES:
            self._refuse(413, f"the body has more than {self._settings().max_body} bytes")
        elif self._reading is HEADERS and self._bytes > MAX_HEADER_BYTES:
            self._refuse(431, TOO_MANY_HEADERS)
        else:
            super().data_received(data)
            self._patience.settle()

    def on_message_begin(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop(400, "one request at a time")
        super().on_message_begin()
        self._reading, self._bytes, self._header_bytes, self._codings = HEADERS, 0, 0, 0
        self._patience.soon(self._settings().header_timeout)

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        if len(self.url) > MAX_URL_BYTES:
            self._stop(414, f"the request's target has more than {MAX_URL_BYTES} bytes")

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._reading is BODY:
            return  # a trailer: nobody asked for it, and it must not pass for a header
        name = name.lower()
        self.headers.append((name, value))
        if name == EXPECT and value.lower() == b"100-continue":
            self.expect_100_continue = True
        elif name == CODING:
            # The parser takes several, and some in HTTP/1.0; whoever stands in front may see another body in them.
            self._codings += 1
            if self._codings > 1 or value.strip().lower() != b"chunked" or self.parser.get_http_version() != "1.1":
                self._stop(400, "the body has one Transfer-Encoding at most, which is chunked")
        self._header_bytes += len(name) + len(value)
        if len(self.headers) > MAX_HEADERS or self._header_bytes > MAX_HEADER_BYTES:
            self._stop(431, TOO_MANY_HEADERS)

    def on_headers_complete(self) -> None:
        if not self.url.startswith(b"/"):
            self._stop(400, "the request's target should be a path")
        if self.parser.get_http_version() not in VERSIONS:
            self._stop(505, "this node speaks HTTP/1.1")
        self._reading, self._bytes = BODY, 0
        self._patience.soon(self._settings().body_timeout)
        super().on_headers_complete()
        if self.cycle is not None:
            self.cycle.transport = self._sink  # type: ignore[assignment]

    def on_message_complete(self) -> None:
        self._reading = None
        self._patience.end()
        super().on_message_complete()
        if self.cycle is not None and self.cycle.response_complete:  # the answer did not wait for all of the request
            self._patience.soon(KEEP_ALIVE_S)

    def on_response_complete(self) -> None:
        if not self.transport.is_closing():
            self.flow.resume_reading()
            if self._reading is None and not self._is_last:
                self._patience.begin(KEEP_ALIVE_S)

    def take_body(self, scope: Scope) -> bytes | None:
        """The body of the request of `scope`, if all of it is there and nothing was read of it before."""
        cycle = self.cycle
        if cycle.scope is not scope or cycle.more_body or cycle.disconnected or cycle.waiting_for_100_continue:
            return None
        body, cycle.body = bytes(cycle.body), bytearray()
        self.flow.resume_reading()
        return body

    def write_answer(self, scope: Scope, status: int, headers: Iterable[tuple[bytes, bytes]], body: bytes) -> bool:
        """Write a whole answer to the request of `scope`; False, and nothing is done, where that takes any thought."""
        cycle = self.cycle
        if (
            cycle.scope is not scope
            or cycle.response_started
            or cycle.disconnected
            or not cycle.keep_alive
            or cycle.flow.write_paused
            or scope["method"] == "HEAD"
        ):
            return False
        answer = whole_answer(status, (*cycle.default_headers, *headers), body)
        if answer is None:
            return False
        cycle.waiting_for_100_continue = False
        cycle.response_started = cycle.response_complete = True
        self.transport.write(answer)
        cycle.message_event.set()
        cycle.on_response()
        return True

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._running = self.loop.create_task(cycle.run_asgi(app))

    def handle_websocket_upgrade(self) -> None:
        self._patience.close()
        self.is_websocket = True
        super().handle_websocket_upgrade()
        # What read the request is not needed any more, and a WebSocket may be open for days.
        vars(self).update(parser=None, scope=None, headers=None, flow=None, pipeline=None)
        protocol = self.transport.get_protocol()
        assert isinstance(protocol, WebSocketProtocol)
        if not protocol.handshake_initiated:  # it waits for a request that it would take
            self._refuse(400, "this request opens no WebSocket: it is no GET, or has a line of more than 8192 bytes")

    def _unsupported_upgrade_warning(self) -> None:
        """The client asks for a protocol that is not spoken here: it is answered in HTTP, and the parser, which waits
        for the other protocol, takes no further request."""
        self._end_after_answer()

    # --- refusals before there is a request -------------------------------------------------------------------------

    def send_400_response(self, msg: str) -> None:
        """The parser has given up."""
        if self._reading is not BODY and self.cycle is not None and not self.cycle.response_complete:
            self._end_after_answer()  # of the request before
            return
        refusal = self._refusal
        if refusal is not None:
            self._refuse(refusal.status, str(refusal))
        else:
            self._refuse(400, "this is not HTTP/1.1 as the node understands it; nothing was done")

    def _stop(self, status: int, message: str) -> NoReturn:
        """Stop the parser, which then has the request refused."""
        self._refusal = HttpError(status, "INVALID_INPUT", message)
        raise self._refusal

    def _end_after_answer(self) -> None:
        self._is_last = True
        self._patience.end()
        if self.cycle.response_complete:
            self._linger()
        else:
            self.cycle.keep_alive = False

    def _too_slow(self) -> None:
        if self.transport.is_closing():
            return
        if self._reading is None:
            self.transport.close()  # there was none, or no other one
        else:
            self._refuse(408, f"the request's {self._reading} did not arrive in time")

    def _refuse(self, status: int, message: str) -> None:
        """Answer, unless this request has its answer, or a part of it, and end the connection."""
        self._patience.end()
        is_answered = False
        if self._reading is BODY and not self.is_websocket:
            is_answered = self.cycle.response_started
            self.cycle.disconnected = True  # what its handler has to say comes too late
        if not is_answered:
            body, _, _ = problem_of(HttpError(status, "INVALID_INPUT", message), status, None)
            head = b"HTTP/1.1 %d \r\ncontent-type: %b\r\ncontent-length: %d\r\nconnection: close\r\n"
            fields = b"".join(b"%b: %b\r\n" % field for field in (*NO_STORE, *self.server_state.default_headers))
            self.transport.write(head % (status, PROBLEM, len(body)) + fields + b"\r\n" + body)
        self._linger()

    def _finish(self) -> None:
        """The last answer is sent."""
        if self._reading is BODY or self._is_last:
            self._linger()
        else:
            self.transport.close()

    def _linger(self) -> None:
        """End the connection so that the answer is read: the system takes back what it has not delivered yet when a
        socket is closed on which something waits to be read. So what still comes is read and dropped for a moment."""
        self._patience.end()
        self._is_last = True
        self._reading = None
        if self.is_websocket or self.transport.is_closing():
            self.transport.close()
            return
        self.transport.write_eof()
        self.flow.resume_reading()
        self._patience.begin(LINGER_S)


class _Sink:
    """What uvicorn's request has of the transport, with another way to end it."""

    __slots__ = ("close", "is_closing", "write")

    def __init__(
        self, write: Callable[[bytes], None], is_closing: Callable[[], bool], close: Callable[[], None]
    ) -> None:
        self.write = write
        self.is_closing = is_closing
        self.close = close


class WebSocketProtocol(WebSocketsSansIOProtocol):
    """A connection that was upgraded."""

    def __init__(self, config: Config, server_state: ServerState, app_state: dict[str, Any], _loop: Any = None) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.visit: Visit = app_state["visit"]
        self.close_timeout = WEBSOCKET_CLOSE_S

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.scheme = "wss" if self.visit.scheme == "https" else "ws"

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.visit.over.set()

    def start_keepalive(self) -> None:
        super().start_keepalive()
        # The handshake is over, and its headers would stay as long as the connection does.
        self.request.headers.clear()
        self.response.headers.clear()

    def handle_text(self, event: Frame) -> None:
        self._fail(UNSUPPORTED_DATA, "one envelope per binary message; this one is text")

    def handle_cont(self, event: Frame) -> None:
        if len(self.frames) >= MAX_FRAGMENTS:  # empty ones never make a message too large
            self._fail(POLICY_VIOLATION, f"a message has more than {MAX_FRAGMENTS} fragments")
        else:
            super().handle_cont(event)

    def handle_ping(self) -> None:
        """Answer, but not one who takes no answers: pongs would pile up (RFC 6455 section 5.5.3 lets some be left
        out)."""
        output = b"".join(self.conn.data_to_send())
        if self.writable.is_set():
            self.transport.write(output)

    def _fail(self, code: int, reason: str) -> None:
        self.frames = []
        self.conn.fail(code, reason)
        self.handle_parser_exception()
