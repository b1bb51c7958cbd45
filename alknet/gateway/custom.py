"""Custom routes: HTTP paths whose shape somebody else has fixed, served by functions of services.

What every request has to pass, it passes here too: Host, Origin and the credential before, the access decision of the
route and its line in the audit log, the bounds of bodies and of requests at the same time, and an end when the client
goes away, when access is taken away, and when the node stops.
"""

import contextlib
from collections.abc import AsyncGenerator, Callable
from http import HTTPStatus
from typing import Any, Final

from starlette.convertors import Convertor
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import compile_path
from starlette.types import Message

from alknet.access import Access, Identity
from alknet.call.codecs import JSON
from alknet.call.context import Caller, input_of
from alknet.call.declarations import where_defined
from alknet.call.doorkeeper import Doorkeeper
from alknet.call.errors import CallError, FrameError
from alknet.call.operations import OperationSpec
from alknet.call.prepared import Prepared, unexpected
from alknet.call.registry import Registry
from alknet.call.routes import HttpRoute
from alknet.errors import InvalidInputError, NotFoundError, UnavailableError, UsageError
from alknet.gate import Act
from alknet.gateway.app import NOTHING_HERE, method_not_allowed
from alknet.gateway.calls import Calls
from alknet.gateway.exchange import NO_STORE, REQUEST_ID, Exchange, too_large
from alknet.gateway.problems import STATUS, HttpError, status_of
from alknet.gateway.settings import GatewaySettings

__all__ = ["CustomRoutes", "RouteContext"]

RESERVED: Final = frozenset({"mcp"})
"""First segments that are the node's also while it serves nothing there."""
ASGI: Final = {"version": "3.0", "spec_version": "2.4"}
"""With this version Starlette streams in the request's own task, which is the one that is ended."""
PASSED_ON: Final = (InvalidInputError, NotFoundError, UnavailableError)
"""What a function may raise of alknet's own errors, as an operation may."""
CODES: Final = {status: code for code, status in STATUS.items()} | {HTTPStatus.UNAUTHORIZED: "FORBIDDEN"}
ABORTED: Final = "aborted"
FIRST_ERROR_STATUS: Final = 400
FIRST_SERVER_ERROR: Final = 500


class RouteContext:
    """One request, as the function of its route sees it. What it calls is called as whoever sends the request."""

    def __init__(self, calls: Calls, caller: Caller, request_id: str, traceparent: str) -> None:
        self.request_id = request_id
        """Finds the request in the audit log."""
        self.traceparent = traceparent
        self._calls = calls
        self._caller = caller
        self._streams: dict[Prepared, AsyncGenerator[Any, None]] = {}
        self._failed: tuple[CallError, OperationSpec] | None = None

    @property
    def identity(self) -> Identity | None:
        """Who sends it; None for somebody without a credential."""
        identity = self._caller.identity
        return identity if isinstance(identity, Identity) else None

    async def call(self, name: str, value: Any = None, /, *, timeout: float | None = None, **inputs: Any) -> Any:
        """Call an operation of this node: ``await ctx.call("fs/read", path="a")``; `timeout` in seconds.

        Raises `CallError`. Left alone, it becomes the answer that ``POST /call`` would have given.
        """
        prepared = self._prepare(name, input_of(name, value, inputs), streaming=False, timeout_s=timeout)
        try:
            return await self._calls.call(prepared)
        except CallError as exc:
            self._failed = exc, prepared.operation.spec
            raise

    def stream(
        self, name: str, value: Any = None, /, *, timeout: float | None = None, **inputs: Any
    ) -> AsyncGenerator[Any, None]:
        """Subscribe to an operation of this node: ``async for item in ctx.stream("model/complete", prompt="Hi")``.

        A refusal is raised here, before the answer has begun; what comes later, by the iteration. It ends with the
        request.
        """
        prepared = self._prepare(name, input_of(name, value, inputs), streaming=True, timeout_s=timeout)
        items = self._streams[prepared] = self._items(prepared)
        return items

    def spec_of(self, error: CallError) -> OperationSpec | None:
        """The operation that an error came from."""
        return self._failed[1] if self._failed is not None and self._failed[0] is error else None

    async def end(self) -> None:
        """Nothing that was begun goes on, or stays without an outcome."""
        for prepared, items in tuple(self._streams.items()):
            with contextlib.suppress(RuntimeError):  # a task that the function left behind still waits for an item
                await items.aclose()
            prepared.drop()

    async def _items(self, prepared: Prepared) -> AsyncGenerator[Any, None]:
        try:
            async with contextlib.aclosing(self._calls.stream(prepared)) as items:
                async for item in items:
                    yield item
        except CallError as exc:
            self._failed = exc, prepared.operation.spec
            raise
        finally:
            del self._streams[prepared]

    def _prepare(self, name: str, value: Any, *, streaming: bool, timeout_s: float | None) -> Prepared:
        return self._calls.prepare(
            name, value, self._caller, streaming=streaming, timeout_s=timeout_s, traceparent=self.traceparent
        )


