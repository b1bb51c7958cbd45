"""Helper processes of the node: how they are called, and how one becomes the user that it works for.

A helper is started by the node as what the node itself is, so that it can load its code wherever that lies; it loads
all of it, then becomes the user, and only then reads a byte from outside.
"""

import ctypes
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:  # a helper that starts for every session does without
    from alknet.runas import RunAs

__all__ = ["become", "helper_argv"]

_PR_SET_DUMPABLE: Final = 4
_PR_SET_NO_NEW_PRIVS: Final = 38
UNCHANGED: Final = "-"
"""Stands for the ids where the helper stays who it is."""


def helper_argv(module: str, user: "RunAs", *arguments: str | int) -> list[str]:
    """The command line of a helper that works for `user`: its `module` gets the `arguments` and then the ids.

    The interpreter takes nothing from the environment and nothing from the directory that it is started in.
    """
    ids = [UNCHANGED]
    if user.change:
        ids = [str(user.uid), str(user.gid), ",".join(map(str, user.groups))]
    return [sys.executable, "-I", "-m", module, *map(str, arguments), *ids]


def become(ids: Sequence[str]) -> None:
    """Become the user whose `ids` the command line ends with, for good; no program that this process might start gets
    more rights, and no other process of that user may look into this one. Raises `OSError`, after which the process
    must end."""
    if list(ids) != [UNCHANGED]:
        uid, gid, groups = int(ids[0]), int(ids[1]), [int(group) for group in ids[2].split(",") if group]
        os.setgroups(groups)
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
    libc = ctypes.CDLL(None, use_errno=True)
    for option, value in ((_PR_SET_NO_NEW_PRIVS, 1), (_PR_SET_DUMPABLE, 0)):
        if libc.prctl(option, value, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), f"prctl {option} failed")
