"""Packets with few copies are the same packets: round trips under every cipher, across changes of keys."""

import asyncio
import os
from typing import Any

import asyncssh
import pytest
from asyncssh.constants import MSG_GLOBAL_REQUEST, MSG_IGNORE, MSG_KEXINIT
from asyncssh.packet import Boolean, String

from alknet.ssh.handler import SshSettings
from alknet.ssh.options import server_options
from alknet.ssh.packets import MAX_PACKETS_PER_TURN, MIN_PACKET_BYTES, _Input
from alknet.ssh.session import Session
from testkit.polling import eventually
from testkit.ssh_pair import Door

OFFERED = server_options(asyncssh.generate_private_key("ssh-ed25519"))


@pytest.mark.parametrize("cipher", [alg.decode() for alg in OFFERED.encryption_algs])
@pytest.mark.parametrize("mac", [alg.decode() for alg in OFFERED.mac_algs])
async def test_a_round_trip_across_changes_of_keys(cipher: str, mac: str) -> None:
    door, data = Door(), os.urandom(3_000_001)
    async with door.connect(encryption_algs=[cipher], mac_algs=[mac], rekey_bytes=400_000) as client:
        process = await client.create_process("cat", encoding=None)
        process.stdin.write(data)
        process.stdin.write_eof()
        async with asyncio.timeout(30):
            assert await process.stdout.read() == data
    await door.aclose()


async def test_every_odd_size_arrives() -> None:
    door = Door()
    async with door.connect() as client:
        process = await client.create_process("cat", encoding=None)
        for size in (1, 2, 3, 4, 15, 16, 17, 31, 32, 33, 255, 32767, 32768, 32769):
            data = os.urandom(size)
            process.stdin.write(data)
            assert await process.stdout.readexactly(size) == data
        process.stdin.write_eof()
    await door.aclose()


async def test_a_changed_byte_on_the_wire_ends_the_connection() -> None:
    door = Door()

    class Garbling(asyncssh.SSHClientConnection):
        garble = False

        def _send(self, data: bytes) -> None:
            super()._send(data[:-1] + bytes([data[-1] ^ 1]) if self.garble else data)

    async with door.connect(Garbling) as client:
        client.garble = True
        with pytest.raises((asyncssh.DisconnectError, asyncssh.ChannelOpenError)):
            await client.run("true", check=True)
    await door.wait_empty()
    await door.aclose()


class NeverFinishes(asyncssh.SSHClientConnection):
    """A client that can begin a change of keys and not go on with it."""

    stalls = False

    def begin(self) -> None:
        """Ask for new keys, and leave it at that."""
        self.stalls = True
        self._send_kexinit()
        self._kexinit_sent = True

    def send_packet(self, pkttype: int, *args: bytes, handler: object = None) -> None:
        if not self.stalls or pkttype in (MSG_KEXINIT, MSG_GLOBAL_REQUEST):
            super().send_packet(pkttype, *args, handler=handler)  # type: ignore[arg-type]


async def test_a_change_of_keys_that_never_ends_stops_the_output() -> None:
    door = Door()
    async with door.connect(NeverFinishes) as client:
        process = await client.create_process("exec cat /dev/zero", encoding=None, window=1 << 30)
        await process.stdout.read(1)
        client.begin()
        (server,) = door.handler._connections
        async with asyncio.timeout(10):
            while server._kex_complete:
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.2)
        assert sum(len(part) for _, args in server._deferred_packets for part in args) < 1024 * 1024
        client.abort()
    await door.aclose()


async def test_requests_during_a_change_of_keys_are_bounded() -> None:
    door = Door()
    async with door.connect(NeverFinishes) as client:
        client.begin()
        client._kex_complete = True  # so that our own side lets the requests out
        for number in range(3000):
            client.send_packet(MSG_GLOBAL_REQUEST, String("keepalive@openssh.com"), Boolean(True))
            await asyncio.sleep(0)
            assert number > 500 or not client.is_closed()
        async with asyncio.timeout(10):
            await client.wait_closed()
    await door.aclose()


