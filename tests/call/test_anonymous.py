"""What callers get who have not proven to be anybody: places, calls a second, and how long."""

import asyncio
import contextlib
from pathlib import Path

import pytest

from alknet.alpn.memory import memory_pair
from alknet.alpn.streams import Address
from alknet.call import anonymous, handler
from alknet.call.anonymous import BURST, CALLS_PER_S, Anonymous
from alknet.call.client import over_connection
from alknet.call.doorkeeper import DoorLimits
from alknet.call.errors import CallError
from testkit.calls import CallDoor
from testkit.polling import eventually


def test_they_take_a_quarter_of_the_places_in_all_and_of_each_address() -> None:
    strangers = Anonymous()
    for _ in range(25):
        strangers.enter("a", total=1000, per_address=100)
    with pytest.raises(CallError, match="connections of this address"):
        strangers.enter("a", total=1000, per_address=100)
    strangers.enter("b", total=1000, per_address=100)
    with pytest.raises(CallError, match="too many callers"):
        strangers.enter("c", total=104, per_address=100)
    strangers.leave("a")
    strangers.enter("a", total=1000, per_address=100)


def test_there_is_always_one_place() -> None:
    strangers = Anonymous()
    strangers.enter("a", total=1, per_address=1)
    with pytest.raises(CallError, match="too many"):
        strangers.enter("b", total=1, per_address=1)
    strangers.leave("a")
    strangers.enter("b", total=1, per_address=1)


def test_an_address_has_so_many_calls_a_second_and_a_few_more_after_a_pause() -> None:
    strangers = Anonymous()
    strangers.enter("a", total=1000, per_address=100)
    for _ in range(int(BURST)):
        strangers.called("a", 10.0)
    with pytest.raises(CallError, match="more than 50 calls a second") as refused:
        strangers.called("a", 10.0)
    assert refused.value.retryable
    strangers.called("b", 10.0)
    for _ in range(int(CALLS_PER_S)):
        strangers.called("a", 11.0)
    with pytest.raises(CallError):
        strangers.called("a", 11.0)


def test_to_leave_and_come_again_gives_no_more_calls() -> None:
    strangers = Anonymous()
    for _ in range(int(BURST)):
        strangers.called("a", 0.0)
    for _ in range(2):
        strangers.enter("a", total=1000, per_address=100)
        strangers.leave("a")
    with pytest.raises(CallError, match="calls a second"):
        strangers.called("a", 0.0)
    assert strangers._connections.total() == 0


def test_so_many_addresses_are_remembered_the_busy_ones_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(anonymous, "MAX_KNOWN", 3)
    strangers = Anonymous()
    for host in "abc":
        strangers.called(host, 0.0)
    for _ in range(100):
        strangers.called("b", 0.0)
    strangers.called("d", 1.0)  # a and c have rested
    assert set(strangers._left) == {"b", "d"}
    strangers.called("e", 1.0)
    strangers.called("f", 1.0)  # nobody has, so the oldest goes
    assert set(strangers._left) == {"d", "e", "f"}


async def _enter(door: CallDoor, host: str) -> object:
    dialer, listener = memory_pair(alpn="alknet/call", remote=Address(host, 4000))
    door.router.dispatch(listener)
    return await over_connection(dialer, check=lambda challenge: None)


async def test_the_door_gives_them_their_part_and_takes_it_back(tmp_path: Path) -> None:
    door = CallDoor(tmp_path)
    door.doors.limits = DoorLimits(half_open=8, connections_per_address=4)
    first = await _enter(door, "192.0.2.1")
    with pytest.raises(CallError, match="connections of this address"):
        await _enter(door, "192.0.2.1")
    await _enter(door, "192.0.2.2")
    with pytest.raises(CallError, match="too many callers") as refused:
        await _enter(door, "192.0.2.3")
    assert refused.value.code == "RESOURCE_EXHAUSTED"
    async with door.session() as own:
        assert await own.session.call("services/list"), "who has a key has another place"
    await first.session.aclose()  # type: ignore[attr-defined]
    await eventually(lambda: door.doors._anonymous._connections.total() == 1, "the place is free")
    await _enter(door, "192.0.2.3")
    await door.aclose()


async def test_a_flood_of_public_calls_is_refused_and_not_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(anonymous, "BURST", 5.0)
    monkeypatch.setattr(anonymous, "CALLS_PER_S", 0.001)
    door = CallDoor(tmp_path)
    async with door.session(anonymous=True) as link:
        answers = await link.session.batch([("services/list", {})] * 20)
    assert [isinstance(answer, CallError) for answer in answers] == [False] * 5 + [True] * 15
    assert answers[-1].code == "RESOURCE_EXHAUSTED"
    intents = [r for r in door.audit.records if r["action"] == "services/list" and r["phase"] == "intent"]
    assert len(intents) == 5
    await door.aclose()


async def test_nobody_in_particular_stays_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handler, "IDLE_S", 0.02)
    monkeypatch.setattr(handler, "LIFETIME_S", 0.1)
    monkeypatch.setattr(anonymous, "BURST", 1e9)
    door = CallDoor(tmp_path)
    async with door.session(anonymous=True) as link:
        while link.session.is_open:
            with contextlib.suppress(CallError):
                await link.session.call("services/list")
            await asyncio.sleep(0)
        # Who was speaking at that very moment may find the connection gone before it has read why.
        assert link.session.end_reason in (
            "nobody in particular has been here for long enough",
            "the connection was lost",
        )
    await door.aclose()


async def test_whom_an_anonymous_call_is_forwarded_for_is_not_written_down(tmp_path: Path) -> None:
    door = CallDoor(tmp_path)
    async with door.session(anonymous=True) as link:
        await link.session.call("services/list", forwarded_for="x" * 200)
    assert not [record for record in door.audit.records if record.get("forwarded_for")]
    await door.aclose()
