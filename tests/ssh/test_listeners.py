"""Sockets that listen for a client: where they are bound, and when they accept."""

import asyncio
import errno
import os
import resource
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from alknet.runas import run_as
from alknet.ssh import listeners
from alknet.ssh.listeners import Listener, bind_all, free_ports
from testkit.polling import eventually

HERE = "127.0.0.1"
NOT_OURS = "192.0.2.1"


def port_of(sock: socket.socket) -> int:
    return int(sock.getsockname()[1])


@pytest.fixture
def taken() -> Iterator[int]:
    """A port that somebody has."""
    with socket.create_server((HERE, 0)) as sock:
        yield port_of(sock)


# --- binding --------------------------------------------------------------------------------------------------


async def test_all_addresses_get_the_same_port() -> None:
    sockets = await bind_all([HERE, "::1"], [0], run_as(None))
    assert [sock.family for sock in sockets] == [socket.AF_INET, socket.AF_INET6]
    assert len({port_of(sock) for sock in sockets}) == 1
    for sock in sockets:
        assert sock.gettimeout() == 0
        sock.close()


async def test_an_address_that_is_not_ours_is_left_out_unless_it_is_the_first() -> None:
    (sock,) = await bind_all([HERE, NOT_OURS], [0], run_as(None))
    sock.close()
    with pytest.raises(OSError) as caught:
        await bind_all([NOT_OURS, HERE], [0], run_as(None))
    assert caught.value.errno == errno.EADDRNOTAVAIL


async def test_the_first_port_that_is_free_is_taken(taken: int) -> None:
    (sock,) = await bind_all([HERE], [taken, 0], run_as(None))
    assert port_of(sock) != taken
    sock.close()
    with pytest.raises(OSError) as caught:
        await bind_all(["::1", HERE], [taken], run_as(None))
    assert caught.value.errno == errno.EADDRINUSE
    with socket.create_server(("::1", taken), family=socket.AF_INET6):
        pass  # the one that was free has been given back


def test_the_kernel_chooses_only_where_each_of_its_choices_is_allowed() -> None:
    assert set(free_ports([range(1, 80), range(1024, 65536)])) == {0}
    few = set(free_ports([range(5000, 5002), range(6000, 6001)]))
    assert few <= {5000, 5001, 6000}
    assert list(free_ports([])) == []


# --- accepting ------------------------------------------------------------------------------------------------


class Accepting:
    """A listener with room for so many, and whom it let in."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.came: list[tuple[socket.socket, Any]] = []
        self._socket = socket.create_server((HERE, 0))
        self._socket.setblocking(False)
        self.port = port_of(self._socket)
        self.listener = Listener([self._socket], self._accepted, has_room=lambda: len(self.came) < self.room)

    def _accepted(self, sock: socket.socket, address: Any) -> None:
        self.came.append((sock, address))

    def visit(self) -> socket.socket:
        return socket.create_connection((HERE, self.port))

    def close(self) -> None:
        self.listener.close()
        for sock, _ in self.came:
            sock.close()


async def test_who_connects_is_passed_on_with_the_address_it_comes_from() -> None:
    accepting = Accepting(room=50)
    visitors = [accepting.visit() for _ in range(40)]
    await eventually(lambda: len(accepting.came) == 40, "all are in")
    assert {address for _, address in accepting.came} == {visitor.getsockname() for visitor in visitors}
    assert all(sock.gettimeout() == 0 for sock, _ in accepting.came)
    accepting.close()
    for visitor in visitors:
        visitor.close()


async def test_without_room_visitors_wait_and_get_in_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listeners, "FULL_PAUSE_S", 0.02)
    accepting = Accepting(room=2)
    visitors = [accepting.visit() for _ in range(4)]
    await eventually(lambda: len(accepting.came) == 2, "there was room for two")
    for _ in range(10):
        await asyncio.sleep(0.01)
    assert len(accepting.came) == 2
    accepting.room = 10
    await eventually(lambda: len(accepting.came) == 4, "the others are in")
    accepting.close()
    for visitor in visitors:
        visitor.close()


async def test_closing_is_for_good_also_during_a_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listeners, "FULL_PAUSE_S", 0.01)
    accepting = Accepting(room=0)
    visitor = accepting.visit()
    await asyncio.sleep(0)
    accepting.close()
    accepting.close()
    with pytest.raises(ConnectionRefusedError):
        accepting.visit()
    for _ in range(4):
        await asyncio.sleep(0.01)
    assert accepting.came == []
    visitor.close()


@pytest.mark.parametrize("reserve", [0, 2])
async def test_without_descriptors_accepting_pauses(monkeypatch: pytest.MonkeyPatch, reserve: int) -> None:
    """None at all, or only those that no client may have (`alknet.nofile`)."""
    monkeypatch.setattr(listeners, "FULL_PAUSE_S", 0.02)
    accepting = Accepting(room=10)
    visitor = accepting.visit()
    fd = os.dup(visitor.fileno())  # the next number would be the visitor's at the other end
    os.close(fd)
    old = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (fd + reserve, old[1]))
        for _ in range(5):
            await asyncio.sleep(0.01)
        assert accepting.came == []
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, old)
    late = accepting.visit()
    await eventually(lambda: accepting.came, "whoever waited or came later is in")
    accepting.close()
    visitor.close()
    late.close()
