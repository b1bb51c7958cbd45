"""Where byte channels lead: to a door of this node, or through it to a peer's; each decided, bounded, recorded."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from alknet.access import Peer
from alknet.alpn.errors import StreamBroken
from alknet.alpn.memory import memory_pair
from alknet.alpn.streams import Connection, Stream
from alknet.call.channel_door import ChannelDoor, inner, splice
from alknet.call.client import Link, over_connection
from alknet.call.context import Caller
from alknet.call.errors import CallError
from alknet.call.exposed import MeshSettings, Terms
from alknet.call.handler import Dialled
from alknet.call.overlays import CHANNEL_PLACES, MAX_SHARE
from alknet.call.registry import Registry
from alknet.errors import AlknetError
from alknet.tasks import Tasks
from testkit.calls import CallDoor
from testkit.polling import eventually

pytestmark = pytest.mark.usefixtures("nothing_is_left")

MIB = 1024 * 1024


async def echo(stream: Stream, caller: Caller) -> str:
    """A door that says back what it hears, after whom it hears it from."""
    assert caller.identity is not None
    await stream.write(f"{caller.identity.id}/{caller.forwarded_for}:".encode())
    while data := await stream.read():
        await stream.write(data)
    await stream.write_eof()
    return "echo"


class Hub:
    """A node with a peer, alice, that calls it, and a worker that has dialled it; both nodes have an echo."""

    def __init__(self, directory: Path, *scopes: str) -> None:
        (directory / "hub").mkdir()
        (directory / "worker").mkdir()
        self.tasks = Tasks("test")
        self.door = CallDoor(directory / "hub", scopes=scopes)
        self.worker = CallDoor(directory / "worker")
        self.of_hub = ChannelDoor(self.door.gate, self.door.mesh.overlays, {"echo": echo})
        self.of_worker = ChannelDoor(self.worker.gate, self.worker.mesh.overlays, {"echo": echo})
        self.door.handler.channels, self.worker.handler.channels = self.of_hub, self.of_worker
        self.let(*scopes)
        hub = Peer("hub", {"demo:*": "own"}, (self.door.node_key.public_key.fingerprint,))
        self.worker.gate.policy = self.worker.policy(peers={"hub": hub})
        self.door.mesh.apply(MeshSettings(terms={"alice": Terms(), "lab": Terms()}), Registry())

    def let(self, *scopes: str) -> None:
        """Let alice have these scopes, and no others."""
        alice = Peer("alice", dict.fromkeys(scopes, "own"), (self.door.key.public_key.fingerprint,))
        lab = Peer("lab", {}, (self.worker.node_key.public_key.fingerprint,))
        self.door.gate.policy = self.door.policy(peers={"alice": alice, "lab": lab})

    @asynccontextmanager
    async def worker_dialled_in(self) -> AsyncIterator[Link]:
        dialer, listener = memory_pair(alpn="alknet/call")
        self.door.router.dispatch(listener)
        dialled = Dialled(self.worker.handler, "hub")
        link = await over_connection(
            dialer, check=lambda challenge: None, key=self.worker.node_key, server_of=dialled.server_of
        )
        serving = self.tasks.start(dialled.serve(link), name="worker")
        try:
            await eventually(lambda: self.door.mesh.overlays.of("lab"), "the worker is attached")
            yield link
        finally:
            dialer.close()
            await serving

    def lines(self, action: str, *, at: CallDoor | None = None) -> list[tuple[Any, ...]]:
        """(peer, resource, outcome, forwarded_for) of what has ended."""
        records = (at or self.door).audit.records
        return [
            (r["peer"], r["resource"], r["outcome"], r.get("forwarded_for"))
            for r in records
            if r["action"] == action and "outcome" in r
        ]

    async def aclose(self) -> None:
        await self.door.aclose()
        await self.worker.aclose()


@asynccontextmanager
async def hub_with(directory: Path, *scopes: str) -> AsyncIterator[Hub]:
    hub = Hub(directory, *scopes)
    try:
        async with asyncio.timeout(20):
            yield hub
    finally:
        await hub.aclose()


async def said_by(stream: Stream, *sent: bytes) -> bytes:
    """All that comes back for what is sent."""
    for data in sent:
        await stream.write(data)
    await stream.write_eof()
    heard = b""
    while data := await stream.read():
        heard += data
    await stream.aclose()
    return heard


async def test_a_channel_leads_to_a_door_of_the_node(tmp_path: Path) -> None:
    async with hub_with(tmp_path) as hub, hub.door.session() as link:
        channel = await link.session.open_channel("echo", forwarded_for="bob")
        assert await said_by(channel, b"one ", b"two") == b"alice/bob:one two"
        await eventually(lambda: hub.lines("channel/open"), "the outcome")
        assert hub.lines("channel/open") == [("alice", "echo", "ok", "bob")]


async def test_a_channel_to_a_service_that_is_not_there_is_not_found(tmp_path: Path) -> None:
    async with hub_with(tmp_path) as hub, hub.door.session() as link:
        with pytest.raises(CallError, match="no byte channel leads to 'tcp' here") as refused:
            await link.session.open_channel("tcp", target="127.0.0.1:1")
        assert refused.value.code == "NOT_FOUND"
        assert hub.lines("channel/open") == [("alice", "tcp", "error NOT_FOUND", None)]


async def test_a_channel_goes_through_the_node_to_its_peer(tmp_path: Path) -> None:
    async with hub_with(tmp_path, "peer:lab") as hub, hub.worker_dialled_in(), hub.door.session() as link:
        channel = await link.session.open_channel("echo", peer="lab")
        data = bytes(range(256)) * 4096 * 4  # more than all windows together
        heard = await asyncio.gather(channel.read(10), _write_all(channel, data), _read_all(channel, len(data)))
        assert heard[0] + heard[2][:1] == b"hub/alice:" + data[:1] or heard[0] == b"hub/alice:"
        assert heard[2] == data
        await channel.aclose()
        await eventually(lambda: hub.lines("peer/channel"), "the outcome")
        assert hub.lines("peer/channel") == [("alice", "lab:echo", "ok", None)]
        await eventually(lambda: hub.lines("channel/open", at=hub.worker), "the outcome at the worker")
        assert hub.lines("channel/open", at=hub.worker) == [("hub", "echo", "ok", "alice")]


async def _write_all(stream: Stream, data: bytes) -> None:
    await stream.write(data)
    await stream.write_eof()


async def _read_all(stream: Stream, count: int) -> bytes:
    heard = b""
    while len(heard) < count and (data := await stream.read()):
        heard += data
    return heard


@pytest.mark.parametrize("peer", ["lab", "nobody"])
async def test_who_may_not_reach_a_peer_does_not_learn_whether_it_is_there(tmp_path: Path, peer: str) -> None:
    async with hub_with(tmp_path, "peer:other") as hub, hub.worker_dialled_in(), hub.door.session() as link:
        with pytest.raises(CallError, match=f"lacks the scope peer:{peer}") as refused:
            await link.session.open_channel("echo", peer=peer)
        assert refused.value.code == "FORBIDDEN"
        assert refused.value.denial_id is not None
        assert hub.lines("channel/open", at=hub.worker) == []


async def test_a_peer_that_is_not_connected_is_unavailable(tmp_path: Path) -> None:
    async with hub_with(tmp_path, "peer:*") as hub, hub.door.session() as link:
        for peer, code in (("lab", "UNAVAILABLE"), ("nobody", "NOT_FOUND")):
            with pytest.raises(CallError) as refused:
                await link.session.open_channel("echo", peer=peer)
            assert refused.value.code == code


async def test_the_peers_own_refusal_reaches_whoever_opened_the_channel(tmp_path: Path) -> None:
    async with hub_with(tmp_path, "peer:lab") as hub, hub.worker_dialled_in(), hub.door.session() as link:
        with pytest.raises(CallError, match="no byte channel leads to 'udp' here"):
            await link.session.open_channel("udp", peer="lab")
        assert hub.lines("peer/channel") == [("alice", "lab:udp", "error NOT_FOUND", None)]


async def test_a_peer_has_so_many_channels_over_all_of_its_connections(tmp_path: Path) -> None:
    async with hub_with(tmp_path) as hub, hub.door.session() as one, hub.door.session() as other:
        hub.of_hub.per_peer = 2
        held = [await one.session.open_channel("echo"), await other.session.open_channel("echo")]
        with pytest.raises(CallError, match="has 2 byte channels open already") as refused:
            await other.session.open_channel("echo")
        assert refused.value.code == "RESOURCE_EXHAUSTED"
        held[0].reset()
        await eventually(lambda: len(hub.lines("channel/open")) == 2, "one is closed")
        held.append(await other.session.open_channel("echo"))
        assert await said_by(held[-1], b"again") == b"alice/None:again"
        held[1].reset()


async def test_a_refused_channel_takes_no_place(tmp_path: Path) -> None:
    async with hub_with(tmp_path, "peer:*") as hub, hub.door.session() as link:
        hub.of_hub.per_peer = 1
        for _ in range(3):
            with pytest.raises(CallError):
                await link.session.open_channel("echo", peer="lab")
        assert await said_by(await link.session.open_channel("echo"), b"x") == b"alice/None:x"


async def test_a_caller_has_its_share_of_the_channels_to_a_peer_and_gives_it_back(tmp_path: Path) -> None:
    async with hub_with(tmp_path, "peer:lab") as hub, hub.worker_dialled_in(), hub.door.session() as link:
        (attachment,) = hub.door.mesh.overlays.of("lab")
        held = [await link.session.open_channel("echo", peer="lab") for _ in range(2)]
        assert attachment.running == {"alice": 2 * CHANNEL_PLACES}
        attachment.take("alice", MAX_SHARE - 2 * CHANNEL_PLACES)
        with pytest.raises(CallError, match="alice has as many calls and channels to peer 'lab'") as refused:
            await link.session.open_channel("echo", peer="lab")
        assert refused.value.code == "RESOURCE_EXHAUSTED"
        attachment.leave("alice", MAX_SHARE - 2 * CHANNEL_PLACES)
        with pytest.raises(CallError, match="no byte channel leads to 'udp' here"):
            await link.session.open_channel("udp", peer="lab")
        for channel in held:
            channel.reset()
        await eventually(lambda: attachment.running == {}, "all is given back")


async def test_taking_the_right_away_ends_a_channel_and_says_why(tmp_path: Path) -> None:
    async with hub_with(tmp_path, "peer:lab") as hub, hub.worker_dialled_in(), hub.door.session() as link:
        channel = await link.session.open_channel("echo", peer="lab")
        assert await channel.read() == b"hub/alice:"
        hub.let("node:read")
        hub.door.handler.recheck()
        with pytest.raises(StreamBroken, match="access was taken away"):
            await channel.read()
        await eventually(lambda: hub.lines("peer/channel"), "the outcome")
        assert hub.lines("peer/channel")[0][2] == "revoked"
        await eventually(lambda: hub.lines("channel/open", at=hub.worker), "the worker's end is over, too")


async def test_a_worker_that_is_lost_breaks_the_channels_through_it(tmp_path: Path) -> None:
    async with hub_with(tmp_path, "peer:lab") as hub, hub.door.session() as link:
        async with hub.worker_dialled_in():
            channel = await link.session.open_channel("echo", peer="lab")
            assert await channel.read() == b"hub/alice:"
        with pytest.raises(StreamBroken):
            await channel.read()
        assert hub.lines("peer/channel")[0][2] == "lost"


async def test_a_caller_that_is_lost_ends_the_channel_at_the_worker(tmp_path: Path) -> None:
    async with hub_with(tmp_path, "peer:lab") as hub, hub.worker_dialled_in():
        async with hub.door.session() as link:
            channel = await link.session.open_channel("echo", peer="lab")
            assert await channel.read() == b"hub/alice:"
        await eventually(lambda: hub.lines("channel/open", at=hub.worker), "the worker's end is over")
        await eventually(lambda: hub.lines("peer/channel"), "the outcome")


async def test_half_a_channel_can_end_before_the_other(tmp_path: Path) -> None:
    """As with a pipe: all is sent, its end is heard, and the answer comes only then."""

    async def count(stream: Stream, caller: Caller) -> str:
        total = 0
        while data := await stream.read():
            total += len(data)
        await stream.write(str(total).encode())
        await stream.write_eof()
        return ""

    async with hub_with(tmp_path, "peer:lab") as hub, hub.worker_dialled_in(), hub.door.session() as link:
        hub.worker.handler.channels = ChannelDoor(hub.worker.gate, hub.worker.mesh.overlays, {"count": count})
        channel = await link.session.open_channel("count", peer="lab")
        assert await said_by(channel, bytes(MIB), bytes(MIB)) == str(2 * MIB).encode()


async def test_nobody_in_particular_opens_no_channel(tmp_path: Path) -> None:
    async with hub_with(tmp_path) as hub, hub.door.session(anonymous=True) as link:
        with pytest.raises(CallError):
            await link.session.open_channel("echo")
        with pytest.raises(CallError) as refused:
            await hub.of_hub.accept(_request("echo"), Caller(None, "memory"))
        assert refused.value.code == "FORBIDDEN"


def _request(service: str) -> Any:
    from alknet.call.envelopes import ChannelRequested

    return ChannelRequested("id", 0, service)


async def test_an_inner_connection_is_served_as_one_of_its_own() -> None:
    served: list[Connection] = []

    async def serve(connection: Connection) -> None:
        served.append(connection)
        stream = await connection.accept_stream()
        await stream.write(b"hello")
        await stream.aclose()

    dialer, listener = memory_pair(alpn="x")
    near = await dialer.open_stream()
    said = await inner("alknet/ssh", serve)(await listener.accept_stream(), Caller(None, "memory"))
    (connection,) = served
    assert (connection.alpn, connection.transport, connection.remote) == ("alknet/ssh", "channel", None)
    assert said == connection.id
    assert await near.read() == b"hello"
    dialer.close()


async def test_a_splice_ends_with_the_side_that_breaks() -> None:
    ends = [memory_pair(alpn="x") for _ in range(2)]
    (a, near), (far, b) = [(await dialer.open_stream(), await listener.accept_stream()) for dialer, listener in ends]

    async def break_it() -> None:
        await a.write(b"there")
        assert await b.read() == b"there"
        b.reset()

    async with asyncio.timeout(10):
        broken, _ = await asyncio.gather(splice(near, far), break_it(), return_exceptions=True)
    assert isinstance(broken, StreamBroken)
    for dialer, _ in ends:
        dialer.close()


async def test_a_splice_that_is_cancelled_resets_the_far_side() -> None:
    ends = [memory_pair(alpn="x") for _ in range(2)]
    (_, near), (far, b) = [(await dialer.open_stream(), await listener.accept_stream()) for dialer, listener in ends]
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):  # which cancels it
            await splice(near, far)
    with pytest.raises(AlknetError):
        await b.read()
    for dialer, _ in ends:
        dialer.close()
