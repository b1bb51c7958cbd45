"""A peer's side of a copy: its files over SFTP, with asyncssh's requests underneath.

What the peer sends is mistrusted: names that could lead out of their directory, more data than was asked for, endless
answers. What it refuses arrives here in words, with the denial's id where it is an alknet node.
"""

import contextlib
import re
import stat
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any, Final

import asyncssh
from blake3 import blake3

from alknet.errors import BrokenError, DeniedError, NotFoundError, RemoteError
from alknet.ssh.transfer_places import Info, Kind, NoSpaceError, TransferError, encoded, part_name, plain_name, shown
from alknet.ssh.transfer_session import DENIAL, Handler, open_session

__all__ = ["RemoteDirectory", "RemoteFiles", "RemotePart", "RemoteReader", "open_files", "remote_info"]

MAX_BLOCK_BYTES: Final = 256 * 1024
_NO_SPACE: Final = re.compile(r"no space left|quota|disk is full", re.IGNORECASE)
_NO_ATTRIBUTES: Final = asyncssh.SFTPAttrs()


@asynccontextmanager
async def open_files(ssh: asyncssh.SSHClientConnection, name: str) -> "AsyncIterator[RemoteFiles]":
    """The files of the peer that `ssh` is logged in at; `name` is what messages call it.

    Raises `DeniedError` when it lets nobody (or not this peer) have them, with its words.
    """
    async with open_session(ssh, name) as handler:
        yield RemoteFiles(handler, name)


class RemoteFiles:
    """A peer's files."""

    def __init__(self, handler: Handler, name: str, base: str = "") -> None:
        """`base` is the directory that relative paths begin in, where it is not the one that a session begins in."""
        self.handler = handler
        self.name = name
        self.base = base

    def based(self, base: str) -> "RemoteFiles":
        """The same files, from the directory `base`."""
        return RemoteFiles(self.handler, self.name, base)

    def wire(self, path: str) -> bytes:
        """A path as it is sent."""
        if self.base and not path.startswith("/"):
            path = f"{self.base.rstrip('/')}/{path}".rstrip("/") or "/"
        return encoded(path or ".")

    @property
    def has_digests(self) -> bool:
        """Whether the peer tells the BLAKE3 digest of its files."""
        return self.handler.has_digests

    @property
    def is_lost(self) -> bool:
        """Whether the session has ended."""
        return self.handler.is_lost

    def label(self, path: str) -> str:
        """A path there, for messages."""
        return f"{self.name}:{path}"

    @contextlib.contextmanager
    def translated(self, path: str) -> Iterator[None]:
        """Raises what the peer refuses as an error that names the file."""
        label = shown(self.label(path))
        try:
            yield
        except (asyncssh.SFTPNoSuchFile, asyncssh.SFTPNoSuchPath) as exc:
            raise NotFoundError(f"{label}: no such file or directory") from exc
        except asyncssh.SFTPPermissionDenied as exc:
            denial = DENIAL.search(exc.reason)
            raise DeniedError(f"{label}: {_words(exc)}", denial_id=denial and denial[0]) from exc
        except (asyncssh.SFTPConnectionLost, asyncssh.SFTPNoConnection) as exc:
            raise BrokenError(f"{label}: the connection was lost", hint="--resume goes on with what is there") from exc
        except asyncssh.SFTPError as exc:
            if _NO_SPACE.search(exc.reason):
                raise NoSpaceError(f"{label}: {_words(exc)}", hint="make room, then go on with --resume") from exc
            raise TransferError(f"{label}: {_words(exc)}") from exc
        except ValueError as exc:  # asyncssh's word for an answer that cannot be read
            raise RemoteError(f"{label}: the other side broke the protocol: {shown(str(exc))}") from exc
        except (OSError, asyncssh.Error) as exc:
            raise BrokenError(f"{label}: the connection was lost: {shown(str(exc))}") from exc

    async def at(self, path: str) -> "RemoteDirectory":
        """The directory `path`, empty for the one where a session begins; that it is there is seen when it is used."""
        return RemoteDirectory(self, path)

    async def info(self, path: str, *, follow: bool = True) -> Info | None:
        """What is at `path`; None when there is nothing."""
        try:
            with self.translated(path):
                return remote_info(await self.handler.stat(self.wire(path), 0, follow_symlinks=follow))
        except NotFoundError:
            return None

    async def real(self, path: str) -> str:
        """The absolute path without links."""
        with self.translated(path):
            names, _ = await self.handler.realpath(self.wire(path))
        if len(names) != 1:
            raise RemoteError(f"{shown(self.label(path))}: the other side does not say where it is")
        return _decoded(names[0].filename)

    async def rename(self, path: str, target: str) -> None:
        """Give `path` the place of `target`, at once where the peer can."""
        with self.translated(target):
            try:
                await self.handler.posix_rename(self.wire(path), self.wire(target))
            except asyncssh.SFTPOpUnsupported:
                with contextlib.suppress(asyncssh.SFTPError):
                    await self.handler.remove(self.wire(target))
                await self.handler.rename(self.wire(path), self.wire(target), 0)

    async def make_directory(self, path: str) -> None:
        with self.translated(path):
            await self.handler.mkdir(self.wire(path), asyncssh.SFTPAttrs(permissions=0o777))

    async def remove(self, path: str) -> None:
        with self.translated(path):
            await self.handler.remove(self.wire(path))

    async def remove_directory(self, path: str) -> None:
        with self.translated(path):
            await self.handler.rmdir(self.wire(path))

    async def link(self, old: str, new: str, *, symbolic: bool) -> None:
        """Make `new` a name of the file `old`, or a link that says `old` as it stands there."""
        with self.translated(new):
            if symbolic:
                await self.handler.symlink(encoded(old), self.wire(new))
            else:
                await self.handler.link(self.wire(old), self.wire(new))

    async def set_mode(self, path: str, mode: int) -> None:
        """Give `path` the permission bits `mode`."""
        with self.translated(path):
            await self.handler.setstat(self.wire(path), asyncssh.SFTPAttrs(permissions=mode))

    async def space(self, path: str) -> tuple[int, int, int]:
        """(bytes in all, bytes free, bytes free for this user) of the file system that `path` is on."""
        with self.translated(path):
            found = await self.handler.statvfs(self.wire(path))
        unit = found.frsize or found.bsize or 0
        return (found.blocks or 0) * unit, (found.bfree or 0) * unit, (found.bavail or 0) * unit

    async def listing(self, path: str) -> AsyncGenerator[tuple[str, Info, str], None]:
        """(name, what it is, its line of ``ls -l``) of what is in the directory `path`, as it comes."""
        with self.translated(path):
            handle = await self.handler.opendir(self.wire(path))
        try:
            while True:
                with self.translated(path):
                    try:
                        names, _ = await self.handler.readdir(handle)
                    except asyncssh.SFTPEOFError:
                        return
                if not names:
                    raise RemoteError(f"{shown(self.label(path))}: the other side lists nothing, over and over")
                for entry in names:
                    name = _decoded(entry.filename)
                    if name not in (".", ".."):
                        yield (
                            plain_name(name, self.label(path)),
                            remote_info(entry.attrs),
                            _decoded(entry.longname or b""),
                        )
        finally:
            with contextlib.suppress(asyncssh.Error, OSError, ValueError):
                await self.handler.close(handle)


