"""SSH over QUIC beside what aioquic alone does, and beside TLS and plain TCP, in one run on one machine.

``python bench/quic.py [--quick] [--only PART …]`` prints a table of each part. The goal is that SSH over QUIC moves at
least 80 % of what aioquic moves with nothing around it (`bare_aioquic.py`); files and forwards (`quic_files.py`) are
beside plain TCP. The node is ``alknet serve`` in a process of its own, and every client too. Rounds go A, B, C, A, B,
C, …; a ratio is the median of the rounds' ratios, each of two figures that were taken one after the other. Nothing here
passes or fails: it is for reading.
"""

import argparse
import importlib.metadata
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil
from quic_client import Order
from quic_files import measure_files, measure_forwards
from quic_site import DEADLINE_S, Effort, Site, cpu_s
from servers import CIPHER

MIB = 1024 * 1024
SETTLE_S = 3.0
"""Between the last idle connection's opening and looking at the memory."""
PARTS = ("transfers", "files", "forwards", "times", "idle")
BARE = "bare"

FULL = Effort(rounds=7, slow_bytes=64 * MIB, fast_bytes=256 * MIB, handshakes=200, idle=1000, watch_s=60.0)
QUICK = Effort(rounds=2, slow_bytes=64 * MIB, fast_bytes=256 * MIB, handshakes=40, idle=200, watch_s=20.0)


class Bare:
    """One of the servers without SSH, with the certificate of `site`."""

    def __init__(self, stack: ExitStack, site: Site, program: str = "bare_aioquic.py") -> None:
        keys = site.node.home / "keys"
        command = [sys.executable, _program(program), str(keys / "tls.crt"), str(keys / "tls.key")]
        process = stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        stack.callback(process.kill)
        assert process.stdout is not None
        self.port = int(process.stdout.readline())
        self.process = psutil.Process(process.pid)


def _program(name: str) -> str:
    return str(Path(__file__).with_name(name))


def run_order(order: Order) -> dict[str, Any]:
    """What a client of `quic_client.py` printed."""
    command = [sys.executable, _program("quic_client.py"), json.dumps(asdict(order))]
    result = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S)
    if result.returncode:
        raise RuntimeError(f"{order}: {result.stderr}")
    answer: dict[str, Any] = json.loads(result.stdout)
    return answer


# --- transfers --------------------------------------------------------------------------------------------------

LIBRARY = {
    BARE: "aioquic alone",
    "carrier": "alknet's QUIC without SSH",
    "quic": "SSH over QUIC",
    "tls": "SSH over TLS",
    "tcp": "SSH over TCP",
}
PROGRAMS = {"alknet": "alknet ssh --carrier quic", "proxy": "ssh, alknet proxy --carrier quic"}
CONTENDERS = LIBRARY | PROGRAMS


def run_program(site: Site, name: str, command: str, stdin: Any = subprocess.DEVNULL) -> float:
    """Seconds for one of `PROGRAMS`, from its start to its end."""
    node = site.node
    alknet = [sys.executable, "-m", "alknet", "--home", str(node.home)]
    if name == "alknet":
        words = [*alknet, "--identity", str(node.keys / "bench"), "ssh", "--carrier", "quic", "bench@.", command]
    else:
        proxy = shlex.join([*alknet, "proxy", "--carrier", "quic", "."])
        words = node.ssh_command(command, key="bench", options=["-c", CIPHER, "-o", f"ProxyCommand={proxy}"])
    began = time.perf_counter()
    subprocess.run(words, stdin=stdin, stdout=subprocess.DEVNULL, check=True, timeout=DEADLINE_S)
    return time.perf_counter() - began


def program_transfer(site: Site, name: str, direction: str, size: int) -> float:
    """Seconds for a transfer without what the program needs for a `true`."""
    overhead_s = run_program(site, name, "true")
    if direction == "down":
        return run_program(site, name, f"head -c {size} /dev/zero") - overhead_s
    with subprocess.Popen(["head", "-c", str(size), "/dev/zero"], stdout=subprocess.PIPE) as feeder:
        return run_program(site, name, "cat >/dev/null", feeder.stdout) - overhead_s


def measure_transfers(directory: Path, effort: Effort) -> str:
    """Rates both ways, and the processor time of both ends."""
    figures: dict[tuple[str, str], list[float]] = defaultdict(list)
    with ExitStack() as stack:
        site = Site(stack, directory / "node")
        others = {BARE: Bare(stack, site), "carrier": Bare(stack, site, "bare_carrier.py")}
        for _ in range(effort.rounds):
            for direction in ("down", "up"):
                for name in CONTENDERS:
                    size = effort.fast_bytes if name in ("tls", "tcp") else effort.slow_bytes
                    server = others.get(name, site).process
                    used_s = cpu_s(server)
                    if name in PROGRAMS:
                        took_s = program_transfer(site, name, direction, size)
                    else:
                        port = others[name].port if name in others else 0
                        order = site.order("transfer", port, carrier=name, direction=direction, count=size)
                        answer = run_order(order)
                        took_s = answer["took_s"]
                        figures[name, f"client, {direction}"].append(answer["cpu_s"] * 1e9 / size)
                    figures[name, direction].append(size / 1e6 / took_s)
                    figures[name, f"server, {direction}"].append((cpu_s(server) - used_s) * 1e9 / size)
    columns: dict[str, Callable[[str], str]] = {}
    for direction in ("down", "up"):
        columns[f"{direction} MB/s"] = lambda name, d=direction: median(figures[name, d])
        columns["/ aioquic" + " " * (direction == "up")] = lambda name, d=direction: ratio(figures, name, d)
    for end in ("server, down", "server, up", "client, down", "client, up"):
        columns[f"{end} ms/MB"] = lambda name, e=end: median(figures[name, e])
    return table("transfers", CONTENDERS, columns)


