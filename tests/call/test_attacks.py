"""What an other side may do to a session that breaks no cryptography: floods, hoards, garbage, silence.

Whatever it does, it gets an answer or an end, it costs the node no more than a bound, nothing of it is left, and the
door serves the next one.
"""

import asyncio
import logging
import random
import tracemalloc
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import msgpack  # type: ignore[import-untyped]
import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from alknet.call.channel import MAX_UNREAD_BYTES
from alknet.call.codecs import CODECS
from alknet.call.frames import HELLO_MAX_FRAME, LENGTH_BYTES, frame
from alknet.call.handler import MAX_DENIALS
from alknet.call.machine import DEFAULT_CREDIT
from alknet.call.serving import MAX_WAITING_BYTES
from alknet.call.session import Session
from alknet.call.session_streams import MAX_REFUSED_STREAMS
from alknet.errors import AlknetError
from testkit.calls import CallDoor
from testkit.polling import eventually, settled
from testkit.raw_calls import RawCaller, envelope, raw_caller, requested
from testkit.served import Served

pytestmark = pytest.mark.usefixtures("nothing_is_left")

MIB = 1024 * 1024


@pytest.fixture
def served() -> Served:
    return Served()


@pytest.fixture
async def door(tmp_path: Path, served: Served, caplog: pytest.LogCaptureFixture) -> AsyncIterator[CallDoor]:
    """A door that serves its next caller after each test, and has logged no traceback until then."""
    door = CallDoor(tmp_path, served, scopes=("services:*",))
    yield door
    served.go_on.set()
    async with door.session() as link:
        assert await link.session.call("t/add", {"a": 1, "b": 2}) == 3
    await door.aclose()
    assert [record.message for record in caplog.records if record.exc_info] == []
    intents = {line["request_id"] for line in door.audit.records if line["phase"] == "intent"}
    outcomes = Counter(line["request_id"] for line in door.audit.records if line["phase"] == "outcome")
    assert {id: outcomes[id] for id in intents} == dict.fromkeys(intents, 1), "each intent has one outcome"


def there(door: CallDoor) -> Session:
    session = door.sessions_of("alice")[0]
    assert session is not None
    return session


@contextmanager
def memory_within(limit: int) -> Iterator[None]:
    """What the block allocates at once stays below `limit` bytes."""
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        yield
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak - before < limit


async def goaway_of(raw: RawCaller) -> str:
    """The reason that the node ended the session with."""
    last = (await raw.rest())[-1]
    assert last["type"] == "session.goaway"
    return str(last["payload"]["reason"])


# --- slow, silent and greedy ------------------------------------------------------------------------------------------


