"""From the handler's start to its outcome: what callers are told, what becomes of threads, that nothing ends twice."""

import asyncio
import contextlib
import re
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alknet.call.context import OperationContext
from alknet.call.errors import PROTOCOL_CODES, CallError
from alknet.call.operations import OperationError, operation
from alknet.call.prepared import unexpected
from alknet.call.schema import OutputError
from alknet.call.threads import Threads
from alknet.errors import AlknetError, BrokenError, DeniedError, InvalidInputError, NotFoundError, UnavailableError
from testkit.bench import Bench
from testkit.polling import eventually


@dataclass
class Stock:
    left: int


class SoldOut(OperationError):
    """There is none left."""

    code = "SOLD_OUT"
    retryable = True
    details: Stock


RAISED: dict[str, Callable[[], BaseException]] = {
    "declared": lambda: SoldOut("only 3", details=Stock(3), hint="order fewer"),
    "declared by its code": lambda: CallError("SOLD_OUT", "only 3", details={"left": 3}),
    "declared, other details": lambda: SoldOut("only 3", details={"left": "x-secret"}),
    "undeclared": lambda: CallError("SURPRISE", "what is this", denial_id="den_1"),
    "of the protocol": lambda: CallError("FORBIDDEN", "no", denial_id="den_1"),
    "bug": lambda: RuntimeError("x-secret"),
    "exit": lambda: SystemExit("x-secret"),
    "several": lambda: ExceptionGroup("x-secret", [ValueError("x-secret")]),
    "stop": lambda: StopIteration("x-secret"),
    "invalid": lambda: InvalidInputError("not so", hint="so"),
    "missing": lambda: NotFoundError("no such file"),
    "denied": lambda: DeniedError("not you", denial_id="den_2"),
    "denied by a rule": lambda: DeniedError("not you", denial_id="den_3", rule="fs.protected"),
    "unavailable": lambda: UnavailableError("later"),
    "broken": lambda: BrokenError("x-secret"),
    "cancelled": asyncio.CancelledError,
}


def fail(how: str) -> None:
    raise RAISED[how]()


@operation("fail/async", public=True, errors=[SoldOut])
async def fail_async(how: str) -> None:
    fail(how)


@operation("fail/sync", public=True, errors=[SoldOut])
def fail_sync(how: str) -> None:
    fail(how)


@operation("fail/items", public=True, errors=[SoldOut])
async def fail_items(how: str) -> AsyncIterator[int]:
    yield 1
    fail(how)


@operation("fail/sync-items", public=True, errors=[SoldOut])
def fail_sync_items(how: str) -> Iterator[int]:
    yield 1
    fail(how)


FAILING = (fail_async, fail_sync, fail_items, fail_sync_items)
NAMES = ["fail/async", "fail/sync", "fail/items", "fail/sync-items"]


async def failed(bench: Bench, name: str, how: str) -> CallError:
    async with asyncio.timeout(5):
        with pytest.raises(CallError) as caught:
            await (bench.items(name, {"how": how}) if "items" in name else bench.call(name, {"how": how}))
    assert bench.outcomes(name)[-1] == f"error {caught.value.code}"
    assert bench.unmatched() == {}
    return caught.value


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("how", ["declared", "declared by its code"])
async def test_a_declared_error_passes_with_its_details_as_plain_data(name: str, how: str) -> None:
    async with Bench(*FAILING) as bench:
        error = await failed(bench, name, how)
        assert (error.code, str(error), error.details) == ("SOLD_OUT", "only 3", {"left": 3})
        assert (error.retryable, error.hint) == ((True, "order fewer") if how == "declared" else (False, ""))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("how", "code"), [("undeclared", "SURPRISE"), ("of the protocol", "FORBIDDEN")])
async def test_an_undeclared_error_is_internal_with_the_original_in_the_details(name: str, how: str, code: str) -> None:
    async with Bench(*FAILING) as bench:
        error = await failed(bench, name, how)
        assert (error.code, error.denial_id) == ("INTERNAL", None)
        assert (error.details["code"], error.details["denial_id"]) == (code, "den_1")
        assert error.details["message"] in ("what is this", "no")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("how", ["bug", "exit", "several", "stop", "broken", "cancelled", "declared, other details"])
