"""TLS 1.3 over TCP as a carrier: one connection, one stream, and an ALPN that says which handler it is for.

Nobody's certificate is checked here. Whoever dials proves, with what it carries (the SSH host key, the hello), whom it
reached; a certificate only binds that proof to the connection (`channel_binding`). What it showed can be looked at
afterwards (`peer_certificates`).
"""

import _ssl
import asyncio
import os
import socket
import ssl
from collections.abc import Callable, Sequence
from typing import Final

from alknet.alpn.errors import AlpnRefused, HandshakeFailed
from alknet.alpn.streams import Address, ChannelBinding
from alknet.alpn.tcp import OneStreamConnection, TcpStream
from alknet.alpn.tls_transport import TlsTransport, reason_of
from alknet.certificates import Certificate, spki_sha256
from alknet.errors import InvalidInputError

__all__ = ["HANDSHAKE_TIMEOUT_S", "TlsConnection", "accept_tls", "client_context", "dial_tls", "server_context"]

HANDSHAKE_TIMEOUT_S: Final = 10.0
"""What a TLS handshake may take, whoever began it."""


def server_context(certificate: Certificate, alpns: Sequence[str]) -> ssl.SSLContext:
    """TLS 1.3 with `certificate`, choosing the first of `alpns` that the client offers."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.num_tickets = 0  # nothing is resumed: each connection proves itself anew
    context.set_alpn_protocols(list(alpns))
    # The ssl module reads certificates from files only; this one is in memory, checked already, and stays as it is.
    fd = os.memfd_create("alknet-tls", os.MFD_CLOEXEC)
    try:
        os.write(fd, certificate.key_pem + b"\n" + certificate.chain_pem)
        context.load_cert_chain(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)
    return context


def client_context(alpn: str) -> ssl.SSLContext:
    """TLS 1.3 asking for `alpn`; the certificate is not checked, see the module."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols([alpn])
    return context


class TlsConnection(OneStreamConnection):
    """A TLS session as a `Connection`; made by `accept_tls` and `dial_tls`."""

    def __init__(
        self,
        layer: "TlsTransport",
        *,
        alpn: str,
        binding: ChannelBinding,
        remote: Address,
        peer_certificates: tuple[bytes, ...] = (),
        on_login: Callable[[], None] | None = None,
        on_closed: Callable[[], None] | None = None,
    ) -> None:
        super().__init__(
            _TlsStream(layer),
            alpn=alpn,
            transport="tls",
            remote=remote,
            local=Address.of(layer.sock.getsockname()),
            on_login=on_login,
            on_closed=on_closed,
        )
        self.channel_binding = binding
        self.peer_certificates = peer_certificates


async def accept_tls(
    sock: socket.socket,
    *,
    context: ssl.SSLContext,
    certificate: Certificate,
    remote: Address,
    default_alpn: str,
    on_login: Callable[[], None] | None = None,
    on_closed: Callable[[], None] | None = None,
) -> TlsConnection:
    """Shake hands as the listener; `default_alpn` is what a client means that offers none that is served.

    Owns `sock`; raises `HandshakeFailed`, with it closed, when there is no session within `HANDSHAKE_TIMEOUT_S`.
    """
    layer = await _shake_hands(sock, context, server_side=True, server_name=None)
    return TlsConnection(
        layer,
        alpn=layer.session.selected_alpn_protocol() or default_alpn,
        binding=ChannelBinding("tls-spki", certificate.spki_sha256),
        remote=remote,
        on_login=on_login,
        on_closed=on_closed,
    )


async def dial_tls(sock: socket.socket, *, alpn: str, server_name: str | None, remote: Address) -> TlsConnection:
    """Shake hands as the dialer on a connected socket, which it owns. Raises `HandshakeFailed`, and `AlpnRefused` when
    the other side does not serve `alpn`; nothing but the handshake was sent then."""
    layer = await _shake_hands(sock, client_context(alpn), server_side=False, server_name=server_name)
    if layer.session.selected_alpn_protocol() != alpn:
        layer.abort()
        raise AlpnRefused(f"it does not serve {alpn}")
    shown = _shown_by(layer.session)
    try:
        binding = ChannelBinding("tls-spki", spki_sha256(shown[0]))
    except InvalidInputError as exc:
        layer.abort()
        raise HandshakeFailed(f"what it showed {exc}") from exc
    return TlsConnection(layer, alpn=alpn, binding=binding, remote=remote, peer_certificates=shown)


def _shown_by(session: ssl.SSLObject) -> tuple[bytes, ...]:
    """The listener's certificate and those that it sent with it, in DER."""
    leaf = session.getpeercert(binary_form=True)
    assert leaf is not None, "a TLS 1.3 server always sends its certificate"
    ask = getattr(session, "get_unverified_chain", None)
    if ask is not None:  # Python 3.13
        return tuple(ask()) or (leaf,)
    ask = getattr(getattr(session, "_sslobj", None), "get_unverified_chain", None)
    if ask is None:
        return (leaf,)
    return tuple(each.public_bytes(_ssl.ENCODING_DER) for each in ask() or ()) or (leaf,)


async def _shake_hands(
    sock: socket.socket, context: ssl.SSLContext, *, server_side: bool, server_name: str | None
) -> "TlsTransport":
    try:
        layer = TlsTransport(sock, context, server_side=server_side, server_name=server_name)
    except BaseException:
        sock.close()
        raise
    try:
        async with asyncio.timeout(HANDSHAKE_TIMEOUT_S):
            await layer.shake_hands()
    except TimeoutError:
        layer.abort()
        raise HandshakeFailed(f"no TLS handshake within {HANDSHAKE_TIMEOUT_S:g} s") from None
    except (OSError, ssl.SSLError) as exc:
        layer.abort()
        raise HandshakeFailed(f"the TLS handshake failed: {reason_of(exc)}") from exc
    except BaseException:
        layer.abort()
        raise
    return layer


class _TlsStream(TcpStream):
    """The stream of a TLS session: what `TcpStream` does, on the layer's transport."""

    def __init__(self, layer: "TlsTransport") -> None:
        super().__init__(layer.sock)
        self._layer = layer

    def watch(self, patience_s: float) -> None:
        super().watch(patience_s)
        self._layer.watch(patience_s)

    async def _connect(self, protocol: asyncio.Protocol) -> asyncio.Transport:
        self._layer.start(protocol)
        return self._layer

    def _drop(self, *, is_cut: bool) -> None:
        if is_cut:
            self._layer.abort()
        else:
            self._layer.close()