def test_input_behaves_as_the_bytes_that_it_stands_in_for() -> None:
    buffer, bytes_ = _Input(), b""
    for piece in (b"SSH-2.0-x\r\n", b"abc", b"", b"defgh"):
        buffer += piece
        bytes_ += piece
        assert (len(buffer), bool(buffer), buffer[:4], buffer[2:5]) == (len(bytes_), True, bytes_[:4], bytes_[2:5])
        assert buffer.find(b"\n", 0, 8192) == bytes_.find(b"\n", 0, 8192)
    for cut in (3, 9, 1):
        buffer, bytes_ = buffer[cut:], bytes_[cut:]  # type: ignore[assignment]
        assert buffer[:100] == bytes_
    assert len(buffer[100:]) == 0


class Gathers(asyncssh.SSHClientConnection):
    """Keeps its packets instead of sending them, so that they can arrive in one piece."""

    gathered: list[bytes] | None = None

    def _send(self, data: bytes) -> None:
        if self.gathered is None:
            super()._send(data)
        else:
            self.gathered.append(data)

    def take(self) -> list[bytes]:
        """What was kept; from now on it sends again."""
        assert self.gathered is not None
        kept, self.gathered = self.gathered, None
        return kept


class Plain(Gathers):
    """The same, without the empty packets that asyncssh puts between others."""

    def send_packet(self, pkttype: int, *args: bytes, handler: Any = None) -> None:
        if pkttype != MSG_IGNORE:
            super().send_packet(pkttype, *args, handler=handler)


@pytest.fixture
def handed_on(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Session, bytes]]:
    """Each piece of input, and the session that it was given to."""
    pieces: list[tuple[Session, bytes]] = []
    real = Session.data_received

    def data_received(session: Session, data: bytes, datatype: int | None) -> None:
        pieces.append((session, data))
        real(session, data, datatype)

    monkeypatch.setattr(Session, "data_received", data_received)
    return pieces


async def test_data_of_a_channel_that_arrives_together_is_handed_on_together(
    handed_on: list[tuple[Session, bytes]],
) -> None:
    door = Door()
    async with door.connect(Plain) as client:
        (server,) = door.handler._connections
        first, second = [await client.create_process("cat", encoding=None) for _ in range(2)]
        client.gathered = []
        for process, data in ((first, b"1"), (first, b"22"), (second, b"3"), (first, b"4"), (first, b"5")):
            process.stdin.write(data * 100)
        server.data_received(b"".join(client.take()))
        assert [data for _, data in handed_on] == [b"1" * 100 + b"22" * 100, b"3" * 100, b"4" * 100 + b"5" * 100]
        assert handed_on[0][0] is handed_on[2][0] is not handed_on[1][0]
        assert await first.stdout.readexactly(500) == b"1" * 100 + b"22" * 100 + b"4" * 100 + b"5" * 100
        assert await second.stdout.readexactly(100) == b"3" * 100
        for process in (first, second):
            process.stdin.write_eof()
            await process.wait()
    await door.aclose()


@pytest.mark.parametrize("cut", [1, 3, 17, 1000, 33_000, 70_000])
async def test_packets_may_arrive_in_any_pieces(cut: int, handed_on: list[tuple[Session, bytes]]) -> None:
    door, data = Door(), os.urandom(100_000 if cut > 20 else 3_000)
    async with door.connect(Plain) as client:
        (server,) = door.handler._connections
        process = await client.create_process("cat", encoding=None)
        client.gathered = []
        for start in range(0, len(data), 999):
            process.stdin.write(data[start : start + 999])
        blob = b"".join(client.take())
        for start in range(0, len(blob), cut):
            server.data_received(blob[start : start + cut])
            await asyncio.sleep(0)  # after so many packets it is another connection's turn
        assert await process.stdout.readexactly(len(data)) == data
        assert b"".join(piece for _, piece in handed_on) == data
        process.stdin.write_eof()
        await process.wait()
    await door.aclose()


