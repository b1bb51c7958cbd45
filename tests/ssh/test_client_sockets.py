"""Sockets of the client's own."""

import asyncio
import contextlib
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from alknet.errors import InvalidInputError
from alknet.ssh.client_sockets import asked_by_socks, bound_path, bound_ports, connected, why
from alknet.ssh.forward_specs import ANYWHERE, LOOPBACK, Port, SocketPath
from testkit.node import free_port


@pytest.fixture
def sockets() -> Iterator[contextlib.ExitStack]:
    """Closes what is entered."""
    with contextlib.ExitStack() as stack:
        yield stack


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        (LOOPBACK, ["127.0.0.1", "::1"]),
        (ANYWHERE, ["0.0.0.0", "::"]),
        ("127.0.0.2", ["127.0.0.2"]),
        ("::1", ["::1"]),
    ],
)
async def test_a_port_is_bound_on_every_address_that_is_meant(
    sockets: contextlib.ExitStack, host: str, expected: list[str]
) -> None:
    bound = [sockets.enter_context(sock) for sock in await bound_ports(Port(host, free_port()))]
    assert [sock.getsockname()[0] for sock in bound] == expected


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_a_port_that_is_taken_on_one_address_is_taken(sockets: contextlib.ExitStack, host: str) -> None:
    port = free_port()
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sockets.enter_context(socket.create_server((host, port), family=family))
    with pytest.raises(OSError, match="Address already in use"):
        await bound_ports(Port(LOOPBACK, port))
    with pytest.raises(OSError, match="in use"):
        await bound_ports(Port(ANYWHERE, port))


async def test_an_address_that_is_not_here_cannot_be_bound() -> None:
    with pytest.raises(OSError, match="assign requested address") as caught:
        await bound_ports(Port("192.0.2.1", free_port()))
    assert why(caught.value) == "Cannot assign requested address"


async def test_a_socket_is_for_its_user_alone_and_replaces_only_what_was_left_over(tmp_path: Path) -> None:
    path = tmp_path / "s"
    first = bound_path(SocketPath(str(path)))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    first.listen()
    with pytest.raises(OSError, match="in use"):
        bound_path(SocketPath(str(path)))
    first.close()
    bound_path(SocketPath(str(path))).close()
    path.unlink()
    path.write_text("a file")
    with pytest.raises(OSError, match="in use"):
        bound_path(SocketPath(str(path)))
    assert path.read_text() == "a file"


async def test_the_next_address_of_a_name_is_tried(sockets: contextlib.ExitStack) -> None:
    port = free_port()
    server = sockets.enter_context(socket.create_server(("127.0.0.1", port)))
    sockets.enter_context(await connected(Port("localhost", port)))
    server.accept()[0].close()


async def test_who_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConnectionRefusedError):
        await connected(Port("127.0.0.1", free_port()))
    with pytest.raises(FileNotFoundError):
        await connected(SocketPath(str(tmp_path / "nobody")))
    with pytest.raises(OSError, match=r".") as caught:
        await connected(Port("no-such-name.invalid", 1))
    assert why(caught.value)
    with pytest.raises(OSError, match="is no host's name"):
        await connected(Port("x" * 300, 1))


async def test_a_program_that_goes_away_has_not_asked(sockets: contextlib.ExitStack) -> None:
    here, there = map(sockets.enter_context, socket.socketpair())
    here.setblocking(False)
    there.sendall(b"\5\1\0\5\1")
    there.shutdown(socket.SHUT_WR)
    with pytest.raises(EOFError):
        async with asyncio.timeout(5):
            await asked_by_socks(here)
    assert there.recv(10) == b"\5\0"


async def test_a_program_asks_and_says_more(sockets: contextlib.ExitStack) -> None:
    here, there = map(sockets.enter_context, socket.socketpair())
    here.setblocking(False)
    there.sendall(b"\4\1\0\x50\1\2\3\4\0GET /")
    assert (await asked_by_socks(here)).to == Port("1.2.3.4", 80)
    assert here.recv(10) == b"GET /"
    there.sendall(b"GET /")
    with pytest.raises(InvalidInputError):
        await asked_by_socks(here)
