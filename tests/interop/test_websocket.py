"""The call protocol over a WebSocket, spoken by the ``websockets`` library and by nothing of alknet's."""

import asyncio
import base64
import json
import os
import signal
import ssl
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import msgpack
import pytest
import websockets
from websockets.exceptions import ConnectionClosed, InvalidStatus

from alknet import Node
from alknet.gateway import tickets
from testkit.as_user import Launcher
from testkit.node import NodeProcess
from testkit.service_nodes import service_node

pytestmark = pytest.mark.interop

SUBPROTOCOL = "alknet.call.v1"
STOPPED_S = 0.2
"""Within so much time a handler stops whose answer nobody wants."""
REVOKED_S = 2.0
PATIENCE_S = 20.0
MAX_FRAME = 1024 * 1024
ANONYMOUS_MAX_FRAME = 64 * 1024
CODECS: dict[str, Any] = {
    "json": (lambda value: json.dumps(value).encode(), json.loads),
    "msgpack": (msgpack.packb, msgpack.unpackb),
}


class Caller:
    """An open session. `receive` gives envelope after envelope."""

    def __init__(self, socket: Any) -> None:
        self.socket = socket
        self.challenge: dict[str, Any] = {}
        self.accepted: dict[str, Any] = {}
        self.encode, self.decode = CODECS["json"]
        self._count = 0

    async def say_hello(self, codec: str, features: tuple[str, ...]) -> None:
        nonce = base64.b64encode(os.urandom(32)).decode()
        data = {"versions": [1], "features": list(features), "codecs": [codec], "nonce": nonce}
        await self.send("hello.start", "hello", data=json.dumps(data))
        challenge, accepted = await self.receive(), await self.receive()
        assert (challenge["type"], accepted["type"]) == ("hello.challenge", "hello.accepted")
        assert "signature" not in challenge["payload"], "the upgrade has said who is there, as SSH does"
        self.challenge = json.loads(challenge["payload"]["data"])
        self.accepted = json.loads(accepted["payload"]["data"])
        self.encode, self.decode = CODECS[codec]

    async def send(self, kind: str, id: str, **payload: Any) -> None:
        await self.socket.send(self.encode({"type": kind, "id": id, "payload": payload}))

    async def request(self, name: str, value: Any = None, **fields: Any) -> str:
        """Begin a call; its id."""
        self._count += 1
        id = f"mine{self._count}"
        await self.send("call.requested", id, operationId="/" + name, input={} if value is None else value, **fields)
        return id

    async def receive(self) -> dict[str, Any]:
        async with asyncio.timeout(PATIENCE_S):
            message = await self.socket.recv()
        assert isinstance(message, bytes)
        found: dict[str, Any] = self.decode(message)
        return found

    async def call(self, name: str, value: Any = None, **fields: Any) -> Any:
        """The output, or (code, details) of the error, of a call while nothing else runs."""
        id = await self.request(name, value, **fields)
        answer = await self.receive()
        assert answer["id"] == id
        if answer["type"] == "call.responded":
            return answer["payload"]["output"]
        assert answer["type"] == "call.error"
        return answer["payload"]["code"], answer["payload"].get("details")

    async def seen(self, mark: str, key: str) -> Any:
        """What ``test/seen`` has of a mark, once it is there."""
        async with asyncio.timeout(PATIENCE_S):
            while not (await self.call("test/seen", {"mark": mark}) or {}).get(key):
                await asyncio.sleep(0.002)
        return await self.call("test/seen", {"mark": mark})

    async def closed(self) -> tuple[list[dict[str, Any]], int]:
        """(what still came, the close code)."""
        rest = []
        try:
            while True:
                rest.append(await self.receive())
        except ConnectionClosed:
            return rest, self.socket.close_code


@asynccontextmanager
async def connected(
    node: Any,
    token: str | None = None,
    *,
    scheme: str = "ws",
    ticket: str | None = None,
    origin: str | None = None,
    codec: str = "json",
    features: tuple[str, ...] = ("credit",),
    **how: Any,
) -> AsyncIterator[Caller]:
    names = [SUBPROTOCOL] if ticket is None else [SUBPROTOCOL, f"alknet.ticket.{ticket}"]
    if scheme == "wss":
        how["ssl"] = ssl.create_default_context(cafile=node.home / "keys" / "tls.crt")
    async with websockets.connect(
        f"{scheme}://127.0.0.1:{node.port}/alknet/call",
        subprotocols=how.pop("subprotocols", names),
        additional_headers={} if token is None else {"Authorization": f"Bearer {token}"},
        origin=origin,  # type: ignore[arg-type]
        open_timeout=PATIENCE_S,
        **how,
    ) as socket:
        assert socket.subprotocol == SUBPROTOCOL, "the ticket is not repeated"
        caller = Caller(socket)
        await caller.say_hello(codec, features)
        yield caller


