"""``/openapi.json``: each caller's own, kept while nothing changes, and in the audit log."""

import asyncio

import pytest

from alknet import operation
from alknet.call.operations import Operation, served_by
from alknet.gateway import documents
from alknet.gateway.settings import GatewaySettings
from testkit import services
from testkit.gateway import GatewayDoor, RawHttp

PEERS = {"alice": ("*",), "bob": ("test:echo",)}


@operation("more/one", kind="query")
async def more() -> str:
    """One that comes later."""
    return "more"


def _door() -> GatewayDoor:
    return GatewayDoor(services, peers=PEERS, settings=GatewaySettings(mcp=False))


async def _paths(http: RawHttp, peer: str | None) -> set[str]:
    answer = await http.ask("GET", "/openapi.json", peer=peer)
    assert answer.value["openapi"].startswith("3.1")
    return set(answer.value["paths"])


async def test_it_has_what_this_caller_may_call() -> None:
    async with _door() as door, door.connect() as http:
        assert {path for path in await _paths(http, "bob") if "/test/" in path} == {
            "/ops/test/echo",
            "/ops/test/identity",
        }
        assert "/ops/test/order" in await _paths(http, "alice")
        assert "/ops/test/echo" not in await _paths(http, None)
        door.change({"alice": ("other",), "bob": ()})
        assert "/ops/test/order" not in await _paths(http, "alice")


async def test_who_has_it_already_gets_no_other_one() -> None:
    async with _door() as door, door.connect() as http:
        answer = await http.ask("GET", "/openapi.json")
        tag = answer.headers["etag"]
        assert answer.headers["vary"] == "Authorization"
        again = await http.ask("GET", "/openapi.json", None, ("If-None-Match", tag))
        assert (again.status, again.body, again.headers["etag"]) == (304, b"", tag)
        assert (await http.ask("GET", "/openapi.json", None, ("If-None-Match", tag), peer="bob")).status == 200
        door.bench.serve(services.echo)
        assert (await http.ask("GET", "/openapi.json", None, ("If-None-Match", tag))).status == 200


async def test_what_changes_for_others_changes_nothing_in_it() -> None:
    async with _door() as door, door.connect() as http:
        first = door.handler._documents
        tag = (await http.ask("GET", "/openapi.json", peer="bob")).headers["etag"]
        (kept,) = first._kept.values()
        one = served_by((more,))[0]
        assert isinstance(one, Operation)
        door.bench.dispatcher.registry = door.bench.dispatcher.registry.beside({"more/one": one})
        again = await http.ask("GET", "/openapi.json", None, ("If-None-Match", tag), peer="bob")
        assert again.status == 304
        assert list(first._kept.values()) == [kept]
        assert "/ops/more/one" in await _paths(http, "alice")


async def test_others_are_served_while_one_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("alknet.call.slices.SLICE_S", 0.0)  # gives way at each step
    async with _door() as door, door.connect() as http, door.connect() as other:
        await http.send(http.asked("GET", "/openapi.json"))
        while door.handler._documents._turn.locked() is False:
            await asyncio.sleep(0)
        assert (await other.call("test/echo", {"value": 1})).value["output"] == 1
        assert door.handler._documents._turn.locked()
        async with door.connect() as gone:
            await gone.send(gone.asked("GET", "/openapi.json"))
        assert (await http.answer()).value["openapi"].startswith("3.1")


async def test_so_many_bytes_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    async with _door() as door, door.connect() as http:
        size = len((await http.ask("GET", "/openapi.json")).body)
        monkeypatch.setattr(documents, "MAX_KEPT_BYTES", size // 2)
        for peer in ("bob", None, "alice", "bob"):
            assert (await http.ask("GET", "/openapi.json", peer=peer)).status == 200
            assert next(reversed(door.handler._documents._kept))[0] == peer
            assert door.handler._documents._bytes() <= size // 2 or len(door.handler._documents._kept) == 1


async def test_each_look_is_in_the_audit_log() -> None:
    async with _door() as door, door.connect() as http:
        for peer in ("alice", None):
            await http.ask("GET", "/openapi.json", peer=peer)
        lines = [one for one in door.bench.audit.records if one["action"] == documents.ACTION]
        assert [(one["peer"], one["phase"]) for one in lines] == [
            ("alice", "intent"),
            ("alice", "outcome"),
            (None, "intent"),
            (None, "outcome"),
        ]
        assert door.bench.unmatched() == {}


async def test_so_many_are_kept() -> None:
    async with _door() as door, door.connect() as http:
        for _ in range(2):
            for number in range(documents.MAX_KEPT + 4):
                door.change(
                    {
                        "alice": [f"test:{name}" for name in ("echo", "text", "wait", "blob", "digest")[: number % 5]]
                        + [f"x{number}"]
                    }
                )
                await http.ask("GET", "/openapi.json")
        assert len(door.handler._documents._kept) <= documents.MAX_KEPT
