"""One HTTP connection: the bounds of what it reads, the time it is given, and how it ends."""

import asyncio
import logging
import time
from typing import Any

import pytest

from alknet.gateway import protocol, server
from alknet.gateway.settings import (
    MAX_HEADER_BYTES,
    MAX_HEADERS,
    MAX_URL_BYTES,
    REQUEST_OVERHEAD_BYTES,
    GatewaySettings,
)
from testkit import services
from testkit.gateway import GatewayDoor, RawHttp, request
from testkit.polling import eventually, settled

HEALTH = request("GET", "/healthz")
MAX_BODY = 4096
SOON_S = 0.05
NOT_SOON_S = 30.0


def _door(**settings: Any) -> GatewayDoor:
    facts = {"mcp": False, "max_body": MAX_BODY} | settings
    return GatewayDoor(services, settings=GatewaySettings(**facts))


async def _refused(http: RawHttp, data: bytes) -> tuple[int, str]:
    """Status and message of the answer to `data`, after which the connection has to end."""
    await http.send(data)
    answer = await http.answer()
    assert answer.headers["connection"] == "close"
    assert "date" in answer.headers
    assert answer.code == "INVALID_INPUT"
    assert await http.rest() == b""
    http.close()
    return answer.status, answer.value["message"]


# --- how much is read ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "status", "words"),
    [
        (request("GET", "/" + "x" * MAX_URL_BYTES), 414, "8192 bytes"),
        (request("GET", "/healthz", b"", *[("X", "y")] * MAX_HEADERS), 431, "100 headers"),
        (request("GET", "/healthz", b"", ("X", "y" * MAX_HEADER_BYTES)), 431, "32768 bytes"),
        (request("GET", "http://localhost/healthz"), 400, "a path"),
        (request("CONNECT", "localhost:22"), 400, "a path"),
        (request("OPTIONS", "*"), 400, "a path"),
        (b"GET /healthz HTTP/2.0\r\nHost: localhost\r\n\r\n", 505, "HTTP/1.1"),
        (b"GET /healthz\r\n\r\n", 505, "HTTP/1.1"),
        (b"\x16\x03\x01\x00\x05hello\r\n\r\n", 400, "nothing was done"),
    ],
    ids=["url", "headers", "header", "absolute", "authority", "asterisk", "h2", "0.9", "noise"],
)
async def test_a_request_beyond_its_bounds_is_refused(data: bytes, status: int, words: str) -> None:
    async with _door() as door, door.connect() as http:
        found, message = await _refused(http, data)
        assert found == status
        assert words in message
        await eventually(lambda: not door.live, "the connection is over")


