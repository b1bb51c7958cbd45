"""The load generator of `gateway.py`: prepared requests on connections that stay open, from one process.

``python gateway_client.py JSON`` where the JSON is an `Order`; prints what came of it as JSON. It parses no more of
an answer than its end and its status, so that what is measured is the server; each connection's first answer is looked
at whole. Requests and answers alternate on a connection: nothing is pipelined.
"""

import json
import os
import select
import socket
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import psutil

__all__ = ["CLIENT_CPU", "HOST", "NEW", "OLD", "Order"]

HOST = "127.0.0.1"
CLIENT_CPU = 1
WARM_UP_S = 0.3
READ_SIZE = 1024 * 1024
PATIENCE_S = 20.0
NEW, OLD = "2026-07-28", "2025-11-25"
"""The revisions of MCP: of the old one there are sessions."""
ACCEPT = "accept: application/json, text/event-stream\r\n"
END_OF_CHUNKS = b"\r\n0\r\n\r\n"


@dataclass(frozen=True, slots=True)
class Order:
    """What to do: ask for `path` on so many connections as `clients` for `seconds`."""

    port: int
    path: str
    body: dict[str, Any] = field(default_factory=dict)
    """An input, or the params of an MCP request."""
    expected: str = ""
    """What the answer has somewhere, without blanks."""
    method: str = ""
    """Of MCP; none for a plain POST."""
    revision: str = NEW
    token: str = ""
    clients: int = 1
    seconds: float = 1.0
    pids: tuple[int, ...] = ()
    """The processes of the other side."""


class Connection:
    """A connection, the request that is sent on it again and again, and how far its answer has come."""

    def __init__(self, order: Order, number: int) -> None:
        self.socket = socket.create_connection((HOST, order.port), timeout=PATIENCE_S)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._order = order
        self._answer = b""
        self._request = self._prepare(number)
        self._check(self.ask(self._request))
        self._check(self.ask(self._request))  # MCP: what was judged the first time is taken as judged
        self.socket.setblocking(False)

    def send(self) -> None:
        self._answer = b""
        self.socket.send(self._request)

    def receive(self) -> bool:
        """Read what is there; whether that was the end of the answer."""
        data = self.socket.recv(READ_SIZE)
        if not data:
            raise RuntimeError(f"the server closed the connection: {self._answer[:500]!r}")
        self._answer += data
        return self._is_whole()

    def ask(self, request: bytes) -> bytes:
        """Send a request and wait for the whole answer."""
        self._answer = b""
        self.socket.sendall(request)
        while not self._is_whole():
            data = self.socket.recv(READ_SIZE)
            if not data:
                raise RuntimeError(f"the server closed the connection: {self._answer[:500]!r}")
            self._answer += data
        return self._answer

    def _is_whole(self) -> bool:
        answer = self._answer
        head = answer.find(b"\r\n\r\n")
        if head < 0:
            return False
        if not answer.startswith((b"HTTP/1.1 200", b"HTTP/1.1 202")):
            raise RuntimeError(answer[:1000].decode("latin-1"))
        at = answer.find(b"content-length: ", 0, head)
        if at >= 0:
            length = int(answer[at + 16 : answer.find(b"\r\n", at)])
            return len(answer) == head + 4 + length
        return answer.endswith(END_OF_CHUNKS)

    def _check(self, answer: bytes) -> None:
        if not answer.startswith(b"HTTP/1.1 200") or self._order.expected not in "".join(answer.decode().split()):
            raise RuntimeError(f"{self._order.expected} is not in {answer[:2000]!r}")

    # --- requests ---------------------------------------------------------------------------------------------------

    def _prepare(self, number: int) -> bytes:
        order = self._order
        if not order.method:
            return self._post(order.body)
        params, more = order.body, ""
        if order.revision == NEW:
            meta = {
                "io.modelcontextprotocol/protocolVersion": NEW,
                "io.modelcontextprotocol/clientCapabilities": {},
                "io.modelcontextprotocol/clientInfo": {"name": "bench", "version": "1"},
            }
            params = params | {"_meta": meta}
            more = f"mcp-protocol-version: {NEW}\r\nmcp-method: {order.method}\r\n"
            if "name" in params:
                more += f"mcp-name: {params['name']}\r\n"
        else:
            more = f"mcp-protocol-version: {OLD}\r\nmcp-session-id: {self._begin_session()}\r\n"
        return self._post({"jsonrpc": "2.0", "id": number, "method": order.method, "params": params}, ACCEPT + more)

    def _begin_session(self) -> str:
        hello = {"protocolVersion": OLD, "capabilities": {}, "clientInfo": {"name": "bench", "version": "1"}}
        message = {"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": hello}
        head = self.ask(self._post(message, ACCEPT)).partition(b"\r\n\r\n")[0].decode("latin-1")
        fields = dict(line.lower().partition(": ")[::2] for line in head.split("\r\n"))
        session = fields["mcp-session-id"]
        known = f"{ACCEPT}mcp-protocol-version: {OLD}\r\nmcp-session-id: {session}\r\n"
        self.ask(self._post({"jsonrpc": "2.0", "method": "notifications/initialized"}, known))
        return session

    def _post(self, value: Any, more: str = "") -> bytes:
        order, body = self._order, json.dumps(value, separators=(",", ":")).encode()
        if order.token:
            more += f"authorization: Bearer {order.token}\r\n"
        head = f"POST {order.path} HTTP/1.1\r\nhost: {HOST}:{order.port}\r\ncontent-type: application/json\r\n"
        return f"{head}{more}content-length: {len(body)}\r\n\r\n".encode() + body


