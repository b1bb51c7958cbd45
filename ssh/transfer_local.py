"""This machine's side of a copy: files below open directories.

What is written stays below the directory that the copy was started with, whatever names the other side sends and
whatever links are there: every step goes from an open directory to one name in it, and follows no link.
"""

import asyncio
import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import AsyncGenerator, Iterator
from typing import Final

from blake3 import blake3

from alknet.errors import AlknetError, NotFoundError
from alknet.ssh.transfer_places import Info, Kind, NoSpaceError, TransferError, part_name, plain_name, shown

__all__ = ["LocalDevice", "LocalDirectory", "LocalFiles", "LocalPart", "LocalReader", "local_info", "translated"]

HASH_BYTES: Final = 1024 * 1024
"""How much is read at once to be hashed."""
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


def local_info(found: os.stat_result) -> Info:
    """What a stat says."""
    return Info(
        Kind.of(found.st_mode),
        found.st_size,
        mode=stat.S_IMODE(found.st_mode),
        times=(found.st_atime, found.st_mtime),
        owner=(found.st_uid, found.st_gid),
        is_sparse=found.st_blocks * 512 < found.st_size,
    )


@contextlib.contextmanager
def translated(label: str) -> Iterator[None]:
    """Raises what the system refuses as an error that names the file."""
    try:
        yield
    except FileNotFoundError as exc:
        raise NotFoundError(f"{shown(label)}: no such file or directory") from exc
    except OSError as exc:
        raise _error(label, exc) from exc


def _error(label: str, exc: OSError) -> AlknetError:
    words = (exc.strerror or str(exc)).lower()
    if exc.errno == errno.ELOOP:
        words = "it is a link, and links are not followed there"
    if exc.errno in (errno.ENOSPC, errno.EDQUOT):
        return NoSpaceError(f"{shown(label)}: {words}", hint="make room, then go on with --resume")
    return TransferError(f"{shown(label)}: {words}")


class _Digests:
    """What can be hashed without a transfer."""

    _fd: int
    label: str

    async def read(self, offset: int, length: int) -> bytes:
        with translated(self.label):
            return os.pread(self._fd, length, offset)

    async def digest(self, offset: int, length: int) -> bytes:
        with translated(self.label):
            return await asyncio.to_thread(_digest, self._fd, offset, length)


def _digest(fd: int, offset: int, length: int) -> bytes:
    hasher = blake3()
    while length and (data := os.pread(fd, min(length, HASH_BYTES), offset)):
        hasher.update(data)
        offset, length = offset + len(data), length - len(data)
    return hasher.digest()


class LocalReader(_Digests):
    """A file of this machine."""

    def __init__(self, label: str, fd: int) -> None:
        self.label = label
        self._fd = fd
        self.info = local_info(os.fstat(fd))

    def data_after(self, offset: int) -> tuple[int, int] | None:
        if not self.info.is_sparse:
            return (offset, self.info.size) if offset < self.info.size else None
        try:
            begin = os.lseek(self._fd, offset, os.SEEK_DATA)
            return begin, os.lseek(self._fd, begin, os.SEEK_HOLE)
        except OSError:  # nothing but a hole up to the end
            return None

    async def aclose(self) -> None:
        os.close(self._fd)


class LocalPart(_Digests):
    """A file that is written here. It is locked, so that two copies do not write the same one."""

    is_whole = False

    def __init__(self, directory: int, name: str, target: str, *, label: str, fd: int, mode: int) -> None:
        self._directory = directory
        self._name = name
        self._target = target
        self._mode = mode
        self.label = label
        self._fd = fd
        found = os.fstat(fd)
        self.size = found.st_size
        self._owner = (found.st_uid, found.st_gid)
        self._made_with = stat.S_IMODE(found.st_mode)

    async def write(self, offset: int, data: bytes) -> None:
        with translated(self.label):
            left = memoryview(data)
            while left:
                written = os.pwrite(self._fd, left, offset)
                offset, left = offset + written, left[written:]

    async def cut(self, size: int) -> None:
        with translated(self.label):
            os.ftruncate(self._fd, size)
        self.size = size

    async def finish(self, size: int, attributes: Info | None) -> None:
        with translated(self.label):
            os.ftruncate(self._fd, size)
            if attributes is not None and attributes.owner not in (None, self._owner):
                assert attributes.owner is not None
                with contextlib.suppress(PermissionError):  # only root may give files away
                    os.fchown(self._fd, *attributes.owner)
            mode = self._made_with & self._mode  # what the umask has left of it
            if attributes is not None and attributes.mode is not None:
                mode = attributes.mode
            if mode != self._made_with:
                os.fchmod(self._fd, mode)
            if attributes is not None and attributes.times is not None:
                os.utime(self._fd, attributes.times)

    async def commit(self) -> None:
        with translated(self._target):
            os.replace(self._name, self._target, src_dir_fd=self._directory, dst_dir_fd=self._directory)

    async def discard(self) -> None:
        with contextlib.suppress(OSError):
            os.unlink(self._name, dir_fd=self._directory)

    async def aclose(self) -> None:
        os.close(self._fd)


