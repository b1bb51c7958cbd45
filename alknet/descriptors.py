"""File descriptors pumped by the event loop, with backpressure both ways.

`Source` reads a pipe or terminal and can be paused; `Sink` writes one and says when it falls behind. Both own their
descriptor. :func:`open_source` and :func:`open_sink` make them from a process's standard streams, which may be
anything and are shared with other processes, so that they must not be set non-blocking.
"""

import asyncio
import os
import select
import stat
from collections.abc import Callable
from typing import Final

__all__ = ["CHUNK_BYTES", "Sink", "Source", "open_sink", "open_source"]

CHUNK_BYTES: Final = 256 * 1024
"""How much is read at once: all that a pipe of ours holds (`child.PIPE_BYTES`)."""
SINK_HIGH_BYTES: Final = 256 * 1024
"""A sink that holds more than this is behind."""


class Source:
    """Reads `fd` until its end. `on_data` gets each piece, `on_end` comes once, after the last."""

    def __init__(self, fd: int, on_data: Callable[[bytes], None], on_end: Callable[[], None]) -> None:
        self._fd = fd
        self._on_data = on_data
        self._on_end = on_end
        self._loop = asyncio.get_running_loop()
        self._is_paused = True
        self._ends_when_empty = False

    @property
    def is_open(self) -> bool:
        return self._fd >= 0

    def pause(self) -> None:
        """Stop reading, so that the writer at the other end has to wait."""
        if self.is_open and not self._is_paused:
            self._is_paused = True
            self._stop_waiting()

    def resume(self) -> None:
        if self.is_open and self._is_paused:
            self._is_paused = False
            self._wait()
            if self._ends_when_empty:
                self._loop.call_soon(self._readable)

    def end_when_empty(self) -> None:
        """Nobody who matters writes any more: deliver what there is, then end, even if the descriptor stays open
        elsewhere."""
        self._ends_when_empty = True
        if self.is_open and not self._is_paused:
            self._loop.call_soon(self._readable)

    def close(self) -> None:
        """Give the descriptor back without a call of `on_end`. Idempotent."""
        if self.is_open:
            self.pause()
            os.close(self._fd)
            self._fd = -1

    def _wait(self) -> None:
        self._loop.add_reader(self._fd, self._readable)

    def _stop_waiting(self) -> None:
        self._loop.remove_reader(self._fd)

    def _readable(self) -> None:
        if not self.is_open or self._is_paused:
            return
        data = b""
        try:
            # Standard streams are shared and may block, so one that may be empty is looked at before it is read.
            if not self._ends_when_empty or _has_something(self._fd):
                data = os.read(self._fd, CHUNK_BYTES)
        except BlockingIOError:
            if not self._ends_when_empty:
                return
        except OSError:
            pass  # EIO: the last writer of a terminal is gone
        if data:
            self._on_data(data)
            if self._ends_when_empty and not self._is_paused:
                self._loop.call_soon(self._readable)
        else:
            self.close()
            self._on_end()


def _has_something(fd: int) -> bool:
    """Whether a read of `fd` would return at once: with data, or with its end."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(0))


class _FileSource(Source):
    """Reads what is always readable (a file, /dev/null), which an event loop cannot wait for."""

    def _wait(self) -> None:
        self._loop.call_soon(self._readable)

    def _stop_waiting(self) -> None:
        pass

    def _readable(self) -> None:
        super()._readable()
        if self.is_open and not self._is_paused:
            self._wait()


class Sink:
    """Writes to `fd` in order, without blocking.

    `write` returns False when the sink is behind; `on_drained` is called when it has caught up. A reader that went
    away turns the sink into one that forgets what it is given, as a shell's pipe does after SIGPIPE.
    """

    def __init__(self, fd: int, on_drained: Callable[[], None]) -> None:
        self._fd = fd
        self._on_drained = on_drained
        self._loop = asyncio.get_running_loop()
        self._pending = bytearray()
        self._is_behind = False
        self._finish_when_empty = False
        self._empty = asyncio.Event()
        self._empty.set()

    def write(self, data: bytes) -> bool:
        """Queue `data`; False asks the caller to stop until `on_drained`."""
        if self._fd < 0:
            return True
        if self._pending:
            self._pending += data
        else:
            taken = self._write_now(data)
            if taken < 0:
                self.close()
            elif taken < len(data):
                self._pending += memoryview(data)[taken:]
                self._empty.clear()
                self._loop.add_writer(self._fd, self._flush)
        if len(self._pending) > SINK_HIGH_BYTES:
            self._is_behind = True
        return not self._is_behind

    @property
    def is_gone(self) -> bool:
        """Whether it was closed, by its reader's leaving or by :meth:`close`."""
        return self._fd < 0

    async def drain(self) -> None:
        """Wait until everything is written."""
        await self._empty.wait()

    def finish(self) -> None:
        """Close the descriptor once everything is written."""
        self._finish_when_empty = True
        if not self._pending:
            self.close()

    def close(self) -> None:
        """Give the descriptor back; what is unwritten is lost. Idempotent."""
        if self._fd >= 0:
            self._loop.remove_writer(self._fd)
            os.close(self._fd)
            self._fd = -1
            self._pending.clear()
            self._empty.set()
            self._caught_up()

    def _write_now(self, data: bytes | bytearray) -> int:
        """How much of `data` the descriptor takes without blocking; -1 when nobody will ever read it."""
        taken = 0
        with memoryview(data) as view:
            try:
                while taken < len(view):
                    taken += os.write(self._fd, view[taken:])
            except BlockingIOError:
                pass
            except OSError:
                return -1
        return taken

    def _flush(self) -> None:
        taken = self._write_now(self._pending)
        if taken < 0:
            self.close()
            return
        del self._pending[:taken]
        if not self._pending:
            self._empty.set()
            self._loop.remove_writer(self._fd)
            if self._finish_when_empty:
                self.close()
                return
        if len(self._pending) <= SINK_HIGH_BYTES // 4:
            self._caught_up()

    def _caught_up(self) -> None:
        if self._is_behind:
            self._is_behind = False
            self._on_drained()


def open_source(fd: int, on_data: Callable[[bytes], None], on_end: Callable[[], None]) -> Source:
    """A source over a copy of `fd`, whatever kind of file that is."""
    mode = os.fstat(fd).st_mode
    waits = stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or os.isatty(fd)
    return (Source if waits else _FileSource)(os.dup(fd), on_data, on_end)


def open_sink(fd: int, on_drained: Callable[[], None]) -> Sink:
    """A sink over `fd`, whatever kind of file that is.

    A pipe or terminal is opened a second time, so that only our own description of it is non-blocking; what cannot be
    (a socket) or need not be (a file) is written blocking.
    """
    mode = os.fstat(fd).st_mode
    if stat.S_ISFIFO(mode) or os.isatty(fd):
        try:
            return Sink(
                os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC),
                on_drained,
            )
        except OSError:
            pass
    return Sink(os.dup(fd), on_drained)
