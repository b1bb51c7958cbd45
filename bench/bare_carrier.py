"""alknet's QUIC without SSH: one stream, its bytes read and thrown away, or zeros.

``python bare_carrier.py CERTIFICATE KEY`` listens on a free UDP port of 127.0.0.1, prints that port, and takes wishes
as `bare_aioquic.py` does. What SSH over QUIC needs beyond this is SSH's; what aioquic alone needs beyond this is what
batches of datagrams save.
"""

import asyncio
import sys
from pathlib import Path

import uvloop
from bare_aioquic import ALPN, HEADER_BYTES, HOST, PIECE

from alknet.alpn.admission import Admission, AdmissionLimits
from alknet.alpn.quic_connection import QuicConnection
from alknet.alpn.quic_listener import QuicListener
from alknet.alpn.streams import Stream
from alknet.alpn.tls_listener import TlsIdentity
from alknet.alpn.udp import bind_udp
from alknet.certificates import read_certificate
from alknet.tasks import Tasks

__all__ = ["transfer"]


async def transfer(stream: Stream, direction: str, size: int) -> None:
    """The client's side: move `size` bytes ``down`` or ``up`` and wait until all have arrived."""
    await stream.write(direction[:1].encode() + size.to_bytes(HEADER_BYTES - 1, "big"))
    if direction == "up":
        await _send_zeros(stream, size)
    received = await _count(stream)
    expected = size if direction == "down" else 1
    if received != expected:
        raise RuntimeError(f"{received} bytes came instead of {expected}")


async def _serve(connection: QuicConnection) -> None:
    connection.engine.trust()  # as after a login: the windows of strangers are small
    stream = await connection.accept_stream()
    wish = b""
    while len(wish) < HEADER_BYTES:
        wish += await stream.read(HEADER_BYTES - len(wish))
    if wish[:1] == b"d":
        await _send_zeros(stream, int.from_bytes(wish[1:], "big"))
    else:
        await _count(stream)
        await stream.write(b".")
        await stream.write_eof()


async def _send_zeros(stream: Stream, size: int) -> None:
    while size:
        await stream.write(PIECE[:size])
        size -= min(size, len(PIECE))
    await stream.write_eof()


async def _count(stream: Stream) -> int:
    count = 0
    while data := await stream.read():
        count += len(data)
    return count


async def listen(certificate: str, key: str) -> None:
    """Serve until the process is ended."""
    tasks = Tasks("bare-carrier")
    identity = TlsIdentity.of(read_certificate(Path(certificate), Path(key)), (ALPN,))
    listener = QuicListener(
        Admission(AdmissionLimits()), identity, lambda connection: tasks.start(_serve(connection), name="serve")
    )
    listener.serve(bind_udp(HOST, 0))
    print(listener.addresses[0].port, flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(listen(sys.argv[1], sys.argv[2]))
