"""`StreamTransport` beyond what every carrier owes: the orders of events that only a slow or strange stream brings."""

import asyncio
from typing import Any

import pytest

from alknet.alpn.attach import HIGH_WATER_BYTES, StreamTransport
from alknet.alpn.errors import StreamBroken, StreamClosed
from alknet.alpn.streams import READ_SIZE
from testkit.polling import eventually, settled

from .conformance import Recorder


class SlowStream:
    """A stream whose every step waits for the test: what is put into `arriving` is read, `gate` lets writes and the
    close go on."""

    def __init__(self) -> None:
        self.arriving: asyncio.Queue[bytes | Exception] = asyncio.Queue()
        self.gate = asyncio.Event()
        self.written: list[bytes] = []
        self.ended: list[str] = []
        self._closed = asyncio.Event()

    async def read(self, max_bytes: int = READ_SIZE) -> bytes:
        async with asyncio.TaskGroup() as group:
            arrived = group.create_task(self.arriving.get())
            closed = group.create_task(self._closed.wait())
            await asyncio.wait((arrived, closed), return_when=asyncio.FIRST_COMPLETED)
            arrived.cancel()
            closed.cancel()
        if self._closed.is_set():
            raise StreamClosed("closed by this side")
        result = arrived.result()
        if isinstance(result, Exception):
            raise result
        return result

    async def write(self, data: bytes) -> None:
        await self.gate.wait()
        if self._closed.is_set():
            raise StreamClosed("closed by this side")
        self.written.append(data)

    async def write_eof(self) -> None:
        self.ended.append("eof")

    def reset(self) -> None:
        self.ended.append("reset")
        self._closed.set()
        self.gate.set()

    async def aclose(self) -> None:
        self._closed.set()
        await self.gate.wait()
        self.ended.append("aclose")

    async def attach(self, protocol: asyncio.Protocol) -> asyncio.Transport:
        raise NotImplementedError


class Failing(Recorder):
    """Raises in one of its callbacks."""

    def __init__(self, callback: str) -> None:
        super().__init__()
        setattr(self, callback, self._fail)

    def _fail(self, *_: object) -> bool:
        raise ValueError("a mistake in a protocol")


def started(protocol: Recorder | None = None) -> tuple[StreamTransport, SlowStream, Recorder]:
    stream, protocol = SlowStream(), protocol or Recorder()
    return StreamTransport.start(stream, protocol), stream, protocol


async def lost(protocol: Recorder) -> Exception | None:
    """What the transport ended with; it says so once."""
    await eventually(lambda: protocol.lost_with, "connection_lost")
    await settled(lambda: len(protocol.calls))
    (exc,) = protocol.lost_with
    return exc


async def test_data_that_was_being_read_is_held_back_while_paused() -> None:
    transport, stream, protocol = started()
    await asyncio.sleep(0)  # the transport is waiting in read now
    transport.pause_reading()
    stream.arriving.put_nowait(b"x")
    await settled(lambda: len(protocol.data))
    assert protocol.data == b""
    transport.resume_reading()
    await eventually(lambda: protocol.data == b"x", "data after resuming")
    transport.abort()


async def test_the_end_is_held_back_while_paused() -> None:
    transport, stream, protocol = started()
    await asyncio.sleep(0)
    transport.pause_reading()
    stream.arriving.put_nowait(b"")
    await settled(lambda: len(protocol.calls))
    assert protocol.calls == ["made"]
    stream.gate.set()
    transport.resume_reading()
    assert await lost(protocol) is None
    assert protocol.calls == ["made", "eof", "lost"]


async def test_closing_while_reading_is_paused_ends_it() -> None:
    transport, stream, protocol = started()
    transport.pause_reading()
    stream.gate.set()
    transport.close()
    assert await lost(protocol) is None


async def test_a_close_that_takes_time_is_no_error_to_the_protocol() -> None:
    transport, stream, protocol = started()
    await asyncio.sleep(0)
    transport.close()
    await settled(lambda: len(protocol.calls))
    assert protocol.calls == ["made"], "it ends only when the stream is closed"
    stream.gate.set()
    assert await lost(protocol) is None


