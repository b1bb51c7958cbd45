"""The way in: the order of the checks, what each refusal tells whom, how long a call may take, what is counted."""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import AfterValidator

from alknet.access import Identity
from alknet.call.codecs import JSON
from alknet.call.context import OperationContext
from alknet.call.dispatch import Stats
from alknet.call.envelopes import error_payload
from alknet.call.errors import CallError
from alknet.call.operations import operation
from testkit.bench import Bench
from testkit.calls import CallDoor

CHECKS = {
    "lookup": "NOT_FOUND",
    "visibility": "NOT_FOUND",
    "access": "FORBIDDEN",
    "input": "INVALID_INPUT",
    "kind": "INVALID_OPERATION_TYPE",
    "handler": "INTERNAL",
}
"""In the order in which they are made, each with what answers a call that violates it."""
VIOLATIONS = [violated for count in range(1, len(CHECKS) + 1) for violated in itertools.combinations(CHECKS, count)]


def made_to_violate(*violated: str) -> Any:
    """An operation that a call violates in these ways; the caller has the scope ``right``."""

    @operation(
        "order/one",
        visibility="internal" if "visibility" in violated else "external",
        scopes=["wrong" if "access" in violated else "right"],
    )
    async def one(number: int) -> int:
        raise RuntimeError("handler")

    @operation(
        "order/one",
        visibility="internal" if "visibility" in violated else "external",
        scopes=["wrong" if "access" in violated else "right"],
    )
    async def many(number: int) -> AsyncIterator[int]:
        raise RuntimeError("handler")
        yield 0

    return many if "kind" in violated else one


@pytest.mark.parametrize("violated", VIOLATIONS, ids="-".join)
async def test_of_several_violated_checks_the_first_one_answers(violated: tuple[str, ...]) -> None:
    async with Bench(made_to_violate(*violated), peers={"alice": ("right",)}) as bench:
        name = "order/none" if "lookup" in violated else "order/one"
        value = {"number": "x"} if "input" in violated else {"number": 1}
        with pytest.raises(CallError) as caught:
            await bench.call(name, value)
        assert caught.value.code == CHECKS[violated[0]]
        assert bench.unmatched() == {}
        # What an intent is written for has passed all that comes before the input.
        assert len(bench.audit.records) == {"lookup": 0, "visibility": 0, "access": 1}.get(violated[0], 2)


@pytest.mark.parametrize(("is_stream", "streaming"), [(True, False), (False, True)])
async def test_a_subscription_is_not_called_and_a_call_not_subscribed_to(is_stream: bool, streaming: bool) -> None:
    async with Bench(made_to_violate("kind") if is_stream else made_to_violate(), peers={"alice": ("*",)}) as bench:
        with pytest.raises(CallError, match="subscribe to it") as caught:
            bench.prepare("order/one", {"number": 1}, streaming=streaming)
        assert caught.value.code == "INVALID_OPERATION_TYPE"
        assert bench.outcome("order/one") == "error INVALID_OPERATION_TYPE"


@pytest.mark.parametrize("is_stream", [True, False])
async def test_who_takes_either_gets_either(is_stream: bool) -> None:
    async with Bench(made_to_violate("kind") if is_stream else made_to_violate()) as bench:
        prepared = bench.prepare("order/one", {"number": 1}, streaming=None)
        assert prepared.is_stream is is_stream
        prepared.drop()


# --- what a refusal tells -----------------------------------------------------------------------------------------


@operation("door/open", public=True)
async def open_door() -> str:
    return "open"


@operation("door/locked")
async def locked(key: int) -> str:
    return "in"


@operation("door/locked-stream", scopes=["door:locked"])
async def locked_stream() -> AsyncIterator[str]:
    yield "in"


@operation("door/any", any_scopes=["door:x", "door:y"])
async def any_of() -> None: ...


@operation("door/hidden", visibility="internal", public=True)
async def hidden() -> str:
    return "hidden"


@operation("door/shelf", scopes=["door:shelf"], resource="shelf", resource_action="read", resource_id="$.shelf")
async def shelf(shelf: str) -> str:
    return shelf


DOORS = (open_door, locked, locked_stream, any_of, hidden, shelf)
REFUSED = ["door/locked", "door/locked-stream", "door/any", "door/hidden", "door/shelf", "door/none",
           "none", "", "a b", "\x1b[31m", "services/stats"]  # fmt: skip


