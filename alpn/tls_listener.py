"""TLS on the port: shakes hands with whoever opens with a TLS record, then hands over to the handler of its ALPN."""

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from alknet.alpn.admission import Slot
from alknet.alpn.errors import HandshakeFailed
from alknet.alpn.streams import Address, Connection
from alknet.alpn.tls import accept_tls, server_context
from alknet.certificates import Certificate
from alknet.errors import ConfigError
from alknet.logs import event
from alknet.tasks import Tasks

__all__ = ["DEFAULT_ALPN", "TlsIdentity", "TlsListener"]

log = logging.getLogger("alknet.alpn")

DEFAULT_ALPN: Final = "http/1.1"
"""What a client means that names no ALPN, or none that is served."""


@dataclass(frozen=True, slots=True)
class TlsIdentity:
    """A certificate, made ready to be served."""

    certificate: Certificate
    alpns: tuple[str, ...]
    context: ssl.SSLContext = field(compare=False, repr=False)

    @classmethod
    def of(cls, certificate: Certificate, alpns: Sequence[str]) -> "TlsIdentity":
        """Raises `ConfigError` when OpenSSL refuses the certificate, as it does weak ones."""
        try:
            return cls(certificate, tuple(alpns), server_context(certificate, alpns))
        except ssl.SSLError as exc:
            raise ConfigError(
                f"the TLS certificate cannot be served: {(exc.reason or str(exc)).lower().replace('_', ' ')}",
                hint="give a certificate with a current key and signature in [tls] cert and key",
            ) from exc


class TlsListener:
    """A `Carrier`; `dispatch` gets each connection whose handshake is completed. `identity` may be replaced at any
    time: handshakes that begin afterwards use the new one."""

    def __init__(self, identity: TlsIdentity, dispatch: Callable[[Connection], None]) -> None:
        self.identity = identity
        self._dispatch = dispatch
        self._handshakes = Tasks("tls-handshake")

    def __call__(self, sock: socket.socket, remote: Address, slot: Slot) -> None:
        def ended(handshake: asyncio.Task[None]) -> None:
            if handshake.cancelled():  # perhaps before it ran, so tidying up is not left to it
                sock.close()
                slot.leave()

        self._handshakes.start(self._serve(sock, remote, slot), name=str(remote)).add_done_callback(ended)

    def stop_accepting(self) -> None:
        """Give up every handshake that is under way."""
        self._handshakes.cancel()

    async def _serve(self, sock: socket.socket, remote: Address, slot: Slot) -> None:
        identity = self.identity
        try:
            connection = await accept_tls(
                sock,
                context=identity.context,
                certificate=identity.certificate,
                remote=remote,
                default_alpn=DEFAULT_ALPN,
                on_login=slot.logged_in,
                on_closed=slot.leave,
            )
        except HandshakeFailed as exc:
            slot.leave()
            log.info(event("connection closed", remote_addr=remote.host, opening="tls", reason=exc))
        except BaseException:
            slot.leave()
            raise
        else:
            try:
                self._dispatch(connection)
            except BaseException:
                connection.close()
                raise
