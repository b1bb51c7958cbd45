"""What a request to run something comes to: which action is decided, and what would be run.

Pure: from the peer's rights and the request to a :class:`Plan`. What a reload would plan differently, it ends.
"""

import itertools
import shlex
from collections.abc import Container
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

from alknet.access import Certificate, SshRights

__all__ = ["SFTP", "Kind", "Plan", "Request", "make_plan"]

SFTP: Final = "sftp"
"""The subsystem."""


class Kind(StrEnum):
    """What a client can ask of a session channel."""

    EXEC = "exec"
    SHELL = "shell"
    SUBSYSTEM = "subsystem"


@dataclass(frozen=True, slots=True)
class Request:
    """One request; `text` is the command or the subsystem's name, empty for a shell."""

    kind: Kind
    text: str = ""


@dataclass(frozen=True, slots=True)
class Plan:
    """How a request would be carried out.

    Exactly one of these holds: `subsystem` or `command` names a part of the node; `files` are served; `words` is run
    without a shell; `script` is run by the user's shell; none of them, and the user's shell itself is run.
    """

    action: str | None
    """What is decided before it is run; None for a part of the node, which asks for all that it does."""
    resource: str | None
    user: str | None
    shell: str | None
    subsystem: str | None = None
    command: str | None = None
    """A command that the node itself carries out, with all that follows it, untouched."""
    words: tuple[str, ...] | None = None
    script: str | None = None
    original: str | None = None
    """What was asked for when something else is run instead."""
    files: str | None = None
    """The directory that is served to the client, by SFTP or (`script`) by scp's own protocol."""

    def argv(self, shell: str) -> list[str]:
        """The program and its arguments for a user with this shell."""
        if self.words is not None:
            return list(self.words)
        return [shell, "-l"] if self.script is None else [shell, "-c", self.script]


def make_plan(
    request: Request, rights: SshRights, commands: Container[str] = (), certificate: Certificate | None = None
) -> Plan:
    """The plan for `request` under `rights`. It does not decide: a plan may be for something that is denied.

    `commands` are those that the node itself carries out; they are no programs, so a list of programs does not rule
    them out. What `certificate`, which the peer logged in with, forces is run instead of everything.
    """
    base = (rights.user, rights.shell)
    if certificate is not None and certificate.force_command is not None:
        rights = replace(rights, force_command=certificate.force_command)
    if rights.force_command is not None:
        forced = Plan("ssh/exec", rights.force_command, *base, original=request.text or None)
        # A certificate can force a command where the peer's entry lists some: no shell sees it then, either.
        if rights.commands is None:
            return replace(forced, script=rights.force_command)
        return replace(forced, words=_words(rights.force_command))
    match request.kind:
        case Kind.SUBSYSTEM if request.text == SFTP:
            return Plan("sftp/read", None, *base, files=rights.sftp_root or "")
        case Kind.SUBSYSTEM:
            return Plan(None, None, *base, subsystem=request.text)
        case Kind.SHELL:
            return Plan("ssh/shell", None, *base)
        case Kind.EXEC if request.text.partition(" ")[0] in commands:
            return Plan(None, None, *base, command=request.text)
        case Kind.EXEC if rights.commands is None and rights.sftp_root and (action := _scp(request.text)) is not None:
            return Plan(action, None, *base, script=request.text, files=rights.sftp_root)
        case Kind.EXEC if rights.commands is None:
            return Plan("ssh/exec", request.text, *base, script=request.text)
        case Kind.EXEC:
            return Plan("ssh/exec", request.text, *base, words=_words(request.text))


def _words(command: str) -> tuple[str, ...]:
    """As a shell would split it; none for unbalanced quotes, which no list of commands allows."""
    try:
        return tuple(shlex.split(command))
    except ValueError:
        return ()


def _scp(command: str) -> str | None:
    """What the far side of ``scp`` in its own protocol does to files here; None for any other command."""
    try:
        name, *words = shlex.split(command)
    except ValueError:
        return None
    options = "".join(itertools.takewhile(lambda word: word[:1] == "-" and word != "--", words))
    if name != "scp" or ("t" in options) == ("f" in options):
        return None
    return "sftp/write" if "t" in options else "sftp/read"