async def test_a_proven_caller_gets_forbidden_and_a_denial_id_that_the_audit_log_has() -> None:
    async with Bench(*DOORS, peers={"alice": ("door:x:y",)}) as bench:
        for name in ("door/locked", "door/locked-stream", "door/any", "door/shelf"):
            with pytest.raises(CallError) as caught:
                bench.prepare(name, {"key": 1})
            record = bench.audit.records[-1]
            assert (caught.value.code, caught.value.retryable) == ("FORBIDDEN", False)
            assert caught.value.denial_id == record["denial_id"] is not None
            assert (record["action"], record["outcome"], record["peer"]) == (name, "denied", "alice")
        assert bench.unmatched() == {}


async def test_an_internal_operation_is_not_found_by_anybody_outside() -> None:
    async with Bench(*DOORS) as bench:
        refusals = []
        for name in ("door/hidden", "door/none"):
            with pytest.raises(CallError) as caught:
                bench.prepare(name)
            refusals.append(JSON.encode(error_payload(caught.value)).replace(name.encode(), b""))
        assert refusals[0] == refusals[1]
        assert bench.audit.records == []


async def test_an_anonymous_caller_cannot_tell_what_is_there(tmp_path: Path) -> None:
    """The answers, as they are sent, differ in nothing but the denial id."""
    door = CallDoor(tmp_path, DOORS)
    answers = set()
    async with door.session(anonymous=True) as link:
        assert await link.session.call("door/open", {}) == "open"
        for name in REFUSED:
            if not name:
                continue
            for value in ({}, {"key": "x"}, {"shelf": "a"}, None, 7):
                with pytest.raises(CallError) as caught:
                    await link.session.call(name, value)
                assert caught.value.denial_id is not None
                answer = JSON.encode(error_payload(caught.value))
                answers.add(answer.replace(caught.value.denial_id.encode(), b"den"))
    assert answers == {b'{"code":"FORBIDDEN","message":"authentication required","retryable":false,"denial_id":"den"}'}
    await door.aclose()


async def test_the_denial_ids_of_strangers_have_one_form_and_depend_on_the_name() -> None:
    async with Bench(*DOORS) as bench:
        ids = []
        for name in REFUSED:
            for _ in range(2):
                with pytest.raises(CallError) as caught:
                    bench.prepare(name, peer=None)
                ids.append(caught.value.denial_id)
        assert len(set(ids)) == len(REFUSED)
        assert {len(str(id)) for id in ids} == {20}


async def test_a_credential_that_was_taken_away_calls_nothing() -> None:
    async with Bench(*DOORS) as bench:
        caller = bench.caller()
        bench.gate.policy = bench.policy({"bob": ("*",)})
        with pytest.raises(CallError) as caught:
            bench.dispatcher.prepare("door/any", {}, caller)
        assert caught.value.code == "FORBIDDEN"


async def test_the_resource_is_what_the_input_says() -> None:
    async with Bench(*DOORS, peers={"alice": ("door:*",)}, resources={"shelf": ("read:a*", "write:b")}) as bench:
        assert await bench.call("door/shelf", {"shelf": "alpha"}) == "alpha"
        for value in ({"shelf": "beta"}, {"shelf": "b"}, {"shelf": 7}, {}, None, [], "alpha"):
            with pytest.raises(CallError) as caught:
                await bench.call("door/shelf", value)
            assert caught.value.code == "FORBIDDEN", value


async def test_the_audit_log_says_who_through_which_door_for_whom() -> None:
    async with Bench(*DOORS) as bench:
        caller = bench.caller("alice", connection="c7", remote="192.0.2.1", forwarded_for="carol")
        await bench.dispatcher.prepare("door/open", {}, caller).call()
        intent, outcome = bench.audit.records
        for record in (intent, outcome):
            assert {"surface": "memory", "peer": "alice", "connection": "c7", "remote": "192.0.2.1",
                    "forwarded_for": "carol", "via": "key:SHA256:alice"}.items() <= record.items()  # fmt: skip
        assert (intent["phase"], outcome["phase"], outcome["outcome"]) == ("intent", "outcome", "ok")


@pytest.mark.parametrize("peer", ["alice", "root", "operation:door/locked"])
async def test_whom_a_call_is_forwarded_for_opens_no_door(peer: str) -> None:
    async with Bench(*DOORS, peers={"alice": ("*",), "weak": ()}) as bench:
        caller = bench.caller("weak", forwarded_for=peer)
        with pytest.raises(CallError) as caught:
            bench.dispatcher.prepare("door/locked", {"key": 1}, caller)
        assert caught.value.code == "FORBIDDEN"


