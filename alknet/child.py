"""A process for a caller: started as its user, in a process group of its own, with pipes or on a terminal.

Linux only: the end of a child is learned from a pidfd, which needs neither a signal handler nor a thread.
"""

import asyncio
import contextlib
import errno
import fcntl
import os
import signal
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Protocol

from alknet.nofile import is_scarce, lower_for_child
from alknet.runas import RunAs

__all__ = ["HANG_UP_GRACE_S", "Child", "ChildPipes", "Terminal", "signal_name", "start_child"]

HANG_UP: Final = signal.SIGHUP
HANG_UP_GRACE_S: Final = 2.0
"""Between SIGHUP and SIGKILL for the process group of a connection that ended."""
PIPE_BYTES: Final = 256 * 1024
"""Size asked of the kernel for a child's pipes; its default of 64 KiB costs throughput."""
_F_SETPIPE_SZ: Final = 1031
UMASK: Final = 0o022

_ON_TERMINAL: Final = ["/bin/sh", "-c", 'exec "$@" <>"$SSH_TTY" >&0 2>&0', "sh"]
"""Opens the terminal from inside the new session, which makes it the controlling one; no code runs between fork
and exec for it, so it is safe beside threads."""


@dataclass(frozen=True, slots=True)
class ChildPipes:
    """The node's ends of a child's standard streams; on a terminal, `stdin` and `stdout` are its master."""

    stdin: int
    stdout: int
    stderr: int | None


class Terminal(Protocol):
    """The terminal that a child is put on."""

    @property
    def master(self) -> int:
        """The node's end."""


