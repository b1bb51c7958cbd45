"""Leaving the session keyring of whoever started the node.

The kernel lets every process of a session read its keyring, and a session's processes inherit the node's. What an
operator keeps there is not for peers. Linux only; without the system call nothing happens.
"""

import ctypes
import platform
from typing import Final

__all__ = ["leave_session_keyring"]

_KEYCTL: Final = {"x86_64": 250, "aarch64": 219, "riscv64": 219, "ppc64le": 271, "s390x": 280}
_JOIN_SESSION_KEYRING: Final = 1


def leave_session_keyring() -> bool:
    """Join a new, empty session keyring; says whether that was possible."""
    number = _KEYCTL.get(platform.machine())
    if number is None:
        return False
    return int(ctypes.CDLL(None).syscall(number, _JOIN_SESSION_KEYRING, None)) >= 0
