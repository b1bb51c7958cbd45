"""The TLS layer against OpenSSL's: what is an end and what a cut, and that no byte is lost or kept too long."""

import asyncio
import contextlib
import errno
import itertools
import random
import socket
import ssl
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alknet.alpn.errors import StreamBroken
from alknet.alpn.streams import Address, Stream
from alknet.alpn.tls import TlsConnection, accept_tls, client_context, dial_tls, server_context
from alknet.alpn.tls_transport import TlsTransport, reason_of
from alknet.certificates import Certificate, make_certificate
from testkit.polling import eventually, settled

from .conformance import Recorder, same

BULK = random.Random(443).randbytes(4 * 1024 * 1024)
RECEIVE_BYTES = 256 * 1024


@cache
def certificate() -> Certificate:
    return make_certificate(("localhost",))


class Peer:
    """OpenSSL at the other end of a socket, one step at a time."""

    def __init__(self, sock: socket.socket, context: ssl.SSLContext, *, server_side: bool) -> None:
        self.sock = sock
        self._arriving, self._leaving = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.session = context.wrap_bio(self._arriving, self._leaving, server_side=server_side)
        self._loop = asyncio.get_running_loop()

    async def shake_hands(self, *, then: bytes = b"", close_notify: bool = False) -> None:
        """What comes `then` goes out in one segment with this side's last word of the handshake."""
        while True:
            try:
                self.session.do_handshake()
                break
            except ssl.SSLWantReadError:
                await self.flush()
                await self._receive()
        if then:
            self.session.write(then)
        if close_notify:
            self.encrypt_close_notify()
        await self.flush()

    def encrypt(self, data: bytes) -> bytes:
        self.session.write(data)
        return self._leaving.read()

    def encrypt_close_notify(self) -> None:
        with contextlib.suppress(ssl.SSLWantReadError):
            self.session.unwrap()

    async def send(self, data: bytes) -> None:
        await self.send_raw(self.encrypt(data))

    async def send_raw(self, data: bytes) -> None:
        await self._loop.sock_sendall(self.sock, data)

    async def close_notify(self) -> None:
        self.encrypt_close_notify()
        await self.flush()

    async def flush(self) -> None:
        await self.send_raw(self._leaving.read())

    async def read_all(self) -> bytes:
        """Until close_notify; `EOFError` when the connection ends without."""
        received = bytearray()
        while True:
            try:
                if not (data := self.session.read(RECEIVE_BYTES)):
                    return bytes(received)
                received += data
            except ssl.SSLWantReadError:
                await self._receive()
            except ssl.SSLZeroReturnError:
                return bytes(received)

    async def _receive(self) -> None:
        if not (data := await self._loop.sock_recv(self.sock, RECEIVE_BYTES)):
            raise EOFError("cut")
        self._arriving.write(data)

    def fin(self) -> None:
        self.sock.shutdown(socket.SHUT_WR)

    def rst(self) -> None:
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()


@asynccontextmanager
async def over_tls(
    *, dials: bool = False, then: bytes = b"", close_notify: bool = False
) -> AsyncIterator[tuple[TlsConnection, Peer]]:
    """Our end of a TLS connection, as the listener or the dialer, and OpenSSL's."""
    mistakes: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: mistakes.append(context))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        theirs = socket.create_connection(listening.getsockname())
        ours, _ = listening.accept()
    for sock in (ours, theirs):
        sock.setblocking(False)
    remote = Address.of(theirs.getsockname())
    served = server_context(certificate(), ["test"])
    peer = Peer(theirs, served if dials else client_context("test"), server_side=dials)
    async with asyncio.timeout(20.0):
        connection, _ = await asyncio.gather(
            dial_tls(ours, alpn="test", server_name=None, remote=remote)
            if dials
            else accept_tls(ours, context=served, certificate=certificate(), remote=remote, default_alpn="http/1.1"),
            peer.shake_hands(then=then, close_notify=close_notify),
        )
        with theirs:
            try:
                yield connection, peer
            finally:
                connection.close()
                await connection.wait_closed()
    assert mistakes == []


async def read_all(stream: Stream) -> bytes:
    received = bytearray()
    while data := await stream.read():
        received += data
    return bytes(received)


