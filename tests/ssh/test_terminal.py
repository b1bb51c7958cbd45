"""Pseudo-terminals."""

import os
import struct
import termios
from collections.abc import Iterator

import pytest

from alknet.ssh.terminal import Terminal, local_modes, open_terminal, set_size

VINTR, ECHO, ICRNL, IUTF8, OPOST, CS8 = 1, 53, 36, 42, 70, 91


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    opened = open_terminal((100, 30, 800, 600), {ECHO: 0, VINTR: 24, IUTF8: 1}, owner=None)
    yield opened
    os.close(opened.master)
    os.close(opened.slave)


def _size(fd: int) -> tuple[int, ...]:
    import fcntl

    return struct.unpack("HHHH", fcntl.ioctl(fd, termios.TIOCGWINSZ, b"\0" * 8))


def test_size_and_modes_are_set(terminal: Terminal) -> None:
    assert _size(terminal.slave) == (30, 100, 800, 600)
    attributes = termios.tcgetattr(terminal.slave)
    assert not attributes[3] & termios.ECHO
    assert attributes[6][termios.VINTR] == b"\x18"
    assert os.ttyname(terminal.slave) == terminal.path


def test_sizes_out_of_range_are_clamped(terminal: Terminal) -> None:
    set_size(terminal.master, (2**32 - 1, 0, -5, 70_000))
    assert _size(terminal.slave) == (0, 65535, 0, 65535)


def test_unknown_modes_and_wild_values_are_ignored_or_disabled() -> None:
    opened = open_terminal((80, 24, 0, 0), {200: 1, 128: 38400, VINTR: 2**32 - 1, 77: 5}, owner=None)
    disabled = os.fpathconf(opened.slave, "PC_VDISABLE")
    assert termios.tcgetattr(opened.slave)[6][termios.VINTR] == bytes([disabled])
    os.close(opened.master)
    os.close(opened.slave)


def test_local_modes_are_what_a_client_sends(terminal: Terminal) -> None:
    modes = local_modes(terminal.slave)
    assert (modes[ECHO], modes[VINTR], modes[IUTF8]) == (0, 24, 1)
    copy = open_terminal((80, 24, 0, 0), modes, owner=None)
    assert termios.tcgetattr(copy.slave)[:4] == termios.tcgetattr(terminal.slave)[:4]
    os.close(copy.master)
    os.close(copy.slave)
