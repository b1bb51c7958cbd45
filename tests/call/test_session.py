"""Two ends of a session: calls in both directions, what stops them, and how each way to end is told."""

import asyncio
import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from alknet.alpn.memory import MemoryStream
from alknet.audit import MemoryAudit
from alknet.call.client import Link
from alknet.call.context import Caller
from alknet.call.dispatch import Dispatcher
from alknet.call.envelopes import Requested
from alknet.call.errors import CallError
from alknet.call.handler import CallSettings
from alknet.call.operations import operations_of
from alknet.call.prepared import Prepared
from alknet.call.registry import Registry
from alknet.call.session import MAX_OWN_STREAMS, Session
from alknet.call.subscription import End
from alknet.clock import SystemClock
from alknet.gate import Gate
from testkit.calls import CallDoor
from testkit.polling import eventually
from testkit.raw_calls import RawCaller, envelope, raw_caller, requested
from testkit.served import Served

STOPPED_WITHIN_S = 0.2
CODECS = pytest.mark.parametrize("codec", ["msgpack", "json"])

pytestmark = pytest.mark.usefixtures("nothing_is_left")


@pytest.fixture
def served() -> Served:
    return Served()


@pytest.fixture
async def door(tmp_path: Path, served: Served) -> AsyncIterator[CallDoor]:
    door = CallDoor(tmp_path, served, scopes=("services:*",))
    yield door
    served.go_on.set()
    served.let_go.set()
    await door.aclose()


class DialersOperations:
    """What the dialer serves to the node."""

    def __init__(self, served: Served) -> None:
        self.dispatcher = Dispatcher(Registry(operations_of(served)), Gate(_no_policy(), MemoryAudit(), SystemClock()))

    def prepare(self, request: Requested) -> Prepared:
        return self.dispatcher.prepare(
            request.name,
            request.input,
            Caller(None, "memory"),
            streaming=request.credit is not None,
            timeout_s=request.timeout_s,
        )


def _no_policy() -> Any:
    from alknet.access import Policy
    from alknet.config.policy import daemon_user

    return Policy(peers={}, revision="r1", denial_key=b"k" * 32, daemon=daemon_user())


def there(door: CallDoor) -> Session:
    """The door's end of alice's session."""
    return door.sessions_of("alice")[0]


async def failure(call: Any) -> CallError:
    with pytest.raises(CallError) as caught:
        await call
    return caught.value


# --- calls ------------------------------------------------------------------------------------------------------------


@CODECS
async def test_values_come_back_as_they_were_sent(door: CallDoor, codec: str) -> None:
    values = [None, True, 0, -1, 2**53, 1.5, "", "ü\x00\n", [], {}, [1, [2, {"a": None}]], {"": {"b": [False]}}]
    async with door.session(codecs=(codec,)) as link:
        for value in values:
            assert await link.session.call("t/echo", {"value": value}) == value
        assert await link.session.call("t/add", {"a": 1, "b": 2}) == 3


async def test_either_end_calls_the_other_at_the_same_time(door: CallDoor, served: Served) -> None:
    own = Served()
    own.go_on.set()
    served.go_on.set()
    async with door.session(server_of=lambda *_: DialersOperations(own)) as link:
        calls = [session.call("t/wait", {"value": n}) for n in range(200) for session in (link.session, there(door))]
        assert await asyncio.gather(*calls) == [n for n in range(200) for _ in (0, 1)]
        assert [n async for n in there(door).subscribe("t/count", {"to": 50})] == list(range(50))
    assert (own.begun, served.begun) == (200, 200)


async def test_a_dialer_that_serves_nothing_says_so(door: CallDoor) -> None:
    async with door.session():
        error = await failure(there(door).call("t/add", {"a": 1, "b": 2}))
    assert (error.code, str(error)) == ("NOT_FOUND", "operation not found: t/add")


async def test_answers_come_when_they_are_ready_and_not_in_order(door: CallDoor, served: Served) -> None:
    async with door.session() as link:
        slow = asyncio.get_running_loop().create_task(link.session.call("t/wait", {"value": "slow"}))
        await eventually(lambda: served.begun, "the slow one runs")
        assert await link.session.call("t/echo", {"value": "quick"}) == "quick"
        assert not slow.done()
        served.go_on.set()
        assert await slow == "slow"


