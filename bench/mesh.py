"""Calls and SSH through a hub, beside the same without one, and beside NATS request-reply, in one run on one machine.

``python bench/mesh.py [--quick] [--only PART …]`` prints what was measured as tables, as `call.py` does and measured
the same way. A worker dials the hub; the client reaches it through the hub, by the worker's name or as an operation of
the hub's own, and past it. NATS has the same shape: asker, nats-server, responder, three processes and two connections.
"""

import argparse
import os
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
from call_servers import NATS, Peers, ask
from mesh_nodes import ALONE, PAIR, QUIC, Mesh
from tables import Figures, goal, median, ratios, report, shown, table

from testkit.many_workers import make_keys
from testkit.mesh import LIBRARY
from testkit.node import wait_until

DEADLINE_S = 120.0
SETTLE_S = 1.0
"""Between the beginning of a transfer and looking at the calls beside it."""
MIB = 1024 * 1024
PACED = "while :; do head -c 400000 /dev/zero; sleep 0.02; done"
"""What leaves the processors time for others."""


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is done."""

    rounds: int
    seconds: float
    transfer_bytes: int
    quic_bytes: int
    workers: int
    operations: int


FULL = Effort(rounds=7, seconds=2.0, transfer_bytes=256 * MIB, quic_bytes=64 * MIB, workers=200, operations=50)
QUICK = Effort(rounds=3, seconds=1.0, transfer_bytes=128 * MIB, quic_bytes=16 * MIB, workers=50, operations=50)


# --- calls ------------------------------------------------------------------------------------------------------

CONTENDERS = {
    "direct": "direct",
    "peer": "through the hub, by peer",
    "one": "through the hub, exposed by one",
    "two": "through the hub, exposed by two",
    NATS: "nats-py, through nats-server",
    "audit direct": "direct, audit on",
    "audit peer": "by peer, audit on at both",
    "quic direct": "direct, QUIC",
    "quic peer": "by peer, QUIC on both ways",
}
BESIDE = {"audit peer": "audit direct", "quic peer": "quic direct"}
"""What each is compared with; `direct`, where nothing else is said."""


def measure_calls(directory: Path, effort: Effort) -> str:
    """Calls at 64 in flight, and one at a time."""
    figures: Figures = defaultdict(list)
    with ExitStack() as stack:
        silent = Mesh(directory / "silent", (ALONE, PAIR, QUIC), "silent").start(stack)
        audit = Mesh(directory / "audit", (ALONE,), "audit").start(stack)
        worker, far = ALONE.names[0], QUIC.names[0]
        orders = {
            "direct": silent.direct(worker),
            "peer": silent.by_peer(worker),
            "one": silent.exposed(ALONE),
            "two": silent.exposed(PAIR),
            NATS: Peers(directory).start(stack, NATS).order,
            "audit direct": audit.direct(worker),
            "audit peer": audit.by_peer(worker),
            "quic direct": silent.direct(far, "quic"),
            "quic peer": silent.by_peer(far, "quic"),
        }
        for _ in range(effort.rounds):
            for act in ("calls", "times"):
                for name, order in orders.items():
                    for what, figure in ask(order, act, seconds=effort.seconds).items():
                        figures[name, f"{act} {what}"].append(figure)
    rate, p50 = "calls rate", "times p50"

    def beside(name: str, what: str) -> str:
        return shown(ratios(figures, name, BESIDE.get(name, "direct"), what)[0])

    columns: dict[str, Callable[[str], str]] = {
        "calls/s": lambda name: median(figures[name, rate]),
        "best": lambda name: shown(max(figures[name, rate])),
        "/ direct": lambda name: beside(name, rate),
        "/ nats": lambda name: shown(ratios(figures, name, NATS, rate)[0]),
        "client µs": lambda name: median(figures[name, "calls client_us"]),
        "hub µs": lambda name: median(figures[name, "calls first_us"]),
        "servers µs": lambda name: median(figures[name, "calls server_us"]),
        "p50 µs": lambda name: median(figures[name, p50]),
        "p99 µs": lambda name: median(figures[name, "times p99"]),
        "p50 / direct": lambda name: beside(name, p50),
    }
    goals = [
        goal("by peer / direct, calls", ratios(figures, "peer", "direct", rate), at_least=0.45),
        goal("exposed by one / direct, calls", ratios(figures, "one", "direct", rate), at_least=0.45),
        goal("by peer / nats-py, calls", ratios(figures, "peer", NATS, rate), at_least=1),
        goal("by peer / nats-py, p50", ratios(figures, "peer", NATS, p50, best=min), at_most=1),
    ]
    return "\n".join([table("calls", CONTENDERS, columns), "", *goals])


# --- SSH --------------------------------------------------------------------------------------------------------

WAYS = {"direct": "direct", "hub": "through the hub", "quic direct": "direct, QUIC", "quic hub": "through it, QUIC"}


def measure_ssh(directory: Path, effort: Effort) -> str:
    """Bytes both ways through ``alknet ssh``, and what calls through the hub take meanwhile."""
    figures: Figures = defaultdict(list)
    with ExitStack() as stack:
        mesh = Mesh(directory / "through", (ALONE, QUIC), "silent").start(stack)
        other = Mesh(directory / "other", (ALONE,), "silent").start(stack)
        call = mesh.by_peer(ALONE.names[0])
        for _ in range(effort.rounds):
            for way in WAYS:
                carrier = "quic" if "quic" in way else "tls"
                workers, size = (QUIC, effort.quic_bytes) if "quic" in way else (ALONE, effort.transfer_bytes)
                ssh = mesh.ssh(workers.names[0], through=way.endswith("hub"), carrier=carrier)
                start_s = took([*ssh, "true"])
                figures[way, "down"].append(size / 1e6 / (took([*ssh, f"head -c {size} /dev/zero"]) - start_s))
                figures[way, "up"].append(size / 1e6 / (sent([*ssh, "cat >/dev/null"], size) - start_s))
            figures["alone", "p50"].append(ask(call, "times", seconds=effort.seconds)["p50"])
            for meanwhile, nodes, command in (
                ("paced", mesh, PACED),
                ("through", mesh, "cat /dev/zero"),
                ("past", other, "cat /dev/zero"),
            ):
                with transferring([*nodes.ssh(ALONE.names[0], through=True), command]):
                    figures[meanwhile, "p50"].append(ask(call, "times", seconds=effort.seconds)["p50"])
    columns: dict[str, Callable[[str], str]] = {
        "down MB/s": lambda way: median(figures[way, "down"]),
        "/ direct": lambda way: shown(ratios(figures, way, way.replace("hub", "direct"), "down")[0]),
        "up MB/s": lambda way: median(figures[way, "up"]),
        "/ direct ": lambda way: shown(ratios(figures, way, way.replace("hub", "direct"), "up")[0]),
    }
    calls = {
        "alone": "no transfer",
        "paced": "20 MB/s through the same hub and worker",
        "through": "all that goes through the same",
        "past": "all that goes through others",
    }
    beside: dict[str, Callable[[str], str]] = {
        "p50 µs": lambda name: median(figures[name, "p50"]),
        "/ alone": lambda name: shown(ratios(figures, name, "alone", "p50")[0]),
        "/ past": lambda name: shown(ratios(figures, name, "past", "p50")[0]),
    }
    goals = [
        goal("p50 beside 20 MB/s / alone", ratios(figures, "paced", "alone", "p50", best=min), at_most=2),
        goal("p50 beside a transfer / alone", ratios(figures, "through", "alone", "p50", best=min), at_most=2),
        goal("p50 beside a transfer / past", ratios(figures, "through", "past", "p50", best=min), at_most=2),
    ]
    return "\n".join([table("ssh", WAYS, columns), "", table("calls beside ssh", calls, beside), "", *goals])


def took(command: list[str]) -> float:
    """Seconds that a command runs, whose output nobody reads."""
    began = time.perf_counter()
    result = subprocess.run(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, timeout=DEADLINE_S
    )
    if result.returncode:
        raise RuntimeError(f"{command}: {result.stderr.decode()}")
    return time.perf_counter() - began


def sent(command: list[str], size: int) -> float:
    """Seconds until a command has read so many bytes, and ended."""
    with subprocess.Popen(["head", "-c", str(size), "/dev/zero"], stdout=subprocess.PIPE) as feeder:
        began = time.perf_counter()
        subprocess.run(command, stdin=feeder.stdout, stdout=subprocess.DEVNULL, check=True, timeout=DEADLINE_S)
        return time.perf_counter() - began


@contextmanager
def transferring(words: list[str]) -> Iterator[None]:
    """A command whose output nobody reads, until the context ends."""
    with subprocess.Popen(
        words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True
    ) as process:
        try:
            time.sleep(SETTLE_S)
            yield
            if process.poll() is not None:
                raise RuntimeError(f"{words}: exit {process.returncode}")
        finally:
            process.terminate()


# --- memory -----------------------------------------------------------------------------------------------------


def measure_memory(directory: Path, effort: Effort) -> str:
    """What a hub needs for each worker, all of them sessions of one process, and the time until all are known."""
    with ExitStack() as stack:
        mesh = Mesh(directory / "many", (), "silent")
        nodes = mesh.nodes
        keys = make_keys(directory / "keys", effort.workers)
        for name, key in keys.items():
            nodes.introduce(nodes.hub, name, key, 'offers = ["many/*"]\nexpose = "all"')
        mesh.start(stack)
        process = psutil.Process(nodes.hub.pid)
        empty, began = process.memory_info().rss, time.monotonic()
        words = [sys.executable, "-m", "testkit.many_workers", str(mesh.client.home), str(directory / "keys")]
        workers = stack.enter_context(
            subprocess.Popen([*words, str(effort.operations)], env=os.environ | {"PYTHONPATH": str(LIBRARY)})
        )
        stack.callback(workers.terminate)

        def are_here() -> bool:
            attached = nodes.mesh()["attached"]
            return len(attached) == len(keys) and all(one["operations"] == effort.operations for one in attached)

        wait_until(are_here, "all workers are known", timeout_s=DEADLINE_S)
        known_s, full = time.monotonic() - began, process.memory_info().rss
    return (
        f"{effort.workers} workers with {effort.operations} operations each: known after {known_s:.1f} s from the start"
        f" of their process; the hub has {empty / MIB:.0f} MiB without them, {full / MIB:.0f} MiB with them, which is"
        f" {(full - empty) / 1024 / effort.workers:.0f} KiB for each"
    )


# --- the whole --------------------------------------------------------------------------------------------------

MEASURES = {"calls": measure_calls, "ssh": measure_ssh, "memory": measure_memory}
LIBRARIES = ("nats-py", "aioquic", "uvloop", "msgpack", "asyncssh")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a rough answer in three minutes")
    parser.add_argument("--only", nargs="+", choices=MEASURES, default=MEASURES, metavar="PART", help="leave parts out")
    arguments = parser.parse_args()
    report([MEASURES[part] for part in arguments.only], QUICK if arguments.quick else FULL, LIBRARIES)


if __name__ == "__main__":
    main()
