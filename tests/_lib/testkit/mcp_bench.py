"""MCP over HTTP in front of a bench: real sockets and uvicorn, with what the gateway does before it cut short.

Who calls is what the bearer token says: each peer's token is its name.
"""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import uvicorn
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from testkit.bench import Bench

from alknet.call.context import Caller
from alknet.gateway.calls import Calls
from alknet.gateway.mcp.app import CALLER, TRACEPARENT, McpApp, McpSettings

__all__ = ["MODES", "McpBench", "serve_mcp"]

MODES = ("legacy", "2026-07-28")
"""What the official client calls the two revisions."""


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

    with socket.socket() as listener:
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
    gone: asyncio.Queue[Any] = asyncio.Queue()

    async def read() -> None:
        while True:
            message = await receive()
            gone.put_nowait(message)
            if message["type"] == "http.disconnect":
                serving.cancel()
                return

    serving = asyncio.create_task(app(scope, gone.get, send))  # noqa: TID251
    reading = asyncio.create_task(read())  # noqa: TID251
    try:
        await asyncio.wait({serving})
        if not serving.cancelled():
            serving.result()
    finally:
        serving.cancel()
        reading.cancel()
