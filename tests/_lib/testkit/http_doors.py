"""The ways to call an operation over a node's HTTP door, each as a function that looks alike to a test.

Programs of others speak here: httpx, the ``websockets`` library and the official MCP client. What every answer must
have, whichever it is, is asserted here.

``PEER:NAME`` is the operation of a peer of the node, for those ways that have words for it.
"""

import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlencode

import httpx2
import websockets
from mcp import Client
from mcp.client.streamable_http import streamable_http_client

from alknet.gateway.problems import STATUS
from testkit.mcp_bench import error_of
from testkit.node import NodeProcess

__all__ = [
    "Answer",
    "Ask",
    "Door",
    "WebSocketCaller",
    "events_of",
    "http_client",
    "http_doors",
    "is_stream",
    "mcp_client",
    "named",
]

Answer = tuple[str, str, str | None, Any]
"""("ok" or the error's code, its message, its denial id, the output)."""
Ask = Callable[[str, str], Awaitable[Answer | None]]
"""Calls an operation with an input as JSON; None where the door has no words for that input."""

STREAMS: Final = frozenset({"matrix/item"})
WITHOUT_GET: Final = STREAMS | {"node/reload", "node/kill", "test/echo", "test/order"}
"""Mutations, and queries whose input does not fit into a URL."""
EXPOSED: Final = "w/"
"""Before the names of what a hub exposes."""
DECLARED: Final = {"SOLD_OUT": 409}
OK: Final = "ok"
MODES: Final = {"2025-11-25": "legacy", "2026-07-28": "2026-07-28"}
"""What the official client calls the two revisions."""
PATIENCE_S: Final = 20.0


@dataclass(frozen=True, slots=True)
class Door:
    """`surface` is what the audit log calls it; `takes` tells whether an operation may be asked for here at all, by
    those who may call it: where not, the answer is INVALID_OPERATION_TYPE."""

    ask: Ask
    surface: str
    takes: Callable[[str], bool] = lambda name: True


@asynccontextmanager
async def http_client(
    node: NodeProcess, token: str | None, *, scheme: str = "http", source: str = "127.0.0.1"
) -> AsyncIterator[httpx2.AsyncClient]:
    """A client of the node with this token, whose connections come from the loopback address `source`."""
    context = ssl.create_default_context(cafile=node.home / "keys" / "tls.crt")
    transport = httpx2.AsyncHTTPTransport(verify=context, local_address=source)
    headers = {} if token is None else {"authorization": f"Bearer {token}"}
    async with httpx2.AsyncClient(
        base_url=f"{scheme}://127.0.0.1:{node.port}", headers=headers, transport=transport, timeout=PATIENCE_S
    ) as client:
        yield client


@asynccontextmanager
async def mcp_client(http: httpx2.AsyncClient, revision: str, path: str = "/mcp") -> AsyncIterator[Any]:
    """The official client in a revision of the protocol."""
    transport = streamable_http_client(str(http.base_url).rstrip("/") + path, http_client=http)
    async with Client(transport, mode=MODES[revision], cache=None) as client:
        yield client


@asynccontextmanager
async def http_doors(node: NodeProcess, token: str | None) -> AsyncIterator[dict[str, Door]]:
    """Every way over HTTP for whoever has the token, None for nobody in particular.

    They come from several addresses, because nobody in particular has so many calls a second from each.
    """
    async with AsyncExitStack() as stack:
        http = await stack.enter_async_context(http_client(node, token, source="127.0.0.2"))
        https = await stack.enter_async_context(http_client(node, token, scheme="https", source="127.0.0.3"))
        tools = await stack.enter_async_context(http_client(node, token, source="127.0.0.4"))
        socket = await stack.enter_async_context(WebSocketCaller.connect(node, token, source="127.0.0.5"))
        found = {
            "POST /call": Door(_call(http), "http", _is_called),
            "POST /call over TLS": Door(_call(https), "https", _is_called),
            "POST /batch": Door(_batch(https), "https", _is_called),
            "POST /subscribe": Door(_subscribe(http, "/subscribe"), "http", is_stream),
            "POST /ops": Door(_subscribe(https, "/ops/"), "https"),
            "GET /ops": Door(_get(http), "http", _is_got),
            "WebSocket": Door(socket.ask, "websocket"),
        }
        for revision in MODES:
            client = await stack.enter_async_context(mcp_client(tools, revision))
            found[f"MCP {revision}"] = Door(_tool(client), "mcp")
            client = await stack.enter_async_context(mcp_client(https, revision, "/mcp/gateway"))
            found[f"MCP {revision}, call"] = Door(_tool(client, "call"), "mcp")
        yield found


