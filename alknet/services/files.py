"""``fs/*``: reading and writing files below the roots of ``[fs]``.

How a path is reached, and why nothing else is, stands in :mod:`alknet.services.files_roots`; how a file is written so
that it is whole or not there, in :mod:`alknet.services.files_drafts`.
"""

import asyncio
import codecs
import heapq
import os
import stat
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Final, Literal

from blake3 import blake3
from pydantic import Field

from alknet.access import Identity
from alknet.call.binary import Bytes
from alknet.call.codecs import JSON
from alknet.call.context import OperationContext
from alknet.call.operations import operation
from alknet.config.create import OWNER
from alknet.errors import DeniedError, InvalidInputError
from alknet.gate import Gate
from alknet.services.files_drafts import Draft, Upload, Uploads
from alknet.services.files_errors import Conflict, Found, NotPermitted, NotStored, TooLarge, WrongKind, in_words
from alknet.services.files_removal import remove_tree
from alknet.services.files_roots import Barred, Root, Roots, Spot, kind_of

__all__ = ["Digest", "Entry", "FileChunk", "FileInfo", "FilesService", "Listing", "Removed", "Written"]

MAX_PIECE_BYTES: Final = 512 * 1024
"""Read or written by one call; as base64 it fits into a message."""
DEFAULT_PIECE_BYTES: Final = 256 * 1024
MAX_TEXT_BYTES: Final = 700 * 1024
"""Of a text as JSON: one with more to escape is given as bytes."""
MAX_LISTED: Final = 1000
MAX_LOOKED_THROUGH: Final = 1_000_000
"""Entries of one directory."""
HASHED_AT_ONCE_BYTES: Final = 1024 * 1024
HASHES_AT_ONCE: Final = 2
DIGEST: Final = "^[0-9a-f]{64}$"

FilePath = Annotated[
    str, Field(description="Where it is: ROOT/directory/file. fs/list without a path shows the roots.")
]
ExpectedDigest = Annotated[
    str | None,
    Field(pattern=DIGEST, description="Do it only if this is still the BLAKE3 digest of the file; else CONFLICT."),
]
READ_ERRORS: Final = (WrongKind, TooLarge, NotPermitted)
WRITE_ERRORS: Final = (Conflict, WrongKind, TooLarge, NotPermitted, NotStored)


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
    """A part of a directory, by name. With `next` there is more: call again with it as `after`. `unnamed` entries of the
    directory have names that are no UTF-8 and cannot be told."""

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
class Written:
    """`size` and `digest` (BLAKE3) of the file as it is now, and whether it is a new one. While `upload` is given nothing
    is changed yet, and `size` is how much has arrived."""

    path: str
    size: int
    digest: str | None
    created: bool | None
    upload: str | None


@dataclass(frozen=True, slots=True)
class Removed:
    """How many files and directories went."""

    path: str
    count: int


@dataclass(frozen=True, slots=True)
class Digest:
    """The BLAKE3 digest of a file of so many bytes, in hexadecimal."""

    path: str
    digest: str
    size: int