class Child:
    """A running process and its group.

    `on_exit` gets the wait status once the process has ended. It is reaped only when :meth:`reap` is called: until
    then its number cannot be given to another group, so that signals reach nobody else, and members of the group that
    outlive their leader are still reached.
    """

    def __init__(self, process: "subprocess.Popen[bytes]", user: RunAs, on_exit: Callable[[int], None]) -> None:
        self._process = process
        self._user = user
        self._on_exit = on_exit
        self._loop = asyncio.get_running_loop()
        self._pidfd = os.pidfd_open(process.pid)
        self._grace: asyncio.TimerHandle | None = None
        self._has_exited = False
        self._reap_on_exit = False
        self._ended = asyncio.Event()
        self._loop.add_reader(self._pidfd, self._exited)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """Whether it has not been reaped."""
        return self._pidfd >= 0

    def signal(self, number: int) -> None:
        """Send a signal to the process group; nothing once the process has been reaped."""
        if self.is_running:
            # The group may be gone.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, number)

    def signal_as_user(self, number: int) -> None:
        """Send a signal that the client asked for, with the rights of the session's user and not with root's: a
        program of the group may have become somebody else."""
        if not self._user.change:
            self.signal(number)
        elif self.is_running and not self._has_exited:
            name = signal.Signals(number).name.removeprefix("SIG")
            command = ["/bin/sh", "-c", 'kill -s "$1" -- "-$2"', "sh", name, str(self.pid)]
            ids = {"user": self._user.uid, "group": self._user.gid, "extra_groups": list(self._user.groups)}
            with contextlib.suppress(OSError, subprocess.TimeoutExpired):
                subprocess.run(command, **ids, stderr=subprocess.DEVNULL, timeout=1, check=False)  # type: ignore[call-overload]

    def hang_up(
        self, grace_s: float = HANG_UP_GRACE_S, *, terminal_closed: bool = False, number: int = HANG_UP
    ) -> None:
        """End the group: the signal `number` now, SIGKILL after `grace_s`.

        Where its terminal was just closed, the kernel has sent SIGHUP already. A second one would make bash end at
        once instead of hanging up its jobs first.
        """
        if self.is_running and self._grace is None:
            if not terminal_closed:
                self.signal(number)
                self.signal(signal.SIGCONT)
            self._grace = self._loop.call_later(grace_s, self.kill)

    def kill(self) -> None:
        """End the group now and reap the process. Idempotent."""
        if self._grace is not None:
            self._grace.cancel()
        self.signal(signal.SIGKILL)
        self._reap_on_exit = True
        if self._has_exited:
            self.reap()

    def reap(self) -> None:
        """Let go of a process that has ended: its number may be used again. Idempotent."""
        if self.is_running and self._has_exited:
            _, status = os.waitpid(self.pid, 0)
            self._process.returncode = os.waitstatus_to_exitcode(status)
            os.close(self._pidfd)
            self._pidfd = -1
            self._ended.set()

    async def wait_ended(self, *, timeout_s: float) -> None:
        """Wait until it has been reaped, and after `timeout_s` bring that about."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._ended.wait()
        except TimeoutError:
            self.kill()
            await self._ended.wait()

    def _exited(self) -> None:
        info = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if info is None:
            return
        self._loop.remove_reader(self._pidfd)
        self._has_exited = True
        dumped = 0x80 if info.si_code == os.CLD_DUMPED else 0
        self._on_exit(info.si_status << 8 if info.si_code == os.CLD_EXITED else info.si_status | dumped)
        if self._reap_on_exit:
            self.reap()


def start_child(
    argv: list[str],
    *,
    user: RunAs,
    env: Mapping[str, str],
    terminal: Terminal | None,
    on_exit: Callable[[int], None],
    pass_fd: int | None = None,
    becomes_user: bool = False,
) -> tuple[Child, ChildPipes]:
    """Start `argv`; raises `OSError` when it cannot be run. Descriptors in the result are the caller's.

    `pass_fd` is one more descriptor that it gets. A program that `becomes_user` itself (see :mod:`alknet.become`) is
    started as what the node is.
    """
    directory = user.home if os.path.isdir(user.home) else "/"
    keywords: dict[str, object] = {} if pass_fd is None else {"pass_fds": (pass_fd,)}
    if user.change and not becomes_user:
        keywords |= {"user": user.uid, "group": user.gid, "extra_groups": list(user.groups)}
    mine: list[int] = []
    theirs: list[int] = []
    process: subprocess.Popen[bytes] | None = None
    try:
        if terminal is not None:
            argv = _ON_TERMINAL + argv
            stdin = stdout = stderr = subprocess.DEVNULL
            # Two descriptors, because reading and writing are closed at different times.
            mine.append(os.dup(terminal.master))
            pipes = ChildPipes(mine[0], terminal.master, None)
            os.set_blocking(terminal.master, False)
        else:
            for direction in ("in", "out", "out"):
                read, write = os.pipe2(os.O_CLOEXEC)
                mine.append(write if direction == "in" else read)
                theirs.append(read if direction == "in" else write)
                os.set_blocking(mine[-1], False)
                if user.change:
                    os.fchown(theirs[-1], user.uid, user.gid)  # so that /dev/stdout and the like can be opened
                _enlarge(read)
            stdin, stdout, stderr = theirs
            pipes = ChildPipes(*mine)
        process = subprocess.Popen(
            argv,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            cwd=directory,
            env=env,
            umask=UMASK,
            start_new_session=True,
            **keywords,  # type: ignore[call-overload]
        )
        if is_scarce(max(mine)):
            raise OSError(errno.EMFILE, "the node has no descriptors left for it")
        lower_for_child(process.pid)
        return Child(process, user, on_exit), pipes
    except (OSError, ValueError):
        if process is not None:  # it runs, but there is no descriptor left to watch it with
            process.kill()
            process.wait()
        for fd in mine:
            os.close(fd)
        raise
    finally:
        for fd in theirs:
            os.close(fd)


def signal_name(number: int) -> str:
    """The name as RFC 4254 section 6.10 has it, such as TERM; real-time signals have none, only a number."""
    try:
        return signal.Signals(number).name.removeprefix("SIG")
    except ValueError:
        return str(number)


def _enlarge(fd: int) -> None:
    # Over the user's share of pipe memory it fails, and the default size works too.
    with contextlib.suppress(OSError):
        fcntl.fcntl(fd, _F_SETPIPE_SZ, PIPE_BYTES)