def layer_of(connection: TlsConnection) -> TlsTransport:
    layer: TlsTransport = connection._stream._layer  # type: ignore[attr-defined]
    return layer


both_ways = pytest.mark.parametrize("dials", [False, True], ids=["listener", "dialer"])


# --- beginnings -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("close_notify", [False, True])
async def test_what_comes_with_the_last_word_of_the_handshake_is_not_lost(close_notify: bool) -> None:
    async with over_tls(then=BULK[:50_000], close_notify=close_notify) as (connection, peer):
        stream = await connection.accept_stream()
        if not close_notify:
            await peer.close_notify()
        assert same(await read_all(stream), BULK[:50_000])
        await stream.write(b"answer")
        await stream.aclose()
        assert await peer.read_all() == b"answer"


async def test_nothing_is_read_before_somebody_wants_it() -> None:
    async with over_tls() as (connection, peer):
        sending = asyncio.gather(*(peer.send(BULK[:100_000]) for _ in range(200)), return_exceptions=True)
        await settled(lambda: layer_of(connection)._arriving.pending)
        assert not sending.done(), "nothing takes it from the system"
        sending.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await sending
        assert layer_of(connection)._arriving.pending <= RECEIVE_BYTES


# --- ends -----------------------------------------------------------------------------------------------------


@both_ways
async def test_close_notify_ends_one_direction(dials: bool) -> None:
    async with over_tls(dials=dials) as (connection, peer):
        stream = await connection.accept_stream()
        await peer.send(b"question")
        await peer.close_notify()
        assert await read_all(stream) == b"question"
        async with asyncio.TaskGroup() as group:
            answer = group.create_task(peer.read_all())
            await stream.write(BULK)
            await stream.write_eof()
        assert same(answer.result(), BULK)


@both_ways
async def test_our_close_notify_leaves_the_other_side_its_turn(dials: bool) -> None:
    async with over_tls(dials=dials) as (connection, peer):
        stream = await connection.accept_stream()
        await stream.write(b"question")
        await stream.write_eof()
        assert await peer.read_all() == b"question"
        await peer.send(BULK[:100_000])
        await peer.close_notify()
        assert same(await read_all(stream), BULK[:100_000])


async def test_the_end_of_tcp_after_close_notify_is_an_end_all_the_same() -> None:
    async with over_tls() as (connection, peer):
        stream = await connection.accept_stream()
        await peer.send(b"question")
        await peer.close_notify()
        peer.fin()
        assert await read_all(stream) == b"question"
        await stream.write(b"answer")
        await stream.aclose()
        assert await peer.read_all() == b"answer"


@both_ways
@pytest.mark.parametrize("way", ["fin", "rst"])
async def test_an_end_without_close_notify_is_a_cut(dials: bool, way: str) -> None:
    async with over_tls(dials=dials) as (connection, peer):
        stream = await connection.accept_stream()
        await peer.send(b"the first half")
        assert await stream.read() == b"the first half"
        getattr(peer, way)()
        for _ in range(2):
            with pytest.raises(StreamBroken, match="connection was lost"):
                await stream.read()
        await connection.wait_closed()


async def test_what_came_before_a_cut_is_delivered_before_it_is_told() -> None:
    async with over_tls() as (connection, peer):
        await peer.send(BULK[:50_000])
        record = peer.encrypt(b"half a record")
        await peer.send_raw(record[:-1])
        peer.fin()
        protocol = Recorder(keep_open=True)
        await (await connection.accept_stream()).attach(protocol)
        await eventually(lambda: protocol.lost_with, "the cut is told")
        assert same(protocol.data, BULK[:50_000])
        assert protocol.calls == ["made", "lost"], "a cut is no end"
        assert isinstance(protocol.lost_with[0], ConnectionResetError)


async def test_a_cut_is_noticed_when_a_paused_protocol_goes_on() -> None:
    async with over_tls() as (connection, peer):
        protocol = Recorder()
        transport = await (await connection.accept_stream()).attach(protocol)
        transport.pause_reading()
        await peer.send(b"words")
        peer.fin()
        await settled(lambda: len(protocol.calls))
        assert protocol.calls == ["made"]
        transport.resume_reading()
        await eventually(lambda: protocol.lost_with, "the cut is told")
        assert protocol.data == b"words"
        assert isinstance(protocol.lost_with[0], ConnectionResetError)