async def refused(node: Any, token: str | None = None, **how: Any) -> tuple[int, dict[str, Any]]:
    """(status, problem) of an upgrade that is turned down."""
    with pytest.raises(InvalidStatus) as caught:
        async with connected(node, token, **how):
            raise AssertionError("it was let in")
    response = caught.value.response
    assert response.headers["content-type"] == "application/problem+json"
    assert response.body is not None
    return response.status_code, json.loads(response.body)


async def ticket_for(node: Any, token: str, origin: str | None = None) -> str:
    headers = {"authorization": f"Bearer {token}"} | ({} if origin is None else {"origin": origin})
    async with httpx2.AsyncClient(timeout=PATIENCE_S) as client:
        answer = await client.post(f"http://127.0.0.1:{node.port}/ticket", headers=headers)
    assert answer.json()["expires_in"] == 30
    return str(answer.json()["ticket"])


def token_of(node: NodeProcess, *words: str) -> str:
    return node.alknet("token", "create", "--scope", "*", *words).stdout.strip()


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory, launcher: Launcher) -> Iterator[NodeProcess]:
    """One node for all tests that leave it as it was."""
    with service_node(tmp_path_factory.mktemp("node"), launcher) as running:
        running.write_peer("alice", 'scopes = ["test:echo", "test:wait"]')
        running.alknet("config", "reload")
        yield running


@pytest.fixture(scope="module")
def token(node: NodeProcess) -> str:
    return token_of(node)


@pytest.fixture
def mark() -> str:
    """What no other test calls anything."""
    return os.urandom(8).hex()


# --- calls ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["ws", "wss"])
@pytest.mark.parametrize("codec", ["json", "msgpack"])
async def test_a_call_over_a_websocket(node: NodeProcess, token: str, scheme: str, codec: str) -> None:
    async with connected(node, token, scheme=scheme, codec=codec) as caller:
        assert caller.accepted == {"identity": "owner"}
        assert (caller.challenge["version"], caller.challenge["codec"]) == (1, codec)
        assert caller.challenge["limits"]["max_frame"] == MAX_FRAME
        for value in (None, True, -1, 1.5, "grüße 你好", [], {"": [{}]}, "x" * 500_000):
            assert await caller.call("test/echo", {"value": value}) == value
        assert await caller.call("test/identity") == {"peer": "owner", "surface": "websocket"}
        code, details = await caller.call("test/typed", {"name": 5})
        assert (code, details[0]["path"]) == ("INVALID_INPUT", ["name"])
        assert await caller.call("test/none") == ("NOT_FOUND", {"operation": "test/none"})


async def test_many_calls_at_once_are_told_apart_by_their_ids(node: NodeProcess, token: str) -> None:
    async with connected(node, token) as caller:
        ids = {await caller.request("test/echo", {"value": number}): number for number in range(200)}
        answers = [await caller.receive() for _ in ids]
        assert {answer["id"]: answer["payload"]["output"] for answer in answers} == ids


async def test_a_subscription_sends_no_more_than_its_credit(node: NodeProcess, token: str) -> None:
    async with connected(node, token) as caller:
        id = await caller.request("test/count", {"to": 100}, credit=4)
        first = [await caller.receive() for _ in range(4)]
        assert [one["payload"]["output"]["number"] for one in first] == [0, 1, 2, 3]
        assert await caller.call("test/echo", {"value": "in between"}) == "in between"
        await caller.send("call.credit", id, n=3)
        more = [await caller.receive() for _ in range(3)]
        assert [one["payload"]["output"]["number"] for one in more] == [4, 5, 6]
        assert await caller.call("test/echo", {"value": "again"}) == "again"
        await caller.send("call.credit", id, n=1000)
        rest = [await caller.receive() for _ in range(94)]
        assert [one["payload"]["output"]["number"] for one in rest[:-1]] == list(range(7, 100))
        assert rest[-1] == {"type": "call.completed", "id": id, "payload": {}}


