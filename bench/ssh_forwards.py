"""Connections through ``ssh -L`` and ``ssh -R``: throughput both ways, and how many new ones per second.

One stock ``ssh -N`` for each server stays up for all of it. At the other end of a forward is `tcp_end.py`.
"""

import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from servers import Server
from ssh_figures import Effort, Metric, Results
from tcp_end import drop, send, zeros

from testkit.node import free_port, wait_until

__all__ = ["METRICS", "measure_forwards", "started_end", "through"]

PARALLEL: Final = 8
DEADLINE_S: Final = 120.0

L_DOWN: Final = Metric("-L, server to client", "MB/s")
L_UP: Final = Metric("-L, client to server", "MB/s")
R_DOWN: Final = Metric("-R, server to client", "MB/s")
R_UP: Final = Metric("-R, client to server", "MB/s")
L_DOWN_CPU: Final = Metric("server CPU, -L down", "ms/MB", less_is_better=True)
L_UP_CPU: Final = Metric("server CPU, -L up", "ms/MB", less_is_better=True)
R_DOWN_CPU: Final = Metric("server CPU, -R down", "ms/MB", less_is_better=True)
R_UP_CPU: Final = Metric("server CPU, -R up", "ms/MB", less_is_better=True)
L_NEW: Final = Metric("-L connections, one by one", "1/s")
L_NEW_PARALLEL: Final = Metric(f"-L connections, {PARALLEL} at a time", "1/s")
METRICS: Final = (
    L_DOWN, L_UP, R_DOWN, R_UP, L_DOWN_CPU, L_UP_CPU, R_DOWN_CPU, R_UP_CPU, L_NEW, L_NEW_PARALLEL,
)  # fmt: skip


def through(port: int, act: str, count: int, source: int) -> float:
    """Seconds from connecting to `port` until `count` bytes have gone ``down`` or ``up``, as seen from here, or until
    a ``touch`` was answered."""
    began = time.perf_counter()
    with socket.create_connection(("127.0.0.1", port), timeout=DEADLINE_S) as sock:
        sock.settimeout(None)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.sendall(f"{act} {count}\n".encode())
        if act == "down":
            drop(sock, count)
        else:
            send(sock, source, count)
            drop(sock, 1)
        return time.perf_counter() - began


@contextmanager
def started_end() -> Iterator[int]:
    """The port of a `tcp_end.py` that runs as long as the context does."""
    program = [sys.executable, str(Path(__file__).with_name("tcp_end.py"))]
    with subprocess.Popen(program, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield int(process.stdout.readline())
        finally:
            process.kill()


def _start(stack: ExitStack, server: Server, end: int) -> tuple[int, int]:
    """Start a client of `server` that forwards to `end` both ways: the ports for -L and for -R."""
    local, remote = free_port(), free_port()
    forwards = ("-N", "-o", "ExitOnForwardFailure=yes")
    forwards += ("-L", f"127.0.0.1:{local}:127.0.0.1:{end}", "-R", f"127.0.0.1:{remote}:127.0.0.1:{end}")
    client = stack.enter_context(subprocess.Popen(server.ssh(None, *forwards), stdin=subprocess.DEVNULL))
    stack.callback(client.terminate)

    def answers(port: int) -> bool:
        if client.poll() is not None:
            raise RuntimeError(f"the client of {server.name} ended with {client.returncode}")
        try:
            through(port, "touch", 0, -1)
        except OSError:
            return False
        return True

    wait_until(lambda: answers(local) and answers(remote), f"{server.name} forwards")
    return local, remote


def measure_forwards(servers: Sequence[Server], effort: Effort, results: Results) -> None:
    """For -R the bench stands at the server's end, so that what it sends goes to the client."""
    source, size = zeros(), effort.transfer_bytes
    with ExitStack() as stack, ThreadPoolExecutor(PARALLEL) as pool:
        end = stack.enter_context(started_end())
        ports = {server.name: _start(stack, server, end) for server in servers}
        for _ in range(effort.rounds):
            for which, act, rate, cost in (
                (0, "down", L_DOWN, L_DOWN_CPU),
                (0, "up", L_UP, L_UP_CPU),
                (1, "up", R_DOWN, R_DOWN_CPU),
                (1, "down", R_UP, R_UP_CPU),
            ):
                for server in servers:
                    cpu_s = server.cpu_s()
                    took_s = through(ports[server.name][which], act, size, source)
                    results[server.name, rate].append(size / 1e6 / took_s)
                    results[server.name, cost].append((server.cpu_s() - cpu_s) * 1e9 / size)
            for server in servers:
                port = ports[server.name][0]
                times = [through(port, "touch", 0, source) for _ in range(effort.forwarded)]
                results[server.name, L_NEW].append(len(times) / sum(times))
            for server in servers:
                port = ports[server.name][0]
                began = time.perf_counter()
                list(pool.map(lambda _: through(port, "touch", 0, source), range(effort.forwarded)))  # noqa: B023
                results[server.name, L_NEW_PARALLEL].append(effort.forwarded / (time.perf_counter() - began))
