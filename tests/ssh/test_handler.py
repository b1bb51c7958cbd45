"""The SSH door as a whole: subsystems, shutdown."""

import asyncio
import socket

import asyncssh
import pytest

from alknet.access import Identity
from alknet.alpn.admission import Admission, AdmissionLimits, Slot
from alknet.alpn.first_byte import Opening
from alknet.alpn.port import Port
from alknet.alpn.streams import Address, Connection, Stream
from alknet.errors import DeniedError
from testkit.polling import eventually
from testkit.ssh_forwards import allowing
from testkit.ssh_pair import Door, policy_with


async def _echo(stream: Stream, identity: Identity, connection: Connection) -> int:
    await stream.write(f"hello {identity.id} on {connection.id}\n".encode())
    while data := await stream.read():
        await stream.write(data)
    return 6


async def _denies(stream: Stream, identity: Identity, connection: Connection) -> int:
    raise DeniedError("no")


async def _breaks(stream: Stream, identity: Identity, connection: Connection) -> int:
    raise RuntimeError("a bug")


SUBSYSTEMS = {"echo": _echo, "denies": _denies, "breaks": _breaks}


async def _ask(client: asyncssh.SSHClientConnection, name: str, data: bytes = b"") -> tuple[bytes, int | None]:
    process = await client.create_process(subsystem=name, encoding=None)
    process.stdin.write(data)
    process.stdin.write_eof()
    result = await process.wait()
    return bytes(result.stdout or b""), result.exit_status  # type: ignore[arg-type]


async def test_a_subsystem_gets_stream_identity_and_connection() -> None:
    door = Door(policy=policy_with(), subsystems=SUBSYSTEMS)
    data = bytes(range(256)) * 8000
    async with door.connect() as client:
        (connection,) = door.router.connections
        answer, status = await _ask(client, "echo", data)
    assert (answer, status) == (f"hello bob on {connection.id}\n".encode() + data, 6)
    await door.aclose()


@pytest.mark.parametrize(("name", "status"), [("denies", 3), ("breaks", 1)])
async def test_a_subsystem_that_fails_ends_only_itself(
    name: str, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    door = Door(subsystems=SUBSYSTEMS)
    async with door.connect() as client:
        assert await _ask(client, name) == (b"", status)
        assert (await client.run("exit 5")).exit_status == 5
    assert ("a bug" in caplog.text) is (name == "breaks")
    await door.aclose()


async def test_an_unknown_subsystem_is_refused() -> None:
    door = Door(subsystems=SUBSYSTEMS)
    async with door.connect() as client:
        with pytest.raises(asyncssh.ChannelOpenError):
            await client.create_process(subsystem="nope")
    await door.aclose()


async def test_a_forced_command_replaces_subsystems() -> None:
    door = Door(policy=policy_with("ssh:exec", force_command="echo forced"), subsystems=SUBSYSTEMS)
    async with door.connect() as client:
        assert await _ask(client, "echo") == (b"forced\n", 0)
    await door.aclose()


async def test_shutdown_waits_for_running_sessions_refuses_new_ones_and_says_why() -> None:
    door = Door()
    loop = asyncio.get_running_loop()
    async with door.connect() as client, door.connect() as idle:
        running = await client.create_process("echo in; sleep 0.3; echo done")
        assert await running.stdout.readline() == "in\n"
        stopping = asyncio.gather(door.router.shutdown(loop.time() + 10))
        await asyncio.sleep(0)
        with pytest.raises((asyncssh.ChannelOpenError, asyncssh.ConnectionLost, asyncssh.DisconnectError)):
            await client.create_process("true")
        assert await running.stdout.read() == "done\n"
        assert (await running.wait()).exit_status == 0
        assert await stopping == [0]
        await idle.wait_closed()


async def test_shutdown_ends_what_does_not_finish_by_the_deadline() -> None:
    door = Door()
    loop = asyncio.get_running_loop()
    async with door.connect() as client:
        running = await client.create_process("echo in; exec sleep 1060")
        await running.stdout.readline()
        began = loop.time()
        await door.router.shutdown(loop.time() + 0.1)
        assert loop.time() - began < 5
        ended = await running.wait()
    assert "the node is shutting down" in str(ended.stderr)
    assert ended.exit_signal is not None
    assert door.outcomes("ssh/exec") == ["ended: the node is shutting down"]


async def test_a_forward_to_the_node_itself_comes_from_the_client() -> None:
    """What the node counts, limits and logs by address does not take a client for the node."""
    callers: list[Address] = []

    def take(sock: socket.socket, remote: Address, slot: Slot) -> None:
        callers.append(remote)
        sock.close()
        slot.leave()

    port = Port(Admission(AdmissionLimits()), {Opening.SSH: take})
    port.listen(("127.0.0.1",), 0)
    (own,) = [address for address in port.addresses if address.host == "127.0.0.1"]
    door = Door(policy=allowing("local self", "local 127.0.0.0/8:*"))
    door.handler.own_port = port
    async with door.connect() as client:
        for host in ("127.0.0.1", "localhost"):
            reader, writer = await client.open_connection(host, own.port, encoding=None)
            writer.write(b"SSH-2.0-test\r\n")
            assert await reader.read() == b""
            assert callers.pop() == Address("192.0.2.1", 4000)
        with socket.create_connection((own.host, own.port)) as stranger:
            stranger.send(b"SSH-2.0-test\r\n")
            await eventually(lambda: callers, "it got in")
            assert callers.pop() == Address.of(stranger.getsockname())
        door.replace_policy(allowing("local 127.0.0.0/8:*", revision="r2"))
        with pytest.raises(asyncssh.ChannelOpenError, match=r"forwarding\.default"):
            await client.open_connection("127.0.0.1", own.port)
    port.stop_accepting()
    await door.aclose()
