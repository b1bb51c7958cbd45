"""Files that are being written, and have no name until they are whole.

A :class:`Draft` is one; where the file system can, it has no name at all until then, so that nothing is left of it
whatever happens, the node's own end included. :class:`Uploads` keeps those that arrive in several calls.
"""

import errno
import os
import secrets
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Final

from blake3 import blake3

from alknet.clock import Clock
from alknet.errors import NotFoundError, UnavailableError
from alknet.services.files_errors import Conflict, Found, TooLarge

__all__ = ["Draft", "Upload", "Uploads"]

FILE_MODE: Final = 0o644
MAX_PER_CALLER: Final = 4
MAX_IN_ALL: Final = 32
MAX_UNFINISHED_BYTES: Final = 1024 * 1024 * 1024
"""Of one caller."""
MAX_IDLE_S: Final = 600.0

_NO_UNNAMED_FILES: Final = (errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT, errno.EINVAL)
"""What a file system, or a kernel, says that has none."""


class Draft:
    """A file without a name, for the directory `directory` (a descriptor; this keeps its own)."""

    def __init__(self, directory: int) -> None:
        self.size = 0
        self._hasher = blake3()
        self._directory = os.dup(directory)
        self._temporary: str | None = None
        """Its name for the time being, where it must have one."""
        try:
            try:
                self._fd = os.open(".", os.O_TMPFILE | os.O_WRONLY, 0o600, dir_fd=self._directory)
            except OSError as exc:
                if exc.errno not in _NO_UNNAMED_FILES:
                    raise
                self._temporary = _temporary_name()
                how = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
                self._fd = os.open(self._temporary, how, 0o600, dir_fd=self._directory)
        except BaseException:
            os.close(self._directory)
            raise

    def write(self, data: bytes) -> None:
        """Append `data`; raises `OSError`, and what is written then is undefined."""
        with memoryview(data) as view:
            taken = 0
            while taken < len(view):
                taken += os.write(self._fd, view[taken:])
        self._hasher.update(data)
        self.size += len(data)

    def is_for(self, directory: int) -> bool:
        """Whether it would get its name in this directory (a descriptor)."""
        return os.path.samestat(os.fstat(self._directory), os.fstat(directory))

    def digest(self) -> str:
        """The BLAKE3 digest of what was written."""
        return str(self._hasher.hexdigest())

    def sync(self) -> None:
        """Have the disk hold what was written."""
        os.fsync(self._fd)

    def commit(self, name: str, *, over: os.stat_result | None) -> None:
        """Become `name`, all at once: with the rights and the owner of `over`, the file that it replaces; for None it
        is a new file, and `FileExistsError` if there is something else by now."""
        os.fchmod(self._fd, FILE_MODE if over is None else stat.S_IMODE(over.st_mode) & 0o777)
        if over is not None and (over.st_uid, over.st_gid) != (os.geteuid(), os.getegid()):
            with suppress(PermissionError):  # only root can give files away
                os.fchown(self._fd, over.st_uid, over.st_gid)
        if over is None and self._temporary is None:
            self._link(name)
        else:
            self._replace(name, is_new=over is None)

    def sync_directory(self) -> None:
        """Have the disk hold the name, too."""
        with suppress(OSError):  # a directory that the node may not list
            directory = os.open(".", os.O_RDONLY | os.O_DIRECTORY, dir_fd=self._directory)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)

    def close(self) -> None:
        """Give it up, unless it was committed; idempotent."""
        if self._fd < 0:
            return
        os.close(self._fd)
        self._fd = -1
        if self._temporary is not None:
            with suppress(OSError):
                os.unlink(self._temporary, dir_fd=self._directory)
        os.close(self._directory)

    def _link(self, name: str) -> None:
        os.link(f"/proc/self/fd/{self._fd}", name, dst_dir_fd=self._directory, follow_symlinks=True)

    def _replace(self, name: str, *, is_new: bool) -> None:
        if self._temporary is None:
            temporary = _temporary_name()
            self._link(temporary)
            self._temporary = temporary
        if is_new:  # a link would do, but not every file system has links
            how = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
            os.close(os.open(name, how, 0o600, dir_fd=self._directory))
        try:
            os.rename(self._temporary, name, src_dir_fd=self._directory, dst_dir_fd=self._directory)
        except OSError:
            if is_new:
                os.unlink(name, dir_fd=self._directory)
            raise
        self._temporary = None


