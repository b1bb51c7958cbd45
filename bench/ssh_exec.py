"""Commands over SSH: throughput both ways, and new connections that run one each."""

import re
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from servers import ClientFailedError, Server, patiently, run_client
from ssh_figures import Effort, Metric, Results

__all__ = ["METRICS", "measure_connections", "measure_exec", "run_true"]

PARALLEL: Final = 8

DOWN: Final = Metric("exec, server to client", "MB/s")
UP: Final = Metric("exec, client to server", "MB/s")
DOWN_CPU: Final = Metric("server CPU, down", "ms/MB", less_is_better=True)
UP_CPU: Final = Metric("server CPU, up", "ms/MB", less_is_better=True)
SEQUENTIAL: Final = Metric("connections, one by one", "1/s")
PARALLEL_RATE: Final = Metric(f"connections, {PARALLEL} at a time", "1/s")
TRUE: Final = Metric("one `true`, p50", "ms", less_is_better=True)
METRICS: Final = (DOWN, UP, DOWN_CPU, UP_CPU, SEQUENTIAL, PARALLEL_RATE, TRUE)


def run_true(server: Server) -> float:
    """Seconds for a whole ``ssh HOST true``, from starting the client to its end."""
    return patiently(server, lambda: run_client(server.ssh("true"))[0])


def send_down(server: Server, size: int) -> float:
    """Seconds until the client has received `size` bytes and ended."""
    took_s, told = run_client(server.ssh(f"head -c {size} /dev/zero", "-v"))
    received = re.search(r"received (\d+) bytes", told)
    if received is None or int(received[1]) < size:
        raise ClientFailedError(f"{server.name} did not send everything: {told}")
    return took_s


def send_up(server: Server, size: int) -> float:
    """Seconds until a remote command has read `size` bytes of stdin, seen its end, and been reported as ended."""
    with subprocess.Popen(["head", "-c", str(size), "/dev/zero"], stdout=subprocess.PIPE) as feeder:
        assert feeder.stdout is not None
        return run_client(server.ssh("cat >/dev/null"), feeder.stdout)[0]


def measure_exec(servers: Sequence[Server], effort: Effort, results: Results) -> None:
    """Throughput both ways. A connection's own time, that of a `true`, is subtracted: a transfer has no end."""
    directions: tuple[tuple[Callable[[Server, int], float], Metric, Metric], ...] = (
        (send_down, DOWN, DOWN_CPU),
        (send_up, UP, UP_CPU),
    )
    for _ in range(effort.rounds):
        for transfer, rate, cost in directions:
            for server in servers:
                overhead_s = run_true(server)
                cpu_s = server.cpu_s()
                took_s = patiently(server, lambda: transfer(server, effort.transfer_bytes)) - overhead_s  # noqa: B023
                megabytes = effort.transfer_bytes / 1e6
                results[server.name, rate].append(megabytes / took_s)
                results[server.name, cost].append((server.cpu_s() - cpu_s) * 1e3 / megabytes)


def measure_connections(servers: Sequence[Server], effort: Effort, results: Results) -> None:
    """New connections per second, each with its key exchange, login and a process that does nothing."""
    with ThreadPoolExecutor(PARALLEL) as pool:
        for _ in range(effort.rounds):
            for server in servers:
                times = [run_true(server) for _ in range(effort.sequential)]
                results[server.name, SEQUENTIAL].append(len(times) / sum(times))
                results[server.name, TRUE].append(statistics.median(times) * 1e3)
            for server in servers:
                began = time.perf_counter()
                list(pool.map(run_true, [server] * effort.parallel))
                results[server.name, PARALLEL_RATE].append(effort.parallel / (time.perf_counter() - began))