def remote_info(attrs: asyncssh.SFTPAttrs) -> Info:
    """What attributes say."""
    mode = attrs.permissions
    has_owner = attrs.uid is not None and attrs.gid is not None
    return Info(
        Kind.FILE if mode is None else Kind.of(mode),
        attrs.size or 0,
        mode=None if mode is None else stat.S_IMODE(mode),
        times=None if attrs.mtime is None else (float(attrs.atime or attrs.mtime), float(attrs.mtime)),
        owner=(attrs.uid, attrs.gid) if has_owner else None,  # type: ignore[arg-type]
    )


def _words(exc: asyncssh.SFTPError) -> str:
    return shown(exc.reason) or f"refused (code {exc.code})"


def _decoded(name: Any) -> str:
    return name.decode("utf-8", "surrogateescape") if isinstance(name, bytes) else str(name)


class _Open:
    """An open file of the peer."""

    def __init__(self, files: RemoteFiles, path: str, handle: bytes) -> None:
        self._files = files
        self._handler = files.handler
        self._path = path
        self._handle = handle
        self.label = files.label(path)

    async def read(self, offset: int, length: int) -> bytes:
        with self._files.translated(self._path):
            try:
                data, _ = await self._handler.read(self._handle, offset, length)
            except asyncssh.SFTPEOFError:
                return b""
        if len(data) > length:
            raise RemoteError(f"{shown(self.label)}: the other side sent more than it was asked for")
        return data

    async def digest(self, offset: int, length: int) -> bytes:
        if self._files.has_digests:
            with self._files.translated(self._path):
                return await self._handler.digest(self._handle, offset, length)
        hasher = blake3()
        while length and (data := await self.read(offset, min(length, MAX_BLOCK_BYTES))):
            hasher.update(data)
            offset, length = offset + len(data), length - len(data)
        return hasher.digest()

    async def aclose(self) -> None:
        with contextlib.suppress(asyncssh.Error, OSError, ValueError):
            await self._handler.close(self._handle)


class RemoteReader(_Open):
    """A file of the peer that is read."""

    info: Info

    def data_after(self, offset: int) -> tuple[int, int] | None:
        return (offset, self.info.size) if offset < self.info.size else None


