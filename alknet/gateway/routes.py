"""The routes that reach operations: each reads its request, lets the dispatcher decide, and frames the answer."""

import asyncio
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, Final, NamedTuple

from alknet.call.anonymous import LIFETIME_S
from alknet.call.codecs import JSON, EncodeError
from alknet.call.doorkeeper import Doorkeeper
from alknet.call.errors import CallError
from alknet.call.frames import HELLO_MAX_FRAME
from alknet.call.operations import MAX_NAME_CHARS, Kind, Operation
from alknet.call.prepared import Prepared
from alknet.gateway.app import method_not_allowed
from alknet.gateway.calls import Calls
from alknet.gateway.events import EventStreams
from alknet.gateway.exchange import REQUEST_ID, Exchange
from alknet.gateway.idempotency import REPLAYED, Idempotency, Kept
from alknet.gateway.openapi_query import QueryParameter, query_input, query_parameters
from alknet.gateway.problems import PROBLEM, HttpError, error_fields, problem_of, status_of
from alknet.gateway.settings import GatewaySettings
from alknet.gateway.tickets import TICKET_S, Tickets
from alknet.tasks import Tasks

__all__ = ["OPS", "Routes"]

OPS: Final = "/ops/"
MAX_BATCH: Final = 100
BATCH_AT_ONCE: Final = 16
MAX_BATCH_BYTES: Final = 16 * 1024 * 1024
"""Of the answers in one batch; what comes after is refused."""
MAX_TIMEOUT_MS: Final = 24 * 3600 * 1000
MAX_LAST_EVENT_ID_CHARS: Final = 256
MAX_PEER_CHARS: Final = 256
MAX_PARAMETERS: Final = 1000
"""Operations whose query parameters are remembered."""
FIRST_ERROR_STATUS: Final = 400
MAX_TICKET_BODY: Final = 1024
METRICS_TYPE: Final = b"text/plain; version=0.0.4; charset=utf-8"

Answer = tuple[int, bytes, list[tuple[bytes, bytes]]]
"""Status, JSON, headers."""
Frame = Callable[[bytes, str], bytes]
"""From an output as JSON and the request's id to the body."""


