"""``fs/list``, ``fs/stat``, ``fs/read`` and ``fs/hash``: looking at files."""

import asyncio
import codecs
import heapq
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Final, Literal

from blake3 import blake3
from pydantic import Field

from alknet.call.binary import Bytes
from alknet.call.codecs import JSON
from alknet.call.context import OperationContext
from alknet.call.operations import operation
from alknet.services.files import MAX_PIECE_BYTES, FilePath, Files, digest_of
from alknet.services.files_errors import NotPermitted, TooLarge, WrongKind
from alknet.services.files_roots import kind_of

__all__ = ["Digest", "Entry", "FileChunk", "FileInfo", "FileReader", "Listing"]

DEFAULT_PIECE_BYTES: Final = 256 * 1024
MAX_TEXT_BYTES: Final = 700 * 1024
"""Of a text as JSON: one with more to escape is given as bytes."""
MAX_LISTED: Final = 1000
MAX_LOOKED_THROUGH: Final = 1_000_000
"""Entries of one directory."""
HASHES_AT_ONCE: Final = 2
ERRORS: Final = (WrongKind, TooLarge, NotPermitted)


@dataclass(frozen=True, slots=True)
class Entry:
    """What a directory has under a name. `size` in bytes and `modified` in seconds since 1970; `writable` is said of
    roots only."""

    name: str
    kind: Literal["root", "file", "directory", "symlink", "special"]
    size: int | None = None
    modified: float | None = None
    writable: bool | None = None


@dataclass(frozen=True, slots=True)
class Listing:
    """A part of a directory, by name. With `next` there is more: call again with it as `after`. `unnamed` entries have
    names that are no UTF-8 and cannot be told."""

    entries: list[Entry]
    next: str | None
    unnamed: int


@dataclass(frozen=True, slots=True)
class FileInfo:
    """What is at a path. `mode` is octal, as in 0644; `writable` says whether fs/write may change it as far as the root
    is concerned."""

    path: str
    kind: Literal["root", "file", "directory", "symlink", "special"]
    size: int
    modified: float
    mode: str
    writable: bool


@dataclass(frozen=True, slots=True)
class FileChunk:
    """A piece of a file: `text` if it is UTF-8, else `data`. `next` is the offset to go on from, null at the end.
    `digest` (BLAKE3) is there when the piece is the whole file."""

    text: str | None
    data: Bytes | None
    offset: int
    next: int | None
    size: int
    modified: float
    digest: str | None


@dataclass(frozen=True, slots=True)
class Digest:
    """The BLAKE3 digest of a file of so many bytes, in hexadecimal."""

    path: str
    digest: str
    size: int


