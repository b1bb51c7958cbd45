"""Operations that call operations: whose rights count, what is in reach, and how a tree of calls ends."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alknet.access import Authority
from alknet.call import composition
from alknet.call.composition import COMPOSED, may_reach, may_reach_caller
from alknet.call.context import OperationContext
from alknet.call.errors import CallError
from alknet.call.operations import OperationError, operation
from testkit.bench import Bench
from testkit.polling import eventually

# --- the scoped environment ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("calls", "name", "peer", "reached"),
    [
        ((), "fs/read", None, False),
        (("fs/read",), "fs/read", None, True),
        (("fs/*",), "fs/read", None, True),
        (("fs/*",), "fs", None, False),
        (("*",), "fs/read", None, True),
        (("FS/*",), "fs/read", None, False),
        (("db/*", "fs/read"), "fs/read", None, True),
        (("fs/read",), "fs/read", "lab", False),
        (("*",), "fs/read", "lab", False),
        (("lab:fs/read",), "fs/read", "lab", True),
        (("lab:fs/read",), "fs/read", None, False),
        (("lab:*",), "fs/read", "other", False),
        (("*:fs/*",), "fs/read", "lab", True),
        (("l?b:fs/*",), "fs/read", "lab", True),
        ((":fs/*",), "fs/read", "lab", False),
        (("caller:fs/*",), "fs/read", "caller", False),
        (("caller:fs/*",), "fs/read", None, False),
    ],
)
def test_what_is_in_reach(calls: tuple[str, ...], name: str, peer: str | None, reached: bool) -> None:
    assert may_reach(calls, name, peer=peer) is reached


@pytest.mark.parametrize(
    ("calls", "reached"),
    [
        (("caller:ui/confirm",), True),
        (("fs/*", "caller:ui/*"), True),
        (("caller:*",), True),
        (("caller:fs/*",), False),
        (("*:*",), False),
        (("calle?:*",), False),
        (("*", "ui/confirm"), False),
        ((), False),
    ],
)
def test_what_a_caller_brings_is_in_reach_by_its_own_word_only(calls: tuple[str, ...], reached: bool) -> None:
    assert may_reach_caller(calls, "ui/confirm") is reached


# --- whose rights count -------------------------------------------------------------------------------------------

SCOPES = ["a", "b", "c:d"]
GRANTS = [*SCOPES, "c:*", "*"]
NAMES = ["x/one", "x/two", "y/one", "y/two"]
GLOBS = [*NAMES, "x/*", "*/one", "*"]


def grants(granted: frozenset[str], required: str) -> bool:
    """Scopes, for these few."""
    return required in granted or "*" in granted or (required == "c:d" and "c:*" in granted)


@dataclass(frozen=True)
class Made:
    """An operation that hypothesis made."""

    requires: frozenset[str]
    authority: frozenset[str]
    calls: tuple[str, ...]
    is_internal: bool


@dataclass(frozen=True)
class Tree:
    """What is called, and what that calls in turn."""

    name: str
    children: tuple["Tree", ...] = ()


made = st.builds(
    Made,
    requires=st.frozensets(st.sampled_from(SCOPES), min_size=1, max_size=2),
    authority=st.frozensets(st.sampled_from(GRANTS), max_size=2),
    calls=st.lists(st.sampled_from(GLOBS), max_size=2).map(tuple),
    is_internal=st.booleans(),
)
nodes = st.dictionaries(st.sampled_from(NAMES), made, min_size=1)
trees = st.recursive(
    st.builds(Tree, st.sampled_from(NAMES)),
    lambda inner: st.builds(Tree, st.sampled_from(NAMES), st.lists(inner, max_size=3).map(tuple)),
    max_leaves=8,
)


def expected(tree: Tree, node: dict[str, Made], scopes: frozenset[str], parent: Made | None) -> dict[str, Any]:
    """The reference: a child is judged by its parent's authority and reach, the root by the user's scopes, and by
    nothing else."""
    found = node.get(tree.name)
    if parent is not None and not any(fnmatchcase(tree.name, glob) for glob in parent.calls):
        return {"name": tree.name, "code": "NOT_FOUND"}
    if found is None or (found.is_internal and parent is None):
        return {"name": tree.name, "code": "NOT_FOUND"}
    if not all(grants(scopes if parent is None else parent.authority, scope) for scope in found.requires):
        return {"name": tree.name, "code": "FORBIDDEN"}
    below = [expected(child, node, scopes, found) for child in tree.children]
    return {"name": tree.name, "code": "ok", "children": below}


def as_input(tree: Tree) -> dict[str, Any]:
    return {"name": tree.name, "children": [as_input(child) for child in tree.children]}


async def attempt(tree: dict[str, Any], call: Callable[[str, Any], Awaitable[Any]]) -> dict[str, Any]:
    try:
        below = await call(tree["name"], {"children": tree["children"]})
    except CallError as exc:
        return {"name": tree["name"], "code": exc.code}
    return {"name": tree["name"], "code": "ok", "children": below}


def serve(name: str, of: Made) -> Any:
    @operation(
        name,
        scopes=sorted(of.requires),
        authority=sorted(of.authority),
        calls=of.calls,
        visibility="internal" if of.is_internal else "external",
    )
    async def one(children: list[Any], *, ctx: OperationContext) -> list[Any]:
        return [await attempt(child, ctx.call) for child in children]

    return one


@given(nodes, trees, st.frozensets(st.sampled_from(GRANTS), max_size=3), st.sampled_from([None, "root"]))
async def test_a_call_is_judged_by_its_parents_authority_and_by_nothing_else(
    node: dict[str, Made], tree: Tree, scopes: frozenset[str], forwarded_for: str | None
) -> None:
    bench = Bench(*(serve(name, of) for name, of in node.items()), peers={"alice": sorted(scopes), "root": ("*",)})

    async def call(name: str, value: Any) -> Any:
        caller = bench.caller("alice", forwarded_for=forwarded_for)
        return await bench.dispatcher.prepare(name, value, caller).call()

    async with bench:
        assert await attempt(as_input(tree), call) == expected(tree, node, scopes, None)
        assert bench.unmatched() == {}


# --- what a composed call knows -----------------------------------------------------------------------------------


@operation("know/child")
async def child(*, ctx: OperationContext) -> dict[str, Any]:
    identity = ctx.identity
    seen = {
        "identity": None if identity is None else identity.id,
        "parent": ctx.parent_request_id,
        "request": ctx.request_id,
        "forwarded_for": ctx.forwarded_for,
        "surface": ctx.surface,
        "connection": ctx.connection,
        "metadata": dict(ctx.metadata),
        "deadline": ctx.deadline,
        "traceparent": ctx.traceparent,
        "operation": ctx.operation,
    }
    ctx.metadata["child"] = True
    return seen


@operation("know/parent", public=True, calls=["know/*"], authority=["know:child"])
async def parent(*, ctx: OperationContext) -> list[dict[str, Any]]:
    ctx.metadata["secret"] = "the parent's"
    first = await ctx.call("know/child")
    assert ctx.metadata == {"secret": "the parent's"}
    return [first, await ctx.call("know/child"), {"request": ctx.request_id, "deadline": ctx.deadline}]


@pytest.mark.parametrize("peer", ["alice", None])
async def test_a_composed_call_knows_its_parent_and_not_the_user(peer: str | None) -> None:
    async with Bench(child, parent) as bench:
        caller = bench.caller(peer, connection="c7", forwarded_for="carol")
        prepared = bench.dispatcher.prepare("know/parent", {}, caller, traceparent="00-trace", timeout_s=9.0)
        first, second, above = await prepared.call()
        for seen in (first, second):
            assert seen == {
                "identity": "operation:know/parent",
                "parent": above["request"],
                "request": seen["request"],
                "forwarded_for": None,
                "surface": COMPOSED,
                "connection": "c7",
                "metadata": {},
                "deadline": above["deadline"],
                "traceparent": "00-trace",
                "operation": "know/child",
            }
        assert len({first["request"], second["request"], above["request"]}) == 3


async def test_the_audit_log_has_the_tree_and_who_began_it() -> None:
    @operation("know/grandparent", public=True, calls=["know/parent"], authority=[])
    async def grandparent(*, ctx: OperationContext) -> Any:
        return await ctx.call("know/parent")

    async with Bench(child, parent, grandparent) as bench:
        await bench.dispatcher.prepare("know/grandparent", {}, bench.caller(forwarded_for="carol")).call()
        intents = {r["action"]: r for r in bench.audit.records if r["phase"] == "intent"}
        top, middle, leaf = (intents[f"know/{name}"] for name in ("grandparent", "parent", "child"))
        assert (middle["parent"], leaf["parent"]) == (top["request_id"], middle["request_id"])
        assert (middle["origin"], leaf["origin"]) == ("alice", "alice")
        assert (middle["peer"], leaf["peer"]) == ("operation:know/grandparent", "operation:know/parent")
        assert (leaf["surface"], leaf["rule"], leaf["forwarded_for"]) == (COMPOSED, "scope:know:child", None)
        assert (top.get("origin"), top["forwarded_for"]) == (None, "carol")


# --- how a composed call fails ------------------------------------------------------------------------------------


class Empty(OperationError):
    """Nothing is there."""

    code = "EMPTY"


@operation("go/wrong", errors=[Empty])
async def go_wrong(how: str) -> None:
    if how == "declared":
        raise Empty("none")
    raise RuntimeError("x-secret")


@operation("go/stream")
async def stream() -> AsyncIterator[int]:
    yield 1


@operation("go/through", public=True, calls=["go/*"], authority=["go:*"])
async def through(name: str, value: Any = None, *, ctx: OperationContext) -> Any:
    return await ctx.call(name, value)


@operation("go/careful", public=True, calls=["go/*"], authority=["go:*"])
async def careful(name: str, value: Any = None, *, ctx: OperationContext) -> Any:
    try:
        return await ctx.call(name, value)
    except Empty as exc:
        return f"caught {exc.code}"
    except CallError as exc:
        return exc.code


@operation("go/out", visibility="internal")
async def out() -> str:
    return "reached"


GOING = (go_wrong, stream, through, careful, out)


@pytest.mark.parametrize(
    ("name", "value", "result"),
    [
        ("go/out", None, "reached"),
        ("go/wrong", {"how": "declared"}, "caught EMPTY"),
        ("go/wrong", {"how": "bug"}, "INTERNAL"),
        ("go/wrong", {}, "INVALID_INPUT"),
        ("go/stream", None, "INVALID_OPERATION_TYPE"),
        ("go/none", None, "NOT_FOUND"),
        ("services/list", None, "NOT_FOUND"),
    ],
)
async def test_a_handler_can_deal_with_what_it_calls(
    name: str, value: Any, result: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with Bench(*GOING) as bench:
        assert await bench.call("go/careful", {"name": name, "value": value}) == result
        assert bench.unmatched() == {}
        assert "task" not in caplog.text, "a failed call is no failed task"
        assert ("x-secret" in caplog.text) is (result == "INTERNAL")


async def test_what_it_does_not_deal_with_is_internal_and_names_the_code() -> None:
    async with Bench(*GOING) as bench:
        with pytest.raises(CallError, match="go/through failed with EMPTY") as caught:
            await bench.call("go/through", {"name": "go/wrong", "value": {"how": "declared"}})
        assert (caught.value.code, caught.value.details) == ("INTERNAL", {"code": "EMPTY", "message": "none"})


async def test_a_refusal_inside_has_its_denial_id_in_the_details() -> None:
    @operation("go/weak", public=True, calls=["go/out"])
    async def weak(*, ctx: OperationContext) -> Any:
        return await ctx.call("go/out")

    async with Bench(*GOING, weak) as bench:
        with pytest.raises(CallError) as caught:
            await bench.call("go/weak")
        denied = next(record for record in bench.audit.records if record.get("outcome") == "denied")
        assert caught.value.details["code"] == "FORBIDDEN"
        assert caught.value.details["denial_id"] == denied["denial_id"]
        assert denied["peer"] == "operation:go/weak"


# --- the end of a tree --------------------------------------------------------------------------------------------


async def forget(awaitable: Awaitable[Any]) -> None:
    with contextlib.suppress(CallError):
        await awaitable


@dataclass
class Family:
    """Three levels, and how the upper two call the one below."""

    how: str
    ended: list[str] = field(default_factory=list)
    begun: list[str] = field(default_factory=list)
    tasks: list["asyncio.Task[Any]"] = field(default_factory=list)

    async def _call_two(self, ctx: OperationContext, name: str) -> None:
        match self.how:
            case "await":
                await ctx.call(name)
            case "gather":
                await asyncio.gather(ctx.call(name), ctx.call(name))
            case "group":
                async with asyncio.TaskGroup() as group:
                    for _ in range(2):
                        group.create_task(ctx.call(name))  # type: ignore[arg-type]
            case "task":
                self.tasks += [asyncio.ensure_future(forget(ctx.call(name))) for _ in range(2)]  # noqa: TID251
                await asyncio.Event().wait()
            case "shield":
                await asyncio.shield(ctx.call(name))
            case "wait_for":
                await asyncio.wait_for(ctx.call(name), 60)

    async def _level(self, name: str, ctx: OperationContext, below: str | None) -> None:
        self.begun.append(name)
        try:
            if below is None:
                await asyncio.Event().wait()
            else:
                await self._call_two(ctx, below)
        finally:
            self.ended.append(name)

    @operation("level/top", public=True, calls=["level/*"], authority=["*"])
    async def top(self, *, ctx: OperationContext) -> None:
        await self._level("top", ctx, "level/middle")

    @operation("level/middle", calls=["level/*"], authority=["*"])
    async def middle(self, *, ctx: OperationContext) -> None:
        await self._level("middle", ctx, "level/leaf")

    @operation("level/leaf")
    async def leaf(self, *, ctx: OperationContext) -> None:
        await self._level("leaf", ctx, None)


WAYS = {"await": 1, "gather": 2, "group": 2, "task": 2, "shield": 1, "wait_for": 1}


@pytest.mark.parametrize("expires", [False, True])
@pytest.mark.parametrize("how", WAYS)
async def test_an_abort_goes_down_through_three_levels_however_children_were_started(how: str, expires: bool) -> None:
    family, width = Family(how), WAYS[how]
    async with Bench(family) as bench:
        call = bench.call("level/top", timeout_s=0.1 if expires else None)
        task = asyncio.ensure_future(call)  # noqa: TID251 - a group would fail with it
        await eventually(lambda: family.begun.count("leaf") == width * width, "all leaves run")
        if not expires:
            task.cancel()
        await asyncio.wait([task], timeout=5)
        if expires:
            error = task.exception()
            assert isinstance(error, CallError)
            assert error.code == "TIMEOUT"
        else:
            assert task.cancelled()
        assert len(bench.dispatcher.tasks) == 0, "what it has called has ended before it"
        assert sorted(family.ended) == sorted(family.begun)
        assert family.ended[-1] == "top" or how in ("task", "shield")
        assert bench.unmatched() == {}
        assert set(bench.outcomes("level/leaf")) <= {"aborted", "error TIMEOUT"}
        await asyncio.gather(*family.tasks, return_exceptions=True)


class Returning:
    """A parent that returns, or fails, while its children run."""

    def __init__(self) -> None:
        self.begun = 0
        self.has_begun: Callable[[], Any] = lambda: self.begun
        self.ended: list[str] = []
        self.go_on = asyncio.Event()
        self.context: OperationContext | None = None
        self.tasks: list[asyncio.Task[Any]] = []

    @operation("re/child", calls=["re/last"], authority=["*"])
    async def child(self, *, ctx: OperationContext) -> str:
        self.begun += 1
        try:
            await self.go_on.wait()
        except asyncio.CancelledError:
            self.ended.append("cancelled")
            raise
        self.ended.append("finished")
        return str(await ctx.call("re/last"))

    @operation("re/last")
    async def last(self) -> str:
        return "last"

    @operation("re/parent", public=True, calls=["re/*", "lab:*"], authority=["*"])
    async def parent(
        self,
        spared: bool = False,
        begins: bool = True,
        fails: bool = False,
        peer: bool = False,
        *,
        ctx: OperationContext,
    ) -> str:
        self.context = ctx
        calling = ctx.call_peer("lab", "re/child") if peer else ctx.call("re/child", continue_running=spared)
        self.tasks.append(asyncio.ensure_future(forget(calling)))  # noqa: TID251
        if begins:
            await eventually(self.has_begun, "the child runs")
        else:
            await asyncio.sleep(0)  # the call is made, and its task has not run yet
        if fails:
            raise RuntimeError("as told")
        return "returned"


@pytest.mark.parametrize("fails", [False, True])
async def test_a_child_that_still_runs_ends_with_its_parent(fails: bool) -> None:
    service = Returning()
    async with Bench(service) as bench:
        with pytest.raises(CallError) if fails else contextlib.nullcontext():
            assert await bench.call("re/parent", {"fails": fails}) == "returned"
        assert service.ended == ["cancelled"]
        assert bench.outcome("re/child") == "aborted"
        assert bench.unmatched() == {}
        await asyncio.gather(*service.tasks, return_exceptions=True)


@pytest.mark.parametrize("fails", [False, True])
async def test_a_child_that_continues_goes_on_and_may_call_what_it_calls(fails: bool) -> None:
    service = Returning()
    async with Bench(service) as bench:
        with pytest.raises(CallError) if fails else contextlib.nullcontext():
            await bench.call("re/parent", {"spared": True, "fails": fails})
        assert (service.ended, bench.outcomes("re/child")) == ([], [])
        service.go_on.set()
        await eventually(lambda: bench.outcomes("re/child"), "the child ends")
        assert (bench.outcome("re/child"), bench.outcome("re/last")) == ("ok", "ok")
        assert bench.unmatched() == {}


async def test_a_child_that_continues_outlives_the_abort_of_its_parent() -> None:
    service = Returning()

    @operation("re/waiting", public=True, calls=["re/*"], authority=["*"])
    async def waiting(*, ctx: OperationContext) -> Any:
        return await ctx.call("re/child", continue_running=True)

    async with Bench(service, waiting) as bench, asyncio.TaskGroup() as group:
        task = group.create_task(bench.call("re/waiting"))
        await eventually(lambda: service.begun, "the child runs")
        task.cancel()
        await asyncio.wait([task])
        assert bench.outcome("re/waiting") == "aborted"
        service.go_on.set()
        await eventually(lambda: bench.outcomes("re/child") == ["ok"], "the child ends")


@pytest.mark.parametrize("spared", [False, True])
async def test_a_child_that_had_not_begun_never_does(spared: bool) -> None:
    service = Returning()
    async with Bench(service) as bench:
        assert await bench.call("re/parent", {"spared": spared, "begins": False}) == "returned"
        await asyncio.gather(*service.tasks, return_exceptions=True)
        assert service.begun == 0
        assert bench.outcome("re/child") == "dropped"


async def test_the_deadline_holds_for_a_child_that_continues() -> None:
    service = Returning()
    async with Bench(service) as bench:
        await bench.call("re/parent", {"spared": True}, timeout_s=0.2)
        await eventually(lambda: bench.outcomes("re/child"), "its time is over")
        assert (bench.outcome("re/child"), service.ended) == ("error TIMEOUT", ["cancelled"])


async def test_nothing_new_begins_when_the_handler_has_ended() -> None:
    service = Returning()
    service.go_on.set()
    async with Bench(service) as bench:
        await bench.call("re/parent")
        context = service.context
        assert context is not None
        count = len(bench.audit.records)
        for late in (
            context.call("re/child"), context.call_peer("lab", "re/child"), context.call_caller("re/child"),
        ):  # fmt: skip
            with pytest.raises(CallError, match="re/parent has ended") as caught:
                await late
            assert caught.value.code == "UNAVAILABLE"
        assert (len(bench.audit.records), bench.peer_calls) == (count, [])


async def test_one_child_may_be_cancelled_and_the_others_go_on() -> None:
    service = Returning()

    @operation("re/choosing", public=True, calls=["re/*"], authority=["*"])
    async def choosing(*, ctx: OperationContext) -> Any:
        tasks = [asyncio.ensure_future(ctx.call("re/child")) for _ in range(2)]  # noqa: TID251
        await eventually(lambda: service.begun == 2, "both run")
        tasks[0].cancel()
        await asyncio.wait(tasks[:1])
        service.go_on.set()
        return await tasks[1]

    async with Bench(service, choosing) as bench:
        assert await bench.call("re/choosing") == "last"
        assert sorted(bench.outcomes("re/child")) == ["aborted", "ok"]


async def test_a_child_that_ended_by_the_nodes_own_end_is_an_error_to_its_parent() -> None:
    service = Returning()

    @operation("re/asking", public=True, calls=["re/*"], authority=["*"])
    async def asking(*, ctx: OperationContext) -> str:
        try:
            await ctx.call("re/child")
        except CallError as exc:
            return exc.code
        return "?"

    bench = Bench(service, asking)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(bench.call("re/asking"))
        await eventually(lambda: service.begun, "the child runs")
        await bench.aclose()
        assert await task == "UNAVAILABLE"


# --- operations of peers ------------------------------------------------------------------------------------------


@operation("peer/ask", public=True, calls=["lab:fs/*", "*:any/*", "fs/*"], authority=["peer:lab"])
async def ask(peer: str, name: str, *, ctx: OperationContext) -> Any:
    return await ctx.call_peer(peer, name, path="a")


async def test_a_peers_operation_is_called_for_the_origin_in_the_time_that_is_left() -> None:
    async with Bench(ask) as bench:
        bench.connect("lab", "fs/read")
        caller = bench.caller()
        prepared = bench.dispatcher.prepare("peer/ask", {"peer": "lab", "name": "fs/read"}, caller, timeout_s=9.0)
        assert await prepared.call() == "lab:fs/read"
        ((peer, name, value, timeout_s, forwarded_for),) = bench.peer_calls
        assert (peer, name, value, forwarded_for) == ("lab", "fs/read", {"path": "a"}, "alice")
        assert timeout_s is not None
        assert 8 < timeout_s < 9.1
        record = next(r for r in bench.audit.records if r["action"] == "peer/call" and r["phase"] == "intent")
        assert (record["resource"], record["peer"], record["origin"], record["rule"]) == (
            "lab:fs/read", "operation:peer/ask", "alice", "scope:peer:lab",
        )  # fmt: skip
        assert record["parent"] == prepared.act.request_id
        assert bench.unmatched() == {}


async def test_whom_the_caller_calls_for_is_told_on() -> None:
    async with Bench(ask) as bench:
        bench.connect("lab", "fs/read")
        caller = bench.caller(forwarded_for="carol")
        await bench.dispatcher.prepare("peer/ask", {"peer": "lab", "name": "fs/read"}, caller).call()
        assert bench.peer_calls[0][4] == "carol"


async def test_for_nobody_a_peers_operation_is_called_for_nobody() -> None:
    async with Bench(ask) as bench:
        bench.connect("lab", "fs/read")
        await bench.call("peer/ask", {"peer": "lab", "name": "fs/read"}, peer=None)
        assert bench.peer_calls[0][4] is None


@pytest.mark.parametrize(
    ("peer", "name", "code"),
    [
        ("lab", "db/read", "NOT_FOUND"),
        ("other", "fs/read", "NOT_FOUND"),
        ("other", "any/read", "FORBIDDEN"),
    ],
)
async def test_a_peers_operation_needs_both_reach_and_the_peers_scope(peer: str, name: str, code: str) -> None:
    async with Bench(ask, peers={"alice": ("*",)}) as bench:
        for one in ("lab", "other"):
            bench.connect(one, "db/read", "fs/read", "any/read")
        with pytest.raises(CallError) as caught:
            await bench.call("peer/ask", {"peer": peer, "name": name})
        assert caught.value.details["code"] == code
        assert bench.peer_calls == []
        assert bench.outcomes("peer/call") == (["denied"] if code == "FORBIDDEN" else [])


async def test_a_peer_that_fails_or_is_away_is_an_error_of_the_handler() -> None:
    async with Bench(ask) as bench:
        bench.connect("lab", "fs/read")
        bench.peer_answer = asyncio.get_running_loop().create_future()
        bench.peer_answer.set_exception(CallError("UNAVAILABLE", "peer 'lab' is not connected"))
        with pytest.raises(CallError) as caught:
            await bench.call("peer/ask", {"peer": "lab", "name": "fs/read"})
        assert caught.value.details["code"] == "UNAVAILABLE"
        assert bench.outcome("peer/call") == "error UNAVAILABLE"


async def test_an_abort_is_passed_on_to_the_peer() -> None:
    async with Bench(ask) as bench, asyncio.TaskGroup() as group:
        bench.connect("lab", "fs/read")
        answer = bench.peer_answer = asyncio.get_running_loop().create_future()
        task = group.create_task(bench.call("peer/ask", {"peer": "lab", "name": "fs/read"}))
        await eventually(lambda: bench.peer_calls, "the peer is called")
        task.cancel()
        await asyncio.wait([task])
        assert answer.cancelled()
        assert bench.outcome("peer/call") == "aborted"
        assert bench.unmatched() == {}


async def test_a_call_to_a_peer_ends_with_the_handler_that_made_it() -> None:
    service = Returning()
    async with Bench(service) as bench:
        bench.connect("lab", "re/child")
        answer = bench.peer_answer = asyncio.get_running_loop().create_future()
        service.has_begun = lambda: bench.peer_calls
        assert await bench.call("re/parent", {"peer": True}) == "returned"
        await asyncio.gather(*service.tasks, return_exceptions=True)
        assert answer.cancelled()
        assert bench.outcome("peer/call") == "aborted"


async def test_the_identity_of_a_composed_call_is_an_authority_that_does_nothing_else() -> None:
    async with Bench(child, parent) as bench:
        authority = bench.dispatcher.registry.operations["know/parent"].authority
        assert isinstance(authority, Authority)
        assert not bench.gate.still(authority, "ssh/exec", "id")


async def test_a_child_that_does_not_end_holds_up_its_parents_answer_for_so_long_only(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(composition, "CHILDREN_GRACE_S", 0.05)
    go = asyncio.Event()

    @operation("stuck/child")
    async def child() -> None:
        while not go.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await go.wait()

    @operation("stuck/parent", calls=["stuck/child"], authority=["stuck:child"])
    async def parent(*, ctx: OperationContext) -> None:
        await ctx.call("stuck/child")

    async with Bench(child, parent) as bench:
        with pytest.raises(CallError) as refused:
            async with asyncio.timeout(5):
                await bench.call("stuck/parent", timeout_s=0.05)
        assert refused.value.code == "TIMEOUT"
        assert "a composed call does not end" in caplog.text
        go.set()