class CustomRoutes:
    """Serves the routes of the dispatcher's registry. `settings` tells the current ones."""

    def __init__(
        self, doors: Doorkeeper, calls: Calls, settings: Callable[[], GatewaySettings], *, reserved: tuple[str, ...]
    ) -> None:
        self._doors = doors
        self._calls = calls
        self._settings = settings
        self._reserved = RESERVED | {path.split("/")[1] for path in reserved}
        self._table = _Table(())

    def check(self, registry: Registry) -> None:
        """`UsageError` if one of its routes lies where the node itself serves something."""
        for route in registry.routes:
            first = route.path.split("/")[1]
            if first in self._reserved:
                raise UsageError(
                    f"{where_defined(route.handler)}: the path {route.path} is below /{first}, which is the node's own",
                    hint="give it another first segment",
                )

    async def serve(self, exchange: Exchange) -> None:
        """Answer a request for a path that is none of the node's own."""
        route, parameters = self._current().find(exchange.path, exchange.method)
        caller = exchange.caller()
        if caller.identity is None:
            self._doors.anonymous_called(caller.remote)
        self._calls.check_room(caller)
        run = _Run(self, route, caller, self._ask(exchange, route))
        if not run.act.decision:
            words = run.act.decision.words if caller.identity is not None else "authentication required"
            denied = CallError("FORBIDDEN", words, denial_id=run.act.decision.denial_id)
            denied.request_id = run.act.request_id
            raise denied
        context = RouteContext(self._calls, caller, run.act.request_id, exchange.traceparent)
        try:
            await self._calls.run(run, lambda: self._run(exchange, run, context, parameters))
        except CallError as exc:
            if run.outcome == ABORTED:
                run.outcome = f"error {exc.code}"
            status = status_of(exc, context.spec_of(exc), is_anonymous=caller.identity is None)
            raise _with_status(exc, status, run.act.request_id) from exc
        finally:
            try:
                await context.end()
            finally:
                run.act.done(run.outcome, **run.facts)

    def current_access(self, route: HttpRoute) -> Access | None:
        """What the route asks for now; None when it is not served any more."""
        found = self._calls.dispatcher.registry.routes
        return next((one.access for one in found if one.handler == route.handler and one.path == route.path), None)

    def revoked(self, run: "_Run") -> CallError | None:
        """The refusal for a request that runs, if it may not go on."""
        access = self.current_access(run.route)
        if access is None:
            run.outcome = "removed"
            return CallError("UNAVAILABLE", f"{run.route.path} is not served any more")
        decision = self._calls.dispatcher.gate.still(run.caller.identity, run.route.action, access=access)
        if decision:
            return None
        run.outcome = "revoked"
        run.facts = {"decision": "deny", "denial_id": decision.denial_id, "rule": decision.rule}
        return CallError("FORBIDDEN", f"access was taken away: {decision.words}", denial_id=decision.denial_id)

    def _current(self) -> "_Table":
        routes = self._calls.dispatcher.registry.routes
        if self._table.routes is not routes:
            self._table = _Table(routes)
        return self._table

    def _ask(self, exchange: Exchange, route: HttpRoute) -> Act:
        caller = exchange.caller()
        facts: dict[str, Any] = {} if exchange.identity is None else {"via": exchange.identity.via}
        return self._calls.dispatcher.gate.ask(
            caller.identity,
            route.action,
            surface=caller.surface,
            access=route.access,
            connection=caller.connection,
            remote=caller.remote,
            **facts,
        )

    async def _run(self, exchange: Exchange, run: "_Run", context: RouteContext, parameters: dict[str, Any]) -> None:
        async def send(message: Message) -> None:
            if message["type"] == "http.response.start":
                exchange.has_begun = True
                run.status = message["status"]
                message = {**message, "headers": self._headers(exchange, message["headers"], run.act)}
            elif exchange.method == "HEAD" and message.get("more_body", False):
                await exchange.relay({"type": "http.response.body"})
                raise _HeadAnswered
            await exchange.relay(message)

        # Who sends it is in the context; the token is nobody else's business.
        headers = [(name, value) for name, value in exchange.scope["headers"] if name != b"authorization"]
        scope = {**exchange.scope, "path_params": parameters, "asgi": ASGI, "headers": headers, "state": {}}
        request = _Request(scope, _bounded(exchange, self._settings().max_body), send)
        try:
            response = await run.route.handler(request, context)
            if not isinstance(response, Response):
                raise TypeError(f"{where_defined(run.route.handler)} answered {type(response).__name__}, no Response")
            await response(scope, request.receive, send)
        except HTTPException as exc:
            raise _http_error(exc) from exc
        except CallError:
            raise
        except PASSED_ON as exc:
            raise CallError(exc.code, str(exc), hint=exc.hint) from exc
        except ClientDisconnect:
            return  # it was faster than the end of this task
        except _HeadAnswered:
            pass
        except Exception as exc:
            raise unexpected(run.route.action, exc) from exc
        run.facts = {}
        run.outcome = "ok" if run.status < FIRST_ERROR_STATUS else f"error HTTP_{run.status}"

    @staticmethod
    def _headers(exchange: Exchange, headers: Any, act: Act) -> list[tuple[bytes, bytes]]:
        own = {name.lower() for name, _ in headers}
        added = [*NO_STORE, *exchange.more_headers, (REQUEST_ID, act.request_id.encode("ascii"))]
        return [*headers, *((name, value) for name, value in added if name == b"vary" or name not in own)]