async def test_what_cannot_be_recorded_is_not_begun_where_the_record_is_required() -> None:
    async with Bench(*DOORS) as bench:
        bench.gate.audit_required = bench.audit.failing = True
        with pytest.raises(CallError) as caught:
            bench.prepare("door/any")
        assert (caught.value.code, "only on the record" in str(caught.value)) == ("FORBIDDEN", True)


# --- inputs -------------------------------------------------------------------------------------------------------


def _explodes(value: int) -> int:
    raise KeyError("the validator's own secret")


@operation("input/exploding", public=True)
async def exploding(number: Annotated[int, AfterValidator(_explodes)]) -> int:
    return number


async def test_a_wrong_input_is_located_and_has_an_outcome() -> None:
    async with Bench(*DOORS) as bench:
        with pytest.raises(CallError) as caught:
            bench.prepare("door/locked", {"key": "x"})
        assert caught.value.code == "INVALID_INPUT"
        assert caught.value.details[0]["path"] == ["key"]
        assert bench.outcome("door/locked") == "error INVALID_INPUT"


async def test_a_validator_that_fails_otherwise_is_a_mistake_of_the_operation(caplog: pytest.LogCaptureFixture) -> None:
    async with Bench(exploding) as bench:
        with pytest.raises(CallError) as caught:
            bench.prepare("input/exploding", {"number": 1})
        assert caught.value.code == "INTERNAL"
        assert "secret" not in str(caught.value)
        error_id = str(caught.value).rsplit(" ", 1)[1]
        assert f"error_id={error_id}" in caplog.text
        assert "the validator's own secret" in caplog.text
        assert bench.outcome("input/exploding") == "error INTERNAL"
        assert bench.unmatched() == {}
        assert bench.dispatcher.stats["input/exploding"].errors == 1


@given(st.text(max_size=30), st.none() | st.integers() | st.dictionaries(st.text(max_size=5), st.integers()))
async def test_whatever_is_called_is_served_or_refused(name: str, value: Any) -> None:
    async with Bench(*DOORS) as bench:
        with contextlib.suppress(CallError):
            await bench.call(name, value, streaming=None)
        assert bench.unmatched() == {}


# --- time ---------------------------------------------------------------------------------------------------------


@operation("time/left", public=True)
async def left(*, ctx: OperationContext) -> float | None:
    return ctx.remaining_s()


@operation("time/follow", public=True)
async def follow(*, ctx: OperationContext) -> AsyncIterator[float | None]:
    yield ctx.remaining_s()


@operation("time/tree", public=True, calls=["time/*"], authority=["*"])
async def tree(depth: int, *, ctx: OperationContext) -> list[float | None]:
    """The deadlines from here down."""
    below = await ctx.call("time/tree", depth=depth - 1) if depth else []
    return [ctx.deadline, *below]


@operation("time/forever", public=True)
async def forever() -> None:
    await asyncio.Event().wait()


@operation("time/above", public=True, calls=["time/forever"], authority=["*"])
async def above(*, ctx: OperationContext) -> None:
    await ctx.call("time/forever")


@operation("time/items", public=True)
async def items(first: int = 1) -> AsyncIterator[int]:
    for n in range(first):
        yield n
    await asyncio.Event().wait()


TIMES = (left, follow, tree, forever, above, items)


@pytest.mark.parametrize(("timeout_s", "most"), [(None, 20.0), (5.0, 5.0), (100.0, 20.0), (20.0, 20.0)])
async def test_a_call_has_the_default_time_or_less(timeout_s: float | None, most: float) -> None:
    async with Bench(*TIMES, default_timeout_s=20.0) as bench:
        assert most - 1 < await bench.call("time/left", timeout_s=timeout_s) < most + 0.1


async def test_a_subscription_has_the_time_that_was_asked_for_or_all_of_it() -> None:
    async with Bench(*TIMES, default_timeout_s=20.0) as bench:
        assert await bench.items("time/follow") == [None]
        (left_s,) = await bench.items("time/follow", timeout_s=100.0)
        assert 99 < left_s < 100.1


async def test_the_root_deadline_bounds_the_whole_tree() -> None:
    async with Bench(*TIMES) as bench:
        deadlines = await bench.call("time/tree", {"depth": 3}, timeout_s=10.0)
        assert len(deadlines) == 4
        assert len(set(deadlines)) == 1


