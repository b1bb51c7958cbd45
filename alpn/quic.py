"""QUIC behind one class, `Engine`; only this module and `quic_library` import a QUIC library (aioquic 1.7).

Nothing here does I/O: datagrams and the time (`time.monotonic`, in seconds) come in, datagrams and calls of a
`QuicEvents` go out, so that a second library can be put behind the same class. aioquic's own asyncio adapter is not
used; what is changed in its core is in `quic_library`.
"""

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from aioquic._buffer import Buffer
from aioquic.quic import connection as library
from aioquic.quic import events
from aioquic.quic.configuration import SMALLEST_MAX_DATAGRAM_SIZE
from aioquic.quic.packet import (
    QuicErrorCode,
    QuicFrameType,
    QuicPacketType,
    encode_quic_retry,
    encode_quic_version_negotiation,
    pull_quic_header,
)
from aioquic.quic.retry import QuicRetryTokenHandler
from cryptography.hazmat.primitives.serialization import Encoding

from alknet.alpn.quic_events import QuicEvents
from alknet.alpn.quic_library import CID_BYTES, IDLE_TIMEOUT_S, VERSIONS, Library, configuration_of
from alknet.alpn.quic_reset import TOKEN_BYTES, is_reset
from alknet.alpn.windows import MAX_STREAMS, STREAM_BYTES, ReceiveWindows
from alknet.certificates import Certificate, spki_sha256
from alknet.logs import event

__all__ = [
    "CID_BYTES",
    "IDLE_TIMEOUT_S",
    "MIN_INITIAL_BYTES",
    "Engine",
    "Header",
    "RetryTokens",
    "read_header",
    "version_negotiation",
]

log = logging.getLogger("alknet.alpn")

MIN_INITIAL_BYTES: Final = SMALLEST_MAX_DATAGRAM_SIZE
"""A datagram that begins a connection has at least so many bytes (RFC 9000 section 14.1)."""
MAX_SEND_BYTES: Final = 512 * 1024
"""What one stream holds unsent or unacknowledged."""
SHARED_SEND_BYTES: Final = 4 * 1024 * 1024
"""When a connection holds more than this, each stream may hold only `STREAM_BYTES`: so a stalled one starves none."""
MAX_REASON_BYTES: Final = 256

Datagrams = list[tuple[bytes, Any]]
"""(bytes, socket address) of each."""


@dataclass(frozen=True, slots=True)
class Header:
    """What can be read of a datagram without keys."""

    kind: str
    """``initial``, ``negotiate`` (a version that is not spoken here) or ``other``."""
    version: int | None
    destination: bytes
    source: bytes
    token: bytes


def read_header(data: bytes) -> Header | None:
    """The header of a long-header datagram; None if it is no QUIC."""
    try:
        header = pull_quic_header(Buffer(data=data), host_cid_length=CID_BYTES)
    except ValueError:
        return None
    kind = "other"
    if header.packet_type == QuicPacketType.INITIAL:
        kind = "initial"
    if header.packet_type != QuicPacketType.VERSION_NEGOTIATION and header.version not in (None, *VERSIONS):
        kind = "negotiate"
    return Header(kind, header.version, header.destination_cid, header.source_cid, header.token)


def version_negotiation(header: Header) -> bytes:
    """The stateless answer to a version that is not spoken here."""
    return encode_quic_version_negotiation(
        source_cid=header.destination, destination_cid=header.source, supported_versions=list(VERSIONS)
    )


class RetryTokens:
    """Stateless proofs that somebody receives what is sent to its address (RFC 9000 section 8.1.2)."""

    def __init__(self) -> None:
        self._handler = QuicRetryTokenHandler()

    def ask(self, header: Header, address: Any, *, new_cid: bytes, now: float) -> bytes:
        """A Retry packet: come again with its token, to the connection id `new_cid`."""
        assert header.version is not None
        token = self._handler.create_token(
            address=address,
            original_destination_connection_id=header.destination,
            retry_source_connection_id=new_cid,
            now=now,
        )
        return encode_quic_retry(
            version=header.version,
            source_cid=new_cid,
            destination_cid=header.source,
            original_destination_cid=header.destination,
            retry_token=token,
        )

    def original_cid(self, header: Header, address: Any, *, now: float) -> bytes | None:
        """The connection id that the caller used before it was asked; None if the token is not of `ask`."""
        try:
            return self._handler.validate_token(
                address=address, destination_cid=header.destination, token=header.token, now=now
            )
        except ValueError:
            return None


