"""The call protocol over a WebSocket: who is let in, what it carries, and what frames cannot do."""

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from alknet.alpn.errors import StreamBroken, StreamClosed
from alknet.alpn.streams import Address, BaseConnection
from alknet.call.client import Link, over_stream
from alknet.call.doorkeeper import DoorLimits
from alknet.call.errors import CallError
from alknet.call.frames import frame
from alknet.gateway import protocol
from alknet.gateway.settings import MAX_FRAGMENTS, GatewaySettings
from alknet.gateway.websocket import SUBPROTOCOL, TICKET_SUBPROTOCOL, WebSocketStream
from testkit import services
from testkit.gateway import GatewayDoor, RawHttp, WebSocketFrames, masked
from testkit.polling import eventually

PEERS = {"alice": ("*",), "bob": ("other",)}
APP = "https://app.example"
HERE = "http://localhost:8022"
CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10


def _door(**facts: Any) -> GatewayDoor:
    return GatewayDoor(services, peers=PEERS, settings=GatewaySettings(mcp=False, **facts))


class _Client:
    """The other end, for the native client: a stream over frames of a WebSocket."""

    def __init__(self, http: RawHttp) -> None:
        self._http = http
        self._frames = WebSocketFrames(http)

    async def receive(self) -> Any:
        try:
            opcode, payload = await self._frames.next()
        except (asyncio.IncompleteReadError, ConnectionError, TimeoutError):
            return {"type": "websocket.disconnect"}
        return {"type": "websocket.receive", "bytes": payload} if opcode == BINARY else {"type": "websocket.disconnect"}

    async def send(self, message: Any) -> None:
        if message["type"] == "websocket.send":
            await self._http.send(masked(BINARY, message["bytes"], mask=b"\0\0\0\0"))


@asynccontextmanager
async def _session(
    http: RawHttp, *, peer: str | None = "alice", protocols: tuple[str, ...] = ()
) -> AsyncIterator[Link]:
    answer = await http.upgrade(SUBPROTOCOL, *protocols, peer=peer)
    assert (answer.status, answer.headers["sec-websocket-protocol"]) == (101, SUBPROTOCOL)
    client = _Client(http)
    stream = WebSocketStream(client.receive, client.send, max_message=2**24)
    carrier = BaseConnection(alpn="http/1.1", transport="websocket", remote=Address("127.0.0.1", 1))
    link = await over_stream(stream, carrier)  # type: ignore[arg-type]
    try:
        yield link
    finally:
        await link.session.aclose()


async def _opened(http: RawHttp, **how: Any) -> WebSocketFrames:
    assert (await http.upgrade(SUBPROTOCOL, **how)).status == 101
    return WebSocketFrames(http)


# --- who is let in ----------------------------------------------------------------------------------------------------


async def test_calls_and_subscriptions_go_both_ways() -> None:
    async with _door() as door, door.connect() as http, _session(http) as link:
        assert await link.session.call("test/identity", {}) == {"peer": "alice", "surface": "websocket"}
        text = await link.session.call("test/text", {"size": 300_000})
        assert text == "x" * 300_000
        with pytest.raises(CallError) as refused:
            await link.session.call("no/such", {})
        assert refused.value.code == "NOT_FOUND"


async def test_nobody_may_call_what_is_public() -> None:
    async with _door() as door, door.connect() as http, _session(http, peer=None) as link:
        assert (await link.session.call("test/identity", {}))["peer"] is None
        with pytest.raises(CallError, match="authentication required"):
            await link.session.call("test/echo", {"value": 1})


async def test_places_of_nobody_are_given_back_whatever_happens() -> None:
    async with _door() as door:
        door.doors.limits = DoorLimits(half_open=1000, connections_per_address=8)
        for what in (b"", masked(BINARY, b"nonsense"), masked(TEXT, b"x"), masked(CLOSE), b"\xff\xff\xff"):
            for _ in range(3):
                async with door.connect() as http:
                    await http.upgrade(SUBPROTOCOL, peer=None)
                    await http.send(what)
                    http.close()
        await eventually(lambda: not door.doors._anonymous._connections, "the places are free")
        async with door.connect() as http, _session(http, peer=None) as link:
            assert await link.session.call("test/identity", {})


@pytest.mark.parametrize("protocols", [(), ("other",), ("alknet.call.v2",)])
async def test_the_subprotocol_has_to_be_asked_for(protocols: tuple[str, ...]) -> None:
    async with _door() as door, door.connect() as http:
        answer = await http.upgrade(*protocols)
        assert (answer.status, answer.code) == (400, "INVALID_INPUT")
        assert await http.rest() == b""


async def test_without_an_upgrade_there_is_nothing() -> None:
    async with _door() as door, door.connect() as http:
        answer = await http.ask("GET", "/alknet/call")
        assert (answer.status, answer.headers["upgrade"]) == (426, "websocket")