async def test_a_batch_has_each_answer_or_error_in_its_place(door: CallDoor) -> None:
    async with door.session() as link:
        three, none, secret, broken = await link.session.batch(
            [("t/add", {"a": 1, "b": 2}), ("t/none", {}), ("t/secret", {}), ("t/add", {"a": "one"})]
        )
        assert await link.session.batch([]) == []
    assert three == 3
    assert [error.code for error in (none, secret, broken)] == ["NOT_FOUND", "FORBIDDEN", "INVALID_INPUT"]
    assert [detail["path"] for detail in broken.details] == [["a"], ["b"]]


# --- errors -----------------------------------------------------------------------------------------------------------


@CODECS
async def test_a_declared_error_arrives_with_its_details(door: CallDoor, codec: str) -> None:
    async with door.session(codecs=(codec,)) as link:
        error = await failure(link.session.call("t/fail", {"details": {"left": [0]}}))
    assert (error.code, str(error), error.details, error.retryable) == (
        "OUT_OF_STOCK",
        "none left",
        {"left": [0]},
        False,
    )


async def test_a_refusal_carries_the_id_of_the_denial_in_the_audit_log(door: CallDoor) -> None:
    async with door.session() as link:
        error = await failure(link.session.call("t/secret"))
    denied = [record for record in door.audit.records if record.get("outcome") == "denied"]
    assert error.denial_id == denied[-1]["denial_id"] is not None


async def test_what_nobody_foresaw_is_told_by_an_id_and_nothing_else(
    door: CallDoor, caplog: pytest.LogCaptureFixture
) -> None:
    async with door.session() as link:
        error = await failure(link.session.call("t/break"))
    assert error.code == "INTERNAL"
    assert "never told" not in str(error)
    error_id = next(word for word in str(error).split() if word.startswith("err_"))
    assert error_id in caplog.text


async def test_an_input_that_cannot_be_encoded_fails_here_and_the_session_goes_on(door: CallDoor) -> None:
    async with door.session() as link:
        error = await failure(link.session.call("t/echo", {"value": object()}))
        assert error.code == "INVALID_INPUT"
        assert "cannot be sent" in str(error)
        error = await failure(anext(link.session.subscribe("t/count", {"to": object()})))
        assert error.code == "INVALID_INPUT"
        assert await link.session.call("t/echo", {"value": 1}) == 1


async def test_an_input_above_what_the_other_side_takes_fails_here_and_the_session_goes_on(door: CallDoor) -> None:
    async with door.session() as link:
        error = await failure(link.session.call("t/echo", {"value": "x" * 2_000_000}))
        assert (error.code, error.retryable) == ("RESOURCE_EXHAUSTED", False)
        assert "in pieces" in str(error)
        assert await link.session.call("t/echo", {"value": 1}) == 1


async def test_an_output_above_what_may_be_sent_becomes_an_error(
    door: CallDoor, caplog: pytest.LogCaptureFixture
) -> None:
    async with door.session() as link:
        error = await failure(link.session.call("t/size", {"size": 2_000_000}))
        assert (error.code, error.retryable) == ("RESOURCE_EXHAUSTED", False)
        items = link.session.subscribe("t/count", {"to": 3, "size": 2_000_000})
        assert (await failure(anext(items))).code == "RESOURCE_EXHAUSTED"
        assert items.end is End.FAILED
        assert len(await link.session.call("t/size", {"size": 1_000_000})) == 1_000_000
    assert "an output cannot be sent" in caplog.text


async def test_an_output_that_the_codec_cannot_express_is_the_nodes_own_fault(
    door: CallDoor, caplog: pytest.LogCaptureFixture
) -> None:
    async with door.session(codecs=("json",)) as link:
        error = await failure(link.session.call("t/nan"))
        assert error.code == "INTERNAL"
        assert "nan" in str(error)
        assert await link.session.call("t/echo", {"value": 1}) == 1
    async with door.session(codecs=("msgpack",)) as link:
        assert str(await link.session.call("t/nan")) == "nan"
    assert "an output cannot be sent" in caplog.text