async def test_a_consumer_that_sleeps_pauses_its_subscription_and_loses_nothing(door: CallDoor, served: Served) -> None:
    many, process = 100_000, psutil.Process()
    async with door.session() as link:
        items = link.session.subscribe("t/count", {"to": many})
        for n in range(many):
            if n in (1, many // 2):
                assert await settled(lambda: served.produced) <= n + DEFAULT_CREDIT
            assert await anext(items) == n
            if n == 1000:
                before = process.memory_info().rss
        assert process.memory_info().rss - before < 8 * MIB
        with pytest.raises(StopAsyncIteration):
            await anext(items)


async def test_a_consumer_of_large_items_that_sleeps_holds_a_bounded_amount(door: CallDoor, served: Served) -> None:
    async with door.session() as link:
        items = link.session.subscribe("t/count", {"to": 200, "size": 500_000}, credit=8)
        assert (await anext(items))[0] == 0
        assert await settled(lambda: served.produced) <= 1 + 8
        with memory_within(30 * MIB):
            assert [n async for n, _ in items] == list(range(1, 200))


async def test_no_call_is_begun_while_nobody_reads_the_answers(door: CallDoor) -> None:
    size, many = 500_000, 1000
    async with raw_caller(door) as raw:
        with memory_within(20 * size):
            await raw.send(*(requested(f"r{n}", "t/size", {"size": size}) for n in range(many)))
            assert await settled(lambda: len(there(door)._machine.inbound)) > many - 10
        assert len([line for line in door.audit.records if line.get("outcome") == "ok"]) < 10
        answers = await raw.answers(many)
        assert {len(one["payload"]["output"]) for one in answers.values()} == {size}


@pytest.mark.parametrize(("name", "more"), [("t/wait", {}), ("t/together", {"credit": 5})])
async def test_answers_that_nobody_reads_are_held_up_to_a_bound_and_the_rest_are_errors(
    door: CallDoor, served: Served, name: str, more: dict[str, Any]
) -> None:
    size, many = 500_000, 300
    async with raw_caller(door) as raw:
        await raw.send(*(requested(f"r{n}", name, {"size": size}, **more) for n in range(many)))
        await eventually(lambda: served.begun == many, "all run")
        with memory_within((2 if more else 1) * MAX_WAITING_BYTES + 20 * size):  # a generator keeps its last item
            served.go_on.set()
            await settled(lambda: len(there(door)._machine.inbound))
            assert there(door).is_open
        said: dict[str, str] = {}
        while len(said) < many:
            one = await raw.receive()
            said.setdefault(one["id"], one["payload"].get("code", "answer"))
        ends = Counter(said.values())
        assert ends.keys() == {"answer", "RESOURCE_EXHAUSTED"}
        assert MAX_WAITING_BYTES // size - 1 <= ends["answer"] <= MAX_WAITING_BYTES // size + 10


@pytest.mark.parametrize("name", ["t/size", "t/wait"])
async def test_an_answer_waits_to_be_read_no_longer_than_its_call_has_time(
    door: CallDoor, served: Served, name: str
) -> None:
    async with raw_caller(door) as raw:
        await raw.send(*(requested(f"r{n}", name, {"size": 500_000}, timeout_ms=200) for n in range(10)))
        await eventually(lambda: name == "t/size" or served.begun == 10, "they run")
        served.go_on.set()
        await settled(lambda: len(door.audit.records))
        await eventually(lambda: not there(door)._machine.inbound, "they have ended")
        said = Counter(one["payload"].get("code", "answer") for one in (await raw.answers(10)).values())
        assert said.keys() == {"answer", "TIMEOUT"}


@pytest.mark.parametrize("size", [0, 100])
async def test_who_sends_requests_and_never_reads_is_ended_at_a_bound(door: CallDoor, size: int) -> None:
    async with raw_caller(door) as raw:
        node = there(door)
        with memory_within(6 * MAX_UNREAD_BYTES):
            await raw.send(requested("r0", "t/wait"))
            one = frame(raw.codec.encode(requested("r0", "t/wait", "x" * size)))
            try:
                for _ in range(3000):
                    await raw.write(one * 50)
                    await asyncio.sleep(0)
                    if not node.is_open:
                        break
            except AlknetError:
                pass
        await node.wait_ended()
        assert "does not read" in str(node.end_reason)


async def test_ten_thousand_requests_at_once_run_up_to_the_limit_and_each_is_answered(
    door: CallDoor, served: Served
) -> None:
    many, limit = 10_000, door.handler.settings.max_in_flight
    async with raw_caller(door) as raw:
        frames = [frame(raw.codec.encode(requested(f"r{n}", "t/wait", {"value": n}))) for n in range(many)]
        sending = asyncio.get_running_loop().create_task(raw.write(b"".join(frames)))
        refused = await raw.answers(many - limit)
        await sending
        assert {one["payload"]["code"] for one in refused.values()} == {"RESOURCE_EXHAUSTED"}
        assert {one["payload"]["retryable"] for one in refused.values()} == {True}
        await eventually(lambda: served.begun == limit, "as many run as may")
        served.go_on.set()
        answered = await raw.answers(limit)
        assert len(refused.keys() | answered.keys()) == many
        assert all(f"r{one['payload']['output']}" == id for id, one in answered.items())
        await raw.send(requested("again", "t/echo", {"value": 1}))
        assert (await raw.receive())["payload"] == {"output": 1}


async def test_a_batch_may_be_larger_than_what_the_other_side_takes_at_once(door: CallDoor) -> None:
    async with door.session() as link:
        answers = await link.session.batch([("t/echo", {"value": n}) for n in range(3000)])
    assert answers == list(range(3000))


async def test_ten_thousand_aborts_of_nothing_are_counted_and_cost_nothing(door: CallDoor) -> None:
    async with raw_caller(door) as raw:
        with memory_within(8 * MIB):
            await raw.send(*(envelope("call.aborted", f"n{n}") for n in range(10_000)))
            await raw.send(requested("r1", "t/echo", {"value": 1}))
            assert (await raw.receive())["payload"] == {"output": 1}
        assert there(door)._machine.ignored == {"unknown id": 10_000}


async def test_requests_that_are_aborted_at_once_leave_nothing_running(door: CallDoor, served: Served) -> None:
    async with raw_caller(door) as raw:
        for n in range(3000):
            await raw.send(requested(f"r{n}", "t/wait"), envelope("call.aborted", f"r{n}"))
        await raw.send(requested("last", "t/echo", {"value": 1}))
        while (one := await raw.receive())["id"] != "last":  # one that was aborted has its place until it has ended
            assert one["payload"]["code"] == "RESOURCE_EXHAUSTED"
        await there(door).serving.is_idle.wait()
        assert served.begun == served.stopped


async def test_who_is_refused_a_thousand_times_is_sent_away_with_the_reason(door: CallDoor) -> None:
    async with raw_caller(door) as raw:
        await raw.send(*(requested(f"r{n}", "t/secret") for n in range(MAX_DENIALS)))
        got = await raw.rest()
        assert Counter(one["type"] for one in got) == {"call.error": MAX_DENIALS, "session.goaway": 1}
        assert got[-1]["payload"]["reason"] == f"{MAX_DENIALS} calls were refused"
        assert {one["payload"]["code"] for one in got[:-1]} == {"FORBIDDEN"}


# --- bytes ------------------------------------------------------------------------------------------------------------


async def test_frames_that_come_byte_by_byte_are_frames(door: CallDoor) -> None:
    async with raw_caller(door) as raw:
        data = b"".join(frame(raw.codec.encode(requested(f"r{n}", "t/echo", {"value": n}))) for n in range(5))
        for byte in data:
            await raw.write(bytes([byte]))
            await asyncio.sleep(0)
        assert [(await raw.receive())["payload"]["output"] for _ in range(5)] == list(range(5))


@pytest.mark.parametrize("size", [0, MIB + 1, 64 * MIB, 2**32 - 1])
async def test_a_length_that_cannot_be_ends_the_session_in_words(door: CallDoor, size: int) -> None:
    async with raw_caller(door) as raw:
        with memory_within(2 * MIB):
            await raw.write(frame(raw.codec.encode(requested("r1", "t/echo"))))
            assert (await raw.receive())["id"] == "r1"
            await raw.write(size.to_bytes(LENGTH_BYTES, "big") + b"x")
            assert f"a frame of {size} bytes" in await goaway_of(raw)


async def test_a_length_that_may_be_costs_what_came_of_it(door: CallDoor) -> None:
    async with raw_caller(door) as raw:
        with memory_within(MIB // 2):
            await raw.write(MIB.to_bytes(LENGTH_BYTES, "big") + b"x")
            await settled(lambda: there(door)._main.reader.pending)
            assert there(door)._main.reader.pending == LENGTH_BYTES + 1
        raw.stream.reset()


async def test_unfinished_frames_on_many_streams_are_bounded_together(door: CallDoor) -> None:
    async with raw_caller(door) as raw:
        node = there(door)
        part = MIB.to_bytes(LENGTH_BYTES, "big") + b"x" * (MIB - 1)
        others = [raw.on(await raw.connection.open_stream()) for _ in range(40)]
        ended = 0
        for other in others:
            try:
                await other.write(part)
            except AlknetError:
                ended += 1
        await settled(lambda: sum(node._streams._pending.values()))
        assert sum(node._streams._pending.values()) <= 32 * MIB
        assert len(node._streams.by_number) < 40
        await raw.send(requested("r1", "t/echo", {"value": 1}))
        assert (await raw.receive())["payload"] == {"output": 1}


NESTED = b"\x91" * (MIB - 2) + b"\xc0"
EMPTY = b"\xdd" + (MIB - 6).to_bytes(4, "big") + b"\x80" * (MIB - 6)
HUGE_MAP = b"\xdf" + b"\xff" * 4 + b"\x80" * 100


@pytest.mark.parametrize(
    ("body", "words"),
    [(NESTED, "deep"), (EMPTY, "more than 100000 values"), (HUGE_MAP, "values"), (b"\xc1", "not"), (b"{}", "msgpack")],
    ids=["nested", "empty", "huge", "never", "json"],
)
async def test_a_body_that_would_cost_too_much_or_is_none_ends_the_session_in_words(
    door: CallDoor, body: bytes, words: str
) -> None:
    loop = asyncio.get_running_loop()
    async with raw_caller(door) as raw:
        began = loop.time()
        with memory_within(8 * MIB):
            await raw.write(frame(body))
            assert words in await goaway_of(raw)
        assert loop.time() - began < 2


async def test_garbage_on_a_further_stream_ends_that_stream_and_no_other(
    door: CallDoor, caplog: pytest.LogCaptureFixture
) -> None:
    async with raw_caller(door) as raw:
        good, bad = [raw.on(await raw.connection.open_stream()) for _ in range(2)]
        await good.send(requested("good", "t/wait"))
        await bad.send(requested("bad", "t/wait"))
        await eventually(lambda: len(there(door)._machine.inbound) == 2, "both run")
        with caplog.at_level(logging.INFO, logger="alknet.call"):
            await bad.write(frame(EMPTY))
            assert await bad.rest() == []
        assert "more than 100000 values" in caplog.text
        await raw.send(requested("main", "t/echo", {"value": 1}))
        assert (await raw.receive())["payload"] == {"output": 1}
        assert list(there(door)._machine.inbound) == ["good"]


async def test_garbage_on_one_stream_after_the_other_ends_the_session_and_fills_no_log(
    door: CallDoor, caplog: pytest.LogCaptureFixture
) -> None:
    async with raw_caller(door) as raw:
        with caplog.at_level(logging.INFO, logger="alknet.call"):
            for _ in range(MAX_REFUSED_STREAMS):
                stream = raw.on(await raw.connection.open_stream())
                with suppress(AlknetError):
                    await stream.write(bytes(LENGTH_BYTES))
            assert "16 streams were refused" in await goaway_of(raw)
        assert caplog.text.count("stream refused") == 1
        assert caplog.text.count("session ended") == caplog.text.count("refused_streams=16") == 1


async def test_what_was_ignored_is_in_the_log_when_the_session_ends(
    door: CallDoor, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="alknet.call"):
        for odd in (False, True):
            async with raw_caller(door) as raw:
                await raw.send(*([envelope("call.aborted", "none"), envelope("call.odd", "x"), 7] if odd else []))
                await raw.send(requested("r1", "t/echo"))
                await raw.receive()
                session = there(door)
            await session.wait_ended()
            words = 'ignored="1 no envelope, 1 unknown id, 1 unknown type"'
            assert caplog.text.count("session ended") == caplog.text.count(words) == odd


async def test_a_stranger_may_send_no_more_than_in_the_hello(door: CallDoor) -> None:
    async with raw_caller(door, anonymous=True) as raw:
        await raw.send(requested("r1", "t/echo", {"value": "x" * (HELLO_MAX_FRAME // 2)}))
        assert len((await raw.receive())["payload"]["output"]) == HELLO_MAX_FRAME // 2
        await raw.write(frame(b"x" * (HELLO_MAX_FRAME + 1)))
        assert "a frame of" in await goaway_of(raw)


# --- anything at any point --------------------------------------------------------------------------------------------

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats()
    | st.text(max_size=10)
    | st.binary(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
NAMES = ("t/echo", "t/wait", "t/count", "t/follow", "t/secret", "t/fail", "t/none", "services/list", "")
ids = st.sampled_from(("r1", "r2", "r3")) | st.text(max_size=3)
plausible = st.one_of(
    st.builds(
        lambda id, name, value, more: requested(id, name, value, **more),
        ids,
        st.sampled_from(NAMES),
        st.sampled_from(({"value": 1}, {"to": 50}, {}, None)) | values,
        st.fixed_dictionaries(
            {},
            optional={
                "credit": st.integers(0, 40) | values,
                "timeout_ms": st.integers(0, 5) | values,
                "auth_token": values,
                "peer": values,
                "forwarded_for": values,
                "traceparent": values,
            },
        ),
    ),
    st.builds(
        lambda kind, id, payload: {"type": kind, "id": id, "payload": payload},
        st.sampled_from(("call.aborted", "call.credit", "call.responded", "call.error", "call.completed", "call.x")),
        ids,
        st.fixed_dictionaries({}, optional={"n": st.integers(-1, 100), "reason": values}) | values,
    ),
)
steps = st.lists(
    plausible.map(lambda one: ("say", one))
    | values.map(lambda one: ("say", one))
    | st.binary(min_size=1, max_size=30).map(lambda data: ("frame", data))
    | st.binary(max_size=30).map(lambda data: ("bytes", data))
    | st.sampled_from([("turn", None), ("stream", None), ("reset", None)]),
    max_size=15,
)


@settings(
    max_examples=60,
    suppress_health_check=[
        HealthCheck.too_slow,
        HealthCheck.function_scoped_fixture,
        HealthCheck.differing_executors,
    ],
)
@given(script=steps, codec=st.sampled_from(["msgpack", "json"]))
async def test_anything_at_any_point_of_a_session_is_answered_or_ends_it(
    door: CallDoor, script: list[tuple[str, Any]], codec: str
) -> None:
    before = asyncio.all_tasks()
    async with raw_caller(door, codec=codec) as raw:
        current = raw
        for what, value in script:
            try:
                if what == "say":
                    await current.write(frame(_lenient(value, codec)))
                elif what == "frame":
                    await current.write(frame(value))
                elif what == "bytes":
                    await current.write(value)
                elif what == "stream":
                    current = raw.on(await raw.connection.open_stream())
                elif what == "reset":
                    current.stream.reset()
                    current = raw
                else:
                    await asyncio.sleep(0.001)
            except AlknetError:
                break
    await eventually(lambda: not asyncio.all_tasks() - before, "every task of the session has ended")
    assert door.sessions_of("alice") == []
    async with raw_caller(door) as raw:
        await raw.send(requested("r1", "t/add", {"a": 1, "b": 2}))
        assert (await raw.receive())["payload"] == {"output": 3}
    await eventually(lambda: not asyncio.all_tasks() - before, "every task of the session has ended")


def _lenient(value: Any, codec: str) -> bytes:
    """A body that says `value`, also where the codec of this project would refuse to."""
    if codec == "msgpack":
        try:
            return bytes(msgpack.packb(value))
        except (OverflowError, ValueError):
            return b"\xc0"
    try:
        return CODECS["json"].encode(value)
    except ValueError:
        return b"null"


async def test_bytes_by_chance_never_keep_the_door_from_serving(door: CallDoor) -> None:
    chance = random.Random(4)
    for _ in range(50):
        async with raw_caller(door) as raw:
            await raw.write(chance.randbytes(chance.randrange(1, 3000)))
            raw.stream.reset()
    async with door.session() as link:
        assert (await link.session.call("services/list"))["operations"]
