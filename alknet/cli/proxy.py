"""``proxy``: the peer's SSH door on stdin and stdout, for stock ssh, scp, sftp, rsync and git."""

import asyncio
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final, cast

import click

from alknet.cli.app import Invocation, pass_invocation
from alknet.cli.client import CANNOT_CONNECT, carrier_options, reporter, run_async
from alknet.destination import Destination, find_destination, private_key
from alknet.errors import AlknetError

if TYPE_CHECKING:
    from alknet.alpn.streams import Stream

__all__ = ["proxy"]

GOODBYE_S: Final = 1.0
"""What passing on the last words may take once ssh has gone."""


@click.command()
@carrier_options
@click.argument("peer")
@pass_invocation
def proxy(invocation: Invocation, carriers: tuple[str, ...], verbose: bool, peer: str) -> int:
    """Connect stdin and stdout with PEER's SSH door, over QUIC or else TLS.

    \b
    ssh -o ProxyCommand='alknet proxy %h' web
    git clone ssh://web/srv/project    # with 'alknet ssh-config' in ~/.ssh/config

    The SSH client behind it checks the host key; nothing is checked here, but the node in between where PEER is reached
    through one.
    """
    try:
        to = find_destination(invocation.home, peer, jump=invocation.jump)
        run_async(lambda: _carry(invocation, to, carriers, reporter(verbose)))
    except AlknetError as exc:
        if exc.exit_code not in (2, 6, 7):
            exc.exit_code = CANNOT_CONNECT
        raise
    return 0


async def _carry(
    invocation: Invocation, to: Destination, carriers: tuple[str, ...], report: Callable[[str], None]
) -> None:
    async with _stream_to(invocation, to, carriers, report) as stream:
        pump = _Pump()
        await stream.attach(pump)
        for number in (signal.SIGHUP, signal.SIGTERM):  # ssh's way to say that it is done
            asyncio.get_running_loop().add_signal_handler(number, pump.finish)
        await pump.wait_ended()


@asynccontextmanager
async def _stream_to(
    invocation: Invocation, to: Destination, carriers: tuple[str, ...], report: Callable[[str], None]
) -> "AsyncIterator[Stream]":
    if to.through is not None:
        from alknet.through import ssh_through

        key = private_key(invocation.home, invocation.identity)
        async with ssh_through(invocation.home, to.through, key)(carriers=carriers, report=report) as (_, stream):
            yield stream
        return
    from alknet.alpn.dial import dial, first_stream
    from alknet.ssh.handler import ALPN

    connection = (await dial(to.addresses, alpn=ALPN, carriers=carriers, report=report)).connection
    try:
        yield await first_stream(connection)
    finally:
        connection.close()


class _Pump(asyncio.Protocol):
    """Between the standard streams and the carrier, with backpressure both ways."""

    def __init__(self) -> None:
        self._ended = asyncio.Event()

    async def wait_ended(self) -> None:
        """Wait until the far side has ended, and everything that it sent is written."""
        await self._ended.wait()
        await self._sink.drain()

    def finish(self) -> None:
        """Nobody will say more: pass on what was said, its end, and wait no longer than `GOODBYE_S`."""
        asyncio.get_running_loop().call_later(GOODBYE_S, self._transport.abort)
        self._source.end_when_empty()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        from alknet.descriptors import open_sink, open_source

        self._transport = transport = cast("asyncio.Transport", transport)  # uvloop's is none by inheritance
        self._sink = open_sink(1, transport.resume_reading)
        self._source = open_source(0, transport.write, transport.write_eof)
        self._source.resume()

    def data_received(self, data: bytes) -> None:
        if not self._sink.write(data):
            self._transport.pause_reading()
        if self._sink.is_gone:
            self._transport.abort()  # nobody reads what comes

    def pause_writing(self) -> None:
        self._source.pause()

    def resume_writing(self) -> None:
        self._source.resume()

    def connection_lost(self, exc: Exception | None) -> None:
        self._source.close()
        self._ended.set()