def ratio(figures: dict[tuple[str, str], list[float]], name: str, metric: str) -> str:
    """The median of a figure's ratios to aioquic's of the same round."""
    pairs = zip(figures[name, metric], figures[BARE, metric], strict=True)
    return f"{statistics.median(mine / bare for mine, bare in pairs):.2f}"


# --- handshakes -------------------------------------------------------------------------------------------------

KINDS = {
    BARE: "aioquic alone, handshake",
    "quic": "QUIC, handshake",
    "tls": "TLS, handshake",
    "quic login": "QUIC, logged in",
    "tls login": "TLS, logged in",
    "tcp login": "TCP, logged in",
}


def measure_times(directory: Path, effort: Effort) -> str:
    """How long a dialer waits."""
    with ExitStack() as stack:
        site = Site(stack, directory / "node")
        taken = run_order(site.order("times", Bare(stack, site).port, count=effort.handshakes))
    figures = {(kind, "ms"): times for kind, times in taken.items()}
    columns: dict[str, Callable[[str], str]] = {
        "p50 ms": lambda kind: median(taken[kind]),
        "p95 ms": lambda kind: f"{statistics.quantiles(taken[kind], n=20)[-1]:.3g}",
        "/ aioquic": lambda kind: ratio(figures, kind, "ms"),
    }
    return table("handshakes", KINDS, columns)


# --- idle connections -------------------------------------------------------------------------------------------

IDLE = {
    BARE: "aioquic alone",
    "quic": "QUIC, handshake only",
    "tls": "TLS, handshake only",
    "quic login": "QUIC, logged in",
    "tls login": "TLS, logged in",
    "tcp login": "TCP, logged in",
}


def measure_idle(directory: Path, effort: Effort) -> str:
    """Memory of a connection that does nothing, and what a thousand of them keep a processor busy with: each kind on a
    server of its own, all watched over the same time. A node without connections is subtracted."""
    memory: dict[tuple[str, str], list[float]] = {}
    with ExitStack() as stack:
        empty = Site(stack, directory / "empty")
        servers: dict[str, psutil.Process] = {}
        for kind in IDLE:
            site = Site(stack, directory / kind.replace(" ", "-"))
            bare = Bare(stack, site)
            server = servers[kind] = (bare if kind == BARE else site).process
            order = site.order("idle", bare.port, carrier=kind.split()[0], login="login" in kind)
            hold(stack, order, effort.idle // 10)  # imports, caches, the allocator's first arenas
            before = server.memory_info().rss
            hold(stack, order, effort.idle)
            memory[kind, "KiB"] = [(server.memory_info().rss - before) / 1024 / effort.idle]
        watched = {**servers, "": empty.process}
        used_s = {kind: cpu_s(process) for kind, process in watched.items()}
        time.sleep(effort.watch_s)
        busy = {kind: (cpu_s(process) - used_s[kind]) / effort.watch_s * 1e3 for kind, process in watched.items()}
    thousands = (effort.idle + effort.idle // 10) / 1000
    columns: dict[str, Callable[[str], str]] = {
        "KiB each": lambda kind: median(memory[kind, "KiB"]),
        "/ aioquic": lambda kind: ratio(memory, kind, "KiB"),
        "ms/s for 1000": lambda kind: f"{max(0.0, busy[kind] - (busy[''] if kind != BARE else 0.0)) / thousands:.2g}",
    }
    return table(f"{effort.idle} idle", IDLE, columns)


def hold(stack: ExitStack, order: Order, count: int) -> None:
    """Open `count` idle connections from a process of their own and keep them until the stack ends."""
    described = json.dumps(asdict(order) | {"count": count})
    process = stack.enter_context(
        subprocess.Popen(
            [sys.executable, _program("quic_client.py"), described],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
    )
    stack.callback(process.kill)
    assert process.stdout is not None
    answer = json.loads(process.stdout.readline())
    if answer["open"] != count:
        raise RuntimeError(f"only {answer['open']} of {count} connections were opened")
    time.sleep(SETTLE_S)


# --- the whole --------------------------------------------------------------------------------------------------


def median(figures: Sequence[float]) -> str:
    return f"{statistics.median(figures):.3g}" if figures else ""


def table(title: str, rows: dict[str, str], columns: dict[str, Callable[[str], str]]) -> str:
    lines = [[title, *columns]] + [[text, *(show(name) for show in columns.values())] for name, text in rows.items()]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)


MEASURES = {
    "transfers": measure_transfers,
    "files": measure_files,
    "forwards": measure_forwards,
    "times": measure_times,
    "idle": measure_idle,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a rough answer in three minutes")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, metavar="PART", help="leave tables out")
    arguments = parser.parse_args()
    effort = QUICK if arguments.quick else FULL
    began = time.monotonic()
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("aioquic", "asyncssh", "uvloop"))
    print(f"{versions}; {os.cpu_count()} processors; {effort}")
    for part in arguments.only:
        with tempfile.TemporaryDirectory(prefix="alknet-bench-") as directory:
            os.chmod(directory, 0o755)
            print(f"\n{MEASURES[part](Path(directory), effort)}", flush=True)
    load = ", ".join(f"{average:.1f}" for average in os.getloadavg())
    print(f"\ntook {time.monotonic() - began:.0f} s; load at the end {load}")


if __name__ == "__main__":
    main()