@dataclass(slots=True)
class Upload:
    """A draft that arrives in several calls of one caller."""

    id: str
    caller: str
    path: str
    draft: Draft
    touched_at: float
    is_busy: bool = field(default=False)


class Uploads:
    """The unfinished uploads of a node: few, small and short-lived ones for each caller. Threads may share it."""

    def __init__(self, clock: Clock) -> None:
        self.commits = threading.Lock()
        """Held from the last look at what is to be replaced until it is."""
        self._clock = clock
        self._lock = threading.Lock()
        self._uploads: dict[str, Upload] = {}

    def __len__(self) -> int:
        return len(self._uploads)

    def begin(self, caller: str, path: str, draft: Draft) -> Upload:
        """Keep a draft; raises `UnavailableError` when the caller, or all together, have too many."""
        with self._lock:
            mine = sum(upload.caller == caller for upload in self._uploads.values())
            if mine >= MAX_PER_CALLER or len(self._uploads) >= MAX_IN_ALL:
                raise UnavailableError(
                    f"{mine} uploads of yours are unfinished, and {len(self._uploads)} in all",
                    hint=f"finish one, or wait: one that nothing is added to is given up after {MAX_IDLE_S:g} s",
                )
            upload = Upload(f"upl_{secrets.token_hex(8)}", caller, path, draft, self._clock.monotonic())
            self._uploads[upload.id] = upload
            return upload

    @contextmanager
    def use(self, id: str, caller: str, path: str) -> Iterator[Upload]:
        """The caller's own upload, for nobody else meanwhile; raises `NotFoundError` and `Conflict`."""
        with self._lock:
            upload = self._uploads.get(id)
            if upload is None or (upload.caller, upload.path) != (caller, path):
                raise NotFoundError(
                    f"you have no unfinished upload {id!r} to {path!r}",
                    hint="it was finished or given up: begin again without 'upload'",
                )
            if upload.is_busy:
                raise Conflict(f"another call is adding to the upload {id!r}", retryable=True)
            upload.is_busy = True
        try:
            yield upload
        finally:
            with self._lock:
                upload.touched_at = self._clock.monotonic()
                upload.is_busy = False
                is_over = id not in self._uploads
            if is_over:
                upload.draft.close()

    def add(self, upload: Upload, data: bytes, *, offset: int) -> None:
        """Append to an upload in use; raises `Conflict`, `TooLarge` and `OSError`, and then it may be gone."""
        if offset != upload.draft.size:
            raise Conflict(
                f"{upload.draft.size} bytes of the upload have arrived, so that is where it goes on",
                details=Found(offset=upload.draft.size),
            )
        with self._lock:
            mine = sum(one.draft.size for one in self._uploads.values() if one.caller == upload.caller)
        if mine + len(data) > MAX_UNFINISHED_BYTES:
            raise TooLarge(f"your unfinished uploads would have more than {MAX_UNFINISHED_BYTES} bytes")
        try:
            upload.draft.write(data)
        except OSError:
            self.drop(upload)
            raise

    def drop(self, upload: Upload) -> None:
        """It is finished, or given up."""
        with self._lock:
            self._uploads.pop(upload.id, None)
        upload.draft.close()

    def expire(self) -> None:
        """Give up those that nothing was added to for `MAX_IDLE_S`."""
        oldest = self._clock.monotonic() - MAX_IDLE_S
        with self._lock:
            old = [one for one in self._uploads.values() if one.touched_at < oldest and not one.is_busy]
            for upload in old:
                del self._uploads[upload.id]
        for upload in old:
            upload.draft.close()

    def close(self) -> None:
        """Give all of them up; idempotent."""
        with self._lock:
            left = [upload for upload in self._uploads.values() if not upload.is_busy]
            self._uploads.clear()
        for upload in left:
            upload.draft.close()


def _temporary_name() -> str:
    return f".{secrets.token_hex(8)}.alknet-draft"
