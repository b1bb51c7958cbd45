"""Tokens that are no good any more, over HTTP: at every path the same refusal, and what runs is ended with it."""

import asyncio
import json
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack
from typing import Any

import pytest
import websockets

import alknet
from alknet import CallError
from alknet.access import Token, token_digest
from alknet.state import SqliteState
from testkit.as_user import Launcher
from testkit.http_doors import WebSocketCaller, events_of, http_client, mcp_client
from testkit.mcp_bench import error_of
from testkit.node import NodeProcess, wait_until
from testkit.service_nodes import service_node

pytestmark = pytest.mark.interop

REQUESTS: list[tuple[str, str, Any]] = [
    ("GET", "/search", None),
    ("GET", "/schema?name=services/list", None),
    ("GET", "/metrics", None),
    ("GET", "/openapi.json", None),
    ("GET", "/ops/test/identity", None),
    ("POST", "/ops/test/identity", {}),
    ("POST", "/ops/test/echo", {"value": 1}),
    ("POST", "/call", {"operation": "test/identity"}),
    ("POST", "/batch", [{"operation": "test/identity"}]),
    ("POST", "/subscribe", {"operation": "test/count", "input": {"to": 1}}),
    ("POST", "/ticket", {}),
    ("POST", "/mcp", {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}),
    ("GET", "/nothing/here", None),
]
"""One of each route, of which some are public; paths that tell nothing of anybody are left out."""
WORDS = {
    "unknown": "the token is not valid",
    "revoked": "the token is not valid",
    "expired": "the token of peer 'alice' has expired [token:expired]",
    "disabled": "peer 'disabled' is disabled [peer:disabled]",
}
SOURCES = {name: f"127.0.2.{number}" for number, name in enumerate(WORDS, 1)}
"""Each from an address of its own: one that fails too often has to wait."""
ENDED_S = 2.0
"""Within so much time a right that is taken away ends what depends on it."""


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory, launcher: Launcher) -> Iterator[NodeProcess]:
    with service_node(tmp_path_factory.mktemp("shown"), launcher) as node:
        node.write_peer("alice", 'scopes = ["*"]')
        node.write_peer("disabled", 'scopes = ["*"]\nenabled = false')
        node.alknet("config", "reload")
        yield node


@pytest.fixture(scope="module")
def tokens(shown: NodeProcess) -> dict[str, str]:
    """One token of each kind that is no good."""
    create = ("token", "create", "--scope", "*", "--peer")
    revoked = shown.json(*create, "alice")
    shown.alknet("token", "revoke", revoked["prefix"])
    disabled = shown.json(*create, "disabled")["token"]
    expired = "alk_expired0_" + "x" * 27
    state = SqliteState(shown.home / "state.db")
    state.add(Token("expired0", "alice", frozenset({"*"}), token_digest(expired), time.time() - 1), now=0)
    state.close()
    shown.alknet("config", "reload")
    return {
        "unknown": "alk_unknown0_" + "x" * 27,
        "revoked": revoked["token"],
        "expired": expired,
        "disabled": disabled,
    }


@pytest.mark.parametrize("kind", WORDS)
async def test_a_token_that_is_no_good_is_refused_alike_at_every_path(
    shown: NodeProcess, tokens: dict[str, str], kind: str
) -> None:
    token, seen = tokens[kind], len(shown.audit())
    with pytest.raises(CallError) as caught:
        async with alknet.connect(home=shown.home, token=token, carrier="quic"):
            pass
    native = caught.value
    assert (native.code, str(native)) == ("FORBIDDEN", f"the local node refused: {WORDS[kind]}")
    assert native.denial_id is not None
    for scheme in ("http", "https"):
        async with http_client(shown, token, scheme=scheme, source=SOURCES[kind]) as http:
            for method, path, value in REQUESTS:
                response = await http.request(method, path, json=value)
                assert response.status_code == 401, (path, response.text)
                assert response.headers["www-authenticate"] == 'Bearer realm="alknet"'
                assert response.headers["content-type"] == "application/problem+json"
                assert response.json() == {
                    "type": "about:blank",
                    "title": "Unauthorized",
                    "status": 401,
                    "detail": WORDS[kind],
                    "code": "FORBIDDEN",
                    "message": WORDS[kind],
                    "retryable": False,
                    "denial_id": native.denial_id,
                }
            for path in ("/healthz", "/readyz", "/docs"):
                assert (await http.get(path)).status_code == 200
    with pytest.raises(websockets.InvalidStatus) as turned_down:
        async with WebSocketCaller.connect(shown, token, source=SOURCES[kind]):
            pass
    assert turned_down.value.response.status_code == 401
    assert json.loads(turned_down.value.response.body)["denial_id"] == native.denial_id
    expected = 2 + 2 * len(REQUESTS)

    def lines() -> list[dict[str, Any]]:
        return [line for line in shown.audit()[seen:] if line.get("denial_id") == native.denial_id]

    wait_until(lambda: len(lines()) >= expected, "every refusal is in the audit log")
    assert len(lines()) == expected
    ids = ("action", "peer", "decision", "rule", "phase")
    assert len({tuple(line.get(name) for name in ids) for line in lines()}) == 1, lines()
    assert {line["action"] for line in lines()} == {"call/connect"}
    assert {line["surface"] for line in lines()} == {"http", "https", "quic"}


