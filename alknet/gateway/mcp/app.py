"""MCP over streamable HTTP, at ``/mcp`` and ``/mcp/gateway``: the ASGI application that the gateway's routes end in.

What comes here has passed the gateway's checks: Host and Origin, the credential, the limits. The SDK's own check of
Host and Origin stays off: it knows neither the node's names nor the operator's list. Sessions, whom they belong to and
what ends them are here; messages are the SDK's, but for those that `brief.py` answers at once.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Final

from mcp.server.streamable_http import MCP_SESSION_ID_HEADER
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from mcp.server.subscriptions import ToolsListChanged
from mcp_types import INTERNAL_ERROR, INVALID_REQUEST, PARSE_ERROR, SERVER_INFO_META_KEY
from starlette.types import Receive, Scope, Send

from alknet.access import Access
from alknet.call.anonymous import LIFETIME_S
from alknet.call.codecs import JSON
from alknet.call.context import Caller
from alknet.call.errors import CallError, FrameError
from alknet.call.frames import HELLO_MAX_FRAME
from alknet.call.permitted import Permitted
from alknet.gateway.calls import Calls
from alknet.gateway.mcp import messages
from alknet.gateway.mcp.brief import OLD_VERSIONS, Brief, Headers
from alknet.gateway.mcp.messages import Patient, Watched, dropped, nothing, read_body, refuse, replayed
from alknet.gateway.mcp.node import Directory, NodeBackend
from alknet.gateway.mcp.server import Ctx, ToolServer, Turn
from alknet.gateway.mcp.sessions import OwnedSession, Sessions, owner_of
from alknet.tasks import Tasks

__all__ = ["CALLER", "PATHS", "TRACEPARENT", "McpApp", "McpSettings"]

PATHS: Final = {"/mcp": False, "/mcp/gateway": True}
"""Where it is served, and whether only the four general tools are shown there."""
CALLER: Final = "alknet.caller"
TRACEPARENT: Final = "alknet.traceparent"
"""Under these names the scope has who calls (`Caller`) and the trace that it belongs to (text, or None)."""
SWEEP_S: Final = 15.0
"""How often idle sessions are looked for, and answers that take long are kept alive."""
MAX_LISTENING: Final = 8
"""Streams of one caller, or of all strangers, that tell of changed lists."""
MAX_LASTING_BYTES: Final = 16 * 1024
"""Of a message that is kept for as long as a session or a stream is: it takes some thirty times as much in memory."""
CHANGES_PAUSE_S: Final = 1.0
"""Changes of what peers bring that come within this are told as one: each makes every client ask for its list."""
NOTIFY_TIMEOUT_S: Final = 5.0
"""What it may take to tell one session that its list has changed."""

_SESSION_ID: Final = MCP_SESSION_ID_HEADER.encode()
_VERSION: Final = b"mcp-protocol-version"
CALL: Final = "tools/call"
INITIALIZE: Final = "initialize"
LISTEN: Final = "subscriptions/listen"
LASTING: Final = (INITIALIZE, LISTEN)
BRIEF: Final = (CALL, "tools/list")
_TURN: Final = "alknet.mcp"
_LIVE: Final = Access(public=True)


@dataclass(frozen=True, slots=True)
class McpSettings:
    """See `config.model` for the meaning."""

    max_tools: int = 100


class McpApp:
    """`settings` may be replaced while it serves. `admit` is asked before each call of an operation, of which a
    request may make several, and refuses with a `CallError`.

    Whoever runs it cancels a request's task when the client is gone, and calls `recheck` after each change of what is
    allowed, and when a credential ends. What peers bring comes and goes without that; it sees to this itself.
    """

    def __init__(
        self,
        calls: Calls,
        settings: McpSettings,
        *,
        admit: Callable[[Caller], None] = lambda caller: None,
        permitted: Permitted | None = None,
    ) -> None:
        self.settings = settings
        self._calls = calls
        self._admit = admit
        self._directory = Directory(calls, permitted)
        self._server = ToolServer(_turn_of)
        stamp = JSON.encode({SERVER_INFO_META_KEY: self._server.server_info_stamp})
        self._brief = Brief(self._directory, stamp[1:-1])
        self._manager = StreamableHTTPSessionManager(
            self._server,
            session_idle_timeout=None,
            max_sessions=None,
            max_request_body_size=messages.MAX_BODY_BYTES,
        )
        self._sessions = Sessions(self._end_session)
        self._live: dict[Turn, asyncio.Task[Any]] = {}
        """Requests that the SDK has, and the tasks that run them."""
        self._patients: set[Patient] = set()
        self._tasks = Tasks("mcp")
        self._stopping = asyncio.Event()
        self._served = self._version_served()

    @property
    def in_flight(self) -> int:
        """Requests that the SDK has, open streams among them."""
        return len(self._live)

    # --- life -------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Begin to serve."""
        # It warns of what clients do wrong, in their words and as often as they like.
        logging.getLogger("mcp").setLevel(logging.ERROR)
        ready = asyncio.Event()
        self._tasks.start(self._run(ready), name="sessions")
        self._tasks.start(self._sweep(), name="sweep")
        self._tasks.start(self._watch(), name="watch")
        await ready.wait()

    def recheck(self) -> None:
        """End the sessions and streams of callers who may not go on, and tell the others if their lists may have
        changed. Calls are ended by `Calls.recheck`, before this."""
        for session in self._sessions.all():
            if not self._is_live(session.identity):
                self._sessions.close(session, is_refused=True)
        for turn, task in tuple(self._live.items()):
            if not turn.running and not turn.is_over and not self._is_live(turn.identity):
                turn.is_over = True
                task.cancel()
        self._tell_changes()

    async def aclose(self, deadline: float) -> None:
        """End all sessions and streams, once the calls in them are answered, or at `deadline` (event-loop time)."""
        calling = {task for turn, task in self._live.items() if turn.is_call}
        if calling:
            await asyncio.wait(calling, timeout=max(0.0, deadline - asyncio.get_running_loop().time()))
        for session in self._sessions.all():
            self._sessions.close(session)
        await self._server.aclose()
        self._stopping.set()
        await self._tasks.aclose()

    async def _run(self, ready: asyncio.Event) -> None:
        async with self._manager.run():
            ready.set()
            await self._stopping.wait()

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_S)
            self._sessions.close_idle(asyncio.get_running_loop().time())
            for patient in tuple(self._patients):
                patient.pulse(self._tasks)

    async def _watch(self) -> None:
        """Tell of what changes without a `recheck`."""
        changes = self._calls.dispatcher.changes
        number = changes.number
        while True:
            number = await changes.wait_beyond(number)
            self._tell_changes()
            await asyncio.sleep(CHANGES_PAUSE_S)

    def _tell_changes(self) -> None:
        """Tell everybody that their lists may have changed, if they may have."""
        if self._served == (served := self._version_served()):
            return
        self._served = served
        self._tasks.start(self._server.bus.publish(ToolsListChanged()), name="changed")
        for session in self._sessions.all():
            if session.changed is not None:
                self._tasks.start(_notify(session.changed()), name="changed")

    def _is_live(self, identity: Any) -> bool:
        """Whether this caller may still do anything at all; what, is decided at each call."""
        return identity is None or bool(self._calls.dispatcher.gate.still(identity, "mcp/session", access=_LIVE))

    def _version_served(self) -> tuple[object, object]:
        dispatcher = self._calls.dispatcher
        return dispatcher.registry, dispatcher.gate.policy

    def _end_session(self, session: OwnedSession) -> None:
        """As if its client had ended it: the SDK has no other door for that."""
        scope = {
            "type": "http",
            "method": "DELETE",
            "path": "/mcp",
            "query_string": b"",
            "headers": [(_SESSION_ID, (session.id or "").encode())],
            _TURN: None,
        }
        self._tasks.start(self._manager.handle_request(scope, nothing, dropped), name="end-session")

    # --- requests ---------------------------------------------------------------------------------------------------

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_general = PATHS.get(scope["path"].rstrip("/"))
        if is_general is None:
            return await refuse(send, 404, INVALID_REQUEST, "there is nothing here")
        headers, repeated = _headers(scope)
        who: Caller = scope[CALLER]
        caller = Caller(who.identity, "mcp", who.connection, who.remote, who.forwarded_for)
        backend = NodeBackend(self._directory, self._calls, caller, scope.get(TRACEPARENT), self._admit)
        turn = Turn(backend, self.settings.max_tools, is_general, caller.identity)
        session = None
        if headers.get(_VERSION) in OLD_VERSIONS and _SESSION_ID in headers:
            session = self._sessions.find(headers[_SESSION_ID].decode("latin-1"), caller.identity)
            if session is None or _SESSION_ID in repeated:
                return await refuse(send, 404, INVALID_REQUEST, "Session not found")
        body, message = None, None
        if scope["method"] == "POST":
            found = await _read(receive, send, caller)
            if found is None:
                return None
            body, message = found
        if caller.identity is None and _method(message) != CALL:  # calls are counted one by one
            try:
                self._admit(caller)
            except CallError as exc:
                return await refuse(send, 429, INTERNAL_ERROR, str(exc))
        if body is not None:
            if await self._answer_briefly(message, headers, repeated, turn, session, send):
                return None
            receive = replayed(body, receive)
        return await self._pass_on({**scope, _TURN: turn}, receive, Watched(send), message, session)

    async def _answer_briefly(
        self,
        message: Any,
        headers: Headers,
        repeated: set[bytes],
        turn: Turn,
        session: OwnedSession | None,
        send: Send,
    ) -> bool:
        """Whether it was answered without the SDK."""
        more = () if session is None else ((_SESSION_ID, headers[_SESSION_ID]),)
        patient = Patient(send, more)
        self._patients.add(patient)
        try:
            found = await self._brief.answer(message, headers, repeated, turn, session)
        finally:
            self._patients.discard(patient)
        if found is None:
            return False
        if session is not None:
            session.used = asyncio.get_running_loop().time()
        await patient.answer(found)
        return True

    async def _pass_on(
        self, scope: Scope, receive: Receive, send: Send, message: Any, session: OwnedSession | None
    ) -> None:
        """Let the SDK answer, and see what comes of it."""
        turn: Turn = scope[_TURN]
        turn.session = session
        method = _method(message)
        is_new = _headers(scope)[0].get(_VERSION) not in OLD_VERSIONS
        turn.is_call = method == CALL
        if method == LISTEN:
            turn.is_listening = True
            same = [one for one in self._live if one.is_listening and owner_of(one.identity) == owner_of(turn.identity)]
            if len(same) >= MAX_LISTENING:
                return await refuse(send, 503, INTERNAL_ERROR, f"this caller has {MAX_LISTENING} such streams already")
        if method == INITIALIZE and session is None and not is_new:
            return await self._open(scope, receive, send)
        if session is not None and method == "notifications/cancelled":
            session.cancel(message.get("params"))
        watched = Watched(send)
        await self._serve(scope, receive, watched, session)
        if session is not None and scope["method"] == "DELETE" and watched.status == 200:
            self._sessions.close(session)
        elif is_new and method in BRIEF and watched.status == 200:
            self._brief.envelopes.judged_good(message["params"]["_meta"])

    async def _open(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let the SDK begin a session, which is this caller's from the moment that its id is told."""
        turn: Turn = scope[_TURN]
        try:
            session = self._sessions.open(turn.identity, asyncio.get_running_loop().time())
        except CallError as exc:
            return await refuse(send, 503, INTERNAL_ERROR, str(exc))

        def begun(status: int, headers: dict[bytes, bytes]) -> None:
            self._sessions.opened(session, _text(headers.get(_SESSION_ID)) if status == 200 else None)

        turn.session = session
        watched = Watched(send, begun)
        serving = self._tasks.start(self._serve(scope, receive, watched, session), name="open")
        try:
            # Who has the answer may hang up before the SDK has come to its end; the session is to stay.
            await asyncio.shield(serving)
        except asyncio.CancelledError:
            if not watched.is_over:
                serving.cancel()
            await asyncio.wait({serving})
            raise
        finally:
            if session.id is None:
                self._sessions.opened(session, None)
            elif not session.is_initialized or not _went_well(serving):  # else the SDK has not kept it either
                self._sessions.close(session)
        return None

    async def _serve(self, scope: Scope, receive: Receive, send: Watched, session: OwnedSession | None) -> None:
        turn: Turn = scope[_TURN]
        task = asyncio.current_task()
        assert task is not None
        self._live[turn] = task
        if session is not None:
            session.in_flight += 1
        # A call has a time of its own, and then an answer.
        patience = LIFETIME_S if turn.identity is None and not turn.is_call else None
        try:
            async with asyncio.timeout(patience):
                await self._manager.handle_request(scope, receive, send)
        except TimeoutError:
            await send.finish()
        except asyncio.CancelledError:
            if not turn.is_over or task.uncancel() > 0:
                raise
            await send.finish()
        finally:
            turn.cancel()
            del self._live[turn]
            if session is not None:
                session.in_flight -= 1
                session.used = asyncio.get_running_loop().time()


async def _read(receive: Receive, send: Send, caller: Caller) -> tuple[bytes, Any] | None:
    """A message, as it came and as a value; None for one that was refused."""
    limit = messages.MAX_BODY_BYTES if caller.identity is not None else HELLO_MAX_FRAME
    body = await read_body(receive, limit)
    if body is None:
        await refuse(send, 413, INVALID_REQUEST, f"a message has at most {limit} bytes")
        return None
    try:
        message = JSON.decode(body)
    except FrameError as exc:
        await refuse(send, 400, PARSE_ERROR, f"Parse error: the body {exc}")
        return None
    if len(body) > MAX_LASTING_BYTES and (method := _method(message)) in LASTING:
        await refuse(send, 413, INVALID_REQUEST, f"{method} has at most {MAX_LASTING_BYTES} bytes")
        return None
    return body, message


def _turn_of(ctx: Ctx) -> Turn:
    assert ctx.request is not None  # over HTTP there is one
    turn: Turn = ctx.request.scope[_TURN]
    return turn


def _headers(scope: Scope) -> tuple[dict[bytes, bytes], set[bytes]]:
    """(each header's first value, the names of those that stand there twice)."""
    found: dict[bytes, bytes] = {}
    repeated = set()
    for name, value in scope["headers"]:
        if name in found:
            repeated.add(name)
        else:
            found[name] = value
    return found, repeated


def _went_well(task: asyncio.Task[Any]) -> bool:
    return task.done() and not task.cancelled() and task.exception() is None


def _method(message: Any) -> Any:
    return message.get("method") if isinstance(message, dict) else None


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode("latin-1")


async def _notify(sending: Coroutine[Any, Any, None]) -> None:
    """A session whose client reads nothing hears nothing."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(NOTIFY_TIMEOUT_S):
            await sending