async def test_nothing_is_delivered_after_close() -> None:
    transport, stream, protocol = started()
    await asyncio.sleep(0)
    transport.write(b"last words")
    transport.close()
    stream.arriving.put_nowait(b"too late")
    await settled(lambda: len(protocol.data))
    stream.gate.set()
    assert await lost(protocol) is None
    assert (bytes(protocol.data), stream.written, stream.ended) == (b"", [b"last words"], ["aclose"])


async def test_abort_drops_what_is_unsent() -> None:
    transport, stream, protocol = started()
    transport.write(b"never sent")
    await asyncio.sleep(0)
    transport.abort()
    assert transport.get_write_buffer_size() == 0
    assert await lost(protocol) is None
    assert (stream.written, stream.ended) == ([], ["reset"])


async def test_a_broken_stream_is_reset_and_reported_with_its_cause() -> None:
    transport, stream, protocol = started()
    stream.arriving.put_nowait(StreamBroken("the network went away"))
    exc = await lost(protocol)
    assert isinstance(exc, ConnectionResetError)
    assert isinstance(exc.__cause__, StreamBroken)
    assert transport.is_closing()
    assert stream.ended == ["reset"]


@pytest.mark.parametrize("callback", ["data_received", "eof_received", "resume_writing"])
async def test_a_protocol_that_fails_loses_its_connection(callback: str) -> None:
    told: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
    transport, stream, protocol = started(Failing(callback))
    transport.write(b"x" * (HIGH_WATER_BYTES + 1))
    stream.gate.set()
    stream.arriving.put_nowait(b"" if callback == "eof_received" else b"x")
    assert isinstance(await lost(protocol), ValueError)
    assert [type(context["exception"]) for context in told] == [ValueError]
    assert "reset" in stream.ended


async def test_writing_after_the_end_is_a_mistake_and_after_close_is_ignored() -> None:
    transport, stream, protocol = started()
    stream.gate.set()
    transport.write_eof()
    with pytest.raises(RuntimeError):
        transport.write(b"x")
    await eventually(lambda: stream.ended == ["eof"], "the end is sent")
    transport.write_eof()
    await settled(lambda: len(stream.ended))
    transport.close()
    assert await lost(protocol) is None
    assert stream.ended == ["eof", "aclose"]
    other, stream, _ = started()
    other.close()
    other.write(b"x")
    assert other.get_write_buffer_size() == 0
    other.abort()


async def test_the_end_follows_what_was_written() -> None:
    transport, stream, _ = started()
    transport.write(b"x" * (2 * HIGH_WATER_BYTES))
    transport.write_eof()
    stream.gate.set()
    await eventually(lambda: stream.ended == ["eof"], "the end is sent")
    assert sum(map(len, stream.written)) == 2 * HIGH_WATER_BYTES
    transport.abort()


async def test_a_protocol_can_be_replaced() -> None:
    transport, stream, first = started()
    second = Recorder()
    transport.set_protocol(second)
    assert transport.get_protocol() is second
    stream.arriving.put_nowait(b"x")
    await eventually(lambda: second.data == b"x", "data at the new protocol")
    transport.abort()
    assert await lost(second) is None
    assert first.calls == ["made"]


async def test_write_limits_follow_asyncio() -> None:
    transport, _, protocol = started()
    assert transport.get_write_buffer_limits() == (HIGH_WATER_BYTES // 4, HIGH_WATER_BYTES)
    transport.set_write_buffer_limits(low=10)
    assert transport.get_write_buffer_limits() == (10, 40)
    transport.set_write_buffer_limits(high=8)
    assert transport.get_write_buffer_limits() == (2, 8)
    with pytest.raises(ValueError):
        transport.set_write_buffer_limits(high=1, low=2)
    transport.write(b"x" * 5)
    transport.set_write_buffer_limits(high=0)
    assert protocol.calls == ["made", "pause"]
    transport.abort()


async def test_it_has_nothing_to_tell_about_a_socket() -> None:
    transport, _, _ = started()
    assert transport.get_extra_info("socket") is None
    assert transport.get_extra_info("peername", "nobody") == "nobody"
    transport.abort()
