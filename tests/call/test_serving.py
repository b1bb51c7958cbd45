"""The inbound calls of a session: what runs, what it waits for, and that each leaves nothing but its record."""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from alknet.call.envelopes import Requested
from alknet.call.errors import CallError
from alknet.call.operations import operation
from alknet.call.prepared import Prepared
from alknet.call.registry import Registry
from alknet.call.serving import Nobody
from testkit.calls import CallDoor
from testkit.polling import eventually, settled
from testkit.raw_calls import envelope, raw_caller, requested
from testkit.served import Served

pytestmark = pytest.mark.usefixtures("nothing_is_left")


class Awkward(Served):
    """Handlers that do not end as one would like."""

    def __init__(self) -> None:
        super().__init__()
        self.release = threading.Event()
        self.tidied = False

    @operation("t/messy", public=True)
    async def messy(self) -> AsyncIterator[int]:
        self.begun += 1
        try:
            yield 0
            await self.go_on.wait()
        finally:
            self.stopped += 1
            raise RuntimeError("failed while it was stopped")

    @operation("t/blocking", public=True)
    def blocking(self) -> Iterator[int]:
        self.begun += 1
        yield 0
        self.release.wait(10)
        yield 1

    @operation("t/tidy", public=True)
    async def tidy(self) -> None:
        self.begun += 1
        try:
            await asyncio.Event().wait()
        finally:
            self.stopped += 1
            await self.go_on.wait()
            self.tidied = True

    @operation("t/deaf", public=True)
    async def deaf(self) -> None:
        self.begun += 1
        stopped = False
        while not self.let_go.is_set():
            try:
                await self.let_go.wait()
            except asyncio.CancelledError:
                self.stopped += not stopped
                stopped = True

    @operation("t/plain", public=True)
    def plain(self, a: int) -> int:
        return -a


@pytest.fixture
def served() -> Awkward:
    return Awkward()


@pytest.fixture
async def door(tmp_path: Path, served: Awkward) -> AsyncIterator[CallDoor]:
    door = CallDoor(tmp_path, served)
    yield door
    for event in (served.go_on, served.let_go, served.release):
        event.set()
    await door.aclose()


async def outcomes(door: CallDoor, name: str) -> list[str]:
    """How the calls of an operation ended, once the audit log has an outcome for each intent."""

    def of(phase: str) -> dict[str, str]:
        lines = [line for line in door.audit.records if line["action"] == name and line["phase"] == phase]
        return {line["request_id"]: line.get("outcome", "") for line in lines}

    await eventually(lambda: of("intent").keys() == of("outcome").keys(), "an outcome for each intent")
    ends = of("outcome")
    return [ends[id] for id in of("intent")]


def serving(door: CallDoor) -> Any:
    session = door.sessions_of("alice")[0]
    assert session is not None
    return session.serving


def test_nobody_serves_nothing() -> None:
    with pytest.raises(CallError, match="operation not found: t/a") as caught:
        Nobody().prepare(Requested("r1", 0, "t/a", None))
    assert caught.value.code == "NOT_FOUND"


async def test_it_is_idle_while_nothing_runs(door: CallDoor, served: Awkward) -> None:
    async with door.session() as link:
        assert serving(door).is_idle.is_set()
        call = asyncio.get_running_loop().create_task(link.session.call("t/wait"))
        await eventually(lambda: served.begun, "it runs")
        assert not serving(door).is_idle.is_set()
        served.go_on.set()
        await call
        await serving(door).is_idle.wait()


async def test_plain_functions_are_served_beside_the_others(door: CallDoor) -> None:
    async with door.session() as link:
        calls = [link.session.call("t/plain", {"a": n}) for n in range(100)]
        assert await asyncio.gather(*calls) == [-n for n in range(100)]


async def test_a_server_that_fails_to_prepare_answers_and_the_session_goes_on(
    door: CallDoor, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: Any, **__: Any) -> Prepared:
        raise RuntimeError("never told to anybody")

    async with door.session() as link:
        with monkeypatch.context() as patch:
            patch.setattr(door.dispatcher, "prepare", broken)
            with pytest.raises(CallError) as caught:
                await link.session.call("t/echo")
        assert (caught.value.code, "never told" in str(caught.value)) == ("INTERNAL", False)
        assert "never told" in caplog.text
        assert await link.session.call("t/echo", {"value": 1}) == 1