@pytest.mark.parametrize(
    ("name", "value"),
    [("t/fail", {"size": 5000}), ("t/fail-later", {"after": 0, "size": 5000}), ("t/sum", {"values": ["one"] * 800})],
)
async def test_an_error_that_is_too_large_to_be_sent_is_still_an_answer(
    tmp_path: Path, served: Served, name: str, value: Any
) -> None:
    door = CallDoor(tmp_path, served, settings=CallSettings(max_frame=4096))
    async with door.session() as link, asyncio.timeout(5):
        if name == "t/fail-later":
            error = await failure(anext(link.session.subscribe(name, value)))
        else:
            error = await failure(link.session.call(name, value))
        assert error.code == "RESOURCE_EXHAUSTED" or len(error.details) < 100
    await door.aclose()


# --- what stops a call ------------------------------------------------------------------------------------------------


async def soon(condition: Any, what: str) -> None:
    """Within the time that an abort may take."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    await eventually(condition, what)
    assert loop.time() - began < STOPPED_WITHIN_S


async def outcomes(door: CallDoor, name: str) -> list[str]:
    """How the calls of an operation ended, as the audit log has it once it has an outcome for each intent."""

    def of(phase: str) -> dict[str, str]:
        lines = [line for line in door.audit.records if line["action"] == name and line["phase"] == phase]
        return {line["request_id"]: line.get("outcome", "") for line in lines}

    await eventually(lambda: of("intent").keys() == of("outcome").keys(), "an outcome for each intent")
    ends = of("outcome")
    return [ends[id] for id in of("intent")]


async def test_cancelling_a_call_stops_it_there(door: CallDoor, served: Served) -> None:
    async with door.session() as link:
        call = asyncio.get_running_loop().create_task(link.session.call("t/wait"))
        await eventually(lambda: served.begun, "it runs")
        call.cancel()
        await soon(lambda: served.stopped, "it is stopped")
        with pytest.raises(asyncio.CancelledError):
            await call
        assert await outcomes(door, "t/wait") == ["aborted"]


async def test_a_call_that_is_cancelled_before_it_begins_is_recorded_as_dropped(door: CallDoor, served: Served) -> None:
    async with raw_caller(door) as raw:
        await raw.send(requested("r1", "t/wait"), envelope("call.aborted", "r1"), requested("r2", "t/echo"))
        assert (await raw.receive())["id"] == "r2"
        assert await outcomes(door, "t/wait") == ["dropped"]
    assert served.begun == 0


async def test_a_call_ends_at_the_time_that_its_caller_gave_at_both_ends(door: CallDoor, served: Served) -> None:
    async with door.session() as link:
        error = await failure(link.session.call("t/wait", timeout_s=0.05))
        assert (error.code, error.retryable) == ("TIMEOUT", True)
        await soon(lambda: served.stopped, "it is stopped")
        assert (await outcomes(door, "t/wait"))[0] in ("error TIMEOUT", "aborted")
    async with raw_caller(door) as raw:
        await raw.send(requested("r1", "t/wait", timeout_ms=20), requested("r2", "t/follow", credit=5, timeout_ms=20))
        answers = [await raw.receive() for _ in range(3)]
    errors = {one["id"]: one["payload"]["code"] for one in answers if one["type"] == "call.error"}
    assert errors == {"r1": "TIMEOUT", "r2": "TIMEOUT"}
    assert (await outcomes(door, "t/wait"))[1:] == await outcomes(door, "t/follow") == ["error TIMEOUT"]


async def test_the_callers_own_clock_counts_when_the_other_side_never_answers(door: CallDoor, served: Served) -> None:
    async with door.session() as link:
        error = await failure(link.session.call("t/stubborn", timeout_s=0.05))
        assert error.code == "TIMEOUT"
        served.let_go.set()
        assert await link.session.call("t/echo", {"value": "still here"}) == "still here"


async def test_a_call_without_a_time_of_its_own_has_the_nodes(door: CallDoor) -> None:
    door.dispatcher.default_timeout_s = 0.05
    async with door.session() as link:
        assert (await failure(link.session.call("t/wait"))).code == "TIMEOUT"
        assert (await failure(link.session.call("t/wait", timeout_s=30))).code == "TIMEOUT"
        items = link.session.subscribe("t/follow")
        assert await anext(items) == 0
        waiting = asyncio.get_running_loop().create_task(anext(items))
        await failure(link.session.call("t/wait"))
        assert not waiting.done(), "a subscription has no time unless it is given one"
        await items.aclose()
        with pytest.raises(StopAsyncIteration):
            await waiting


async def test_a_call_ends_in_time_also_while_it_waits_to_be_sent(door: CallDoor) -> None:
    async with raw_caller(door) as raw:
        node = there(door)
        loop = asyncio.get_running_loop()
        flood = [loop.create_task(node.call("x/y", "x" * 500_000)) for _ in range(3)]
        await eventually(lambda: node._main.is_full, "there is no room")
        error = await failure(node.call("x/y", timeout_s=0.02))
        assert (error.code, "does not read" in str(error)) == ("TIMEOUT", True)
        raw.stream.reset()
        assert {(await failure(task)).code for task in flood} == {"UNAVAILABLE"}


async def test_leaving_a_subscription_stops_it_there(door: CallDoor, served: Served) -> None:
    async with door.session() as link:
        async with link.session.subscribe("t/follow") as items:
            async for item in items:
                assert item == 0
                break
        assert items.end is End.CLOSED
        await soon(lambda: served.stopped == 1, "it is stopped")
        async for _ in link.session.subscribe("t/follow"):
            break
        gc.collect()
        await soon(lambda: served.stopped == 2, "one that nobody holds is stopped as well")
    assert await outcomes(door, "t/follow") == ["aborted", "aborted"]


async def test_a_lost_connection_stops_everything_that_it_asked_for(door: CallDoor, served: Served) -> None:
    async with raw_caller(door) as raw:
        await raw.send(requested("r1", "t/wait"), requested("r2", "t/follow", credit=5))
        await eventually(lambda: served.begun == 2, "both run")
        raw.connection.close()
        await soon(lambda: served.stopped == 2, "both are stopped")
    assert await outcomes(door, "t/wait") == await outcomes(door, "t/follow") == ["lost"]


# --- streams ----------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def watched(door: CallDoor) -> AsyncIterator[tuple[Link, list[MemoryStream]]]:
    """A session and the streams that it opens after its first."""
    async with door.session() as link:
        opened: list[MemoryStream] = []
        open_stream = link.carrier.open_stream

        async def opening() -> Any:
            opened.append(await open_stream())  # type: ignore[arg-type]
            return opened[-1]

        link.carrier.open_stream = opening  # type: ignore[method-assign]
        yield link, opened


async def test_each_subscription_has_a_stream_of_its_own_and_gives_it_back(door: CallDoor) -> None:
    async with watched(door) as (link, opened):
        for to in (0, 1, 100):
            assert [item async for item in link.session.subscribe("t/count", {"to": to})] == list(range(to))
        assert len(opened) == 3
        await link.session.call("t/add", {"a": 1, "b": 1})
        assert len(opened) == 3
        await eventually(lambda: len(there(door)._streams.by_number) == 1, "the node has given them back as well")


async def test_further_subscriptions_share_the_first_stream(door: CallDoor) -> None:
    async with watched(door) as (link, opened):
        held = [link.session.subscribe("t/follow") for _ in range(MAX_OWN_STREAMS + 5)]
        assert [await anext(items) for items in held] == [0] * (MAX_OWN_STREAMS + 5)
        assert len(opened) == MAX_OWN_STREAMS


async def test_a_lost_stream_ends_what_was_on_it_and_nothing_else(door: CallDoor, served: Served) -> None:
    async with watched(door) as (link, opened):
        first, second = link.session.subscribe("t/follow"), link.session.subscribe("t/follow")
        assert [await anext(first), await anext(second)] == [0, 0]
        opened[0].reset()
        assert (await failure(anext(first))).code == "UNAVAILABLE"
        assert (first.end, second.end) == (End.LOST, None)
        await soon(lambda: served.stopped == 1, "the node has noticed")
        assert await link.session.call("t/echo", {"value": 1}) == 1
        served.go_on.set()
        assert [item async for item in second] == []
        assert second.end is End.COMPLETED


# --- the other side's part, by hand -----------------------------------------------------------------------------------


async def accepted(raw: RawCaller) -> tuple[RawCaller, str]:
    """The stream of a subscription that the node makes, and the subscription's id."""
    own = raw.on(await raw.connection.accept_stream())
    request = await own.receive()
    assert (request["type"], request["payload"]["credit"]) == ("call.requested", 32)
    return own, request["id"]


