"""``proxy``: the peer's SSH door on stdin and stdout, for stock ssh, scp, sftp, rsync and git."""

import asyncio
import signal
from typing import Final, cast

import click

from alknet.cli.app import Invocation, pass_invocation
from alknet.cli.client import CANNOT_CONNECT, carrier_options, reporter, run_async
from alknet.destination import find_destination
from alknet.errors import AlknetError

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

    The SSH client behind it checks the host key; nothing is checked here.
    """
    try:
        addresses = find_destination(invocation.home, peer).addresses
        run_async(lambda: _carry(addresses, carriers, verbose))
    except AlknetError as exc:
        if exc.exit_code not in (2, 6, 7):
            exc.exit_code = CANNOT_CONNECT
        raise
    return 0


async def _carry(addresses: tuple[tuple[str, int], ...], carriers: tuple[str, ...], verbose: bool) -> None:
    from alknet.alpn.dial import dial, first_stream
    from alknet.ssh.handler import ALPN

    connection = (await dial(addresses, alpn=ALPN, carriers=carriers, report=reporter(verbose))).connection
    try:
        stream = await first_stream(connection)
        pump = _Pump()
        await stream.attach(pump)
        for number in (signal.SIGHUP, signal.SIGTERM):  # ssh's way to say that it is done
            asyncio.get_running_loop().add_signal_handler(number, pump.finish)
        await pump.wait_ended()
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
