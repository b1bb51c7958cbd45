"""Operation calls beside grpc.aio and nats-py, and beside aioquic alone, in one run on one machine.

``python bench/call.py [--quick] [--only PART …]`` prints what was measured as tables, and the goals as ratios with
what came of each. Everybody speaks TLS on loopback, proves who calls, decides whether they may, and validates the
input of 100 bytes; each server is a process of its own, and so is each client, one at a time (`call_client.py`).
Rounds go A, B, C, A, B, C, …; a ratio is the median of the rounds' ratios, and beside it stands the ratio of the best
rounds: where the two differ the machine had other work, which slows some more than others. A goal counts as reached
when both reach it; one that is missed fails nothing: it is for reading.
"""

import argparse
import json
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from call_client import Order
from call_servers import AIOQUIC, GRPC, NATS, Peers, Server, ask, program, start_node
from tables import Figures, goal, median, ratios, report, shown, table

SETTLE_S = 2.0
"""Between the last idle connection's opening and looking at the memory."""
PARTS = ("calls", "idle")


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is done."""

    rounds: int
    seconds: float
    items: int
    idle: int


FULL = Effort(rounds=7, seconds=3.0, items=50_000, idle=1000)
QUICK = Effort(rounds=3, seconds=1.0, items=10_000, idle=200)


# --- calls ------------------------------------------------------------------------------------------------------

CONTENDERS = {
    "tls": "alknet",
    "audit": "alknet, audit on",
    "json": "alknet, JSON",
    "quic": "alknet, QUIC",
    GRPC: "grpc.aio",
    NATS: "nats-py, with nats-server",
    AIOQUIC: "aioquic alone",
}
STREAMING = frozenset({"tls", "audit", "json", "quic", GRPC})


def measure_calls(directory: Path, effort: Effort) -> str:
    """Calls at 64 in flight, one at a time, and items of a subscription."""
    figures: Figures = defaultdict(list)
    with ExitStack() as stack:
        silent = start_node(stack, directory / "silent", "silent")
        servers = {
            "tls": silent,
            "audit": start_node(stack, directory / "audit", "audit"),
            "json": Server(replace(silent.order, codec="json"), silent.process),
            "quic": Server(replace(silent.order, carrier="quic"), silent.process),
        }
        peers = Peers(directory)
        servers |= {name: peers.start(stack, name) for name in (GRPC, NATS, AIOQUIC)}
        for _ in range(effort.rounds):
            for act in ("calls", "times", "items"):
                for name, server in servers.items():
                    if act == "items" and name not in STREAMING:
                        continue
                    answer = ask(server.order, act, seconds=effort.seconds, count=effort.items)
                    for what, figure in answer.items():
                        figures[name, f"{act} {what}"].append(figure)
    columns: dict[str, Callable[[str], str]] = {
        "calls/s": lambda name: median(figures[name, "calls rate"]),
        "best": lambda name: shown(max(figures[name, "calls rate"])),
        "/ grpc.aio": lambda name: shown(ratios(figures, name, GRPC, "calls rate")[0]),
        "/ nats-py": lambda name: shown(ratios(figures, name, NATS, "calls rate")[0]),
        "client µs": lambda name: median(figures[name, "calls client_us"]),
        "server µs": lambda name: median(figures[name, "calls server_us"]),
        "p50 µs": lambda name: median(figures[name, "times p50"]),
        "p99 µs": lambda name: median(figures[name, "times p99"]),
        "items/s": lambda name: median(figures[name, "items rate"]),
    }
    rate, p50 = "calls rate", "times p50"
    goals = [
        goal("alknet / grpc.aio, calls", ratios(figures, "tls", GRPC, rate), at_least=8),
        goal("alknet / nats-py, calls", ratios(figures, "tls", NATS, rate), at_least=1),
        goal("alknet, audit on / grpc.aio, calls", ratios(figures, "audit", GRPC, rate), at_least=5),
        goal("alknet, JSON / grpc.aio, calls", ratios(figures, "json", GRPC, rate), at_least=5),
        goal("alknet / grpc.aio, p50", ratios(figures, "tls", GRPC, p50, best=min), at_most=0.5),
        goal("alknet, QUIC / aioquic alone, calls", ratios(figures, "quic", AIOQUIC, rate), at_least=0.6),
    ]
    return "\n".join([table("calls", CONTENDERS, columns), "", *goals])


# --- idle connections -------------------------------------------------------------------------------------------

IDLE = {
    "carrier tls": "TLS, handshake only",
    "tls": "alknet, TLS",
    "carrier quic": "QUIC, handshake only",
    "quic": "alknet, QUIC",
    GRPC: "grpc.aio",
}


def measure_idle(directory: Path, effort: Effort) -> str:
    """Memory of a connection on which calls could be made: each kind on a server of its own."""
    kib: dict[str, float] = {}
    peers = Peers(directory)
    for kind in IDLE:
        with ExitStack() as stack:
            if kind == GRPC:
                server = peers.start(stack, GRPC)
            else:
                mode = "carrier" if "carrier" in kind else "silent"
                server = start_node(stack, directory / kind.replace(" ", "-"), mode)
            order = replace(server.order, act="idle", carrier=kind.split()[-1])
            hold(stack, replace(order, count=effort.idle // 10))  # imports, caches, the allocator's first arenas
            before = server.process.memory_info().rss
            hold(stack, replace(order, count=effort.idle))
            kib[kind] = (server.process.memory_info().rss - before) / 1024 / effort.idle
    columns: dict[str, Callable[[str], str]] = {"KiB each": lambda kind: f"{kib[kind]:.3g}"}
    goals = [
        goal("KiB beyond the carrier's, TLS", (kib["tls"] - kib["carrier tls"],), at_most=100),
        goal("KiB beyond the carrier's, QUIC", (kib["quic"] - kib["carrier quic"],), at_most=100),
    ]
    return "\n".join([table(f"{effort.idle} idle", IDLE, columns), "", *goals])


def hold(stack: ExitStack, order: Order) -> None:
    """Open idle connections from a process of their own and keep them until the stack ends."""
    words = [sys.executable, program("call_client.py"), json.dumps(asdict(order))]
    process = stack.enter_context(subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
    stack.callback(process.kill)
    assert process.stdout is not None
    answer = json.loads(process.stdout.readline())
    if answer["open"] != order.count:
        raise RuntimeError(f"only {answer['open']} of {order.count} connections were opened")
    time.sleep(SETTLE_S)


# --- the whole --------------------------------------------------------------------------------------------------

MEASURES = {"calls": measure_calls, "idle": measure_idle}
LIBRARIES = ("grpcio", "nats-py", "aioquic", "uvloop", "msgpack", "pydantic-core")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a rough answer in two minutes")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, metavar="PART", help="leave tables out")
    arguments = parser.parse_args()
    effort = QUICK if arguments.quick else FULL
    report([MEASURES[part] for part in arguments.only], effort, LIBRARIES)


if __name__ == "__main__":
    main()