async def test_what_came_before_a_changed_packet_is_handed_on(handed_on: list[tuple[Session, bytes]]) -> None:
    door = Door()
    async with door.connect(Plain) as client:
        (server,) = door.handler._connections
        process = await client.create_process("cat", encoding=None)
        client.gathered = []
        for data in (b"a", b"b", b"c"):
            process.stdin.write(data)
        *good, bad = client.take()
        server.data_received(b"".join((*good, bad[:-1], bytes([bad[-1] ^ 1]))))
        assert [data for _, data in handed_on] == [b"ab"]
        async with asyncio.timeout(10):
            await client.wait_closed()
    await door.wait_empty()
    await eventually(lambda: not door.unfinished(), "its process has ended")
    await door.aclose()


async def test_a_client_that_was_heard_is_not_asked_whether_it_is_there() -> None:
    class Asked(asyncssh.SSHClientConnection):
        times = 0

        def _process_keepalive_at_openssh_dot_com_global_request(self, packet: Any) -> None:
            self.times += 1
            super()._process_keepalive_at_openssh_dot_com_global_request(packet)

    door = Door()
    async with door.connect(Asked) as client:
        (server,) = door.handler._connections
        loop, interval = asyncio.get_running_loop(), server._keepalive_interval
        timer = server._keepalive_timer
        await client._make_global_request(b"none@example.com")
        assert server._keepalive_timer is timer
        heard = loop.time() - server._heard
        assert heard < interval / 2
        server._keepalive_timer_callback()
        assert 0 < server._keepalive_timer.when() - loop.time() <= interval
        await client._make_global_request(b"none@example.com")
        assert client.times == 0
        server._heard -= interval
        server._keepalive_timer_callback()
        await eventually(lambda: client.times == 1, "the client was asked")
    await door.aclose()


async def test_a_connection_with_many_packets_takes_turns_with_the_others() -> None:
    """One read may bring thousands of packets; a request that comes later on another connection does not wait."""

    door, count = Door(), 5000
    async with door.connect(Gathers) as flood:
        (busy,) = door.handler._connections
        async with door.connect() as other:
            begin = busy._recv_seq
            flood.gathered = []
            for _ in range(count):
                flood.send_packet(MSG_IGNORE, String(b""))
            last = asyncio.get_running_loop().create_task(
                flood._make_global_request(b"keepalive@openssh.com")
            )  # the answer to it says that nothing was lost
            await asyncio.sleep(0)
            busy.data_received(b"".join(flood.take()))
            assert busy._recv_seq - begin == MAX_PACKETS_PER_TURN
            await other._make_global_request(b"keepalive@openssh.com")
            assert busy._recv_seq - begin < count
            assert not last.done()
            async with asyncio.timeout(10):
                await last
            assert busy._recv_seq - begin >= count
    await door.aclose()


@pytest.mark.parametrize(("size", "is_open"), [(1, False), (MIN_PACKET_BYTES - 1, False), (MIN_PACKET_BYTES, True)])
async def test_a_channel_that_takes_only_small_packets_is_refused(size: int, is_open: bool) -> None:
    door = Door(settings=SshSettings(channels_per_connection=2))
    async with door.connect() as client:
        (server,) = door.handler._connections
        for _ in range(3):
            if is_open:
                assert (await client.run("echo in", max_pktsize=size)).stdout == "in\n"
            else:
                with pytest.raises(asyncssh.ChannelOpenError, match=f"room for {MIN_PACKET_BYTES} bytes"):
                    await client.create_process("echo in", max_pktsize=size)
        await eventually(lambda: not server._channels, "no channel is left")
        assert (await client.run("exit 5")).exit_status == 5
    await door.aclose()
