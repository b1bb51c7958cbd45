"""The door for HTTP: serves the ALPN ``http/1.1``, and plaintext, on the node's port with uvicorn's protocols."""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from email.utils import formatdate
from typing import Final

from starlette.types import Message
from uvicorn.config import Config
from uvicorn.server import ServerState

from alknet.access import Identity
from alknet.alpn.streams import Connection
from alknet.alpn.tls_listener import DEFAULT_ALPN
from alknet.call.carried import ChannelConnection
from alknet.call.context import Caller
from alknet.call.dispatch import Dispatcher
from alknet.call.doorkeeper import Doorkeeper
from alknet.call.errors import CallError
from alknet.call.frames import HELLO_MAX_FRAME
from alknet.call.registry import Registry
from alknet.gateway.app import WEBSOCKET, Gateway, is_loopback
from alknet.gateway.calls import Calls
from alknet.gateway.custom import CustomRoutes
from alknet.gateway.documents import Documents
from alknet.gateway.events import EventStreams
from alknet.gateway.exchange import Exchange, Visit
from alknet.gateway.idempotency import Idempotency
from alknet.gateway.mcp.app import CALLER, PATHS, TRACEPARENT, McpApp, McpSettings
from alknet.gateway.pages import PAGE_HEADERS, asset
from alknet.gateway.problems import HttpError
from alknet.gateway.protocol import HttpProtocol, WebSocketProtocol
from alknet.gateway.routes import OPS, Routes
from alknet.gateway.settings import GatewaySettings
from alknet.gateway.tickets import Tickets
from alknet.gateway.websocket import SUBPROTOCOL, TICKET_SUBPROTOCOL, WebSocketStream
from alknet.replies import Replies
from alknet.tasks import Tasks

__all__ = ["GatewayHandler", "ServeCalls"]

DATE_EVERY_S: Final = 1.0
WATCH_EVERY_S: Final = 5.0
LAST_WORDS_S: Final = 0.5
"""What sending an answer may take after the call has ended, when the node stops."""
DOCS: Final = "/docs"
MCP_METHODS: Final = ("GET", "POST", "DELETE")
ServeCalls = Callable[[WebSocketStream, Identity | None, ChannelConnection], Awaitable[int]]
"""Serves the call protocol to somebody who was let in already."""


