"""One node per home, and where the running one listens.

The lock is the kernel's (`flock`), so it ends with the process however that ends. The file's text says where the
node can be reached; it means something only while the lock is held.
"""

import fcntl
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path

from alknet.errors import StartupError

__all__ = ["HomeLock", "Running", "find_running"]

MAX_BYTES = 64 * 1024
TRIES = 20
TRY_INTERVAL_S = 0.002
"""Somebody who looks whether a node runs (`find_running`) holds the lock for a moment; a node outwaits that."""


@dataclass(frozen=True, slots=True)
class Running:
    """A node that runs on a home."""

    pid: int
    addresses: tuple[tuple[str, int], ...]


class HomeLock:
    """Holds a home for this process; raises `StartupError` when another node has it."""

    def __init__(self, path: Path) -> None:
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as exc:
            raise StartupError(
                f"{path}: cannot be opened: {exc.strerror}",
                hint="the user that runs the node must be able to write its home; --home names another one",
            ) from exc
        if not self._take():
            os.close(self._fd)
            running = find_running(path)
            who = f"process {running.pid}" if running else "another process"
            raise StartupError(
                f"{path.parent}: a node already runs on this home ({who})",
                hint="'alknet status' shows it; --home names another home",
            )
        os.ftruncate(self._fd, 0)

    def _take(self) -> bool:
        for _ in range(TRIES):
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                time.sleep(TRY_INTERVAL_S)
            else:
                return True
        return False

    def publish(self, addresses: tuple[tuple[str, int], ...]) -> None:
        """Say where the node listens."""
        text = json.dumps({"pid": os.getpid(), "addresses": addresses})
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, text.encode("ascii"), 0)

    def release(self) -> None:
        """Let go; idempotent."""
        if self._fd >= 0:
            os.ftruncate(self._fd, 0)
            os.close(self._fd)
            self._fd = -1


def find_running(path: Path) -> Running | None:
    """The node that holds the lock at `path`, or None when none runs (or it has not begun to listen)."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            data = json.loads(os.pread(fd, MAX_BYTES, 0) or b"null")
            if data is None:
                return None
            return Running(data["pid"], tuple((host, port) for host, port in data["addresses"]))
        return None
    except (ValueError, KeyError, TypeError):
        return None
    finally:
        os.close(fd)