async def test_what_is_just_within_the_bounds_is_served() -> None:
    path = "/healthz?" + "x=1&" * ((MAX_URL_BYTES - 16) // 4)
    headers = [("X", "y" * 200)] * (MAX_HEADERS - 1)
    async with _door() as door, door.connect() as http:
        for data in (request("GET", path), request("GET", "/healthz", b"", *headers)):
            await http.send(data)
            assert (await http.answer()).status == 200


async def test_a_header_that_never_ends_is_refused_while_it_arrives() -> None:
    async with _door() as door, door.connect() as http:
        await http.send(b"GET /healthz HTTP/1.1\r\nX: ")
        for _ in range(40):
            http.writer.write(b"y" * 1024)
            await asyncio.sleep(0)
        assert (await http.answer()).status == 431


async def test_a_header_in_single_bytes_is_a_header() -> None:
    async with _door() as door, door.connect() as http:
        for byte in HEALTH:
            await http.send(bytes([byte]))
        assert (await http.answer()).status == 200


@pytest.mark.parametrize("is_chunked", [False, True])
async def test_a_body_has_a_bound_with_a_length_and_in_chunks(is_chunked: bool) -> None:
    async with _door() as door, door.connect() as http:
        body = b'{"operation": "test/echo", "input": {"value": "%b"}}' % (b"x" * MAX_BODY)
        data = http.asked("POST", "/call", None, ("Content-Type", "application/json"))[:-2]
        if is_chunked:
            data += b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
        else:
            data += b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
        await http.send(data)
        answer = await http.answer()
        assert (answer.status, answer.code) == (413, "RESOURCE_EXHAUSTED")
        assert answer.headers["connection"] == "close"
        assert await http.rest() == b""


async def test_a_body_of_many_small_chunks_has_a_bound_too() -> None:
    """What stands around the chunks counts: a body of nothing but chunk extensions would never end."""
    async with _door() as door, door.connect() as http:
        await http.send(request("POST", "/call", b"", ("Transfer-Encoding", "chunked")))
        chunk = b"1;" + b"x" * 1000 + b"\r\n \r\n"
        for _ in range(10 * (MAX_BODY + REQUEST_OVERHEAD_BYTES) // len(chunk)):
            await http.send(chunk)
        assert (await http.answer()).status == 413
        assert await http.rest() == b""


async def test_trailers_are_no_headers() -> None:
    body = b'{"operation": "test/identity"}'
    async with _door() as door, door.connect() as http:
        await http.send(
            request("POST", "/call", b"", ("Content-Type", "application/json"), ("Transfer-Encoding", "chunked"))
            + b"%x\r\n%b\r\n0\r\nAuthorization: Bearer %b\r\nContent-Type: text/plain\r\n\r\n"
            % (len(body), body, door.tokens["alice"].encode())
        )
        answer = await http.answer()
        assert answer.value["output"]["peer"] is None


async def test_one_who_asks_first_is_told_to_go_on() -> None:
    async with _door() as door, door.connect() as http:
        data = http.asked(
            "POST", "/call", {"operation": "test/echo", "input": {"value": 1}}, ("Expect", "100-continue")
        )
        head, body = data.split(b"\r\n\r\n")
        await http.send(head + b"\r\n\r\n")
        assert (await http.head()).status == 100
        await http.send(body)
        assert (await http.answer()).value["output"] == 1


# --- one request at a time ------------------------------------------------------------------------------------------


async def test_a_request_that_comes_before_the_answer_ends_the_connection_after_it() -> None:
    async with _door() as door, door.connect() as http:
        first = http.asked("POST", "/call", {"operation": "test/wait", "input": {"mark": "one", "seconds": SOON_S}})
        second = http.asked("POST", "/call", {"operation": "test/echo", "input": {"value": "second"}})
        await http.send(first + second + b"\0 is no HTTP")
        answer = await http.answer()
        assert (answer.value["output"], answer.headers["connection"]) == ("waited", "close")
        assert await http.rest() == b""
        assert door.bench.outcomes("test/echo") == []


async def test_ten_thousand_requests_at_once_take_no_memory_and_get_one_answer() -> None:
    async with _door() as door, door.connect() as http:
        await http.send(HEALTH)
        await http.answer()
        for _ in range(10):
            http.writer.write(HEALTH * 1000)
        assert (await http.answer()).status == 200
        assert await http.rest() == b""


async def test_a_client_that_is_gone_is_noticed_also_after_a_second_request() -> None:
    async with _door() as door, door.connect() as http:
        await http.send(http.asked("POST", "/call", {"operation": "test/wait", "input": {"mark": "gone"}}))
        await eventually(lambda: door.handler._calls.running, "it runs")
        await http.send(HEALTH + b"x" * 200_000)
        http.close()
        await eventually(lambda: services.seen_marks["gone"]["how"] == "CancelledError", "it is cancelled")
        await eventually(lambda: not door.live, "the connection is over")


async def test_an_event_stream_outlives_half_a_second_request() -> None:
    """Its time to arrive has passed, but an answer under way is not cut for that."""
    async with _door(header_timeout=SOON_S) as door, door.connect() as http:
        await http.send(http.asked("POST", "/subscribe", {"operation": "test/endless", "input": {"mark": "half"}}))
        assert (await http.head()).status == 200
        assert await http.event() is not None
        await http.send(b"GET /healthz HTTP/1.1\r\nHost: ")
        async with door.connect() as other:
            await other.send(b"G")
            assert (await other.answer()).status == 408  # that time has passed
        assert services.seen_marks["half"]["ended"] is None


async def test_the_answer_comes_before_the_body_and_is_the_only_one() -> None:
    async with _door(body_timeout=SOON_S) as door, door.connect() as http:
        await http.send(request("GET", "/healthz")[:-2] + b"Content-Length: 5\r\n\r\nab")
        assert (await http.answer()).status == 200
        assert await http.rest() == b""  # no 408 that could pass for the answer to what comes next


# --- how long it takes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "settings", "status"),
    [
        (b"GET /healthz HTTP/1.1\r\nHost: ", {"header_timeout": SOON_S}, 408),
        (request("POST", "/call")[:-2] + b"Content-Length: 9\r\n\r\n{", {"body_timeout": SOON_S}, 408),
        (request("POST", "/call")[:-2] + b"Transfer-Encoding: chunked\r\n\r\n1\r\n{", {"body_timeout": SOON_S}, 408),
    ],
    ids=["headers", "body", "chunks"],
)
async def test_a_slow_request_is_refused(data: bytes, settings: dict[str, Any], status: int) -> None:
    async with _door(**settings) as door, door.connect() as http:
        found, message = await _refused(http, data)
        assert (found, "did not arrive in time" in message) == (status, True)


async def test_headers_that_trickle_in_have_no_more_time() -> None:
    async with _door(header_timeout=4 * SOON_S) as door, door.connect() as http:
        began = time.monotonic()
        await http.send(b"GET /healthz HTTP/1.1\r\n")
        while not http.reader.at_eof() and time.monotonic() - began < NOT_SOON_S:
            try:
                await http.send(b"X: y\r\n")
            except ConnectionError:
                break
            if http.reader._buffer:  # type: ignore[attr-defined]
                break
            await asyncio.sleep(SOON_S / 5)
        assert time.monotonic() - began < NOT_SOON_S / 3
        assert (await http.answer()).status == 408


@pytest.mark.parametrize("data", [b"", b"\r\n"], ids=["nothing", "empty lines"])
async def test_who_never_begins_is_closed_without_a_word(data: bytes) -> None:
    async with _door(header_timeout=SOON_S) as door, door.connect() as http:
        await http.send(data)
        assert await http.rest() == b""


async def test_an_idle_connection_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "KEEP_ALIVE_S", SOON_S)
    async with _door() as door, door.connect() as http:
        await http.send(HEALTH)
        await http.answer()
        assert await http.rest() == b""


