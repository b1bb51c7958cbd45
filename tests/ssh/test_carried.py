"""A client connection over a stream: it logs in, says why not, and watches the room."""

import asyncio
import os
from typing import Any

import asyncssh
import pytest

from alknet.alpn.memory import MemoryStream, memory_pair
from alknet.ssh.carried import Carried
from testkit.ssh_pair import HOST_KEY

MIB = 1024 * 1024
CIPHERS = ("aes128-gcm@openssh.com", "aes256-gcm@openssh.com", "aes256-ctr")


class _Server(asyncssh.SSHServer):
    """Lets everybody in but eve, and connects to a program that gives back what it gets."""

    def begin_auth(self, username: str) -> bool:
        return username == "eve"

    def connection_requested(self, dest_host: str, dest_port: int, orig_host: str, orig_port: int) -> Any:
        return self._echo if dest_host == "echo" else False

    def unix_connection_requested(self, dest_path: str) -> Any:
        return self._echo

    async def _echo(self, reader: "asyncssh.SSHReader[bytes]", writer: "asyncssh.SSHWriter[bytes]") -> None:
        while data := await reader.read(MIB):
            writer.write(data)
            await writer.drain()
        writer.write_eof()


async def _ends(*, serves: bool = True, **options: Any) -> tuple[MemoryStream, MemoryStream]:
    """The client's stream, and the server's, over which that speaks."""
    dialer, listener = memory_pair(alpn="alknet/ssh")
    here, there = await dialer.open_stream(), await listener.accept_stream()
    if serves:
        options = {"server_host_keys": [HOST_KEY], "server_factory": _Server, "encoding": None} | options
        prepared = asyncssh.SSHServerConnectionOptions(**options)
        await there.attach(asyncssh.SSHServerConnection(asyncio.get_running_loop(), prepared))
    return here, there


async def _logged_in(stream: MemoryStream, **changes: Any) -> Carried:
    options: dict[str, Any] = {
        "host": "node",
        "port": 7022,
        "username": "bob",
        "known_hosts": ([HOST_KEY.convert_to_public()], [], []),
        "config": None,
        "client_keys": (),
        "agent_path": None,
        "timeout_s": 10,
    }
    return await Carried.start(stream, asyncssh.SSHClient(), **options | changes)


@pytest.mark.parametrize("cipher", CIPHERS)
@pytest.mark.parametrize("kind", ["tcp", "unix"])
async def test_channels_carry_what_they_are_given_under_every_cipher_and_new_keys(cipher: str, kind: str) -> None:
    here, _ = await _ends(encryption_algs=[cipher])
    ssh = await _logged_in(here, rekey_bytes=MIB)
    if kind == "tcp":
        reader, writer = await ssh.open_connection("echo", 1)
    else:
        reader, writer = await ssh.open_unix_connection("/echo")
    blob = os.urandom(3 * MIB + 1)

    async def send() -> None:
        for start in range(0, len(blob), 100_000):
            writer.write(blob[start : start + 100_000])
            await writer.drain()
        writer.write_eof()

    async with asyncio.timeout(20), asyncio.TaskGroup() as group:
        group.create_task(send())
        assert await reader.read() == blob
    assert ssh.get_extra_info("send_cipher") == cipher
    ssh.abort()


async def test_a_channel_that_is_refused_says_why() -> None:
    here, _ = await _ends()
    ssh = await _logged_in(here)
    with pytest.raises(asyncssh.ChannelOpenError, match="Connection refused"):
        await ssh.open_connection("elsewhere", 1)
    ssh.abort()


async def test_a_login_that_fails_says_why_and_leaves_nothing() -> None:
    here, there = await _ends(public_key_auth=False, password_auth=False, kbdint_auth=False)
    with pytest.raises((asyncssh.PermissionDenied, asyncssh.DisconnectError)):
        await _logged_in(here, username="eve")
    here, there = await _ends(serves=False)
    with pytest.raises(TimeoutError):
        await _logged_in(here, timeout_s=0.05)
    here, there = await _ends(serves=False)
    there.reset()
    with pytest.raises(ConnectionResetError):
        await _logged_in(here)


async def test_a_carrier_that_takes_no_more_has_no_room() -> None:
    here, _ = await _ends()
    ssh = await _logged_in(here)
    changes: list[bool] = []
    ssh.room.on_change = lambda: changes.append(ssh.room.is_full)
    _, writer = await ssh.open_connection("echo", 1)
    size = 0
    async with asyncio.timeout(10):
        while not changes:
            writer.write(bytes(64 * 1024))  # and nobody waits
            size += 64 * 1024
        assert size <= 4 * MIB
        while len(changes) < 2:
            await asyncio.sleep(0)
    assert changes[:2] == [True, False]
    ssh.abort()
