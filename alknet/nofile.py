"""File descriptors: as many as the system allows, and a reserve that no caller can take.

The kernel gives out the lowest free number, so the number of a new descriptor tells how many are in use. The reserve
keeps what an operator needs in an emergency possible: reading the configuration, writing the audit log.
"""

import resource
from contextlib import suppress
from typing import Final

__all__ = ["RESERVED_DESCRIPTORS", "is_scarce", "lower_for_child", "raise_limit"]

RESERVED_DESCRIPTORS: Final = 64
CHILD_SOFT_LIMIT: Final = 1024
"""What a session's process gets: programs that use select(2) break above it."""


def raise_limit() -> int:
    """Raise this process's soft limit to its hard one; returns the limit that holds now."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def is_scarce(fd: int) -> bool:
    """Whether `fd`, just opened, lies in the reserve: whoever asked for it has to be turned away."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return fd >= soft - min(RESERVED_DESCRIPTORS, soft // 2)


def lower_for_child(pid: int) -> None:
    """Give a child the usual soft limit back; it may raise it itself."""
    with suppress(OSError, ValueError):
        _, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (min(CHILD_SOFT_LIMIT, hard), hard))