class LocalDevice:
    """Something that takes what is written to it, such as /dev/null."""

    is_whole = True
    size = 0

    def __init__(self, label: str, fd: int) -> None:
        self.label = label
        self._fd = fd

    async def write(self, offset: int, data: bytes) -> None:
        with translated(self.label):
            os.pwrite(self._fd, data, offset)

    async def read(self, offset: int, length: int) -> bytes:
        raise TransferError(f"{shown(self.label)}: what was written cannot be read back")

    async def digest(self, offset: int, length: int) -> bytes:
        return await self.read(offset, length)

    async def cut(self, size: int) -> None:
        """It has no size."""

    async def finish(self, size: int, attributes: Info | None) -> None:
        """It has neither a size nor attributes of its own."""

    async def commit(self) -> None:
        """It is the target."""

    async def discard(self) -> None:
        """It stays."""

    async def aclose(self) -> None:
        os.close(self._fd)


class LocalFiles:
    """This machine's files."""

    def label(self, path: str) -> str:
        return path or "."

    async def at(self, path: str) -> "LocalDirectory":
        with translated(self.label(path)):
            return LocalDirectory(path, os.open(path or ".", _DIRECTORY))

    async def info(self, path: str, *, follow: bool = True) -> Info | None:
        try:
            return local_info(os.stat(path or ".", follow_symlinks=follow))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as exc:
            raise _error(self.label(path), exc) from exc

    async def real(self, path: str) -> str:
        return await asyncio.to_thread(os.path.realpath, path)


class LocalDirectory:
    """A directory of this machine, by its descriptor."""

    has_digests = True
    block_bytes = 1024 * 1024

    def __init__(self, path: str, fd: int) -> None:
        self._path = path
        self._fd = fd

    def label(self, name: str = "") -> str:
        return os.path.join(self._path, name) if name else self._path or "."

    async def info(self, name: str, *, follow: bool = True) -> Info | None:
        try:
            return local_info(os.stat(name, dir_fd=self._fd, follow_symlinks=follow))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as exc:
            raise _error(self.label(name), exc) from exc

    async def entries(self) -> AsyncGenerator[tuple[str, Info], None]:
        with translated(self.label()):
            listing = os.scandir(self._fd)
        with listing:
            for entry in listing:
                with contextlib.suppress(FileNotFoundError):  # it was removed meanwhile
                    yield entry.name, local_info(entry.stat(follow_symlinks=False))

    async def enter(self, name: str, *, follow: bool) -> "LocalDirectory":
        label = self.label(name)
        flags = _DIRECTORY if follow else _DIRECTORY | os.O_NOFOLLOW
        try:
            return LocalDirectory(label, os.open(name, flags, dir_fd=self._fd))
        except NotADirectoryError as exc:  # what Linux says of a link, too
            raise TransferError(f"{shown(label)}: it is in the way: no directory, or a link to one") from exc
        except OSError as exc:
            with translated(label):
                raise exc

    async def make(self, name: str, mode: int) -> bool:
        plain_name(name, self.label())
        try:
            with contextlib.suppress(FileExistsError):
                os.mkdir(name, mode, dir_fd=self._fd)
                return True
        except OSError as exc:
            raise _error(self.label(name), exc) from exc
        return False

    async def open(self, name: str) -> LocalReader:
        label = self.label(name)
        with translated(label):
            # A pipe without a writer would make this wait, and a terminal would become this process's own.
            fd = os.open(name, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC, dir_fd=self._fd)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise TransferError(f"{shown(label)}: not a regular file")
        return LocalReader(label, fd)

    async def part(self, name: str, tag: str, *, mode: int, resume: bool, readable: bool) -> LocalPart | LocalDevice:
        plain_name(name, self.label())
        there = await self.info(name, follow=False)
        if there is not None and there.kind is Kind.SPECIAL:
            return self._device(name)
        part = part_name(name, tag)
        label = self.label(part)
        with translated(label):
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
            fd = os.open(part, flags, mode | stat.S_IRUSR | stat.S_IWUSR, dir_fd=self._fd)
        try:
            self._take(fd, label)
            if not resume:
                os.ftruncate(fd, 0)
            return LocalPart(self._fd, part, name, label=label, fd=fd, mode=mode)
        except BaseException:
            os.close(fd)
            raise

    def _device(self, name: str) -> LocalDevice:
        label = self.label(name)
        with translated(label):
            fd = os.open(
                name, os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC, dir_fd=self._fd
            )
        if not stat.S_ISCHR(os.fstat(fd).st_mode):
            os.close(fd)
            raise TransferError(f"{shown(label)}: it is in the way: neither a file nor a directory")
        return LocalDevice(label, fd)

    def _take(self, fd: int, label: str) -> None:
        """Lock the part, if it is one: nobody may have laid another file's name there."""
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1 or found.st_uid != os.geteuid():
            raise TransferError(f"{shown(label)}: it is in the way, and no part of an earlier copy of yours")
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            raise TransferError(f"{shown(label)}: another copy is writing it") from exc

    async def identity(self) -> object:
        found = os.fstat(self._fd)
        return found.st_dev, found.st_ino

    async def set(self, attributes: Info) -> None:
        with translated(self.label()):
            if attributes.mode is not None:
                os.fchmod(self._fd, attributes.mode)
            if attributes.times is not None:
                os.utime(self._fd, attributes.times)

    async def aclose(self) -> None:
        os.close(self._fd)
