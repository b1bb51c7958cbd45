"""The calls of HTTP clients while they run, without HTTP."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from alknet import operation
from alknet.call.anonymous import ANONYMOUS_LIMITS
from alknet.call.context import Caller
from alknet.call.errors import CallError
from alknet.gateway.calls import Calls
from testkit.bench import Bench


@operation("calls/forever", kind="query", public=True)
async def forever() -> None:
    """Do not end."""
    await asyncio.Event().wait()


@operation("calls/waits", kind="query")
async def waits() -> None:
    """Do not end, for those who may call it."""
    await asyncio.Event().wait()


@operation("calls/items")
async def items() -> AsyncIterator[int]:
    """One item, and no end."""
    yield 1
    await asyncio.Event().wait()


def _bench() -> tuple[Bench, Calls]:
    bench = Bench([forever, waits, items], peers={"alice": ("*",), "bob": ("*",)})
    return bench, Calls(bench.dispatcher)


async def _begun(calls: Calls, count: int) -> None:
    async with asyncio.timeout(5):
        while calls.running < count:
            await asyncio.sleep(0)


async def test_a_caller_runs_so_many_at_once_and_others_theirs() -> None:
    bench, calls = _bench()
    calls.max_in_flight = 2
    async with bench, asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(calls.call(calls.prepare("calls/forever", {}, bench.caller("alice")))) for _ in range(2)
        ]
        await _begun(calls, 2)
        with pytest.raises(CallError) as refused:
            calls.prepare("calls/forever", {}, bench.caller("alice"))
        assert (refused.value.code, refused.value.retryable) == ("RESOURCE_EXHAUSTED", True)
        calls.prepare("calls/forever", {}, bench.caller("bob")).drop()
        for task in tasks:
            task.cancel()
    assert calls.running == 0
    calls.prepare("calls/forever", {}, bench.caller("alice")).drop()


async def test_nobody_is_counted_by_address() -> None:
    bench, calls = _bench()
    async with bench, asyncio.TaskGroup() as group:
        callers = [Caller(None, "http", "c1", host) for host in ("192.0.2.1", "192.0.2.2")]
        tasks = [
            group.create_task(calls.call(calls.prepare("calls/forever", {}, callers[0])))
            for _ in range(ANONYMOUS_LIMITS.in_flight)
        ]
        await _begun(calls, ANONYMOUS_LIMITS.in_flight)
        with pytest.raises(CallError):
            calls.prepare("calls/forever", {}, callers[0])
        calls.prepare("calls/forever", {}, callers[1]).drop()
        for task in tasks:
            task.cancel()


async def test_what_is_forbidden_ends_with_the_refusal_and_the_rest_goes_on() -> None:
    bench, calls = _bench()
    async with bench, asyncio.TaskGroup() as group:

        async def refused() -> str:
            with pytest.raises(CallError, match="access was taken away") as error:
                await calls.call(calls.prepare("calls/waits", {}, bench.caller("alice")))
            return error.value.code

        mine = group.create_task(refused())
        other = group.create_task(calls.call(calls.prepare("calls/waits", {}, bench.caller("bob"))))
        await _begun(calls, 2)
        bench.gate.policy = bench.policy({"alice": ("other",), "bob": ("*",)})
        calls.recheck()
        assert await mine == "FORBIDDEN"
        assert calls.running == 1
        other.cancel()


async def test_a_stream_is_ended_also_between_two_items() -> None:
    bench, calls = _bench()
    async with bench:
        stream = calls.stream(calls.prepare("calls/items", {}, bench.caller("alice"), streaming=True))
        assert await anext(stream) == 1
        bench.gate.policy = bench.policy({"alice": ("other",)})
        asyncio.get_running_loop().call_soon(calls.recheck)
        with pytest.raises(CallError, match="access was taken away"):
            await anext(stream)
        assert calls.running == 0


async def test_the_end_waits_until_the_deadline_and_then_says_why() -> None:
    bench, calls = _bench()
    async with bench, asyncio.TaskGroup() as group:

        async def refused(name: str) -> None:
            with pytest.raises(CallError, match="shutting down"):
                await calls.call(calls.prepare(name, {}, bench.caller("alice")))

        group.create_task(refused("calls/forever"))
        await _begun(calls, 1)
        await calls.drain(asyncio.get_running_loop().time() + 0.02)
        assert calls.running == 0
        with pytest.raises(CallError, match="shutting down"):
            calls.prepare("calls/forever", {}, bench.caller("alice"))
