"""ALPN to handler, and the end of everything that is live."""

import asyncio
import contextlib
import logging

import pytest

from alknet.alpn.memory import MemoryConnection, memory_pair
from alknet.alpn.router import Router
from alknet.alpn.streams import Connection
from alknet.errors import BrokenError, NotFoundError, StartupError
from testkit.polling import eventually


class Door:
    """A handler that serves until it is told to stop, and writes down what it is told."""

    def __init__(self, *alpns: str) -> None:
        self.alpns = alpns or ("test",)
        self.told: list[str] = []
        self.live: list[Connection] = []

    async def handle(self, connection: Connection) -> None:
        self.live.append(connection)
        try:
            await connection.wait_closed()
        finally:
            self.live.remove(connection)

    def recheck(self) -> None:
        self.told.append("recheck")

    async def shutdown(self, deadline: float) -> None:
        self.told.append("shutdown")


class PoliteDoor(Door):
    """Ends its connections itself: at once, or so many seconds before the deadline."""

    def __init__(self, seconds_before: float | None) -> None:
        super().__init__()
        self.seconds_before = seconds_before

    async def shutdown(self, deadline: float) -> None:
        if self.seconds_before is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(deadline - self.seconds_before):
                    await asyncio.Event().wait()
        for connection in self.live:
            connection.close(0, "bye")


class StuckDoor(Door):
    """Never gets its shutdown done."""

    async def shutdown(self, deadline: float) -> None:
        await super().shutdown(deadline)
        await asyncio.Event().wait()


class FailingDoor(Door):
    """Fails with `error` wherever it can."""

    def __init__(self, error: Exception, *alpns: str) -> None:
        super().__init__(*alpns)
        self.error = error

    async def handle(self, connection: Connection) -> None:
        raise self.error

    async def shutdown(self, deadline: float) -> None:
        raise self.error


def dispatched(router: Router, alpn: str = "test") -> tuple[MemoryConnection, MemoryConnection]:
    dialer, listener = memory_pair(alpn=alpn)
    router.dispatch(listener)
    return dialer, listener


async def ended(connection: Connection) -> None:
    async with asyncio.timeout(10.0):
        await connection.wait_closed()


def in_seconds(seconds: float) -> float:
    return asyncio.get_running_loop().time() + seconds


# --- which door -----------------------------------------------------------------------------------------------


def test_two_handlers_for_one_alpn_are_a_mistake() -> None:
    with pytest.raises(StartupError, match="'b'"):
        Router([Door("a", "b"), Door("b", "c")])


async def test_a_connection_goes_to_the_handler_of_its_alpn() -> None:
    doors = [Door("a", "b"), Door("c")]
    router = Router(doors)
    assert router.alpns == ("a", "b", "c")
    listeners = [dispatched(router, alpn)[1] for alpn in "abc"]
    await eventually(lambda: doors[0].live == listeners[:2] and doors[1].live == listeners[2:], "all are served")
    assert router.connections == tuple(listeners)
    await router.shutdown(0.0)


async def test_an_alpn_that_nobody_serves_is_closed_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "alknet")
    router = Router([Door()])
    dialer, _ = dispatched(router, "other")
    await ended(dialer)
    assert dialer.close_reason == (0, "no handler")
    assert router.connections == ()
    assert 'alpn=other reason="no handler"' in caplog.text
    assert router.unserved == {"other": 1}


async def test_a_connection_ends_with_its_handler() -> None:
    router = Router([Door()])
    dialer, listener = dispatched(router)
    dialer.close()
    await eventually(lambda: router.connections == (), "the connection is forgotten")
    await ended(listener)


@pytest.mark.parametrize(
    ("error", "level"), [(ValueError("a mistake"), logging.ERROR), (BrokenError("it left"), logging.INFO)]
)
async def test_a_handler_that_fails_ends_its_own_connection_only(
    error: Exception, level: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "alknet.alpn")
    router = Router([FailingDoor(error, "bad"), Door("good")])
    _, good = dispatched(router, "good")
    bad, _ = dispatched(router, "bad")
    await ended(bad)
    assert router.connections == (good,)
    assert [record.levelno for record in caplog.records] == [level]
    assert bool(caplog.records[0].exc_info) == (level == logging.ERROR)
    await asyncio.gather(router.shutdown(0.0), ended(good))


