"""How far a copy is, on one line of a terminal: only there, and only on stderr."""

import asyncio
import shutil
import sys
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

from alknet.logs import printable
from alknet.tasks import Tasks

if TYPE_CHECKING:
    from alknet.ssh.transfer import Progress

__all__ = ["Meter", "human_bytes", "human_time", "showing"]

INTERVAL_S: Final = 0.2
RATE_S: Final = 5.0
"""A rate is that of the last so many seconds."""
MIN_NAME_CHARS: Final = 12
_UNITS: Final = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")


def human_bytes(count: float) -> str:
    """``"1.5 MiB"``."""
    unit = 0
    while count >= 1000 and unit < len(_UNITS) - 1:
        count, unit = count / 1024, unit + 1
    return f"{count:.0f} B" if unit == 0 else f"{count:.1f} {_UNITS[unit]}"


def human_time(seconds: float) -> str:
    """``"03:25"``, or ``"1:03:25"`` from an hour on."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes:02}:{rest:02}"


class Meter:
    """Makes a line of text of the counters of a copy. `now` is any clock's, in seconds."""

    def __init__(self, progress: "Progress", *, is_tree: bool, now: float) -> None:
        self._progress = progress
        self._is_tree = is_tree
        self._began = now
        self._past: deque[tuple[float, int]] = deque([(now, progress.moved)])

    def line(self, now: float, width: int) -> str:
        """What to show at `now` in `width` columns."""
        progress = self._progress
        self._past.append((now, progress.moved))
        while len(self._past) > 2 and now - self._past[0][0] > RATE_S:
            self._past.popleft()
        (begin, before), elapsed = self._past[0], now - self._began
        rate = (progress.moved - before) / (now - begin) if now > begin else 0.0
        found = max(progress.bytes_found, progress.bytes)
        left = found - progress.bytes
        parts = [human_bytes(progress.bytes), f"{human_bytes(rate)}/s"]
        if self._is_tree:
            parts = [f"{progress.files:,} files", *parts, human_time(elapsed)]
        else:
            share = f"{100 * progress.bytes // found:3}%" if found else "    "
            eta = f"{human_time(left / rate)} left" if left and rate else human_time(elapsed)
            parts = [share, *parts, eta]
        figures = "  ".join(f"{part:>12}" for part in parts)
        room = max(MIN_NAME_CHARS, width - len(figures) - 3)
        name = printable(next(iter(progress.current), "")).rpartition("/")[2]
        if len(name) > room:
            name = name[: room - 1] + "…"
        return f"{name:<{room}}  {figures}"[: width - 1]


@asynccontextmanager
async def showing(progress: "Progress", *, is_tree: bool, is_quiet: bool) -> AsyncIterator[None]:
    """Show `progress` as long as this is open, if there is a terminal to show it on."""
    if is_quiet or not sys.stderr.isatty():
        yield
        return
    meter = Meter(progress, is_tree=is_tree, now=time.monotonic())

    def show() -> None:
        line = meter.line(time.monotonic(), shutil.get_terminal_size().columns)
        sys.stderr.write(f"\r{line}\x1b[K")
        sys.stderr.flush()

    tasks = Tasks("progress")
    tasks.start(_repeat(show), name="line")
    try:
        yield
    finally:
        await tasks.aclose()
        show()
        sys.stderr.write("\n")


async def _repeat(show: Callable[[], None]) -> None:
    while True:
        show()
        await asyncio.sleep(INTERVAL_S)
