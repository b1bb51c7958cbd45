"""MCP over HTTP in front of a bench: real sockets and uvicorn, with what the gateway does before it cut short.

Who calls is what the bearer token says: each peer's token is its name.
"""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import uvicorn
from mcp import Client
from mcp.client.streamable_http import streamable_http_client

from alknet.call.context import Caller
from alknet.gateway.calls import Calls
from alknet.gateway.mcp.app import CALLER, TRACEPARENT, McpApp, McpSettings
from testkit.bench import Bench

__all__ = ["MODES", "McpBench", "RawMcp", "error_of", "message_of", "serve_mcp"]

NEW, OLD = "2026-07-28", "2025-11-25"
MODES = ("legacy", "2026-07-28")
"""What the official client calls the two revisions."""


class RawMcp:
    """Single messages over HTTP, in either revision."""

    def __init__(self, http: httpx2.AsyncClient, url: str, mode: str) -> None:
        self.http = http
        self.url = url
        self.is_new = mode != "legacy"
        self.session: str | None = None
        self.meta: dict[str, Any] = {
            "io.modelcontextprotocol/protocolVersion": NEW,
            "io.modelcontextprotocol/clientCapabilities": {},
            "io.modelcontextprotocol/clientInfo": {"name": "raw", "version": "1"},
        }

    async def open(self) -> None:
        """Begin a session, where there are sessions."""
        if not self.is_new:
            hello = {"protocolVersion": OLD, "capabilities": {}, "clientInfo": {"name": "raw", "version": "1"}}
            answer = await self.post("initialize", hello)
            assert answer.status_code == 200, answer.text
            self.session = answer.headers["mcp-session-id"]
            assert (await self.post("notifications/initialized", id=None)).status_code == 202

    def request(
        self, method: str, params: dict[str, Any] | None = None, *, id: Any = 1, **headers: str
    ) -> dict[str, Any]:
        """What httpx is to send. `headers` have ``_`` for ``-``."""
        body: dict[str, Any] = {"jsonrpc": "2.0", "method": method}
        fields = {"accept": "application/json, text/event-stream", "content-type": "application/json"}
        if id is not None:
            body["id"] = id
        if self.is_new:
            fields |= {"mcp-protocol-version": NEW, "mcp-method": method}
            if "name" in (params or {}):
                fields["mcp-name"] = str((params or {})["name"])
            params = {"_meta": self.meta, **(params or {})}
        elif self.session is not None:
            fields |= {"mcp-protocol-version": OLD, "mcp-session-id": self.session}
        if params is not None:
            body["params"] = params
        fields |= {name.replace("_", "-"): value for name, value in headers.items()}
        return {"method": "POST", "url": self.url, "json": body, "headers": fields}

    async def post(
        self, method: str, params: dict[str, Any] | None = None, *, id: Any = 1, **headers: str
    ) -> httpx2.Response:
        return await self.http.request(**self.request(method, params, id=id, **headers))

    async def message(self, method: str, params: dict[str, Any] | None = None, **how: Any) -> Any:
        """The last message of the answer, whether it came as JSON or as an event."""
        return message_of(await self.post(method, params, **how))


def message_of(answer: httpx2.Response) -> Any:
    """The last JSON-RPC message in an answer."""
    if answer.headers["content-type"].startswith("text/event-stream"):
        return json.loads(answer.text.rpartition("data: ")[2])
    return answer.json()


def error_of(result: Any) -> Any:
    """The error that a result of the official client has, in the two places where it is said."""
    assert result.is_error
    assert result.structured_content is None  # which would have to fit the output schema
    (text,) = result.content
    error = json.loads(text.text)
    assert result.meta["alknet/error"] == error
    return error


