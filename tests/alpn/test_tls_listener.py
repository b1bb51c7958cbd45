"""TLS on the port: every handshake that fails leaves its place, and a new certificate disturbs nobody."""

import asyncio
import contextlib
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from alknet.access import Identity
from alknet.alpn.admission import Admission, AdmissionLimits, Slot
from alknet.alpn.errors import HandshakeFailed
from alknet.alpn.streams import Address, Connection
from alknet.alpn.tls import TlsConnection, dial_tls
from alknet.alpn.tls_listener import DEFAULT_ALPN, TlsIdentity, TlsListener
from alknet.certificates import Certificate, make_certificate, read_certificate
from alknet.errors import ConfigError
from testkit.polling import eventually, settled

ALICE = Identity("alice", frozenset(), "key:SHA256:alice")
SOON_S = 0.05


@cache
def identity(number: int) -> TlsIdentity:
    return TlsIdentity.of(make_certificate((f"node{number}.example",)), ["test"])


class Door:
    """A listener without a port: strangers are brought in by hand."""

    def __init__(self) -> None:
        self.admission = Admission(AdmissionLimits())
        self.dispatched: list[Connection] = []
        self.fails = False
        self.listener = TlsListener(identity(0), self._dispatch)
        self.brought_in: list[socket.socket] = []
        self._strangers: list[socket.socket] = []

    def _dispatch(self, connection: Connection) -> None:
        if self.fails:
            raise ValueError("a mistake of whoever takes connections")
        self.dispatched.append(connection)

    def bring_in(self) -> socket.socket:
        """The stranger's socket; the listener has the other."""
        with socket.create_server(("127.0.0.1", 0)) as listening:
            theirs = socket.create_connection(listening.getsockname())
            ours, remote = listening.accept()
        for sock in (ours, theirs):
            sock.setblocking(False)
        slot = self.admission.enter(remote[0], 0.0)
        assert isinstance(slot, Slot)
        self.listener(ours, Address.of(remote), slot)
        self.brought_in.append(ours)
        self._strangers.append(theirs)
        return theirs

    async def is_empty(self) -> None:
        """Wait until nothing is counted, runs or is open any more."""
        await eventually(lambda: (self.admission.open, self.admission.half_open) == (0, 0), "every place is free")
        await eventually(lambda: len(self.listener._handshakes) == 0, "no handshake runs")
        await eventually(lambda: {sock.fileno() for sock in self.brought_in} <= {-1}, "every socket is closed")

    def close(self) -> None:
        for connection in self.dispatched:
            connection.close()
        for sock in self._strangers:
            sock.close()


@asynccontextmanager
async def door() -> AsyncIterator[Door]:
    """Whatever is brought in must be gone in the end, and nothing may fail unseen."""
    mistakes: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: mistakes.append(context))
    it = Door()
    async with asyncio.timeout(20.0):
        try:
            yield it
        finally:
            it.close()
        await it.is_empty()
    assert mistakes == []


async def dial(sock: socket.socket, alpn: str = "test") -> TlsConnection:
    return await dial_tls(sock, alpn=alpn, server_name=None, remote=Address("127.0.0.1", 1))


async def is_closed(sock: socket.socket) -> bool:
    loop = asyncio.get_running_loop()
    with contextlib.suppress(ConnectionError):
        while await loop.sock_recv(sock, 64 * 1024):
            pass
    return True


# --- handshakes -----------------------------------------------------------------------------------------------


async def test_a_connection_is_handed_over_when_its_handshake_is_completed() -> None:
    async with door() as it:
        sock = it.bring_in()
        assert (it.admission.open, it.admission.half_open) == (1, 1)
        dialer = await dial(sock)
        await eventually(lambda: it.dispatched, "it is handed over")
        (connection,) = it.dispatched
        assert (connection.alpn, connection.transport) == ("test", "tls")
        assert connection.channel_binding == dialer.channel_binding
        connection.logged_in(ALICE)
        assert (it.admission.open, it.admission.half_open) == (1, 0)
        stream = await dialer.accept_stream()
        await stream.write(b"question")
        assert await (await connection.accept_stream()).read() == b"question"
        dialer.close()


async def test_who_names_nothing_that_is_served_is_for_the_web() -> None:
    async with door() as it:
        with pytest.raises(HandshakeFailed):
            await dial(it.bring_in(), "unknown")
        await eventually(lambda: it.dispatched or not it.admission.open, "it is handed over, or gone already")
        assert [connection.alpn for connection in it.dispatched] in ([DEFAULT_ALPN], [])


async def test_a_failed_handshake_leaves_its_place_and_a_line_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    async with door() as it:
        for _ in range(3):
            sock = it.bring_in()
            sock.send(b"\x16 is how it begins, and this is no handshake")
            assert await is_closed(sock)
        await it.is_empty()
        assert it.dispatched == []
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 3
    assert lines[0].startswith("connection closed remote_addr=127.0.0.1 opening=tls reason=")


