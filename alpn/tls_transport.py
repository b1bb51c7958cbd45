"""A TLS 1.3 session on a socket, as an asyncio transport that can half-close.

The record layer is OpenSSL's (`ssl.SSLObject`); the transport around it is ours, because asyncio's own answers the
other side's close_notify by closing. Here close_notify ends one direction, as TLS 1.3 means it (RFC 8446 section 6.1),
and a connection that ends without it was cut, which the protocol hears as a lost connection.
"""

import asyncio
import contextlib
import socket
import ssl
from functools import partial
from typing import Any, Final, cast

from alknet.alpn.tcp_watch import TcpWatch

__all__ = ["TlsTransport", "reason_of"]

READ_BYTES: Final = 256 * 1024
"""More than one receive brings; a read returns one record at a time, 16 KiB at most."""


def reason_of(exc: OSError) -> str:
    """Why a session failed, in OpenSSL's or the system's words."""
    if isinstance(exc, ssl.SSLError) and exc.reason:
        return exc.reason.lower().replace("_", " ")
    return exc.strerror or str(exc) or "the connection was closed"


class TlsTransport(asyncio.Transport):
    """The TLS session on a socket, and the transport that the protocol above it sees."""

    def __init__(
        self, sock: socket.socket, context: ssl.SSLContext, *, server_side: bool, server_name: str | None
    ) -> None:
        super().__init__()
        self.sock = sock
        self._arriving = ssl.MemoryBIO()
        self._leaving = ssl.MemoryBIO()
        self.session = context.wrap_bio(
            self._arriving, self._leaving, server_side=server_side, server_hostname=server_name
        )
        self._loop = asyncio.get_running_loop()
        self._raw: asyncio.Transport | None = None
        self._shaken: asyncio.Future[None] | None = None
        self._protocol: asyncio.Protocol | None = None
        self._plain = bytearray()
        """Decrypted before it could be delivered."""
        self._is_paused = True
        self._is_closing = False
        self._is_lost = False
        self._eof_sent = False
        self._eof_received = False
        """The other side's close_notify was read; `_eof_delivered` says whether the protocol has heard of it."""
        self._eof_delivered = False
        self._is_cut = False
        """TCP has ended; whether that was a cut is known when everything that arrived is decrypted."""
        self._failure: Exception | None = None
        """Why this side gave up, where it was the one to see that the session is over."""
        self._watch: TcpWatch | None = None

    # --- the handshake ----------------------------------------------------------------------------------------

    async def shake_hands(self) -> None:
        """Raises `OSError` (`ssl.SSLError` is one)."""
        self._shaken = self._loop.create_future()
        self._shaken.add_done_callback(_heard)
        await self._loop.connect_accepted_socket(lambda: _Below(self), self.sock)
        self._try_handshake()
        await self._shaken
        assert self._raw is not None
        self._raw.pause_reading()  # until somebody wants to read

    def _try_handshake(self) -> None:
        assert self._shaken is not None
        if self._shaken.done():
            return  # what came first has completed it already
        try:
            self.session.do_handshake()
        except ssl.SSLWantReadError:
            self._flush()
        except ssl.SSLError as exc:
            self._flush()  # the alert that says why
            self._fail_handshake(exc)
        else:
            self._flush()
            if not self._shaken.done():
                self._shaken.set_result(None)

    def _fail_handshake(self, exc: OSError) -> None:
        assert self._shaken is not None
        if not self._shaken.done():
            self._shaken.set_exception(exc)

    def start(self, protocol: asyncio.Protocol) -> None:
        """Hand the session to `protocol`."""
        self._protocol = protocol
        protocol.connection_made(self)
        if self._is_lost:
            self._loop.call_soon(protocol.connection_lost, self._failure)
        else:
            self._loop.call_soon(self.resume_reading)

    def watch(self, patience_s: float) -> None:
        """Fail when the other machine has not answered for so long."""
        self._stop_watching()
        if not self._is_lost:
            lost = ConnectionResetError(f"nothing was heard for {patience_s:g} s")
            self._watch = TcpWatch(self.sock, patience_s, partial(self._fail, lost))

    def _stop_watching(self) -> None:
        if self._watch is not None:
            self._watch.stop()
            self._watch = None

    # --- from below -------------------------------------------------------------------------------------------

    def raw_made(self, transport: asyncio.Transport) -> None:
        self._raw = transport

    def ciphertext_received(self, data: bytes) -> None:
        if self._eof_received:
            return  # nothing counts after close_notify (RFC 8446 section 6.1), and kept it would only grow
        self._arriving.write(data)
        if self._shaken is not None and not self._shaken.done():
            self._try_handshake()
        else:
            self._deliver()

    def raw_eof_received(self) -> None:
        if self._shaken is not None and not self._shaken.done():
            self._fail_handshake(ConnectionResetError("the connection was closed"))
        else:
            self._is_cut = True
            self._deliver()

    def raw_lost(self, exc: Exception | None) -> None:
        self._is_lost = self._is_closing = True
        self._stop_watching()
        if self._shaken is not None and not self._shaken.done():
            self._fail_handshake(ConnectionResetError(str(exc or "the connection was closed")))
        if self._protocol is not None:
            self._protocol.connection_lost(self._failure or exc)

    def raw_writing_paused(self, is_paused: bool) -> None:
        if self._protocol is not None and not self._is_lost:
            if is_paused:
                self._protocol.pause_writing()
            else:
                self._protocol.resume_writing()

    # --- decrypting -------------------------------------------------------------------------------------------

    def _deliver(self) -> None:
        """Give the protocol what has arrived, as far as it wants it."""
        assert self._raw is not None
        while not self._is_paused and not self._is_closing and self._protocol is not None:
            if not self._plain and not self._eof_received:
                self._decrypt()
            if self._plain:
                data, self._plain = bytes(self._plain), bytearray()
                self._protocol.data_received(data)
            elif self._eof_received and not self._eof_delivered:
                self._eof_delivered = True
                if not self._protocol.eof_received():
                    self.close()
            else:
                if self._is_cut and not self._eof_received:
                    self._fail(ConnectionResetError("the connection was cut: no close_notify came"))
                return

    def _decrypt(self) -> None:
        """Take every whole record that has arrived into `_plain`."""
        try:
            while data := self.session.read(READ_BYTES):
                self._plain += data
        except ssl.SSLWantReadError:
            if self._leaving.pending:
                self._flush()  # a key update is answered
            return
        except ssl.SSLZeroReturnError:
            pass
        except ssl.SSLError as exc:
            self._fail(ConnectionResetError(f"the TLS session failed: {reason_of(exc)}"))
            return
        self._eof_received = True

    def _fail(self, exc: Exception) -> None:
        self._failure = exc
        self.abort()

    # --- the transport ----------------------------------------------------------------------------------------

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default if self._raw is None else self._raw.get_extra_info(name, default)

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        assert isinstance(protocol, asyncio.Protocol)
        self._protocol = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        assert self._protocol is not None
        return self._protocol

    def is_closing(self) -> bool:
        return self._is_closing

    def is_reading(self) -> bool:
        return not self._is_paused and not self._is_closing

    def pause_reading(self) -> None:
        if not self._is_paused and not self._is_closing:
            self._is_paused = True
            assert self._raw is not None
            self._raw.pause_reading()

    def resume_reading(self) -> None:
        if self._is_paused and not self._is_closing:
            self._is_paused = False
            assert self._raw is not None
            self._raw.resume_reading()
            self._loop.call_soon(self._deliver)

    def get_write_buffer_size(self) -> int:
        return 0 if self._raw is None else self._raw.get_write_buffer_size()

    def get_write_buffer_limits(self) -> tuple[int, int]:
        assert self._raw is not None
        return self._raw.get_write_buffer_limits()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        assert self._raw is not None
        self._raw.set_write_buffer_limits(high, low)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self._eof_sent:
            if self._is_closing:
                return
            raise RuntimeError("cannot write after write_eof")
        if self._is_closing or not data:
            return
        self.session.write(data)
        self._flush()

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        if not self._eof_sent and not self._is_closing:
            self._send_close_notify()

    def close(self) -> None:
        """Send what is buffered and close_notify, then end."""
        if self._is_closing:
            return
        if not self._eof_sent:
            self._send_close_notify()
        if not self._is_closing:  # unless the session had failed
            self._is_closing = True
            assert self._raw is not None
            self._raw.close()

    def abort(self) -> None:
        self._is_closing = True
        if self._raw is not None:
            self._raw.abort()
        else:
            self.sock.close()

    def _send_close_notify(self) -> None:
        # OpenSSL reads while it shuts down and would drop a record that waits, so nothing may wait.
        if not self._eof_received:
            self._decrypt()
        self._eof_sent = True
        with contextlib.suppress(ssl.SSLError):  # it always wants to read the other side's, which comes when it comes
            self.session.unwrap()
        self._flush()

    def _flush(self) -> None:
        assert self._raw is not None
        if data := self._leaving.read():
            self._raw.write(data)


def _heard(shaken: asyncio.Future[None]) -> None:
    """Who waited for the handshake may have been cancelled; then nobody asks why it failed."""
    if not shaken.cancelled():
        shaken.exception()


class _Below(asyncio.Protocol):
    """What the socket's transport talks to."""

    def __init__(self, layer: TlsTransport) -> None:
        self._layer = layer

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._layer.raw_made(cast("asyncio.Transport", transport))  # uvloop's is none by inheritance

    def data_received(self, data: bytes) -> None:
        self._layer.ciphertext_received(data)

    def eof_received(self) -> bool:
        self._layer.raw_eof_received()
        return True  # closing is the layer's to decide

    def pause_writing(self) -> None:
        self._layer.raw_writing_paused(True)

    def resume_writing(self) -> None:
        self._layer.raw_writing_paused(False)

    def connection_lost(self, exc: Exception | None) -> None:
        self._layer.raw_lost(exc)