class McpBench:
    """A bench, and the URL at which it speaks MCP."""

    def __init__(self, bench: Bench, calls: Calls, app: McpApp, url: str) -> None:
        self.bench = bench
        self.calls = calls
        self.app = app
        self.url = url

    def change(self, **policy: Any) -> None:
        """Another policy, as a reload swaps it in."""
        self.bench.gate.policy = self.bench.policy(**policy)
        self.recheck()

    def recheck(self) -> None:
        """What a node does after a reload."""
        self.calls.recheck()
        self.app.recheck()

    @asynccontextmanager
    async def http(self, peer: str | None = "alice") -> AsyncIterator[httpx2.AsyncClient]:
        """Plain HTTP as this peer."""
        headers = {} if peer is None else {"authorization": f"Bearer {peer}"}
        async with httpx2.AsyncClient(headers=headers, timeout=20) as http:
            yield http

    @asynccontextmanager
    async def raw(self, mode: str, peer: str | None = "alice") -> AsyncIterator[RawMcp]:
        """Single messages as this peer, in a session where there are sessions."""
        async with self.http(peer) as http:
            raw = RawMcp(http, self.url, mode)
            await raw.open()
            yield raw

    @asynccontextmanager
    async def client(self, mode: str, peer: str | None = "alice", *, path: str = "", **options: Any) -> Any:
        """The official client as this peer."""
        async with self.http(peer) as http:
            transport = streamable_http_client(self.url + path, http_client=http)
            async with Client(transport, mode=mode, cache=None, **options) as client:
                yield client


@asynccontextmanager
async def serve_mcp(
    bench: Bench,
    settings: McpSettings | None = None,
    *,
    admit: Callable[[Caller], None] = lambda caller: None,
) -> AsyncIterator[McpBench]:
    """Serve it on a free port of loopback."""
    calls = Calls(bench.dispatcher)
    app = McpApp(calls, settings or McpSettings(), admit=admit)
    await app.start()

    async def outer(scope: Any, receive: Any, send: Any) -> None:
        token = dict(scope["headers"]).get(b"authorization", b"").decode().removeprefix("Bearer ")
        identity = bench.caller(token).identity if token else None
        scope[CALLER], scope[TRACEPARENT] = Caller(identity, "http", "c1", "127.0.0.1"), None
        await _until_gone(app, scope, receive, send)

    # With the protocol named, asyncio sets TCP_NODELAY on what is accepted.
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listener:
        listener.bind(("127.0.0.1", 0))
        config = uvicorn.Config(outer, log_level="error", lifespan="off", access_log=False)
        server = uvicorn.Server(config)
        server.install_signal_handlers = lambda: None  # type: ignore[method-assign]
        serving = asyncio.create_task(server.serve([listener]))  # noqa: TID251
        while not server.started:
            await asyncio.sleep(0.005)
        try:
            yield McpBench(bench, calls, app, f"http://127.0.0.1:{listener.getsockname()[1]}/mcp")
        finally:
            loop = asyncio.get_running_loop()
            await calls.drain(loop.time() + 1)
            await app.aclose(loop.time() + 1)
            server.should_exit = True
            await serving


async def _until_gone(app: Any, scope: Any, receive: Any, send: Any) -> None:
    """As the gateway's HTTP protocol does: who is gone needs no answer, and the request's task is cancelled."""
    messages: asyncio.Queue[Any] = asyncio.Queue()
    is_answered = False

    async def read() -> None:
        while True:
            message = await receive()
            if not is_answered:
                messages.put_nowait(message)
            if message["type"] == "http.disconnect":
                if not is_answered:
                    serving.cancel()
                return

    async def write(message: Any) -> None:
        nonlocal is_answered
        is_answered = message["type"] == "http.response.body" and not message.get("more_body", False)
        await send(message)

    serving = asyncio.create_task(app(scope, messages.get, write))  # noqa: TID251
    reading = asyncio.create_task(read())  # noqa: TID251
    try:
        await asyncio.wait({serving})
        if not serving.cancelled():
            serving.result()
    finally:
        serving.cancel()
        reading.cancel()
