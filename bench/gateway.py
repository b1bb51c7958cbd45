"""The HTTP gateway beside FastAPI, bare Starlette and FastMCP, in one run on one machine.

``python bench/gateway.py [--quick] [--only PART …]`` prints what was measured as tables, and the goals as ratios with
what came of each. Each server is a process of its own on one processor, and so is the client on another one, one at a
time: it sends prepared requests over connections that stay open, in plaintext on loopback (`gateway_client.py`).
Everybody has the same uvicorn, httptools and uvloop; only the node knows who calls, decides whether they may, and
writes the audit log. Rounds go A, B, C, A, B, C, …; a ratio is the median of the rounds' ratios, and beside it stands
the ratio of the best rounds: where the two differ the machine had other work. One that is missed fails nothing.
"""

import argparse
import json
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "_lib"))

from gateway_client import NEW, OLD, Order
from gateway_idle import Idle
from gateway_operations import INPUT, LISTED, PLACE, SCOPE
from gateway_servers import PATH
from tables import Figures, goal, median, ratios, report, shown, table

from alknet.nofile import raise_limit
from testkit.node import NodeProcess

DEADLINE_S = 300.0
SETTLE_S = 2.0
"""Between the last idle connection's opening and looking at the memory."""
ROOM = 20_000
"""What the node's limits are raised to: every client here comes from one address and is one peer."""
CLIENTS = (1, 32)
GOAL_IDLE = 10_000
GOAL_MIB = 600


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is done."""

    rounds: int
    seconds: float
    idle: int


FULL = Effort(rounds=15, seconds=1.5, idle=GOAL_IDLE)
QUICK = Effort(rounds=3, seconds=1.0, idle=2000)


# --- servers ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Server:
    """A running server, and the order that reaches it, to be filled in."""

    order: Order
    process: psutil.Process

    def ask(self, **rest: Any) -> dict[str, float]:
        """What the client printed."""
        described = json.dumps(asdict(replace(self.order, **rest)))
        command = [sys.executable, program("gateway_client.py"), described]
        result = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S)
        if result.returncode:
            raise RuntimeError(f"{described}: {result.stderr}")
        answer: dict[str, float] = json.loads(result.stdout)
        return answer


def program(name: str) -> str:
    return str(Path(__file__).with_name(name))


def start(stack: ExitStack, *words: str) -> Server:
    """Start one of the servers of `gateway_servers.py`, until the stack ends."""
    command = [sys.executable, program("gateway_servers.py"), *words]
    process = stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
    stack.callback(process.terminate)
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise RuntimeError(f"{words} did not start")
    return Server(Order(int(line), "", pids=(process.pid,)), psutil.Process(process.pid))


def start_node(stack: ExitStack, directory: Path, how: str) -> Server:
    """A node on a home of its own, and a token with which the operations may be called."""
    directory.mkdir()
    node = NodeProcess(directory)  # makes the home
    for name, usual, here in (
        ("connections", 4096, ROOM),
        ("connections_per_address", 100, ROOM),
        ("half_open", 1000, ROOM),
        ("connections_per_peer", 256, ROOM),
        ("max_in_flight", 1024, ROOM),
        ("max_tools", 100, 2 * LISTED),
    ):
        node.edit_config(f"\n{name} = {usual}\n", f"\n{name} = {here}\n")
    server = start(stack, "node", str(node.home), how)
    token = node.alknet("token", "create", "--scope", SCOPE).stdout.strip()
    return replace(server, order=replace(server.order, token=token))


# --- calls ------------------------------------------------------------------------------------------------------

HTTP = {"node": "alknet", "fastapi": "FastAPI", "starlette": "Starlette alone"}
MCP = {
    "node new": f"alknet, {NEW}",
    "node old": f"alknet, {OLD}",
    "fastmcp new": f"FastMCP, {NEW}",
    "fastmcp old": f"FastMCP, {OLD}",
    "json new": f"FastMCP with JSON answers, {NEW}",
    "json old": f"FastMCP with JSON answers, {OLD}",
}
REVISIONS = {"new": NEW, "old": OLD}


def rounds(servers: dict[str, Server], effort: Effort, figures: Figures, counts: Sequence[int] = CLIENTS) -> None:
    for _ in range(effort.rounds):
        for clients in counts:
            for name, server in servers.items():
                for what, figure in server.ask(clients=clients, seconds=effort.seconds).items():
                    figures[name, f"{clients} {what}"].append(figure)


def columns(
    figures: Figures, *others: tuple[str, str], counts: Sequence[int] = CLIENTS
) -> dict[str, Callable[[str], str]]:
    """What is shown of each; `others` are (name, title) of those that all are compared with."""
    shows: dict[str, Callable[[str], str]] = {}
    for clients in counts:
        shows[f"{clients}: 1/s"] = lambda name, what=f"{clients} rate": median(figures[name, what])
        for other, title in others:
            shows[f"{clients}: / {title}"] = lambda name, what=f"{clients} rate", other=other: shown(
                ratios(figures, name, other, what)[0]
            )
        shows[f"{clients}: p50 µs"] = lambda name, what=f"{clients} p50": median(figures[name, what])
        shows[f"{clients}: server µs"] = lambda name, what=f"{clients} server_us": median(figures[name, what])
    return shows


def measure_http(directory: Path, effort: Effort) -> str:
    """``POST /ops/{name}`` beside the same function in FastAPI, and beside Starlette without any validation."""
    figures: Figures = defaultdict(list)
    with ExitStack() as stack:
        servers = {"node": start_node(stack, directory / "http", "few")}
        servers |= {name: start(stack, name) for name in ("fastapi", "starlette")}
        expected = f'"customer":"{INPUT["customer"]}","items":["{INPUT["item"]}"'.replace(" ", "")
        servers = {
            name: replace(server, order=replace(server.order, path=PATH, body=INPUT, expected=expected))
            for name, server in servers.items()
        }
        rounds(servers, effort, figures)
    goals = [
        goal(
            f"alknet / FastAPI, {clients} at a time", ratios(figures, "node", "fastapi", f"{clients} rate"), at_least=1
        )
        for clients in CLIENTS
    ]
    return "\n".join([table("http", HTTP, columns(figures, ("fastapi", "FastAPI"))), "", *goals])


def mcp_servers(stack: ExitStack, directory: Path, how: str) -> dict[str, Server]:
    servers: dict[str, Server] = {}
    for name, server in (
        ("node", start_node(stack, directory / f"mcp-{how}", how)),
        ("fastmcp", start(stack, "fastmcp", how)),
        ("json", start(stack, "fastmcp", f"{how}-json")),
    ):
        for age, revision in REVISIONS.items():
            servers[f"{name} {age}"] = replace(server, order=replace(server.order, path="/mcp", revision=revision))
    return servers


def measure_mcp(directory: Path, effort: Effort) -> str:
    """``tools/call`` beside FastMCP with the same function."""

    def calling(name: str, server: Server) -> Server:
        params = {"name": PLACE.replace("/", ".") if name.startswith("node") else "place", "arguments": INPUT}
        expected = f'"structuredContent":{{"number":1,"customer":"{INPUT["customer"]}"'
        return replace(server, order=replace(server.order, method="tools/call", body=params, expected=expected))

    figures: Figures = defaultdict(list)
    with ExitStack() as stack:
        servers = mcp_servers(stack, directory, "few")
        rounds({name: calling(name, server) for name, server in servers.items()}, effort, figures)
    return mcp_report("tools/call", figures, at_least=5)


def measure_list(directory: Path, effort: Effort) -> str:
    """``tools/list`` where there are `LISTED` tools, to one client: with FastMCP a list takes a part of a second."""
    figures: Figures = defaultdict(list)
    with ExitStack() as stack:
        servers = mcp_servers(stack, directory, "many")
        for name, server in servers.items():
            expected = "catalogue.find-0007" if name.startswith("node") else "find_0007"
            order = replace(server.order, method="tools/list", expected=f'"name":"{expected}"')
            servers[name] = replace(server, order=order)
        rounds(servers, effort, figures, (1,))
    return mcp_report(f"tools/list of {LISTED}", figures, (1,), at_least=1)


def mcp_report(what: str, figures: Figures, counts: Sequence[int] = CLIENTS, *, at_least: float) -> str:
    """A table, and how many times as fast as FastMCP alknet was in each revision, with the answers that FastMCP gives
    unless told otherwise."""
    goals = [
        goal(
            f"alknet / FastMCP, {revision}, {clients} at a time",
            ratios(figures, f"node {age}", f"fastmcp {age}", f"{clients} rate"),
            at_least=at_least,
        )
        for age, revision in REVISIONS.items()
        for clients in counts
    ]
    others = (("fastmcp new", f"FastMCP {NEW}"), ("fastmcp old", f"FastMCP {OLD}"))
    return "\n".join([table(what, MCP, columns(figures, *others, counts=counts)), "", *goals])


# --- idle connections -------------------------------------------------------------------------------------------

IDLE = {
    "sse": "event streams",
    "websocket": "WebSockets",
    "sse tls": "event streams, TLS",
    "websocket tls": "WebSockets, TLS",
}


def measure_idle(directory: Path, effort: Effort) -> str:
    """Memory of a node with so many connections on which nothing happens: each kind on a node of its own."""
    kib: dict[str, float] = {}
    mib: dict[str, float] = {}
    for kind in IDLE:
        with ExitStack() as stack:
            server = start_node(stack, directory / kind.replace(" ", "-"), "few")
            name, _, tls = kind.partition(" ")
            order = Idle(name, server.order.port, server.order.token, effort.idle // 10, tls=bool(tls))
            hold(stack, order)  # imports, caches, the allocator's first arenas
            before = server.process.memory_info().rss
            hold(stack, replace(order, count=effort.idle - order.count))
            after = server.process.memory_info().rss
            each = (after - before) / (effort.idle - order.count)
            kib[kind] = each / 1024
            mib[kind] = (after + each * (GOAL_IDLE - effort.idle)) / 1024**2
    shows: dict[str, Callable[[str], str]] = {
        "KiB each": lambda kind: f"{kib[kind]:.3g}",
        f"MiB with {GOAL_IDLE:,}": lambda kind: f"{mib[kind]:.0f}",
    }
    goals = [goal(f"MiB with {GOAL_IDLE:,} {IDLE[kind]}", (mib[kind],), at_most=GOAL_MIB) for kind in IDLE]
    return "\n".join([table(f"{effort.idle} idle", IDLE, shows), "", *goals])


def hold(stack: ExitStack, order: Idle) -> None:
    """Open idle connections from a process of their own and keep them until the stack ends."""
    words = [sys.executable, program("gateway_idle.py"), json.dumps(asdict(order))]
    process = stack.enter_context(subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
    stack.callback(process.kill)
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line or json.loads(line)["open"] != order.count:
        raise RuntimeError(f"not all of {order.count} connections were opened: {line}")
    time.sleep(SETTLE_S)


# --- the whole --------------------------------------------------------------------------------------------------

MEASURES = {"http": measure_http, "mcp": measure_mcp, "list": measure_list, "idle": measure_idle}
LIBRARIES = ("uvicorn", "httptools", "uvloop", "starlette", "fastapi", "fastmcp", "mcp", "pydantic-core")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a rough answer in a few minutes")
    parser.add_argument(
        "--only", nargs="+", choices=tuple(MEASURES), default=tuple(MEASURES), metavar="PART", help="leave tables out"
    )
    arguments = parser.parse_args()
    raise_limit()
    effort = QUICK if arguments.quick else FULL
    report([MEASURES[part] for part in arguments.only], effort, LIBRARIES)


if __name__ == "__main__":
    main()
