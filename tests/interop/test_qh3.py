"""QUIC against a second implementation: qh3, whose protocol core is written in Rust and not aioquic's."""

import asyncio
import contextlib
import hashlib
import random
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from qh3.asyncio import QuicConnectionProtocol, connect, serve
from qh3.quic.configuration import QuicConfiguration
from qh3.quic.events import ConnectionTerminated, QuicEvent

from alknet.alpn.dial import dial
from alknet.alpn.errors import HandshakeFailed, StreamBroken
from alknet.alpn.quic_connection import QuicConnection
from alknet.alpn.quic_dial import dial_quic
from alknet.alpn.streams import Connection, Stream
from alknet.certificates import make_certificate
from testkit.carriers import ALICE, listening, send_digest
from testkit.node import NodeProcess
from testkit.polling import eventually, settled

pytestmark = pytest.mark.interop

ALPN = "alknet/test"
KIB, MIB = 1024, 1024 * 1024
PAYLOAD = random.Random(3).randbytes(4 * MIB)
DIGEST = hashlib.sha256(PAYLOAD).hexdigest().encode()
STREAMS = 20
NO_APPLICATION_PROTOCOL = 0x178
TIMEOUT_S = 30.0
MOST_UNREAD_BYTES = 2 * MIB
"""What our side lets a stream send that nobody reads, and some."""


class Protocol(QuicConnectionProtocol):
    """qh3's, which remembers why the connection ended."""

    ended: ConnectionTerminated | None = None

    def quic_event_received(self, event: QuicEvent) -> None:
        if isinstance(event, ConnectionTerminated):
            self.ended = event
        super().quic_event_received(event)

    def unsent(self, stream_id: int) -> int:
        return int(self._quic.get_send_buffer_size(stream_id))


@pytest.fixture(autouse=True)
async def deadline() -> AsyncIterator[None]:
    async with asyncio.timeout(TIMEOUT_S):
        yield


def client(port: int, *, alpn: str = ALPN, **options: Any) -> Any:
    """A connection of qh3 to our listener."""
    configuration = QuicConfiguration(alpn_protocols=[alpn], verify_mode=ssl.CERT_NONE, **options)
    return connect("127.0.0.1", port, configuration=configuration, create_protocol=Protocol)


Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def server(answer: Serve, *, alpn: str = ALPN, **options: Any) -> AsyncIterator[tuple[int, list[Protocol]]]:
    """qh3's server for our dialer: its port, and the connections that it has had."""
    certificate = make_certificate(("localhost",))
    configuration = QuicConfiguration(alpn_protocols=[alpn], is_client=False, **options)
    configuration.load_cert_chain(certificate.chain_pem, certificate.key_pem)
    tasks: set[asyncio.Task[None]] = set()
    protocols: list[Protocol] = []

    def begin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async def run() -> None:
            with contextlib.suppress(ConnectionError):
                await answer(reader, writer)

        tasks.add(asyncio.get_running_loop().create_task(run()))

    def protocol(*arguments: Any, **keywords: Any) -> Protocol:
        protocols.append(Protocol(*arguments, **keywords))
        return protocols[-1]

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    running = await serve(
        "127.0.0.1", port, configuration=configuration, create_protocol=protocol, stream_handler=begin
    )
    try:
        yield port, protocols
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        running.close()


async def reach(port: int) -> QuicConnection:
    """Our connection to qh3's server."""
    return await dial_quic(socket.AF_INET, ("127.0.0.1", port), alpn=ALPN, server_name=None)