def named(name: str) -> tuple[str | None, str]:
    """(the peer, if one is named, the operation)."""
    peer, _, operation = name.rpartition(":")
    return peer or None, operation


def is_stream(name: str) -> bool:
    """Whether it is a subscription, here or where it comes from."""
    return named(name)[1].removeprefix(EXPOSED) in STREAMS


def _is_called(name: str) -> bool:
    return not is_stream(name)


def _is_got(name: str) -> bool:
    return name.removeprefix(EXPOSED) not in WITHOUT_GET


def _asked(name: str, text: str) -> dict[str, Any]:
    """What ``/call`` and its like take."""
    peer, operation = named(name)
    return {"operation": operation, "input": json.loads(text), **({} if peer is None else {"peer": peer})}


# --- requests and answers -----------------------------------------------------------------------------------------


def _call(http: httpx2.AsyncClient) -> Ask:
    async def ask(name: str, text: str) -> Answer:
        response = await http.post("/call", json=_asked(name, text))
        if response.status_code == 200:
            body = response.json()
            assert sorted(body) == ["output", "request_id", "result"]
            assert (body["result"], body["request_id"]) == (OK, response.headers["alknet-request-id"])
            return OK, "", None, body["output"]
        return refusal(response)

    return ask


def _batch(http: httpx2.AsyncClient) -> Ask:
    async def ask(name: str, text: str) -> Answer:
        response = await http.post("/batch", json=[_asked(name, text)])
        assert response.status_code == 200
        (one,) = response.json()["results"]
        if one["result"] == OK:
            assert one["request_id"].startswith("req_")
            return OK, "", None, one["output"]
        assert one["error"].get("request_id") == one["request_id"]
        return _error(one["error"])

    return ask


def _subscribe(http: httpx2.AsyncClient, path: str) -> Ask:
    """``/subscribe``, or ``/ops/`` with whatever kind of operation."""

    async def ask(name: str, text: str) -> Answer | None:
        if path == "/subscribe":
            response = await http.post(path, json=_asked(name, text))
        elif named(name)[0] is not None:
            return None
        else:
            response = await http.post(path + name, json=json.loads(text))
        if response.status_code != 200:
            return refusal(response)
        if response.headers["content-type"] != "text/event-stream":
            assert response.headers["content-type"] == "application/json"
            return OK, "", None, response.json()
        *items, last = events_of(response.text)
        assert last == {"event": "completed", "data": {}}
        assert [one["id"] for one in items] == [str(number) for number in range(1, len(items) + 1)]
        return OK, "", None, [one["data"] for one in items]

    return ask


def _get(http: httpx2.AsyncClient) -> Ask:
    async def ask(name: str, text: str) -> Answer | None:
        value = json.loads(text)
        if named(name)[0] is not None or (not all(isinstance(one, str) for one in value.values()) and _is_got(name)):
            return None
        pairs = {key: one if isinstance(one, str) else json.dumps(one) for key, one in value.items()}
        response = await http.get(f"/ops/{name}?{urlencode(pairs)}" if pairs else f"/ops/{name}")
        return (OK, "", None, response.json()) if response.status_code == 200 else refusal(response)

    return ask


def _tool(client: Any, through: str | None = None) -> Ask:
    """``tools/call`` of the operation's own tool, or of the general one `through` which it is called."""

    async def ask(name: str, text: str) -> Answer | None:
        if through is not None:
            result = await client.call_tool(through, _asked(name, text))
        elif named(name)[0] is not None:
            return None
        else:
            result = await client.call_tool(name.replace("/", "."), json.loads(text))
        if result.is_error:
            return _error(error_of(result))
        content = result.structured_content
        assert json.loads(result.content[0].text) == content
        if is_stream(name):
            assert content["truncated"] is False
            return OK, "", None, content["items"]
        is_wrapped = isinstance(content, dict) and set(content) == {"result"}
        return OK, "", None, content["result"] if is_wrapped else content

    return ask


