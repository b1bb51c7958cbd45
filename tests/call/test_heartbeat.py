"""A side that is silent is asked, and given up when it does not answer; one that answers is not."""

import asyncio
import time
from collections.abc import Awaitable, Callable

import pytest

from alknet.alpn.memory import memory_pair
from alknet.call.channel import Channel
from alknet.call.codecs import JSON
from alknet.call.frames import frame
from alknet.call.heartbeat import QUESTIONS, wait_silent
from alknet.tasks import Tasks

pytestmark = [
    pytest.mark.usefixtures("nothing_is_left"),
    pytest.mark.asyncio(loop_factories=["uvloop"]),  # which nodes run on; patience takes its time on any loop
]
PATIENCE_S = 0.4


class Far:
    """The other end of a channel."""

    async def __aenter__(self) -> "Far":
        self._dialer, listener = memory_pair(alpn="alknet/call")
        self.near = await Channel.on(await self._dialer.open_stream())
        self.near.take_over(lambda channel, bodies: None, lambda channel: None)
        self.stream = await listener.accept_stream()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.near.abort()
        self._dialer.close()

    async def asked(self) -> dict[str, object]:
        body = (await self.stream.read())[4:]
        found: dict[str, object] = JSON.decode(body)
        return found

    async def answer(self) -> None:
        await self.stream.write(frame(JSON.encode({"type": "session.pong", "id": "session", "payload": {}})))


async def test_who_never_answers_is_given_up_after_the_patience() -> None:
    async with Far() as far, asyncio.timeout(10):
        await wait_silent(far.near, patience_s=PATIENCE_S)
        asked = await far.stream.read()
        assert asked.count(b"session.ping") == QUESTIONS


async def beside(far: Far, work: Callable[[], Awaitable[None]], *, for_s: float) -> bool:
    """Whether the other side was given up while it did this."""
    tasks = Tasks("test")
    silent = tasks.start(wait_silent(far.near, patience_s=PATIENCE_S), name="silent")
    tasks.start(work(), name="work")
    try:
        await asyncio.wait((silent,), timeout=for_s)
        return silent.done()
    finally:
        await tasks.aclose()


async def test_who_answers_stays() -> None:
    async with Far() as far:

        async def answer() -> None:
            while True:
                assert (await far.asked())["type"] == "session.ping"
                await far.answer()

        assert not await beside(far, answer, for_s=4 * PATIENCE_S)


async def test_who_talks_of_something_else_is_not_asked() -> None:
    async with Far() as far:

        async def talk() -> None:
            while True:
                await far.answer()
                await asyncio.sleep(PATIENCE_S / 20)

        assert not await beside(far, talk, for_s=2 * PATIENCE_S)
        far.near.close()
        assert await far.stream.read() == b""


async def test_a_loop_that_was_blocked_gives_up_nobody_who_has_spoken_meanwhile() -> None:
    async with Far() as far:

        async def answer_late() -> None:
            await far.asked()
            time.sleep(2 * PATIENCE_S)  # noqa: ASYNC251 - the point of it
            while True:
                await far.answer()
                await asyncio.sleep(PATIENCE_S / 20)

        assert not await beside(far, answer_late, for_s=4 * PATIENCE_S)
