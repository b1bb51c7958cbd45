"""Reading and writing at the edge to ASGI."""

import asyncio
import json
from typing import Any

from alknet.gateway.mcp.messages import Patient, Watched, answer, dropped, nothing, read_body, refuse, replayed
from alknet.tasks import Tasks
from testkit.polling import eventually


class Sent:
    """A `send` that keeps what it is given."""

    def __init__(self) -> None:
        self.messages: list[Any] = []

    async def __call__(self, message: Any) -> None:
        self.messages.append(message)


def arriving(*parts: Any) -> Any:
    """A `receive` that gives these, in order."""
    left = list(parts)

    async def receive() -> Any:
        return left.pop(0)

    return receive


def part(body: bytes, *, more: bool = False) -> Any:
    return {"type": "http.request", "body": body, "more_body": more}


async def test_a_body_is_read_whole_however_it_comes() -> None:
    assert await read_body(arriving(part(b"abc")), 9) == b"abc"
    assert await read_body(arriving(part(b"a", more=True), part(b"", more=True), part(b"bc")), 9) == b"abc"
    assert await read_body(arriving({"type": "http.request"}), 9) == b""


async def test_a_body_that_is_too_long_or_breaks_off_is_none() -> None:
    assert await read_body(arriving(part(b"abc")), 3) == b"abc"
    assert await read_body(arriving(part(b"ab", more=True), part(b"cd", more=True)), 3) is None  # and reads no further
    assert await read_body(arriving(part(b"a", more=True), {"type": "http.disconnect"}), 3) is None


async def test_a_body_that_was_read_comes_once_more() -> None:
    receive = replayed(b"abc", arriving({"type": "http.disconnect"}))
    assert await receive() == part(b"abc")
    assert await receive() == {"type": "http.disconnect"}


async def test_an_answer_is_whole() -> None:
    sent = Sent()
    await answer(sent, 200, b"{}", [(b"x", b"y")])
    start, body = sent.messages
    assert (start["status"], body["body"]) == (200, b"{}")
    headers = dict(start["headers"])
    assert (headers[b"content-type"], headers[b"content-length"], headers[b"x"]) == (b"application/json", b"2", b"y")
    await refuse(sent, 404, -32600, "not here")
    assert json.loads(sent.messages[-1]["body"]) == {
        "jsonrpc": "2.0", "id": None, "error": {"code": -32600, "message": "not here"},
    }  # fmt: skip


async def test_an_answer_that_takes_long_is_a_stream_that_is_kept_alive() -> None:
    tasks, sent = Tasks("test"), Sent()
    patient = Patient(sent, [(b"x", b"y")])
    patient.pulse(tasks)
    assert len(tasks) == 0  # it may have come a moment ago
    for _ in range(2):
        patient.pulse(tasks)
        await eventually(lambda: len(tasks) == 0, "it is kept alive")
    await patient.answer(b"{}")
    start, *pings, last = sent.messages
    assert (start["status"], dict(start["headers"])[b"content-type"]) == (200, b"text/event-stream")
    assert dict(start["headers"])[b"x"] == b"y"
    assert [(one["body"], one["more_body"]) for one in pings] == [(b": ping\r\n\r\n", True)] * 2
    assert last == {"type": "http.response.body", "body": b"event: message\r\ndata: {}\r\n\r\n"}


async def test_a_client_that_reads_nothing_is_not_sent_more_and_more() -> None:
    tasks, goes_on, sent = Tasks("test"), asyncio.Event(), Sent()

    async def send(message: Any) -> None:
        await goes_on.wait()
        await sent(message)

    patient = Patient(send, [])
    for _ in range(5):
        patient.pulse(tasks)
    assert len(tasks) == 1
    answering = tasks.start(patient.answer(b"{}"), name="answer")
    goes_on.set()
    await answering
    assert [one["type"] for one in sent.messages] == ["http.response.start", *["http.response.body"] * 2]


async def test_an_answer_that_comes_soon_is_json() -> None:
    tasks, sent = Tasks("test"), Sent()
    patient = Patient(sent, [])
    patient.pulse(tasks)
    await patient.answer(b"{}")
    assert [one.get("body") for one in sent.messages] == [None, b"{}"]


async def test_an_answer_is_watched_and_ended_once() -> None:
    sent, told = Sent(), []
    watched = Watched(sent, lambda status, headers: told.append((status, headers, len(sent.messages))))
    await watched.finish()
    assert sent.messages == []  # there is nothing to end
    await watched({"type": "http.response.start", "status": 200, "headers": [(b"a", b"b")]})
    assert told == [(200, {b"a": b"b"}, 0)]  # before the client
    await watched({"type": "http.response.body", "body": b"x", "more_body": True})
    assert not watched.is_over
    await watched.finish()
    await watched.finish()
    assert watched.is_over
    assert [message.get("body") for message in sent.messages] == [None, b"x", b""]


async def test_a_request_that_nobody_sent() -> None:
    assert await nothing() == {"type": "http.disconnect"}
    await dropped({"type": "http.response.start", "status": 200})
