"""Peers that bring operations and mean no good, or go away at the wrong moment."""

import asyncio
import gc
import weakref
from collections.abc import AsyncIterator
from typing import Any

import pytest

from alknet.call import discovery, mesh
from alknet.call import from_call as importing
from alknet.call.errors import CallError, never_sent
from alknet.call.exposed import Exposure, Terms
from alknet.call.from_call import from_call
from alknet.call.import_errors import SchemaParse
from alknet.call.operations import operation, operations_of
from alknet.call.remote_specs import MAX_DEFINITIONS, MAX_DESCRIPTION_BYTES, read_spec
from alknet.call.routing import Routing
from alknet.errors import UsageError
from alknet.gateway.openapi_schemas import Schemas
from testkit.bench import Bench
from testkit.peers import Line, worker
from testkit.polling import eventually

pytestmark = pytest.mark.usefixtures("nothing_is_left")
LAB = Terms(("*",), Exposure("lab", "lab:use"))


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("PAUSE_S", 0.02), ("PUBLISH_DELAY_S", 0.0), ("RETRY_S", 0.02), ("MOST_RETRY_S", 0.04)):
        monkeypatch.setattr(mesh, name, value)
    monkeypatch.setattr(discovery, "CHANGES_PAUSE_S", 0.005)


@pytest.fixture
async def hub() -> AsyncIterator[Bench]:
    async with Bench(peers={"alice": ("*",), "eve": ("lab:use",)}) as hub:
        hub.settle(Routing.FIRST, w1=LAB, w2=LAB)
        yield hub


def named(name: str, answer: str = "", **how: Any) -> Any:
    @operation(name, **{"kind": "mutation", **how})
    async def one() -> str:
        return answer or name

    return one


async def join(hub: Bench, peer: str, line: Line) -> None:
    """Attached, and what it brings is known and exposed."""
    attachment = hub.mesh.attach(peer, line)  # type: ignore[arg-type]
    assert attachment is not None
    await eventually(lambda: attachment.is_filled, "its operations are known")


# --- what they say of themselves ----------------------------------------------------------------------------------


class Description(dict[str, Any]):
    """Can be seen to be let go of."""


class Talkative:
    """A session with somebody who has many operations, each with a long description."""

    def __init__(self, count: int, filler: str, **more: Any) -> None:
        self.names = [f"a/n{number:04}" for number in range(count)]
        self.held: weakref.WeakSet[Description] = weakref.WeakSet()
        self.most_held = 0
        self._more = {"description": filler, **more}

    async def call(self, name: str, value: Any = None, **_: Any) -> Any:
        if name == "services/list":
            return {"operations": [{"name": one} for one in self.names], "next_cursor": None}
        await asyncio.sleep(0)
        gc.collect(0)
        described = _Hashable(name=value["name"], kind="query", input_schema={}, output_schema={}, **self._more)
        self.held.add(described)
        self.most_held = max(self.most_held, len(self.held))
        return described


class _Hashable(Description):
    __hash__ = object.__hash__  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("filler", "more", "reason"),
    [("x" * 9_000, {}, "bytes together"), ("", {"examples": [{"input": "x" * MAX_DESCRIPTION_BYTES}]}, "more than")],
    ids=["too much together", "each too long"],
)
async def test_descriptions_that_are_left_out_are_not_held(
    monkeypatch: pytest.MonkeyPatch, filler: str, more: dict[str, Any], reason: str
) -> None:
    monkeypatch.setattr(importing, "MAX_CATALOG_BYTES", 30_000)
    other = Talkative(1000, filler, **more)
    catalog = await from_call(other, lambda name: True)
    assert len(catalog.specs) <= 3
    assert reason in catalog.skipped[0]
    assert other.most_held <= 2 * importing.SCHEMAS_AT_ONCE


def description(**more: Any) -> dict[str, Any]:
    return {"name": "a/b", "kind": "query", "input_schema": {}, "output_schema": {}, **more}


@pytest.mark.parametrize("path", ["$.password", "/password", "$.password.hash"])
def test_a_secret_is_no_name_of_a_resource(path: str) -> None:
    """Audit logs have the resource of each call."""
    with pytest.raises(SchemaParse, match="secret"):
        read_spec("a/b", description(resource_id_path=path, secret_inputs=["password"]))
    assert read_spec("a/b", description(resource_id_path="$.name", secret_inputs=["password"])).resource_id_path


def test_nor_may_an_operation_of_this_node_declare_it() -> None:
    @operation("a/b", kind="query", resource="user", resource_id="$.password", secret_inputs=["password"])
    def one(password: str) -> None: ...

    with pytest.raises(UsageError, match="is secret"):
        operations_of(one)


