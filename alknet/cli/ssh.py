"""``ssh``: a command or a shell on a peer, with the exit code, the streams and the terminal that ssh would give."""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import click

from alknet.cli.app import Invocation, common_options, pass_invocation
from alknet.cli.client import (
    CANNOT_CONNECT,
    accept_new_option,
    accepter,
    carrier_options,
    find_target,
    run_async,
)
from alknet.cli.escape import DEFAULT_ESCAPE, parse_escape
from alknet.cli.forward import forward_options
from alknet.errors import AlknetError, UsageError

if TYPE_CHECKING:
    from alknet.ssh.forward_specs import Forward

__all__ = ["SshOptions", "is_terminal", "ssh"]

FORWARDS: Final = ("local", "remote", "dynamic")
"""Options of which there may be several, before and behind the peer's name."""


@dataclass(frozen=True, slots=True)
class SshOptions:
    """How a session is wanted."""

    carriers: tuple[str, ...]
    verbose: bool
    accept_new: bool
    force_terminal: bool
    no_terminal: bool
    escape: str | None
    local: tuple["Forward", ...]
    remote: tuple["Forward", ...]
    dynamic: tuple["Forward", ...]
    no_session: bool
    agent: bool
    exit_on_failure: bool | None
    """Whether a forward that cannot be set up ends the command; None means only where it does nothing else."""

    @property
    def forwards(self) -> tuple["Forward", ...]:
        return (*self.local, *self.remote, *self.dynamic)

    def has_terminal(self, command: str | None) -> bool:
        """Whether the session gets a terminal: as ssh decides it."""
        return not self.no_terminal and (self.force_terminal or (command is None and is_terminal(0)))


def _exit_on_failure(context: click.Context, parameter: click.Parameter, text: str | None) -> bool | None:
    """ssh's ``-o``, of which one option is known."""
    if text is None:
        return None
    name, value, *_ = (*re.split(r"\s*[=\s]\s*", text.strip(), maxsplit=1), "")
    if name.lower() != "exitonforwardfailure" or value.lower() not in ("yes", "no"):
        raise UsageError(f"-o {text!r} is not known", hint="the one option is ExitOnForwardFailure=yes, or no")
    return value.lower() == "yes"


def _options(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        carrier_options,
        accept_new_option,
        forward_options,
        click.option("-N", "no_session", is_flag=True, help="Run nothing there: only forward."),
        click.option(
            "-A/-a", "agent", default=False, help="Let programs there use this ssh-agent's keys, or (as always) not."
        ),
        click.option(
            "-o",
            "exit_on_failure",
            metavar="OPTION",
            callback=_exit_on_failure,
            help="ExitOnForwardFailure=yes ends it where a forward cannot be set up; it is no without -N.",
        ),
        click.option("-t", "force_terminal", count=True, help="Allocate a terminal even for a command."),
        click.option("-T", "no_terminal", is_flag=True, help="Never allocate a terminal."),
        click.option(
            "-e", "escape", metavar="CHAR", help="Escape character of a terminal session; ~ by default, none for none."
        ),
    ):
        command = option(command)
    return command


@click.command(context_settings={"allow_interspersed_args": False})
@_options
@click.argument("peer")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@pass_invocation
def ssh(invocation: Invocation, /, peer: str, command: tuple[str, ...], **given: Any) -> int:
    """Run COMMAND on PEER, or a shell without one.

    PEER is a configured peer, '.' for the local node, or [user@]host[:port]. Exits with the remote command's code,
    with 255 when it cannot connect. In a terminal, ~. at the start of a line ends the connection and ~? lists what else
    there is.

    -L, -R and -D forward as long as the session runs, and until the last connection that they carry has ended.
    """
    words, given = _behind(click.get_current_context(), command, given)
    options = SshOptions(**given | {"force_terminal": bool(given["force_terminal"])})
    escape = DEFAULT_ESCAPE if options.escape is None else parse_escape(options.escape)
    text = " ".join(words) or None
    if options.no_session and text is not None:
        raise UsageError("-N runs nothing, and there is a command")
    try:
        target = find_target(invocation, peer, accept_new=accepter(yes=options.accept_new))
        return run_async(lambda: _session(target, options, escape, text))
    except AlknetError as exc:
        if exc.exit_code not in (2, 6, 7):
            exc.exit_code = CANNOT_CONNECT
        raise


async def _session(target: Any, options: SshOptions, escape: int | None, command: str | None) -> int:
    from alknet.cli.ssh_session import run_session

    return await run_session(target, options, escape=escape, command=command)


def _behind(
    context: click.Context, words: tuple[str, ...], given: dict[str, Any]
) -> tuple[tuple[str, ...], dict[str, Any]]:
    """The command, and the options with those that ssh allows to stand between the peer's name and the command."""
    second = click.Command(
        context.command.name,
        params=[
            *common_options(),
            *(p for p in context.command.params if isinstance(p, click.Option) and p.name in given),
            click.Argument(["command"], nargs=-1, type=click.UNPROCESSED),
        ],
        context_settings={"allow_interspersed_args": False},
        add_help_option=False,
    )
    with second.make_context(context.info_name, list(words), parent=context.parent) as behind:
        for name, value in behind.params.items():
            source = behind.get_parameter_source(name)
            if name != "command" and source is click.core.ParameterSource.COMMANDLINE:
                given = given | {name: given[name] + value if isinstance(value, tuple) and name in FORWARDS else value}
        return behind.params["command"], given


def is_terminal(fd: int) -> bool:
    """Whether `fd` is open and a terminal."""
    try:
        return os.isatty(fd)
    except OSError:
        return False
