"""The peers of a node: what they bring is found out, kept up to date, exposed, and gone with them."""

import asyncio
import dataclasses
import random
from collections.abc import AsyncIterator
from typing import Any

import pytest

from alknet.call import discovery, mesh
from alknet.call.errors import CallError
from alknet.call.exposed import Exposure, Terms
from alknet.call.from_call import Catalog
from alknet.call.operations import operation
from alknet.call.overlays import Attachment
from testkit.bench import Bench
from testkit.peers import Line, worker
from testkit.polling import eventually

pytestmark = pytest.mark.usefixtures("nothing_is_left")
EVERYTHING = Terms(("*",))
LAB = Terms(("*",), Exposure("lab"))


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("PAUSE_S", 0.02), ("PUBLISH_DELAY_S", 0.005), ("RETRY_S", 0.02), ("MOST_RETRY_S", 0.04)):
        monkeypatch.setattr(mesh, name, value)
    monkeypatch.setattr(discovery, "CHANGES_PAUSE_S", 0.005)


def named(name: str, answer: str = "", **how: Any) -> Any:
    @operation(name, **how)
    async def one() -> str:
        return answer or name

    return one


@pytest.fixture
async def hub() -> AsyncIterator[Bench]:
    async with Bench(named("own/one")) as hub:
        hub.settle(w1=LAB, w2=LAB, plain=EVERYTHING, mute=Terms())
        yield hub


def attach(hub: Bench, peer: str, line: Line) -> Attachment:
    attachment = hub.mesh.attach(peer, line)  # type: ignore[arg-type]
    assert attachment is not None
    return attachment


async def join(hub: Bench, peer: str, node: Bench) -> tuple[Line, Attachment]:
    """Attached, and what it brings is known."""
    line = Line(node)
    attachment = attach(hub, peer, line)
    await eventually(lambda: attachment.is_filled, "its operations are known")
    return line, attachment


def leave(hub: Bench, line: Line, attachment: Attachment) -> None:
    line.lose()
    hub.mesh.detach(attachment)


def exposed(hub: Bench) -> list[str]:
    return [name for name in hub.dispatcher.registry.operations if name.startswith("lab/")]


# --- coming and going ---------------------------------------------------------------------------------------------


async def test_who_brings_nothing_is_not_asked(hub: Bench) -> None:
    async with worker(named("a/b")) as node:
        line = Line(node, features=("credit",))
        assert hub.mesh.attach("w1", line) is None  # type: ignore[arg-type]
        hub.mesh.detach(None)
        assert (line.asked, line.patience_s, hub.mesh.connected()) == ([], None, [])


async def test_what_a_peer_brings_is_there_with_it_and_gone_with_it(hub: Bench) -> None:
    async with worker(named("a/b"), named("a/c")) as node:
        line, attachment = await join(hub, "w1", node)
        assert line.patience_s == mesh.PATIENCE_S
        assert list(hub.mesh.operations_of("w1")) == ["a/b", "a/c"]
        await eventually(lambda: exposed(hub) == ["lab/a/b", "lab/a/c"], "they are exposed")
        assert await hub.call("lab/a/b") == "a/b"
        leave(hub, line, attachment)
        with pytest.raises(CallError) as caught:
            await hub.call("lab/a/b")
        assert caught.value.code == "UNAVAILABLE", "at once, and not when it is published"
        await eventually(lambda: exposed(hub) == [], "they are gone")
        hub.mesh.detach(attachment)
        assert hub.mesh.describe()["attached"] == []


async def test_what_forwards_is_kept_until_the_peer_says_something_else(hub: Bench) -> None:
    async with worker(named("a/b"), named("a/c")) as node:
        _, attachment = await join(hub, "w1", node)
        kept = hub.mesh.operation("w1", "a/b")
        assert hub.mesh.operation("w1", "a/b") is kept
        assert kept.spec is attachment.catalog.specs["a/b"]
        specs = {"a/b": dataclasses.replace(kept.spec, description="another one")}
        assert hub.mesh.overlays.fill(attachment, Catalog(specs))
        assert hub.mesh.operation("w1", "a/b").spec is specs["a/b"]
        with pytest.raises(CallError, match="offers no operation 'a/c'"):
            hub.mesh.operation("w1", "a/c")


async def test_an_end_right_after_the_import_leaves_nothing_running(hub: Bench) -> None:
    async with worker(named("a/b")) as node:
        for _ in range(5):
            leave(hub, *await join(hub, "w1", node))
        await eventually(lambda: not len(hub.mesh._tasks), "nobody asks any more")