class Routes:
    """`settings` tells the current ones."""

    def __init__(
        self,
        doors: Doorkeeper,
        calls: Calls,
        events: EventStreams,
        tickets: Tickets,
        idempotency: Idempotency,
        settings: Callable[[], GatewaySettings],
    ) -> None:
        self._doors = doors
        self._calls = calls
        self._tasks = Tasks("idempotent")
        self._events = events
        self._tickets = tickets
        self._idempotency = idempotency
        self._settings = settings
        self._parameters: dict[str, tuple[Operation, tuple[QueryParameter, ...] | None]] = {}
        """Of the operations that were called with GET."""

    async def aclose(self) -> None:
        await self._tasks.aclose()

    # --- about the node ---------------------------------------------------------------------------------------------

    async def healthz(self, exchange: Exchange) -> None:
        await exchange.reply(200, b'{"status":"ok"}')

    async def readyz(self, exchange: Exchange) -> None:
        if self._calls.is_draining:
            await exchange.reply(503, b'{"status":"draining"}')
        else:
            await exchange.reply(200, b'{"status":"ready"}')

    async def metrics(self, exchange: Exchange) -> None:
        prepared = self._prepare(exchange, "node/metrics", {})
        status, body, headers = await self._run(prepared)
        if status == HTTPStatus.OK:
            await exchange.reply(200, JSON.decode(body).encode(), METRICS_TYPE)
        else:
            await exchange.reply(status, body, PROBLEM, headers)

    # --- about operations -------------------------------------------------------------------------------------------

    async def search(self, exchange: Exchange) -> None:
        await self._wrapped(exchange, "services/list", _fields_of(exchange))

    async def schema(self, exchange: Exchange) -> None:
        await self._wrapped(exchange, "services/schema", _fields_of(exchange))

    # --- calling ----------------------------------------------------------------------------------------------------

    async def call(self, exchange: Exchange) -> None:
        asked = _asked_of(await self._json(exchange))
        prepared = self._prepare(exchange, asked.name, asked.input, peer=asked.peer, timeout_s=asked.timeout_s)
        await self._answer(exchange, prepared, asked.input, _wrapped)

    async def batch(self, exchange: Exchange) -> None:
        if b"idempotency-key" in exchange.headers:
            raise HttpError(422, "INVALID_INPUT", "an Idempotency-Key stands for one call; send /call or /ops for each")
        requests = await self._json(exchange)
        if not isinstance(requests, list) or len(requests) > MAX_BATCH:
            raise HttpError(422, "INVALID_INPUT", f"a batch is a list of at most {MAX_BATCH} calls")
        turn = asyncio.Semaphore(BATCH_AT_ONCE)
        left = MAX_BATCH_BYTES

        async def one(request: Any) -> bytes:
            nonlocal left
            async with turn:
                body = await self._one_of_batch(exchange, request, left)
            left -= len(body)
            return body

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(request)) for request in requests]
        await exchange.reply(200, b'{"results":[%b]}' % b",".join(task.result() for task in tasks))

    async def subscribe(self, exchange: Exchange) -> None:
        asked = _asked_of(await self._json(exchange))
        prepared = self._prepare(
            exchange, asked.name, asked.input, peer=asked.peer, streaming=True, timeout_s=asked.timeout_s
        )
        await self._stream(exchange, prepared)

    async def operation(self, exchange: Exchange) -> None:
        """``/ops/{name}``: the operation itself, with nothing around its input and output."""
        name = exchange.path.removeprefix(OPS)[: MAX_NAME_CHARS + 1]  # longer is no more unknown, and fills a log
        if exchange.method == "POST":
            value = await self._json(exchange)
        elif exchange.method in ("GET", "HEAD"):
            value = self._query(exchange, name)
        else:
            raise method_not_allowed(exchange.method, self._methods(exchange, name))
        prepared = self._prepare(exchange, name, value, streaming=None)
        if prepared.is_stream:
            await self._stream(exchange, prepared)
        else:
            await self._answer(exchange, prepared, value, _as_it_is)

    def _query(self, exchange: Exchange, name: str) -> Any:
        """The input in a query string. Who may not call it learns that from the dispatcher, and nothing else."""
        pairs = exchange.query()
        dispatcher = self._calls.dispatcher
        found = dispatcher.registry.get(name)
        if found is None:
            return {}
        parameters = self._get_form(found)
        if parameters is None and dispatcher.may(exchange.identity, found):
            raise method_not_allowed(exchange.method, "POST", "GET is for queries whose inputs fit into a URL")
        return query_input(parameters or (), pairs)  # also of a refused call: it tells of which resource

    def _methods(self, exchange: Exchange, name: str) -> str:
        """What a path takes, as far as this caller may know."""
        dispatcher = self._calls.dispatcher
        found = dispatcher.registry.get(name)
        has_get = found is not None and dispatcher.may(exchange.identity, found) and self._get_form(found) is not None
        return "GET, HEAD, POST" if has_get else "POST"

    def _get_form(self, operation: Operation) -> tuple[QueryParameter, ...] | None:
        name = operation.spec.name
        known, parameters = self._parameters.get(name, (None, None))
        if known is not operation:
            if len(self._parameters) >= MAX_PARAMETERS:  # operations of peers come and go
                self._parameters.clear()
            parameters = query_parameters(operation.spec.describe())
            self._parameters[name] = operation, parameters
        return parameters

    async def ticket(self, exchange: Exchange) -> None:
        """A ticket for one WebSocket, for the page of whoever asks."""
        if exchange.identity is None:
            raise HttpError(401, "FORBIDDEN", "authentication required: a ticket stands for a token")
        await exchange.body(MAX_TICKET_BODY)  # some clients always send one
        now = asyncio.get_running_loop().time()
        ticket = self._tickets.make(exchange.identity, exchange.header(b"origin"), now)
        await exchange.reply_json({"ticket": ticket, "expires_in": TICKET_S})

    # --- how ----------------------------------------------------------------------------------------------------------

    async def _json(self, exchange: Exchange) -> Any:
        limit = self._settings().max_body
        if exchange.identity is None:
            limit = min(limit, HELLO_MAX_FRAME)  # as over the call protocol
        return await exchange.json(limit)

    def _prepare(
        self, exchange: Exchange, name: str, value: Any, *, timeout_s: float | None = None, **how: Any
    ) -> Prepared:
        if exchange.identity is None:
            self._doors.anonymous_called(exchange.caller().remote)
            timeout_s = LIFETIME_S if timeout_s is None else min(timeout_s, LIFETIME_S)
        last = exchange.header(b"last-event-id")
        return self._calls.prepare(
            name,
            value,
            exchange.caller(),
            timeout_s=timeout_s,
            traceparent=exchange.traceparent,
            metadata=None if last is None else {"last_event_id": last[:MAX_LAST_EVENT_ID_CHARS]},
            **how,
        )

    async def _wrapped(self, exchange: Exchange, name: str, value: Any) -> None:
        await self._answer(exchange, self._prepare(exchange, name, value), value, _wrapped)

    async def _answer(self, exchange: Exchange, prepared: Prepared, value: Any, frame: Frame) -> None:
        """Run a call and send what comes of it; a mutation with an Idempotency-Key only if it was not done before."""
        key = exchange.header(b"idempotency-key")
        headers = [(REQUEST_ID, prepared.act.request_id.encode("ascii"))]
        if key is not None and prepared.operation.spec.kind is Kind.MUTATION:
            try:
                known = self._idempotency.begin(key, value, prepared)
            except BaseException:
                prepared.drop()
                raise
            if isinstance(known, Kept):
                # Somebody who asks again must find it done: it goes on when this client is gone.
                doing = self._tasks.start(self._keep(prepared, known), name="kept")
                status, body, more = await asyncio.shield(doing)
                headers += more
            else:
                prepared.drop(because="replayed")
                status, body = known.status or 200, known.body
                headers.append(REPLAYED)
        else:
            status, body, more = await self._run(prepared)
            headers += more
        if status < FIRST_ERROR_STATUS:
            await exchange.reply(status, frame(body, prepared.act.request_id), headers=headers)
        else:
            await exchange.reply(status, body, PROBLEM, headers)

    async def _run(self, prepared: Prepared) -> Answer:
        """(status, the output or the problem, headers)."""
        try:
            return 200, _encoded(await self._calls.call(prepared)), []
        except CallError as exc:
            return _problem_answer(exc, prepared)

    async def _keep(self, prepared: Prepared, kept: Kept) -> Answer:
        try:
            answer: Answer = 200, _encoded(await self._calls.call(prepared)), []
        except CallError as exc:
            answer = _problem_answer(exc, prepared)
            if prepared.was_cut_short:  # a plain function may even still run
                kept.lose()
                return answer
            if exc.retryable:
                kept.forget()
                return answer
        except BaseException:
            kept.lose()
            raise
        kept.finish(answer[0], answer[1])
        return answer

    async def _stream(self, exchange: Exchange, prepared: Prepared) -> None:
        if exchange.method == "HEAD":
            prepared.drop()
            raise method_not_allowed("HEAD", "POST")
        try:
            await self._events.serve(exchange, prepared)
        except CallError as exc:
            await exchange.fail(exc, spec=prepared.operation.spec, request_id=prepared.act.request_id)

    async def _one_of_batch(self, exchange: Exchange, request: Any, left: int) -> bytes:
        request_id = None
        try:
            if left <= 0:
                words = f"the answers before this one have {MAX_BATCH_BYTES} bytes"
                raise CallError("RESOURCE_EXHAUSTED", words, retryable=False)
            asked = _asked_of(request)
            prepared = self._prepare(exchange, asked.name, asked.input, peer=asked.peer, timeout_s=asked.timeout_s)
            request_id = prepared.act.request_id
            return _wrapped(_encoded(await self._calls.call(prepared)), request_id)
        except CallError as exc:
            request_id = request_id or exc.request_id
            fields = error_fields(exc, request_id)
            try:
                return JSON.encode({"request_id": request_id, "result": "error", "error": fields})
            except EncodeError:  # details that a handler made up
                fields.pop("details", None)
                return _encoded({"request_id": request_id, "result": "error", "error": fields})