class _HeadAnswered(Exception):
    """A HEAD has its answer with the first piece of the body, however long that would go on."""


class _Run:
    """One request that a route answers."""

    def __init__(self, owner: CustomRoutes, route: HttpRoute, caller: Caller, act: Act) -> None:
        self.route = route
        self.caller = caller
        self.act = act
        self.status = 0
        self.outcome = ABORTED
        self.facts: dict[str, Any] = {}
        """What the audit log has of the outcome besides."""
        self._owner = owner

    def revoked(self) -> CallError | None:
        """See `CustomRoutes.revoked`."""
        return self._owner.revoked(self)


class _Table:
    """Which route a path belongs to."""

    def __init__(self, routes: tuple[HttpRoute, ...]) -> None:
        self.routes = routes
        self._compiled = [(route, *compile_path(route.path)[::2]) for route in routes]

    def find(self, path: str, method: str) -> tuple[HttpRoute, dict[str, Any]]:
        """The route and the values in the path; raises `HttpError` 404 or 405."""
        allowed: set[str] = set()
        for route, pattern, convertors in self._compiled:
            found = pattern.fullmatch(path)
            values = None if found is None else _converted(found.groupdict(), convertors)
            if values is None:
                continue
            if ("GET" if method == "HEAD" else method) in route.methods:
                return route, values
            allowed |= {*route.methods}
        if allowed:
            raise method_not_allowed(method, ", ".join(sorted(allowed)))
        raise HttpError(404, "NOT_FOUND", NOTHING_HERE)


def _converted(texts: dict[str, str], convertors: dict[str, Convertor[Any]]) -> dict[str, Any] | None:
    """What stands in the path, as its types say. None for what is none, and for what climbs or begins at the top:
    joined to a directory, it would lead out of it."""
    try:
        values = {name: convertors[name].convert(text) for name, text in texts.items()}
    except ValueError:  # more digits than Python takes
        return None
    climbs = any(part in (".", "..") or "\0" in part for text in texts.values() for part in text.split("/"))
    return None if climbs or any(text.startswith("/") for text in texts.values()) else values


class _Request(Request):
    """A request whose body, where it should be JSON and is not, is the client's mistake."""

    async def json(self) -> Any:
        body = await self.body()
        try:
            return JSON.decode(body)
        except FrameError as exc:
            raise HttpError(400, "INVALID_INPUT", f"the body {exc}") from exc


def _bounded(exchange: Exchange, limit: int) -> Callable[[], Any]:
    """`receive` with an end to what it gives."""
    length = exchange.header(b"content-length")
    left = -1 if length is not None and length.isdigit() and int(length) > limit else limit

    async def receive() -> Message:
        nonlocal left
        if left < 0:
            raise too_large(limit)
        message = await exchange.receive()
        left -= len(message.get("body", b""))
        if left < 0:
            raise too_large(limit)
        return message

    return receive


def _http_error(exc: HTTPException) -> HttpError:
    """Starlette's way of saying no, as the gateway says it."""
    default = "INTERNAL" if exc.status_code >= FIRST_SERVER_ERROR else "INVALID_INPUT"
    headers = [(name.lower().encode("latin-1"), text.encode("latin-1")) for name, text in (exc.headers or {}).items()]
    return HttpError(exc.status_code, CODES.get(exc.status_code, default), exc.detail, headers=headers)


def _with_status(error: CallError, status: int, request_id: str) -> CallError:
    if isinstance(error, HttpError):
        error.request_id = request_id
        return error
    made = HttpError(
        status, error.code, str(error), details=error.details, retryable=error.retryable, denial_id=error.denial_id
    )
    made.request_id = request_id
    return made
