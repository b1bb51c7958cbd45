"""TLS handshakes: who is let in, which handler it is for, what binds it, and that a failure leaves nothing open."""

import asyncio
import contextlib
import hashlib
import socket
import ssl
import struct
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from alknet.access import Identity
from alknet.alpn import tls
from alknet.alpn.errors import AlpnRefused, HandshakeFailed
from alknet.alpn.streams import Address
from alknet.alpn.tls import TlsConnection, accept_tls, client_context, dial_tls, server_context
from alknet.certificates import Certificate, make_certificate, spki_sha256
from alknet.errors import InvalidInputError
from alknet.verification import verify_server
from testkit.authority import Authority
from testkit.polling import eventually

NOWHERE = Address("192.0.2.1", 1)
SOON_S = 0.05


@cache
def certificate(number: int = 0) -> Certificate:
    return make_certificate((f"node{number}.example",))


def sockets() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        near = socket.create_connection(listening.getsockname())
        far, _ = listening.accept()
    for sock in (near, far):
        sock.setblocking(False)
    return near, far


@asynccontextmanager
async def stranger() -> AsyncIterator[tuple[socket.socket, socket.socket]]:
    """A socket for the code under test, and its peer, which must see the end of it. Nothing may fail unseen."""
    mistakes: list[dict[str, Any]] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: mistakes.append(context))
    ours, theirs = sockets()
    async with asyncio.timeout(20.0):
        with theirs:
            yield ours, theirs
            with contextlib.suppress(ConnectionError):
                while await loop.sock_recv(theirs, 64 * 1024):
                    pass
    await eventually(lambda: ours.fileno() < 0, "the socket is closed")
    assert mistakes == []


async def accept(sock: socket.socket, alpns: tuple[str, ...] = ("test",), **told: Callable[[], None]) -> TlsConnection:
    return await accept_tls(
        sock,
        context=server_context(certificate(), alpns),
        certificate=certificate(),
        remote=NOWHERE,
        default_alpn="http/1.1",
        **told,
    )


async def dial(sock: socket.socket, alpn: str = "test", server_name: str | None = None) -> TlsConnection:
    return await dial_tls(sock, alpn=alpn, server_name=server_name, remote=NOWHERE)


async def over_openssl(sock: socket.socket, context: ssl.SSLContext, *, server: bool) -> ssl.SSLObject:
    """The handshake of OpenSSL's own end."""
    arriving, leaving = ssl.MemoryBIO(), ssl.MemoryBIO()
    session = context.wrap_bio(arriving, leaving, server_side=server)
    loop = asyncio.get_running_loop()
    while True:
        try:
            session.do_handshake()
            return session
        except ssl.SSLWantReadError:
            await loop.sock_sendall(sock, leaving.read())
            if not (data := await loop.sock_recv(sock, 64 * 1024)):
                raise ConnectionResetError("the connection was closed") from None
            arriving.write(data)
        finally:
            await loop.sock_sendall(sock, leaving.read())


# --- which handler it is for ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("offered", "served", "chosen"),
    [
        (["test"], ("test", "other"), "test"),
        (["other", "test"], ("test", "other"), "test"),  # the listener's order counts
        (["unknown", "other"], ("test", "other"), "other"),
        (["unknown"], ("test",), "http/1.1"),
        ([], ("test",), "http/1.1"),
    ],
)
async def test_the_listener_chooses_an_alpn_or_takes_the_default(
    offered: list[str], served: tuple[str, ...], chosen: str
) -> None:
    context = client_context("test")
    context.set_alpn_protocols(offered)
    async with stranger() as (ours, theirs):
        connection, session = await asyncio.gather(accept(ours, served), over_openssl(theirs, context, server=False))
        assert connection.alpn == chosen
        assert session.selected_alpn_protocol() == (chosen if chosen != "http/1.1" else None)
        assert session.version() == "TLSv1.3"
        connection.close()


@pytest.mark.parametrize("served", [["other"], []])
async def test_a_dialer_refuses_what_does_not_serve_its_alpn_and_says_nothing(served: list[str]) -> None:
    context = server_context(certificate(), served or ["x"])
    async with stranger() as (ours, theirs):
        session = None

        async def serve() -> bytes:
            nonlocal session
            session = await over_openssl(theirs, context, server=True)
            return await asyncio.get_running_loop().sock_recv(theirs, 1000)

        listener = asyncio.gather(serve(), return_exceptions=True)
        with pytest.raises(AlpnRefused, match="does not serve test"):
            await dial(ours)
        (left,) = await listener
        assert left == b"" or isinstance(left, ConnectionError), "not one byte after the handshake"


