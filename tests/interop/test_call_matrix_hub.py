"""Who may call what through a hub: one table, and at every door of the hub the same answers, the same refusals, and one
line for the hub's decision and one for the worker's in their audit logs."""

import asyncio
import json
import signal
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

import alknet
from alknet import CallError
from testkit.as_user import Launcher
from testkit.call_doors import call_doors
from testkit.http_doors import Answer, Door, http_client, mcp_client, named
from testkit.mcp_bench import error_of
from testkit.mesh import MeshNodes
from testkit.node import NodeProcess, wait_until

pytestmark = pytest.mark.interop

OK, MISSING, GONE, UNKNOWN = "ok", "NOT_FOUND", "UNAVAILABLE", "unknown"
ECHO, SHELF_A, SHELF_B = '{"value": [1, "ü"]}', '{"shelf": "a"}', '{"shelf": "b"}'
NO_PEER = ("anonymous", "scope:peer:w1", "scope:peer:w1", "token-scope:peer:w1")


def specific(outcome: str) -> tuple[str, ...]:
    """For those with the right to the worker, this; the others do not even learn whether it is there."""
    return (*NO_PEER[:2], outcome, *NO_PEER[2:])


def exposed(scope: str, outcome: str, fewer: str | None = None) -> tuple[str, ...]:
    return ("anonymous", f"scope:{scope}", outcome, fewer or outcome, outcome)


COLUMNS = ("anonymous", "without", "with", "fewer", "narrowed")
TABLE: dict[tuple[str, str], tuple[str, ...]] = {
    # (operation, input): what becomes of it for somebody who is
    #     anonymous, without any right, with all, with one too few, with all but in the token all but peer:w1
    # ok, an error's code, the rule of the hub's refusal; "worker RULE": of the worker's
    ("w1:test/echo", ECHO): specific(OK),
    ("w1:test/echo", '{"wrong": 1}'): specific("INVALID_INPUT"),
    ("w1:test/identity", "{}"): specific(OK),
    ("w1:test/order", '{"item": "a", "amount": 1}'): specific(OK),
    ("w1:test/order", '{"item": "a", "amount": 9}'): specific("SOLD_OUT"),
    ("w1:matrix/item", "{}"): specific(OK),
    ("w1:matrix/read", SHELF_A): specific(OK),
    ("w1:matrix/read", SHELF_B): specific("worker resource:shelf"),
    ("w1:matrix/inside", "{}"): specific(MISSING),
    ("w1:matrix/wide", "{}"): specific(MISSING),  # the hub may not call it
    ("w1:test/text", '{"size": 3}'): specific(MISSING),  # it may not be brought
    ("w1:services/list-peers", "{}"): specific(MISSING),  # the hub has its own
    ("w2:test/echo", ECHO): ("anonymous", "scope:peer:w2", GONE, "scope:peer:w2", "token-scope:peer:w2"),
    ("nobody:test/echo", ECHO): ("anonymous", "scope:peer:nobody", MISSING, "scope:peer:nobody",
                                 "token-scope:peer:nobody"),
    ("w/test/echo", ECHO): exposed("w:test:echo", OK, "scope:w:test:echo"),
    ("w/test/echo", '{"wrong": 1}'): exposed("w:test:echo", "INVALID_INPUT", "scope:w:test:echo"),
    ("w/test/identity", "{}"): exposed("w:test:identity", OK),
    ("w/test/order", '{"item": "a", "amount": 9}'): exposed("w:test:order", "SOLD_OUT"),
    ("w/matrix/item", "{}"): exposed("w:matrix:item", OK),
    ("w/matrix/read", SHELF_A): exposed("w:matrix:read", OK),
    ("w/matrix/read", SHELF_B): exposed("w:matrix:read", "resource:shelf"),
    ("w/matrix/inside", "{}"): (UNKNOWN, MISSING, MISSING, MISSING, MISSING),
    ("w/test/text", '{"size": 3}'): (UNKNOWN, MISSING, MISSING, MISSING, MISSING),
    ("test/echo", ECHO): (UNKNOWN, MISSING, MISSING, MISSING, MISSING),  # without a prefix it is nobody's
}  # fmt: skip
NOT_THERE = {"w/matrix/inside", "w/test/text", "test/echo"}
OFFERS = ["test/echo", "test/identity", "test/order", "test/wait", "test/seen", "test/endless", "matrix/*"]
AT_WORKER = 'scopes = ["test:*", "matrix:item", "matrix:read"]\nresources = { shelf = ["read:a"] }'
SOURCES = ["test:*", "matrix:*"]
"""What the worker asks for, the hub asks for as well."""
FEWER = ["w:test:order", "w:test:identity", "w:test:wait", "w:matrix:*"]
SHELF = 'resources = { shelf = ["read:a"] }'
ENDED_S = 2.0
"""Within so much time a right that is taken away ends what depends on it."""


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory, launcher: Launcher) -> Iterator[MeshNodes]:
    """A hub with a worker, another worker that is not there, and the peers of the table."""
    mesh = MeshNodes(tmp_path_factory.mktemp("hub"), launcher=launcher, workers=("w1",), offers=OFFERS)
    mesh.write_hub("w1", AT_WORKER)
    hub = mesh.hub
    hub.write_peer("w2", 'offers = ["*"]')
    hub.write_peer("with", f"scopes = {json.dumps(['peer:*', 'w:*', 'node:read', *SOURCES])}\n{SHELF}")
    hub.write_peer("fewer", f"scopes = {json.dumps([*FEWER, *SOURCES])}\n{SHELF}")
    hub.write_peer("without", "scopes = []")
    with mesh:
        yield mesh