async def test_without_credit_the_reader_sets_the_pace(node: NodeProcess, token: str, mark: str) -> None:
    async with (
        connected(node, token, features=(), max_queue=1) as caller,
        connected(node, token) as other,
    ):
        await caller.request("test/count", {"to": 2000, "size": 20_000})
        # Nobody reads, so the 40 MB do not come; what is on its way fits into buffers.
        assert await other.call("test/echo", {"value": 1}) == 1
        got = [await caller.receive() for _ in range(2001)]
        assert got[-1]["type"] == "call.completed"
        assert [one["payload"]["output"]["number"] for one in got[:-1]] == list(range(2000))


@pytest.mark.parametrize(("name", "fields"), [("test/wait", {}), ("test/endless", {"credit": 8})])
@pytest.mark.parametrize("how", ["aborted", "disconnected", "cut"])
async def test_what_nobody_wants_any_more_stops(
    node: NodeProcess, token: str, mark: str, name: str, fields: dict[str, Any], how: str
) -> None:
    async with connected(node, token) as watcher, connected(node, token) as caller:
        id = await caller.request(name, {"mark": mark}, **fields)
        await watcher.seen(mark, "began")
        stopped = time.monotonic()
        if how == "aborted":
            await caller.send("call.aborted", id)
        elif how == "disconnected":
            await caller.socket.close()
        else:
            caller.socket.transport.abort()
        end = await watcher.seen(mark, "how")
        assert end["how"] in ("CancelledError", "GeneratorExit")
        assert end["ended"] - stopped < STOPPED_S


# --- the other direction ----------------------------------------------------------------------------------------------


async def test_the_node_calls_what_this_caller_brings(node: NodeProcess, token: str) -> None:
    async with connected(node, token) as caller, connected(node, token) as other:
        asking = await caller.request("test/back", {"name": "test/confirm", "value": {"question": "?"}})
        asked = await caller.receive()
        assert asked["type"] == "call.requested"
        assert (asked["payload"]["operationId"], asked["payload"]["input"]) == ("/test/confirm", {"question": "?"})
        assert 0 < asked["payload"]["timeout_ms"] <= 30_000
        assert asked["id"] != asking
        assert await other.call("test/echo", {"value": 1}) == 1  # and it was not asked
        await caller.send("call.responded", asked["id"], output="yes")
        answer = await caller.receive()
        assert (answer["id"], answer["payload"]) == (asking, {"output": "yes"})


async def test_a_caller_that_brings_no_such_thing_says_so(node: NodeProcess, token: str) -> None:
    async with connected(node, token) as caller:
        asking = await caller.request("test/back", {"name": "test/confirm", "value": {}})
        asked = await caller.receive()
        error = {"code": "NOT_FOUND", "message": "no such operation", "retryable": False}
        await caller.send("call.error", asked["id"], **error)
        answer = await caller.receive()
        assert (answer["id"], answer["payload"]["details"]["code"]) == (asking, "NOT_FOUND")


async def test_a_call_that_is_given_up_takes_its_question_back(node: NodeProcess, token: str) -> None:
    async with connected(node, token) as caller:
        asking = await caller.request("test/back", {"name": "test/confirm", "value": {}})
        asked = await caller.receive()
        await caller.send("call.aborted", asking)
        taken = await caller.receive()
        assert (taken["type"], taken["id"]) == ("call.aborted", asked["id"])


async def test_over_plain_requests_there_is_no_way_back(node: NodeProcess, token: str) -> None:
    async with httpx2.AsyncClient(timeout=PATIENCE_S) as client:
        answer = await client.post(
            f"http://127.0.0.1:{node.port}/ops/test/back",
            json={"name": "test/echo", "value": {}},
            headers={"authorization": f"Bearer {token}"},
        )
    assert (answer.status_code, answer.json()["details"]["code"]) == (500, "UNAVAILABLE")


# --- who is there -----------------------------------------------------------------------------------------------------


async def test_nobody_in_particular_gets_little(node: NodeProcess, token: str) -> None:
    async with connected(node) as caller:
        assert caller.accepted == {}
        assert await caller.call("test/identity") == {"peer": None, "surface": "websocket"}
        assert await caller.call("test/echo", {"value": 1}) == ("FORBIDDEN", None)
        assert await caller.call("test/none") == ("FORBIDDEN", None)
        assert (await caller.call("test/echo", {"value": 1}, auth_token=token)) == 1
        await caller.socket.send(b" " * (ANONYMOUS_MAX_FRAME + 1))
        assert (await caller.closed())[1] == 1009