class GatewayHandler:
    """The gateway as a door of the node. `settings` may be replaced while it runs."""

    alpns = (DEFAULT_ALPN,)

    def __init__(
        self,
        dispatcher: Dispatcher,
        doors: Doorkeeper,
        settings: GatewaySettings,
        *,
        replies: Replies,
        serve_calls: ServeCalls,
    ) -> None:
        self._dispatcher = dispatcher
        self._doors = doors
        self._serve_calls = serve_calls
        self._calls = Calls(dispatcher)
        self._events = EventStreams(self._calls)
        self._tickets = Tickets()
        self._tasks = Tasks("gateway")
        self._protocols: set[HttpProtocol] = set()
        self._state = ServerState()
        self.app = Gateway(doors, settings)
        self._config = Config(
            self.app,
            interface="asgi3",
            http=HttpProtocol,
            ws=WebSocketProtocol,
            ws_per_message_deflate=False,  # compression of secrets beside strangers' text tells of them
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
        )
        self._config.load()
        # What strangers send wrong fills no log, and what fails in a route the gateway itself has logged.
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
        idempotency = Idempotency(replies, dispatcher.gate.clock.wall)
        self._routes = Routes(doors, self._calls, self._events, self._tickets, idempotency, lambda: self.settings)
        self._documents = Documents(dispatcher, dispatcher.permitted)
        self._mcp: McpApp | None = None
        if settings.mcp:
            self._mcp = McpApp(self._calls, McpSettings(), admit=self._admit, permitted=dispatcher.permitted)
        self._add_routes()
        self.settings = settings

    @property
    def settings(self) -> GatewaySettings:
        return self.app.settings

    @settings.setter
    def settings(self, settings: GatewaySettings) -> None:
        self.app.settings = settings
        self._calls.max_in_flight = settings.max_in_flight
        self._config.ws_max_size = settings.max_message
        if self._mcp is not None:
            self._mcp.settings = McpSettings(max_tools=settings.max_tools)

    def _add_routes(self) -> None:
        app, routes = self.app, self._routes
        app.add("GET", "/healthz", routes.healthz)
        app.add("GET", "/readyz", routes.readyz)
        app.add("GET", "/metrics", routes.metrics)
        app.add("GET", "/search", routes.search)
        app.add("GET", "/schema", routes.schema)
        app.add("POST", "/call", routes.call)
        app.add("POST", "/batch", routes.batch)
        app.add("POST", "/subscribe", routes.subscribe)
        app.add("POST", "/ticket", routes.ticket)
        app.add("GET", WEBSOCKET, self._websocket)
        app.add_below(OPS, routes.operation)
        app.add("GET", "/openapi.json", self._openapi)
        app.add("GET", DOCS, self._page)
        app.add_below(DOCS + "/", self._page)
        if self._mcp is not None:
            for path in PATHS:
                for method in MCP_METHODS:
                    app.add(method, path, self._serve_mcp)
                app.add_below(path + "/", self._serve_mcp)
        self._custom = CustomRoutes(self._doors, self._calls, lambda: self.settings, reserved=app.paths)
        app.fallback = self._custom.serve

    def check(self, registry: Registry) -> None:
        """`UsageError` if it has routes that cannot be served here."""
        self._custom.check(registry)

    # --- the door ---------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Begin the work in the background."""
        self._events.start()
        if self._mcp is not None:
            await self._mcp.start()
        self._tasks.start(self._tell_date(), name="date")
        self._tasks.start(self._watch_writing(), name="writing")

    async def handle(self, connection: Connection) -> None:
        is_tls = connection.transport != "tcp"
        visit = Visit(connection, scheme="https" if is_tls else "http", surface="https" if is_tls else "http")
        if not is_tls:
            is_local = connection.remote is None or is_loopback(connection.remote.host)
            visit.is_outside = not (is_local and self.settings.plaintext_loopback)
        stream = await connection.accept_stream()
        protocol = HttpProtocol(self._config, self._state, visit, lambda: self.settings)
        self._protocols.add(protocol)
        connection.polite_close = lambda reason: protocol.end()
        try:
            await stream.attach(protocol)
            await visit.over.wait()
        finally:
            self._protocols.discard(protocol)
            if visit.is_guest:
                self._doors.leave(connection)

    def recheck(self) -> None:
        self._calls.recheck()
        if self._mcp is not None:
            self._mcp.recheck()
        gate = self._dispatcher.gate
        for protocol in tuple(self._protocols):
            connection = protocol.visit.connection
            if connection.identity is None or (decision := gate.still(connection.identity, "call/connect")):
                continue
            if protocol.is_websocket and connection.polite_close is not None:
                connection.polite_close(f"access was taken away: {decision}")  # it may not have a session yet
            else:
                protocol.shutdown()

    async def shutdown(self, deadline: float) -> None:
        self.app.is_draining = True
        for protocol in tuple(self._protocols):
            protocol.shutdown()
        await self._calls.drain(deadline)
        if self._mcp is not None:
            # Calls that were ended just now have their answers still to send.
            await self._mcp.aclose(max(deadline, asyncio.get_running_loop().time()) + LAST_WORDS_S)
        await self._answered(deadline)
        for protocol in tuple(self._protocols):
            protocol.end()
        await self._events.aclose()
        await self._tasks.aclose()
        await self._routes.aclose()

    async def _answered(self, deadline: float) -> None:
        """Wait until what was worked out is sent, and until what serves the WebSockets has ended them."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(deadline + LAST_WORDS_S):  # sessions that still run are ended at `deadline`
                for protocol in tuple(self._protocols):
                    if protocol.is_websocket:
                        await protocol.visit.over.wait()
        last = [task for protocol in self._protocols if (task := protocol.running) is not None]
        if last:
            await asyncio.wait(last, timeout=LAST_WORDS_S)

    async def _watch_writing(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(WATCH_EVERY_S)
            now = loop.time()
            for protocol in tuple(self._protocols):
                protocol.look_at_writing(now)

    async def _tell_date(self) -> None:
        while True:
            self._state.default_headers = [(b"date", formatdate(usegmt=True).encode("ascii"))]
            await asyncio.sleep(DATE_EVERY_S)

    # --- pages and tools --------------------------------------------------------------------------------------------

    async def _page(self, exchange: Exchange) -> None:
        """The interactive page: the same for everybody, what it shows is not."""
        found = asset(exchange.path) if self.settings.docs and exchange.method in ("GET", "HEAD") else None
        if found is None:
            raise HttpError(404, "NOT_FOUND", "there is nothing here")
        kind, body = found
        await exchange.reply(200, body, kind.encode("ascii"), PAGE_HEADERS)

    async def _openapi(self, exchange: Exchange) -> None:
        self._admit(exchange.caller())
        await self._documents.serve(exchange)

    async def _serve_mcp(self, exchange: Exchange) -> None:
        assert self._mcp is not None

        async def send(message: Message) -> None:
            if message["type"] == "http.response.start":
                exchange.has_begun = True
                message = {**message, "headers": [*message["headers"], *exchange.more_headers]}
            await exchange.relay(message)

        scope = {**exchange.scope, CALLER: exchange.caller(), TRACEPARENT: exchange.traceparent}
        await self._mcp(scope, exchange.receive, send)

    def _admit(self, caller: Caller) -> None:
        """Each call of somebody who is nobody counts, also of those that come together."""
        if caller.identity is None:
            self._doors.anonymous_called(caller.remote)

    # --- WebSockets -------------------------------------------------------------------------------------------------

    async def _websocket(self, exchange: Exchange) -> None:
        """The native call protocol, for those who have a token or a ticket, and for anybody as anybody."""
        if not exchange.is_websocket:
            raise HttpError(
                426,
                "INVALID_INPUT",
                "this is a WebSocket; use the call protocol, or POST /call",
                headers=[(b"upgrade", b"websocket"), (b"connection", b"upgrade")],
            )
        offered: list[str] = exchange.scope["subprotocols"]
        if SUBPROTOCOL not in offered:
            raise HttpError(400, "INVALID_INPUT", f"ask for the subprotocol {SUBPROTOCOL}")
        visit = exchange.visit
        identity = exchange.identity or self._ticket_holder(exchange, offered)
        if identity is None:
            self._doors.enter(visit.connection, None, surface=visit.surface)
        exchange.has_begun = True
        try:
            await exchange.receive()  # websocket.connect
            await exchange.send({"type": "websocket.accept", "subprotocol": SUBPROTOCOL})
        except BaseException:
            if identity is None:
                self._doors.leave(visit.connection)
            raise
        size = HELLO_MAX_FRAME if identity is None else self.settings.max_message
        exchange.forget()
        stream = WebSocketStream(exchange.receive, exchange.send, max_message=size)
        carried = ChannelConnection(visit.connection, stream, transport="websocket")
        carried.identity = identity
        visit.connection.polite_close = carried.end
        try:
            await self._serve_calls(stream, identity, carried)
        finally:
            await stream.aclose()

    def _ticket_holder(self, exchange: Exchange, offered: list[str]) -> Identity | None:
        tickets = [name.removeprefix(TICKET_SUBPROTOCOL) for name in offered if name.startswith(TICKET_SUBPROTOCOL)]
        if not tickets:
            return None
        visit, now = exchange.visit, asyncio.get_running_loop().time()
        identity = self._tickets.use(tickets[0], exchange.header(b"origin"), now)
        if identity is None:
            denial_id = self._doors.stranger(visit.connection, "ticket", surface=visit.surface, reason="unknown-ticket")
            raise HttpError(
                401, "FORBIDDEN", "the ticket is not valid: they serve once, within 30 s", denial_id=denial_id
            )
        try:
            self._doors.enter(visit.connection, identity, surface=visit.surface)
        except CallError as exc:
            raise HttpError(429 if exc.retryable else 401, exc.code, str(exc), denial_id=exc.denial_id) from exc
        return identity