async def test_a_wrong_token_and_a_foreign_page_open_none() -> None:
    async with _door() as door:
        door.tokens["carol"] = "alk_aaaaaaaa_" + "b" * 27
        for how, status in (
            ({"peer": "carol"}, 401),
            ({"origin": "http://evil.example"}, 403),
            ({"origin": "null"}, 403),
        ):
            async with door.connect() as http:
                assert (await http.upgrade(SUBPROTOCOL, **how)).status == status  # type: ignore[arg-type]
                assert await http.rest() == b""


async def _ticket(http: RawHttp, origin: str | None) -> str:
    headers = [] if origin is None else [("Origin", origin)]
    text: str = (await http.ask("POST", "/ticket", None, *headers)).value["ticket"]
    return TICKET_SUBPROTOCOL + text


async def test_a_page_opens_one_with_a_ticket_once() -> None:
    async with _door() as door, door.connect() as http:
        ticket = await _ticket(http, HERE)
        async with door.connect() as page:
            answer = await page.upgrade(SUBPROTOCOL, ticket, peer=None, origin=HERE)
            assert (answer.status, answer.headers["sec-websocket-protocol"]) == (101, SUBPROTOCOL)
            assert door.router.connections[1].identity is not None
        async with door.connect() as page:
            answer = await page.upgrade(SUBPROTOCOL, ticket, peer=None, origin=HERE)
            assert (answer.status, answer.value["denial_id"][:4]) == (401, "den_")
        assert door.failed == ["127.0.0.1"]


async def test_a_ticket_is_for_pages_of_one_origin() -> None:
    async with _door(origins=(APP, "https://other.example")) as door, door.connect() as http:
        for made, used in ((APP, "https://other.example"), (APP, None), (None, APP), (HERE, APP)):
            ticket = await _ticket(http, made)
            for origin in (used, made):
                async with door.connect() as page:
                    assert (await page.upgrade(SUBPROTOCOL, ticket, peer=None, origin=origin)).status == 401


async def test_a_ticket_of_a_token_that_is_gone_is_none() -> None:
    async with _door() as door, door.connect() as http:
        ticket = await _ticket(http, None)
        door.change(PEERS, without=["alice"])
        async with door.connect() as page:
            assert (await page.upgrade(SUBPROTOCOL, ticket, peer=None)).status == 401


# --- how it ends ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["close", "reset", "goodbye"])
async def test_what_a_client_that_is_gone_called_ends_within_a_fifth_of_a_second(
    how: str, caplog: pytest.LogCaptureFixture
) -> None:
    services.seen_marks.clear()
    async with _door() as door, door.connect() as http:

        async def call(link: Link) -> None:
            with pytest.raises(CallError):
                await link.session.call("test/wait", {"mark": "ws"})

        async with _session(http) as link, asyncio.TaskGroup() as group:
            group.create_task(call(link))
            mark = await eventually(lambda: services.seen_marks.get("ws"), "it runs")
            gone = time.monotonic()
            if how == "goodbye":
                await http.send(masked(CLOSE, b"\x03\xe8"))
            else:
                getattr(http, how)()
            await eventually(lambda: mark["ended"] is not None, "it has ended")
            assert (mark["ended"] - gone < 0.2, mark["how"]) == (True, "CancelledError")
        await eventually(lambda: not door.live, "nothing is left")
        assert door.bench.unmatched() == {}
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


async def test_access_that_is_taken_away_ends_it() -> None:
    async with _door() as door, door.connect() as http, _session(http) as link:
        door.reload({"bob": ("*",)})
        await asyncio.wait_for(link.session.wait_ended(), 2)
        http.close()
        await eventually(lambda: not door.live, "it is over")


async def test_one_who_does_not_say_goodbye_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "WEBSOCKET_CLOSE_S", 0.05)
    async with _door() as door, door.connect() as http:
        frames = await _opened(http)
        door.reload({"bob": ("*",)})
        await frames.close_code()
        await eventually(lambda: not door.live, "it is over")


async def test_a_call_finishes_while_the_node_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "WEBSOCKET_CLOSE_S", 0.05)
    async with _door() as door, door.connect() as http, _session(http) as link:
        async with asyncio.TaskGroup() as group:
            call = group.create_task(link.session.call("test/wait", {"mark": "drained", "seconds": 0.2}))
            await eventually(lambda: services.seen_marks.get("drained"), "it runs")
            await door.router.shutdown(asyncio.get_running_loop().time() + 5)
        assert call.result() == "waited"