@pytest.mark.parametrize("garbage", [b"garbage, and more of it", b"\x17\x03\x03\x00\x20" + bytes(32), b"\x16" * 100])
async def test_garbage_breaks_the_stream(garbage: bytes) -> None:
    async with over_tls() as (connection, peer):
        stream = await connection.accept_stream()
        await peer.send(b"words")
        assert await stream.read() == b"words"
        await peer.send_raw(garbage)
        with pytest.raises(StreamBroken, match="the TLS session failed"):
            await stream.read()
        await connection.wait_closed()
        with pytest.raises((EOFError, ConnectionError)):
            await peer.read_all()


async def test_what_comes_after_close_notify_is_not_kept() -> None:
    async with over_tls() as (connection, peer):
        stream = await connection.accept_stream()
        await peer.close_notify()
        assert await stream.read() == b""
        for _ in range(4):
            await peer.send_raw(BULK)  # it goes through, for nothing stops who ended its direction
        assert layer_of(connection)._arriving.pending <= RECEIVE_BYTES
        await stream.write(b"still here")
        await stream.write_eof()
        assert await peer.read_all() == b"still here"


async def test_ending_with_unread_data_keeps_it() -> None:
    """OpenSSL reads while it shuts down; what it finds must not be lost."""
    async with over_tls() as (connection, peer):
        protocol = Recorder(keep_open=True)
        transport = await (await connection.accept_stream()).attach(protocol)
        transport.pause_reading()
        await peer.send(BULK[:100_000])
        half = peer.encrypt(b"the end")
        await peer.send_raw(half[:10])
        await settled(lambda: layer_of(connection)._arriving.pending)
        transport.write_eof()
        assert await peer.read_all() == b""
        await peer.send_raw(half[10:])
        await peer.close_notify()
        transport.resume_reading()
        await eventually(lambda: "eof" in protocol.calls, "the end is told")
        assert same(protocol.data, BULK[:100_000] + b"the end")


async def test_closing_says_close_notify_and_resetting_does_not() -> None:
    for way in ("aclose", "reset"):
        async with over_tls() as (connection, peer):
            stream = await connection.accept_stream()
            await stream.write(b"words")
            if way == "aclose":
                await stream.aclose()
                assert await peer.read_all() == b"words"
            else:
                stream.reset()
                with pytest.raises((EOFError, ConnectionError)):
                    await peer.read_all()


async def test_a_connection_that_is_lost_before_anybody_uses_it_breaks_its_stream() -> None:
    async with over_tls() as (connection, peer):
        peer.rst()
        stream = await connection.accept_stream()
        with pytest.raises(StreamBroken):
            await stream.read()
        await connection.wait_closed()


# --- bytes ----------------------------------------------------------------------------------------------------


@settings(max_examples=30)
@given(cuts=st.lists(st.integers(0, 40_000), max_size=12), sizes=st.lists(st.integers(1, 20_000), max_size=4))
async def test_records_may_arrive_in_any_pieces(cuts: list[int], sizes: list[int]) -> None:
    async with over_tls() as (connection, peer):
        protocol = Recorder(keep_open=True)
        await (await connection.accept_stream()).attach(protocol)
        ciphertext = b"".join(peer.encrypt(BULK[:size]) for size in sizes)
        layer = layer_of(connection)
        bounds = [0, *sorted(cuts), len(ciphertext)]
        for start, end in itertools.pairwise(bounds):
            if ciphertext[start:end]:
                layer.ciphertext_received(ciphertext[start:end])
        await eventually(lambda: len(protocol.data) == sum(sizes), "everything is decrypted")
        assert same(protocol.data, b"".join(BULK[:size] for size in sizes))


@settings(max_examples=60)
@given(garbage=st.lists(st.binary(max_size=300), max_size=5))
async def test_any_bytes_are_an_error_of_the_stream_or_wait_for_more(garbage: list[bytes]) -> None:
    async with over_tls() as (connection, _):
        protocol = Recorder()
        await (await connection.accept_stream()).attach(protocol)
        layer = layer_of(connection)
        for piece in garbage:
            if not layer.is_closing():
                layer.ciphertext_received(piece)
        connection.close()
        await eventually(lambda: protocol.lost_with, "the end is told")
        assert protocol.data == b""
        assert all(exc is None or isinstance(exc, ConnectionResetError) for exc in protocol.lost_with)


