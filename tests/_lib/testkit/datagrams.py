"""A path that loses, delays, doubles and reorders datagrams: the rules, and a UDP relay on loopback that applies them.

`Lane` is one direction of such a path and does no input or output; `testkit.netns` puts real network namespaces on it.
`udp_relay` stands between UDP clients and a server in one process, as a NAT does::

    async with udp_relay(target=("127.0.0.1", port), loss=0.05, reorder=0.1, seed=7) as relay:
        ...  # clients send to relay.address
        relay.rebind()
        relay.set(loss=1.0, towards="server")
"""

import asyncio
import contextlib
import heapq
import itertools
import math
import random
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any, Generic, Literal, TypeVar

__all__ = ["Conditions", "Counts", "End", "Lane", "UdpRelay", "given", "udp_relay"]

MAX_QUEUED = 10_000
"""Packets that wait in one lane; one more is dropped, as a router does it."""
MAX_FLOWS = 1000
MAX_DATAGRAM_BYTES = 65_535
BATCH = 64
"""Datagrams read from one socket before the others have their turn."""
RECEIVE_BUFFER_BYTES = 1024 * 1024
"""Asked of the kernel, which may give less; the relay should lose what it was told to lose, and nothing else."""

End = Literal["client", "server"]
Address = tuple[Any, ...]
"""As the socket module has it: host and port, and two numbers more for IPv6."""
T = TypeVar("T")


def given(**changes: Any) -> dict[str, Any]:
    """The arguments that are not None: those that shall change something."""
    return {name: value for name, value in changes.items() if value is not None}


@dataclass(frozen=True)
class Conditions:
    """What a lane does to packets. A late packet is one that is let behind by `late_s`, so that others overtake it;
    jitter alone keeps the order."""

    loss: float = 0.0
    duplicate: float = 0.0
    reorder: float = 0.0
    delay_s: float = 0.0
    jitter_s: float = 0.0
    late_s: float = 0.02

    def __post_init__(self) -> None:
        for name in ("loss", "duplicate", "reorder"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name} is a probability, not {getattr(self, name)}")
        for name in ("delay_s", "jitter_s", "late_s"):
            if getattr(self, name) < 0.0:
                raise ValueError(f"{name} must not be negative: {getattr(self, name)}")


@dataclass
class Counts:
    """What has become of the packets of one direction."""

    received: int = 0
    passed: int = 0
    lost: int = 0
    late: int = 0
    duplicated: int = 0
    blocked: int = 0
    overflowed: int = 0
    """Dropped because a queue was full: the lane's, or the one of the socket behind it."""

    @property
    def waiting(self) -> int:
        """Those that are still in the lane."""
        return self.received + self.duplicated - self.passed - self.lost - self.blocked - self.overflowed


class Lane(Generic[T]):
    """One direction of a path: `put` a packet in, `take` those out whose time has come.

    The fate of the packet number n depends on the seed and on n only, not on the time and not on the other conditions.
    """

    def __init__(self, conditions: Conditions, seed: str) -> None:
        self.conditions = conditions
        self.counts = Counts()
        self._random = random.Random(seed)
        self._queue: list[tuple[float, int, T]] = []
        self._numbers = itertools.count()
        self._last_due_s = -math.inf
        self._held_until_s = -math.inf

    def put(self, packet: T, now_s: float) -> None:
        conditions, counts = self.conditions, self.counts
        counts.received += 1
        # All four are drawn for every packet, so that one condition does not change what another one hits.
        lost, doubled, late, jitter = (self._random.random() for _ in range(4))
        if lost < conditions.loss:
            counts.lost += 1
            return
        due_s = max(now_s + conditions.delay_s + jitter * conditions.jitter_s, self._last_due_s)
        if late < conditions.reorder:
            counts.late += 1
            due_s += conditions.late_s
        else:
            self._last_due_s = due_s
        self._queue_at(due_s, packet)
        if doubled < conditions.duplicate:
            counts.duplicated += 1
            self._queue_at(due_s, packet)

    def take(self, now_s: float) -> list[T]:
        """Those that are through by now, in the order in which they arrive."""
        due: list[T] = []
        if now_s >= self._held_until_s:
            while self._queue and self._queue[0][0] <= now_s:
                due.append(heapq.heappop(self._queue)[2])
        self.counts.passed += len(due)
        return due

    def next_s(self) -> float:
        """When the next packet is through; infinity without one."""
        return max(self._queue[0][0], self._held_until_s) if self._queue else math.inf

    def hold(self, until_s: float = math.inf) -> None:
        """Let nothing out until then; what comes in meanwhile is kept, as far as the queue has room."""
        self._held_until_s = until_s

    def release(self) -> None:
        self._held_until_s = -math.inf

    def _queue_at(self, due_s: float, packet: T) -> None:
        if len(self._queue) >= MAX_QUEUED:
            self.counts.overflowed += 1
        else:
            heapq.heappush(self._queue, (due_s, next(self._numbers), packet))


@dataclass
class _Flow:
    """A client of the relay, and the socket whose port it has towards the server."""

    client: Address
    upstream: socket.socket