class FilesService:
    """The operations on these roots. `protected` paths are out of reach for everybody but the peer ``owner``."""

    def __init__(self, gate: Gate, roots: Iterable[Root], uploads: Uploads, *, protected: Iterable[str] = ()) -> None:
        self._gate = gate
        self._roots = Roots(roots, protected=protected)
        self._uploads = uploads
        self._hashing = asyncio.Semaphore(HASHES_AT_ONCE)

    # --- reading ----------------------------------------------------------------------------------------------------

    @operation(
        "fs/list",
        kind="query",
        scopes=["fs:read"],
        resource_id="$.path",
        errors=READ_ERRORS,
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
            roots = [Entry(root.name, "root", writable=root.writable) for root in self._roots]
            return _page(sorted(roots, key=lambda root: root.name), after, limit, unnamed=0)
        with self._reach(ctx, path) as spot:
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
        errors=READ_ERRORS,
        examples=[{"input": {"path": "project/README.md"}}],
    )
    def stat(self, path: FilePath, *, ctx: OperationContext) -> FileInfo:
        """Say what is at a path: a file, a directory or something else, how large, and when it was changed.

        NOT_FOUND if there is nothing.
        """
        with self._reach(ctx, path) as spot:
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
        errors=READ_ERRORS,
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
        with self._reach(ctx, path) as spot:
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
        errors=READ_ERRORS,
        examples=[{"input": {"path": "project/data.bin"}}],
    )
    async def hash(self, path: FilePath, *, ctx: OperationContext) -> Digest:
        """Compute the BLAKE3 digest of a file of any size; to compare files, or to tell whether one has changed."""
        stop = threading.Event()
        async with self._hashing:
            try:
                loop = asyncio.get_running_loop()
                return await loop.run_in_executor(None, partial(self._hash, path, ctx, stop))
            finally:
                stop.set()

    def _hash(self, path: str, ctx: OperationContext, stop: threading.Event) -> Digest:
        with self._reach(ctx, path) as spot:
            digest, info = _digest(spot, stop)
        return Digest(path, digest, info.st_size)

    # --- writing ----------------------------------------------------------------------------------------------------

    @operation(
        "fs/write",
        kind="mutation",
        scopes=["fs:write"],
        resource_id="$.path",
        errors=WRITE_ERRORS,
        examples=[{"input": {"path": "project/notes.txt", "text": "Buy milk.\n", "parents": True}}],
    )
    def write(
        self,
        path: FilePath,
        text: Annotated[str | None, Field(max_length=MAX_PIECE_BYTES, description="What to write, as text.")] = None,
        data: Annotated[
            Bytes | None, Field(max_length=MAX_PIECE_BYTES, description="What to write, as bytes (base64 in JSON).")
        ] = None,
        create_only: Annotated[bool, Field(description="CONFLICT if there is such a file already.")] = False,
        if_digest: ExpectedDigest = None,
        digest: Annotated[
            str | None, Field(pattern=DIGEST, description="BLAKE3 digest of the whole content, to be checked.")
        ] = None,
        parents: Annotated[bool, Field(description="Make the directories on the way that are missing.")] = False,
        upload: Annotated[
            str | None, Field(description="Go on with this upload: `upload` of the answer before.")
        ] = None,
        offset: Annotated[int, Field(ge=0, description="Of an upload: where this piece begins, in bytes.")] = 0,
        final: Annotated[bool, Field(description="False: more pieces follow, change nothing yet.")] = True,
        *,
        ctx: OperationContext,
    ) -> Written:
        """Write a whole file, new or instead of what is there: `text` or `data`, at most 512 KiB in a call.

        Everybody sees either the old file or the new one, never a part. A larger file goes in pieces: the first call with
        `final` false answers with an `upload`; give that and the `offset` with the next pieces, and leave `final` out
        with the last one. An upload that nothing is added to for ten minutes is given up.
        """
        content = _content(text, data)
        if upload is None and offset:
            raise InvalidInputError("offset: it is of an upload, and there is no 'upload'")
        with self._reach(ctx, path, write=True, parents=parents) as spot:
            wanted = _Wanted(create_only, if_digest, digest)
            _target(spot, wanted)  # before a caller sends a gigabyte in vain
            caller = "" if ctx.identity is None else ctx.identity.id
            if upload is not None:
                with self._uploads.use(upload, caller, path) as kept:
                    return self._piece(spot, kept, content, offset, wanted, final=final)
            draft = Draft(spot.directory)
            try:
                if final:
                    draft.write(content)
                    return self._commit(spot, draft, wanted)
                kept, mine = self._uploads.begin(caller, path, draft), draft
                draft = None
            finally:
                if draft is not None:
                    draft.close()
            self._uploads.add(kept, content, offset=0)
            return Written(path, mine.size, None, None, kept.id)

    def _piece(
        self, spot: Spot, kept: Upload, content: bytes, offset: int, wanted: "_Wanted", *, final: bool
    ) -> Written:
        self._uploads.add(kept, content, offset=offset)
        if not final:
            return Written(spot.path, kept.draft.size, None, None, kept.id)
        try:
            return self._commit(spot, kept.draft, wanted)
        finally:
            self._uploads.drop(kept)

    def _commit(self, spot: Spot, draft: Draft, wanted: "_Wanted") -> Written:
        assert spot.name is not None
        digest = draft.digest()
        if wanted.digest not in (None, digest):
            raise InvalidInputError(f"digest: the content that arrived has the digest {digest}")
        draft.sync()
        seen = _seen(spot, wanted.if_digest)
        with self._uploads.commits:
            over = _target(spot, wanted)
            _check_unchanged(spot, over, seen)
            try:
                draft.commit(spot.name, over=over)
            except FileExistsError:
                if wanted.create_only or wanted.if_digest is not None:
                    raise
                over = _target(spot, wanted)  # somebody else has made it meanwhile
                draft.commit(spot.name, over=over)
        draft.sync_directory()
        return Written(spot.path, draft.size, digest, over is None, None)

    @operation(
        "fs/remove",
        kind="mutation",
        scopes=["fs:write"],
        idempotent=True,
        resource_id="$.path",
        errors=WRITE_ERRORS,
        examples=[{"input": {"path": "project/old.txt"}}, {"input": {"path": "project/build", "recursive": True}}],
    )
    def remove(
        self,
        path: FilePath,
        recursive: Annotated[bool, Field(description="Remove a directory with all that is in it.")] = False,
        if_digest: ExpectedDigest = None,
        *,
        ctx: OperationContext,
    ) -> Removed:
        """Remove a file, an empty directory or, with `recursive`, a directory with all that is in it.

        A symlink is removed itself; what it leads to stays. CONFLICT if a directory is not empty. There is no way back.
        """
        with self._reach(ctx, path, write=True) as spot:
            if spot.name is None:
                raise WrongKind(f"{path!r} is a root, and stays")
            info = spot.info()
            seen = _seen(spot, if_digest)
            if stat.S_ISDIR(info.st_mode) and recursive:
                return Removed(path, remove_tree(spot.directory, spot.name, spot.guard, path))
            with self._uploads.commits:
                if stat.S_ISDIR(info.st_mode):
                    spot.check_directory()
                    os.rmdir(spot.name, dir_fd=spot.directory)
                else:
                    _check_unchanged(spot, spot.info(), seen)
                    os.unlink(spot.name, dir_fd=spot.directory)
            return Removed(path, 1)

    # --- both -------------------------------------------------------------------------------------------------------

    @contextmanager
    def _reach(self, ctx: OperationContext, path: str, *, write: bool = False, parents: bool = False) -> Iterator[Spot]:
        everything = isinstance(ctx.identity, Identity) and ctx.identity.id == OWNER
        try:
            with in_words(path), self._roots.reach(path, everything=everything, write=write, parents=parents) as spot:
                yield spot
        except Barred as exc:
            denial = self._gate.beyond(ctx.identity, ctx.operation, path, exc.rule, exc.reason)
            raise DeniedError(denial.words, denial_id=denial.denial_id, rule=denial.rule) from None


