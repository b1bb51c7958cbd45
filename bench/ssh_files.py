"""Files over SFTP by stock sftp: one large file and many small ones, got and put.

The files are in memory, so that no disk is measured. What a session takes that copies nothing is measured by itself
and subtracted from the large file's time.
"""

import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from servers import ClientFailedError, Server, patiently, run_client
from ssh_figures import MIB, Effort, Metric, Results

__all__ = ["MEMORY", "METRICS", "fill", "measure_files"]

MEMORY: Final = Path("/dev/shm")
SMALL_BYTES: Final = 4096

GET: Final = Metric("SFTP get", "MB/s")
PUT: Final = Metric("SFTP put", "MB/s")
GET_CPU: Final = Metric("server CPU, get", "ms/MB", less_is_better=True)
PUT_CPU: Final = Metric("server CPU, put", "ms/MB", less_is_better=True)
GET_SMALL: Final = Metric("small files got", "1/s")
PUT_SMALL: Final = Metric("small files put", "1/s")
SESSION: Final = Metric("one SFTP session", "ms", less_is_better=True)
METRICS: Final = (GET, PUT, GET_CPU, PUT_CPU, GET_SMALL, PUT_SMALL, SESSION)


def fill(path: Path, size: int) -> None:
    """Make a file that nothing can compress or share."""
    with path.open("wb") as file:
        while (left := size - file.tell()) > 0:
            file.write(os.urandom(min(left, MIB)))


def sftp(server: Server, commands: str) -> float:
    """Seconds for a whole ``sftp -b`` that does `commands`."""

    def run() -> float:
        with tempfile.TemporaryFile() as batch:
            batch.write(commands.encode())
            batch.seek(0)
            return run_client(["sftp", "-q", "-b", "-", *server.options(), server.destination], batch)[0]

    return patiently(server, run)


def copy_large(server: Server, verb: str, source: Path, target: Path) -> float:
    """Seconds for a session that copies the file; raises `ClientFailedError` unless all of it is there then."""
    took_s = sftp(server, f"{verb} {source} {target}\n")
    if target.stat().st_size != source.stat().st_size:
        raise ClientFailedError(f"{server.name} copied {target.stat().st_size} bytes of {source.stat().st_size}")
    target.unlink()
    return took_s


def copy_small(server: Server, verb: str, source: Path, target: Path, count: int) -> float:
    """Seconds for a session that copies a directory of `count` files; raises `ClientFailedError` unless all of it is
    there then. It is sftp's ``-r``, which does what scp's does: scp fails where no exit status comes, as from asyncssh.
    """
    took_s = sftp(server, f"{verb} -r {source} {target}\n")
    found = sum(entry.stat().st_size == SMALL_BYTES for entry in os.scandir(target))
    if found != count:
        raise ClientFailedError(f"{server.name} copied {found} files of {count}")
    shutil.rmtree(target)
    return took_s


def measure_files(servers: Sequence[Server], effort: Effort, results: Results) -> None:
    """Each copy is removed before the next server's."""
    with tempfile.TemporaryDirectory(prefix="alknet-bench-", dir=MEMORY if MEMORY.is_dir() else None) as name:
        directory = Path(name)
        large, small = directory / "large", directory / "small"
        fill(large, effort.transfer_bytes)
        small.mkdir()
        for number in range(effort.small_files):
            (small / f"{number:04}").write_bytes(bytes(SMALL_BYTES))
        megabytes = effort.transfer_bytes / 1e6
        copy = directory / "copy"
        for _ in range(effort.rounds):
            for verb, rate, cost in (("get", GET, GET_CPU), ("put", PUT, PUT_CPU)):
                for server in servers:
                    begin_cpu_s = server.cpu_s()
                    overhead_s = sftp(server, "bye\n")
                    cpu_s = server.cpu_s()
                    took_s = copy_large(server, verb, large, copy) - overhead_s
                    used_s = server.cpu_s() - cpu_s - (cpu_s - begin_cpu_s)
                    results[server.name, rate].append(megabytes / took_s)
                    results[server.name, cost].append(used_s * 1e3 / megabytes)
                    if verb == "get":
                        results[server.name, SESSION].append(overhead_s * 1e3)
            for verb, rate in (("get", GET_SMALL), ("put", PUT_SMALL)):
                for server in servers:
                    took_s = copy_small(server, verb, small, copy, effort.small_files)
                    results[server.name, rate].append(effort.small_files / took_s)