async def test_a_listener_hears_nothing_of_a_dialer_that_wants_something_else() -> None:
    near, far = sockets()
    dialed, accepted = await asyncio.gather(dial(near, "elsewhere"), accept(far, ("test",)), return_exceptions=True)
    assert isinstance(dialed, AlpnRefused)
    if isinstance(accepted, TlsConnection):  # its handshake was completed before the dialer was gone
        assert accepted.alpn == "http/1.1"
        stream = await accepted.accept_stream()
        with pytest.raises(Exception, match="connection was lost"):
            await stream.read()
        accepted.close()
    else:
        assert isinstance(accepted, HandshakeFailed)
    await eventually(lambda: near.fileno() == far.fileno() == -1, "both sockets are closed")


# --- who is let in --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("server", [False, True], ids=["client", "server"])
async def test_tls_1_2_is_refused(server: bool) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
    if server:
        context = server_context(certificate(), ["test"])
        context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    async with stranger() as (ours, theirs):
        theirs_fails = asyncio.gather(over_openssl(theirs, context, server=server), return_exceptions=True)
        with pytest.raises(HandshakeFailed, match=r"the TLS handshake failed: .*protocol"):
            await (dial(ours) if server else accept(ours))
        (error,) = await theirs_fails
        assert isinstance(error, OSError)
        if not server:
            assert "protocol" in str(error).lower(), "the client is told why"