def _problem_answer(error: CallError, prepared: Prepared) -> Answer:
    spec, is_anonymous = prepared.operation.spec, prepared.caller.identity is None
    status = status_of(error, spec, is_anonymous=is_anonymous)
    body, headers, _ = problem_of(error, status, prepared.act.request_id)
    return status, body, headers


def _encoded(value: Any) -> bytes:
    """As JSON; raises `CallError` for what a handler cannot have sent."""
    try:
        return JSON.encode(value)
    except EncodeError as exc:
        raise CallError("INTERNAL", f"the answer cannot be sent: {exc}") from exc


def _as_it_is(output: bytes, request_id: str) -> bytes:
    return output


def _wrapped(output: bytes, request_id: str) -> bytes:
    """The answer of ``/call``: the output, given as JSON, and under which id the audit log has the call."""
    return b'{"request_id":"%b","result":"ok","output":%b}' % (request_id.encode("ascii"), output)


class _Asked(NamedTuple):
    """What a body asks for. `peer`: at which connected peer of the node, if not here."""

    name: str
    input: Any
    peer: str | None
    timeout_s: float | None


def _asked_of(value: Any) -> _Asked:
    """Read what ``/call`` takes; raises `CallError`."""
    if not isinstance(value, dict):
        raise CallError("INVALID_INPUT", 'the body should be an object: {"operation": "namespace/name", "input": {}}')
    if unknown := value.keys() - {"operation", "input", "peer", "timeout_ms"}:
        words = f"unknown field {sorted(unknown)[0][:100]!r}; there are operation, input, peer and timeout_ms"
        raise CallError("INVALID_INPUT", words)
    name, peer, timeout_ms = value.get("operation"), value.get("peer"), value.get("timeout_ms")
    if not isinstance(name, str) or not 0 < len(name) <= MAX_NAME_CHARS + 1:
        raise CallError("INVALID_INPUT", "operation should be the name of one, such as services/list")
    if peer is not None and not (isinstance(peer, str) and 0 < len(peer) <= MAX_PEER_CHARS):
        raise CallError("INVALID_INPUT", "peer should be the name of a peer that is connected to this node")
    if timeout_ms is not None and not (type(timeout_ms) is int and 0 < timeout_ms <= MAX_TIMEOUT_MS):
        raise CallError("INVALID_INPUT", f"timeout_ms should be an integer from 1 to {MAX_TIMEOUT_MS}")
    timeout_s = None if timeout_ms is None else timeout_ms / 1000
    return _Asked(name.removeprefix("/"), value.get("input"), peer, timeout_s)


def _fields_of(exchange: Exchange) -> dict[str, Any]:
    """The query string of a route whose fields are all text or numbers."""
    fields: dict[str, Any] = {}
    for name, text in exchange.query():
        if name in fields:
            raise HttpError(422, "INVALID_INPUT", f"input.{name[:100]}: stands there twice")
        fields[name] = text
    return fields
