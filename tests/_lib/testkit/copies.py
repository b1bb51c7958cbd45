"""Files to copy, whether a copy is the same, and copying that is killed on its way."""

import hashlib
import os
import stat
from pathlib import Path

import psutil

from testkit.carriers import running
from testkit.node import NodeProcess, wait_until
from testkit.stock_clients import StockClients

__all__ = ["OLD", "digest", "file_servers", "look_at", "make_tree", "resume_after_kill"]

OLD = 981_173_106
"""A time: a file that has it was not made now."""
SLOW_S = 300.0
"""Far beyond what the largest files need."""


def make_tree(at: Path, files: int) -> Path:
    """A directory with `files` small files in directories of a hundred or fewer, whose names need care, with modes and
    times of their own."""
    for number in range(files):
        path = at / f"d {number % max(5, files // 100)}" / f"ä'{number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.urandom(number % 300))
        path.chmod(0o640 if number % 2 else 0o755)
        os.utime(path, (OLD, OLD + number))
    return at


def look_at(directory: Path) -> dict[str, tuple[bytes, int, int]]:
    """Content, mode and time of each file in `directory` by its path."""
    found = {}
    for path in directory.rglob("*"):
        if path.is_file():
            status = path.stat()
            name = str(path.relative_to(directory))
            found[name] = (path.read_bytes(), stat.S_IMODE(status.st_mode), int(status.st_mtime))
    return found


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_servers(node: NodeProcess) -> list[psutil.Process]:
    """The node's processes that serve files."""
    found = []
    for process in psutil.Process(node.pid).children():
        try:
            if "alknet.ssh.files.child" in process.cmdline():
                found.append(process)
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
    return found


def resume_after_kill(
    clients: StockClients, host: str, command: str, source: Path, target: Path, *, kbit_per_s: int
) -> None:
    """Have sftp carry out `command`, which copies `source` to `target`, kill it in the middle, and resume; then both
    must be the same. It is slowed down to be caught."""
    clients.begin(host)
    options = ["-q", "-l", str(kbit_per_s), "-F", str(clients.config), "-b", "-", host]
    size = source.stat().st_size
    with running(["sftp", *options], env=clients.env) as client:
        assert client.stdin is not None
        client.stdin.write(f"{command}\n".encode())
        client.stdin.flush()
        begun = f"{command} is under way"
        wait_until(lambda: target.exists() and target.stat().st_size > size // 6, begun, timeout_s=SLOW_S)
        for process in (*psutil.Process(client.pid).children(), client):
            process.kill()
    wait_until(lambda: not file_servers(clients.node), "the node knows")
    assert size // 6 < target.stat().st_size < size
    clients.sftp(host, f"re{command}")
    assert digest(target) == digest(source)