# --- what was asked for -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Wanted:
    """Under which conditions a file is written."""

    create_only: bool
    if_digest: str | None
    digest: str | None


@dataclass(frozen=True, slots=True)
class _Seen:
    """What a condition on the content was found to hold for."""

    expected: str
    found: str | None
    info: os.stat_result | None


def _content(text: str | None, data: bytes | None) -> bytes:
    if (text is None) == (data is None):
        raise InvalidInputError("give the content as text or as data, and not as both")
    if data is not None:
        return data
    try:
        content = (text or "").encode()
    except UnicodeEncodeError:
        raise InvalidInputError("text: it has half a surrogate pair in it") from None
    if len(content) > MAX_PIECE_BYTES:
        raise TooLarge(f"the text has {len(content)} bytes, and a call takes {MAX_PIECE_BYTES}: write it in pieces")
    return content


def _target(spot: Spot, wanted: _Wanted) -> os.stat_result | None:
    """The file that would be replaced; None when there is none."""
    try:
        info = spot.info()
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(info.st_mode):
        raise WrongKind(f"{spot.path!r} is a {kind_of(info)}, and only files are written")
    if wanted.create_only:
        raise Conflict(f"{spot.path!r} exists already")
    return info


def _seen(spot: Spot, expected: str | None) -> _Seen | None:
    if expected is None:
        return None
    try:
        digest, info = _digest(spot, threading.Event())
    except FileNotFoundError:
        return _Seen(expected, None, None)
    return _Seen(expected, digest, info)


def _check_unchanged(spot: Spot, now: os.stat_result | None, seen: _Seen | None) -> None:
    """Whether the file is the one that the caller knows; it was looked at before, for that takes a while."""
    if seen is None:
        return
    if seen.found != seen.expected:
        what = "is not there" if seen.found is None else "has another content"
        raise Conflict(f"{spot.path!r} {what}", details=Found(digest=seen.found))
    if now is None or seen.info is None or _version(now) != _version(seen.info):
        raise Conflict(f"{spot.path!r} is being changed by somebody else")


def _version(info: os.stat_result) -> tuple[int, ...]:
    return info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns


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


def _digest(spot: Spot, stop: threading.Event) -> tuple[str, os.stat_result]:
    """The digest of the file as long as it was when it was opened."""
    fd, info = spot.open_file()
    try:
        hasher, left = blake3(), info.st_size
        while left > 0 and not stop.is_set() and (part := os.read(fd, min(left, HASHED_AT_ONCE_BYTES))):
            hasher.update(part)
            left -= len(part)
        return hasher.hexdigest(), info
    finally:
        os.close(fd)