async def test_every_handler_is_asked_to_check_again() -> None:
    doors = [Door("a"), Door("b")]
    Router(doors).recheck()
    assert [door.told for door in doors] == [["recheck"]] * 2


# --- ending one -----------------------------------------------------------------------------------------------


async def test_ending_a_connection_closes_it_with_the_reason() -> None:
    router = Router([Door()])
    dialer, listener = dispatched(router)
    assert router.end(listener.id, "enough") is listener
    await ended(dialer)
    assert dialer.close_reason == (0, "enough")
    await eventually(lambda: router.connections == (), "the connection is forgotten")


async def test_ending_a_connection_is_left_to_a_protocol_that_can_say_why() -> None:
    router = Router([Door()])
    dialer, listener = dispatched(router)
    said: list[str] = []
    listener.polite_close = said.append
    router.end(listener.id, "enough")
    assert said == ["enough"]
    assert dialer.close_reason is None
    await router.shutdown(0.0)


async def test_ending_what_is_not_there_is_not_found() -> None:
    router = Router([Door()])
    with pytest.raises(NotFoundError, match="c0"):
        router.end("c0", "enough")


# --- shutdown -------------------------------------------------------------------------------------------------


async def test_shutdown_lets_work_finish_and_returns_as_soon_as_it_has() -> None:
    door = Door()
    router = Router([door])
    _, listener = dispatched(router)
    stopping = asyncio.gather(router.shutdown(in_seconds(60.0)))
    await eventually(lambda: door.told == ["shutdown"], "the handler is told")
    assert not stopping.done()
    listener.close()
    (cut,) = await stopping
    assert cut == 0


async def test_shutdown_cuts_what_lives_at_the_deadline() -> None:
    router = Router([Door()])
    ends = [dispatched(router) for _ in range(2)]
    deadline = in_seconds(0.1)
    assert await router.shutdown(deadline) == 2
    assert abs(in_seconds(0.0) - deadline) < 0.5
    assert [dialer.close_reason for dialer, _ in ends] == [(0, "the node is shutting down")] * 2
    assert router.connections == ()


@pytest.mark.parametrize(("seconds_before", "cut"), [(None, 0), (0.0, 1), (0.01, 1)])
async def test_what_a_handler_ends_only_at_the_deadline_was_cut(seconds_before: float | None, cut: int) -> None:
    router = Router([PoliteDoor(seconds_before)])
    dialer, _ = dispatched(router)
    await eventually(lambda: router.connections, "the connection is served")
    await asyncio.sleep(0)
    assert await router.shutdown(in_seconds(0.2)) == cut
    assert dialer.close_reason == (0, "bye")


async def test_shutdown_twice_tells_handlers_once() -> None:
    door = Door()
    router = Router([door])
    dispatched(router)
    assert [await router.shutdown(0.0), await router.shutdown(0.0)] == [1, 0]
    assert door.told == ["shutdown"]


async def test_a_handler_that_cannot_shut_down_does_not_hold_up_the_others(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("alknet.alpn.router.ENDING_GRACE_S", 0.05)
    door = Door("good")
    router = Router([FailingDoor(ValueError("a mistake"), "bad"), StuckDoor("stuck"), door])
    dialer, _ = dispatched(router, "good")
    async with asyncio.timeout(5.0):
        assert await router.shutdown(in_seconds(0.05)) == 1
    assert door.told == ["shutdown"]
    assert dialer.close_reason is not None
    assert "a mistake" in caplog.text
    assert "handlers did not end in time count=1" in caplog.text


async def test_a_handler_may_end_politely_after_the_deadline() -> None:
    class Late(PoliteDoor):
        async def shutdown(self, deadline: float) -> None:
            await super().shutdown(deadline)
            await asyncio.sleep(0.05)
            self.told.append("done")

    door = Late(0.0)
    router = Router([door])
    dispatched(router)
    assert await router.shutdown(in_seconds(0.05)) == 1
    assert door.told == ["done"]


async def test_a_connection_that_comes_during_shutdown_is_closed() -> None:
    door = Door()
    router = Router([door])
    dispatched(router)
    stopping = asyncio.gather(router.shutdown(in_seconds(0.05)))
    await eventually(lambda: door.told == ["shutdown"], "shutdown has begun")
    late, _ = dispatched(router)
    assert late.close_reason == (0, "the node is shutting down")
    (cut,) = await stopping
    assert cut == 1