async def test_an_end_while_it_is_asked_leaves_nothing_behind(hub: Bench) -> None:
    go_on = asyncio.Event()

    class Slow(Line):
        async def call(self, name: str, value: Any = None, **how: Any) -> Any:
            answer = await super().call(name, value, **how)
            await go_on.wait()
            return answer

    async with worker(named("a/b")) as node:
        line = Slow(node)
        attachment = attach(hub, "w1", line)
        await eventually(lambda: line.asked, "it is asked")
        leave(hub, line, attachment)
        go_on.set()
        await eventually(lambda: not len(hub.mesh._tasks), "nobody asks any more")
        assert (hub.mesh.connected(), attachment.is_filled) == ([], False)


async def test_only_what_is_offered_is_taken_and_nothing_about_operations(hub: Bench) -> None:
    hub.settle(w1=Terms(("a/*", "services/*")))
    async with worker(named("a/b"), named("b/c")) as node:
        await join(hub, "w1", node)
        assert list(hub.mesh.operations_of("w1")) == ["a/b"]


async def test_who_may_bring_nothing_is_not_asked_until_it_may(hub: Bench) -> None:
    async with worker(named("a/b")) as node:
        line, _ = await join(hub, "mute", node)
        assert line.asked == []
        hub.settle(mute=EVERYTHING)
        await eventually(lambda: list(hub.mesh.operations_of("mute")) == ["a/b"], "it is asked")


# --- what changes -------------------------------------------------------------------------------------------------


async def test_a_change_there_is_a_change_here(hub: Bench) -> None:
    async with worker(named("a/b")) as node:
        line, _ = await join(hub, "w1", node)
        await eventually(lambda: line.of("services/changed"), "it watches")
        node.serve(named("a/b"), named("a/c"))
        await eventually(lambda: exposed(hub) == ["lab/a/b", "lab/a/c"], "the new one is there")
        assert [one.value["name"] for one in line.of("services/schema")] == ["a/b", "a/c"]
        node.serve(named("a/c"))
        await eventually(lambda: exposed(hub) == ["lab/a/c"], "the old one is gone")


async def test_many_changes_there_are_few_questions_from_here(hub: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mesh, "PAUSE_S", 0.1)
    async with worker() as node:
        line, _ = await join(hub, "w1", node)
        await eventually(lambda: line.of("services/changed"), "it watches")
        for number in range(50):
            node.serve(named(f"a/n{number}"))
            await asyncio.sleep(0.001)
        await eventually(lambda: exposed(hub) == ["lab/a/n49"], "the last one is there")
        assert len(line.of("services/list")) < 20


async def test_offers_that_get_narrower_count_at_once(hub: Bench) -> None:
    async with worker(named("a/b"), named("b/c")) as node:
        await join(hub, "w1", node)
        hub.settle(w1=Terms(("b/*",), Exposure("lab")))
        assert list(hub.mesh.operations_of("w1")) == ["b/c"]
        assert exposed(hub) == ["lab/b/c"]
        hub.settle(w1=Terms(("*",)))
        assert exposed(hub) == []
        await eventually(lambda: list(hub.mesh.operations_of("w1")) == ["a/b", "b/c"], "they are asked for again")


async def test_an_own_operation_hides_a_peers_of_the_same_name(hub: Bench, caplog: pytest.LogCaptureFixture) -> None:
    async with worker(named("a/b", "theirs")) as node:
        hub.serve(named("lab/a/b", "ours"))
        await join(hub, "w1", node)
        await eventually(lambda: "hidden by this node's own names=lab/a/b" in caplog.text, "it is said")
        assert await hub.call("lab/a/b") == "ours"
        hub.serve()
        assert await hub.call("lab/a/b") == "theirs"


async def test_what_cannot_be_found_out_is_tried_again_and_said(hub: Bench, caplog: pytest.LogCaptureFixture) -> None:
    refused = 3

    class Busy(Line):
        async def call(self, name: str, value: Any = None, **how: Any) -> Any:
            nonlocal refused
            if refused:
                refused -= 1
                raise CallError("UNAVAILABLE", "not now")
            return await super().call(name, value, **how)

    async with worker(named("a/b")) as node:
        attachment = attach(hub, "w1", Busy(node))
        problem = lambda: hub.mesh.describe()["attached"][0]["problem"]  # noqa: E731
        await eventually(problem, "the first try has failed")
        assert problem() == "services/list: not now"
        await eventually(lambda: attachment.is_filled, "another try has worked")
        assert problem() is None
    assert caplog.text.count("not now") == 1, "once is enough"