def refusal(response: httpx2.Response) -> Answer:
    """What a problem document says, after a look at all that it must have."""
    assert response.headers["content-type"] == "application/problem+json", response.text
    assert (response.headers["cache-control"], response.headers["x-content-type-options"]) == ("no-store", "nosniff")
    problem = response.json()
    code, status = problem["code"], response.status_code
    is_anonymous = "authorization" not in response.request.headers
    expected = DECLARED.get(code) or (401 if code == "FORBIDDEN" and is_anonymous else STATUS[code])
    if code == "INVALID_OPERATION_TYPE" and response.request.method == "GET":
        expected = 405
        assert response.headers["allow"] == "POST"
    assert status == expected, (code, problem)
    assert ("www-authenticate" in response.headers) == (status == 401)
    assert (problem.pop("type"), problem.pop("status")) == ("about:blank", status)
    assert problem.pop("title") == response.reason_phrase
    assert problem.pop("detail") == problem["message"]
    return _error(problem)


def _error(error: dict[str, Any], *, has_request_id: bool = True) -> Answer:
    """Only what names nothing, or nothing of this kind, is not in the audit log and has no id there."""
    if has_request_id and (error["code"] not in ("NOT_FOUND", "INVALID_OPERATION_TYPE") or "request_id" in error):
        assert error.pop("request_id").startswith("req_")
    assert set(error) - {"details", "denial_id"} == {"code", "message", "retryable"}
    assert ("denial_id" in error) == (error["code"] == "FORBIDDEN")
    return error["code"], error["message"], error.get("denial_id"), None


def events_of(text: str) -> list[dict[str, Any]]:
    """The events of an event stream: each with ``data`` as a value, and ``id`` or ``event`` where it has them."""
    found = []
    for block in text.split("\n\n"):
        lines = [line.partition(": ") for line in block.splitlines() if not line.startswith(":")]
        if lines:
            fields = {key: value for key, _, value in lines}
            found.append({**fields, "data": json.loads(fields["data"])})
    return found


# --- WebSocket ----------------------------------------------------------------------------------------------------


class WebSocketCaller:
    """The call protocol over a WebSocket, as JSON, one call at a time."""

    def __init__(self, socket: Any) -> None:
        self.socket = socket
        self._calls = 0

    @classmethod
    @asynccontextmanager
    async def connect(
        cls,
        node: NodeProcess,
        token: str | None = None,
        *,
        source: str = "127.0.0.1",
        subprotocols: tuple[str, ...] = ("alknet.call.v1",),
        **options: Any,
    ) -> AsyncIterator["WebSocketCaller"]:
        """A session for whoever has the token, after the hello."""
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        url = f"ws://127.0.0.1:{node.port}/alknet/call"
        async with websockets.connect(
            url,
            additional_headers=headers,
            subprotocols=subprotocols,
            local_addr=(source, 0),
            open_timeout=PATIENCE_S,
            **options,
        ) as socket:
            assert socket.subprotocol == "alknet.call.v1"
            caller = cls(socket)
            start = {"versions": [1], "features": [], "codecs": ["json"], "nonce": "A" * 43 + "="}
            await caller.send("hello.start", "hello", {"data": json.dumps(start)})
            assert (await caller.receive())["type"] == "hello.challenge"
            assert (await caller.receive())["type"] == "hello.accepted"
            yield caller

    async def send(self, kind: str, id: str, payload: dict[str, Any]) -> None:
        """Send one envelope."""
        await self.socket.send(json.dumps({"type": kind, "id": id, "payload": payload}).encode())

    async def receive(self) -> Any:
        """The next envelope."""
        message = await self.socket.recv()
        assert isinstance(message, bytes)
        return json.loads(message)

    async def ask(self, name: str, text: str) -> Answer:
        """Call or subscribe; the output, or all items."""
        self._calls += 1
        id, items = f"ask{self._calls}", []
        peer, operation = named(name)
        request = {"operationId": "/" + operation, "input": json.loads(text)}
        await self.send("call.requested", id, request if peer is None else {**request, "peer": peer})
        while True:
            envelope = await self.receive()
            assert envelope["id"] == id
            payload = envelope["payload"]
            match envelope["type"]:
                case "call.error":
                    return _error(payload, has_request_id=False)
                case "call.completed":
                    return OK, "", None, items
                case "call.responded" if is_stream(name):
                    items.append(payload["output"])
                case "call.responded":
                    return OK, "", None, payload["output"]
