"""What a stranger may send to the port for HTTP: every part withstands a share, this is all of them together."""

import asyncio
import logging
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alknet.gateway.settings import GatewaySettings
from testkit import services
from testkit.gateway import HOST, GatewayDoor, request
from testkit.polling import eventually

LINE = b"POST /ops/test/order HTTP/1.1\r\n"
REST = b"Host: localhost\r\nContent-Type: application/json\r\n"
BODY = b'{"item":"a","amount":1}'
SMUGGLED = b"POST /ops/test/order HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n"


def _door(**facts: Any) -> GatewayDoor:
    return GatewayDoor(services, settings=GatewaySettings(**({"mcp": False} | facts)))


FORMS = {
    "length and chunks": b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunks and length": b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n",
    "another coding": b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "chunked, then another": b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    "chunked twice": b"Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
    "two codings": b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
    "two codings, the other way": b"Transfer-Encoding: identity\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "vertical tab": b"Transfer-Encoding:\x0bchunked\r\n\r\n0\r\n\r\n",
    "space before colon": b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
    "space before name": b" Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "quoted": b'Transfer-Encoding: "chunked"\r\n\r\n0\r\n\r\n',
    "folded": b"Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n",
    "two lengths": b"Content-Length: 5\r\nContent-Length: 0\r\n\r\n",
    "two equal lengths": b"Content-Length: 0\r\nContent-Length: 0\r\n\r\n",
    "list of lengths": b"Content-Length: 0, 0\r\n\r\n",
    "plus": b"Content-Length: +0\r\n\r\n",
    "minus": b"Content-Length: -1\r\n\r\n",
    "hexadecimal": b"Content-Length: 0x0\r\n\r\n",
    "in HTTP/1.0": b"",
    "space inside": b"Content-Length: 0 0\r\n\r\n",
    "no number": b"Content-Length: \r\n\r\n",
    "beyond 64 bits": b"Content-Length: 18446744073709551616\r\n\r\n",
    "other digits": "Content-Length: ٠\r\n\r\n".encode(),
    "underscore": b"Content_Length: 5\r\nContent-Length: 1_0\r\n\r\n",
    "chunk size beyond": b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffff0\r\n",
    "chunk size with 0x": b"Transfer-Encoding: chunked\r\n\r\n0x0\r\n\r\n",
    "chunk size signed": b"Transfer-Encoding: chunked\r\n\r\n-1\r\n\r\n",
    "chunk ends with LF": b"Transfer-Encoding: chunked\r\n\r\n0\n\n",
    "chunk without its end": b"Transfer-Encoding: chunked\r\n\r\n1\r\nxx\r\n0\r\n\r\n",
    "bare LF": b"X: y\nContent-Length: 0\r\n\r\n",
    "bare CR": b"X: y\rContent-Length: 0\r\n\r\n",
    "NUL in a name": b"X\0: y\r\n\r\n",
    "NUL in a value": b"X: \0\r\n\r\n",
    "no name": b": y\r\n\r\n",
    "no colon": b"X\r\n\r\n",
    "letters of no ASCII in a name": b"X\xe9: y\r\n\r\n",
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
async def test_a_request_of_which_two_readers_may_think_differently_is_refused(form: bytes) -> None:
    """Nothing of it is done, nothing after it is read, and the connection ends."""
    async with _door() as door, door.connect() as http:
        token = f"Authorization: Bearer {door.tokens['alice']}\r\n".encode()
        line = LINE if form else LINE.replace(b"1.1", b"1.0")
        await http.send(line + token + REST + (form or b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n") + SMUGGLED)
        answer = await http.answer()
        assert (answer.status, answer.headers["connection"]) == (400, "close")
        assert await http.rest() == b""
        assert door.bench.outcomes("test/order") == []


@pytest.mark.parametrize(
    "line",
    [
        b"POST  /ops/test/order HTTP/1.1 x\r\n", b"POST\t/ops/test/order\tHTTP/1.1\r\n",
        b"post /ops/test/order HTTP/1.1\r\n",
        b"POST /ops/test/order HTTP/1.1\n", b"POST /ops/test/order HTTP/1.10\r\n", b"POST /ops/test/order HTTP/1.2\r\n",
        b"POST /ops/test/order http/1.1\r\n", b"POST /ops/test/order\r\n", b"XPOST /ops/test/order HTTP/1.1\r\n",
        b"POST \xff HTTP/1.1\r\n", b"POST /\x00 HTTP/1.1\r\n", b"POST /a b HTTP/1.1\r\n", b"POST ops HTTP/1.1\r\n",
        b"POST //localhost:1/x\\y HTTP/9.9\r\n", b"PRI * HTTP/2.0\r\n", b"POST /\xe9 HTTP/1.1\r\n",
    ],
)  # fmt: skip
async def test_a_line_that_is_none_is_refused(line: bytes) -> None:
    async with _door() as door, door.connect() as http:
        await http.send(line + REST + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY)
        assert (await http.answer()).status in (400, 404, 505)
        assert door.bench.outcomes("test/order") == []


async def test_a_body_that_comes_with_get_is_no_second_request() -> None:
    async with _door() as door, door.connect() as http:
        await http.send(request("GET", "/healthz", SMUGGLED))
        assert (await http.answer()).status == 200
        await http.send(request("GET", "/healthz", close=True))
        assert (await http.answer()).status == 200
        assert await http.rest() == b""
        assert door.bench.outcomes("test/order") == []


async def test_what_follows_an_upgrade_is_not_read_as_http() -> None:
    async with _door() as door, door.connect() as http:
        upgrade = [("Connection", "Upgrade"), ("Upgrade", "websocket"), ("Sec-WebSocket-Version", "13")]
        key, protocol = ("Sec-WebSocket-Key", "AAAAAAAAAAAAAAAAAAAAAA=="), ("Sec-WebSocket-Protocol", "alknet.call.v1")
        await http.send(http.asked("GET", "/alknet/call", None, *upgrade, key, protocol) + SMUGGLED)
        assert (await http.head()).status == 101
        await http.send(SMUGGLED)
        assert b"HTTP/" not in await http.rest()
        assert door.bench.outcomes("test/order") == []


async def test_headers_of_proxies_change_nothing() -> None:
    """There is none in front of the node, so whoever sends them is a client."""
    claims = [
        ("X-Forwarded-For", "127.0.0.1"), ("X-Forwarded-Host", "evil.example"), ("X-Forwarded-Proto", "https"),
        ("Forwarded", "for=127.0.0.1;host=evil"), ("X-Real-IP", "127.0.0.1"), ("X-HTTP-Method-Override", "DELETE"),
        ("X-Original-URL", "/metrics"), ("X-Rewrite-URL", "/metrics"), ("Proxy-Authorization", "Bearer x"),
        ("Cookie", "session=1"),
    ]  # fmt: skip
    async with _door() as door, door.connect(remote="192.0.2.1") as http:
        await http.send(request("GET", "/healthz", b"", *claims))
        assert (await http.answer()).status == 403
    async with _door() as door, door.connect(remote="127.0.0.7") as http:
        answer = await http.ask("POST", "/call", {"operation": "test/identity"}, *claims, peer=None)
        assert answer.value["output"]["peer"] is None
        assert {one["remote"] for one in door.bench.audit.records} == {"127.0.0.7"}


async def test_a_secret_in_a_url_is_in_no_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "alknet")
    secret = "alk_abcdefgh_ijklmnopqrstuvwxyz0"
    async with _door() as door, door.connect() as http:
        for path in (f"/search?token={secret}", f"/ops/{secret}", f"/{secret}", "/call"):
            await http.ask("GET", path, None, ("X-Token", secret), ("Authorization", f"Bearer {secret}"), peer=None)
            await http.ask("GET", path, None, ("Origin", f"http://{secret}"))
    assert secret not in caplog.text


# --- any bytes --------------------------------------------------------------------------------------------------------

_TOKENS = st.sampled_from(
    [
        b"GET ", b"POST ", b"/", b"/call", b"/healthz", b"/alknet/call", b" HTTP/1.1", b" HTTP/1.0",
        b"\r\n", b"\n", b"\r", b"\r\n\r\n", b"0\r\n\r\n", b"{}", b"\0", b"\xff", b" ", b":", b"5",
        b"Host: ", HOST.encode(), b"Content-Length: ", b"Transfer-Encoding: ", b"chunked", b"Connection: ", b"close",
        b"keep-alive", b"Upgrade", b"Upgrade: websocket", b"Upgrade: h2c", b"Sec-WebSocket-Version: 13",
        b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==", b"Sec-WebSocket-Protocol: alknet.call.v1",
        b"Expect: 100-continue", b"Content-Type: application/json", b"Origin: null",
        b'{"operation":"test/identity"}', SMUGGLED, request("GET", "/healthz"), request("POST", "/call", b"{}"),
    ]
)  # fmt: skip
_NOISE = st.one_of(st.lists(_TOKENS, max_size=25).map(b"".join), st.binary(max_size=100))


@given(_NOISE, st.lists(st.integers(0, 300), max_size=4), st.booleans())
@settings(max_examples=60, deadline=None)
def test_no_bytes_however_split_break_it(data: bytes, cuts: list[int], resets: bool) -> None:
    async def check() -> None:
        failures: list[Any] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: failures.append(context))
        async with _door(header_timeout=0.05, body_timeout=0.05) as door:
            before = len(asyncio.all_tasks())
            async with door.connect() as http:
                at = 0
                for cut in [*sorted(cut for cut in cuts if cut < len(data)), len(data)]:
                    http.writer.write(data[at:cut])
                    await asyncio.sleep(0)
                    at = cut
                if resets:
                    http.reset()
                else:
                    http.close()
            await eventually(lambda: not door.live, "the connection is over")
            await eventually(lambda: not door.doors._anonymous._connections, "its place is free")
            await eventually(lambda: len(asyncio.all_tasks()) <= before, "no task is left")
            assert door.bench.unmatched() == {}
        assert failures == []

    handler = _Complaints()
    logging.getLogger().addHandler(handler)
    try:
        asyncio.run(check())
    finally:
        logging.getLogger().removeHandler(handler)
    assert handler.told == []


class _Complaints(logging.Handler):
    """Everything that a log has from warnings upward."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.told: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.told.append(record.getMessage())
