"""Whole answers as bytes: read back by a parser they are what was asked for, and anything unusual is left alone."""

import httptools
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alknet.gateway.wire import whole_answer

LENGTH = (b"content-length", b"2")
TOKENS = st.text("!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCXYZ", min_size=1, max_size=20).map(str.encode)
VALUES = st.binary(max_size=40).filter(lambda value: not value.translate(None, bytes(range(0x20, 0x7F))))


class Reader:
    """What a parser finds."""

    def __init__(self, data: bytes) -> None:
        self.headers: list[tuple[bytes, bytes]] = []
        self.body = b""
        self.ends = 0
        self.parser = httptools.HttpResponseParser(self)
        self.parser.feed_data(data)

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name, value))

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        self.ends += 1


def test_an_answer_is_a_status_line_headers_and_a_body() -> None:
    answer = whole_answer(200, [(b"Date", b"now"), LENGTH], b"{}")
    assert answer == b"HTTP/1.1 200 OK\r\ndate: now\r\ncontent-length: 2\r\n\r\n{}"


@given(st.lists(st.tuples(TOKENS, VALUES), max_size=8), st.binary(max_size=100), st.sampled_from([200, 404, 503]))
def test_a_parser_finds_what_was_said(headers: list[tuple[bytes, bytes]], body: bytes, status: int) -> None:
    special = {b"content-length", b"connection", b"transfer-encoding", b"upgrade", b"trailer"}
    headers = [(name, value.strip()) for name, value in headers if name.lower() not in special]
    answer = whole_answer(status, [*headers, (b"content-length", b"%d" % len(body))], body)
    assert answer is not None
    found = Reader(answer)
    assert found.parser.get_status_code() == status
    assert found.headers[:-1] == [(name.lower(), value) for name, value in headers]
    assert (found.body, found.ends) == (body, 1)


@given(st.binary(max_size=20), st.binary(max_size=20))
def test_no_header_becomes_two(name: bytes, value: bytes) -> None:
    answer = whole_answer(200, [(name, value), LENGTH], b"{}")
    if answer is not None:
        assert answer.count(b"\r\n") == 4
        assert not answer.translate(None, bytes(set(range(256)) - {0, 0x0B, 0x7F}))
        assert answer.count(b"\n") == answer.count(b"\r") == 4


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param([], id="no length"),
        pytest.param([LENGTH, LENGTH], id="two lengths"),
        pytest.param([(b"content-length", b"3")], id="wrong length"),
        pytest.param([(b"Content-Length", b"2")], id="a length in capitals"),
        pytest.param([LENGTH, (b"Content-Length", b"0")], id="another length in capitals"),
        pytest.param([LENGTH, (b"connection", b"close")], id="connection"),
        pytest.param([LENGTH, (b"Transfer-Encoding", b"chunked")], id="transfer-encoding"),
        pytest.param([LENGTH, (b"a b", b"c")], id="name with a blank"),
        pytest.param([LENGTH, (b"", b"c")], id="no name"),
        pytest.param([LENGTH, (b"a\n", b"c")], id="name with a line end"),
        pytest.param([LENGTH, (b"a", b"b\r\nc: d")], id="value with a line end"),
        pytest.param([LENGTH, (b"a", b"b\nc: d")], id="value with a line feed"),
        pytest.param([LENGTH, (b"a", b"b\0")], id="value with a zero"),
    ],
)
def test_what_is_not_plain_is_left_alone(headers: list[tuple[bytes, bytes]]) -> None:
    assert whole_answer(200, headers, b"{}") is None


@pytest.mark.parametrize("status", [100, 101, 204, 205, 304])
def test_a_status_that_has_no_body_is_left_alone(status: int) -> None:
    assert whole_answer(status, [(b"content-length", b"0")], b"") is None