async def test_a_ticket_serves_once_and_where_it_was_made(node: NodeProcess, token: str) -> None:
    origin = f"http://127.0.0.1:{node.port}"
    ticket = await ticket_for(node, token, origin)
    async with connected(node, ticket=ticket, origin=origin) as caller:
        assert caller.accepted == {"identity": "owner"}
        assert (await caller.call("test/identity"))["peer"] == "owner"
    status, problem = await refused(node, ticket=ticket, origin=origin)
    assert (status, problem["code"]) == (401, "FORBIDDEN")
    assert problem["denial_id"].startswith("den_")
    assert (await refused(node, ticket="0" * 32, origin=origin))[0] == 401
    assert (await refused(node, ticket="", origin=origin))[0] == 401
    # One that a program has made is not for a page, nor the reverse, and the attempt uses it up.
    ticket = await ticket_for(node, token)
    assert (await refused(node, ticket=ticket, origin=origin))[0] == 401
    assert (await refused(node, ticket=ticket))[0] == 401
    ticket = await ticket_for(node, token, origin)
    assert (await refused(node, ticket=ticket))[0] == 401
    async with connected(node, ticket=await ticket_for(node, token)) as caller:
        assert caller.accepted == {"identity": "owner"}


async def test_a_ticket_does_not_outlive_its_token(node: NodeProcess) -> None:
    text = token_of(node)
    ticket = await ticket_for(node, text)
    node.alknet("token", "revoke", text[4:12])
    status, problem = await refused(node, ticket=ticket)
    assert (status, problem["code"]) == (401, "FORBIDDEN")


async def test_a_ticket_expires(tmp_path: Path, launcher: Launcher, monkeypatch: pytest.MonkeyPatch) -> None:
    home = NodeProcess(tmp_path, launcher=launcher)
    text = token_of(home)
    monkeypatch.setattr(tickets, "TICKET_S", -1.0)  # the clock of an event loop cannot be moved
    async with Node(home.home) as running:
        home.port = int(running.addresses[0].rpartition(":")[2])
        ticket = await ticket_for(home, text)
        assert (await refused(home, ticket=ticket))[0] == 401


@pytest.mark.parametrize("origin", ["https://elsewhere.example", "null", "http://127.0.0.1:1"])
async def test_a_page_of_another_origin_is_refused_before_its_credential(
    node: NodeProcess, token: str, origin: str
) -> None:
    ticket = await ticket_for(node, token)
    assert (await refused(node, ticket=ticket, origin=origin))[0] == 403
    async with connected(node, ticket=ticket) as caller:  # it was not looked at
        assert caller.accepted == {"identity": "owner"}


async def test_a_wrong_token_is_refused_and_never_taken_for_nobody(node: NodeProcess) -> None:
    status, problem = await refused(node, "alk_" + "x" * 36)
    assert (status, problem["code"]) == (401, "FORBIDDEN")


@pytest.mark.parametrize("names", [None, ["chat"], ["alknet.call.v2"]])
async def test_the_protocol_must_be_asked_for(node: NodeProcess, token: str, names: list[str] | None) -> None:
    status, problem = await refused(node, token, subprotocols=names)
    assert (status, SUBPROTOCOL in problem["message"]) == (400, True)


async def test_a_plain_request_is_told_what_stands_there(node: NodeProcess, token: str) -> None:
    async with httpx2.AsyncClient(timeout=PATIENCE_S) as client:
        answer = await client.get(f"http://127.0.0.1:{node.port}/alknet/call")
    assert (answer.status_code, answer.headers["upgrade"]) == (426, "websocket")


# --- what is no envelope ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ("{}", 1003),
        (b"", 1002),
        (b"x" * (MAX_FRAME + 1), 1009),
    ],
)
async def test_a_message_that_is_no_envelope_closes(
    node: NodeProcess, token: str, mark: str, message: str | bytes, code: int
) -> None:
    async with connected(node, token) as watcher, connected(node, token) as caller:
        await caller.request("test/wait", {"mark": mark})
        await watcher.seen(mark, "began")
        await caller.socket.send(message)
        _, found = await caller.closed()
        assert found == code
        assert (await watcher.seen(mark, "how"))["how"] == "CancelledError"


@pytest.mark.parametrize("message", [b"{", b"[" * 100 + b"]" * 100, b"\xff", b"[NaN]"])
async def test_what_cannot_be_read_is_told_and_closes(node: NodeProcess, token: str, message: bytes) -> None:
    async with connected(node, token) as caller:
        await caller.socket.send(message)
        rest, code = await caller.closed()
        assert [one["type"] for one in rest] == ["session.goaway"]
        assert rest[0]["payload"]["reason"]
        assert code in (1000, 1001)


