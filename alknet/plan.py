"""What a request to run something comes to: which action is decided, and what would be run.

Pure: from the peer's rights and the request to a :class:`Plan`. What a reload would plan differently, it ends.
"""

import shlex
from collections.abc import Container
from dataclasses import dataclass
from enum import StrEnum

from alknet.access import SshRights

__all__ = ["Kind", "Plan", "Request", "make_plan"]


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

    Exactly one of these holds: `subsystem` or `command` names a part of the node; `words` is run without a shell;
    `script` is run by the user's shell; none of them, and the user's shell itself is run.
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

    def argv(self, shell: str) -> list[str]:
        """The program and its arguments for a user with this shell."""
        if self.words is not None:
            return list(self.words)
        return [shell, "-l"] if self.script is None else [shell, "-c", self.script]


def make_plan(request: Request, rights: SshRights, commands: Container[str] = ()) -> Plan:
    """The plan for `request` under `rights`. It does not decide: a plan may be for something that is denied.

    `commands` are those that the node itself carries out; they are no programs, so a list of programs does not rule
    them out.
    """
    base = (rights.user, rights.shell)
    if rights.force_command is not None:
        return Plan(
            "ssh/exec",
            rights.force_command,
            *base,
            script=rights.force_command,
            original=request.text or None,
        )
    match request.kind:
        case Kind.SUBSYSTEM:
            return Plan(None, None, *base, subsystem=request.text)
        case Kind.SHELL:
            return Plan("ssh/shell", None, *base)
        case Kind.EXEC if request.text.partition(" ")[0] in commands:
            return Plan(None, None, *base, command=request.text)
        case Kind.EXEC if rights.commands is None:
            return Plan("ssh/exec", request.text, *base, script=request.text)
        case Kind.EXEC:
            try:
                words = tuple(shlex.split(request.text))
            except ValueError:
                words = ()  # unbalanced quotes: no list of commands allows it
            return Plan("ssh/exec", request.text, *base, words=words)
