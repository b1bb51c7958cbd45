"""The operating-system user that a peer's programs run as, and the environment they get.

Nothing of the node's own environment is passed on: it may hold what only the operator should see.
"""

import os
import pwd
import re
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final, Protocol

from alknet.errors import NotFoundError

__all__ = ["ClientEnvironment", "Endpoint", "RunAs", "directory_of", "environment", "run_as"]

ROOT_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
USER_PATH: Final = "/usr/local/bin:/usr/bin:/bin:/usr/local/games:/usr/games"
FALLBACK_SHELL: Final = "/bin/sh"
MAX_ENV_VARIABLES: Final = 64
MAX_ENV_BYTES: Final = 32 * 1024
"""What a client may set in all, names and values together."""


class Endpoint(Protocol):
    """One end of a connection."""

    @property
    def host(self) -> str:
        """Its address."""

    @property
    def port(self) -> int:
        """Its port."""


@dataclass(frozen=True, slots=True)
class RunAs:
    """A user to run as. `change` is False when it is the node's own user and nothing needs to change."""

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...]
    home: str
    shell: str
    change: bool


def run_as(user: str | None, *, shell: str | None = None) -> RunAs:
    """`user`'s entry in the user database, or the node's own user's for None; raises `NotFoundError`."""
    euid = os.geteuid()
    try:
        entry = pwd.getpwuid(euid) if user is None else pwd.getpwnam(user)
    except KeyError:
        name = user or f"number {euid}"
        raise NotFoundError(f"this machine has no user {name}") from None
    groups = os.getgrouplist(entry.pw_name, entry.pw_gid) if euid == 0 else os.getgroups()
    same_groups = {entry.pw_gid, *groups} == {os.getegid(), *os.getgroups()}
    is_self = (entry.pw_uid, entry.pw_gid) == (euid, os.getegid()) and same_groups
    change = euid == 0 and not is_self  # a child that stays who the node is can be started with vfork
    return RunAs(
        name=entry.pw_name,
        uid=entry.pw_uid,
        gid=entry.pw_gid,
        groups=tuple(groups),
        home=entry.pw_dir or "/",
        shell=shell or entry.pw_shell or FALLBACK_SHELL,
        change=change,
    )


def directory_of(pattern: str, user: RunAs) -> str:
    """A directory from the configuration, with ``%h`` for the user's home, ``%u`` for its name and ``%%`` for %."""
    meaning = {"%h": user.home, "%u": user.name, "%%": "%"}
    return re.sub("%[hu%]", lambda found: meaning[found[0]], pattern)


class ClientEnvironment:
    """The variables that a client asked for: those whose names match `allowed`, up to a number and a size."""

    def __init__(self, allowed: tuple[str, ...]) -> None:
        self.variables: dict[str, str] = {}
        self._allowed = allowed
        self._bytes = 0

    def offer(self, name: bytes, value: bytes) -> bool:
        """Keep a variable if its name is allowed and there is room; says whether it did."""
        try:
            key, text = name.decode("ascii"), value.decode("utf-8", "surrogateescape")
        except UnicodeDecodeError:
            return False
        size = self._bytes + len(name) + len(value)
        if "\0" in text or "=" in key or not any(fnmatchcase(key, pattern) for pattern in self._allowed):
            return False
        if len(self.variables) >= MAX_ENV_VARIABLES or size > MAX_ENV_BYTES:
            return False
        self.variables[key] = text
        self._bytes = size
        return True


def environment(
    user: RunAs,
    *,
    peer: str,
    connection: str | None,
    remote: Endpoint | None,
    local: Endpoint | None,
    from_client: Mapping[str, str],
    term: str | None = None,
    tty: str | None = None,
    original_command: str | None = None,
    agent: str | None = None,
) -> dict[str, str]:
    """The whole environment of a program that is run for a peer. What the node sets wins over what the client sent."""
    env = dict(from_client)
    env |= {
        "HOME": user.home,
        "USER": user.name,
        "LOGNAME": user.name,
        "SHELL": user.shell,
        "PATH": ROOT_PATH if user.uid == 0 else USER_PATH,
        "ALKNET_PEER": peer,
    }
    if connection is not None:
        env["ALKNET_CONNECTION"] = connection
    if remote is not None and local is not None:
        env["SSH_CONNECTION"] = f"{remote.host} {remote.port} {local.host} {local.port}"
        env["SSH_CLIENT"] = f"{remote.host} {remote.port} {local.port}"
    if term is not None:
        env["TERM"] = term
    if tty is not None:
        env["SSH_TTY"] = tty
    if agent is not None:
        env["SSH_AUTH_SOCK"] = agent
    if original_command is not None:
        env["SSH_ORIGINAL_COMMAND"] = original_command
    return env
