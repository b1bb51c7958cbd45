"""Pseudo-terminals: opening one, its size, and the modes of RFC 4254 section 8."""

import fcntl
import os
import pwd
import struct
import termios
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

__all__ = ["Terminal", "TerminalSize", "local_modes", "open_terminal", "set_size"]

TerminalSize = tuple[int, int, int, int]
"""Columns, rows, width and height in pixels; 0 means unknown."""

MAX_CELLS: Final = 0xFFFF

# Opcodes of RFC 4254 section 8 (and RFC 8160 for IUTF8), by the termios field that they belong to. Character size and
# parity (90 to 93) are left out: a pseudo-terminal has none, and refuses to be told.
_CONTROL_CHARS: Final[Mapping[int, int]] = {
    1: termios.VINTR, 2: termios.VQUIT, 3: termios.VERASE, 4: termios.VKILL, 5: termios.VEOF,
    6: termios.VEOL, 7: termios.VEOL2, 8: termios.VSTART, 9: termios.VSTOP, 10: termios.VSUSP,
    12: termios.VREPRINT, 13: termios.VWERASE, 14: termios.VLNEXT, 18: termios.VDISCARD,
}  # fmt: skip
_IUTF8: Final = 0o40000  # not in the termios module
_FLAGS: Final[Mapping[int, tuple[int, int]]] = {
    # opcode: (index into tcgetattr's list, flag)
    30: (0, termios.IGNPAR), 31: (0, termios.PARMRK), 32: (0, termios.INPCK), 33: (0, termios.ISTRIP),
    34: (0, termios.INLCR), 35: (0, termios.IGNCR), 36: (0, termios.ICRNL), 38: (0, termios.IXON),
    39: (0, termios.IXANY), 40: (0, termios.IXOFF), 41: (0, termios.IMAXBEL), 42: (0, _IUTF8),
    50: (3, termios.ISIG), 51: (3, termios.ICANON), 53: (3, termios.ECHO), 54: (3, termios.ECHOE),
    55: (3, termios.ECHOK), 56: (3, termios.ECHONL), 57: (3, termios.NOFLSH), 58: (3, termios.TOSTOP),
    59: (3, termios.IEXTEN), 60: (3, termios.ECHOCTL), 61: (3, termios.ECHOKE), 62: (3, termios.PENDIN),
    70: (1, termios.OPOST), 72: (1, termios.ONLCR), 73: (1, termios.OCRNL), 74: (1, termios.ONOCR),
    75: (1, termios.ONLRET),
}  # fmt: skip
_DISABLED_CHAR: Final = 255


@dataclass(frozen=True, slots=True)
class Terminal:
    """An open pseudo-terminal. `slave` stays open here so that the master does not end before the child starts."""

    master: int
    slave: int
    path: str


def open_terminal(size: TerminalSize, modes: Mapping[int, int], *, owner: int | None) -> Terminal:
    """Open a terminal of `size` with `modes`; `owner` (a user id) gets the slave when the node may give it away."""
    master, slave = os.openpty()
    try:
        path = os.ttyname(slave)
        if owner is not None:
            os.fchown(slave, owner, _tty_group(owner))
            os.fchmod(slave, 0o620)
        _apply_modes(slave, modes)
        set_size(master, size)
    except BaseException:  # termios.error, for one, is no OSError
        os.close(master)
        os.close(slave)
        raise
    return Terminal(master, slave, path)


def set_size(fd: int, size: TerminalSize) -> None:
    """Set the window size; the foreground process group gets SIGWINCH when it changed."""
    columns, rows, width, height = (min(max(value, 0), MAX_CELLS) for value in size)
    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, width, height))


def local_modes(fd: int) -> dict[int, int]:
    """The modes of the terminal `fd`, as a client sends them."""
    attributes = termios.tcgetattr(fd)
    modes = {op: int(bool(attributes[field] & flag)) for op, (field, flag) in _FLAGS.items()}
    modes |= {op: attributes[6][index][0] for op, index in _CONTROL_CHARS.items()}
    return modes


def _apply_modes(fd: int, modes: Mapping[int, int]) -> None:
    attributes = termios.tcgetattr(fd)
    for opcode, value in modes.items():
        if opcode in _CONTROL_CHARS:
            disabled = os.fpathconf(fd, "PC_VDISABLE")
            char = disabled if value >= _DISABLED_CHAR else value
            attributes[6][_CONTROL_CHARS[opcode]] = bytes([char])
        elif opcode in _FLAGS:
            field, flag = _FLAGS[opcode]
            if value:
                attributes[field] |= flag
            else:
                attributes[field] &= ~flag
    termios.tcsetattr(fd, termios.TCSANOW, attributes)


def _tty_group(owner: int) -> int:
    """The group of terminals, so that write(1) works; the owner's own group where there is none."""
    import grp

    try:
        return grp.getgrnam("tty").gr_gid
    except KeyError:
        return pwd.getpwuid(owner).pw_gid
