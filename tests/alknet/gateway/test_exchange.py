"""One request and its answer, without a connection."""

from typing import Any

import pytest

from alknet.alpn.streams import BaseConnection
from alknet.call.errors import CallError
from alknet.gateway.exchange import Exchange, Visit
from alknet.gateway.problems import HttpError


def _exchange(*messages: Any, headers: Any = (), query: bytes = b"", kind: str = "http") -> tuple[Exchange, list[Any]]:
    """An exchange, and what it sends. Without a protocol below nothing is written at once."""
    left, sent = list(messages), []

    async def receive() -> Any:
        return left.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    connection = BaseConnection(alpn="http/1.1", transport="memory", remote=None)
    visit = Visit(connection, "http", "http")  # type: ignore[arg-type]
    scope = {
        "type": kind,
        "path": "/x",
        "method": "POST",
        "headers": list(headers),
        "query_string": query,
        "state": {"visit": visit},
    }
    return Exchange(scope, receive, send), sent


def _body(data: bytes, *, more: bool = False) -> Any:
    return {"type": "http.request", "body": data, "more_body": more}


GONE: Any = {"type": "http.disconnect"}


async def test_a_body_is_put_together() -> None:
    exchange, _ = _exchange(_body(b"a", more=True), _body(b"", more=True), _body(b"b"))
    assert await exchange.body(2) == b"ab"


@pytest.mark.parametrize(
    ("messages", "headers"),
    [
        ([_body(b"abc")], []),
        ([_body(b"a", more=True), _body(b"bc")], []),
        ([], [(b"content-length", b"3")]),
    ],
)
async def test_a_body_has_a_bound(messages: list[Any], headers: Any) -> None:
    exchange, _ = _exchange(*messages, headers=headers)
    with pytest.raises(HttpError) as refused:
        await exchange.body(2)
    assert (refused.value.status, refused.value.retryable) == (413, False)
    assert (b"connection", b"close") in refused.value.headers


@pytest.mark.parametrize("messages", [[GONE], [_body(b'{"a":', more=True), GONE]])
async def test_a_body_that_breaks_off_is_none(messages: list[Any]) -> None:
    exchange, _ = _exchange(*messages, headers=[(b"content-type", b"application/json")])
    with pytest.raises(HttpError, match="cut short"):
        await exchange.json(100)


async def test_no_body_is_no_value() -> None:
    for headers in ([], [(b"content-type", b"application/json")]):
        exchange, _ = _exchange(_body(b""), headers=headers)
        assert await exchange.json(100) is None


def test_a_header_that_stands_there_twice_is_none() -> None:
    exchange, _ = _exchange(headers=[(b"a", b"1"), (b"b", b"2"), (b"a", b"1"), (b"c", b"\xe9")])
    assert [exchange.header(name) for name in (b"a", b"b", b"c", b"d")] == [None, "2", "é", None]


@pytest.mark.parametrize(
    ("query", "pairs"),
    [
        (b"", []),
        (b"a=1&b=", [("a", "1"), ("b", "")]),
        (b"a=%C3%A9+x", [("a", "é x")]),
        (b"a=1&a=2", [("a", "1"), ("a", "2")]),
    ],
)
def test_a_query_string_is_pairs(query: bytes, pairs: Any) -> None:
    assert _exchange(query=query)[0].query() == pairs


@pytest.mark.parametrize("query", [b"a", b"a&b=1", b"a=%ff", b"a=\xff", b"&".join([b"a=1"] * 101)])
def test_a_query_string_that_is_none_is_refused(query: bytes) -> None:
    with pytest.raises(HttpError) as refused:
        _exchange(query=query)[0].query()
    assert refused.value.status == 400


async def test_an_answer_has_its_length_and_is_kept_by_nobody() -> None:
    exchange, sent = _exchange()
    exchange.more_headers.append((b"traceparent", b"x"))
    await exchange.reply(200, b"abc", headers=[(b"a", b"b")])
    start, body = sent
    headers = dict(start["headers"])
    assert (headers[b"content-length"], headers[b"cache-control"], headers[b"a"]) == (b"3", b"no-store", b"b")
    assert headers[b"traceparent"] == b"x"
    assert body["body"] == b"abc"
    assert exchange.has_begun


@pytest.mark.parametrize("status", [204, 304])
async def test_an_answer_without_content_has_no_length(status: int) -> None:
    exchange, sent = _exchange()
    await exchange.reply(status)
    assert b"content-length" not in dict(sent[0]["headers"])
    assert b"content-type" not in dict(sent[0]["headers"])


async def test_a_value_that_cannot_be_sent_is_an_error_with_nothing_sent() -> None:
    exchange, sent = _exchange()
    with pytest.raises(CallError, match="cannot be sent"):
        await exchange.reply_json(float("nan"))
    assert sent == []
    assert not exchange.has_begun


async def test_an_upgrade_is_turned_down_with_an_answer() -> None:
    exchange, sent = _exchange(kind="websocket")
    await exchange.fail(HttpError(403, "FORBIDDEN", "no"))
    assert [one["type"] for one in sent] == ["websocket.http.response.start", "websocket.http.response.body"]
    assert sent[0]["status"] == 403


async def test_an_answer_in_two_messages_is_relayed_as_it_is() -> None:
    exchange, sent = _exchange()
    messages: list[Any] = [
        {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]},
        {"type": "http.response.body", "body": b"a", "more_body": True},
        {"type": "http.response.body", "body": b"b"},
    ]
    for message in messages:
        await exchange.relay(message)
    assert sent == messages