@pytest.mark.parametrize(
    ("last", "code", "end"),
    [
        (("call.completed", {}), None, End.COMPLETED),
        (("call.error", {"code": "OUT_OF_STOCK", "message": "none"}), "OUT_OF_STOCK", End.FAILED),
        (("call.aborted", {"reason": "tired"}), "UNAVAILABLE", End.ABORTED),
        (None, "UNAVAILABLE", End.LOST),
    ],
)
async def test_what_ends_a_subscription_is_told_after_its_items(
    door: CallDoor, last: tuple[str, dict[str, Any]] | None, code: str | None, end: End
) -> None:
    async with raw_caller(door) as raw:
        items = there(door).subscribe("x/y")
        first = asyncio.get_running_loop().create_task(anext(items))
        own, id = await accepted(raw)
        await own.send(envelope("call.responded", id, output=1), envelope("call.responded", id, output=2))
        assert await first == 1
        if last is None:
            own.stream.reset()
        else:
            await own.send(envelope(last[0], id, **last[1]))
        await eventually(lambda: items.end, "it has ended")
        assert await anext(items) == 2
        for _ in range(2):
            if code is None:
                with pytest.raises(StopAsyncIteration):
                    await anext(items)
            else:
                assert (await failure(anext(items))).code == code
        assert items.end is end