class RemotePart(_Open):
    """A file that is written there."""

    is_whole = False

    def __init__(
        self, files: RemoteFiles, path: str, handle: bytes, *, target: str, mode: int, before: Info | None
    ) -> None:
        super().__init__(files, path, handle)
        self._target = target
        self._mode = mode
        self._before = before
        self.size = self._end = before.size if before is not None else 0

    async def write(self, offset: int, data: bytes) -> None:
        with self._files.translated(self._path):
            await self._handler.write(self._handle, offset, data)
        self._end = max(self._end, offset + len(data))

    async def cut(self, size: int) -> None:
        with self._files.translated(self._path):
            await self._handler.fsetstat(self._handle, asyncssh.SFTPAttrs(size=size))
        self.size = self._end = size

    async def finish(self, size: int, attributes: Info | None) -> None:
        wanted: dict[str, Any] = {}
        if size != self._end:
            wanted["size"] = size
        if attributes is not None and attributes.mode is not None:
            wanted["permissions"] = attributes.mode
        elif not self._mode & stat.S_IWUSR:  # which was needed until now
            wanted["permissions"] = self._mode & 0o755
        if attributes is not None and attributes.times is not None:
            wanted |= {"atime": int(attributes.times[0]), "mtime": int(attributes.times[1])}
        with self._files.translated(self._path):
            if attributes is not None and attributes.owner is not None:
                uid, gid = attributes.owner
                found = await self._handler.fstat(self._handle, 0)
                if (found.uid, found.gid) != (uid, gid):
                    with contextlib.suppress(asyncssh.SFTPError):  # only root may give files away
                        await self._handler.fsetstat(self._handle, asyncssh.SFTPAttrs(uid=uid, gid=gid))
            if wanted:
                await self._handler.fsetstat(self._handle, asyncssh.SFTPAttrs(**wanted))

    async def commit(self) -> None:
        await self._files.rename(self._path, self._target)

    async def discard(self) -> None:
        with contextlib.suppress(asyncssh.Error, OSError, ValueError):
            await self._handler.remove(self._files.wire(self._path))


class RemoteDirectory:
    """A directory of the peer, by its path."""

    def __init__(self, files: RemoteFiles, path: str) -> None:
        self._files = files
        self._path = path
        self.has_digests = files.has_digests
        limits = files.handler.limits
        self.block_bytes = max(1, min(limits.max_read_len, limits.max_write_len, MAX_BLOCK_BYTES))

    def _at(self, name: str) -> str:
        return f"{self._path.rstrip('/')}/{name}" if self._path else name

    def label(self, name: str = "") -> str:
        return self._files.label(self._at(name) if name else self._path)

    async def info(self, name: str, *, follow: bool = True) -> Info | None:
        return await self._files.info(self._at(name), follow=follow)

    async def entries(self) -> AsyncGenerator[tuple[str, Info], None]:
        async with contextlib.aclosing(self._files.listing(self._path)) as listing:
            async for name, info, _ in listing:
                yield name, info

    async def enter(self, name: str, *, follow: bool) -> "RemoteDirectory":
        return RemoteDirectory(self._files, self._at(name))

    async def make(self, name: str, mode: int) -> bool:
        path = self._at(name)
        try:
            with self._files.translated(path):
                await self._files.handler.mkdir(self._files.wire(path), asyncssh.SFTPAttrs(permissions=mode))
                return True
        except TransferError:  # the protocol does not tell why
            found = await self._files.info(path)
            if found is None or found.kind is not Kind.DIRECTORY:
                raise
            return False

    async def open(self, name: str) -> RemoteReader:
        path = self._at(name)
        with self._files.translated(path):
            handle = await self._files.handler.open(self._files.wire(path), asyncssh.FXF_READ, _NO_ATTRIBUTES)
        reader = RemoteReader(self._files, path, handle)
        try:
            with self._files.translated(path):
                reader.info = remote_info(await self._files.handler.fstat(handle, 0))
            if reader.info.kind is not Kind.FILE:
                raise TransferError(f"{shown(reader.label)}: not a regular file")
        except BaseException:
            await reader.aclose()
            raise
        return reader

    async def part(self, name: str, tag: str, *, mode: int, resume: bool, readable: bool) -> RemotePart:
        path = self._at(part_name(name, tag))
        flags = asyncssh.FXF_WRITE | asyncssh.FXF_CREAT | (0 if resume else asyncssh.FXF_TRUNC)
        if readable:
            flags |= asyncssh.FXF_READ
        attributes = asyncssh.SFTPAttrs(permissions=mode | stat.S_IWUSR | (stat.S_IRUSR if readable else 0))
        with self._files.translated(self._at(name)):  # nobody knows of the part yet
            handle = await self._files.handler.open(self._files.wire(path), flags, attributes)
            try:
                before = remote_info(await self._files.handler.fstat(handle, 0)) if resume else None
            except BaseException:
                await self._files.handler.close(handle)
                raise
        return RemotePart(self._files, path, handle, target=self._at(name), mode=mode, before=before)

    async def identity(self) -> object:
        return await self._files.real(self._path)

    async def set(self, attributes: Info) -> None:
        wanted: dict[str, Any] = {} if attributes.mode is None else {"permissions": attributes.mode}
        if attributes.times is not None:
            wanted |= {"atime": int(attributes.times[0]), "mtime": int(attributes.times[1])}
        with self._files.translated(self._path):
            await self._files.handler.setstat(self._files.wire(self._path), asyncssh.SFTPAttrs(**wanted))

    async def aclose(self) -> None:
        """There is nothing to let go of."""