async def test_what_was_left_out_is_said(hub: Bench) -> None:
    class Wrong(Line):
        async def call(self, name: str, value: Any = None, **how: Any) -> Any:
            answer = await super().call(name, value, **how)
            return {**answer, "kind": "x"} if name == "services/schema" and value["name"] == "a/b" else answer

    async with worker(named("a/b"), named("a/c")) as node:
        attachment = attach(hub, "w1", Wrong(node))
        await eventually(lambda: attachment.is_filled, "the rest is known")
        (shown,) = hub.mesh.describe()["attached"]
        assert (shown["operations"], "a/b: 'x' is not a valid Kind" in shown["problem"]) == (1, True)


async def test_status_says_who_brings_what_and_where_calls_went(hub: Bench) -> None:
    async with worker(named("a/b")) as one, worker(named("a/b")) as two:
        line, _ = await join(hub, "w1", one)
        await join(hub, "w2", two)
        await eventually(lambda: hub.mesh._exposed.peers("lab/a/b") == ("w1", "w2"), "both expose it")
        for _ in range(4):
            await hub.call("lab/a/b")
        shown = hub.mesh.describe()
        assert shown["attached"][0] == {
            "peer": "w1", "connection": line.connection.id, "generation": 1, "operations": 1, "problem": None,
        }  # fmt: skip
        assert (shown["exposed"], shown["routing"]) == (1, "round-robin")
        peers = shown["routes"]["lab/a/b"]["peers"]
        assert {peer: counts["calls"] for peer, counts in peers.items()} == {"w1": 2, "w2": 2}


# --- in any order -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(12))
async def test_whatever_comes_and_goes_in_the_end_there_is_what_the_live_connections_bring(
    hub: Bench, seed: int
) -> None:
    """Connections of three peers that begin, are lost and are noticed late, nodes that change, and settings that do."""
    rng = random.Random(seed)
    nodes = {peer: worker(named(f"a/{peer}"), named("a/all")) for peer in ("w1", "w2", "plain")}
    live: list[tuple[str, Line, Attachment]] = []
    gone: list[Attachment] = []
    exposing = {"w1", "w2"}
    offered: dict[str, set[str]] = {peer: {f"a/{peer}", "a/all"} for peer in nodes}
    for _ in range(40):
        match rng.randrange(7):
            case 0 | 1:
                peer = rng.choice(list(nodes))
                line = Line(nodes[peer])
                live.append((peer, line, attach(hub, peer, line)))
            case 2 if live:
                peer, line, attachment = live.pop(rng.randrange(len(live)))
                line.lose()
                gone.append(attachment)
            case 3 if gone:
                hub.mesh.detach(gone.pop(rng.randrange(len(gone))))
            case 4:
                peer = rng.choice(list(nodes))
                offered[peer] = {f"a/{peer}", f"a/{rng.randrange(3)}"}
                nodes[peer].serve(*(named(name) for name in offered[peer]))
            case 5:
                exposing = {peer for peer in nodes if rng.random() < 0.7}
                hub.settle(**{peer: LAB if peer in exposing else EVERYTHING for peer in nodes})
            case _:
                await asyncio.sleep(rng.choice([0, 0.001, 0.01]))
    for attachment in gone:
        hub.mesh.detach(attachment)
    here = {peer for peer, _, _ in live}

    def is_settled() -> bool:
        brought = {peer: set(hub.mesh.operations_of(peer)) for peer in here}
        serving = {name: set(hub.mesh._exposed.peers(name)) for name in exposed(hub)}
        return brought == {peer: offered[peer] for peer in here} and serving == {
            f"lab/{name}": {one for one in here & exposing if name in offered[one]}
            for peer in here & exposing
            for name in offered[peer]
        }

    await eventually(is_settled, "what is live is what is seen")
    assert sorted(hub.mesh.connected()) == sorted(here)
    assert set(hub.mesh._imports) == {attachment for _, _, attachment in live}
    for peer in set(nodes) - here:
        assert hub.mesh.operations_of(peer) == {}
    for _, line, attachment in live:
        leave(hub, line, attachment)
    await eventually(lambda: exposed(hub) == [] and not len(hub.mesh._tasks), "nothing is left")
    await hub.aclose()
    for node in nodes.values():
        await node.aclose()
