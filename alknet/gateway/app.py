"""The ASGI application: what is checked of every request, in which order, and which route gets it.

Host and Origin come before the credential, the credential before the route's own work, and the access decision before
its input is looked at.
"""

import asyncio
import hmac
import ipaddress
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Final
from urllib.parse import quote

from starlette.types import Receive, Scope, Send
from uvicorn.protocols.utils import ClientDisconnected

from alknet.call.anonymous import LIFETIME_S
from alknet.call.doorkeeper import Doorkeeper
from alknet.call.errors import CallError
from alknet.gateway.exchange import Exchange
from alknet.gateway.guard import check_host, check_origin
from alknet.gateway.problems import HttpError
from alknet.gateway.settings import GatewaySettings
from alknet.gateway.traces import continue_trace
from alknet.logs import event

__all__ = ["NOTHING_HERE", "WEBSOCKET", "Gateway", "Route", "bearer_of", "is_loopback", "method_not_allowed"]

log = logging.getLogger("alknet.gateway")

Route = Callable[[Exchange], Awaitable[None]]

BEARER: Final = "bearer"
WEBSOCKET: Final = "/alknet/call"
SAFE: Final = ("GET", "HEAD")
OPEN_PATHS: Final = ("/healthz", "/readyz", "/docs")
"""Where nobody has to be anybody: what stands there tells nothing. Credentials are not looked at."""
CORS_HEADERS: Final = (
    b"authorization, content-type, idempotency-key, last-event-id, traceparent, mcp-protocol-version, mcp-session-id,"
    b" mcp-method, mcp-name"
)
NOTHING_HERE: Final = "there is nothing at this path; operations are at /ops/NAME, and GET /search lists them"
CORS_METHODS: Final = b"GET, POST, PUT, PATCH, DELETE"
CORS_MAX_AGE: Final = b"600"


