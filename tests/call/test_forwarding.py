"""Calls that run at a peer: which one gets them, what goes along, what is tried again, and how they end."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from alknet.call import forwarding, mesh
from alknet.call.breaker import FAILURES_TO_OPEN
from alknet.call.context import OperationContext
from alknet.call.errors import CallError
from alknet.call.exposed import Exposure, Terms
from alknet.call.machine import DEFAULT_CREDIT
from alknet.call.operations import OperationError, operation
from alknet.call.overlays import Attachment
from alknet.call.routing import Routing
from alknet.offer import Offer
from testkit.bench import Bench
from testkit.calls import CallDoor
from testkit.peers import Line, worker
from testkit.polling import eventually, settled

pytestmark = pytest.mark.usefixtures("nothing_is_left")
LAB = Terms(("*",), Exposure("lab", "lab:use"))
TRACE = "00-" + "a" * 32 + "-" + "b" * 16 + "-01"


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mesh, "PUBLISH_DELAY_S", 0.0)
    monkeypatch.setattr(mesh, "PAUSE_S", 0.02)


class Busy(OperationError):
    """There is too much to do."""

    code = "BUSY"


class Work:
    """What a worker does."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.calls = 0
        self.is_busy = False
        self.begun = asyncio.Event()
        self.ended = asyncio.Event()
        self.produced = 0

    @operation("work/query", kind="query", idempotent=True, errors=[Busy])
    async def query(self) -> str:
        self.calls += 1
        if self.is_busy:
            raise Busy("later")
        return self.name

    @operation("work/change", kind="mutation", errors=[Busy])
    async def change(self) -> str:
        self.calls += 1
        if self.is_busy:
            raise Busy("later")
        return self.name

    @operation("work/context", kind="query")
    async def context(self, *, ctx: OperationContext) -> dict[str, Any]:
        identity = ctx.identity
        return {
            "identity": None if identity is None else getattr(identity, "id", None),
            "for": ctx.forwarded_for,
            "left_s": ctx.remaining_s(),
            "trace": ctx.traceparent,
        }

    @operation("work/wait", kind="query", idempotent=True)
    async def wait(self) -> None:
        self.begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.ended.set()

    @operation("work/count", idempotent=True)
    async def count(self) -> AsyncIterator[int]:
        self.calls += 1
        try:
            while True:
                yield self.produced
                self.produced += 1
        finally:
            self.ended.set()


class Site:
    """A hub, and workers that are known to it as `w1`, `w2`, …; all of what they bring is exposed as ``lab/…``."""

    def __init__(self, hub: Bench) -> None:
        self.hub = hub
        self.works: dict[str, Work] = {}
        self.nodes: dict[str, Bench] = {}
        self.lines: dict[str, tuple[Line, Attachment]] = {}

    async def join(self, *names: str) -> None:
        for name in names:
            self.works[name] = work = Work(name)
            self.nodes[name] = node = worker(work)
            line = Line(node)
            attachment = self.hub.mesh.attach(name, line)  # type: ignore[arg-type]
            assert attachment is not None
            self.lines[name] = line, attachment
            await eventually(
                lambda name=name: name in self.hub.mesh._exposed.peers("lab/work/wait"), "its operations are exposed"
            )

    def lose(self, name: str) -> None:
        line, attachment = self.lines.pop(name)
        line.lose()
        self.hub.mesh.detach(attachment)

    async def answers(self, count: int, name: str = "lab/work/query") -> list[Any]:
        return [await self.hub.call(name) for _ in range(count)]

    async def error(self, name: str = "lab/work/query", value: Any = None, **how: Any) -> CallError:
        with pytest.raises(CallError) as caught:
            await self.hub.call(name, value, **how)
        return caught.value

    @property
    def calls(self) -> dict[str, int]:
        return {name: work.calls for name, work in self.works.items()}

    def counters(self, name: str = "lab/work/query") -> dict[str, Any]:
        found: dict[str, Any] = self.hub.mesh.describe()["routes"][name]
        return found


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    peers = {
        "alice": ("*",),
        "bob": ("peer:w2", "lab:use", "peer:ghost"),
        "eve": ("lab:use", "work:*"),
        "half": ("lab:use",),
        "mallory": (),
    }
    async with Bench(peers=peers) as hub:
        hub.settle(Routing.FIRST, w1=LAB, w2=LAB, w3=LAB)
        site = Site(hub)
        await site.join("w1", "w2")
        yield site
        for node in site.nodes.values():
            await node.aclose()


# --- that very peer -----------------------------------------------------------------------------------------------