# --- frames -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (masked(TEXT, b"x"), 1003),
        (masked(TEXT, b"\xff"), 1003),
        (masked(BINARY), 1002),
        (masked(BINARY, b"x" * 70_000), 1009),
        (bytes([0x82, 0x01]) + b"x", 1002),
        (bytes([0xC2, 0x81, 0, 0, 0, 0]) + b"x", 1002),
        (masked(3, b"x"), 1002),
        (masked(11, b"x"), 1002),
        (masked(CONTINUATION, b"x"), 1002),
        (masked(BINARY, b"x", fin=False) + masked(BINARY, b"x"), 1002),
        (masked(PING, b"x" * 126), 1002),
        (masked(PING, fin=False), 1002),
        (masked(CLOSE, b"\x03"), 1002),
        (masked(CLOSE, b"\x03\xed"), 1002),
        (masked(CLOSE, b"\x00\x01"), 1002),
        (masked(CLOSE, b"\x03\xe8\xff"), 1007),
        (masked(CLOSE, b"\x0b\xb8"), 3000),
        (bytes([0x82, 0xFF]) + b"\xff" * 8 + b"\0\0\0\0", 1009),
        (masked(BINARY, fin=False) + masked(CONTINUATION, fin=False) * (MAX_FRAGMENTS + 1), 1008),
    ],
    ids=[
        "text", "bad text", "empty", "too large for nobody", "not masked", "reserved bit", "reserved opcode",
        "reserved control", "continues nothing", "within another", "large ping", "ping in parts", "half a code",
        "code 1005", "code 1", "bad reason", "good code", "giant", "empty fragments",
    ],
)  # fmt: skip
async def test_a_wrong_frame_ends_it_with_the_right_code(
    data: bytes, code: int, caplog: pytest.LogCaptureFixture
) -> None:
    async with _door() as door, door.connect() as http:
        frames = await _opened(http, peer=None)
        await http.send(data)
        assert await frames.close_code() == code
        http.close()
        await eventually(lambda: not door.live, "it is over")
        await eventually(lambda: not door.doors._anonymous._connections, "the place is free")
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


async def test_a_message_in_fragments_is_a_message() -> None:
    async with _door() as door, door.connect() as http:
        frames = await _opened(http)
        await http.send(masked(BINARY, b"{", fin=False) + masked(PING, b"!") + masked(CONTINUATION, b"}"))
        assert await frames.next() == (PONG, b"!")
        assert (await frames.next())[0] == BINARY  # that this was no hello


async def test_pongs_do_not_pile_up_for_one_who_reads_none() -> None:
    async with _door() as door, door.connect(receive_bytes=4096) as http:
        await _opened(http)
        (one,) = door.handler._protocols
        http.writer.transport.pause_reading()  # type: ignore[attr-defined]
        pings = masked(PING, b"x" * 125) * 1000
        for _ in range(40):
            http.writer.write(pings)
            await asyncio.sleep(0)
        await eventually(lambda: not http.writer.transport.get_write_buffer_size() or not door.live, "all are read")
        assert one.transport.get_write_buffer_size() < 600_000


@given(st.binary(max_size=200), st.integers(0, 200))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_bytes_break_it(data: bytes, at: int) -> None:
    async def check() -> None:
        failures: list[Any] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: failures.append(context))
        async with _door() as door, door.connect() as http:
            await _opened(http, peer=None)
            await http.send(data[:at])
            await http.send(data[at:])
            http.close()
            await eventually(lambda: not door.live, "it is over")
            await eventually(lambda: not door.doors._anonymous._connections, "the place is free")
        assert failures == []

    asyncio.run(check())


# --- the stream alone -------------------------------------------------------------------------------------------------


def _stream(*messages: Any, send: Callable[[Any], Any] | None = None) -> tuple[WebSocketStream, list[Any]]:
    left, sent = list(messages), []

    async def receive() -> Any:
        return left.pop(0) if left else await asyncio.Event().wait()

    async def keep(message: Any) -> None:
        sent.append(message)

    return WebSocketStream(receive, send or keep, max_message=100), sent


def _message(body: bytes | None) -> Any:
    return {"type": "websocket.receive", "bytes": body, "text": None if body else "x"}


async def test_messages_are_read_as_frames_and_written_back_as_messages() -> None:
    body = os.urandom(50)
    stream, sent = _stream(_message(body), {"type": "websocket.disconnect"})
    read = await stream.read(3)
    while part := await stream.read(10):
        read += part
    assert read == frame(body)
    await stream.write(frame(b"abc")[:3])
    assert sent == []
    await stream.write(frame(b"abc")[3:] + frame(b"d"))
    assert [one["bytes"] for one in sent] == [b"abc", b"d"]


@pytest.mark.parametrize(("body", "code"), [(None, 1003), (b"x" * 101, 1009)])
async def test_what_is_no_envelope_ends_the_stream(body: bytes | None, code: int) -> None:
    stream, sent = _stream(_message(body))
    with pytest.raises(StreamBroken):
        await stream.read()
    assert [(one["type"], one["code"]) for one in sent] == [("websocket.close", code)]
    with pytest.raises(StreamClosed):
        await stream.read()


async def test_a_closed_stream_is_closed_once() -> None:
    stream, sent = _stream()
    await stream.aclose()
    await stream.aclose()
    stream.reset()
    assert [one["code"] for one in sent] == [1000]
    assert stream.closed.is_set()
    with pytest.raises(StreamClosed):
        await stream.write(b"x")
