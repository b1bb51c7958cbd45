"""``ssh``: a command or a shell on a peer, with the exit code, the streams and the terminal that ssh would give."""

import asyncio
import contextlib
import os
import signal
import termios
import tty
from collections.abc import Iterator
from pathlib import Path

import click

from alknet.cli.app import Invocation, pass_invocation
from alknet.cli.client import CANNOT_CONNECT, carrier_options, find_target, reporter, run_async
from alknet.errors import AlknetError, UsageError

__all__ = ["ssh"]


@click.command(context_settings={"allow_interspersed_args": False})
@carrier_options
@click.option("-t", "force_terminal", is_flag=True, help="Allocate a terminal even for a command.")
@click.option("-T", "no_terminal", is_flag=True, help="Never allocate a terminal.")
@click.argument("peer")
@click.argument("command", nargs=-1)
@pass_invocation
def ssh(
    invocation: Invocation,
    carriers: tuple[str, ...],
    verbose: bool,
    force_terminal: bool,
    no_terminal: bool,
    peer: str,
    command: tuple[str, ...],
) -> int:
    """Run COMMAND on PEER, or a shell without one.

    PEER is a configured peer, '.' for the local node, or [user@]host[:port]. Exits with the remote command's code,
    with 255 when it cannot connect.
    """
    command = _take_options(invocation, command)
    force_terminal |= invocation.terminal is True
    no_terminal |= invocation.terminal is False
    wanted = force_terminal or (not command and _is_terminal(0))
    has_terminal = wanted and not no_terminal
    try:
        target = find_target(invocation, peer)
        return run_async(lambda: _session(target, carriers, verbose, " ".join(command) or None, has_terminal))
    except AlknetError as exc:
        if exc.exit_code not in (2, 6, 7):
            exc.exit_code = CANNOT_CONNECT
        raise


def _take_options(invocation: Invocation, words: tuple[str, ...]) -> tuple[str, ...]:
    """The command behind PEER, without the options that ssh allows to stand before it."""
    rest = list(words)
    while rest and rest[0].startswith("-"):
        word = rest.pop(0)
        if word == "--":
            break
        if word in ("-t", "-tt", "-T"):
            invocation.terminal = word != "-T"
        elif word in ("--home", "--identity") and rest:
            setattr(invocation, {"--home": "home_path", "--identity": "identity"}[word], Path(rest.pop(0)))
        elif word == "--debug":
            invocation.debug = True
        else:
            raise UsageError(f"No such option {word!r} before the command", hint="-- ends the options")
    return tuple(rest)


def _is_terminal(fd: int) -> bool:
    try:
        return os.isatty(fd)
    except OSError:
        return False


async def _session(
    target: object, carriers: tuple[str, ...], verbose: bool, command: str | None, has_terminal: bool
) -> int:
    from alknet.ssh.client import ClientSession, SessionOptions, Target, connect
    from alknet.ssh.descriptors import Sink, open_sink, open_source
    from alknet.ssh.terminal import local_modes

    assert isinstance(target, Target)
    local_terminal = _is_terminal(0)
    options = SessionOptions(
        command,
        terminal=os.environ.get("TERM", "dumb") if has_terminal else None,
        size=_size(),
        modes=local_modes(0) if has_terminal and local_terminal else None,
    )
    session = ClientSession()
    sinks: list[Sink] = [open_sink(fd, session.drained) for fd in (1, 2)]

    def on_data(data: bytes, is_stderr: bool) -> bool:
        keeps_up = sinks[is_stderr].write(data)
        if not is_stderr and sinks[0].is_gone:
            connection.abort()  # nobody reads what comes: end the command, as a broken pipe would
        return keeps_up

    session.on_data = on_data
    async with connect(target, carriers=carriers, report=reporter(verbose)) as link:
        connection = link.ssh
        with _raw_terminal(has_terminal and local_terminal):
            channel = await ClientSession.start(connection, session, options)
            source = open_source(0, channel.write, channel.write_eof)
            session.on_pause = lambda paused: source.pause() if paused else source.resume()
            if has_terminal:
                asyncio.get_running_loop().add_signal_handler(
                    signal.SIGWINCH, lambda: channel.change_terminal_size(*_size())
                )
            for number in (signal.SIGTERM, signal.SIGHUP):
                asyncio.get_running_loop().add_signal_handler(number, connection.abort)  # and restore the terminal
            source.resume()
            await session.ended.wait()
            source.close()
            for sink in sinks:
                await sink.drain()
    if session.exit_signal is not None:
        click.echo(f"alknet: the remote command was ended by SIG{session.exit_signal}", err=True)
    return CANNOT_CONNECT if session.exit_status is None else session.exit_status


def _size() -> tuple[int, int, int, int]:
    with contextlib.suppress(OSError):
        size = os.get_terminal_size(0)
        return size.columns, size.lines, 0, 0
    return 80, 24, 0, 0


@contextlib.contextmanager
def _raw_terminal(wanted: bool) -> Iterator[None]:
    """The terminal's keys go to the far side, Ctrl-C among them; afterwards it is as it was."""
    if not wanted:
        yield
        return
    before = termios.tcgetattr(0)
    try:
        tty.setraw(0, termios.TCSADRAIN)  # keys typed ahead are kept
        yield
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)