@pytest.mark.parametrize("message", [b"{}", b"[]", b'{"type":"x","id":"y","payload":{}}', b'"text"'])
async def test_what_means_nothing_is_ignored(node: NodeProcess, token: str, message: bytes) -> None:
    async with connected(node, token) as caller:
        await caller.socket.send(message)
        assert await caller.call("test/echo", {"value": 1}) == 1


async def test_a_hello_that_does_not_come_ends_it(node: NodeProcess, token: str) -> None:
    async with websockets.connect(
        f"ws://127.0.0.1:{node.port}/alknet/call",
        subprotocols=[SUBPROTOCOL],  # type: ignore[list-item]
        additional_headers={"Authorization": f"Bearer {token}"},
    ) as socket:
        caller = Caller(socket)
        await caller.send("hello.start", "hello", data=json.dumps({"versions": [2]}))
        answer = await caller.receive()
        assert answer["type"] == "hello.rejected"
        assert json.loads(answer["payload"]["data"])["code"] == "INVALID_INPUT"
        assert (await caller.closed())[0] == []


# --- how it ends ------------------------------------------------------------------------------------------------------


async def test_access_that_is_taken_away_ends_it_soon(node: NodeProcess, mark: str) -> None:
    text = token_of(node, "--peer", "alice")
    async with connected(node, text) as caller:
        id = await caller.request("test/wait", {"mark": mark})
        async with connected(node, text) as other:
            assert await other.call("test/echo", {"value": 1}) == 1
        node.alknet("token", "revoke", text[4:12])
        began = time.monotonic()
        rest, code = await caller.closed()
        assert time.monotonic() - began < REVOKED_S
        assert rest[0]["id"] == id
        assert rest[0]["payload"]["code"] == "FORBIDDEN"
        assert rest[-1]["type"] == "session.goaway"
        assert "access was taken away" in rest[-1]["payload"]["reason"]
        assert code in (1000, 1001)


async def test_a_scope_that_is_taken_away_ends_the_call_and_not_the_session(node: NodeProcess, mark: str) -> None:
    async with connected(node, token_of(node, "--peer", "alice")) as caller:
        id = await caller.request("test/wait", {"mark": mark})
        assert await caller.call("test/echo", {"value": 1}) == 1
        node.write_peer("alice", 'scopes = ["test:echo"]')
        refusal = await caller.receive()
        assert (refusal["id"], refusal["payload"]["code"]) == (id, "FORBIDDEN")
        assert await caller.call("test/echo", {"value": 2}) == 2
    node.write_peer("alice", 'scopes = ["test:echo", "test:wait"]')


async def test_the_operator_sees_and_ends_it(node: NodeProcess, token: str) -> None:
    async with connected(node, token) as caller, connected(node, token) as other:
        before = {one["id"] for one in node.json("sessions")}
        async with connected(node, token) as third:
            (mine,) = [one for one in node.json("sessions") if one["id"] not in before]
            assert (mine["peer"], mine["transport"]) == ("owner", "tcp")
            assert node.alknet("sessions", "kill", mine["id"]).returncode == 0
            rest, code = await third.closed()
            assert [one["type"] for one in rest] == ["session.goaway"]
            assert rest[0]["payload"]["reason"] == "ended by the operator"
            assert code in (1000, 1001)
        for one in (caller, other):
            assert await one.call("test/echo", {"value": 1}) == 1


@pytest.mark.parametrize("seconds", [0.3, 60.0])
async def test_a_node_that_stops_says_so_and_lets_calls_finish(
    tmp_path: Path, launcher: Launcher, mark: str, seconds: float
) -> None:
    with service_node(tmp_path, launcher) as own:
        if seconds > 1:
            own.edit_config('drain_timeout = "2s"', 'drain_timeout = "0.5s"')
            own.alknet("config", "reload")
        text = token_of(own)
        async with connected(own, text) as caller:
            id = await caller.request("test/wait", {"mark": mark, "seconds": seconds})
            async with connected(own, text) as other:
                await other.seen(mark, "began")
            os.killpg(own.pid, signal.SIGTERM)
            goaway = await caller.receive()
            assert goaway["type"] == "session.goaway"
            assert goaway["payload"]["reason"] == "the node is shutting down"
            late = await caller.request("test/echo", {"value": 1})
            rest, code = await caller.closed()
            answers = {one["id"]: one for one in rest}
            assert answers[late]["payload"]["code"] == "UNAVAILABLE"
            if seconds < 1:
                assert answers[id]["payload"] == {"output": "waited"}
            else:
                assert id not in answers
            assert code in (1000, 1001)
        assert own.process is not None
        assert await asyncio.to_thread(own.process.wait, PATIENCE_S) == 0