async def test_what_is_refused_takes_no_place(door: CallDoor) -> None:
    async with raw_caller(door) as raw:
        for name, code in (("t/none", "NOT_FOUND"), ("t/plain", "INVALID_INPUT"), ("t/count", "INVALID_INPUT")):
            await raw.send(requested("r1", name))
            assert (await raw.receive())["payload"]["code"] == code
        await raw.send(requested("r1", "t/echo", {"value": 1}))
        assert (await raw.receive())["payload"] == {"output": 1}


async def test_what_the_policy_forbids_now_is_stopped_with_the_refusal(door: CallDoor, served: Awkward) -> None:
    async with door.session() as link:
        loop = asyncio.get_running_loop()
        secret = loop.create_task(link.session.call("t/wait"))
        await eventually(lambda: served.begun, "it runs")
        serving(door).recheck()
        assert not secret.done()
        name, operations = "t/wait", dict(door.dispatcher.registry.operations)
        spec = operations[name].spec
        spec = replace(spec, access=replace(spec.access, public=False, required_scopes=("no",)))
        operations[name] = replace(operations[name], spec=spec)
        door.dispatcher.registry = Registry(operations.values())
        door.gate.policy = door.policy("other")
        door.handler.recheck()
        with pytest.raises(CallError, match="access was taken away") as caught:
            await secret
        assert caught.value.code == "FORBIDDEN"
        assert await outcomes(door, name) == ["revoked"]
        assert await link.session.call("t/echo", {"value": 1}) == 1


# --- waiting ----------------------------------------------------------------------------------------------------------


async def test_a_subscription_waits_for_credit_with_one_item_at_most_in_hand(door: CallDoor, served: Awkward) -> None:
    async with raw_caller(door) as raw:
        await raw.send(requested("r1", "t/count", {"to": 10}, credit=3))
        assert [(await raw.receive())["payload"]["output"] for _ in range(3)] == [0, 1, 2]
        assert await settled(lambda: served.produced) == 3
        await raw.send(envelope("call.credit", "r1", n=2), envelope("call.credit", "r1", n=1))
        assert [(await raw.receive())["payload"]["output"] for _ in range(3)] == [3, 4, 5]
        assert await settled(lambda: served.produced) == 6
        await raw.send(envelope("call.credit", "r1", n=100))
        got = [await raw.receive() for _ in range(5)]
        assert [one["type"] for one in got] == ["call.responded"] * 4 + ["call.completed"]


async def test_an_abort_reaches_a_subscription_that_waits_for_credit(door: CallDoor) -> None:
    async with raw_caller(door) as raw:
        await raw.send(requested("r1", "t/count", {"to": 10}, credit=1))
        await raw.receive()
        await raw.send(envelope("call.aborted", "r1"))
        assert await outcomes(door, "t/count") == ["aborted"]
        await serving(door).is_idle.wait()


async def test_the_deadline_reaches_a_subscription_that_waits_for_credit(door: CallDoor) -> None:
    async with raw_caller(door) as raw:
        await raw.send(requested("r1", "t/count", {"to": 10}, credit=1, timeout_ms=30))
        await raw.receive()
        assert (await raw.receive())["payload"]["code"] == "TIMEOUT"


async def test_many_subscriptions_that_have_a_large_item_at_once_share_a_stream_that_is_read(
    door: CallDoor, served: Awkward
) -> None:
    size, many, each = 300_000, 60, 3
    async with raw_caller(door) as raw, asyncio.timeout(30):
        value = {"to": each, "size": size}
        await raw.send(*(requested(f"r{n}", "t/together", value, credit=each + 1) for n in range(many)))
        await eventually(lambda: served.begun == many, "each waits for the same")
        served.go_on.set()
        got = [await raw.receive() for _ in range(many * (each + 1))]
    assert {one and one["type"] for one in got} == {"call.responded", "call.completed"}
    for n in range(many):
        of_one = [one["payload"]["output"][0] for one in got if one["id"] == f"r{n}" and one["payload"]]
        assert of_one == list(range(each))