@pytest.mark.parametrize(
    "says", [b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x00\x05hello", b"\x15\x03\x03\x00\x02\x02\x28"]
)
@pytest.mark.parametrize("dials", [False, True], ids=["listener", "dialer"])
async def test_something_else_than_a_handshake_is_refused(says: bytes, dials: bool) -> None:
    async with stranger() as (ours, theirs):
        theirs.send(says)
        with pytest.raises(HandshakeFailed, match="the TLS handshake failed: "):
            await (dial(ours) if dials else accept(ours))


@pytest.mark.parametrize("says", [b"", b"\x16", b"\x16\x03\x01\x02\x00\x01"])
@pytest.mark.parametrize("reset", [False, True], ids=["fin", "rst"])
async def test_who_leaves_during_the_handshake_is_forgotten(says: bytes, reset: bool) -> None:
    ours, theirs = sockets()
    theirs.send(says)
    if reset:
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    theirs.close()
    with pytest.raises(HandshakeFailed, match="the TLS handshake failed: "):
        await accept(ours)
    await eventually(lambda: ours.fileno() < 0, "the socket is closed")


@pytest.mark.parametrize("says", [b"", b"\x16\x03\x01\x02\x00\x01"])
@pytest.mark.parametrize("dials", [False, True], ids=["listener", "dialer"])
async def test_a_handshake_has_its_time(says: bytes, dials: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("alknet.alpn.tls.HANDSHAKE_TIMEOUT_S", SOON_S)
    async with stranger() as (ours, theirs):
        theirs.send(says)
        with pytest.raises(HandshakeFailed, match=r"no TLS handshake within 0\.05 s"):
            await (dial(ours) if dials else accept(ours))


@pytest.mark.parametrize("turns", range(8))
@pytest.mark.parametrize("dials", [False, True], ids=["listener", "dialer"])
@pytest.mark.parametrize("speaks", [False, True])
async def test_a_cancelled_handshake_leaves_nothing_open(turns: int, dials: bool, speaks: bool) -> None:
    async with stranger() as (ours, theirs), asyncio.TaskGroup() as group:
        if speaks:
            context = server_context(certificate(), ["test"]) if dials else client_context("test")
            group.create_task(_ignoring(over_openssl(theirs, context, server=dials)))
        shaking = group.create_task(dial(ours) if dials else accept(ours))
        await asyncio.sleep(0)  # it owns the socket once it runs
        for _ in range(turns):
            await asyncio.sleep(0)
        shaking.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            (await shaking).close()


async def _ignoring(shaking: Any) -> None:
    with contextlib.suppress(OSError):
        await shaking


@pytest.mark.parametrize("server_name", ["", ".example", "a\0b"])
async def test_a_name_that_is_none_leaves_nothing_open(server_name: str) -> None:
    async with stranger() as (ours, _):
        with pytest.raises((ValueError, TypeError)):
            await dial(ours, server_name=server_name)


# --- what binds it --------------------------------------------------------------------------------------------


async def both_ends(served: Certificate) -> tuple[TlsConnection, TlsConnection]:
    near, far = sockets()
    context = server_context(served, ["test"])
    return await asyncio.gather(
        dial(near), accept_tls(far, context=context, certificate=served, remote=NOWHERE, default_alpn="x")
    )


async def test_both_ends_are_bound_to_the_key_that_was_served() -> None:
    bindings = []
    for number in (0, 1):
        dialer, listener = await both_ends(certificate(number))
        assert dialer.channel_binding == listener.channel_binding
        assert dialer.channel_binding is not None
        assert dialer.channel_binding.kind == "tls-spki"
        key = certificate(number).leaf.public_key()
        spki = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        assert dialer.channel_binding.value == hashlib.sha256(spki).digest()
        bindings.append(dialer.channel_binding)
        dialer.close()
        listener.close()
        await asyncio.gather(dialer.wait_closed(), listener.wait_closed())
    assert bindings[0] != bindings[1]


async def test_the_dialer_has_what_the_listener_showed(tmp_path: Path) -> None:
    root = Authority.make()
    served = Authority.make("Test Low", above=Authority.make("Test Middle", above=root)).issue(tmp_path, "node.example")
    dialer, listener = await both_ends(served)
    chain = tuple(each.public_bytes(Encoding.DER) for each in (served.leaf, *served.issuers))
    assert len(chain) == 3
    assert (dialer.peer_certificates, listener.peer_certificates) == (chain, ())
    assert dialer.channel_binding is not None
    assert spki_sha256(dialer.peer_certificates[0]) == dialer.channel_binding.value
    verify_server(dialer.peer_certificates, "node.example", now=time.time(), authorities=root.pem)
    dialer.close()
    listener.close()
    await asyncio.gather(dialer.wait_closed(), listener.wait_closed())


class Session:
    """An ``SSLObject`` of some version of Python, that has seen the certificates a, b and c."""

    def getpeercert(self, *, binary_form: bool) -> bytes:
        assert binary_form
        return b"a"


class Session13(Session):
    def __init__(self, *chain: bytes) -> None:
        self.get_unverified_chain = lambda: list(chain)


class Session11(Session):
    def __init__(self, chain: list[Any] | None) -> None:
        self._sslobj = SimpleNamespace(get_unverified_chain=lambda: chain)


def shown(name: bytes) -> Any:
    return SimpleNamespace(public_bytes=lambda form: {2: name}[form])


@pytest.mark.parametrize(
    ("session", "expected"),
    [
        (Session13(b"a", b"b", b"c"), (b"a", b"b", b"c")),
        (Session13(), (b"a",)),
        (Session11([shown(b"a"), shown(b"b"), shown(b"c")]), (b"a", b"b", b"c")),
        (Session11(None), (b"a",)),
        (Session(), (b"a",)),
    ],
    ids=["3.13", "3.13-empty", "3.11", "3.11-none", "other"],
)
def test_what_was_shown_is_had_from_each_version_of_python(session: Any, expected: tuple[bytes, ...]) -> None:
    assert tls._shown_by(session) == expected


async def test_a_certificate_that_cannot_be_read_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(der: bytes) -> bytes:
        raise InvalidInputError("is not a certificate with a known kind of key")

    monkeypatch.setattr("alknet.alpn.tls.spki_sha256", fail)
    async with stranger() as (ours, theirs), asyncio.TaskGroup() as group:
        group.create_task(_ignoring(over_openssl(theirs, server_context(certificate(), ["test"]), server=True)))
        with pytest.raises(HandshakeFailed, match="is not a certificate"):
            await dial(ours)


@pytest.mark.parametrize(("server_name", "sent"), [("node.example", "node.example"), (None, None), ("192.0.2.1", None)])
async def test_a_name_is_asked_for_and_an_address_is_not(server_name: str | None, sent: str | None) -> None:
    names = []
    context = server_context(certificate(), ["test"])
    context.sni_callback = lambda session, name, _: names.append(name)
    async with stranger() as (ours, theirs):
        connection, _ = await asyncio.gather(
            dial(ours, server_name=server_name), over_openssl(theirs, context, server=True)
        )
        assert names == [sent]
        connection.close()


async def test_nothing_is_resumed() -> None:
    """A ticket would let a session outlive what its peer may do."""
    context = client_context("test")
    async with stranger() as (ours, theirs):
        connection, session = await asyncio.gather(accept(ours), over_openssl(theirs, context, server=False))
        with pytest.raises(ssl.SSLWantReadError):
            session.read(1)
        assert session.session is None or not session.session.has_ticket
        connection.close()


# --- the connection -------------------------------------------------------------------------------------------


async def test_a_login_and_the_end_are_told_once() -> None:
    told: list[str] = []
    near, far = sockets()
    dialer, listener = await asyncio.gather(
        dial(near), accept(far, on_login=lambda: told.append("login"), on_closed=lambda: told.append("closed"))
    )
    listener.logged_in(Identity("alice", frozenset(), "key:SHA256:alice"))
    assert told == ["login"]
    for _ in range(2):
        dialer.close()
        listener.close()
    await asyncio.gather(dialer.wait_closed(), listener.wait_closed())
    assert told == ["login", "closed"]


async def test_the_facts_of_a_connection() -> None:
    near, far = sockets()
    address = Address.of(far.getsockname())
    dialer, listener = await asyncio.gather(dial(near), accept(far))
    assert (listener.transport, listener.alpn, listener.remote, listener.local) == ("tls", "test", NOWHERE, address)
    assert (dialer.transport, dialer.alpn) == ("tls", "test")
    for end in (dialer, listener):
        end.close()
        await end.wait_closed()