async def test_items_beyond_the_credit_end_the_subscription_and_the_other_side_hears_why(door: CallDoor) -> None:
    async with raw_caller(door) as raw:
        items = there(door).subscribe("x/y")
        first = asyncio.get_running_loop().create_task(anext(items))
        own, id = await accepted(raw)
        await own.send(*(envelope("call.responded", id, output=n) for n in range(33)))
        assert await first == 0
        assert await own.rest() == [envelope("call.aborted", id, reason="more items than credit")]
        assert [await anext(items) for _ in range(31)] == list(range(1, 32))
        assert (await failure(anext(items))).code == "INTERNAL"


async def test_what_follows_on_a_stream_that_is_over_is_not_begun(door: CallDoor, served: Served) -> None:
    async with raw_caller(door) as raw:
        items = there(door).subscribe("x/y")
        first = asyncio.get_running_loop().create_task(anext(items, None))
        own, id = await accepted(raw)
        await own.send(envelope("call.completed", id), requested("r1", "t/wait"))
        assert await first is None
        await raw.send(requested("r2", "t/echo"))
        assert (await raw.receive())["id"] == "r2"
        assert (served.begun, there(door).serving.is_idle.is_set()) == (0, True)


async def test_answers_that_are_late_double_or_unknown_change_nothing(door: CallDoor) -> None:
    async with raw_caller(door) as raw:
        call = asyncio.get_running_loop().create_task(there(door).call("x/y", [1], timeout_s=5))
        request = await raw.receive()
        assert request["payload"] == {"operationId": "/x/y", "input": [1], "timeout_ms": 5000}
        id = request["id"]
        await raw.send(
            envelope("call.responded", "nobody's", output=0),
            envelope("call.responded", id, output=1),
            envelope("call.responded", id, output=2),
            envelope("call.error", id, code="INTERNAL"),
            envelope("call.aborted", id),
            envelope("call.unheard-of", id),
        )
        assert await call == 1
        assert (await failure(there(door).call("x/y", timeout_s=0.01))).code == "TIMEOUT"
        late = await raw.receive()
        assert await raw.receive() == envelope("call.aborted", late["id"], reason="deadline")
        await raw.send(envelope("call.responded", late["id"], output=1), requested("r1", "t/echo", {"value": 7}))
        assert (await raw.receive())["payload"] == {"output": 7}


# --- the end of a session ---------------------------------------------------------------------------------------------