async def test_a_big_write_reaches_a_slow_reader_whole() -> None:
    async with over_tls() as (connection, peer):
        protocol = Recorder()
        transport = await (await connection.accept_stream()).attach(protocol)
        transport.write(BULK)
        transport.write(b"the end")
        transport.close()
        assert protocol.calls == ["made", "pause"]
        assert same(await peer.read_all(), BULK + b"the end")
        await eventually(lambda: protocol.lost_with == [None], "closed in order")


# --- as a transport -------------------------------------------------------------------------------------------


async def test_a_protocol_can_be_exchanged() -> None:
    async with over_tls() as (connection, peer):
        first, second = Recorder(), Recorder()
        transport = await (await connection.accept_stream()).attach(first)
        await peer.send(b"one")
        await eventually(lambda: first.data == b"one", "the first gets data")
        transport.set_protocol(second)
        assert transport.get_protocol() is second
        await peer.send(b"two")
        await eventually(lambda: second.data == b"two", "the second gets data")
        assert first.data == b"one"


async def test_the_transport_knows_its_socket() -> None:
    async with over_tls() as (connection, peer):
        transport = await (await connection.accept_stream()).attach(Recorder())
        assert transport.get_extra_info("peername") == peer.sock.getsockname()
        assert transport.get_extra_info("nothing", "default") == "default"


async def test_writing_after_the_own_end_is_a_mistake_and_after_a_close_is_nothing() -> None:
    async with over_tls() as (connection, peer):
        transport = await (await connection.accept_stream()).attach(Recorder())
        transport.write_eof()
        transport.write_eof()
        with pytest.raises(RuntimeError):
            transport.write(b"late")
        transport.close()
        transport.write(b"later")
        assert await peer.read_all() == b""


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"), "Connection reset by peer"),
        (ConnectionResetError("the connection was closed"), "the connection was closed"),
        (OSError(), "the connection was closed"),
    ],
)
def test_a_reason_is_in_words(error: OSError, reason: str) -> None:
    assert reason_of(error) == reason


# --- openssl s_client -----------------------------------------------------------------------------------------


@asynccontextmanager
async def s_client(*arguments: str) -> AsyncIterator[tuple[asyncio.subprocess.Process, Stream]]:
    """The stock client, and the stream that it has reached."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.setblocking(False)
        port = listening.getsockname()[1]
        client = await asyncio.create_subprocess_exec(
            *("openssl", "s_client", "-connect", f"127.0.0.1:{port}", "-alpn", "test", *arguments),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        sock, remote = await asyncio.get_running_loop().sock_accept(listening)
    try:
        context = server_context(certificate(), ["test"])
        connection = await accept_tls(
            sock, context=context, certificate=certificate(), remote=Address.of(remote), default_alpn="http/1.1"
        )
        async with asyncio.timeout(10.0):
            yield client, await connection.accept_stream()
            connection.close()
            await client.communicate()
    finally:
        if client.returncode is None:
            client.kill()
            await client.communicate()


async def test_stock_openssl_ends_in_order() -> None:
    async with s_client("-quiet", "-no_ign_eof") as (client, stream):
        assert client.stdin is not None
        client.stdin.write(b"question\n")
        client.stdin.close()
        assert await read_all(stream) == b"question\n"
        await stream.aclose()
    assert client.returncode == 0


async def test_stock_openssl_sees_our_end() -> None:
    async with s_client("-quiet") as (client, stream):
        assert client.stdout is not None
        await stream.write(b"words")
        await stream.aclose()
        assert (await client.stdout.read()).endswith(b"words")
    assert client.returncode == 0


async def test_stock_openssl_may_change_its_keys_and_ours() -> None:
    async with s_client() as (client, stream):
        assert client.stdin is not None
        assert client.stdout is not None
        for line in (b"before", b"K", b"after", b"K", b"the end"):
            client.stdin.write(line + b"\n")
            if line == b"K":
                await client.stdout.readuntil(b"KEYUPDATE")
            else:
                assert await stream.read() == line + b"\n"
                await stream.write(line.upper())
                await client.stdout.readuntil(line.upper())