async def test_a_peer_that_is_named_gets_the_call_and_no_other_does(site: Site) -> None:
    for name in ("w1", "w2", "w2", "w1"):
        assert await site.hub.dispatcher.prepare("work/query", None, site.hub.caller(), peer=name).call() == name
    Refusing(site, "w1", "UNAVAILABLE")
    error = await ask(site, "w1")
    assert (error.code, "peer 'w1'" in str(error)) == ("UNAVAILABLE", True)
    site.lose("w1")
    error = await ask(site, "w1")
    assert (error.code, str(error)) == ("UNAVAILABLE", "peer 'w1' is not connected")
    assert site.works["w2"].calls == 2


async def ask(site: Site, peer: str, name: str = "work/query", caller: str | None = "alice") -> CallError:
    with pytest.raises(CallError) as caught:
        await site.hub.dispatcher.prepare(name, None, site.hub.caller(caller), peer=peer).call()
    return caught.value


async def test_what_a_named_peer_does_not_offer_is_not_looked_for_elsewhere(site: Site) -> None:
    site.hub.settle(w1=Terms(("work/change",)), w2=LAB)
    error = await ask(site, "w1")
    assert (error.code, error.details) == ("NOT_FOUND", {"operation": "work/query"})
    error = await ask(site, "w1", "node/status")
    assert error.code == "NOT_FOUND"
    error = await ask(site, "w1", "services/list")
    assert error.code == "NOT_FOUND"
    assert site.calls == {"w1": 0, "w2": 0}


async def test_who_may_not_call_a_peer_does_not_learn_whether_it_is_there(site: Site) -> None:
    for caller, code in (("eve", "FORBIDDEN"), ("mallory", "FORBIDDEN"), (None, "FORBIDDEN")):
        said = set()
        for peer in ("w1", "w3", "unheard-of"):  # here, known but away, nobody
            error = await ask(site, peer, caller=caller)
            assert error.code == code
            said.add(str(error).replace(peer, "PEER"))
        assert len(said) == 1, said
        if caller is None:
            assert said == {"authentication required"}
    assert (await ask(site, "ghost", caller="bob")).code == "NOT_FOUND"
    assert (await ask(site, "w1", caller="bob")).code == "FORBIDDEN"
    assert site.calls == {"w1": 0, "w2": 0}


async def test_the_audit_log_has_whom_it_went_to(site: Site) -> None:
    await site.hub.dispatcher.prepare("work/query", None, site.hub.caller("bob"), peer="w2").call()
    await site.hub.call("lab/work/query")
    intent = next(r for r in site.hub.audit.records if r["action"] == "peer/call" and r["phase"] == "intent")
    assert (intent["peer"], intent["resource"], intent["rule"]) == ("bob", "w2:work/query", "scope:peer:w2")
    done = next(r for r in site.hub.audit.records if r["action"] == "lab/work/query" and "outcome" in r)
    assert (done["routed_to"], done["outcome"]) == ("w1", "ok")
    assert site.hub.unmatched() == {}


# --- whichever peer -----------------------------------------------------------------------------------------------


async def test_each_policy_spreads_the_calls_in_its_way(site: Site) -> None:
    await site.join("w3")
    terms = {"w1": LAB, "w2": LAB, "w3": LAB}
    assert await site.answers(4) == ["w1"] * 4
    site.hub.settle(Routing.ROUND_ROBIN, **terms)
    spread = await site.answers(9)
    assert [spread.count(name) for name in terms] == [3, 3, 3]
    site.hub.settle(Routing.LEAST_LATENCY, **terms)
    assert len(set(await site.answers(60))) >= 2, "the better of two that are drawn: never the slowest, but others"


async def test_a_peer_that_leaves_gets_no_call_and_one_that_comes_back_has_its_place(site: Site) -> None:
    site.lose("w1")
    assert await site.answers(3) == ["w2"] * 3
    await site.join("w1")
    assert await site.answers(3) == ["w1"] * 3


async def test_the_caller_needs_the_scope_of_the_exposed_name_and_what_the_peer_asks_for(site: Site) -> None:
    assert await site.hub.call("lab/work/query", peer="eve") == "w1"
    for peer in ("half", "mallory", None):
        assert (await site.error(peer=peer)).code == "FORBIDDEN"
    assert site.calls == {"w1": 1, "w2": 0}
    assert (await site.error("work/query")).code == "NOT_FOUND", "what is not exposed is none of this node's"


# --- trying again -------------------------------------------------------------------------------------------------


