"""uvicorn's HTTP and WebSocket protocols with the bounds that they lack, and with an end to what nobody waits for."""

import asyncio
from collections.abc import Callable
from typing import Any, Final, NoReturn

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from uvicorn.server import ServerState

from alknet.gateway.exchange import NO_STORE, Visit
from alknet.gateway.problems import PROBLEM, HttpError, problem_of
from alknet.gateway.settings import (
    MAX_HEADER_BYTES,
    MAX_HEADERS,
    MAX_URL_BYTES,
    REQUEST_OVERHEAD_BYTES,
    STALLED_WRITE_S,
    GatewaySettings,
)

__all__ = ["HttpProtocol", "WebSocketProtocol"]

HEADERS: Final = "headers"
BODY: Final = "body"
TOO_MANY_HEADERS: Final = f"more than {MAX_HEADERS} headers, or {MAX_HEADER_BYTES} bytes of them"


class HttpProtocol(HttpToolsProtocol):
    """One connection. `settings` tells the current ones."""

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
        self._bytes = 0
        """Of the request that is being read, from its first to its last."""
        self._refusal: HttpError | None = None
        """Why the parser was stopped."""
        self._timer: asyncio.TimerHandle | None = None
        self._stalled: asyncio.TimerHandle | None = None
        self._running: asyncio.Task[None] | None = None
        self._is_over = False
        self.is_websocket = False

    # --- the connection ---------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.scheme = self.visit.scheme  # type: ignore[assignment]
        remote, local = self.visit.connection.remote, self.visit.connection.local
        self.client = None if remote is None else (remote.host, remote.port)
        self.server = None if local is None else (local.host, local.port)
        self._start_timer(self._settings().header_timeout)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._is_over = True
        self._unset_keepalive_if_required()
        self._stop_timer()
        self.resume_writing()
        if self._running is not None and not self._running.done():
            self._running.cancel()  # nobody waits for the answer any more
        self.visit.over.set()

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._stalled is None:
            self._stalled = self.loop.call_later(STALLED_WRITE_S, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None

    def shutdown(self) -> None:
        """End the connection when its request is answered; a WebSocket is ended by what runs on it."""
        if not self.is_websocket:
            super().shutdown()

    def end(self) -> None:
        """End the connection, whatever runs on it."""
        self.transport.close()
        if self._running is not None:
            self._running.cancel()

    # --- reading requests within bounds -----------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        if self._is_over or self.transport.is_closing():
            return
        self._bytes += len(data)
        if self._reading is BODY and self._bytes > self._settings().max_body + REQUEST_OVERHEAD_BYTES:
            self._refuse(413, f"the body has more than {self._settings().max_body} bytes")
        elif self._reading is HEADERS and self._bytes > MAX_HEADER_BYTES:
            self._refuse(431, TOO_MANY_HEADERS)
        else:
            super().data_received(data)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._reading, self._bytes, self._header_bytes = HEADERS, 0, 0
        self._start_timer(self._settings().header_timeout)

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        if len(self.url) > MAX_URL_BYTES:
            self._stop(414, f"the request's target has more than {MAX_URL_BYTES} bytes")

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._reading is BODY:
            return  # a trailer: nobody asked for it, and it must not pass for a header
        super().on_header(name, value)
        self._header_bytes += len(name) + len(value)
        if len(self.headers) > MAX_HEADERS or self._header_bytes > MAX_HEADER_BYTES:
            self._stop(431, TOO_MANY_HEADERS)

    def on_headers_complete(self) -> None:
        if not self.url.startswith(b"/"):
            self._stop(400, "the request's target should be a path")
        self._reading, self._bytes = BODY, 0
        self._start_timer(self._settings().body_timeout)
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._reading = None
        self._stop_timer()
        super().on_message_complete()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._running = task = self.loop.create_task(cycle.run_asgi(app))
        task.add_done_callback(self.tasks.discard)
        self.tasks.add(task)

    def handle_websocket_upgrade(self) -> None:
        self._stop_timer()
        self._unset_keepalive_if_required()
        if self.cycle is not None and not self.cycle.response_complete:
            self.send_400_response("a WebSocket cannot be opened before the request before it is answered")
            return
        self.is_websocket = True
        super().handle_websocket_upgrade()

    # --- refusals before there is a request -------------------------------------------------------------------------

    def send_400_response(self, msg: str) -> None:
        """The parser has given up."""
        refusal = self._refusal
        if refusal is not None:
            self._refuse(refusal.status, str(refusal))
        else:
            self._refuse(400, "this is not HTTP/1.1 as the node understands it; nothing was done")

    def _stop(self, status: int, message: str) -> NoReturn:
        """Stop the parser, which then has the request refused."""
        self._refusal = HttpError(status, "INVALID_INPUT", message)
        raise self._refusal

    def _too_slow(self) -> None:
        self._timer = None
        if self._reading is None:
            self.transport.close()  # it never began
        else:
            self._refuse(408, f"the request's {self._reading} did not arrive in time")

    def _refuse(self, status: int, message: str) -> None:
        """Answer, unless an answer is under way, and end the connection."""
        self._stop_timer()
        if self.cycle is None or not self.cycle.response_started or self.cycle.response_complete:
            body, _, _ = problem_of(HttpError(status, "INVALID_INPUT", message), status, None)
            head = b"HTTP/1.1 %d \r\ncontent-type: %b\r\ncontent-length: %d\r\nconnection: close\r\n"
            fields = b"".join(b"%b: %b\r\n" % field for field in (*NO_STORE, *self.server_state.default_headers))
            self.transport.write(head % (status, PROBLEM, len(body)) + fields + b"\r\n" + body)
        self.transport.close()

    def _start_timer(self, seconds: float) -> None:
        self._stop_timer()
        self._timer = self.loop.call_later(seconds, self._too_slow)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class WebSocketProtocol(WebSocketsSansIOProtocol):
    """A connection that was upgraded."""

    def __init__(self, config: Config, server_state: ServerState, app_state: dict[str, Any], _loop: Any = None) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.visit: Visit = app_state["visit"]
        self._running: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.scheme = "wss" if self.visit.scheme == "https" else "ws"

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.visit.over.set()
