"""The rules of a faulty path, with the time as an argument, and the UDP relay that applies them."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testkit import datagrams
from testkit.datagrams import Conditions, Lane, udp_relay
from testkit.polling import eventually

LOOPBACK = "127.0.0.1"
PROBABILITIES = st.floats(0.0, 1.0)


# --- lanes -------------------------------------------------------------------------------------------------------


def through(conditions: Conditions, count: int = 1000, seed: str = "seed") -> list[int]:
    """What comes out, in its order, of so many numbers that go in at once."""
    lane: Lane[int] = Lane(conditions, seed)
    for number in range(count):
        lane.put(number, 0.0)
    return lane.take(1000.0)


def test_without_conditions_everything_passes_at_once_and_in_order() -> None:
    lane: Lane[int] = Lane(Conditions(), "seed")
    for number in range(100):
        lane.put(number, 5.0)
    assert lane.next_s() == 5.0
    assert lane.take(5.0) == list(range(100))


def test_a_delayed_packet_comes_when_it_is_due() -> None:
    lane: Lane[str] = Lane(Conditions(delay_s=0.5), "seed")
    lane.put("x", 10.0)
    assert lane.take(10.49) == []
    assert lane.next_s() == 10.5
    assert lane.take(10.5) == ["x"]
    assert lane.next_s() == float("inf")


def test_about_as_many_are_hit_as_was_asked_for() -> None:
    assert 600 < len(through(Conditions(loss=0.3))) < 800
    assert 1200 < len(through(Conditions(duplicate=0.3))) < 1400
    assert through(Conditions(loss=1.0)) == []


def test_a_late_packet_is_overtaken() -> None:
    lane: Lane[int] = Lane(Conditions(reorder=1.0, late_s=0.1), "seed")
    lane.put(1, 0.0)
    lane.conditions = Conditions()
    lane.put(2, 0.05)
    lane.put(3, 0.2)
    assert lane.take(1.0) == [2, 1, 3]
    assert lane.counts.late == 1


def test_jitter_and_a_shorter_delay_keep_the_order() -> None:
    assert through(Conditions(jitter_s=0.5)) == list(range(1000))
    lane: Lane[int] = Lane(Conditions(delay_s=1.0), "seed")
    lane.put(1, 0.0)
    lane.conditions = Conditions()
    lane.put(2, 0.0)
    assert lane.take(1.0) == [1, 2]


def test_a_seed_repeats_everything() -> None:
    conditions = Conditions(loss=0.1, duplicate=0.1, reorder=0.1, jitter_s=0.1)
    assert through(conditions) == through(conditions) != through(conditions, seed="other")


def test_other_conditions_do_not_change_which_packets_are_lost() -> None:
    only_loss = through(Conditions(loss=0.2))
    assert sorted(set(through(Conditions(loss=0.2, duplicate=0.3, reorder=0.3, jitter_s=1.0)))) == only_loss


@given(loss=PROBABILITIES, duplicate=PROBABILITIES, reorder=PROBABILITIES, jitter_s=PROBABILITIES)
def test_the_counts_add_up(**conditions: float) -> None:
    lane: Lane[int] = Lane(Conditions(**conditions), "seed")
    for number in range(50):
        lane.put(number, number / 100)
    taken = [*lane.take(0.3)]
    assert lane.counts.passed == len(taken)
    taken += lane.take(100.0)
    assert lane.counts.waiting == 0
    assert len(taken) == 50 - lane.counts.lost + lane.counts.duplicated
    assert len(set(taken)) == 50 - lane.counts.lost


def test_a_held_lane_keeps_what_it_has_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datagrams, "MAX_QUEUED", 3)
    lane: Lane[int] = Lane(Conditions(), "seed")
    lane.hold(2.0)
    for number in range(5):
        lane.put(number, 1.0)
    assert lane.take(1.9) == []
    assert lane.next_s() == 2.0
    assert lane.take(2.0) == [0, 1, 2]
    assert lane.counts.overflowed == 2
    lane.hold()
    lane.put(5, 3.0)
    assert (lane.take(1000.0), lane.next_s()) == ([], float("inf"))
    lane.release()
    assert lane.take(3.0) == [5]


@pytest.mark.parametrize("wrong", [{"loss": 1.1}, {"reorder": -0.1}, {"delay_s": -1.0}])
def test_conditions_that_cannot_be_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Conditions(**wrong)


# --- the relay ---------------------------------------------------------------------------------------------------


class Peer(asyncio.DatagramProtocol):
    """Keeps what it gets and from where; `answers` sends everything back."""

    def __init__(self, *, answers: bool = False) -> None:
        self.answers = answers
        self.data: list[bytes] = []
        self.senders: list[tuple[str, int]] = []

    def connection_made(self, transport: asyncio.DatagramTransport) -> None:  # type: ignore[override]
        self.transport = transport

    @property
    def address(self) -> tuple[str, int]:
        return self.transport.get_extra_info("sockname")[:2]

    def datagram_received(self, data: bytes, sender: tuple[Any, ...]) -> None:
        self.data.append(data)
        self.senders.append(sender[:2])
        if self.answers:
            self.transport.sendto(data, sender)

    def send(self, address: tuple[Any, ...], count: int = 1, *, text: str = "") -> None:
        for number in range(count):
            self.transport.sendto(f"{text}{number}".encode(), address)


@asynccontextmanager
async def peer(*, answers: bool = False, host: str = LOOPBACK) -> AsyncIterator[Peer]:
    loop = asyncio.get_running_loop()
    transport, protocol = await loop.create_datagram_endpoint(lambda: Peer(answers=answers), local_addr=(host, 0))
    try:
        yield protocol
    finally:
        transport.close()


def numbered(count: int, text: str = "") -> list[bytes]:
    return [f"{text}{number}".encode() for number in range(count)]


@pytest.mark.parametrize("host", [LOOPBACK, "::1"])
async def test_the_relay_carries_datagrams_there_and_back(host: str) -> None:
    async with (
        peer(answers=True, host=host) as server,
        peer(host=host) as client,
        udp_relay(target=server.address) as relay,
    ):
        client.send(relay.address, 100)
        await eventually(lambda: len(client.data) == 100, "all came back")
        assert client.data == server.data == numbered(100)
        assert set(client.senders) == {relay.address}
        assert relay.sources == {client.address: server.senders[0]}
        assert relay.to_server.counts.passed == relay.to_client.counts.passed == 100


async def test_every_client_gets_its_own_answers() -> None:
    async with (
        peer(answers=True) as server,
        udp_relay(target=server.address) as relay,
        contextlib.AsyncExitStack() as stack,
    ):
        clients = [await stack.enter_async_context(peer()) for _ in range(10)]
        for number, client in enumerate(clients):
            client.send(relay.address, 5, text=f"{number}-")
        await eventually(lambda: all(len(client.data) == 5 for client in clients), "all came back")
        for number, client in enumerate(clients):
            assert client.data == numbered(5, f"{number}-")
        assert len(set(relay.sources.values())) == 10


async def test_the_relay_loses_doubles_and_reorders() -> None:
    async with (
        peer() as server,
        peer() as client,
        udp_relay(target=server.address, loss=0.1, duplicate=0.2, reorder=0.2, seed=7) as relay,
    ):
        client.send(relay.address, 200)
        counts = relay.to_server.counts
        await eventually(lambda: counts.received == 200 and counts.waiting == 0, "all are through")
        await eventually(lambda: len(server.data) == counts.passed, "and arrived")
    assert counts.lost
    assert counts.duplicated
    assert len(set(server.data)) == 200 - counts.lost
    first = list(dict.fromkeys(server.data))
    assert first != [data for data in numbered(200) if data in first]


async def test_a_delay_is_kept_in_each_direction() -> None:
    async with peer(answers=True) as server, peer() as client, udp_relay(target=server.address, delay_s=0.03) as relay:
        began = time.monotonic()
        client.send(relay.address)
        await eventually(lambda: client.data, "it came back")
        assert 0.058 < time.monotonic() - began < 2.0


async def test_one_direction_can_fail_alone() -> None:
    async with peer(answers=True) as server, peer() as client, udp_relay(target=server.address) as relay:
        relay.set(loss=1.0, towards="client")
        client.send(relay.address, 3)
        await eventually(lambda: relay.to_client.counts.lost == 3, "the answers are lost")
        assert server.data == numbered(3)
        assert not client.data


async def test_a_held_relay_delivers_when_it_is_released() -> None:
    async with peer(answers=True) as server, peer() as client, udp_relay(target=server.address) as relay:
        relay.hold()
        client.send(relay.address, 10)
        await eventually(lambda: relay.to_server.counts.waiting == 10, "the relay has them")
        assert not server.data
        relay.release()
        await eventually(lambda: client.data == numbered(10), "all came back")


async def test_a_stalled_relay_goes_on_by_itself() -> None:
    async with peer(answers=True) as server, peer() as client, udp_relay(target=server.address) as relay:
        began = time.monotonic()
        relay.stall(0.05)
        client.send(relay.address, 10)
        await eventually(lambda: client.data == numbered(10), "all came back")
        assert time.monotonic() - began >= 0.05


async def test_after_a_rebinding_the_server_sees_other_ports_and_the_old_ones_are_dead() -> None:
    async with peer(answers=True) as server, peer() as client, udp_relay(target=server.address) as relay:
        client.send(relay.address)
        await eventually(lambda: len(client.data) == 1, "it came back")
        relay.rebind()
        server.transport.sendto(b"to the old port", server.senders[0])
        client.send(relay.address)
        await eventually(lambda: len(client.data) == 2, "it came back")
        assert client.data == [b"0", b"0"]
        assert server.senders[0] != server.senders[1] == relay.sources[client.address]
        assert set(client.senders) == {relay.address}


async def test_a_stranger_does_not_get_in_from_behind() -> None:
    async with (
        peer(answers=True) as server,
        peer() as client,
        peer() as stranger,
        udp_relay(target=server.address) as relay,
    ):
        client.send(relay.address)
        await eventually(lambda: len(client.data) == 1, "it came back")
        stranger.send(relay.sources[client.address])
        client.send(relay.address)
        await eventually(lambda: len(client.data) == 2, "it came back")
        assert set(client.senders) == {relay.address}
        assert relay.to_client.counts.received == 2


async def test_a_dead_server_does_not_stop_the_relay() -> None:
    async with peer() as gone:
        address = gone.address
    async with peer() as client, udp_relay(target=address) as relay:
        for count in range(1, 4):
            client.send(relay.address)
            await eventually(lambda count=count: relay.to_server.counts.passed == count, "it is sent")


async def test_more_clients_than_the_relay_has_room_for_get_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datagrams, "MAX_FLOWS", 1)
    async with peer() as server, peer() as first, peer() as second, udp_relay(target=server.address) as relay:
        first.send(relay.address)
        await eventually(lambda: server.data, "the first one is served")
        second.send(relay.address)
        await eventually(lambda: relay.to_server.counts.overflowed == 1, "the second one is dropped")
        assert list(relay.sources) == [first.address]