async def test_who_is_too_slow_loses_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("alknet.alpn.tls.HANDSHAKE_TIMEOUT_S", SOON_S)
    async with door() as it:
        strangers = [it.bring_in() for _ in range(5)]
        strangers[0].send(b"\x16\x03\x01\x02\x00\x01")
        assert [await is_closed(sock) for sock in strangers] == [True] * 5


async def test_slow_handshakes_hold_up_nobody() -> None:
    async with door() as it:
        for _ in range(50):
            it.bring_in()
        dialer = await dial(it.bring_in())
        await eventually(lambda: it.dispatched, "it is handed over")
        dialer.close()
        it.listener.stop_accepting()


@pytest.mark.parametrize("turns", range(8))
@pytest.mark.parametrize("speaks", [False, True])
async def test_stopping_ends_every_handshake_however_far_it_is(turns: int, speaks: bool) -> None:
    async with door() as it, asyncio.TaskGroup() as group:
        for _ in range(3):
            sock = it.bring_in()
            if speaks:
                group.create_task(_ignoring(sock))
        for _ in range(turns):  # none: they are stopped before they ever ran
            await asyncio.sleep(0)
        it.listener.stop_accepting()
        it.listener.stop_accepting()
        assert turns > 4 or it.dispatched == []
        await settled(lambda: len(it.dispatched))
        for connection in it.dispatched:
            connection.close()
        await it.is_empty()


async def _ignoring(sock: socket.socket) -> None:
    with contextlib.suppress(HandshakeFailed):
        (await dial(sock)).close()


async def test_whoever_takes_connections_may_fail(caplog: pytest.LogCaptureFixture) -> None:
    async with door() as it:
        it.fails = True
        dialer = await dial(it.bring_in())
        stream = await dialer.accept_stream()
        with pytest.raises(Exception, match="connection was lost"):
            await stream.read()
        await it.is_empty()
        it.fails = False
        (await dial(it.bring_in())).close()
        await eventually(lambda: it.dispatched, "the next one is handed over")
    assert "a mistake of whoever takes connections" in caplog.text


# --- certificates ---------------------------------------------------------------------------------------------


async def test_a_new_certificate_is_for_new_handshakes_and_old_connections_go_on() -> None:
    async with door() as it:
        old = await dial(it.bring_in())
        begun = it.bring_in()
        await asyncio.sleep(0)  # its handshake has begun
        it.listener.identity = identity(1)
        new = await dial(it.bring_in())
        between = await dial(begun)
        await eventually(lambda: len(it.dispatched) == 3, "all are handed over")
        served = [identity(number).certificate.spki_sha256 for number in (0, 1)]
        assert [each.channel_binding and each.channel_binding.value for each in (old, between, new)] == [
            served[0],
            served[0],
            served[1],
        ]
        assert {c.channel_binding for c in it.dispatched} == {old.channel_binding, new.channel_binding}
        stream = await old.accept_stream()
        await stream.write(b"still here")
        assert await (await it.dispatched[0].accept_stream()).read() == b"still here"
        for dialer in (old, between, new):
            dialer.close()


def test_an_identity_is_its_certificate_and_its_alpns() -> None:
    certificate = identity(0).certificate
    assert TlsIdentity.of(certificate, ["test"]) == identity(0)
    assert TlsIdentity.of(certificate, ["other"]) != identity(0)
    assert identity(0) != identity(1)
    assert "PRIVATE" not in repr(identity(0))


def with_short_key(folder: Path) -> Certificate:
    key = rsa.generate_private_key(65537, 1024)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "weak")])
    model = identity(0).certificate.leaf
    leaf = (
        x509.CertificateBuilder(issuer_name=name, subject_name=name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(model.not_valid_before_utc)
        .not_valid_after(model.not_valid_after_utc)
        .sign(key, hashes.SHA256())
    )
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return Certificate(leaf.public_bytes(Encoding.PEM), pem, leaf, (), key)


def with_old_signature(folder: Path) -> Certificate:
    """As an authority of twenty years ago signed: with SHA-1."""

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    new_key = ("-newkey", "rsa:2048", "-nodes")
    openssl("req", "-x509", *new_key, "-subj", "/CN=authority", "-keyout", "ca.key", "-out", "ca.pem")
    openssl("req", *new_key, "-subj", "/CN=weak", "-keyout", "key.pem", "-out", "request.pem")
    signing = ("-CA", "ca.pem", "-CAkey", "ca.key", "-set_serial", "1", "-sha1")
    openssl("x509", "-req", "-in", "request.pem", *signing, "-out", "cert.pem")
    (folder / "key.pem").chmod(0o600)
    return read_certificate(folder / "cert.pem", folder / "key.pem")


@pytest.mark.parametrize(
    ("make", "reason"), [(with_short_key, "ee key too small"), (with_old_signature, "ca md too weak")]
)
def test_a_weak_certificate_is_refused_before_it_is_served(make: Any, reason: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"the TLS certificate cannot be served: {reason}") as caught:
        TlsIdentity.of(make(tmp_path), ["test"])
    assert "[tls]" in caught.value.hint
    assert isinstance(caught.value.__cause__, ssl.SSLError)