class FileReader:
    """The operations that change nothing."""

    def __init__(self, files: Files) -> None:
        self._files = files
        self._hashing = asyncio.Semaphore(HASHES_AT_ONCE)

    @operation(
        "fs/list",
        kind="query",
        scopes=["fs:read"],
        resource_id="$.path",
        errors=ERRORS,
        examples=[{"input": {}}, {"input": {"path": "project/src", "limit": 50}}],
    )
    def list_directory(
        self,
        path: Annotated[str, Field(description="The directory, ROOT/directory; none shows the roots.")] = "",
        after: Annotated[str | None, Field(description="Begin behind this name: `next` of the answer before.")] = None,
        limit: Annotated[int, Field(ge=1, le=MAX_LISTED, description="Most entries to give.")] = 200,
        *,
        ctx: OperationContext,
    ) -> Listing:
        """List the files and directories in a directory, sorted by name; without a path, the roots that there are."""
        if path == "":
            roots = [Entry(root.name, "root", writable=root.writable) for root in self._files.roots]
            return _page(sorted(roots, key=lambda root: root.name), after, limit, unnamed=0)
        with self._files.reach(ctx, path) as spot:
            directory = spot.open_directory()
            try:
                names, unnamed = _names(directory, after, limit + 1, path)
                return _page([found for name in names if (found := _entry(directory, name))], None, limit, unnamed)
            finally:
                os.close(directory)

    @operation(
        "fs/stat",
        kind="query",
        scopes=["fs:read"],
        resource_id="$.path",
        errors=ERRORS,
        examples=[{"input": {"path": "project/README.md"}}],
    )
    def stat(self, path: FilePath, *, ctx: OperationContext) -> FileInfo:
        """Say what is at a path: a file, a directory or something else, how large, and when it was changed.

        NOT_FOUND if there is nothing.
        """
        with self._files.reach(ctx, path) as spot:
            info = spot.info()
            return FileInfo(
                path=path,
                kind="root" if spot.name is None else kind_of(info),
                size=info.st_size,
                modified=info.st_mtime,
                mode=f"{stat.S_IMODE(info.st_mode):04o}",
                writable=spot.root.writable,
            )

    @operation(
        "fs/read",
        kind="query",
        scopes=["fs:read"],
        resource_id="$.path",
        errors=ERRORS,
        examples=[{"input": {"path": "project/README.md"}}, {"input": {"path": "project/log", "offset": 262144}}],
    )
    def read(
        self,
        path: FilePath,
        offset: Annotated[int, Field(ge=0, le=2**62, description="Where to begin, in bytes.")] = 0,
        length: Annotated[
            int, Field(ge=1, le=MAX_PIECE_BYTES, description="Most bytes to read.")
        ] = DEFAULT_PIECE_BYTES,
        as_bytes: Annotated[bool, Field(description="Give `data` (base64 in JSON) even if it is text.")] = False,
        *,
        ctx: OperationContext,
    ) -> FileChunk:
        """Read a file, or a piece of it: `text` if it is UTF-8 text, else `data`.

        A file of up to `length` bytes comes whole, with its digest. Of a larger one `next` is the offset for the next
        call; it is null at the end. Give the digest to fs/write as `if_digest` to change what you have read and nothing
        else.
        """
        with self._files.reach(ctx, path) as spot:
            fd, info = spot.open_file()
            try:
                data = _read(fd, offset, length)
            finally:
                os.close(fd)
        at_end = len(data) < length or offset + len(data) >= info.st_size
        text, used = (None, len(data)) if as_bytes else _text(data, at_end=at_end)
        end = offset + used
        is_whole = offset == 0 and at_end and used == len(data)
        return FileChunk(
            text=text,
            data=data if text is None else None,
            offset=offset,
            next=None if at_end and used == len(data) else end,
            size=max(info.st_size, end),
            modified=info.st_mtime,
            digest=blake3(data).hexdigest() if is_whole else None,
        )

    @operation(
        "fs/hash",
        kind="query",
        scopes=["fs:read"],
        resource_id="$.path",
        errors=ERRORS,
        examples=[{"input": {"path": "project/data.bin"}}],
    )
    async def hash(self, path: FilePath, *, ctx: OperationContext) -> Digest:
        """Compute the BLAKE3 digest of a file of any size; to compare files, or to tell whether one has changed."""
        async with self._hashing:
            return await asyncio.get_running_loop().run_in_executor(None, self._hash, path, ctx)

    def _hash(self, path: str, ctx: OperationContext) -> Digest:
        with self._files.reach(ctx, path) as spot:
            digest, info = digest_of(spot, ctx)
        return Digest(path, digest, info.st_size)


# --- what is there ------------------------------------------------------------------------------------------------


def _names(directory: int, after: str | None, most: int, path: str) -> tuple[list[str], int]:
    """(the first names behind `after`, how many have names that cannot be told)."""
    unnamed = 0

    def readable() -> Iterator[str]:
        nonlocal unnamed
        with os.scandir(directory) as entries:
            for number, entry in enumerate(entries):
                if number >= MAX_LOOKED_THROUGH:
                    raise TooLarge(f"{path!r} has more than {MAX_LOOKED_THROUGH} entries")
                try:
                    entry.name.encode()
                except UnicodeEncodeError:
                    unnamed += 1
                    continue
                if after is None or entry.name > after:
                    yield entry.name

    return heapq.nsmallest(most, readable()), unnamed


def _entry(directory: int, name: str) -> Entry | None:
    """None for what has been removed meanwhile."""
    try:
        info = os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return None
    return Entry(name, kind_of(info), info.st_size if stat.S_ISREG(info.st_mode) else None, info.st_mtime)


def _page(entries: list[Entry], after: str | None, limit: int, unnamed: int) -> Listing:
    left = [entry for entry in entries if after is None or entry.name > after]
    return Listing(left[:limit], left[limit - 1].name if len(left) > limit else None, unnamed)


def _read(fd: int, offset: int, length: int) -> bytes:
    parts = []
    while length > 0 and (part := os.pread(fd, length, offset)):
        parts.append(part)
        offset += len(part)
        length -= len(part)
    return b"".join(parts)


def _text(data: bytes, *, at_end: bool) -> tuple[str | None, int]:
    """(the text, how many bytes of `data` it is); no text, and all of them, where it is none."""
    try:
        text, used = codecs.utf_8_decode(data, "strict", at_end)
    except UnicodeDecodeError:
        return None, len(data)
    if "\0" in text or (data and not used) or len(JSON.encode(text)) > MAX_TEXT_BYTES:
        return None, len(data)
    return text, used