async def test_empty_lines_keep_no_connection_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "KEEP_ALIVE_S", 4 * SOON_S)
    async with _door() as door, door.connect() as http:
        for _ in range(2):
            await http.send(HEALTH)
            assert (await http.answer()).status == 200
        until = time.monotonic() + NOT_SOON_S
        # A line that arrives after the node has closed is answered with a reset, and the reader then has no end.
        while not (http.reader.at_eof() or http.reader.exception()) and time.monotonic() < until:
            http.writer.write(b"\r\n")
            await asyncio.sleep(SOON_S / 5)
        assert time.monotonic() < until


@pytest.mark.parametrize("upgrade", ["h2c", "TLS/1.0", "nonsense"])
async def test_another_protocol_is_not_spoken_and_the_request_is_the_last(upgrade: str) -> None:
    headers = (("Connection", "Upgrade, HTTP2-Settings"), ("Upgrade", upgrade), ("HTTP2-Settings", "AA"))
    async with _door() as door, door.connect() as http:
        await http.send(request("GET", "/healthz", b"", *headers) + b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + HEALTH)
        answer = await http.answer()
        assert (answer.status, answer.headers["connection"]) == (200, "close")
        assert await http.rest() == b""


@pytest.mark.parametrize(
    "data",
    [
        request("POST", "/alknet/call", b"abc", ("Connection", "Upgrade"), ("Upgrade", "websocket")),
        request("GET", "/alknet/call", b"", ("Connection", "Upgrade"), ("Upgrade", "websocket"), ("X", "y" * 9000)),
        request("GET", "/" + "x" * 8190, b"", ("Connection", "Upgrade"), ("Upgrade", "websocket")),
        request("GET", "/alknet/call", b"", ("Connection", "Upgrade"), ("Upgrade", "websocket")),
    ],
    ids=["POST", "long header", "long path", "no key"],
)
async def test_what_opens_no_websocket_is_refused_and_not_kept_waiting(data: bytes) -> None:
    async with _door() as door, door.connect() as http:
        await http.send(data)
        assert (await http.head()).status == 400
        await http.rest()
        http.close()
        await eventually(lambda: not door.live, "the connection is over")