async def test_a_call_whose_answer_waits_for_room_can_be_aborted(door: CallDoor, served: Awkward) -> None:
    async with raw_caller(door) as raw:
        await raw.send(*(requested(f"r{n}", "t/wait", {"size": 500_000}) for n in range(8)))
        await eventually(lambda: served.begun == 8, "all run")
        served.go_on.set()
        assert await settled(lambda: len(serving(door)._running)) in range(1, 8)
        await raw.send(*(envelope("call.aborted", f"r{n}") for n in range(8)))
        await serving(door).is_idle.wait()
        assert await outcomes(door, "t/wait") == ["ok"] * 8  # the handlers had finished


# --- handlers that do not end as one would like -----------------------------------------------------------------------


@pytest.mark.parametrize("credit", [1, 5])
async def test_a_handler_that_fails_while_it_is_stopped_leaves_its_record_and_nothing_else(
    door: CallDoor, served: Awkward, credit: int
) -> None:
    async with raw_caller(door) as raw:
        await raw.send(requested("r1", "t/messy", credit=credit))
        await raw.receive()
        await raw.send(envelope("call.aborted", "r1"))
        await serving(door).is_idle.wait()
        assert served.stopped == 1
    assert len(await outcomes(door, "t/messy")) == 1


async def test_a_handler_that_fails_after_its_last_item_is_an_error(door: CallDoor, served: Awkward) -> None:
    async with raw_caller(door) as raw:
        served.go_on.set()
        await raw.send(requested("r1", "t/messy", credit=5))
        await raw.receive()
        assert (await raw.receive())["payload"]["code"] == "INTERNAL"
    assert await outcomes(door, "t/messy") == ["error INTERNAL"]


async def test_a_generator_that_blocks_a_thread_is_given_up_and_recorded(door: CallDoor, served: Awkward) -> None:
    async with raw_caller(door) as raw:
        await raw.send(requested("r1", "t/blocking", credit=5))
        await raw.receive()
        await settled(lambda: served.begun)
        await raw.send(envelope("call.aborted", "r1"))
        await serving(door).is_idle.wait()
        served.release.set()
        await serving(door).is_idle.wait()
    assert await outcomes(door, "t/blocking") == ["aborted"]


async def test_what_is_stopped_twice_is_recorded_once(door: CallDoor, served: Awkward) -> None:
    async with raw_caller(door) as raw:
        await raw.send(requested("r1", "t/stubborn"))
        await eventually(lambda: served.begun, "it runs")
        await raw.send(envelope("call.aborted", "r1"))
        await eventually(lambda: served.stopped, "it is stopped")
        raw.connection.close()
        assert len(await outcomes(door, "t/stubborn")) == 1


async def test_the_end_of_a_session_waits_for_cleaning_up_and_not_for_what_never_ends(
    door: CallDoor, served: Awkward, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with raw_caller(door) as raw:
        await raw.send(requested("r1", "t/tidy"), requested("r2", "t/deaf"))
        await eventually(lambda: served.begun == 2, "both run")
        session = door.sessions_of("alice")[0]
        monkeypatch.setattr("alknet.call.serving.ENDING_GRACE_S", 10.0)
        closing = asyncio.get_running_loop().create_task(session.aclose("enough"))
        await eventually(lambda: served.stopped == 2, "both are cancelled")
        assert not await settled(closing.done)
        closing.cancel()
        await asyncio.wait([closing])
        served.go_on.set()
        await eventually(lambda: served.tidied, "it cleans up undisturbed")
        monkeypatch.setattr("alknet.call.serving.ENDING_GRACE_S", 0.05)
        async with asyncio.timeout(5):
            await session.aclose()
            await session.aclose()
        assert caplog.text.count("operations did not end in time count=1 operations=t/deaf") == 1
        served.release.set()
        served.let_go.set()
        await session.serving.is_idle.wait()


async def test_who_never_sends_credit_is_paced_by_the_stream(
    door: CallDoor, served: Awkward, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("alknet.call.hello.FEATURES", ())
    async with raw_caller(door) as raw:
        await raw.send(requested("r1", "t/count", {"to": 200, "size": 50_000}), requested("r2", "t/echo"))
        assert await settled(lambda: served.produced) < 50
        got = [await raw.receive() for _ in range(202)]
        assert [one["payload"]["output"][0] for one in got if one["id"] == "r1" and one["payload"]] == list(range(200))
        assert envelope("call.completed", "r1") in got