def load(order: Order) -> dict[str, float]:
    """Answers per second, the processor time of one at either end, and how long one took in microseconds."""
    connections = [Connection(order, number) for number in range(1, order.clients + 1)]
    _keep_asking(connections, WARM_UP_S)
    servers_s, own_s, began = _used_s(order.pids), time.process_time(), time.perf_counter()
    taken = _keep_asking(connections, order.seconds)
    took_s, own_s = time.perf_counter() - began, time.process_time() - own_s
    servers_s = _used_s(order.pids) - servers_s
    count = len(taken)
    cuts = statistics.quantiles(taken, n=100)
    return {
        "rate": count / took_s,
        "client_us": own_s / count * 1e6,
        "server_us": servers_s / count * 1e6,
        "p50": cuts[49] * 1e6,
        "p99": cuts[98] * 1e6,
    }


def _used_s(pids: Sequence[int]) -> float:
    return sum(sum(psutil.Process(pid).cpu_times()[:2]) for pid in pids)


def _keep_asking(connections: Sequence[Connection], seconds: float) -> list[float]:
    """How long each request took; ends when all that were begun within `seconds` are answered."""
    poll, clock = select.epoll(), time.perf_counter
    by_number = {connection.socket.fileno(): connection for connection in connections}
    for number in by_number:
        poll.register(number, select.EPOLLIN)
    ends, taken, open_ones = clock() + seconds, [], len(connections)
    begun = {}
    for number, connection in by_number.items():
        begun[number] = clock()
        connection.send()
    while open_ones:
        ready = poll.poll(PATIENCE_S)
        if not ready:
            raise RuntimeError(f"{open_ones} answers did not come")
        for number, _ in ready:
            connection = by_number[number]
            if connection.receive():
                now = clock()
                taken.append(now - begun[number])
                if now < ends:
                    begun[number] = now
                    connection.send()
                else:
                    open_ones -= 1
    poll.close()
    return taken


def main() -> None:
    order = Order(**json.loads(sys.argv[1]))
    if (os.cpu_count() or 1) > CLIENT_CPU:
        os.sched_setaffinity(0, {CLIENT_CPU})
    print(json.dumps(load(order)), flush=True)


if __name__ == "__main__":
    main()
