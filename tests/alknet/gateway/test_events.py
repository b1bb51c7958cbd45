"""Event streams: what is sent, in which form, how they end, and what keeps them open."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from alknet import OperationContext, OperationError, operation
from alknet.gateway import events
from alknet.gateway.settings import GatewaySettings
from testkit import services
from testkit.gateway import GatewayDoor, RawHttp
from testkit.polling import eventually

PEERS = {"alice": ("*",), "bob": ("other",)}


class Full(OperationError):
    """No room."""

    code = "FULL"
    http_status = 409


@operation("flow/fails", errors=[Full])
async def fails(after: int) -> AsyncIterator[int]:
    """So many numbers, and then an error."""
    for number in range(after):
        yield number
    raise Full("there is no room")


@operation("flow/quiet", public=True)
async def quiet() -> AsyncIterator[int]:
    """Nothing, for ever."""
    await asyncio.Event().wait()
    yield 0


@operation("flow/last")
async def last(*, ctx: OperationContext) -> AsyncIterator[Any]:
    """What it was told of where to go on."""
    yield ctx.metadata.get("last_event_id")


@operation("flow/odd")
async def odd() -> AsyncIterator[Any]:
    """What cannot be sent."""
    yield 1
    yield float("nan")


@operation("flow/large")
async def large() -> AsyncIterator[str]:
    """Much, for ever."""
    while True:
        yield "x" * 100_000


def _door(**settings: Any) -> GatewayDoor:
    return GatewayDoor(
        services, [fails, quiet, last, odd, large], peers=PEERS, settings=GatewaySettings(mcp=False, **settings)
    )


async def _subscribe(http: RawHttp, name: str, input: Any = None, *headers: tuple[str, str], **more: Any) -> None:
    await http.send(http.asked("POST", "/subscribe", {"operation": name, "input": input, **more}, *headers))


async def _told(http: RawHttp) -> list[tuple[str, str | None, Any]]:
    """Every event to the end, comments left out."""
    found = []
    while (event := await http.event()) is not None:
        if event.name != ":":
            found.append((event.name, event.id, event.value))
    return found


@pytest.mark.parametrize("path", ["/subscribe", "/ops/test/numbers"])
async def test_items_are_events_with_ids_and_the_end_is_one_as_well(path: str) -> None:
    async with _door() as door, door.connect() as http:
        value = {"to": 3}
        body = {"operation": "test/numbers", "input": value} if path == "/subscribe" else value
        await http.send(http.asked("POST", path, body))
        head = await http.head()
        assert (head.status, head.headers["content-type"]) == (200, "text/event-stream")
        assert head.headers["cache-control"] == "no-store"
        assert head.headers["alknet-request-id"].startswith("req_")
        assert await _told(http) == [
            ("message", "1", 0),
            ("message", "2", 1),
            ("message", "3", 2),
            ("completed", None, {}),
        ]
        assert (await http.ask("GET", "/healthz")).status == 200  # the connection lives on


@pytest.mark.parametrize(
    ("name", "input", "peer", "status", "code"),
    [
        ("flow/fails", {"after": 0}, "alice", 409, "FULL"),
        ("flow/fails", {"after": "x"}, "alice", 422, "INVALID_INPUT"),
        ("flow/fails", {"after": 0}, "bob", 403, "FORBIDDEN"),
        ("flow/fails", {"after": 0}, None, 401, "FORBIDDEN"),
        ("test/echo", {"value": 1}, "alice", 400, "INVALID_OPERATION_TYPE"),
        ("no/such", {}, "alice", 404, "NOT_FOUND"),
    ],
)
async def test_what_fails_before_the_first_item_has_its_status(
    name: str, input: Any, peer: str | None, status: int, code: str
) -> None:
    async with _door() as door, door.connect() as http:
        answer = await http.ask("POST", "/subscribe", {"operation": name, "input": input}, peer=peer)
        assert (answer.status, answer.code) == (status, code)


async def test_what_fails_later_is_an_event_with_the_problem() -> None:
    async with _door() as door, door.connect() as http:
        await _subscribe(http, "flow/fails", {"after": 1})
        head = await http.head()
        *items, (name, _, problem) = await _told(http)
        assert (items, name) == ([("message", "1", 0)], "error")
        assert (problem["code"], problem["status"], problem["request_id"]) == (
            "FULL",
            409,
            head.headers["alknet-request-id"],
        )


async def test_an_item_that_cannot_be_sent_ends_the_stream() -> None:
    async with _door() as door, door.connect() as http:
        await _subscribe(http, "flow/odd")
        await http.head()
        (_, (name, _, problem)) = await _told(http)
        assert (name, problem["code"]) == ("error", "INTERNAL")
        assert door.bench.unmatched() == {}


async def test_a_stream_begins_also_without_an_item_and_is_kept_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "KEEP_ALIVE_S", 0.05)
    monkeypatch.setattr(events, "FIRST_ITEM_PATIENCE_S", 0.01)
    async with _door() as door, door.connect() as http:
        await _subscribe(http, "flow/quiet")
        assert (await http.head()).status == 200
        for _ in range(3):
            event = await http.event()
            assert event is not None
            assert event.name == ":"


async def test_a_client_that_reads_nothing_holds_up_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "KEEP_ALIVE_S", 0.02)
    monkeypatch.setattr(events, "FIRST_ITEM_PATIENCE_S", 0.01)
    async with _door() as door, door.connect(receive_bytes=4096) as stuck, door.connect() as http:
        stuck.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await _subscribe(stuck, "flow/large")
        await eventually(lambda: any(one.flow and one.flow.write_paused for one in door.handler._protocols), "stuck")
        await _subscribe(http, "flow/quiet")
        await http.head()
        for _ in range(5):
            assert await http.event() is not None


async def test_a_stuck_client_has_as_little_sent_as_it_takes() -> None:
    """Items are asked for no faster than they are taken."""
    async with _door() as door, door.connect(receive_bytes=4096) as http:
        http.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await _subscribe(http, "flow/large")
        await eventually(lambda: any(one.flow and one.flow.write_paused for one in door.handler._protocols), "stuck")
        (one,) = door.handler._protocols
        assert one.transport.get_write_buffer_size() < 400_000


@pytest.mark.parametrize(
    ("given", "told", "number"),
    [("7", "7", "8"), ("a b", "a b", "1"), ("9" * 30, "9" * 30, str(2**53 + 1)), ("x" * 300, "x" * 256, "1")],
)
async def test_the_last_event_id_reaches_the_operation_and_ids_go_on(given: str, told: str, number: str) -> None:
    async with _door() as door, door.connect() as http:
        await _subscribe(http, "flow/last", None, ("Last-Event-ID", given))
        await http.head()
        assert (await _told(http))[0] == ("message", number, told)


async def test_a_subscription_may_have_an_end() -> None:
    async with _door() as door, door.connect() as http:
        await _subscribe(http, "test/endless", {"mark": "timed"}, timeout_ms=50)
        await http.head()
        name, _, problem = (await _told(http))[-1]
        assert (name, problem["code"], problem["status"]) == ("error", "TIMEOUT", 504)
        assert services.seen_marks["timed"]["ended"] is not None


async def test_a_timeout_also_ends_one_that_waits_for_its_client(caplog: pytest.LogCaptureFixture) -> None:
    async with _door() as door, door.connect(receive_bytes=4096) as http:
        http.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await _subscribe(http, "flow/large", timeout_ms=100)
        await eventually(lambda: door.handler._calls.running, "it runs")
        await eventually(lambda: not door.handler._calls.running and not door.live, "it has ended")
    assert caplog.text == ""


@pytest.mark.parametrize("how", [{"bob": ("other",)}, {"alice": ("other",)}], ids=["the peer", "the scope"])
async def test_access_that_is_taken_away_ends_the_stream_with_the_denial(how: Any) -> None:
    async with _door() as door, door.connect() as http:
        await _subscribe(http, "test/endless", {"mark": "revoked"})
        await http.head()
        await eventually(lambda: "revoked" in services.seen_marks, "it runs")
        door.reload({"bob": ("other",)} | how)
        name, _, problem = (await _told(http))[-1]
        assert (name, problem["code"]) == ("error", "FORBIDDEN")
        assert problem["denial_id"].startswith("den_")
        assert "access was taken away" in problem["message"]
        assert door.bench.outcomes("test/endless") == ["revoked"]


async def test_the_end_of_the_node_is_told() -> None:
    async with _door() as door, door.connect() as http:
        await _subscribe(http, "test/endless", {"mark": "stopped"})
        await http.head()
        await eventually(lambda: "stopped" in services.seen_marks, "it runs")
        async with asyncio.TaskGroup() as group:
            group.create_task(door.router.shutdown(asyncio.get_running_loop().time() + 0.05))
            name, _, problem = (await _told(http))[-1]
        assert (name, problem["code"], problem["retryable"]) == ("error", "UNAVAILABLE", True)


async def test_a_head_request_starts_no_stream() -> None:
    async with _door() as door, door.connect() as http:
        answer = await http.ask("HEAD", "/ops/flow/quiet")
        assert (answer.status, answer.headers["allow"]) == (405, "POST")
        assert door.bench.outcomes("flow/quiet") == []