class Refusing:
    """The node of a worker refuses what it is asked, before anything runs."""

    def __init__(self, site: Site, name: str, code: str, *, details: Any = None) -> None:
        self.asked = 0
        line, _ = site.lines[name]

        async def call(name: str, value: Any = None, **how: Any) -> Any:
            self.asked += 1
            raise CallError(code, "as told", details=details)

        line.call = call  # type: ignore[method-assign]


@pytest.mark.parametrize("code", sorted(forwarding.TRIED_ELSEWHERE))
async def test_what_may_be_repeated_is_tried_at_another_peer(site: Site, code: str) -> None:
    first = Refusing(site, "w1", code)
    assert await site.hub.call("lab/work/query") == "w2"
    assert first.asked == 1
    assert site.counters()["retries"] == 1


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("lab/work/change", "UNAVAILABLE"),
        ("lab/work/change", "RESOURCE_EXHAUSTED"),
        ("lab/work/query", "TIMEOUT"),
        ("lab/work/query", "INTERNAL"),
        ("lab/work/query", "FORBIDDEN"),
        ("lab/work/query", "INVALID_INPUT"),
        ("lab/work/query", "BUSY"),
        ("lab/work/query", "NOT_FOUND"),
    ],
)
async def test_what_may_not_be_repeated_or_would_not_help_is_not(site: Site, name: str, code: str) -> None:
    first = Refusing(site, "w1", code)
    second = Refusing(site, "w2", code)
    assert (await site.error(name)).code == code
    assert (first.asked, second.asked) == (1, 0)


async def test_an_operation_that_is_gone_there_never_ran_and_is_tried_elsewhere(site: Site) -> None:
    first = Refusing(site, "w1", "NOT_FOUND", details={"operation": "work/change"})
    assert await site.hub.call("lab/work/change") == "w2"
    assert first.asked == 1
    assert site.counters("lab/work/change")["retries"] == 0, "that is no retry"


async def test_when_all_fail_the_last_reason_is_told(site: Site) -> None:
    both = [Refusing(site, name, "UNAVAILABLE") for name in ("w1", "w2")]
    error = await site.error()
    assert (error.code, str(error), error.retryable) == ("UNAVAILABLE", "peer 'w2': as told", True)
    assert [one.asked for one in both] == [1, 1]


async def test_retries_have_a_budget(site: Site) -> None:
    Refusing(site, "w1", "RESOURCE_EXHAUSTED")
    outcomes = []
    for _ in range(40):
        try:
            outcomes.append(await site.hub.call("lab/work/query"))
        except CallError as exc:
            outcomes.append(exc.code)
    counters = site.counters()
    assert counters["retries"] == outcomes.count("w2")
    assert counters["retries_denied"] == outcomes.count("RESOURCE_EXHAUSTED")
    assert 10 <= counters["retries"] < 20


async def test_a_peer_that_keeps_failing_is_left_alone(site: Site) -> None:
    first = Refusing(site, "w1", "UNAVAILABLE")
    for _ in range(FAILURES_TO_OPEN + 5):
        assert await site.hub.call("lab/work/query") == "w2"
    assert first.asked == FAILURES_TO_OPEN
    assert site.counters()["peers"]["w1"]["breaker"] == "open"
    site.lose("w2")
    error = await site.error()
    assert error.code == "UNAVAILABLE"
    assert "every peer that serves lab/work/query has failed lately (w1); the next call" in str(error)
    assert first.asked == FAILURES_TO_OPEN