async def test_expiry_ends_the_handler_and_says_so() -> None:
    async with Bench(*TIMES) as bench:
        with pytest.raises(CallError, match="time/forever did not finish in time") as caught:
            await bench.call("time/forever", timeout_s=0.02)
        assert (caught.value.code, caught.value.retryable) == ("TIMEOUT", True)
        assert bench.outcome("time/forever") == "error TIMEOUT"


async def test_expiry_ends_the_whole_tree() -> None:
    async with Bench(*TIMES) as bench:
        with pytest.raises(CallError) as caught:
            await bench.call("time/above", timeout_s=0.02)
        assert caught.value.code == "TIMEOUT"
        assert (bench.outcome("time/above"), bench.outcome("time/forever")) == ("error TIMEOUT", "error TIMEOUT")
        assert bench.unmatched() == {}


async def test_the_callers_own_time_goes_on_after_an_expiry() -> None:
    """The cancellation of an expiry is used up: whoever called can go on waiting for other things."""
    async with Bench(*TIMES) as bench, asyncio.timeout(30):
        for _ in range(3):
            with pytest.raises(CallError):
                await bench.call("time/forever", timeout_s=0.01)
            await asyncio.sleep(0)
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0


async def test_a_subscription_with_a_timeout_expires_while_it_waits() -> None:
    async with Bench(*TIMES) as bench:
        with pytest.raises(CallError) as caught:
            await bench.items("time/items", {"first": 2}, timeout_s=0.02)
        assert caught.value.code == "TIMEOUT"
        assert bench.outcome("time/items") == "error TIMEOUT"
        assert bench.audit.records[-1]["items"] == 2


async def test_expiry_finds_a_consumer_that_holds_an_item() -> None:
    async with Bench(*TIMES) as bench:
        prepared = bench.prepare("time/items", streaming=True, timeout_s=0.02)
        stream = prepared.stream()
        assert await anext(stream) == 0
        with pytest.raises(asyncio.CancelledError):
            await asyncio.Event().wait()
        error = prepared.timed_out()
        assert error is not None
        assert error.code == "TIMEOUT"
        await stream.aclose()
        assert bench.outcome("time/items") == "error TIMEOUT"


@pytest.mark.parametrize("expiry_first", [True, False])
async def test_cancelled_and_expired_at_once_is_cancelled(expiry_first: bool) -> None:
    """Whoever cancels must see its cancellation through, and the expiry may not swallow it."""
    async with Bench(*TIMES) as bench:
        prepared = bench.prepare("time/forever", timeout_s=10.0)
        async with asyncio.TaskGroup() as group:
            task = group.create_task(prepared.call())
            await asyncio.sleep(0)
            steps: list[Callable[[], object]] = [lambda: prepared._expire(task), task.cancel]
            for step in steps if expiry_first else reversed(steps):
                step()
        assert task.cancelled()
        assert bench.unmatched() == {}


# --- what is counted, and what changes meanwhile --------------------------------------------------------------------


@operation("count/one", public=True)
async def count_one(fail: bool = False) -> None:
    if fail:
        raise RuntimeError("as told")


async def test_what_has_run_is_counted_and_what_was_refused_is_not() -> None:
    async with Bench(count_one, *DOORS, peers={"alice": ()}) as bench:
        await bench.call("count/one")
        await bench.call("count/one")
        with pytest.raises(CallError):
            await bench.call("count/one", {"fail": True})
        with pytest.raises(CallError):
            await bench.call("count/one", {"fail": "perhaps"})
        bench.prepare("count/one").drop()
        for name in ("door/locked", "door/none"):
            with pytest.raises(CallError):
                await bench.call(name)
        (stats,) = bench.dispatcher.stats.values()
        assert (stats.calls, stats.errors, stats.seconds >= 0) == (5, 2, True)


async def test_the_time_of_a_call_is_counted_when_it_has_ended() -> None:
    async with Bench(*TIMES) as bench:
        with pytest.raises(CallError):
            await bench.call("time/forever", timeout_s=0.05)
        assert bench.dispatcher.stats["time/forever"].seconds >= 0.04
        assert Stats() == Stats(calls=0, errors=0, seconds=0.0)


def numbered(number: int, may_end: asyncio.Event) -> Any:
    """The same operation, as an older or newer version of the code has it."""

    @operation("swap/one", public=True, calls=["swap/*"], authority=["*"])
    async def one(*, ctx: OperationContext) -> list[int]:
        await may_end.wait()
        return [number, *([] if ctx.parent_request_id else await ctx.call("swap/one"))]

    return one