async def digest_back(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    digest = hashlib.sha256()
    while data := await reader.read(64 * KIB):
        digest.update(data)
    writer.write(digest.hexdigest().encode())
    writer.write_eof()


async def read_all(stream: Stream) -> bytes:
    got = bytearray()
    while data := await stream.read():
        got += data
    return bytes(got)


# --- qh3 dials ---------------------------------------------------------------------------------------------------


async def test_it_reads_a_nodes_ssh_banner(node: NodeProcess) -> None:
    async with client(node.port, alpn="alknet/ssh") as theirs:
        reader, writer = await theirs.create_stream()
        writer.write(b"SSH-2.0-qh3\r\n")
        assert (await reader.readline()).startswith(b"SSH-2.0-")
        writer.close()


async def test_it_is_refused_an_alpn_that_is_not_served(node: NodeProcess) -> None:
    protocols = []

    def protocol(*arguments: Any, **keywords: Any) -> Protocol:
        protocols.append(Protocol(*arguments, **keywords))
        return protocols[0]

    configuration = QuicConfiguration(alpn_protocols=["alknet/nothing"], verify_mode=ssl.CERT_NONE)
    with pytest.raises(ConnectionError):
        async with connect("127.0.0.1", node.port, configuration=configuration, create_protocol=protocol):
            pass
    assert protocols[0].ended is not None
    assert protocols[0].ended.error_code == NO_APPLICATION_PROTOCOL


async def test_many_streams_of_it_arrive_whole() -> None:
    async with listening(send_digest, ALPN) as port, client(port) as theirs:

        async def one(number: int) -> None:
            data = random.Random(number).randbytes(256 * KIB)
            reader, writer = await theirs.create_stream()
            writer.write(data)
            writer.write_eof()
            assert await reader.read() == hashlib.sha256(data).hexdigest().encode()

        await one(0)  # a stranger may have few streams; now it is none
        async with asyncio.TaskGroup() as group:
            for number in range(STREAMS):
                group.create_task(one(number))


@pytest.mark.parametrize("window", [64 * KIB, 6 * MIB])
async def test_much_reaches_it_whatever_its_windows_are(window: int) -> None:
    async def answer(connection: Connection) -> None:
        stream = await connection.accept_stream()
        await stream.read()
        await stream.write(PAYLOAD)
        await stream.aclose()
        await connection.wait_closed()

    async with listening(answer, ALPN) as port, client(port, max_stream_data=window, max_data=2 * window) as theirs:
        reader, writer = await theirs.create_stream()
        writer.write(b"go")
        writer.write_eof()
        assert await reader.read() == PAYLOAD


async def test_it_stops_when_our_handler_does_not_read_and_its_other_streams_go_on() -> None:
    may_read = asyncio.Event()

    async def answer(connection: Connection) -> None:
        connection.logged_in(ALICE)
        first = await connection.accept_stream()
        second = await connection.accept_stream()
        await second.write(hashlib.sha256(await read_all(second)).hexdigest().encode())
        await second.aclose()
        await may_read.wait()
        await first.write(hashlib.sha256(await read_all(first)).hexdigest().encode())
        await first.aclose()
        await connection.wait_closed()

    async with listening(answer, ALPN) as port, client(port) as theirs:
        stalled = await theirs.create_stream()
        stalled[1].write(PAYLOAD)
        stalled[1].write_eof()
        stream_id = stalled[1].get_extra_info("stream_id")
        await settled(lambda: theirs.unsent(stream_id))
        moving = await theirs.create_stream()
        moving[1].write(PAYLOAD)
        moving[1].write_eof()
        assert await moving[0].read() == DIGEST
        assert theirs.unsent(stream_id) > len(PAYLOAD) - MOST_UNREAD_BYTES
        may_read.set()
        assert await stalled[0].read() == DIGEST


async def test_it_hears_our_code_and_reason_and_our_resets() -> None:
    async def answer(connection: Connection) -> None:
        connection.logged_in(ALICE)
        stream = await connection.accept_stream()
        await stream.read()
        stream.reset()
        await (await connection.accept_stream()).read()
        connection.close(7, "that is enough")

    async with listening(answer, ALPN) as port, client(port) as theirs:
        reader, writer = await theirs.create_stream()
        writer.write(b"x")
        writer.write_eof()
        with pytest.raises(ConnectionResetError):
            await reader.read()
        _, writer = await theirs.create_stream()
        writer.write(b"x")
        writer.write_eof()
        await eventually(lambda: theirs.ended, "it is told")
        assert (theirs.ended.error_code, theirs.ended.reason_phrase) == (7, "that is enough")


async def test_we_hear_its_code_and_reason_and_its_resets() -> None:
    heard: list[Any] = []

    async def answer(connection: Connection) -> None:
        assert isinstance(connection, QuicConnection)
        connection.logged_in(ALICE)
        stream = await connection.accept_stream()
        with pytest.raises(StreamBroken):
            await read_all(stream)
        heard.append("reset")
        await connection.wait_closed()
        heard.append(connection.close_reason)

    async with listening(answer, ALPN) as port, client(port) as theirs:
        _, writer = await theirs.create_stream()
        writer.write(b"x")
        theirs.transmit()
        theirs._quic.reset_stream(writer.get_extra_info("stream_id"), 3)
        theirs.transmit()
        writer.close()
        await eventually(lambda: heard == ["reset"], "the reset was heard")
        theirs._quic.close(error_code=9, reason_phrase="enough of that")
        theirs.transmit()
        await eventually(lambda: len(heard) == 2, "the end was heard")
    assert heard[1] == (9, "enough of that")


async def test_its_keys_may_change_at_any_time() -> None:
    async with listening(send_digest, ALPN) as port, client(port) as theirs:
        for _ in range(3):
            reader, writer = await theirs.create_stream()
            writer.write(PAYLOAD[:MIB])
            writer.write_eof()
            assert await reader.read() == hashlib.sha256(PAYLOAD[:MIB]).hexdigest().encode()
            theirs.request_key_update()
            await theirs.ping()


# --- we dial -----------------------------------------------------------------------------------------------------


async def test_we_reach_it_through_the_race() -> None:
    async with server(digest_back) as (port, _):
        connection = (await dial([("127.0.0.1", port)], alpn=ALPN)).connection
        assert (connection.transport, connection.alpn) == ("quic", ALPN)
        assert connection.channel_binding is not None
        connection.close()


async def test_it_refuses_our_alpn() -> None:
    """In its own words: its alert is another one than no_application_protocol, which RFC 9001 asks for."""
    async with server(digest_back, alpn="alknet/other") as (port, _):
        with pytest.raises(HandshakeFailed, match="No common ALPN protocols"):
            await reach(port)


@pytest.mark.parametrize("window", [64 * KIB, 6 * MIB])
async def test_many_of_our_streams_reach_it_whole_whatever_its_windows_are(window: int) -> None:
    async with server(digest_back, max_stream_data=window, max_data=2 * window) as (port, _):
        connection = await reach(port)

        async def one(number: int) -> None:
            data = random.Random(number).randbytes(256 * KIB)
            stream = await connection.open_stream()
            await stream.write(data)
            await stream.write_eof()
            assert await read_all(stream) == hashlib.sha256(data).hexdigest().encode()

        async with asyncio.TaskGroup() as group:
            for number in range(STREAMS):
                group.create_task(one(number))
        connection.close()


async def test_its_server_stops_when_we_do_not_read() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(PAYLOAD)
        writer.write_eof()

    async with server(answer) as (port, protocols):
        connection = await reach(port)
        stalled, moving = await connection.open_stream(), await connection.open_stream()
        await stalled.write(b"x")
        await eventually(lambda: protocols and protocols[0].unsent(0) > 0, "it has begun")
        assert await settled(lambda: protocols[0].unsent(0)) > len(PAYLOAD) - MOST_UNREAD_BYTES
        await moving.write(b"x")
        assert await read_all(moving) == PAYLOAD
        assert protocols[0].unsent(0) > len(PAYLOAD) - MOST_UNREAD_BYTES
        assert await read_all(stalled) == PAYLOAD
        connection.close()


async def test_codes_and_reasons_pass_both_ways() -> None:
    async with server(digest_back) as (port, protocols):
        connection = await reach(port)
        connection.close(11, "we go")
        await eventually(lambda: protocols[0].ended, "it is told")
        ended = protocols[0].ended
        assert ended is not None
        assert (ended.error_code, ended.reason_phrase) == (11, "we go")
        connection = await reach(port)
        await eventually(lambda: len(protocols) == 2, "it has a second connection")
        await (await connection.open_stream()).write(b"x")
        protocols[1]._quic.close(error_code=12, reason_phrase="it goes")
        protocols[1].transmit()
        await connection.wait_closed()
        assert connection.close_reason == (12, "it goes")
