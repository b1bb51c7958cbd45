"""The caller's end of a subscription by itself: order, credit, memory, and who hears of its end."""

import asyncio
import gc
from typing import Any

import pytest

from alknet.call.envelopes import Ended
from alknet.call.errors import CallError
from alknet.call.subscription import MAX_UNPACED_BYTES, MAX_UNREAD_BYTES, End, Subscription

pytestmark = pytest.mark.usefixtures("nothing_is_left")


class Engine:
    """What a subscription asks of its session."""

    def __init__(self) -> None:
        self.begun: list[tuple[str, Any, int, float | None]] = []
        self.granted: list[int] = []
        self.dropped: list[str] = []
        self.may_begin = asyncio.Event()
        self.may_begin.set()
        self.refusal: CallError | None = None

    async def begin_subscription(
        self, subscription: Subscription, name: str, value: Any, credit: int, timeout_s: float | None
    ) -> str:
        await self.may_begin.wait()
        if self.refusal is not None:
            raise self.refusal
        self.begun.append((name, value, credit, timeout_s))
        return f"s{len(self.begun)}"

    def grant(self, id: str, n: int) -> None:
        self.granted.append(n)

    def drop(self, id: str, reason: str = "") -> None:
        self.dropped.append(id)

    def drop_soon(self, id: str) -> None:
        self.drop(id)


def subscribed(engine: Engine, *, credit: int = 4) -> Subscription:
    return Subscription(engine, "t/count", {"to": 5}, credit=credit, timeout_s=2.0)  # type: ignore[arg-type]


async def begun(engine: Engine, *, credit: int = 4) -> Subscription:
    items = subscribed(engine, credit=credit)
    await items.__aenter__()
    return items


async def failure(items: Subscription) -> CallError:
    with pytest.raises(CallError) as caught:
        await anext(items)
    return caught.value


async def turn() -> None:
    for _ in range(3):
        await asyncio.sleep(0)


async def test_it_begins_when_its_first_item_is_waited_for_and_once() -> None:
    engine = Engine()
    items = subscribed(engine)
    assert engine.begun == []
    waiting = [asyncio.get_running_loop().create_task(anext(items)) for _ in range(2)]
    await turn()
    assert engine.begun == [("t/count", {"to": 5}, 4, 2.0)]
    items.received("a", 1)
    items.received("b", 1)
    assert sorted(await asyncio.gather(*waiting)) == ["a", "b"]
    await items.aclose()


async def test_one_that_is_closed_before_it_begins_never_does() -> None:
    engine = Engine()
    items = subscribed(engine)
    await items.aclose()
    with pytest.raises(StopAsyncIteration):
        await anext(items)
    assert (engine.begun, items.end) == ([], End.CLOSED)


async def test_items_come_in_order_and_also_those_that_arrived_before_the_end() -> None:
    items = await begun(Engine())
    for n in range(3):
        items.received(n, 1)
    items.ended(Ended("s1"))
    assert [item async for item in items] == [0, 1, 2]
    assert items.end is End.COMPLETED


@pytest.mark.parametrize(
    ("ended", "end"),
    [
        (Ended("s1", CallError("OUT_OF_STOCK", "none")), End.FAILED),
        (Ended("s1", CallError("UNAVAILABLE", "tired"), is_aborted=True), End.ABORTED),
        (Ended("s1", CallError("UNAVAILABLE", "gone"), is_lost=True), End.LOST),
    ],
)
async def test_an_end_that_is_no_completion_is_raised_after_the_items_and_every_time(ended: Ended, end: End) -> None:
    items = await begun(Engine())
    items.received(0, 1)
    items.ended(ended)
    assert await anext(items) == 0
    for _ in range(2):
        assert await failure(items) is ended.error
    assert items.end is end


async def test_who_waits_hears_of_an_item_and_of_the_end() -> None:
    items = await begun(Engine())
    waiting = asyncio.get_running_loop().create_task(anext(items))
    await turn()
    assert not waiting.done()
    items.received(7, 1)
    assert await waiting == 7
    waiting = asyncio.get_running_loop().create_task(anext(items))
    await turn()
    await items.aclose()
    with pytest.raises(StopAsyncIteration):
        await waiting