class UdpRelay:
    """Between clients and the server at `target`; every client has a source port of its own there. See `udp_relay`."""

    def __init__(self, target: Address, seed: int) -> None:
        self.target = target
        self.to_server: Lane[tuple[_Flow, bytes]] = Lane(Conditions(), f"{seed} to server")
        self.to_client: Lane[tuple[_Flow, bytes]] = Lane(Conditions(), f"{seed} to client")
        self._loop = asyncio.get_running_loop()
        self._flows: dict[Address, _Flow] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._front = self._bound_socket()
        self._loop.add_reader(self._front, self._from_clients)

    @property
    def address(self) -> Address:
        """Where clients send to."""
        return _host_and_port(self._front.getsockname())

    @property
    def sources(self) -> dict[Address, Address]:
        """The address from which the server gets each client's datagrams, by the client's address."""
        return {client: _host_and_port(flow.upstream.getsockname()) for client, flow in self._flows.items()}

    def set(
        self,
        *,
        towards: End | None = None,
        loss: float | None = None,
        duplicate: float | None = None,
        reorder: float | None = None,
        delay_s: float | None = None,
        jitter_s: float | None = None,
        late_s: float | None = None,
    ) -> None:
        """Change these conditions from now on, in one direction or in both; the others stay."""
        changes = given(
            loss=loss, duplicate=duplicate, reorder=reorder, delay_s=delay_s, jitter_s=jitter_s, late_s=late_s
        )
        for end, lane in (("client", self.to_client), ("server", self.to_server)):
            if towards in (end, None):
                lane.conditions = replace(lane.conditions, **changes)

    def hold(self) -> None:
        """Let nothing pass in either direction until `release`; it is kept meanwhile."""
        self.to_server.hold()
        self.to_client.hold()

    def release(self) -> None:
        self.to_server.release()
        self.to_client.release()
        self._deliver()

    def stall(self, duration_s: float) -> None:
        """Hold for so long; returns at once."""
        until_s = time.monotonic() + duration_s
        self.to_server.hold(until_s)
        self.to_client.hold(until_s)
        self._deliver()

    def rebind(self) -> None:
        """Give every client another source port, as a NAT does that forgot. The old ports answer no more."""
        for flow in self._flows.values():
            # The new one is bound first: the kernel would give the same port again.
            old, flow.upstream = flow.upstream, self._bound_socket()
            self._forget(old)
            self._loop.add_reader(flow.upstream, self._from_server, flow)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        for sock in (self._front, *(flow.upstream for flow in self._flows.values())):
            self._forget(sock)
        self._flows.clear()

    def _bound_socket(self) -> socket.socket:
        """A socket on a free port of the address that reaches the target."""
        host = self.target[0]
        sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
        sock.bind((host, 0))
        return sock

    def _forget(self, sock: socket.socket) -> None:
        self._loop.remove_reader(sock)
        sock.close()

    def _from_clients(self) -> None:
        for client, data in _received(self._front):
            flow = self._flows.get(client)
            if flow is None:
                if len(self._flows) >= MAX_FLOWS:
                    self.to_server.counts.received += 1
                    self.to_server.counts.overflowed += 1
                    continue
                flow = self._flows[client] = _Flow(client, self._bound_socket())
                self._loop.add_reader(flow.upstream, self._from_server, flow)
            self.to_server.put((flow, data), time.monotonic())
        self._deliver()

    def _from_server(self, flow: _Flow) -> None:
        for sender, data in _received(flow.upstream):
            if sender == _host_and_port(self.target):  # a NAT lets nobody else in
                self.to_client.put((flow, data), time.monotonic())
        self._deliver()

    def _deliver(self) -> None:
        """Send what is due, and come back when the next one is."""
        now_s = time.monotonic()
        for flow, data in self.to_server.take(now_s):
            self._send(flow.upstream, data, self.target, self.to_server)
        for flow, data in self.to_client.take(now_s):
            self._send(self._front, data, flow.client, self.to_client)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        next_s = min(self.to_server.next_s(), self.to_client.next_s())
        if next_s < math.inf:
            self._timer = self._loop.call_later(max(next_s - now_s, 0.0), self._deliver)

    @staticmethod
    def _send(sock: socket.socket, data: bytes, address: Address, lane: Lane[tuple[_Flow, bytes]]) -> None:
        try:
            sock.sendto(data, address)
        except BlockingIOError:
            lane.counts.passed -= 1
            lane.counts.overflowed += 1


@asynccontextmanager
async def udp_relay(*, target: Address, seed: int = 0, **conditions: Any) -> AsyncIterator[UdpRelay]:
    """A relay to the UDP server at `target`, on a free port of the same host, under `conditions` as `UdpRelay.set`
    has them. The seed decides which datagrams are hit."""
    relay = UdpRelay(target, seed)
    try:
        relay.set(**conditions)
        yield relay
    finally:
        relay.close()


def _received(sock: socket.socket) -> list[tuple[Address, bytes]]:
    """What waits in the socket, up to a batch: sender and content."""
    batch = []
    with contextlib.suppress(BlockingIOError):
        for _ in range(BATCH):
            data, sender = sock.recvfrom(MAX_DATAGRAM_BYTES)
            batch.append((_host_and_port(sender), data))
    return batch


def _host_and_port(address: Address) -> Address:
    """Without the flow label and the scope of IPv6, which mean nothing on loopback."""
    return address[:2]
