"""Two ends of a session: calls in both directions, what stops them, and how each way to end is told."""

import asyncio
import gc
import logging
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


@pytest.fixture(autouse=True)
async def nothing_is_left() -> AsyncIterator[None]:
    """No exception reaches the event loop, and no task outlives its session."""
    escaped: list[Any] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: escaped.append(context))
    before = asyncio.all_tasks()
    yield
    gc.collect()
    await eventually(lambda: not asyncio.all_tasks() - before - {asyncio.current_task()}, "every task has ended")
    assert escaped == []


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
    session = door.handler.session_of("alice")
    assert session is not None
    return session


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
    async with door.session(server_of=lambda challenge: DialersOperations(own)) as link:
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
    assert (error.code, str(error), error.details, error.retryable) == ("OUT_OF_STOCK", "none left", {"left": [0]}, False)


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