async def test_closing_aborts_once_and_only_what_has_not_ended() -> None:
    engine = Engine()
    items = await begun(engine)
    items.received(0, 1)
    await items.aclose()
    await items.aclose()
    assert (engine.dropped, items.end) == (["s1"], End.CLOSED)
    with pytest.raises(StopAsyncIteration):
        await anext(items)
    items = await begun(engine)
    items.ended(Ended("s2"))
    async with items:
        pass
    assert (engine.dropped, items.end) == (["s1"], End.COMPLETED)


async def test_one_that_nobody_holds_is_aborted_if_it_has_begun_and_not_ended() -> None:
    engine = Engine()
    items = subscribed(engine)
    del items
    gc.collect()
    assert engine.dropped == []
    items = await begun(engine)
    del items
    gc.collect()
    assert engine.dropped == ["s1"]
    items = await begun(engine)
    items.ended(Ended("s2"))
    del items
    gc.collect()
    assert engine.dropped == ["s1"]


# --- credit -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("credit", "granted"), [(1, [1] * 8), (2, [1] * 8), (3, [2] * 4), (8, [4, 4])])
async def test_credit_is_given_when_half_of_it_is_used_up(credit: int, granted: list[int]) -> None:
    engine = Engine()
    items = await begun(engine, credit=credit)
    for n in range(8):
        items.received(n, 1)
    assert engine.granted == []
    for n in range(8):
        assert await anext(items) == n
    assert engine.granted == granted
    await items.aclose()


async def test_no_credit_is_given_while_much_is_unread_and_all_of_it_afterwards() -> None:
    engine = Engine()
    items = await begun(engine, credit=4)
    for n in range(4):
        items.received(n, MAX_UNREAD_BYTES)
    assert [await anext(items) for _ in range(2)] == [0, 1]
    assert engine.granted == []
    assert [await anext(items) for _ in range(2)] == [2, 3]
    assert engine.granted == [3]
    await items.aclose()


# --- beginnings that fail ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_paced", [True, False])
async def test_only_what_nothing_paces_ends_when_too_much_is_unread(is_paced: bool) -> None:
    engine = Engine()
    items = Subscription(engine, "t/count", None, credit=4, timeout_s=None, is_paced=is_paced)  # type: ignore[arg-type]
    await items.__aenter__()
    for n in range(3):
        items.received(n, MAX_UNPACED_BYTES // 2)
    assert (items.end, engine.dropped) == ((None, []) if is_paced else (End.FAILED, ["s1"]))
    assert [await anext(items) for _ in range(3)] == [0, 1, 2]
    if not is_paced:
        assert (await failure(items)).code == "RESOURCE_EXHAUSTED"
    await items.aclose()


async def test_one_that_cannot_begin_says_so_every_time() -> None:
    engine = Engine()
    engine.refusal = CallError("UNAVAILABLE", "gone")
    items = subscribed(engine)
    async with asyncio.timeout(5):
        for _ in range(2):
            assert await failure(items) is engine.refusal
    assert items.end is End.FAILED
    await items.aclose()
    assert engine.dropped == []


async def test_one_whose_beginning_is_cancelled_can_begin_later() -> None:
    engine = Engine()
    engine.may_begin.clear()
    items = subscribed(engine)
    waiting = asyncio.get_running_loop().create_task(anext(items))
    await turn()
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    engine.may_begin.set()
    waiting = asyncio.get_running_loop().create_task(anext(items))
    await turn()
    items.received(1, 1)
    async with asyncio.timeout(5):
        assert await waiting == 1
    await items.aclose()
    assert len(engine.begun) == 1


async def test_one_that_is_closed_while_it_begins_is_aborted() -> None:
    engine = Engine()
    engine.may_begin.clear()
    items = subscribed(engine)
    waiting = asyncio.get_running_loop().create_task(anext(items))
    await turn()
    await items.aclose()
    engine.may_begin.set()
    with pytest.raises(StopAsyncIteration):
        await waiting
    assert engine.dropped[-1] == "s1"
    assert items.end is End.CLOSED
