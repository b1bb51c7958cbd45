"""What runs on a byte channel: how it begins, what ends it, and what the other side hears of that."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from alknet.alpn.errors import StreamBroken
from alknet.alpn.streams import Stream
from alknet.call import channel_serving
from alknet.call.channel_states import WINDOW_BYTES
from alknet.call.envelopes import ChannelRequested
from alknet.call.errors import CallError
from alknet.call.serving import Nobody
from alknet.call.session import Session
from testkit.polling import eventually
from testkit.session_pair import Service, memory_ends, one_stream_ends, session_pair

CARRIERS = {"one stream": one_stream_ends, "many streams": memory_ends}
DEADLINE_S = 15.0

pytestmark = [pytest.mark.usefixtures("nothing_is_left"), pytest.mark.parametrize("carrier", CARRIERS)]


class Serving(Nobody):
    """Accepts every channel, and runs what the test wants on it."""

    def __init__(self, serve: Callable[[Stream], Awaitable[None]]) -> None:
        self.service = Service(serve)

    async def accept_channel(self, request: ChannelRequested) -> Service:
        return self.service


@asynccontextmanager
async def served(carrier: str, server: Nobody) -> AsyncIterator[tuple[Session, Session]]:
    async with (
        asyncio.timeout(DEADLINE_S),
        CARRIERS[carrier]() as ends,
        session_pair(ends, servers=(Nobody(), server)) as sessions,
    ):
        yield sessions


async def read_all(stream: Stream) -> bytes:
    received = bytearray()
    while data := await stream.read():
        received += data
    return bytes(received)


async def waits(stream: Stream) -> None:
    """Runs until it is cancelled."""
    await asyncio.Event().wait()


def is_free(session: Session) -> bool:
    return session.serving.is_idle.is_set() and not session._machine.channels.channels


async def test_its_return_closes_the_channel_in_order(carrier: str) -> None:
    async def echo(stream: Stream) -> None:
        await stream.write(await read_all(stream))

    async with served(carrier, Serving(echo)) as (near, far):
        data = bytes(2 * WINDOW_BYTES)
        stream = await near.open_channel("echo")
        assert not far.serving.is_idle.is_set()
        await stream.write(data[: WINDOW_BYTES // 2])
        await stream.write_eof()
        assert await read_all(stream) == data[: WINDOW_BYTES // 2]
        await stream.aclose()
        await eventually(lambda: is_free(far), "its place is free")
        assert near._machine.channels.channels == {}


async def test_a_protocol_on_it_may_still_send_when_it_returns(carrier: str) -> None:
    async def talk(stream: Stream) -> None:
        transport = await stream.attach(asyncio.Protocol())
        transport.write(bytes(2 * WINDOW_BYTES))

    async with served(carrier, Serving(talk)) as (near, far):
        stream = await near.open_channel("talk")
        assert await read_all(stream) == bytes(2 * WINDOW_BYTES)
        await stream.aclose()
        await eventually(lambda: is_free(far), "its place is free")


async def test_who_does_not_take_the_last_bytes_is_not_waited_for(
    carrier: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channel_serving, "LINGER_S", 0.05)

    async def talk(stream: Stream) -> None:
        transport = await stream.attach(asyncio.Protocol())
        transport.write(bytes(4 * WINDOW_BYTES))

    async with served(carrier, Serving(talk)) as (near, far):
        stream = await near.open_channel("talk")
        await eventually(lambda: is_free(far), "its place is free")
        with pytest.raises(StreamBroken, match="what was sent last is not read"):
            await read_all(stream)
        stream.reset()


@pytest.mark.parametrize(
    ("error", "words"),
    [(CallError("UNAVAILABLE", "the disk is full"), "the disk is full"), (ValueError("secret"), "the service failed")],
)
async def test_what_it_raises_resets_the_channel_with_words(
    carrier: str, error: Exception, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(stream: Stream) -> None:
        await stream.read()
        raise error

    async with served(carrier, Serving(fail)) as (near, far):
        stream = await near.open_channel("fail")
        await stream.write(b"x")
        with pytest.raises(StreamBroken, match=words) as caught:
            await read_all(stream)
        assert "secret" not in str(caught.value)
        assert ("a channel failed" in caplog.text) is isinstance(error, ValueError)
        stream.reset()
        await eventually(lambda: is_free(far), "its place is free")


async def test_an_other_side_that_goes_away_is_no_failure(carrier: str, caplog: pytest.LogCaptureFixture) -> None:
    heard: list[BaseException] = []

    async def read(stream: Stream) -> None:
        try:
            await read_all(stream)
        except StreamBroken as exc:
            heard.append(exc)
            raise

    async with served(carrier, Serving(read)) as (near, far):
        stream = await near.open_channel("read")
        stream.reset("no more")
        await eventually(lambda: is_free(far), "its place is free")
    assert [str(exc) for exc in heard] == ["the other side closed the channel: no more"]
    assert caplog.text == ""


async def test_a_refusal_reaches_the_other_side_as_it_is(carrier: str) -> None:
    class Refusing(Nobody):
        async def accept_channel(self, request: ChannelRequested) -> Any:
            raise CallError("FORBIDDEN", "not you", denial_id="d1")

    async with served(carrier, Refusing()) as (near, far):
        with pytest.raises(CallError, match="not you") as caught:
            await near.open_channel("x")
        assert (caught.value.code, caught.value.denial_id) == ("FORBIDDEN", "d1")
        await eventually(lambda: is_free(far), "its place is free")


async def test_a_mistake_while_it_is_accepted_is_logged_and_not_told(
    carrier: str, caplog: pytest.LogCaptureFixture
) -> None:
    class Mistaken(Nobody):
        async def accept_channel(self, request: ChannelRequested) -> Any:
            raise ValueError("secret")

    async with served(carrier, Mistaken()) as (near, _):
        with pytest.raises(CallError, match="the service failed") as caught:
            await near.open_channel("x")
    assert caught.value.code == "INTERNAL"
    assert "secret" not in str(caught.value)
    assert "a channel could not be accepted" in caplog.text


async def test_what_is_forbidden_meanwhile_ends_with_the_reason(carrier: str) -> None:
    server = Serving(waits)
    async with served(carrier, server) as (near, far):
        stream = await near.open_channel("x")
        far.serving.recheck()
        await stream.write(b"still")
        server.service.denial = CallError("FORBIDDEN", "taken away")
        far.serving.recheck()
        with pytest.raises(StreamBroken, match="taken away"):
            await read_all(stream)
        await server.service.ended.wait()
        stream.reset()
        await eventually(lambda: is_free(far), "its place is free")


async def test_what_is_forbidden_before_it_begins_gets_a_channel_that_is_over(carrier: str) -> None:
    """It is told by being run, so that it lets go of what it holds."""

    async def read(stream: Stream) -> None:
        await stream.read()

    server = Serving(read)
    server.service.denial = CallError("FORBIDDEN", "taken away")
    async with served(carrier, server) as (near, far):
        with pytest.raises((CallError, StreamBroken), match="taken away"):
            await read_all(await near.open_channel("x"))
        await server.service.ended.wait()
        await eventually(lambda: is_free(far), "its place is free")
        for one in list(near._machine.channels.channels):
            near._machine.channels.close(one)


@pytest.mark.parametrize("way", ["near", "far", "lost"])
async def test_with_the_session_it_is_cancelled(carrier: str, way: str) -> None:
    server = Serving(waits)
    async with served(carrier, server) as (near, far):
        await near.open_channel("x")
        if way == "lost":
            near.connection.close()
        else:
            await (near if way == "near" else far).aclose()
        await server.service.ended.wait()
        await eventually(lambda: is_free(far), "its place is free")


async def test_what_was_given_up_while_it_was_accepted_is_still_run(carrier: str) -> None:
    """Whoever accepts may not hear the cancellation; then it hears from its channel."""
    went_on = asyncio.Event()
    heard: list[str] = []

    async def read(stream: Stream) -> None:
        try:
            await stream.read()
        except StreamBroken as exc:
            heard.append(str(exc))
            raise

    class Stubborn(Serving):
        async def accept_channel(self, request: ChannelRequested) -> Service:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                await went_on.wait()
            return self.service

    async with served(carrier, Stubborn(read)) as (near, far):
        with pytest.raises(CallError, match="in time"):
            await near.open_channel("x", timeout_s=0.02)
        went_on.set()
        await eventually(lambda: heard, "it has heard of it")
        await eventually(lambda: is_free(far), "its place is free")
    assert heard == ["the other side gave up the channel"]