class Gateway:
    """`settings` may be replaced while it serves."""

    def __init__(self, doors: Doorkeeper, settings: GatewaySettings) -> None:
        self.settings = settings
        self.is_draining = False
        self._doors = doors
        self._exact: dict[str, dict[str, Route]] = {}
        self._below: list[tuple[str, Route]] = []
        self.fallback: Route = _nothing_here

    def add(self, method: str, path: str, route: Route) -> None:
        """Serve `path` with `route`; a GET also answers HEAD."""
        self._exact.setdefault(path, {})[method] = route

    def add_below(self, prefix: str, route: Route) -> None:
        """Serve every path that begins with `prefix`, whatever the method."""
        self._below.append((prefix, route))

    @property
    def paths(self) -> tuple[str, ...]:
        return (*self._exact, *(prefix for prefix, _ in self._below))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = Exchange(scope, receive, send)
        try:
            await self._serve(exchange)
        except CallError as exc:
            await self._fail(exchange, exc)
        except asyncio.CancelledError:
            exchange.visit.cut()  # if the client is not gone already; nobody waits for this task
        except ClientDisconnected:
            return
        except Exception:
            log.exception(event("request failed", method=exchange.method, route=_known(exchange.path, self.paths)))
            await self._fail(exchange, HttpError(500, "INTERNAL", "the request failed; see the node's log"))

    async def _fail(self, exchange: Exchange, error: CallError) -> None:
        if not exchange.has_begun:
            await exchange.fail(error)
        else:
            log.warning(event("answer cut short", reason=error))
            exchange.visit.cut()

    async def _serve(self, exchange: Exchange) -> None:
        exchange.traceparent = continue_trace(exchange.header(b"traceparent"))
        exchange.more_headers.append((b"traceparent", exchange.traceparent.encode("ascii")))
        connection = exchange.visit.connection
        if connection.identity is None and time.time() - connection.since > LIFETIME_S:
            exchange.more_headers.append((b"connection", b"close"))
        if exchange.visit.is_outside:
            return await self._answer_outside(exchange)
        if self._check_browser(exchange) and exchange.method == "OPTIONS":
            return await exchange.reply(204)
        route = self._route(exchange)
        if self.is_draining and exchange.path not in OPEN_PATHS:
            raise HttpError(503, "UNAVAILABLE", "the node is shutting down", headers=[(b"connection", b"close")])
        if exchange.path not in OPEN_PATHS and not exchange.path.startswith("/docs/"):
            self._authenticate(exchange)
        self._seat(exchange)
        return await route(exchange)

    def _seat(self, exchange: Exchange) -> None:
        """Who is nobody needs one of the few places for those, and gives it back by saying who they are. (A WebSocket
        sees to its own.) Raises `CallError` when there is none."""
        visit = exchange.visit
        if visit.connection.identity is not None:
            if visit.is_guest:
                visit.is_guest = False
                self._doors.leave(visit.connection)
        elif not visit.is_guest and not exchange.is_websocket:
            exchange.more_headers.append((b"connection", b"close"))
            self._doors.sit(visit.connection)
            exchange.more_headers.pop()
            visit.is_guest = True

    def _check_browser(self, exchange: Exchange) -> bool:
        """Host and Origin; whether a listed origin asks, so that CORS headers go with the answer."""
        settings, visit = self.settings, exchange.visit
        host = exchange.header(b"host")
        if visit.good_host is None or visit.good_host[0] != host or visit.good_host[1] is not settings:
            local = None if visit.connection.local is None else visit.connection.local.host
            check_host(host, settings.names, local, settings.hosts)
            visit.good_host = host, settings
        if b"origin" in exchange.repeated or b"sec-fetch-site" in exchange.repeated:
            raise HttpError(400, "INVALID_INPUT", "the request has its Origin twice")
        origin = exchange.header(b"origin")
        is_cors = check_origin(
            origin,
            exchange.header(b"sec-fetch-site"),
            scheme=visit.scheme,
            host=host or "",
            allowed=settings.origins,
        )
        if is_cors and origin is not None:
            exchange.more_headers += [
                (b"access-control-allow-origin", origin.encode("latin-1")),
                (b"vary", b"Origin"),
                (b"access-control-allow-headers", CORS_HEADERS),
                (b"access-control-allow-methods", CORS_METHODS),
                (b"access-control-expose-headers", b"traceparent, retry-after, mcp-session-id, alknet-request-id"),
                (b"access-control-max-age", CORS_MAX_AGE),
            ]
        return is_cors

    def _route(self, exchange: Exchange) -> Route:
        path, method = exchange.path, exchange.method
        if exchange.is_websocket and path != WEBSOCKET:
            raise HttpError(404, "NOT_FOUND", "there is no WebSocket here")
        methods = self._exact.get(path)
        if methods is None:
            return next((route for prefix, route in self._below if path.startswith(prefix)), self.fallback)
        found = methods.get("GET" if method == "HEAD" else method)
        if found is None:
            allowed = ", ".join(sorted(methods))
            raise method_not_allowed(method, allowed)
        return found

    def _authenticate(self, exchange: Exchange) -> None:
        """Find out who asks, if they say so; raises `HttpError` for a credential that lets nobody in."""
        header = exchange.headers.get(b"authorization")
        if header is None:
            return
        visit, policy = exchange.visit, self._doors.gate.policy
        kept = visit.bearer
        is_one = b"authorization" not in exchange.repeated
        if kept is not None and is_one and kept[1] is policy and hmac.compare_digest(kept[0], header):
            exchange.identity = kept[2]  # nothing has changed since the request before
            return
        token = bearer_of(exchange.header(b"authorization"))
        try:
            identity = self._doors.bearer(visit.connection, token, None, surface=visit.surface)
            if identity.via not in visit.known:
                self._doors.enter(visit.connection, identity, surface=visit.surface)
                visit.known.add(identity.via)
        except CallError as exc:
            visit.refused += 1
            headers = [(b"connection", b"close")] if visit.refused >= self.settings.auth_attempts else []
            status = 429 if exc.code == "RESOURCE_EXHAUSTED" else 401
            raise HttpError(status, exc.code, str(exc), denial_id=exc.denial_id, headers=headers) from exc
        exchange.identity = identity
        visit.bearer = header, policy, identity

    async def _answer_outside(self, exchange: Exchange) -> None:
        """In plaintext from another machine nothing is served, and a credential would have been seen by everybody."""
        host = self.settings.https_host
        if host and exchange.method in SAFE and b"authorization" not in exchange.headers and not exchange.is_websocket:
            query = exchange.scope["query_string"]
            target = f"https://{host}{quote(exchange.path)}".encode("ascii") + (b"?" + query if query else b"")
            return await exchange.reply(308, headers=[(b"location", target), (b"connection", b"close")])
        raise HttpError(
            403,
            "FORBIDDEN",
            "this node does not answer here without TLS: use https://",
            headers=[(b"connection", b"close")],
        )


def bearer_of(header: str | None) -> str:
    """The token in an Authorization header; raises `HttpError` for what is none."""
    scheme, _, token = (header or "").partition(" ")
    token = token.strip()
    if scheme.lower() != BEARER or not token:
        raise HttpError(401, "FORBIDDEN", "the Authorization header should be 'Bearer' and one token")
    return token


def method_not_allowed(method: str, allowed: str, why: str = "") -> HttpError:
    """The path is there, for other methods; `why` is for those who wonder."""
    return HttpError(
        405,
        "INVALID_OPERATION_TYPE",
        f"{method} is not for this path; use {allowed}" + (f" ({why})" if why else ""),
        headers=[(b"allow", allowed.encode("ascii"))],
    )


def is_loopback(host: str) -> bool:
    """Whether an address is of this machine alone."""
    return ipaddress.ip_address(host.partition("%")[0]).is_loopback


async def _nothing_here(exchange: Exchange) -> None:
    raise HttpError(404, "NOT_FOUND", NOTHING_HERE)


def _known(path: str, paths: tuple[str, ...]) -> str:
    """What a log may say of a path: the route, never what a stranger wrote after it."""
    return next((known for known in paths if path.startswith(known)), "-")
