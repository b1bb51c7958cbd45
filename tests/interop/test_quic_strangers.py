"""What a stranger over QUIC can keep, and what a node that was killed leaves to its clients."""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from alknet.alpn.quic_connection import QuicConnection
from alknet.alpn.quic_dial import dial_quic
from alknet.alpn.quic_reset import is_reset
from testkit.carriers import session
from testkit.node import NodeProcess, wait_until

pytestmark = pytest.mark.interop


@asynccontextmanager
async def handshakes(node: NodeProcess, count: int) -> AsyncIterator[list[QuicConnection]]:
    """So many completed handshakes on which nothing follows."""
    address = "127.0.0.1", node.port
    connections = [await dial_quic(socket.AF_INET, address, alpn="alknet/ssh", server_name=None) for _ in range(count)]
    try:
        yield connections
    finally:
        for connection in connections:
            connection.close()


async def test_a_connection_without_a_stream_is_closed_after_the_time_for_a_login(node: NodeProcess) -> None:
    node.edit_config('login_grace = "30s"', 'login_grace = "1s"')
    node.alknet("config", "reload")
    async with handshakes(node, 5) as connections, asyncio.timeout(10):
        for connection in connections:
            await connection.wait_closed()
        assert await asyncio.to_thread(lambda: node.json("status")["strangers"]) == 0


async def test_the_wait_for_the_first_stream_is_part_of_the_time_for_a_login(node: NodeProcess) -> None:
    node.edit_config('login_grace = "30s"', 'login_grace = "4s"')
    node.alknet("config", "reload")
    loop = asyncio.get_running_loop()
    async with handshakes(node, 1) as (connection,), asyncio.timeout(20):
        began = loop.time()
        await asyncio.sleep(3)
        stream = await connection.open_stream()
        assert (await stream.read()).startswith(b"SSH-2.0-")
        await connection.wait_closed()
        assert loop.time() - began < 6.5, "3 s and another 4 s would be 7"


async def test_connections_without_a_stream_do_not_hold_up_the_end_of_a_node(node: NodeProcess) -> None:
    node.edit_config('drain_timeout = "2s"', 'drain_timeout = "60s"')
    node.alknet("config", "reload")
    async with handshakes(node, 3) as connections, asyncio.timeout(15):
        assert await asyncio.to_thread(node.stop) == 0
        for connection in connections:
            await connection.wait_closed()
        assert "were cut" not in node.log_text()


async def test_the_token_that_ends_a_living_connection_is_given_to_nobody(node: NodeProcess) -> None:
    async with handshakes(node, 1) as (connection,):
        cid = connection.engine._quic._peer_cid
        observed = b"\x40" + cid.cid + os.urandom(60)
        for family, host in ((socket.AF_INET6, "::1"), (socket.AF_INET, "127.0.0.1")):
            with socket.socket(family, socket.SOCK_DGRAM) as observer:
                observer.settimeout(0.5)
                observer.sendto(observed, (host, node.port))
                with contextlib.suppress(TimeoutError):
                    assert not is_reset(observer.recv(2048), [cid.stateless_reset_token])
        assert not connection.has_ended


def test_a_client_hears_from_a_node_that_was_killed_and_started_again(node: NodeProcess) -> None:
    node.edit_config('listen = ["127.0.0.1:0"]', f'listen = ["127.0.0.1:{node.port}"]')
    client = subprocess.Popen(
        session(node, "quic", "cat"), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd="/"
    )
    assert client.stdin is not None
    assert client.stdout is not None
    client.stdin.write(b"hello\n")
    client.stdin.flush()
    assert client.stdout.readline() == b"hello\n"
    node.stop(signal.SIGKILL)
    node.start()

    def has_ended() -> bool:
        with contextlib.suppress(BrokenPipeError):
            client.stdin.write(b"is anybody there?\n")
            client.stdin.flush()
        return client.poll() is not None

    wait_until(has_ended, "the client has heard it", timeout_s=15)
    assert client.returncode == 255
    assert b"does not know this connection any more" in client.stderr.read()
    for pipe in (client.stdin, client.stdout, client.stderr):
        with contextlib.suppress(BrokenPipeError):
            pipe.close()
