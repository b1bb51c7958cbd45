"""Asking a node to listen, where it answers and brings the first connection in one breath."""

import asyncio
from typing import Any

import asyncssh
import pytest
from asyncssh.constants import MSG_CHANNEL_OPEN
from asyncssh.packet import String, UInt32

from alknet.alpn.memory import memory_pair
from alknet.ssh.client_remote import listen_on_path, listen_on_port
from testkit.ssh_pair import HOST_KEY

PORT = 4000


class _Eager(asyncssh.SSHServerConnection):
    """Has somebody to bring as soon as it listens."""

    def _process_tcpip_forward_global_request(self, packet: Any) -> None:
        packet.get_string()
        port = packet.get_uint32()
        if port == 1:
            self._report_global_response(False)
            return
        self._report_global_response(True if port else UInt32(PORT))
        where = String("localhost") + UInt32(port or PORT) + String("192.0.2.1") + UInt32(5)
        self._open(b"forwarded-tcpip", where)

    def _process_streamlocal_forward_at_openssh_dot_com_global_request(self, packet: Any) -> None:
        path = packet.get_string()
        self._report_global_response(True)
        self._open(b"forwarded-streamlocal@openssh.com", String(path) + String(""))

    def _open(self, kind: bytes, where: bytes) -> None:
        self.send_packet(MSG_CHANNEL_OPEN, String(kind), UInt32(7), UInt32(1 << 20), UInt32(1 << 15), where)


async def _logged_in() -> asyncssh.SSHClientConnection:
    loop = asyncio.get_running_loop()
    dialer, listener = memory_pair(alpn="alknet/ssh")
    here, there = await dialer.open_stream(), await listener.accept_stream()
    server = asyncssh.SSHServerConnectionOptions(server_host_keys=[HOST_KEY], server_factory=_NoLogin)
    await there.attach(_Eager(loop, server))
    options = await asyncssh.SSHClientConnectionOptions.construct(
        host="node", port=1, username="bob", known_hosts=([HOST_KEY.convert_to_public()], [], []), config=None
    )
    options.waiter = loop.create_future()
    client = asyncssh.SSHClientConnection(loop, options, wait="auth")
    await here.attach(client)
    await options.waiter
    return client


class _NoLogin(asyncssh.SSHServer):
    def begin_auth(self, username: str) -> bool:
        return False


@pytest.mark.parametrize(("port", "expected"), [(22, 22), (0, PORT)])
async def test_who_comes_with_the_answer_is_let_in(port: int, expected: int) -> None:
    origin: asyncio.Future[tuple[str, int]] = asyncio.get_running_loop().create_future()

    def arrived(host: str, port: int) -> asyncssh.SSHTCPSession[bytes]:
        origin.set_result((host, port))
        return asyncssh.SSHTCPSession()

    ssh = await _logged_in()
    async with asyncio.timeout(5):
        assert await listen_on_port(ssh, arrived, "LocalHost", port) == expected
        assert await origin == ("192.0.2.1", 5)
    ssh.abort()


async def test_who_comes_with_the_answer_to_a_path_is_let_in() -> None:
    has_arrived = asyncio.Event()

    def arrived() -> asyncssh.SSHUNIXSession[bytes]:
        has_arrived.set()
        return asyncssh.SSHUNIXSession()

    ssh = await _logged_in()
    async with asyncio.timeout(5):
        await listen_on_path(ssh, arrived, "/run/x")
        await has_arrived.wait()
    ssh.abort()


async def test_a_listener_that_is_refused_is_not_kept() -> None:
    ssh = await _logged_in()
    with pytest.raises(asyncssh.ChannelListenError):
        await listen_on_port(ssh, lambda host, port: asyncssh.SSHTCPSession(), "localhost", 1)
    assert ssh._remote_listeners == {}
    ssh.abort()