def token_of(hub: NodeProcess, who: str) -> str | None:
    if who == "anonymous":
        return None
    scopes = ("w:*", *SOURCES) if who == "narrowed" else ("*",)
    create = ("token", "create", "--peer", "with" if who == "narrowed" else who)
    token: str = hub.json(*create, *(word for scope in scopes for word in ("--scope", scope)))["token"]
    return token


# --- the table ----------------------------------------------------------------------------------------------------


async def ask_everywhere(ways: dict[str, Door], name: str, text: str, expected: str) -> dict[str, Answer]:
    """What the doors answer that have words for it, where it may be asked for in this way."""
    answers = {}
    is_judged = expected.isupper() or expected == OK or expected.startswith("worker ")
    for way, door in ways.items():
        if is_judged and name not in NOT_THERE and not door.takes(name):
            answer = await door.ask(name, text)
            wrong = {"INVALID_OPERATION_TYPE", expected if expected.isupper() else ""}
            assert answer is None or answer[0] in wrong, (way, name, text, answer)
        elif (answer := await door.ask(name, text)) is not None:
            answers[way] = answer
    return answers


def decided(line: dict[str, Any]) -> tuple[str, str | None]:
    """What an audit line is about."""
    return line["action"], line.get("resource")


@pytest.mark.parametrize("who", COLUMNS)
async def test_the_same_answer_and_the_same_denial_at_every_door(
    mesh: MeshNodes, who: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    hub, worker = mesh.hub, mesh.workers["w1"]
    token = token_of(hub, who)
    seen, seen_there = len(hub.audit()), len(worker.audit())
    peer = {"anonymous": None, "narrowed": "with"}.get(who, who)
    denied: Counter[tuple[str, str]] = Counter()  # (rule, denial id) at the hub
    arrived: Counter[tuple[str, str]] = Counter()  # (operation, outcome) at the worker
    async with call_doors(hub, who, token, tmp_path_factory.mktemp("c")) as ways:
        for (name, text), row in TABLE.items():
            expected = row[COLUMNS.index(who)]
            answers = await ask_everywhere(ways, name, text, expected)
            first = next(iter(answers.values()))
            assert {way: answer for way, answer in answers.items() if answer != first} == {}, (name, text, first)
            code, message, denial_id, output = first
            at, operation = named(name)
            operation = operation.removeprefix("w/") if at is None else operation
            if expected == OK:
                assert (code, denial_id) == (OK, None), (name, text, message)
                if operation == "test/identity":
                    assert output["peer"] == "hub"
                arrived[operation, "ok"] += len(answers)
            elif expected.isupper():
                assert (code, denial_id) == (expected, None), (name, text, message)
                if expected in ("INVALID_INPUT", "SOLD_OUT"):
                    arrived[operation, f"error {code}"] += len(answers)
            elif expected.startswith("worker "):
                assert code == "FORBIDDEN"
                assert message.startswith("peer 'w1' refused: ")
                assert denial_id is not None
                theirs = [line for line in worker.audit()[seen_there:] if line.get("denial_id") == denial_id]
                assert {line["rule"] for line in theirs} == {expected.removeprefix("worker ")}
                arrived[operation, "denied"] += len(answers)
            else:
                assert code == "FORBIDDEN", (name, text, first)
                assert denial_id is not None
                if who == "anonymous":
                    assert message.startswith("authentication required")
                denied["anonymous" if who == "anonymous" else expected, denial_id] += len(answers)
        surfaces = {door.surface for door in ways.values()}

    def there() -> list[dict[str, Any]]:
        return [line for line in worker.audit()[seen_there:] if line["action"].startswith(("test/", "matrix/"))]

    wait_until(lambda: len(outcomes(there())) >= arrived.total(), "every call is in the worker's audit log")
    lines = there()
    assert Counter((line["action"], line["outcome"]) for line in outcomes(lines)) == arrived
    assert {line["peer"] for line in lines} <= {"hub"}
    assert {line["forwarded_for"] for line in lines} == ({peer} if arrived else set())
    assert len(lines) == 2 * arrived.total() - sum(n for (_, how), n in arrived.items() if how == "denied")
    at_hub = [line for line in hub.audit()[seen:] if line["action"] == "peer/call" or "/" in line["action"]]
    refused = [line for line in at_hub if line.get("denial_id") and line["decision"] == "deny"]
    assert Counter((line["rule"], line["denial_id"]) for line in refused) == denied
    assert {line.get("peer") for line in refused} <= {peer}
    if denied:
        assert {line["surface"] for line in refused} <= surfaces
    passed = [line for line in outcomes(at_hub) if line.get("routed_to")]
    assert {line["routed_to"] for line in passed} <= {"w1"}
    assert all(line["action"].startswith("w/") for line in passed)
    straight = [line for line in outcomes(at_hub) if decided(line)[0] == "peer/call" and line["decision"] == "allow"]
    mine = [
        line for line in straight if str(line["resource"]).startswith("w1:") and line["outcome"] != "error NOT_FOUND"
    ]
    unary = [line for line in mine if line["outcome"] != "error INVALID_OPERATION_TYPE"]
    routed = [line for line in passed if line["outcome"] != "error INVALID_OPERATION_TYPE"]
    assert len(unary) + len(routed) == arrived.total()


def outcomes(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [line for line in lines if line.get("phase") == "outcome"]


# --- taken away ---------------------------------------------------------------------------------------------------


async def seen(hub: NodeProcess, mark: str) -> Any:
    """How what has this mark has gone at the worker."""
    async with alknet.connect("with@.", home=hub.home, identity=hub.keys / "with", carrier="tls") as peer:
        return await peer._session.call("test/seen", {"mark": mark}, peer="w1")


async def ended(hub: NodeProcess, mark: str) -> float:
    """When the handler with this mark was cancelled."""
    async with asyncio.timeout(10):
        while (found := await seen(hub, mark))["ended"] is None:
            await asyncio.sleep(0.02)
    assert found["how"] in ("CancelledError", "GeneratorExit")
    return float(found["ended"])


async def began(hub: NodeProcess, *marks: str) -> None:
    async with asyncio.timeout(10):
        for mark in marks:
            while await seen(hub, mark) is None:
                await asyncio.sleep(0.02)


@pytest.mark.parametrize("cause", ["disable", "scope", "token", "worker"])
async def test_a_right_that_is_taken_away_ends_what_runs_at_the_worker(mesh: MeshNodes, cause: str) -> None:
    hub, name = mesh.hub, f"leaves-{cause}"
    hub.write_peer(name, f"scopes = {json.dumps(['peer:w1', 'w:*', *SOURCES])}")
    hub.alknet("config", "reload")
    made = hub.json("token", "create", "--peer", name, "--scope", "*")
    marks = [f"{cause}-{way}" for way in ("specific", "exposed", "stream")]
    async with (
        http_client(hub, made["token"]) as http,
        alknet.connect(home=hub.home, token=made["token"], carrier="quic") as peer,
        asyncio.TaskGroup() as group,
    ):
        asked = {"operation": "test/wait", "peer": "w1", "input": {"mark": marks[0]}}
        straight = group.create_task(http.post("/call", json=asked))
        through = group.create_task(http.get("/ops/w/test/wait", params={"mark": marks[1]}))
        items = peer.subscribe("w/test/endless", mark=marks[2])
        assert await anext(items) == 0
        await began(hub, *marks)
        taken = time.monotonic()
        try:
            if cause == "disable":
                await asyncio.to_thread(hub.alknet, "peer", "disable", name)
            elif cause == "token":
                await asyncio.to_thread(hub.alknet, "token", "revoke", made["prefix"])
            elif cause == "scope":
                hub.write_peer(name, 'scopes = ["w:other"]')
            else:
                mesh.write_hub("w1", AT_WORKER.replace('"test:*"', '"test:echo", "test:seen"'))
            for response in (await straight, await through):
                assert (response.status_code, response.json()["code"]) == (403, "FORBIDDEN")
                assert response.json()["denial_id"].startswith("den_")
            with pytest.raises(CallError) as caught:
                await anext(items)
            assert (caught.value.code, caught.value.denial_id is not None) == ("FORBIDDEN", True)
            assert time.monotonic() - taken < ENDED_S
            for mark in marks:
                assert await ended(hub, mark) - taken < ENDED_S
            if cause == "worker":  # and the hub hears of it
                async with asyncio.timeout(10):
                    while (await http.get("/ops/w/test/wait", params={"mark": "x"})).status_code != 404:
                        await asyncio.sleep(0.05)
                assert (await http.post("/ops/w/test/echo", json={"value": 1})).json() == 1
        finally:
            if cause == "worker":
                mesh.write_hub("w1", AT_WORKER)
    if cause == "worker":
        wait_until(lambda: mesh.attached()["w1"][0]["operations"] >= 8, "all operations are back")


# --- seen ---------------------------------------------------------------------------------------------------------


async def test_status_and_metrics_show_who_dials_and_who_is_called(mesh: MeshNodes) -> None:
    hub, worker = mesh.hub, mesh.workers["w1"]
    async with http_client(hub, token_of(hub, "with")) as http:
        for _ in range(3):
            assert (await http.post("/ops/w/test/echo", json={"value": 1})).json() == 1
        text = (await http.get("/metrics")).text
    count = mesh.attached()["w1"][0]["operations"]
    assert f'alknet_peer_operations{{peer="w1"}} {float(count)}' in text
    assert f"alknet_exposed_operations {float(count)}" in text
    (line,) = [one for one in text.splitlines() if one.startswith("alknet_routed_calls_total") and "w/test/echo" in one]
    assert line.startswith('alknet_routed_calls_total{operation="w/test/echo",peer="w1"} ')
    assert float(line.rpartition(" ")[2]) >= 3
    assert 'alknet_breaker_state{operation="w/test/echo",peer="w1"} 0.0' in text
    shown = hub.alknet("status").stdout
    (connection,) = [one["connection"] for one in mesh.attached()["w1"]]
    assert f"BRINGS OPERATIONS\tCONNECTION\tOPERATIONS\tPROBLEM\nw1\t{connection}\t{count}\t" in shown
    assert f"{count} operations of peers are served here; routing is round-robin" in shown
    theirs = worker.alknet("status").stdout
    (dial,) = worker.json("status")["dials"]
    (since,) = [one["since"] for one in worker.json("status")["connections"] if one["id"] == dial["connection"]]
    assert f"DIALS\tSTATE\tTRANSPORT\tWHEN\tPROBLEM\nhub\tconnected\ttls\tsince {since}\t" in theirs
    assert "BRINGS OPERATIONS" not in theirs


async def test_what_a_worker_brings_vanishes_with_it_and_comes_back(mesh: MeshNodes) -> None:
    hub = mesh.hub
    token = token_of(hub, "with")
    async with (
        http_client(hub, token) as http,
        asyncio.TaskGroup() as group,
        mcp_client(http, "2025-11-25") as old,
        mcp_client(http, "2026-07-28") as new,
        new.listen(tools_list_changed=True) as changes,
    ):
        before = [tool.name for tool in (await new.list_tools()).tools]
        assert "w.test.echo" in before
        document = await http.get("/openapi.json")
        assert "/ops/w/test/echo" in document.json()["paths"]
        asked = {"operation": "w/test/wait", "input": {"mark": "killed"}}
        calling = group.create_task(http.post("/call", json=asked))
        tool = group.create_task(old.call_tool("w.test.wait", {"mark": "killed-tool"}))
        stream = group.create_task(http.post("/subscribe", json={**asked, "operation": "w/test/endless"}))
        await began(hub, "killed", "killed-tool")
        killed = time.monotonic()
        mesh.workers["w1"].stop(signal.SIGKILL)
        response = await calling
        assert time.monotonic() - killed < ENDED_S  # over TLS it is known at once
        assert (response.status_code, response.json()["code"]) == (503, "UNAVAILABLE")
        assert "peer 'w1' was lost" in response.json()["message"]
        assert response.headers["retry-after"] == "1"
        assert error_of(await tool)["code"] == "UNAVAILABLE"
        assert '"code":"UNAVAILABLE"' in (await stream).text
        async with asyncio.timeout(10):
            async for _ in changes:  # it may be told of what was before, too
                if "w.test.echo" not in [tool.name for tool in (await new.list_tools()).tools]:
                    break
        for client in (old, new):
            names = [tool.name for tool in (await client.list_tools()).tools]
            assert [name for name in names if name.startswith("w.")] == []
            assert names == [name for name in before if not name.startswith("w.")]
            assert error_of(await client.call_tool("w.test.echo", {}))["code"] == "NOT_FOUND"
        changed = await http.get("/openapi.json", headers={"if-none-match": document.headers["etag"]})
        assert [path for path in changed.json()["paths"] if path.startswith("/ops/w/")] == []
        assert (await http.post("/ops/w/test/echo", json={})).status_code == 404
        straight = await http.post("/call", json={"operation": "test/echo", "peer": "w1"})
        assert (straight.status_code, straight.json()["message"]) == (503, "peer 'w1' is not connected")
        await asyncio.to_thread(mesh.start_worker, "w1")
        await asyncio.to_thread(mesh.wait_settled)

        async def is_back() -> bool:
            return [tool.name for tool in (await old.list_tools()).tools] == before

        async with asyncio.timeout(10):
            while not await is_back():
                await asyncio.sleep(0.05)
        assert (await http.post("/ops/w/test/echo", json={"value": 2})).json() == 2
        again = await http.get("/openapi.json")
        assert again.headers["etag"] == document.headers["etag"]
