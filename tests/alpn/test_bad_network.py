"""The contract of QUIC connections where datagrams are lost, late, doubled and held up."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from alknet.access import Identity
from alknet.alpn.quic import MAX_SEND_BYTES
from alknet.alpn.streams import MAX_BUFFERED_BYTES
from alknet.alpn.windows import STREAM_BYTES
from testkit.datagrams import UdpRelay, udp_relay
from testkit.polling import eventually, settled

from . import conformance
from .conformance import Carrier, Ends, ManyStreams, Sender, pieces_of, read_all, same
from .quic_peer import served

ALICE = Identity("alice", frozenset(), "key:SHA256:alice")
DEADLINE_S = 20.0
BULK = conformance.BULK[: 1700 * 1024]
"""Loss slows everything down; it is still more than a sender gets rid of while nobody reads."""
BAD = {"loss": 0.01, "reorder": 0.03, "duplicate": 0.02, "late_s": 0.002}


@pytest.fixture(autouse=True, scope="module")
def _less_to_send() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(conformance, "BULK", BULK)
        yield


@asynccontextmanager
async def relayed(**conditions: Any) -> AsyncIterator[tuple[Ends, UdpRelay]]:
    async with served() as node, udp_relay(target=node.address, seed=7022, **conditions) as relay:
        ends = await node.connect(relay.address)
        try:
            yield ends, relay
        finally:
            for end in ends:
                end.close()


@asynccontextmanager
async def bad_connections() -> AsyncIterator[Ends]:
    async with relayed(**BAD) as (ends, _):
        yield ends


@pytest.mark.asyncio(loop_factories=["uvloop"])  # which nodes run on; what is lost takes its time on any loop
class TestQuicOnABadNetwork(ManyStreams):
    carrier = Carrier(bad_connections, most_held_bytes=STREAM_BYTES + MAX_SEND_BYTES + 4 * MAX_BUFFERED_BYTES)


# --- stalls ---------------------------------------------------------------------------------------------------


async def moves(ends: Ends, data: bytes) -> None:
    """Both sides send `data` on one stream, and all of it arrives."""
    a = await ends[0].open_stream()
    async with asyncio.TaskGroup() as group:
        group.create_task(Sender().send(a, pieces_of(data)))
        at_b = group.create_task(answer(ends, data))
        assert same(await read_all(a), data)
    assert same(at_b.result(), data)


async def answer(ends: Ends, data: bytes) -> bytes:
    b = await ends[1].accept_stream()
    async with asyncio.TaskGroup() as group:
        group.create_task(Sender().send(b, pieces_of(data)))
        received = await read_all(b)
    return received


async def test_a_path_that_stands_still_delays_and_loses_nothing() -> None:
    async with asyncio.timeout(DEADLINE_S), relayed() as (ends, relay), asyncio.TaskGroup() as group:
        ends[1].logged_in(ALICE)
        moving = group.create_task(moves(ends, BULK))
        for _ in range(3):
            before = relay.to_client.counts.passed
            await eventually(lambda at=before: relay.to_client.counts.passed > at + 100 or moving.done(), "traffic")
            relay.hold()
            await settled(lambda: relay.to_client.counts.received)
            relay.release()
        await moving


async def test_a_path_on_which_everything_is_lost_for_a_while_recovers() -> None:
    async with asyncio.timeout(DEADLINE_S), relayed() as (ends, relay), asyncio.TaskGroup() as group:
        moving = group.create_task(moves(ends, BULK))
        await eventually(lambda: relay.to_client.counts.passed > 100, "traffic")
        relay.set(loss=1.0)
        await settled(lambda: relay.to_client.counts.received)
        relay.set(loss=0.0)
        await moving


@pytest.mark.parametrize("towards", ["client", "server"])
async def test_a_path_that_loses_in_one_direction_only(towards: Any) -> None:
    async with asyncio.timeout(DEADLINE_S), relayed() as (ends, relay):
        relay.set(towards=towards, loss=0.1)
        await moves(ends, BULK[: 512 * 1024])


@pytest.mark.parametrize("number", range(2))
async def test_a_handshake_succeeds_though_a_third_of_it_is_lost(number: int) -> None:
    async with asyncio.timeout(DEADLINE_S), served() as node:
        async with udp_relay(target=node.address, seed=number, loss=0.3, reorder=0.2) as relay:
            ends = await node.connect(relay.address)
            relay.set(loss=0.0)
            await moves(ends, b"x" * 1000)
            ends[0].close()
            await ends[1].wait_closed()
        await eventually(lambda: node.ids == node.admission.open == 0, "nothing is left")


async def test_a_nat_that_forgets_while_datagrams_are_lost() -> None:
    async with asyncio.timeout(DEADLINE_S), relayed(**BAD) as (ends, relay), asyncio.TaskGroup() as group:
        ends[1].logged_in(ALICE)
        moving = group.create_task(moves(ends, BULK))
        await eventually(lambda: relay.to_client.counts.passed > 300 or moving.done(), "traffic")
        relay.rebind()
        await moving
