"""The clients of `quic.py`: each run is one process that does one thing, prints what came of it as JSON, and ends.

``python quic_client.py JSON`` where the JSON is an `Order`. The carriers are ``quic``, ``tls`` and ``tcp`` (alknet's
own client to a node; it does not dial plain TCP, so that is dialed here) and ``bare`` (aioquic alone). What is timed
begins when the process has everything imported, and a transfer when its connection is there. A transfer can also go
over ``carrier``: alknet's QUIC without SSH.
"""

import asyncio
import json
import resource
import socket
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvloop
from bare_aioquic import ALPN as BARE_ALPN
from bare_aioquic import dial_bare
from bare_carrier import transfer as carrier_transfer

import alknet.alpn.quic_dial  # noqa: F401 - so that no handshake waits for it
from alknet.alpn.dial import Dialed, dial
from alknet.alpn.streams import Address
from alknet.alpn.tcp import TcpConnection
from alknet.keys import PublicKey
from alknet.ssh import client
from alknet.ssh.client import ClientSession, SessionOptions, Target
from alknet.ssh.handler import ALPN
from alknet.ssh.trust import HostTrust

__all__ = ["Order"]

HOST = "127.0.0.1"
PIECE = bytes(64 * 1024)
TOGETHER = 16
"""Idle connections that are opened at a time."""
WARM_UP = 5
"""Handshakes of each kind that are not counted."""


@dataclass(frozen=True, slots=True)
class Order:
    """What to do: ``transfer`` (`count` bytes in `direction`), ``times`` (`count` handshakes and logins of each kind)
    or ``idle`` (hold `count` connections until stdin ends)."""

    act: str
    port: int
    bare_port: int
    user: str
    key: str
    host_key: str
    carrier: str = ""
    direction: str = ""
    count: int = 0
    login: bool = False

    def target(self) -> Target:
        trust = HostTrust(pin=PublicKey.parse(self.host_key))
        return Target(((HOST, self.port),), self.user, Path(self.key), trust, "the node")


async def reach(addresses: Any, *, alpn: str, carriers: Any, **options: Any) -> Dialed:
    """`dial`, which also knows plain TCP."""
    if carriers != ("tcp",):
        return await dial(addresses, alpn=alpn, carriers=carriers, **options)
    host, port = addresses[0]
    sock = socket.socket()
    sock.setblocking(False)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    await asyncio.get_running_loop().sock_connect(sock, (host, port))
    return Dialed(TcpConnection(sock, alpn=alpn, remote=Address(host, port)), host, port)


client.dial = reach


@asynccontextmanager
async def connected(order: Order, carrier: str, *, login: bool) -> AsyncIterator[Any]:
    """A connection over `carrier`: the bare client, the carrier's connection, or with `login` asyncssh's."""
    target = order.target()
    if carrier == "bare":
        async with dial_bare(order.bare_port) as bare:
            yield bare
    elif carrier == "carrier":
        dialed = await dial(((HOST, order.bare_port),), alpn=BARE_ALPN, carriers=("quic",))
        yield dialed.connection
        dialed.connection.close()
    elif login:
        async with client.connect(target, carriers=(carrier,)) as link:
            yield link.ssh
    else:
        connection = (await reach(target.addresses, alpn=ALPN, carriers=(carrier,))).connection
        yield connection
        connection.close()


# --- a transfer -------------------------------------------------------------------------------------------------


async def transfer(order: Order) -> dict[str, float]:
    """Seconds and this process's processor time for `count` bytes on a connection that is there."""
    async with connected(order, order.carrier, login=True) as connection:
        before, began = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
        if order.carrier == "bare":
            await connection.transfer(order.direction, order.count)
        elif order.carrier == "carrier":
            await carrier_transfer(await connection.open_stream(), order.direction, order.count)
        else:
            await _through_session(connection, order)
        took_s = time.perf_counter() - began
        after = resource.getrusage(resource.RUSAGE_SELF)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"took_s": took_s, "cpu_s": cpu_s}


async def _through_session(connection: Any, order: Order) -> None:
    session, received = ClientSession(), 0

    def count(data: bytes, is_stderr: bool) -> bool:
        nonlocal received
        received += len(data)
        return True

    session.on_data = count
    may_write = asyncio.Event()
    may_write.set()
    session.on_pause = lambda paused: may_write.clear() if paused else may_write.set()
    command = f"head -c {order.count} /dev/zero" if order.direction == "down" else "wc -c"
    channel = await ClientSession.start(connection, session, SessionOptions(command))
    if order.direction == "up":
        unsent = order.count
        while unsent:
            size = min(unsent, len(PIECE))
            channel.write(PIECE[:size])
            unsent -= size
            await may_write.wait()
        channel.write_eof()
    await session.ended.wait()
    if session.exit_status != 0 or (order.direction == "down" and received != order.count):
        raise RuntimeError(f"the command ended with {session.exit_status} after {received} bytes")


# --- handshakes -------------------------------------------------------------------------------------------------

KINDS = (("bare", False), ("quic", False), ("tls", False), ("quic", True), ("tls", True), ("tcp", True))
"""(carrier, whether with a login), in the order of a round."""


async def times(order: Order) -> dict[str, list[float]]:
    """Milliseconds until the handshake is completed, or the login, of every kind in turn."""
    taken: dict[str, list[float]] = {}
    for number in range(WARM_UP + order.count):
        for carrier, login in KINDS:
            began = time.perf_counter()
            async with connected(order, carrier, login=login):
                took_s = time.perf_counter() - began
            if number >= WARM_UP:
                taken.setdefault(f"{carrier} login" if login else carrier, []).append(took_s * 1e3)
    return taken


# --- idle connections -------------------------------------------------------------------------------------------


async def idle(order: Order) -> dict[str, int]:
    """Open the connections, say so, hold them until stdin ends, and leave without a word."""
    stack, places, failures = AsyncExitStack(), asyncio.Semaphore(TOGETHER), 0

    async def open_one() -> None:
        nonlocal failures
        async with places:
            try:
                await stack.enter_async_context(connected(order, order.carrier, login=order.login))
            except Exception as exc:
                failures += 1
                print(f"{order.carrier}: {exc!r}", file=sys.stderr)

    async with asyncio.TaskGroup() as group:
        for _ in range(order.count):
            group.create_task(open_one())
    print(json.dumps({"open": order.count - failures}), flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    sys.stdout.flush()
    raise SystemExit(0)


ACTS = {"transfer": transfer, "times": times, "idle": idle}


def main() -> None:
    order = Order(**json.loads(sys.argv[1]))
    print(json.dumps(uvloop.run(ACTS[order.act](order))), flush=True)


if __name__ == "__main__":
    main()
