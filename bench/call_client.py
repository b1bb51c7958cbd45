"""The clients of `call.py`: each run is one process that does one thing, prints what came of it as JSON, and ends.

``python call_client.py JSON`` where the JSON is an `Order`. Whoever is asked, the loops that ask are the ones below;
what differs is in `call_grpc.py`, `call_nats.py` and `call_quic.py`, and here for alknet.
"""

import asyncio
import json
import statistics
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import psutil
import uvloop

__all__ = ["DATA", "HOST", "Asker", "Order"]

HOST = "127.0.0.1"
DATA = "x" * 100
WARM_UP_S = 0.3
TOGETHER = 16
"""Idle connections that are opened at a time."""


@dataclass(frozen=True, slots=True)
class Order:
    """What to do: ``calls`` (with `in_flight` at once, for `seconds`), ``times`` (one by one, for `seconds`), ``items``
    (of a subscription of so many as `count`), or ``idle`` (hold `count` connections until stdin ends)."""

    act: str
    asked: str
    """``alknet``, ``carrier``, ``grpc``, ``nats`` or ``aioquic``."""
    port: int
    operation: str = "echo/say"
    behind: str = ""
    """The peer of the node that is meant, if not the node itself."""
    carrier: str = "tls"
    codec: str = "msgpack"
    home: str = ""
    key: str = ""
    certificate: str = ""
    token: str = ""
    pids: tuple[int, ...] = ()
    """The processes of the other side; what the first one uses is told besides."""
    seconds: float = 1.0
    in_flight: int = 64
    count: int = 0


class Asker(Protocol):
    """A connection to whoever is asked."""

    def call(self) -> Awaitable[Any]:
        """One request with `DATA`; returns when the answer is there and is `DATA` again."""

    def items(self, count: int) -> AsyncIterator[Any]:
        """A subscription of `count` times `DATA`."""


class Alknet:
    """A session with a node, by the public client."""

    def __init__(self, peer: Any, operation: str) -> None:
        self._peer = peer
        self._operation = operation

    async def call(self) -> None:
        if await self._peer.call(self._operation, data=DATA) != DATA:
            raise RuntimeError("another text came back")

    async def items(self, count: int) -> AsyncIterator[Any]:
        async with self._peer.subscribe("echo/count", data=DATA, items=count) as items:
            async for item in items:
                yield item


@asynccontextmanager
async def connected(order: Order) -> AsyncIterator[Asker]:
    """A connection, with everything done that comes before the first call."""
    if order.asked == "alknet":
        from alknet import connect

        node = f"{HOST}:{order.port}"
        async with connect(
            order.behind or node,
            via=node if order.behind else None,
            home=order.home,
            identity=order.key,
            carrier=order.carrier,
            codecs=(order.codec,),
            accept_new=lambda question: True,
        ) as peer:
            if peer.transport != order.carrier or peer.identity != "bench":
                raise RuntimeError(f"reached over {peer.transport} as {peer.identity}")
            yield Alknet(peer, order.operation)
    elif order.asked == "carrier":
        from alknet.alpn.dial import dial
        from alknet.call.carried import ALPN

        dialed = await dial(((HOST, order.port),), alpn=ALPN, carriers=(order.carrier,))
        yield dialed.connection  # type: ignore[misc]
        dialed.connection.close()
    elif order.asked == "grpc":
        from call_grpc import connect as connect_grpc

        async with connect_grpc(order) as grpc_asker:
            yield grpc_asker
    elif order.asked == "nats":
        from call_nats import connect as connect_nats

        async with connect_nats(order) as nats_asker:
            yield nats_asker
    else:
        from call_quic import connect as connect_quic

        async with connect_quic(order) as quic_asker:
            yield quic_asker


# --- what is measured -------------------------------------------------------------------------------------------


async def calls(order: Order) -> dict[str, float]:
    """Calls per second, with so many in flight all the time, and the processor time of one at either end."""
    async with connected(order) as asker:
        await _keep_asking(asker.call, order.in_flight, WARM_UP_S)
        before, own_s, began = _used_s(order.pids), time.process_time(), time.perf_counter()
        count = await _keep_asking(asker.call, order.in_flight, order.seconds)
        took_s, own_s = time.perf_counter() - began, time.process_time() - own_s
        used_us = [(after - used) / count * 1e6 for used, after in zip(before, _used_s(order.pids), strict=True)]
    return {
        "rate": count / took_s,
        "client_us": own_s / count * 1e6,
        "server_us": sum(used_us),
        "first_us": used_us[0] if used_us else 0.0,
    }


def _used_s(pids: Sequence[int]) -> list[float]:
    return [sum(psutil.Process(pid).cpu_times()[:2]) for pid in pids]


async def _keep_asking(call: Callable[[], Awaitable[Any]], in_flight: int, seconds: float) -> int:
    ends, clock = time.perf_counter() + seconds, time.perf_counter

    async def worker() -> int:
        count = 0
        while clock() < ends:
            await call()
            count += 1
        return count

    async with asyncio.TaskGroup() as group:
        workers = [group.create_task(worker()) for _ in range(in_flight)]
    return sum(worker.result() for worker in workers)


async def times(order: Order) -> dict[str, float]:
    """Microseconds of a call when there is no other."""
    async with connected(order) as asker:
        await _keep_asking(asker.call, 1, WARM_UP_S)
        taken, ends = [], time.perf_counter() + order.seconds
        while (began := time.perf_counter()) < ends:
            await asker.call()
            taken.append(time.perf_counter() - began)
    cuts = statistics.quantiles(taken, n=100)
    return {"p50": cuts[49] * 1e6, "p99": cuts[98] * 1e6}


async def items(order: Order) -> dict[str, float]:
    """Items of one subscription per second."""
    async with connected(order) as asker:
        for total in (order.count // 10, order.count):
            began, count = time.perf_counter(), 0
            async for _ in asker.items(total):
                count += 1
            took_s = time.perf_counter() - began
            if count != total:
                raise RuntimeError(f"{count} items came instead of {total}")
    return {"rate": order.count / took_s}


async def idle(order: Order) -> dict[str, int]:
    """Open the connections, say so, hold them until stdin ends, and leave without a word."""
    stack, places, failures = AsyncExitStack(), asyncio.Semaphore(TOGETHER), 0

    async def open_one() -> None:
        nonlocal failures
        async with places:
            try:
                await stack.enter_async_context(connected(order))
            except Exception as exc:
                failures += 1
                print(f"{order.asked}: {exc!r}", file=sys.stderr)

    async with asyncio.TaskGroup() as group:
        for _ in range(order.count):
            group.create_task(open_one())
    print(json.dumps({"open": order.count - failures}), flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    sys.stdout.flush()
    raise SystemExit(0)


ACTS = {"calls": calls, "times": times, "items": items, "idle": idle}


def main() -> None:
    order = Order(**json.loads(sys.argv[1]))
    run = asyncio.run if order.asked == "grpc" else uvloop.run  # what is faster for each
    print(json.dumps(run(ACTS[order.act](order))), flush=True)


if __name__ == "__main__":
    main()