async def test_an_unexpected_end_is_internal_and_the_log_has_it_under_its_id(
    name: str, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with Bench(*FAILING) as bench:
        error = await failed(bench, name, how)
        assert error.code == "INTERNAL"
        assert (error.details, error.hint, error.denial_id) == (None, "", None)
        found = re.fullmatch(rf"{name} failed; the node's log has it as (err_[0-9a-f]{{12}})", str(error))
        assert found is not None, "nothing but the id is told"
        (record,) = [record for record in caplog.records if found[1] in record.message]
        if how == "declared, other details":
            assert record.message.startswith("wrong output ")
        else:
            assert record.exc_info is not None
            assert "in fail" in caplog.text or how == "cancelled"
        assert bench.dispatcher.stats[name].errors == 1


@pytest.mark.parametrize("name", NAMES)
async def test_a_denial_that_only_the_handler_can_decide_is_in_the_audit_log(name: str) -> None:
    async with Bench(*FAILING) as bench:
        error = await failed(bench, name, "denied by a rule")
        assert (error.code, error.denial_id) == ("FORBIDDEN", "den_3")
        intent, outcome = bench.audit.records[-2:]
        assert (intent["decision"], intent["rule"]) == ("allow", "public")
        found = {key: outcome[key] for key in ("decision", "rule", "denial_id", "outcome")}
        assert found == {
            "decision": "deny", "rule": "fs.protected", "denial_id": "den_3", "outcome": "error FORBIDDEN",
        }  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("how", ["invalid", "missing", "denied", "unavailable"])
async def test_some_of_alknets_own_errors_need_no_declaration(name: str, how: str) -> None:
    async with Bench(*FAILING) as bench:
        error, raised = await failed(bench, name, how), RAISED[how]()
        assert isinstance(raised, AlknetError)
        assert (error.code, str(error), error.hint) == (raised.code, str(raised), raised.hint)
        assert error.code in PROTOCOL_CODES
        assert error.denial_id == getattr(raised, "denial_id", None)


def test_ids_of_unexpected_errors_differ(caplog: pytest.LogCaptureFixture) -> None:
    assert str(unexpected("a/b", ValueError("x"))) != str(unexpected("a/b", ValueError("x")))
    unexpected("a/b", OutputError("output.x: is missing"))
    assert "wrong output operation=a/b" in caplog.text


# --- outputs ------------------------------------------------------------------------------------------------------


@operation("output/one", public=True)
async def output_one(value: Any) -> Stock:
    return value  # type: ignore[no-any-return]


@operation("output/many", public=True)
async def output_many(values: list[Any]) -> AsyncIterator[int]:
    for value in values:
        yield value


async def test_an_output_is_plain_data() -> None:
    async with Bench(output_one, output_many) as bench:
        assert await bench.call("output/one", {"value": {"left": 3}}) == {"left": 3}
        assert await bench.items("output/many", {"values": [1, 2]}) == [1, 2]


async def test_a_wrong_output_is_internal_and_its_value_is_told_nobody(caplog: pytest.LogCaptureFixture) -> None:
    async with Bench(output_one) as bench:
        with pytest.raises(CallError, match="output/one failed; the node's log has it as err_") as caught:
            await bench.call("output/one", {"value": {"left": "x-secret"}})
        assert caught.value.code == "INTERNAL"
        assert "wrong output operation=output/one" in caplog.text
        assert "x-secret" not in caplog.text + str(caught.value)
        assert bench.outcome("output/one") == "error INTERNAL"


async def test_a_wrong_item_ends_the_subscription_and_closes_the_handler() -> None:
    closed = asyncio.Event()

    @operation("output/closing", public=True)
    async def closing() -> AsyncIterator[int]:
        try:
            yield 1
            yield "two"  # type: ignore[misc]
            yield 3
        finally:
            closed.set()

    async with Bench(closing) as bench:
        stream = bench.prepare("output/closing", streaming=True).stream()
        assert await anext(stream) == 1
        with pytest.raises(CallError) as caught:
            await anext(stream)
        assert caught.value.code == "INTERNAL"
        assert closed.is_set()
        assert bench.audit.records[-1]["items"] == 2


# --- threads ------------------------------------------------------------------------------------------------------


class Blocking:
    """Plain functions that block until they are let go."""

    def __init__(self) -> None:
        self.let_go = threading.Event()
        self.begun = 0
        self.finished = 0
        self.closed = threading.Event()
        self.thread = 0

    @operation("block/one", public=True)
    def one(self) -> str:
        self.begun += 1
        self.thread = threading.get_ident()
        assert self.let_go.wait(10)
        self.finished += 1
        return "finished"

    @operation("block/many", public=True)
    def many(self, free: int = 1) -> Iterator[int]:
        try:
            yield from range(free)
            self.begun += 1
            assert self.let_go.wait(10)
            yield -1
        finally:
            self.closed.set()

    @operation("block/quick", public=True)
    def quick(self) -> int:
        return threading.get_ident()


@contextlib.asynccontextmanager
async def blocking() -> AsyncIterator[tuple[Blocking, Bench]]:
    service = Blocking()
    async with Bench(service) as bench:
        try:
            yield service, bench
        finally:
            service.let_go.set()


async def test_a_plain_function_blocks_neither_the_loop_nor_other_functions() -> None:
    async with blocking() as (service, bench), asyncio.TaskGroup() as group:
        task = group.create_task(bench.call("block/one"))
        await eventually(lambda: service.begun, "the function has begun")
        assert await bench.call("block/quick") not in (service.thread, threading.get_ident())
        assert not task.done()
        service.let_go.set()
        assert await task == "finished"


async def test_the_result_of_an_aborted_function_is_dropped() -> None:
    async with blocking() as (service, bench), asyncio.TaskGroup() as group:
        task = group.create_task(bench.call("block/one"))
        await eventually(lambda: service.begun, "the function has begun")
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        assert (service.finished, bench.outcome("block/one")) == (0, "aborted")
        service.let_go.set()
        await eventually(lambda: service.finished, "the function went on to its end")
        assert bench.outcome("block/one") == "aborted"


async def test_a_function_that_takes_too_long_expires_at_once() -> None:
    async with blocking() as (service, bench):
        with pytest.raises(CallError) as caught:
            await bench.call("block/one", timeout_s=0.02)
        assert (caught.value.code, service.finished) == ("TIMEOUT", 0)


async def test_a_function_that_waits_for_a_thread_and_is_aborted_never_begins() -> None:
    async with blocking() as (service, bench), asyncio.TaskGroup() as group:
        bench.dispatcher.threads = Threads("single", per_caller=1)
        tasks = [group.create_task(bench.call("block/one")) for _ in range(2)]
        await eventually(lambda: service.begun, "the first has begun")
        tasks[1].cancel()
        await asyncio.wait([tasks[1]])
        service.let_go.set()
        assert await tasks[0] == "finished"
        assert await bench.call("block/quick")
        assert service.begun == 1


async def test_a_plain_generator_yields_from_its_thread() -> None:
    async with blocking() as (service, bench):
        service.let_go.set()
        assert await bench.items("block/many", {"free": 3}) == [0, 1, 2, -1]
        assert bench.audit.records[-1]["items"] == 4


async def test_a_plain_generator_that_nobody_reads_any_more_is_closed() -> None:
    async with blocking() as (service, bench):
        async with aclosing(bench.prepare("block/many", streaming=True).stream()) as stream:
            assert await anext(stream) == 0
        assert service.closed.is_set()
        assert bench.outcome("block/many") == "aborted"


@pytest.mark.parametrize("expires", [True, False])
async def test_a_plain_generator_that_blocks_ends_for_its_caller_at_once_and_is_closed_when_it_can_be(
    expires: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async with blocking() as (service, bench):
        call = bench.items("block/many", {"free": 0}, timeout_s=0.05 if expires else None)
        task = asyncio.ensure_future(call)  # noqa: TID251 - a group would fail with it
        await eventually(lambda: service.begun, "the generator blocks")
        if not expires:
            task.cancel()
        await asyncio.wait([task], timeout=5)
        assert (task.done(), task.cancelled()) == (True, not expires)
        _forgotten(task)
        assert bench.outcome("block/many") == ("error TIMEOUT" if expires else "aborted")
        assert not service.closed.is_set()
        service.let_go.set()
        await eventually(service.closed.is_set, "the generator is closed")
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        assert "nobody waits for goes on operation=block/many peer=alice" in caplog.text


# --- one outcome for every intent -----------------------------------------------------------------------------------


ACTIONS = ["return", "raise", "wrong", "wait", "swallow", "bad cleanup", "slow cleanup", "child", "orphan", "spared"]


class Endings:
    """Operations that end in many ways."""

    def __init__(self) -> None:
        self.stop = asyncio.Event()

    @operation("end/one", public=True, calls=["end/*"], authority=["*"])
    async def one(self, does: list[str], *, ctx: OperationContext) -> int:
        await self._does(does, ctx)
        return "x" if does and does[0] == "wrong" else 1  # type: ignore[return-value]

    @operation("end/many", public=True, calls=["end/*"], authority=["*"])
    async def many(self, does: list[str], *, ctx: OperationContext) -> AsyncIterator[int]:
        try:
            yield 1
            await self._does(does, ctx)
            yield "x" if does and does[0] == "wrong" else 2  # type: ignore[misc]
            yield 3
        finally:
            if does and does[0] == "bad cleanup":
                raise RuntimeError("cleanup failed")

    async def _does(self, does: list[str], ctx: OperationContext) -> None:
        first, rest = (does[0], does[1:]) if does else ("return", [])
        match first:
            case "raise":
                raise RuntimeError("as told")
            case "wait":
                await asyncio.Event().wait()
            case "swallow":
                with contextlib.suppress(asyncio.CancelledError):
                    await self.stop.wait()
            case "bad cleanup":
                try:
                    await asyncio.Event().wait()
                finally:
                    raise RuntimeError("cleanup failed")
            case "slow cleanup":
                try:
                    await asyncio.Event().wait()
                finally:
                    for _ in range(4):
                        await asyncio.sleep(0)
            case "child":
                await ctx.call("end/one", does=rest)
            case "orphan":
                asyncio.ensure_future(ctx.call("end/one", does=rest)).add_done_callback(_forgotten)  # noqa: TID251
                await asyncio.sleep(0)
            case "spared":
                await ctx.call("end/one", does=rest, continue_running=True)


def _forgotten(task: "asyncio.Task[Any]") -> None:
    if not task.cancelled():
        task.exception()


@given(
    does=st.lists(st.sampled_from(ACTIONS), max_size=4),
    is_stream=st.booleans(),
    before=st.integers(0, 8),
    cancels=st.lists(st.integers(0, 3), max_size=3),
    timeout_s=st.sampled_from([None, 0.0001, 0.002]),
    taken=st.integers(0, 3),
)
async def test_every_intent_has_exactly_one_outcome(
    does: list[str], is_stream: bool, before: int, cancels: list[int], timeout_s: float | None, taken: int
) -> None:
    """Whatever the handlers do, and whenever the call is cancelled, however often."""
    bench = Bench(Endings())
    prepared = bench.prepare(
        "end/many" if is_stream else "end/one", {"does": does}, streaming=is_stream, timeout_s=timeout_s
    )

    async def run() -> None:
        if not is_stream:
            await prepared.call()
            return
        async with aclosing(prepared.stream()) as stream:
            for _ in range(taken):
                await anext(stream)

    task = asyncio.ensure_future(run())  # noqa: TID251
    for rounds in (before, *cancels):
        for _ in range(rounds):
            await asyncio.sleep(0)
        task.cancel()
    await asyncio.wait([task], timeout=5)
    assert task.done()
    _forgotten(task)
    prepared.drop()
    await asyncio.wait_for(bench.aclose(), 5)
    assert bench.unmatched() == {}
    assert sum(stats.calls for stats in bench.dispatcher.stats.values()) * 2 == len(bench.audit.records)


async def test_what_never_began_is_dropped_once() -> None:
    async with Bench(Endings()) as bench:
        prepared = bench.prepare("end/one", {"does": []})
        prepared.drop()
        prepared.drop()
        assert bench.outcome("end/one") == "dropped"
        assert bench.dispatcher.stats["end/one"].errors == 0


async def test_what_has_ended_is_not_dropped_as_well() -> None:
    async with Bench(Endings()) as bench:
        prepared = bench.prepare("end/one", {"does": []})
        assert await prepared.call() == 1
        prepared.drop()
        assert bench.outcome("end/one") == "ok"


async def test_a_cancellation_may_say_why() -> None:
    async with Bench(Endings()) as bench, asyncio.TaskGroup() as group:
        prepared = bench.prepare("end/one", {"does": ["wait"]})
        task = group.create_task(prepared.call())
        await asyncio.sleep(0)
        prepared.ended_because = "lost"
        task.cancel()
        await asyncio.wait([task])
        assert bench.outcome("end/one") == "lost"


async def test_a_handler_that_fails_while_it_is_closed_fails_for_the_log_only(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with Bench(Endings()) as bench:
        async with aclosing(bench.prepare("end/many", {"does": ["bad cleanup"]}, streaming=True).stream()) as stream:
            assert await anext(stream) == 1
        assert "operation failed operation=end/many" in caplog.text
        assert bench.outcome("end/many") == "aborted"


async def test_a_call_that_was_cancelled_twice_has_its_outcome() -> None:
    """The second cancellation arrives while the children of the first one still clean up."""
    async with Bench(Endings()) as bench, asyncio.TaskGroup() as group:
        task = group.create_task(bench.call("end/one", {"does": ["child", "child", "slow cleanup"]}))
        await eventually(lambda: len(bench.audit.records) == 3, "all three run")
        for _ in range(3):
            await asyncio.sleep(0)
            task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        await eventually(lambda: bench.unmatched() == {}, "all three have ended")


# --- rights that are taken away -----------------------------------------------------------------------------------


@operation("right/wait")
async def wait() -> None:
    await asyncio.Event().wait()


async def test_what_is_forbidden_meanwhile_is_told_once() -> None:
    async with Bench(wait, peers={"alice": ("right:wait",)}) as bench:
        prepared = bench.prepare("right/wait")
        assert prepared.revoked() is None
        bench.gate.policy = bench.policy({"alice": ()})
        error = prepared.revoked()
        assert error is not None
        assert (error.code, error.denial_id is not None) == ("FORBIDDEN", True)
        assert "access was taken away" in str(error)
        assert (prepared.revoked(), prepared.ended_because) == (None, "revoked")
        prepared.drop()


async def test_the_audit_log_has_the_denial_that_ended_a_call() -> None:
    async with Bench(wait, peers={"alice": ("right:wait",)}) as bench:
        prepared = bench.prepare("right/wait")
        running = asyncio.create_task(prepared.call())  # noqa: TID251
        await eventually(lambda: prepared.has_begun, "it runs")
        bench.gate.policy = bench.policy({"alice": ()})
        error = prepared.revoked()
        assert error is not None
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        (line,) = [one for one in bench.audit.records if one.get("outcome") == "revoked"]
        assert (line["denial_id"], line["decision"], line["rule"]) == (error.denial_id, "deny", "scope:right:wait")


# --- what the operation has become meanwhile ---------------------------------------------------------------------


async def test_a_running_subscription_is_judged_by_what_its_operation_asks_for_now() -> None:
    @operation("feed/read", scopes=["feed:read"])
    async def feed() -> AsyncIterator[int]:
        yield 1

    @operation("feed/read", scopes=["feed:secret"])
    async def tightened() -> AsyncIterator[int]:
        yield 1

    async with Bench(feed, peers={"alice": ["feed:read"]}) as bench:
        running = bench.prepare("feed/read", streaming=True)
        assert running.revoked() is None
        bench.serve(tightened)
        denial = running.revoked()
        assert denial is not None
        assert (denial.code, denial.denial_id is not None) == ("FORBIDDEN", True)
        with pytest.raises(CallError) as refused:
            bench.prepare("feed/read", streaming=True)
        assert refused.value.denial_id == denial.denial_id
        running.drop()


async def test_an_operation_that_is_not_served_any_more_ends() -> None:
    @operation("feed/read")
    async def feed() -> AsyncIterator[int]:
        yield 1

    async with Bench(feed) as bench:
        running = bench.prepare("feed/read", streaming=True)
        bench.serve()
        denial = running.revoked()
        assert denial is not None
        assert (denial.code, str(denial)) == ("UNAVAILABLE", "feed/read is not served any more")
        running.drop()
