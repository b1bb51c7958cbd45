"""Two system calls that Python's `os` has not: a lookup that stays below a directory, and a rename that replaces
nothing. Linux, on x86-64 and on the processors whose numbers come from the kernel's common table."""

import ctypes
import errno
import os
import platform
from typing import Final

__all__ = ["MAX_TRIES", "open_in_root", "rename_new"]

MAX_TRIES: Final = 128
"""The kernel gives up a lookup with ``..`` in it whenever anybody renames anything meanwhile."""

_OPENAT2: Final = 437
_RENAMEAT2: Final = 316 if platform.machine() == "x86_64" else 276
_RENAME_NOREPLACE: Final = 1
_RESOLVE_NO_MAGICLINKS: Final = 0x02
_RESOLVE_IN_ROOT: Final = 0x10


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


_syscall = ctypes.CDLL(None, use_errno=True).syscall
_syscall.restype = ctypes.c_long
_HOW: Final = _OpenHow(
    os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC,
    0,
    _RESOLVE_IN_ROOT | _RESOLVE_NO_MAGICLINKS,
)
_HOW_POINTER: Final = ctypes.byref(_HOW)
_HOW_BYTES: Final = ctypes.c_size_t(ctypes.sizeof(_HOW))
_NUMBER: Final = ctypes.c_long(_OPENAT2)


def open_in_root(root: int, path: bytes) -> int:
    """The directory at `path` below the directory `root`, for names only (``O_PATH``).

    An absolute path or link begins at `root`, ``..`` stays in it, and links that the kernel makes up (those of
    ``/proc``) are not followed. Raises `OSError`: ``ENOSYS`` where the kernel is older than 5.6.
    """
    for _ in range(MAX_TRIES):
        fd: int = _syscall(_NUMBER, ctypes.c_long(root), path, _HOW_POINTER, _HOW_BYTES)
        if fd >= 0:
            return fd
        number = ctypes.get_errno()
        if number == errno.ENOSYS:
            raise OSError(number, "the kernel cannot keep a lookup in a directory: openat2 came with Linux 5.6")
        if number not in (errno.EAGAIN, errno.EINTR):
            raise OSError(number, os.strerror(number))
    raise OSError(errno.EAGAIN, "too much is being renamed")


def rename_new(old_directory: int, old: bytes, new_directory: int, new: bytes) -> None:
    """Rename where nothing is; raises `OSError`: ``EEXIST``, and ``EINVAL`` where the file system cannot."""
    numbers = (ctypes.c_long(_RENAMEAT2), ctypes.c_long(old_directory), old, ctypes.c_long(new_directory), new)
    if _syscall(*numbers, ctypes.c_ulong(_RENAME_NOREPLACE)) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
