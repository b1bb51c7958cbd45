"""``fs/write`` and ``fs/remove``: changing files.

How a file is written so that it is whole or not there stands in :mod:`alknet.services.files_drafts`.
"""

import os
import stat
from dataclasses import dataclass
from typing import Annotated, Final

from pydantic import Field

from alknet.call.binary import Bytes
from alknet.call.context import OperationContext
from alknet.call.operations import operation
from alknet.errors import InvalidInputError
from alknet.services.files import DIGEST, MAX_PIECE_BYTES, FilePath, Files, digest_of
from alknet.services.files_drafts import Draft, Upload, Uploads
from alknet.services.files_errors import Conflict, Found, NotPermitted, NotStored, TooLarge, WrongKind
from alknet.services.files_removal import remove_tree
from alknet.services.files_roots import Spot, kind_of

__all__ = ["FileWriter", "Removed", "Written"]

ERRORS: Final = (Conflict, WrongKind, TooLarge, NotPermitted, NotStored)

ExpectedDigest = Annotated[
    str | None,
    Field(pattern=DIGEST, description="Do it only if this is still the BLAKE3 digest of the file; else CONFLICT."),
]


@dataclass(frozen=True, slots=True)
class Written:
    """`size` and `digest` (BLAKE3) of the file as it is now, and whether it is a new one. While `upload` is given,
    nothing is changed yet, and `size` is how much has arrived."""

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


class FileWriter:
    """The operations that change files; `uploads` outlives it."""

    def __init__(self, files: Files, uploads: Uploads) -> None:
        self._files = files
        self._uploads = uploads

    @operation(
        "fs/write",
        kind="mutation",
        scopes=["fs:write"],
        resource_id="$.path",
        errors=ERRORS,
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

        Everybody sees either the old file or the new one, never a part. A larger file goes in pieces: the first call
        with `final` false answers with an `upload`; give that and the `offset` with the next pieces, and leave `final`
        out with the last one. An upload that nothing is added to for ten minutes is given up.
        """
        content = _content(text, data)
        if upload is None and offset:
            raise InvalidInputError("offset: it is of an upload, and there is no 'upload'")
        with self._files.reach(ctx, path, write=True, parents=parents) as spot:
            wanted = _Wanted(create_only, if_digest, digest)
            _target(spot, wanted)  # before a caller sends a gigabyte in vain
            caller = "" if ctx.identity is None else ctx.identity.id
            if upload is not None:
                with self._uploads.use(upload, caller, path) as kept:
                    return self._piece(spot, kept, content, offset, wanted, ctx, final=final)
            if not final:
                return self._begin(spot, caller, content)
            draft = Draft(spot.directory)
            try:
                draft.write(content)
                return self._commit(spot, draft, wanted, ctx)
            finally:
                draft.close()

    def _begin(self, spot: Spot, caller: str, content: bytes) -> Written:
        draft = Draft(spot.directory)
        try:
            kept = self._uploads.begin(caller, spot.path, draft)
        except BaseException:
            draft.close()
            raise
        try:
            self._uploads.add(kept, content, offset=0)
        except BaseException:
            self._uploads.drop(kept)
            raise
        return Written(spot.path, draft.size, None, None, kept.id)

    def _piece(
        self,
        spot: Spot,
        kept: Upload,
        content: bytes,
        offset: int,
        wanted: "_Wanted",
        ctx: OperationContext,
        *,
        final: bool,
    ) -> Written:
        if not kept.draft.is_for(spot.directory):  # it was moved, perhaps out of the root, or the root is another one
            self._uploads.drop(kept)
            raise Conflict(f"the directory of {spot.path!r} was replaced since the upload began: begin again")
        self._uploads.add(kept, content, offset=offset)
        if not final:
            return Written(spot.path, kept.draft.size, None, None, kept.id)
        try:
            return self._commit(spot, kept.draft, wanted, ctx)
        finally:
            self._uploads.drop(kept)

    def _commit(self, spot: Spot, draft: Draft, wanted: "_Wanted", ctx: OperationContext) -> Written:
        assert spot.name is not None
        digest = draft.digest()
        if wanted.digest not in (None, digest):
            raise InvalidInputError(f"digest: the content that arrived has the digest {digest}")
        draft.sync()
        seen = _seen(spot, wanted.if_digest, ctx)
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
        errors=ERRORS,
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
        with self._files.reach(ctx, path, write=True) as spot:
            if spot.name is None:
                raise WrongKind(f"{path!r} is a root, and stays")
            info = spot.info()
            seen = _seen(spot, if_digest, ctx)
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


def _seen(spot: Spot, expected: str | None, ctx: OperationContext) -> _Seen | None:
    if expected is None:
        return None
    try:
        digest, info = digest_of(spot, ctx)
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