# --- clients that read nothing --------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [4_000_000, 60_000], ids=["above high water", "below"])
async def test_a_client_that_reads_nothing_is_cut_off(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """Also below the mark at which a transport asks for a pause, and when the connection was closed meanwhile."""
    monkeypatch.setattr(protocol, "STALLED_WRITE_S", 0.2)
    monkeypatch.setattr(server, "WATCH_EVERY_S", 0.02)
    async with _door() as door, door.connect(receive_bytes=4096) as http:
        http.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await http.send(http.asked("POST", "/call", {"operation": "test/text", "input": {"size": size}}))
        (one,) = await eventually(lambda: [one for one in door.handler._protocols if one.transport], "it is served")
        await eventually(lambda: one.transport.get_write_buffer_size(), "something waits to be read")
        one.shutdown()
        await eventually(lambda: not door.live, "it is cut off")


async def test_a_slow_client_that_goes_on_reading_gets_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "STALLED_WRITE_S", 0.15)
    monkeypatch.setattr(server, "WATCH_EVERY_S", 0.01)
    size, began = 1_000_000, time.monotonic()
    async with _door() as door, door.connect(receive_bytes=16_384) as http:
        http.reader._limit = 4096  # type: ignore[attr-defined]  # a reader that takes no more than it is asked for
        await http.send(http.asked("POST", "/call", {"operation": "test/text", "input": {"size": size}}))
        head = await http.head()
        left = int(head.headers["content-length"])
        while left:
            left -= len(await http.reader.read(8192))
            await asyncio.sleep(0.003)
        assert time.monotonic() - began > 0.15


# --- the end ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["close", "reset"])
@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("/call", {"operation": "test/wait", "input": {"mark": "m"}}),
        ("/call", {"operation": "test/compose", "input": {"mark": "m"}}),
        ("/batch", [{"operation": "test/wait", "input": {"mark": "m"}}] * 3),
        ("/ops/test/wait", {"mark": "m"}),
        ("/subscribe", {"operation": "test/endless", "input": {"mark": "m"}}),
        ("/ops/test/paced", {"mark": "m"}),
    ],
    ids=["call", "compose", "batch", "ops", "subscribe", "paced"],
)
async def test_what_nobody_waits_for_ends_within_a_fifth_of_a_second(
    path: str, value: Any, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    services.seen_marks.clear()
    async with _door() as door, door.connect() as http:
        await http.send(http.asked("POST", path, value))
        mark = await eventually(lambda: services.seen_marks.get("m"), "it has begun")
        await settled(lambda: door.handler._calls.running)
        gone = time.monotonic()
        getattr(http, how)()
        await eventually(lambda: mark["ended"] is not None, "it has ended")
        assert mark["ended"] - gone < 0.2
        assert mark["how"] in ("CancelledError", "GeneratorExit")
        await eventually(lambda: not door.live and not door.handler._calls.running, "nothing is left")
        assert door.bench.unmatched() == {}
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


async def test_a_connection_that_is_ended_here_leaves_no_complaint(caplog: pytest.LogCaptureFixture) -> None:
    async with _door() as door, door.connect() as http:
        await http.send(http.asked("POST", "/call", {"operation": "test/wait", "input": {"mark": "ended"}}))
        await eventually(lambda: door.handler._calls.running, "it runs")
        (connection,) = door.router.connections
        door.router.end(connection.id, "an administrator says so")
        assert await http.rest() == b""
        await eventually(lambda: services.seen_marks["ended"]["how"] == "CancelledError", "it is cancelled")
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


async def test_a_body_that_is_cut_short_is_no_body() -> None:
    async with _door() as door, door.connect() as http:
        data = http.asked("POST", "/call", {"operation": "test/order", "input": {"item": "a", "amount": 1}})
        await http.send(data.replace(b"Content-Length: ", b"Content-Length: 1") + b" " * 10)
        await eventually(lambda: any(one.running for one in door.handler._protocols), "it is read")
        http.close()
        await eventually(lambda: not door.live, "the connection is over")
        assert door.bench.outcomes("test/order") == []


@pytest.mark.parametrize("version", ["1.0", "1.1"])
async def test_a_connection_is_kept_where_the_version_keeps_it(version: str) -> None:
    async with _door() as door, door.connect() as http:
        await http.send(HEALTH.replace(b"HTTP/1.1", b"HTTP/" + version.encode()))
        answer = await http.answer()
        assert answer.headers.get("connection") == ("close" if version == "1.0" else None)
        if version == "1.0":
            assert await http.rest() == b""
