"""Threads for plain functions: nobody has all of them, and no place is lost but to a function that runs."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alknet.call.errors import CallError
from alknet.call.operations import operation
from alknet.call.threads import ANONYMOUS_THREADS, PER_CALLER, SYNC_THREADS, Place, Threads
from testkit.calls import CallDoor
from testkit.polling import eventually


class Pool:
    """Some threads, and functions in them that a test lets go."""

    def __init__(self, **limits: int) -> None:
        self.threads = Threads("test-operation", **limits)
        self.let_go = threading.Event()

    async def place(self, peer: str | None = "alice", *, connection: str = "c1", keeps: bool = False) -> Place:
        async with asyncio.timeout(5):
            return await self.threads.place("t/a", peer=peer, connection=connection, keeps=keeps)

    def waiting(self, peer: str | None = "alice", *, connection: str = "c1") -> "asyncio.Task[Place]":
        loop = asyncio.get_running_loop()
        return loop.create_task(self.threads.place("t/a", peer=peer, connection=connection))

    async def abandoned(self, peer: str | None = "alice", *, connection: str = "c1", **how: Any) -> None:
        """A function that blocks and that nobody waits for."""
        place = await self.place(peer, connection=connection)
        running = place.run(self.let_go.wait)
        await eventually(lambda: place._running is not None and place._running.running(), "it is in its thread")
        running.cancel()
        place.give_back(**how)

    @property
    def is_unused(self) -> bool:
        threads = self.threads
        return not (threads._all.held or threads._all.kept or threads._callers or threads._waiting)


@asynccontextmanager
async def pool(**limits: int) -> AsyncIterator[Pool]:
    """A pool that every place has been given back to, in the end."""
    it = Pool(**limits)
    try:
        yield it
        it.let_go.set()
        await eventually(lambda: it.is_unused, "nothing is kept of anybody")
    finally:
        it.let_go.set()
        it.threads.close()


async def refused(waiting: Any) -> str:
    async with asyncio.timeout(5):
        with pytest.raises(CallError) as caught:
            await waiting
    assert caught.value.code == "RESOURCE_EXHAUSTED"
    return str(caught.value)


async def turn() -> None:
    for _ in range(3):
        await asyncio.sleep(0)


def test_two_callers_cannot_have_everything() -> None:
    assert 2 * PER_CALLER < ANONYMOUS_THREADS < SYNC_THREADS


async def test_a_function_runs_in_a_thread_and_its_place_is_free_again() -> None:
    async with pool() as it:
        place = await it.place()
        assert (await place.run(threading.current_thread)).name.startswith("test-operation")
        with pytest.raises(ZeroDivisionError):
            await place.run(lambda: 1 // 0)
        assert not place.is_busy
        place.give_back()


async def test_beyond_its_places_a_caller_waits_and_others_do_not() -> None:
    async with pool(per_caller=2) as it:
        first, second = await it.place(), await it.place()
        third, fourth = it.waiting(), it.waiting()
        other = await it.place("bob")
        await turn()
        assert not third.done()
        first.give_back()
        (await third).give_back()
        (await fourth).give_back()
        for place in (second, other):
            place.give_back()


async def test_when_all_are_in_use_each_caller_has_its_turn() -> None:
    async with pool(total=2, per_caller=2) as it:
        held = [await it.place("alice"), await it.place("alice")]
        waiting = [it.waiting(peer) for peer in ("alice", "alice", "alice", "bob")]
        await turn()
        held[0].give_back()
        held[1].give_back()
        await turn()
        assert [task.done() for task in waiting] == [True, False, False, True]
        for task in (waiting[0], waiting[3], waiting[1], waiting[2]):
            (await task).give_back()


async def test_who_waits_no_longer_takes_no_place() -> None:
    async with pool(per_caller=1) as it:
        held = await it.place()
        waiting = [it.waiting() for _ in range(3)]
        await turn()
        waiting[0].cancel()
        await turn()
        held.give_back()
        waiting[1].cancel()  # its turn has come, and it does not know yet
        place = await waiting[2]
        assert [task.cancelled() for task in waiting] == [True, True, False]
        place.give_back()


async def test_a_function_that_is_given_up_keeps_its_place_until_it_returns(caplog: pytest.LogCaptureFixture) -> None:
    async with pool(per_caller=2) as it:
        await it.abandoned()
        assert caplog.messages == ["a plain function that nobody waits for goes on operation=t/a peer=alice"]
        held = await it.place()
        waiting = it.waiting()
        await turn()
        it.let_go.set()
        (await waiting).give_back()
        held.give_back()


async def test_who_has_lost_all_places_is_refused_and_so_is_whoever_of_them_waits() -> None:
    async with pool(per_caller=2) as it:
        await it.abandoned()
        held = await it.place()
        waiting = it.waiting()
        await turn()
        running = held.run(it.let_go.wait)
        running.cancel()
        await turn()
        await eventually(lambda: held.is_busy, "it runs")
        held.give_back()
        words = "2 plain functions of this caller still run"
        assert words in await refused(waiting)
        assert words in await refused(it.place())
        (await it.place("bob")).give_back()


async def test_subscriptions_keep_their_places_and_who_has_no_others_is_refused() -> None:
    async with pool(per_caller=1) as it:
        kept = await it.place(keeps=True)
        await refused(it.place())
        kept.give_back()
        (await it.place()).give_back()


async def test_nobody_in_particular_has_a_part_for_each_connection_and_for_all_of_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("alknet.call.threads.ANONYMOUS_THREADS", 3)
    async with pool(per_caller=2) as it:
        for connection in ("c1", "c1", "c2"):
            await it.abandoned(None, connection=connection)
        assert "of this caller" in await refused(it.place(None, connection="c1"))
        assert "of anonymous callers" in await refused(it.place(None, connection="c3"))
        (await it.place("alice", connection="c1")).give_back()


async def test_when_every_place_is_lost_everybody_is_refused() -> None:
    async with pool(total=2, per_caller=1) as it:
        await it.abandoned("alice")
        await it.abandoned("bob")
        assert "of this node" in await refused(it.place("carol"))


async def test_what_is_to_be_done_last_is_done_before_the_place_is_free() -> None:
    done: list[bool] = []
    async with pool(per_caller=1) as it:
        await it.abandoned(last=lambda: done.append(it.is_unused))
        it.let_go.set()
        await eventually(lambda: done, "it is done")
        assert done == [False]


async def test_closed_threads_begin_nothing_and_what_runs_may_end() -> None:
    it = Pool()
    await it.abandoned(last=list)
    it.threads.close()
    place = await it.place()
    with pytest.raises(RuntimeError):
        place.run(list)
    place.give_back()
    it.let_go.set()
    await eventually(lambda: it.is_unused, "its place is free")


@given(steps=st.lists(st.tuples(st.sampled_from(["place", "back", "cancel", "keep"]), st.integers(0, 5)), max_size=60))
def test_places_are_never_given_twice_nor_lost(steps: list[tuple[str, int]]) -> None:
    async def main() -> None:
        it = Pool(total=3, per_caller=2)
        tasks: list[asyncio.Task[Place]] = []
        places: list[Place] = []
        for what, n in steps:
            if what == "place":
                tasks.append(it.waiting(f"p{n % 3}", connection="c"))
            elif what == "cancel" and tasks:
                tasks[n % len(tasks)].cancel()
            elif what == "back" and places:
                places.pop(n % len(places)).give_back()
            elif what == "keep" and places:
                places[n % len(places)].keep()
            if n % 2:
                await turn()
            for task in [task for task in tasks if task.done()]:
                tasks.remove(task)
                if not task.cancelled() and task.exception() is None:
                    places.append(task.result())
            assert len(places) <= it.threads._all.held <= 3
        while tasks or places:
            for place in places:
                place.give_back()
            await turn()
            places = [task.result() for task in tasks if task.done() and not task.cancelled() and not task.exception()]
            tasks = [task for task in tasks if not task.done()]
        assert it.is_unused
        it.threads.close()

    asyncio.run(asyncio.wait_for(main(), 10))


# --- behind a door ----------------------------------------------------------------------------------------------------


class Plain:
    def __init__(self) -> None:
        self.let_go = threading.Event()
        self.begun = 0

    @operation("t/stuck", public=True)
    def stuck(self) -> None:
        self.begun += 1
        self.let_go.wait(20)

    @operation("t/quick", public=True)
    def quick(self) -> str:
        return "here"

    @operation("t/items", public=True)
    def items(self) -> Iterator[int]:
        yield 1
        yield 2


@pytest.fixture
async def plain() -> AsyncIterator[Plain]:
    plain = Plain()
    yield plain
    plain.let_go.set()


@pytest.fixture
async def door(tmp_path: Path, plain: Plain) -> AsyncIterator[CallDoor]:
    door = CallDoor(tmp_path, plain)
    yield door
    plain.let_go.set()
    await door.aclose()


async def code_of(call: Callable[..., Any], *arguments: Any, **how: Any) -> str:
    with pytest.raises(CallError) as caught:
        await call(*arguments, **how)
    return caught.value.code


async def test_a_caller_whose_functions_never_return_starves_nobody_else(door: CallDoor, plain: Plain) -> None:
    async with door.session() as alice, door.session(anonymous=True) as nobody, asyncio.timeout(15):
        calls = [code_of(nobody.session.call, "t/stuck", timeout_s=0.5) for _ in range(20)]
        codes = await asyncio.gather(*calls)
        assert set(codes) <= {"TIMEOUT", "RESOURCE_EXHAUSTED"}
        assert plain.begun <= PER_CALLER
        await eventually(lambda: door.dispatcher.threads._all.kept == PER_CALLER, "all are given up")
        assert await code_of(nobody.session.call, "t/quick") == "RESOURCE_EXHAUSTED"
        assert await alice.session.call("t/quick") == "here"
        assert [item async for item in alice.session.subscribe("t/items")] == [1, 2]
        plain.let_go.set()
        await eventually(lambda: door.dispatcher.threads._all.kept == 0, "they have returned")
        assert await nobody.session.call("t/quick") == "here"


async def test_a_subscription_of_a_plain_generator_has_one_place_while_it_lives(door: CallDoor) -> None:
    async with door.session() as link, asyncio.timeout(15):
        subscriptions = [link.session.subscribe("t/items", credit=1) for _ in range(PER_CALLER)]
        assert [await anext(items) for items in subscriptions] == [1] * PER_CALLER
        kept = door.dispatcher.threads._all
        assert await code_of(link.session.call, "t/quick") == "RESOURCE_EXHAUSTED"
        for items in subscriptions:
            await items.aclose()
        await eventually(lambda: (kept.kept, kept.held) == (0, 0), "their places are free")
        assert await link.session.call("t/quick") == "here"