async def test_who_goes_away_finishes_what_runs_and_takes_nothing_new(door: CallDoor, served: Served) -> None:
    async with door.session() as link:
        running = asyncio.get_running_loop().create_task(link.session.call("t/wait", {"value": 1}))
        await eventually(lambda: served.begun, "it runs")
        there(door).go_away(5.0, "maintenance")
        await eventually(lambda: link.session.end_reason, "this side has heard")
        error = await failure(link.session.call("t/echo"))
        assert (error.code, error.retryable) == ("UNAVAILABLE", True)
        assert (await failure(anext(link.session.subscribe("t/count", {"to": 1})))).code == "UNAVAILABLE"
        served.go_on.set()
        assert await running == 1
        assert link.session.end_reason == "maintenance"


async def test_a_request_that_crosses_a_goaway_is_refused_as_one_that_may_be_tried_elsewhere(door: CallDoor) -> None:
    async with raw_caller(door) as raw:
        there(door).go_away(5.0)
        await raw.send(requested("r1", "t/echo"))
        assert (await raw.receive())["type"] == "session.goaway"
        refused = (await raw.receive())["payload"]
        assert (refused["code"], refused["retryable"]) == ("UNAVAILABLE", True)


@pytest.mark.parametrize("who", ["this side", "the node"])
async def test_calls_that_wait_hear_when_their_session_ends_and_why(door: CallDoor, served: Served, who: str) -> None:
    async with door.session() as link:
        loop = asyncio.get_running_loop()
        calls = [loop.create_task(link.session.call("t/wait")) for _ in range(20)]
        items = link.session.subscribe("t/follow")
        assert await anext(items) == 0
        waiting = loop.create_task(anext(items))
        await eventually(lambda: served.begun == 21, "all run")
        session = link.session if who == "this side" else there(door)
        await session.aclose("enough for today")
        for call in calls:
            error = await failure(call)
            assert (error.code, "enough for today" in str(error)) == ("UNAVAILABLE", True)
        assert (await failure(waiting)).code == "UNAVAILABLE"
        assert items.end is End.LOST
        assert (session.is_open, session.end_reason) == (False, "enough for today")
        assert (await failure(link.session.call("t/echo"))).code == "UNAVAILABLE"
        assert (await failure(anext(link.session.subscribe("t/follow")))).code == "UNAVAILABLE"
        await session.aclose("twice")
    await eventually(lambda: served.stopped == 21, "all are stopped")


async def test_a_side_that_closes_without_a_reason_knows_that_it_did(door: CallDoor) -> None:
    async with door.session() as link:
        await link.session.aclose()
        assert link.session.end_reason == "this side closed the connection"


async def test_calls_that_wait_for_room_end_with_their_session(door: CallDoor) -> None:
    async with raw_caller(door) as raw:
        node = there(door)
        calls = [asyncio.get_running_loop().create_task(node.call("x/y", "x" * 500_000)) for _ in range(50)]
        await eventually(lambda: node._main.is_full, "there is no room")
        raw.connection.close()
        errors = await asyncio.gather(*calls, return_exceptions=True)
        assert [error.code for error in errors if isinstance(error, CallError)] == ["UNAVAILABLE"] * 50
        await node.wait_ended()


async def test_a_handler_that_was_stopped_late_answers_nobody(door: CallDoor, served: Served) -> None:
    async with raw_caller(door) as raw:
        await raw.send(requested("r1", "t/stubborn"))
        await eventually(lambda: served.begun, "it runs")
        await raw.send(envelope("call.aborted", "r1"), requested("r1", "t/echo"))
        refused = await raw.receive()
        assert (refused["id"], refused["payload"]["code"]) == ("r1", "INVALID_INPUT")
        served.let_go.set()
        await outcomes(door, "t/stubborn")
        await raw.send(requested("r1", "t/echo", {"value": "free again"}))
        assert (await raw.receive())["payload"] == {"output": "free again"}


async def test_both_sides_may_flood_each_other(door: CallDoor) -> None:
    own = Served()
    async with door.session(server_of=lambda *_: DialersOperations(own)) as link, asyncio.timeout(30):
        value = {"value": "x" * 20_000}
        sides = (link.session, there(door))
        answers = await asyncio.gather(*(side.call("t/echo", value) for _ in range(900) for side in sides))
        assert answers == [value["value"]] * 1800
