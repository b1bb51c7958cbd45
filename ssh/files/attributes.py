"""What SFTP version 3 says of a file, on the wire and for people."""

import grp
import pwd
import stat
import struct
import time
from collections.abc import Callable
from os import stat_result
from typing import Final

__all__ = ["SIZE", "TIMES", "Attributes", "Names", "encode_attributes", "long_name"]

SIZE: Final = 0x1
OWNER: Final = 0x2
PERMISSIONS: Final = 0x4
TIMES: Final = 0x8
EXTENDED: Final = 0x80000000

MAX_NAMES: Final = 4096
"""Users and groups whose names are remembered."""
_MAX_U32: Final = 0xFFFFFFFF
_SIX_MONTHS_S: Final = 182 * 86400
_ALL: Final = struct.Struct(">IQIIIII")


class Attributes:
    """What a client asks to be set; None is what it did not speak of. Times are in seconds since 1970."""

    __slots__ = ("mode", "owner", "size", "times")

    def __init__(
        self,
        size: int | None = None,
        owner: tuple[int, int] | None = None,
        mode: int | None = None,
        times: tuple[int, int] | None = None,
    ) -> None:
        self.size = size
        self.owner = owner
        self.mode = mode
        self.times = times
        """Of the last access, and of the last change."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Attributes) and all(getattr(self, n) == getattr(other, n) for n in self.__slots__)

    __hash__ = None  # type: ignore[assignment]


def encode_attributes(info: stat_result) -> bytes:
    """Everything that the protocol has room for."""
    return _ALL.pack(
        SIZE | OWNER | PERMISSIONS | TIMES,
        info.st_size,
        info.st_uid,
        info.st_gid,
        info.st_mode,
        min(max(int(info.st_atime), 0), _MAX_U32),
        min(max(int(info.st_mtime), 0), _MAX_U32),
    )


class Names:
    """The names of users and groups, each looked up once."""

    def __init__(self) -> None:
        self._users: dict[int, str] = {}
        self._groups: dict[int, str] = {}

    def user(self, number: int) -> str:
        """Empty for a number without a name."""
        return _remembered(self._users, number, lambda: pwd.getpwuid(number).pw_name)

    def group(self, number: int) -> str:
        return _remembered(self._groups, number, lambda: grp.getgrgid(number).gr_name)


def _remembered(names: dict[int, str], number: int, look_up: Callable[[], str]) -> str:
    name = names.get(number)
    if name is None:
        try:
            name = look_up()
        except (KeyError, OSError):
            name = ""
        if len(names) < MAX_NAMES:
            names[number] = name
    return name


def long_name(name: bytes, info: stat_result, names: Names, now_s: float) -> bytes:
    """The line of ``ls -l``, in the form that clients take apart."""
    user = names.user(info.st_uid) or str(info.st_uid)
    group = names.group(info.st_gid) or str(info.st_gid)
    at = time.localtime(info.st_mtime)
    is_recent = now_s - _SIX_MONTHS_S < info.st_mtime <= now_s
    when = time.strftime("%b %e %H:%M" if is_recent else "%b %e  %Y", at)
    line = f"{stat.filemode(info.st_mode)} {info.st_nlink:4} {user:<8} {group:<8} {info.st_size:8} {when} "
    return line.encode("utf-8", "replace") + name
