"""A program on a session's channel: its process, its streams or terminal, and its end.

Output flows only while the channel has room, input only as the program reads. The end is reported after the process
has ended *and* its output has.
"""

import os
import signal
from collections.abc import Callable, Mapping
from typing import Final

from asyncssh.constants import EXTENDED_DATA_STDERR

from alknet.child import Child, start_child
from alknet.descriptors import Sink, Source
from alknet.runas import RunAs
from alknet.ssh.terminal import Terminal, TerminalSize, set_size

__all__ = ["Program"]

SIGNALS: Final = {
    name: getattr(signal, f"SIG{name}")
    for name in (
        "ABRT", "ALRM", "CONT", "FPE", "HUP", "ILL", "INT", "KILL", "PIPE", "QUIT", "SEGV", "STOP",
        "TERM", "TSTP", "USR1", "USR2", "WINCH",
    )
}  # fmt: skip
"""What a client may send to its process group (RFC 4254 section 6.9, and the ones of job control)."""


class Program:
    """Started at once; raises `OSError` when it cannot be run, and has then closed the `terminal`.

    `on_output` gets each piece and its datatype, `on_input_drained` is called when input is wanted again after
    :meth:`write` returned False, `on_end` gets the wait status once. Reading begins with :meth:`resume`.
    """

    def __init__(
        self,
        argv: list[str],
        *,
        user: RunAs,
        env: Mapping[str, str],
        terminal: Terminal | None,
        on_output: Callable[[bytes, int | None], None],
        on_input_drained: Callable[[], None],
        on_end: Callable[[int], None],
        pass_fd: int | None = None,
        becomes_user: bool = False,
    ) -> None:
        self._terminal = terminal
        self._slave = -1 if terminal is None else terminal.slave
        self._on_end = on_end
        self._status: int | None = None
        try:
            self._child, pipes = start_child(
                argv,
                user=user,
                env=env,
                terminal=terminal,
                on_exit=self._exited,
                pass_fd=pass_fd,
                becomes_user=becomes_user,
            )
        except BaseException:
            self._close_slave()
            if terminal is not None:
                os.close(terminal.master)
            raise
        self._stdin = Sink(pipes.stdin, on_input_drained)
        self._sources = [Source(pipes.stdout, lambda data: on_output(data, None), self._maybe_end)]
        if pipes.stderr is not None:
            errors = Source(pipes.stderr, lambda data: on_output(data, EXTENDED_DATA_STDERR), self._maybe_end)
            self._sources.append(errors)

    def pause(self) -> None:
        """There is no room for output."""
        for source in self._sources:
            source.pause()

    def resume(self) -> None:
        for source in self._sources:
            source.resume()

    def write(self, data: bytes) -> bool:
        """Input; False asks for a pause."""
        return self._stdin.write(data)

    def write_eof(self) -> None:
        """Input has ended. A terminal goes on: what is behind it may still be typing."""
        if self._terminal is None:
            self._stdin.finish()

    def resize(self, size: TerminalSize) -> None:
        if self._slave >= 0:
            set_size(self._slave, size)

    def signal(self, name: str) -> None:
        """Send what the client asked for, if it is one of `SIGNALS`, with the rights of the user."""
        number = SIGNALS.get(name)
        if number is not None:
            self._child.signal_as_user(number)

    def abandon(self) -> Child | None:
        """Forget its streams; the process, if it has not been reaped, is the caller's to end. Idempotent."""
        self._stdin.close()
        for source in self._sources:
            source.close()
        self._close_slave()
        return self._child if self._child.is_running else None

    @property
    def has_terminal(self) -> bool:
        return self._terminal is not None

    def _exited(self, status: int) -> None:
        self._status = status
        if self._terminal is not None:
            # Take what the terminal still holds, but do not wait for a background job that keeps it open.
            self._close_slave()
            self._sources[0].end_when_empty()
        self._maybe_end()

    def _maybe_end(self) -> None:
        """Report the end when process and output have both ended."""
        if self._status is None or any(source.is_open for source in self._sources):
            return
        self._on_end(self._status)
        self._stdin.close()

    def reap(self) -> None:
        """Let go of the process, which has ended."""
        self._child.reap()

    def _close_slave(self) -> None:
        if self._slave >= 0:
            os.close(self._slave)
            self._slave = -1