class Engine:
    """One QUIC connection."""

    @classmethod
    def accept(
        cls,
        certificate: Certificate,
        alpns: Sequence[str],
        *,
        original_cid: bytes,
        retry_cid: bytes | None,
        reset_token: Callable[[bytes], bytes] = lambda cid: os.urandom(TOKEN_BYTES),
    ) -> "Engine":
        """The listener's side, for the datagram that is given to `receive` next. `reset_token` gives what proves a
        stateless reset of a connection id; the default is for a listener that sends none."""
        configuration = configuration_of(alpns, is_client=False)
        configuration.certificate = certificate.leaf
        configuration.certificate_chain = list(certificate.issuers)
        configuration.private_key = certificate.key
        engine = cls(
            Library(
                ReceiveWindows(is_trusted=False),
                configuration=configuration,
                reset_token=reset_token,
                original_destination_connection_id=original_cid,
                retry_source_connection_id=retry_cid,
            )
        )
        engine.spki = certificate.spki_sha256
        return engine

    @classmethod
    def dial(cls, alpn: str, *, server_name: str | None, address: Any, now: float) -> "Engine":
        """The dialer's side. The certificate is not checked: see `alknet.alpn.tls`."""
        configuration = configuration_of([alpn], is_client=True)
        configuration.server_name = server_name and server_name.encode("idna").decode()
        configuration.verify_mode = 0  # ssl.CERT_NONE
        engine = cls(Library(ReceiveWindows(is_trusted=True), configuration=configuration))
        engine._quic.connect(address, now=now)
        return engine

    def __init__(self, quic: "Library") -> None:
        self._quic = quic
        self._opened = 0
        self._theirs: set[int] = set()
        """The streams of the other side that are not over for whoever uses them."""
        self._held = 0
        """What all streams hold unsent or unacknowledged."""
        self._is_closing = False
        self.spki = b""
        """SHA-256 of the public key of the listener's certificate; at the dialer once the handshake is completed."""
        self.peer_certificates: tuple[bytes, ...] = ()
        """What the listener showed the dialer, in DER, its own first; once the handshake is completed."""

    # --- datagrams and time -----------------------------------------------------------------------------------

    @property
    def cid(self) -> bytes:
        """The connection id that this side chose first."""
        return self._quic.host_cid

    @property
    def has_begun(self) -> bool:
        """Whether anything that was received could be decrypted."""
        return self._quic._state != library.QuicConnectionState.FIRSTFLIGHT

    @property
    def peer_address(self) -> Any:
        """Where the other side is, as far as it has proven it; None before. It may move."""
        paths = self._quic._network_paths
        return paths[0].addr if paths and paths[0].is_validated else None

    @property
    def has_just_closed(self) -> bool:
        """Whether this side has said that it closes the connection, and the other side may not have heard it."""
        return self._quic._state == library.QuicConnectionState.CLOSING

    def receive(self, data: bytes, address: Any, now: float) -> bool:
        """Take a datagram; says whether it was the other side's: anybody can send what cannot be decrypted."""
        quic = self._quic
        if quic._close_event is not None:
            return False  # aioquic would go on until the close is sent
        idle_until = quic._close_at
        try:
            quic.receive_datagram(data, address, now=now)
        except Exception as exc:  # a rule that the library does not check: whoever broke it pays, nobody else
            log.debug(event("QUIC library failed", remote_addr=address[0]), exc_info=True)
            reason = f"{type(exc).__name__} in the QUIC library"
            quic.close(QuicErrorCode.INTERNAL_ERROR, QuicFrameType.PADDING, reason)
        is_theirs = quic._close_at != idle_until
        if not is_theirs and is_reset(data, self._reset_tokens()):
            reason = "the other side does not know this connection any more; it may have been restarted"
            quic._close_event = events.ConnectionTerminated(QuicErrorCode.NO_ERROR, None, reason)
            quic._close_begin(is_initiator=False, now=now)
        return is_theirs

    def _reset_tokens(self) -> list[bytes]:
        quic = self._quic
        ids = [quic._peer_cid, *quic._peer_cid_available]
        return [cid.stateless_reset_token for cid in ids if quic._handshake_complete and cid.stateless_reset_token]

    def datagrams(self, now: float) -> Datagrams:
        """What is to be sent now; afterwards `timer` may have changed."""
        return self._quic.datagrams_to_send(now=now)

    def timer(self) -> float | None:
        return self._quic.get_timer()

    def handle_timer(self, now: float) -> None:
        self._quic.handle_timer(now=now)

    def pump(self, to: QuicEvents) -> None:
        """Tell `to` what has happened since the last time."""
        quic = self._quic
        while self._opened < quic._local_max_streams_bidi.used:
            stream_id = 4 * self._opened + (1 if quic._is_client else 0)
            self._opened += 1
            quic.windows.opened(stream_id)
            self._theirs.add(stream_id)
            to.stream_opened(stream_id)
        self._held = sum(len(stream.sender._buffer) for stream in quic._streams.values())
        while (happened := quic.next_event()) is not None:
            match happened:
                case events.StreamDataReceived():
                    to.data_received(happened.stream_id, happened.data, happened.end_stream)
                case events.StreamReset():
                    to.stream_reset(happened.stream_id)
                case events.StopSendingReceived():
                    to.stream_stopped(happened.stream_id)
                case events.HandshakeCompleted():
                    if (theirs := quic.tls._peer_certificate) is not None:
                        shown = (theirs, *quic.tls._peer_certificate_chain)
                        self.peer_certificates = tuple(each.public_bytes(Encoding.DER) for each in shown)
                        self.spki = spki_sha256(self.peer_certificates[0])
                    to.handshake_completed(happened.alpn_protocol or "")
                case events.ConnectionIdIssued():
                    to.cid_issued(happened.connection_id)
                case events.ConnectionIdRetired():
                    to.cid_retired(happened.connection_id)
                case events.ConnectionTerminated():
                    self._tell_closing(to, happened)
                    to.terminated()
        # aioquic tells its user of a close when the time for late packets is over; ours should know at once.
        if quic._close_event is not None:
            self._tell_closing(to, quic._close_event)
            if quic._state == library.QuicConnectionState.DRAINING:
                to.terminated()

    def _tell_closing(self, to: QuicEvents, why: events.ConnectionTerminated) -> None:
        if not self._is_closing:
            self._is_closing = True
            to.closing(why.error_code, why.reason_phrase)

    # --- the connection ---------------------------------------------------------------------------------------

    def trust(self) -> None:
        """The other side has logged in: it may send and open as much as the limits allow."""
        self._quic.windows.trust()
        self._quic._local_max_data.value = self._quic.windows.connection_limit

    def ping(self) -> None:
        """Ask whether the other side is there, however much is in flight: what the library asks by itself comes at
        intervals that double, so that a connection would not outlive a long silence of the network."""
        self._quic._send_probe()

    def forget(self) -> None:
        """The connection is over: let go of what it held, without waiting for the collector of cycles."""
        self._quic.forget()

    def close(self, code: int, reason: str) -> None:
        text = reason.encode()[:MAX_REASON_BYTES].decode(errors="ignore")
        self._quic.close(error_code=code, reason_phrase=text)

    # --- streams ----------------------------------------------------------------------------------------------

    def open_stream(self) -> int | None:
        """A new stream's id; None when as many as there may be are open. The other side hears of it at once."""
        quic = self._quic
        parity = 0 if quic._is_client else 1
        if sum(stream_id % 4 == parity for stream_id in quic._streams) >= MAX_STREAMS:
            return None
        stream_id = quic.get_next_available_stream_id()
        stream = quic._get_or_create_stream_for_send(stream_id)
        stream.max_stream_data_local_sent = 0  # announce its window: that opens it there
        quic.windows.opened(stream_id)
        return stream_id

    def room(self, stream_id: int) -> int:
        """How many bytes may be written now; not more than 0 means wait."""
        stream = self._quic._streams.get(stream_id)
        if stream is None:
            return 0
        most = MAX_SEND_BYTES if self._held < SHARED_SEND_BYTES else STREAM_BYTES
        return most - len(stream.sender._buffer)

    def write(self, stream_id: int, data: bytes, *, is_last: bool = False) -> None:
        self._held += len(data)
        self._quic.send_stream_data(stream_id, data, end_stream=is_last)

    def is_sent(self, stream_id: int) -> bool:
        """Whether everything that was written, its end included, has arrived or was given up."""
        stream = self._quic._streams.get(stream_id)
        return stream is None or stream.sender.is_finished

    def over(self, stream_id: int) -> bool:
        """Both directions have ended for whoever uses the stream; says whether the other side may open another one."""
        if stream_id not in self._theirs:
            return False
        self._theirs.discard(stream_id)
        self._quic.stream_limit.over += 1
        return True

    def reset(self, stream_id: int) -> None:
        """Send nothing more on the stream, not even what was written."""
        if stream_id in self._quic._streams:
            self._quic.reset_stream(stream_id, QuicErrorCode.NO_ERROR)

    def stop(self, stream_id: int) -> None:
        """Ask the other side to send nothing more."""
        stream = self._quic._streams.get(stream_id)
        if stream is not None and not stream.receiver.is_finished:
            self._quic.stop_stream(stream_id, QuicErrorCode.NO_ERROR)

    def consumed(self, stream_id: int, count: int) -> bool:
        """`count` bytes were read, or thrown away; says whether the other side should hear of it now."""
        quic = self._quic
        before = quic._local_max_data.value
        limit = quic.windows.consumed(stream_id, count)
        quic._local_max_data.value = quic.windows.connection_limit
        stream = quic._streams.get(stream_id)
        if stream is None or stream.receiver.is_finished or stream.max_stream_data_local == limit:
            return quic._local_max_data.value != before
        stream.max_stream_data_local = limit
        return True

    def settled(self, stream_id: int, received: int) -> None:
        """Nobody will read more of the stream, and nothing more of it will come; `received` is what `data_received`
        brought in all."""
        stream = self._quic._streams.get(stream_id)
        final_size = received if stream is None else max(received, stream.receiver.highest_offset)
        self._quic.windows.settled(stream_id, final_size)
        self._quic._local_max_data.value = self._quic.windows.connection_limit
