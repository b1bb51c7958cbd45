"""A session of ``alknet ssh`` on this process's standard streams and terminal."""

import asyncio
import contextlib
import os
import signal
import sys
import termios
import tty
from collections.abc import AsyncIterator, Iterator
from typing import Any

import click

from alknet.cli.client import CANNOT_CONNECT, reporter
from alknet.cli.escape import BREAK_MS, Action, Escape
from alknet.cli.forward import until_stopped, why_lost
from alknet.cli.ssh import SshOptions, is_terminal
from alknet.descriptors import Sink, Source, open_sink, open_source
from alknet.logs import printable
from alknet.nofile import raise_limit
from alknet.ssh.client import ClientSession, Link, SessionOptions, Target, connect
from alknet.ssh.client_forwards import Forwards
from alknet.ssh.terminal import local_modes

__all__ = ["run_session"]


async def run_session(target: Target, options: SshOptions, *, escape: int | None, command: str | None) -> int:
    """Run it to its end; the exit code is the remote command's, `CANNOT_CONNECT` when it was lost or cut."""
    has_terminal = options.has_terminal(command)
    is_raw = has_terminal and is_terminal(0)
    agent = os.environ.get("SSH_AUTH_SOCK") if options.agent else None
    report = reporter(options.verbose)
    async with (
        connect(target, carriers=options.carriers, report=report, notice=_say, agent=agent) as link,
        _forwarding(link, options) as forwards,
    ):
        if options.no_session:
            return await _only_forward(link)
        wanted = SessionOptions(
            command,
            terminal=os.environ.get("TERM", "dumb") if has_terminal else None,
            size=_size(),
            modes=local_modes(0) if is_raw else None,
        )
        with _Terminal(is_raw) as terminal:
            session = _Session(link, terminal, Escape(escape if is_raw else None), forwards)
            code = await session.run(wanted)
        await forwards.wait_idle()  # as ssh does
        return code


@contextlib.asynccontextmanager
async def _forwarding(link: Link, options: SshOptions) -> AsyncIterator[Forwards]:
    """Set the forwards up; raises `ForwardError` where that cannot be and there is no use in the rest."""
    must = options.no_session if options.exit_on_failure is None else options.exit_on_failure
    forwards = Forwards(options.forwards, _say)
    if options.forwards:
        raise_limit()
    try:
        for error in [*await forwards.listen(), *await forwards.attach(link)]:
            if must:
                raise error
            _say(f"warning: {error}")
        yield forwards
    finally:
        await forwards.aclose()


async def _only_forward(link: Link) -> int:
    """Wait until the connection ends, or the user ends it."""
    await until_stopped(link.ssh.wait_closed)
    if link.ssh.is_closed():
        _say(f"the connection was lost{why_lost(link)}")
    return CANNOT_CONNECT


def _say(line: str) -> None:
    """A line on stderr, which may be a terminal in raw mode."""
    click.echo(f"alknet: {printable(line)}\r" if is_terminal(2) else f"alknet: {printable(line)}", err=True)


class _Session:
    """The streams between the terminal and the channel."""

    def __init__(self, link: Link, terminal: "_Terminal", escape: Escape, forwards: Forwards) -> None:
        self._link = link
        self._ssh = link.ssh
        self._terminal = terminal
        self._escape = escape
        self._forwards = forwards
        self._session = ClientSession()
        self._sinks: list[Sink] = [open_sink(fd, self._session.drained) for fd in (1, 2)]
        self._was_disconnected = False

    async def run(self, wanted: SessionOptions) -> int:
        session, loop = self._session, asyncio.get_running_loop()
        session.on_data = self._received
        self._channel: Any = await ClientSession.start(self._ssh, session, wanted)
        source: Source = open_source(0, self._typed, self._channel.write_eof)
        session.on_pause = lambda paused: source.pause() if paused else source.resume()
        if wanted.terminal is not None:
            loop.add_signal_handler(signal.SIGWINCH, self._resized)
        for number in (signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self._cut)  # and restore the terminal
        source.resume()
        await session.ended.wait()
        source.close()
        for sink in self._sinks:
            await sink.drain()
        if session.exit_signal is not None:
            click.echo(f"alknet: the remote command was ended by SIG{session.exit_signal}", err=True)
        elif session.exit_status is None and not self._was_disconnected:
            _, why = self._link.carrier.close_reason or (0, "")
            why = why or session.lost_because
            click.echo(f"alknet: the connection was lost{': ' if why else ''}{printable(why)}", err=True)
        return CANNOT_CONNECT if session.exit_status is None else session.exit_status

    def _received(self, data: bytes, is_stderr: bool) -> bool:
        keeps_up = self._sinks[is_stderr].write(data)
        if not is_stderr and self._sinks[0].is_gone:
            self._cut()  # nobody reads what comes: end the command, as a broken pipe would
        return keeps_up

    def _cut(self) -> None:
        """This side ends it, and knows why."""
        self._was_disconnected = True
        self._ssh.abort()

    def _typed(self, data: bytes) -> None:
        for piece in self._escape.feed(data):
            if isinstance(piece, bytes):
                with contextlib.suppress(BrokenPipeError):  # the command reads no more, and will end or not
                    self._channel.write(piece)
                continue
            sys.stderr.write(self._escape.notice(piece))
            sys.stderr.flush()
            match piece:
                case Action.DISCONNECT:
                    self._cut()
                case Action.SUSPEND:
                    self._terminal.suspend()
                    self._resized()
                case Action.FORWARDS:
                    sys.stderr.write("".join(f"{line}\r\n" for line in self._forwards.lines()))
                    sys.stderr.flush()
                case Action.BREAK:
                    self._channel.send_break(BREAK_MS)

    def _resized(self) -> None:
        self._channel.change_terminal_size(*_size())


class _Terminal:
    """The user's terminal: while the session runs its keys go to the far side, Ctrl-C among them; afterwards, and while
    the client is suspended, it is as it was."""

    def __init__(self, is_raw: bool) -> None:
        self._is_raw = is_raw
        self._before: list[Any] = []

    def __enter__(self) -> "_Terminal":
        if self._is_raw:
            self._before = termios.tcgetattr(0)
            tty.setraw(0, termios.TCSADRAIN)  # keys typed ahead are kept
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_raw:
            termios.tcsetattr(0, termios.TCSADRAIN, self._before)

    def suspend(self) -> None:
        """Stop this process until the shell continues it."""
        with _left(self):
            os.kill(os.getpid(), signal.SIGTSTP)


@contextlib.contextmanager
def _left(terminal: _Terminal) -> Iterator[None]:
    terminal.__exit__()
    try:
        yield
    finally:
        terminal.__enter__()


def _size() -> tuple[int, int, int, int]:
    with contextlib.suppress(OSError):
        size = os.get_terminal_size(0)
        return size.columns, size.lines, 0, 0
    return 80, 24, 0, 0