async def test_what_is_no_token_is_refused_and_counts_as_no_failed_login(shown: NodeProcess) -> None:
    token = shown.json("token", "create", "--scope", "*")["token"]
    seen = len(shown.audit())
    headers: list[list[tuple[str, str]]] = [
        [("authorization", "Basic dXNlcjpwYXNz")],
        [("authorization", "Bearer")],
        [("authorization", token)],
        [("authorization", f"Bearer {token}"), ("authorization", f"Bearer {token}")],
    ]
    async with http_client(shown, None) as http:
        for one in headers:
            response = await http.get("/ops/test/identity", headers=one)
            assert (response.status_code, response.json()["code"]) == (401, "FORBIDDEN"), one
            assert response.json()["message"] == "the Authorization header should be 'Bearer' and one token"
        response = await http.get("/ops/test/identity", headers={"authorization": f"bEARER  {token}"})
        assert response.json() == {"peer": "owner", "surface": "http"}
    assert [line for line in shown.audit()[seen:] if line["decision"] == "deny"] == []


async def test_every_tenth_bad_token_ends_the_connection(shown: NodeProcess) -> None:
    async with http_client(shown, None, source="127.0.3.1") as http:
        closed = []
        for number in range(22):
            response = await http.get("/search", headers={"authorization": f"Bearer alk_{number}"})
            assert response.status_code == 401
            closed.append(response.headers.get("connection") == "close")
        assert [number for number, is_closed in enumerate(closed, 1) if is_closed] == [10, 20]


async def test_a_connection_may_bring_many_tokens_and_each_request_has_its_own(shown: NodeProcess) -> None:
    create = ("token", "create", "--ttl", "1h", "--peer")
    tokens = {name: shown.json(*create, name, "--scope", "*")["token"] for name in ("owner", "alice")}
    seen = len(shown.audit())
    async with http_client(shown, None) as http:
        for who in ("owner", None, "alice", "owner", None):
            headers = {} if who is None else {"authorization": f"Bearer {tokens[who]}"}
            response = await http.get("/ops/test/identity", headers=headers)
            assert response.json() == {"peer": who, "surface": "http"}
    lines = shown.audit()[seen:]
    assert len({line["connection"] for line in lines if line["surface"] == "http"}) == 1
    entered = [line.get("peer") for line in lines if line["action"] == "call/connect" and line["phase"] == "outcome"]
    assert entered == ["owner", "alice"]


# --- taken away ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cause", ["disable", "scope", "token"])
async def test_a_right_that_is_taken_away_ends_what_depends_on_it(shown: NodeProcess, cause: str) -> None:
    name = f"{cause}-http"
    shown.write_peer(name, 'scopes = ["test:endless", "test:echo", "test:wait"]')
    shown.alknet("config", "reload")
    made = shown.json("token", "create", "--peer", name, "--scope", "*")
    other = shown.json("token", "create", "--peer", "alice", "--scope", "*")["token"]
    marks = {way: f"{way} {name}" for way in ("call", "ops", "old", "new", "socket")}
    async with AsyncExitStack() as stack:
        hers = await stack.enter_async_context(http_client(shown, made["token"]))
        others = await stack.enter_async_context(http_client(shown, other))
        old = await stack.enter_async_context(mcp_client(hers, "2025-11-25"))
        new = await stack.enter_async_context(mcp_client(hers, "2026-07-28"))
        socket = await stack.enter_async_context(WebSocketCaller.connect(shown, made["token"]))
        started = asyncio.create_task  # noqa: TID251
        waiting = {
            "call": started(hers.post("/call", json={"operation": "test/wait", "input": {"mark": marks["call"]}})),
            "ops": started(hers.post("/ops/test/endless", json={"mark": marks["ops"]})),
            "old": started(old.call_tool("test.wait", {"mark": marks["old"]})),
            "new": started(new.call_tool("test.wait", {"mark": marks["new"]})),
            "socket": started(socket.ask("test/wait", json.dumps({"mark": marks["socket"]}))),
        }

        async def mark_of(way: str) -> Any:
            return (await others.post("/ops/test/seen", json={"mark": marks[way]})).json()

        for way in waiting:
            while await mark_of(way) is None:
                await asyncio.sleep(0.002)
        asked = time.monotonic()
        if cause == "disable":
            await asyncio.to_thread(shown.alknet, "peer", "disable", name)
        elif cause == "token":
            await asyncio.to_thread(shown.alknet, "token", "revoke", made["prefix"])
        else:
            shown.write_peer(name, 'scopes = ["test:echo"]')  # the node watches its files
        async with asyncio.timeout(10):
            ended = {way: await one for way, one in waiting.items()}
        assert time.monotonic() - asked < ENDED_S
        problem = ended["call"].json()
        assert (ended["call"].status_code, problem["code"]) == (403, "FORBIDDEN")
        *_, last = events_of(ended["ops"].text)
        assert (ended["ops"].status_code, last["event"], last["data"]["status"]) == (200, "error", 403)
        wrong = [error_of(ended[way]) for way in ("old", "new")]
        denials = [one["denial_id"] for one in (problem, *wrong)]
        assert (ended["socket"][0], len({*denials, ended["socket"][2]})) == ("FORBIDDEN", 1)
        assert last["data"]["denial_id"] not in denials  # another action, hence another refusal
        for way in waiting:
            assert (await mark_of(way))["how"] == "CancelledError"
        after = await hers.post("/ops/test/echo", json={"value": 1})
        assert after.status_code == (200 if cause == "scope" else 401)  # what she still may, she may
        if cause != "scope":
            async with asyncio.timeout(ENDED_S):
                await socket.socket.wait_closed()
        assert (await others.get("/ops/test/identity")).json()["peer"] == "alice"
    found = [line for line in shown.audit() if line.get("peer") == name and line.get("outcome") == "revoked"]
    assert sorted(line["action"] for line in found) == ["test/endless", *["test/wait"] * 4]
    assert {line["denial_id"] for line in found} == {*denials, last["data"]["denial_id"]}