async def test_a_peer_that_does_not_answer_in_time_has_failed(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """And one whose caller gives up has not."""
    monkeypatch.setattr("alknet.call.routing.FAIR_TIMEOUT_S", 0.01)
    for _ in range(FAILURES_TO_OPEN):
        assert (await site.error("lab/work/wait", timeout_s=0.02)).code == "TIMEOUT"
    first = site.counters("lab/work/wait")["peers"]["w1"]
    assert (first["failures"], first["breaker"]) == (FAILURES_TO_OPEN, "open")
    async with asyncio.TaskGroup() as group:
        task = group.create_task(site.hub.call("lab/work/wait"))
        await eventually(site.works["w2"].begun.is_set, "it runs at the other one")
        task.cancel()
    assert site.counters("lab/work/wait")["peers"]["w2"]["failures"] == 0


async def test_a_peer_that_is_lost_in_the_middle_is_replaced_where_that_does_no_harm(site: Site) -> None:
    async with asyncio.TaskGroup() as group:
        task = group.create_task(site.hub.call("lab/work/wait"))
        await eventually(site.works["w1"].begun.is_set, "it runs at the first one")
        site.lose("w1")
        await eventually(site.works["w2"].begun.is_set, "it runs at the second one")
        task.cancel()
    assert site.works["w2"].ended.is_set()


# --- what goes along ----------------------------------------------------------------------------------------------


async def test_the_time_that_is_left_the_trace_and_whom_it_is_for_go_along(site: Site) -> None:
    for name, how in (("lab/work/context", {}), ("work/context", {"peer": "w1"})):
        caller = site.hub.caller("alice")
        prepared = site.hub.dispatcher.prepare(name, None, caller, timeout_s=5.0, traceparent=TRACE, **how)
        seen = await prepared.call()
        assert (seen["identity"], seen["for"], seen["trace"]) == ("hub", "alice", TRACE)
        assert 4.0 < seen["left_s"] <= 5.0
    caller = site.hub.caller("alice", forwarded_for="carol")
    assert (await site.hub.dispatcher.prepare("lab/work/context", None, caller).call())["for"] == "carol"


async def test_a_refusal_says_whose_it_is(site: Site) -> None:
    site.nodes["w1"].gate.policy = site.nodes["w1"].policy({"hub": ()})
    error = await site.error()
    assert (error.code, str(error).startswith("peer 'w1' refused: ")) == ("FORBIDDEN", True)
    assert error.denial_id is not None
    assert error.denial_id == next(id for r in site.nodes["w1"].audit.records if (id := r.get("denial_id")))


async def test_an_error_that_the_operation_declares_arrives_as_it_is(site: Site) -> None:
    site.works["w1"].is_busy = True
    error = await site.error()
    assert (error.code, str(error)) == ("BUSY", "later")


async def test_a_time_out_bounds_the_call_there(site: Site) -> None:
    error = await site.error("lab/work/wait", timeout_s=0.05)
    assert error.code == "TIMEOUT"
    assert site.works["w1"].ended.is_set()
    assert not site.works["w2"].begun.is_set()


async def test_cancelling_here_cancels_there(site: Site) -> None:
    async with asyncio.TaskGroup() as group:
        task = group.create_task(site.hub.call("lab/work/wait"))
        await eventually(site.works["w1"].begun.is_set, "it runs")
        task.cancel()
    assert site.works["w1"].ended.is_set()
    assert site.nodes["w1"].outcome("work/wait") == "aborted"
    assert site.hub.outcome("lab/work/wait") == "aborted"


# --- subscriptions ------------------------------------------------------------------------------------------------


async def test_items_pass_one_by_one_as_they_are_taken(site: Site) -> None:
    stream = site.hub.prepare("lab/work/count", streaming=True).stream()
    assert [await anext(stream) for _ in range(5)] == [0, 1, 2, 3, 4]
    assert site.works["w1"].produced < 10
    await stream.aclose()
    assert site.works["w1"].ended.is_set()
    assert site.hub.unmatched() == {}


async def test_a_subscription_is_tried_elsewhere_before_its_first_item_only(site: Site) -> None:
    line, _ = site.lines["w1"]
    line.lose()  # the node has not noticed yet
    stream = site.hub.prepare("lab/work/count", streaming=True).stream()
    assert await anext(stream) == 0
    site.lines["w2"][0].lose()
    with pytest.raises(CallError) as caught:
        await anext(stream)
    assert caught.value.code == "UNAVAILABLE"
    assert "peer 'w2' was lost" in str(caught.value)
    await stream.aclose()
    assert site.counters("lab/work/count")["retries"] == 1


# --- what runs while something changes ----------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["scope", "offers", "expose"])
@pytest.mark.parametrize("name", ["lab/work/wait", "w1"])
async def test_what_runs_ends_when_it_would_not_be_allowed_any_more(site: Site, how: str, name: str) -> None:
    hub = site.hub
    prepared = (
        hub.dispatcher.prepare("work/wait", None, hub.caller("alice"), peer="w1") if name == "w1" else hub.prepare(name)
    )
    assert prepared.revoked() is None
    async with asyncio.TaskGroup() as group:
        task = group.create_task(prepared.call())
        await eventually(site.works["w1"].begun.is_set, "it runs")
        assert prepared.revoked() is None
        if how == "scope":
            hub.gate.policy = hub.policy({"alice": ("other:thing",)})
        else:
            gone = Terms(("work/query",), LAB.expose) if how == "offers" else Terms(("*",))
            hub.settle(w1=gone, w2=gone)
        denial = prepared.revoked()
        task.cancel()
    if how == "expose" and name == "w1":
        assert denial is None, "naming the peer is another thing"
    else:
        assert denial is not None
        assert denial.code == ("FORBIDDEN" if how == "scope" else "UNAVAILABLE")


async def test_what_runs_at_a_peer_that_may_not_serve_it_any_more_ends(site: Site) -> None:
    prepared = site.hub.prepare("lab/work/wait")
    async with asyncio.TaskGroup() as group:
        task = group.create_task(prepared.call())
        await eventually(site.works["w1"].begun.is_set, "it runs")
        site.hub.settle(w1=Terms(("work/query",), LAB.expose), w2=LAB)
        assert "lab/work/wait" in site.hub.dispatcher.registry.operations, "the other one serves it"
        denial = prepared.revoked()
        task.cancel()
    assert denial is not None
    assert denial.code == "UNAVAILABLE"


# --- operations that call what peers offer ------------------------------------------------------------------------


@operation("own/any", public=True, calls=["work/*"], authority=["peer:w2"])
async def any_of_one(*, ctx: OperationContext) -> Any:
    return await ctx.call("work/query")


@operation("own/none", public=True, calls=["work/*"], authority=["work:*"])
async def any_of_none(*, ctx: OperationContext) -> Any:
    return await ctx.call("work/query")


@operation("own/all", public=True, calls=["work/*"], authority=["peer:*"])
async def any_of_all(*, ctx: OperationContext) -> Any:
    return await ctx.call("work/query")


async def test_a_composed_call_reaches_the_peers_that_its_authority_names(site: Site) -> None:
    site.hub.serve(any_of_one, any_of_none, any_of_all)
    assert await site.hub.call("own/any", peer=None) == "w2"
    assert await site.hub.call("own/all", peer=None) == "w1"
    error = await site.error("own/none")
    assert error.details["code"] == "NOT_FOUND"
    site.lose("w2")
    error = await site.error("own/any")
    assert error.details["code"] == "NOT_FOUND", "the others are not for it"


async def test_a_composed_call_takes_the_nodes_own_operation_first(site: Site) -> None:
    @operation("work/query", kind="query", visibility="internal")
    async def own() -> str:
        return "own"

    @operation("own/all", public=True, calls=["work/*"], authority=["*"])
    async def composing(*, ctx: OperationContext) -> Any:
        return await ctx.call("work/query")

    site.hub.serve(own, composing)
    assert await site.hub.call("own/all") == "own"
    assert site.calls == {"w1": 0, "w2": 0}


# --- over sessions as they are on the wire ------------------------------------------------------------------------


async def test_a_slow_reader_here_stops_the_generator_there_and_leaving_ends_it(tmp_path: Path) -> None:
    work = Work("program")
    door = CallDoor(tmp_path)
    async with door.session(offer=Offer([work])), door.session() as caller:
        async with caller.session.subscribe("work/count", {}, credit=4, peer="alice") as items:
            assert await anext(items) == 0
            # The credit of both sessions, and what lies between them, is all that runs ahead.
            ahead = await settled(lambda: work.produced)
            assert ahead <= 4 + DEFAULT_CREDIT + 8
            assert [await anext(items) for _ in range(3 * ahead)] == list(range(1, 3 * ahead + 1))
            assert work.produced <= 3 * ahead + 4 + DEFAULT_CREDIT + 8
            assert not work.ended.is_set()
        await asyncio.wait_for(work.ended.wait(), 5)
    await door.aclose()


async def test_an_abort_goes_all_the_way_and_so_does_the_loss_of_the_peer(tmp_path: Path) -> None:
    work = Work("program")
    door = CallDoor(tmp_path)
    async with door.session() as caller:
        async with door.session(offer=Offer([work])):
            async with asyncio.TaskGroup() as group:
                task = group.create_task(caller.session.call("work/wait", {}, peer="alice"))
                await asyncio.wait_for(work.begun.wait(), 5)
                task.cancel()
                await asyncio.wait_for(work.ended.wait(), 5)
            work.begun.clear()
            lost = asyncio.ensure_future(caller.session.call("work/wait", {}, peer="alice"))  # noqa: TID251
            await asyncio.wait_for(work.begun.wait(), 5)
        with pytest.raises(CallError) as caught:
            await asyncio.wait_for(lost, 5)
        assert (caught.value.code, "peer 'alice'" in str(caught.value)) == ("UNAVAILABLE", True)
        with pytest.raises(CallError) as caught:
            await caller.session.call("work/query", {}, peer="alice")
        assert str(caught.value) == "peer 'alice' is not connected"
    await door.aclose()
