"""A QUIC listener and a dialer as programs, to be put into network namespaces.

``python -m testkit.quic_ends listen HOST PORT`` prints a line when it is ready (its port, if PORT is 0) and
answers each stream with its digest;
``python -m testkit.quic_ends send HOST PORT BYTES STREAMS`` sends random bytes on so many streams at once, compares the
digests and prints the seconds that it took; ``python -m testkit.quic_ends stay HOST PORT`` connects, prints a line and
says nothing more.
"""

import asyncio
import hashlib
import random
import socket
import sys
import time

from alknet.alpn.quic_connection import QuicConnection
from alknet.alpn.quic_dial import dial_quic
from testkit.carriers import listening, send_digest

__all__ = ["ALPN"]

ALPN = "alknet/test"


async def listen(host: str, port: int) -> None:
    async with listening(send_digest, ALPN, hosts=(host,), port=port) as bound:
        print("ready" if port else bound, flush=True)
        await asyncio.Event().wait()


async def send(host: str, port: int, total_bytes: int, streams: int) -> None:
    connection = await dial_quic(socket.AF_INET, (host, port), alpn=ALPN, server_name=None)
    began = time.monotonic()
    # One after the other until the listener has let the stranger in, who may have few.
    await one_stream(connection, 0, 1000)
    async with asyncio.TaskGroup() as group:
        for number in range(streams):
            group.create_task(one_stream(connection, number, total_bytes // streams))
    print(time.monotonic() - began)
    connection.close()


async def stay(host: str, port: int) -> None:
    connection = await dial_quic(socket.AF_INET, (host, port), alpn=ALPN, server_name=None)
    print("ready", flush=True)
    await connection.wait_closed()


async def one_stream(connection: QuicConnection, seed: int, count: int) -> None:
    data = random.Random(seed).randbytes(count)
    stream = await connection.open_stream()
    await stream.write(data)
    await stream.write_eof()
    answer = bytearray()
    while piece := await stream.read():
        answer += piece
    if answer.decode() != hashlib.sha256(data).hexdigest():
        raise SystemExit(f"stream {seed}: other bytes arrived")


if __name__ == "__main__":
    role, host, *numbers = sys.argv[1:]
    asyncio.run({"listen": listen, "send": send, "stay": stay}[role](host, *map(int, numbers)))
