"""What files are copied between: this machine and a peer, behind one contract.

A `Directory` is a place where things have names. :mod:`alknet.ssh.transfer_local` implements it on this machine's files
and :mod:`alknet.ssh.transfer_remote` on a peer's; :mod:`alknet.ssh.transfer` copies from any to any and knows neither.
Names and paths are text in which bytes that are no UTF-8 stand as surrogates (`os.fsdecode`).
"""

import stat
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from enum import Enum
from typing import Final, Protocol

from alknet.errors import AlknetError, RemoteError
from alknet.logs import printable

__all__ = [
    "MAX_NAME_BYTES",
    "Directory",
    "Files",
    "Info",
    "Kind",
    "NoSpaceError",
    "Part",
    "Reader",
    "TransferError",
    "encoded",
    "is_plain_name",
    "part_name",
    "plain_name",
    "shown",
]

MAX_NAME_BYTES: Final = 255
"""What the file systems in use allow a name to have."""
PART_SUFFIX: Final = ".part"


class TransferError(AlknetError):
    """A file could not be copied, for a reason that is neither a decision nor a missing file."""


class NoSpaceError(TransferError):
    """The target's disk or quota is full: nothing else will fit either."""


class Kind(Enum):
    """What is at a path."""

    FILE = "file"
    DIRECTORY = "directory"
    LINK = "link"
    SPECIAL = "special"
    """A pipe, a socket or a device."""

    @classmethod
    def of(cls, mode: int) -> "Kind":
        """From the mode of a stat."""
        kinds = {stat.S_IFREG: cls.FILE, stat.S_IFDIR: cls.DIRECTORY, stat.S_IFLNK: cls.LINK}
        return kinds.get(stat.S_IFMT(mode), cls.SPECIAL)


@dataclass(frozen=True, slots=True)
class Info:
    """What is known of a file without reading it; None for what the other side did not say."""

    kind: Kind
    size: int
    mode: int | None = None
    """Permission bits."""
    times: tuple[float, float] | None = None
    """Last access and last change, in seconds since 1970."""
    owner: tuple[int, int] | None = None
    """User and group, by number."""
    is_sparse: bool = False

    @property
    def full_mode(self) -> int:
        """Permission bits, and what kind of file it is, as a stat has them in one number."""
        kinds = {Kind.FILE: stat.S_IFREG, Kind.DIRECTORY: stat.S_IFDIR, Kind.LINK: stat.S_IFLNK}
        return kinds.get(self.kind, 0) | (self.mode or 0)

    @property
    def changed(self) -> float:
        """When it was last changed; 0 where that was not said."""
        return self.times[1] if self.times is not None else 0.0


class Reader(Protocol):
    """A file that is read. `label` is for messages."""

    label: str
    info: Info

    async def read(self, offset: int, length: int) -> bytes:
        """At most `length` bytes from `offset`; nothing at the file's end."""

    def data_after(self, offset: int) -> tuple[int, int] | None:
        """The next stretch that is no hole, as (begin, end); None when there is none."""

    async def digest(self, offset: int, length: int) -> bytes:
        """The BLAKE3 digest of a stretch."""

    async def aclose(self) -> None: ...


class Part(Protocol):
    """A file that is being written beside its target, whose place it takes at the end.

    Until `commit` the target is as it was. What was written stays when a copy is given up, to be gone on with.
    """

    label: str
    size: int
    """Bytes that were there when it was opened."""
    is_whole: bool
    """Whether it *is* the target, which is no file that another one could take the place of."""

    async def write(self, offset: int, data: bytes) -> None: ...

    async def read(self, offset: int, length: int) -> bytes:
        """What was written, where it may be read back."""

    async def digest(self, offset: int, length: int) -> bytes:
        """The BLAKE3 digest of a stretch."""

    async def cut(self, size: int) -> None:
        """Forget what is behind the first `size` bytes."""

    async def finish(self, size: int, attributes: Info | None) -> None:
        """It has `size` bytes and no more; mode, times and owner are those of `attributes` that are not None."""

    async def commit(self) -> None:
        """Take the target's place."""

    async def discard(self) -> None:
        """Remove it, as well as that goes: there is nothing in it to go on with."""

    async def aclose(self) -> None: ...


class Directory(Protocol):
    """An open directory. `has_digests`: whether a digest costs no transfer."""

    has_digests: bool
    block_bytes: int
    """How much is best read or written at once."""

    def label(self, name: str = "") -> str:
        """The path of `name` in here, for messages."""

    async def info(self, name: str, *, follow: bool = True) -> Info | None:
        """What `name` is; None when there is no such thing."""

    def entries(self) -> AsyncGenerator[tuple[str, Info], None]:
        """What is in it, as it comes; links are not followed."""

    async def enter(self, name: str, *, follow: bool) -> "Directory":
        """The directory `name`. Without `follow`, it is not a link to one."""

    async def make(self, name: str, mode: int) -> bool:
        """Make the directory `name`; False when it is there."""

    async def open(self, name: str) -> Reader:
        """Read the file `name`, or the one that it is a link to."""

    async def part(self, name: str, tag: str, *, mode: int, resume: bool, readable: bool) -> Part:
        """Begin to write `name`; with `resume` go on with the part of the same `tag`. It has the permission bits
        `mode`, and can be read back when `readable`."""

    async def identity(self) -> object:
        """The same for the same directory, whatever it was come to by."""

    async def set(self, attributes: Info) -> None:
        """Give this directory mode and times."""

    async def aclose(self) -> None: ...


class Files(Protocol):
    """All files of this machine, or all that a peer lets this side see."""

    def label(self, path: str) -> str:
        """A path there, for messages."""

    async def at(self, path: str) -> Directory:
        """The directory `path`, which the user named; empty for the one that relative paths begin in."""

    async def info(self, path: str, *, follow: bool = True) -> Info | None:
        """What is at `path`; None when there is nothing."""

    async def real(self, path: str) -> str:
        """The absolute path without links."""


def encoded(name: str) -> bytes:
    """A name or path as it goes over the wire, whatever this machine's own encoding is."""
    return name.encode("utf-8", "surrogateescape")


def shown(text: str) -> str:
    """A name or path for a message: nothing in it steers a terminal."""
    return printable(text)


def is_plain_name(name: str) -> bool:
    """Whether `name` names something in its directory, and cannot lead out of it."""
    return name not in ("", ".", "..") and "/" not in name and "\0" not in name and len(encoded(name)) <= MAX_NAME_BYTES


def plain_name(name: str, where: str) -> str:
    """`name`, which the other side says is in the directory `where`; raises `RemoteError` when it cannot be."""
    if not is_plain_name(name):
        raise RemoteError(
            f"{shown(where)}: the other side has a file {name!r} in it, which is no name: nothing is copied there"
        )
    return name


def part_name(name: str, tag: str) -> str:
    """What a file is called while it is incomplete: `tag` says of what it is a copy."""
    suffix = f".{tag}{PART_SUFFIX}"
    while len(encoded(name + suffix)) > MAX_NAME_BYTES:
        name = name[:-1]
    return name + suffix