def row_of(count: int, depth: int) -> dict[str, Any]:
    """Definitions each of which refers to the next one, from `depth` further down."""
    definitions: dict[str, Any] = {f"D{count - 1}": {"type": "string"}}
    for number in range(count - 1):
        schema: dict[str, Any] = {"$ref": f"#/$defs/D{number + 1}"}
        for _ in range(depth):
            schema = {"not": schema}
        definitions[f"D{number}"] = schema
    return {"type": "object", "properties": {"first": {"$ref": "#/$defs/D0"}}, "$defs": definitions}


def test_a_long_row_of_references_breaks_no_document() -> None:
    schema = row_of(MAX_DEFINITIONS, 20)
    assert read_spec("a/b", description(input_schema=schema))
    schemas = Schemas({})
    schemas.add(schema, "a.b", "Input")
    assert len(schemas.components()) == MAX_DEFINITIONS + 1
    with pytest.raises(SchemaParse, match="definitions"):
        read_spec("a/b", description(input_schema=row_of(MAX_DEFINITIONS + 1, 0)))


# --- what they say for others -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"scopes": ["work:it"]}, {"scopes": ["work:it", "work:admin"]}),
        ({"kind": "query"}, {"kind": "mutation", "idempotent": False}),
        ({"idempotent": True}, {"idempotent": False}),
        ({"public": True}, {"scopes": ["work:admin"]}),
    ],
    ids=["asks for less", "is a query", "may be repeated", "is public"],
)
async def test_a_peer_does_not_speak_for_another_one(hub: Bench, first: dict[str, Any], second: dict[str, Any]) -> None:
    """The one that came first says less of an operation than the other; calls go by what *it* says to it only."""
    async with worker(named("work/it", "w1", **first)) as one, worker(named("work/it", "w2", **second)) as two:
        await join(hub, "w1", Line(one))
        await join(hub, "w2", Line(two))
        await eventually(lambda: hub.mesh._exposed.peers("lab/work/it") == ("w1",), "one of them is exposed")
        assert await hub.call("lab/work/it") == "w1"
        found = hub.mesh.anywhere("work/it", lambda peer: True)
        assert found is not None
        assert found[1] == ("w1",)

        def problem(peer: str) -> str:
            return next(str(one["problem"]) for one in hub.mesh.describe()["attached"] if one["peer"] == peer)

        words = "says otherwise than other peers what lab/work/it is"
        await eventually(lambda: words in problem("w2"), "it is told that the other one is left out")
        assert problem("w1") == "None"
        assert hub.mesh._exposed.peers("lab/work/it") == ("w1",)


async def test_peers_that_agree_are_one_route(hub: Bench) -> None:
    async with worker(named("work/it", version="1")) as one, worker(named("work/it", version="2")) as two:
        await join(hub, "w1", Line(one))
        await join(hub, "w2", Line(two))
        await eventually(lambda: hub.mesh._exposed.peers("lab/work/it") == ("w1", "w2"), "both are exposed")


async def test_one_peer_does_not_bring_a_catalog_with_each_of_many_connections(hub: Bench) -> None:
    async with worker(named("work/it", "w1")) as node:
        for _ in range(mesh.MAX_ATTACHED + 5):
            await join(hub, "w1", Line(node))
        attached = hub.mesh.overlays.of("w1")
        assert len(attached) == mesh.MAX_ATTACHED
        assert [one.generation for one in attached] == list(range(mesh.MAX_ATTACHED + 5, 5, -1)), "the newest ones"
        assert await hub.call("lab/work/it") == "w1"


# --- going away ---------------------------------------------------------------------------------------------------


class Going(Line):
    """Its node takes no calls any more, or is lost with one on its way."""

    is_lost = False
    asked_to_work = 0

    async def call(self, name: str, value: Any = None, *, timeout_s: float | None = None, **extra: str) -> Any:
        if name != "work/it":
            return await super().call(name, value, timeout_s=timeout_s, **extra)
        self.asked_to_work += 1
        raise CallError("UNAVAILABLE", "lost") if self.is_lost else never_sent("shutting down")


async def test_what_was_never_sent_goes_to_another_peer(hub: Bench) -> None:
    async with worker(named("work/it", "w1")) as one, worker(named("work/it", "w2")) as two:
        going = Going(one)
        await join(hub, "w1", going)
        await join(hub, "w2", Line(two))
        await eventually(lambda: len(hub.mesh._exposed.peers("lab/work/it")) == 2, "both are exposed")
        assert [await hub.call("lab/work/it") for _ in range(3)] == ["w2"] * 3
        assert hub.mesh.describe()["routes"]["lab/work/it"]["retries"] == 0, "that is no retry"

        going.is_lost, before = True, going.asked_to_work
        with pytest.raises(CallError, match="lost"):
            await hub.call("lab/work/it")
        assert going.asked_to_work == before + 1
