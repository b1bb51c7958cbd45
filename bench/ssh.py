"""alknet beside OpenSSH's sshd and bare asyncssh, entered by stock ssh, in one run on one machine.

``python bench/ssh.py [--quick] [--only NAME …]`` prints absolute figures and the two ratios that matter: to sshd (the
goal) and to bare asyncssh (the floor). Rounds go A, B, C, A, B, C, …, so that a machine that slows down slows down
everybody, and each figure is the median of its rounds. Nothing here passes or fails: it is for reading.
"""

import argparse
import os
import re
import statistics
import subprocess
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from servers import CIPHER, KEX, NAMES, Server, start_servers

MIB = 1024 * 1024
PARALLEL = 8
DEADLINE_S = 120.0
TRIES = 10
"""How often something is tried before the run is given up. Every broken try is counted and shown."""


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is done: `rounds` of every measurement, of the sizes given."""

    rounds: int
    transfer_bytes: int
    sequential: int
    parallel: int


FULL = Effort(rounds=9, transfer_bytes=768 * MIB, sequential=12, parallel=48)
QUICK = Effort(rounds=2, transfer_bytes=256 * MIB, sequential=6, parallel=16)


@dataclass(frozen=True, slots=True)
class Metric:
    """One line of the table. Where less is better too, the ratio is alknet's figure over the other's."""

    name: str
    unit: str
    less_is_better: bool = False


DOWN = Metric("exec, server to client", "MB/s")
UP = Metric("exec, client to server", "MB/s")
DOWN_CPU = Metric("server CPU, down", "ms/MB", less_is_better=True)
UP_CPU = Metric("server CPU, up", "ms/MB", less_is_better=True)
SEQUENTIAL = Metric("connections, one by one", "1/s")
PARALLEL_RATE = Metric(f"connections, {PARALLEL} at a time", "1/s")
TRUE = Metric("one `true`, p50", "ms", less_is_better=True)
RSS_IDLE = Metric("memory, idle", "MiB", less_is_better=True)
RSS_AFTER = Metric("memory, after all", "MiB", less_is_better=True)
BROKEN = Metric("connections broken, in all", "", less_is_better=True)
METRICS = (DOWN, UP, DOWN_CPU, UP_CPU, SEQUENTIAL, PARALLEL_RATE, TRUE, RSS_IDLE, RSS_AFTER, BROKEN)

Results = dict[tuple[str, Metric], list[float]]
"""Every round's figure, by server name and metric."""


class ClientFailedError(Exception):
    """The client did not get what it came for."""


def run_client(command: list[str], stdin: IO[bytes] | int = subprocess.DEVNULL) -> tuple[float, str]:
    """Run the client to its end: how long that took in seconds, and what it wrote to stderr."""
    began = time.perf_counter()
    result = subprocess.run(
        command, stdin=stdin, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, timeout=DEADLINE_S
    )
    took_s = time.perf_counter() - began
    if result.returncode:
        raise ClientFailedError(f"{command}: exit {result.returncode}: {result.stderr}")
    return took_s, result.stderr


def patiently(server: Server, act: Callable[[], float]) -> float:
    """The time that `act` takes when it works. Bare asyncssh breaks a connection now and then when it is busy: its
    redirection closes a pipe that is closed already, and takes the connection along."""
    for _ in range(TRIES):
        try:
            return act()
        except ClientFailedError as exc:
            server.broken += 1
            failure = exc
    raise failure


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


def measure_transfers(servers: Sequence[Server], effort: Effort, results: Results) -> None:
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


def measure_memory(servers: Sequence[Server], metric: Metric, results: Results) -> None:
    for server in servers:
        results[server.name, metric].append(server.rss_bytes() / MIB)


def measure(effort: Effort, names: Sequence[str]) -> Results:
    """Start the servers, measure everything, and stop them."""
    results: Results = defaultdict(list)
    with tempfile.TemporaryDirectory(prefix="alknet-bench-") as directory:
        os.chmod(directory, 0o755)
        with start_servers(Path(directory), names) as servers:
            for server in servers:
                run_true(server)  # imports, caches: the first connection is nobody's measure
            measure_memory(servers, RSS_IDLE, results)
            measure_connections(servers, effort, results)
            measure_transfers(servers, effort, results)
            measure_memory(servers, RSS_AFTER, results)
            for server in servers:
                results[server.name, BROKEN].append(server.broken)
    return results


def table(results: Results, names: Sequence[str]) -> str:
    """The medians, and alknet's ratio to each of the others."""
    others = [name for name in names if name != "alknet"] if "alknet" in names else []
    head = ["", "", *names, *(f"alknet/{name}" for name in others)]
    lines = [head]
    for metric in METRICS:
        medians = {name: statistics.median(results[name, metric]) for name in names}
        ratios = [f"{medians['alknet'] / medians[name]:.2f}" if medians[name] else "" for name in others]
        unit = metric.unit + (" (less is better)" if metric.less_is_better else "")
        lines.append([metric.name, unit, *(f"{medians[name]:.3g}" for name in names), *ratios])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a rough answer in less than a minute")
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES, metavar="NAME", help="leave servers out")
    arguments = parser.parse_args()
    effort = QUICK if arguments.quick else FULL
    began = time.monotonic()
    results = measure(effort, arguments.only)
    version = subprocess.run(["ssh", "-V"], capture_output=True, text=True, check=True).stderr.strip()
    print(f"{version}; {CIPHER}, {KEX}; {os.cpu_count()} processors; {effort}")
    print(table(results, arguments.only))
    print(f"took {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