async def test_a_call_ends_as_it_began_and_what_it_calls_next_is_the_new_one() -> None:
    may_end = asyncio.Event()
    async with Bench(numbered(1, may_end)) as bench, asyncio.TaskGroup() as group:
        running = group.create_task(bench.call("swap/one"))
        unbegun = bench.prepare("swap/one")
        await asyncio.sleep(0)
        bench.serve(numbered(2, may_end))
        may_end.set()
        assert await running == [1, 2]
        assert await unbegun.call() == [1, 2]
        assert await bench.call("swap/one") == [2, 2]
        bench.serve()
        with pytest.raises(CallError) as caught:
            bench.prepare("swap/one")
        assert caught.value.code == "NOT_FOUND"


async def test_what_is_left_ends_with_the_dispatcher() -> None:
    @operation("left/one", public=True, calls=["time/*"], authority=["*"])
    async def one(*, ctx: OperationContext) -> None:
        await ctx.call("time/forever", continue_running=True)

    bench = Bench(*TIMES, one)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(bench.call("left/one"))
        while "time/forever" not in {record["action"] for record in bench.audit.records}:
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        task.cancel()
    assert bench.outcomes("time/forever") == []
    await bench.aclose()
    assert bench.outcome("time/forever") == "aborted"
    assert bench.unmatched() == {}


async def test_what_does_not_end_holds_up_nobody(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("alknet.call.dispatch.ENDING_GRACE_S", 0.05)
    begun, may_end = asyncio.Event(), asyncio.Event()

    @operation("left/stubborn", public=True)
    async def stubborn() -> None:
        begun.set()
        while not may_end.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await may_end.wait()

    @operation("left/two", public=True, calls=["left/*"], authority=["*"])
    async def two(*, ctx: OperationContext) -> None:
        await ctx.call("left/stubborn", continue_running=True)

    bench = Bench(stubborn, two)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(bench.call("left/two"))
        await begun.wait()
        task.cancel()
    await bench.aclose()
    assert "operations did not end in time count=1" in caplog.text
    may_end.set()
    await bench.dispatcher.tasks.wait(timeout_s=5)
    assert bench.unmatched() == {}


# --- who sees what ------------------------------------------------------------------------------------------------


def seen(bench: Bench, identity: Identity | None) -> Iterator[str]:
    for name, found in bench.dispatcher.registry.operations.items():
        if name.startswith("door/") and bench.dispatcher.may(identity, found):
            yield name


async def test_what_is_seen_is_what_may_be_called() -> None:
    async with Bench(*DOORS, peers={"alice": ("door:x", "door:locked")}) as bench:
        alice = bench.caller().identity
        assert isinstance(alice, Identity)
        assert list(seen(bench, alice)) == ["door/any", "door/locked", "door/locked-stream", "door/open"]
        assert list(seen(bench, None)) == ["door/open"]


@pytest.mark.parametrize(
    ("rules", "is_seen"),
    [
        (("read",), True),
        (("read:alpha",), True),
        (("*:beta-?[x]*",), True),
        (("write", "read:alpha"), True),
        (("write:alpha",), False),
        ((), False),
    ],
)
async def test_who_may_call_it_for_some_resource_sees_it(rules: tuple[str, ...], is_seen: bool) -> None:
    async with Bench(*DOORS, peers={"alice": ("door:*",)}, resources={"shelf": rules, "other": ("read",)}) as bench:
        alice = bench.caller().identity
        assert isinstance(alice, Identity)
        assert ("door/shelf" in seen(bench, alice)) is is_seen


async def test_a_stranger_cannot_tell_by_the_input_whether_an_operation_is_there() -> None:
    """Of one that is there the input names a resource, which would be part of the denial id."""

    @operation("disk/read", resource="disk", resource_action="read", resource_id="$.disk")
    async def read(disk: str) -> str:
        return disk

    async with Bench(read) as bench:
        for name in ("disk/read", "disk/none"):
            refusals = []
            for disk in ("a", "b"):
                with pytest.raises(CallError) as refused:
                    bench.prepare(name, {"disk": disk}, peer=None)
                refusals.append((refused.value.code, str(refused.value), refused.value.denial_id))
            assert refusals[0] == refusals[1]
        assert [record["action"] for record in bench.audit.records] == ["disk/read"] * 2 + ["disk/none"] * 2
