"""The one module that imports a QUIC library: aioquic 1.7, behind `Engine`.

Nothing here does I/O: datagrams and the time (`time.monotonic`, in seconds) come in, datagrams and calls of a
`QuicEvents` go out, so that a second library can be put behind the same class. aioquic's own asyncio adapter is not
used, and three of its methods are overridden (they are private; the minor version is pinned and tests hold them):

- `_write_connection_limits` and `_write_stream_limits` double the receive windows on bytes *received*; ours announce
  what `ReceiveWindows` grants on bytes *consumed*.
- `_handle_crypto_frame` buffers up to 512 KiB per packet space before anybody is known; ours `MAX_CRYPTO_BYTES`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from aioquic._buffer import Buffer
from aioquic.quic import connection as library
from aioquic.quic import events
from aioquic.quic.configuration import SMALLEST_MAX_DATAGRAM_SIZE, QuicConfiguration
from aioquic.quic.packet import (
    QuicErrorCode,
    QuicFrameType,
    QuicPacketType,
    QuicProtocolVersion,
    encode_quic_retry,
    encode_quic_version_negotiation,
    pull_quic_header,
)
from aioquic.quic.packet_builder import QuicPacketBuilder
from aioquic.quic.recovery import QuicPacketSpace
from aioquic.quic.retry import QuicRetryTokenHandler
from aioquic.quic.stream import QuicStream as LibraryStream
from cryptography.hazmat.primitives.serialization import Encoding

from alknet.alpn.quic_events import QuicEvents
from alknet.alpn.windows import MAX_STREAMS, STREAM_BYTES, ReceiveWindows
from alknet.certificates import Certificate, spki_sha256

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

MIN_INITIAL_BYTES: Final = SMALLEST_MAX_DATAGRAM_SIZE
"""A datagram that begins a connection has at least so many bytes (RFC 9000 section 14.1)."""
CID_BYTES: Final = 8
IDLE_TIMEOUT_S: Final = 180.0
"""A connection from which nothing is heard for so long is gone; long enough for a train's tunnel."""
MAX_CRYPTO_BYTES: Final = 64 * 1024
"""Handshake bytes that one side may send in one packet space; a long certificate chain has 10 KiB."""
MAX_FRAGMENTS: Final = 1024
"""Gaps in a stream's received bytes: more come from no network, and each costs memory and time."""
MAX_SEND_BYTES: Final = 512 * 1024
"""What one stream holds unsent or unacknowledged."""
SHARED_SEND_BYTES: Final = 4 * 1024 * 1024
"""When a connection holds more than this, each stream may hold only `STREAM_BYTES`: so a stalled one starves none."""
MAX_REASON_BYTES: Final = 256
_VERSIONS: Final = (QuicProtocolVersion.VERSION_1, QuicProtocolVersion.VERSION_2)

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
    if header.packet_type != QuicPacketType.VERSION_NEGOTIATION and header.version not in (None, *_VERSIONS):
        kind = "negotiate"
    return Header(kind, header.version, header.destination_cid, header.source_cid, header.token)


def version_negotiation(header: Header) -> bytes:
    """The stateless answer to a version that is not spoken here."""
    return encode_quic_version_negotiation(
        source_cid=header.destination, destination_cid=header.source, supported_versions=list(_VERSIONS)
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
    ) -> "Engine":
        """The listener's side, for the datagram that is given to `receive` next."""
        configuration = _configuration(alpns, is_client=False)
        configuration.certificate = certificate.leaf
        configuration.certificate_chain = list(certificate.issuers)
        configuration.private_key = certificate.key
        engine = cls(
            _Library(
                ReceiveWindows(is_trusted=False),
                configuration=configuration,
                original_destination_connection_id=original_cid,
                retry_source_connection_id=retry_cid,
            )
        )
        engine.spki = certificate.spki_sha256
        return engine

    @classmethod
    def dial(cls, alpn: str, *, server_name: str | None, address: Any, now: float) -> "Engine":
        """The dialer's side. The certificate is not checked: see `alknet.alpn.tls`."""
        configuration = _configuration([alpn], is_client=True)
        configuration.server_name = server_name
        configuration.verify_mode = 0  # ssl.CERT_NONE
        engine = cls(_Library(ReceiveWindows(is_trusted=True), configuration=configuration))
        engine._quic.connect(address, now=now)
        return engine

    def __init__(self, quic: "_Library") -> None:
        self._quic = quic
        self._opened = 0
        self._is_closing = False
        self.spki = b""
        """SHA-256 of the public key of the listener's certificate; at the dialer once the handshake is completed."""

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
        """Where the other side is now; it may have moved."""
        return self._quic.get_peer_address()

    def receive(self, data: bytes, address: Any, now: float) -> None:
        self._quic.receive_datagram(data, address, now=now)

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
            to.stream_opened(stream_id)
        while (event := quic.next_event()) is not None:
            match event:
                case events.StreamDataReceived():
                    to.data_received(event.stream_id, event.data, event.end_stream)
                case events.StreamReset():
                    to.stream_reset(event.stream_id)
                case events.StopSendingReceived():
                    to.stream_stopped(event.stream_id)
                case events.HandshakeCompleted():
                    if (theirs := quic.tls._peer_certificate) is not None:
                        self.spki = spki_sha256(theirs.public_bytes(Encoding.DER))
                    to.handshake_completed(event.alpn_protocol or "")
                case events.ConnectionIdIssued():
                    to.cid_issued(event.connection_id)
                case events.ConnectionIdRetired():
                    to.cid_retired(event.connection_id)
                case events.ConnectionTerminated():
                    self._tell_closing(to, event)
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
        quic = self._quic
        before = quic.windows.max_streams
        quic.windows.trust()
        quic._local_max_streams_bidi.value += quic.windows.max_streams - before

    def ping(self) -> None:
        self._quic.send_ping(0)

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
        streams = self._quic._streams
        stream = streams.get(stream_id)
        if stream is None:
            return 0
        held_by_all = sum(len(other.sender._buffer) for other in streams.values())
        most = MAX_SEND_BYTES if held_by_all < SHARED_SEND_BYTES else STREAM_BYTES
        return most - len(stream.sender._buffer)

    def write(self, stream_id: int, data: bytes, *, is_last: bool = False) -> None:
        self._quic.send_stream_data(stream_id, data, end_stream=is_last)

    def is_sent(self, stream_id: int) -> bool:
        """Whether everything that was written, its end included, has arrived or was given up."""
        stream = self._quic._streams.get(stream_id)
        return stream is None or stream.sender.is_finished

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


def _configuration(alpns: Sequence[str], *, is_client: bool) -> QuicConfiguration:
    return QuicConfiguration(
        alpn_protocols=list(alpns),
        connection_id_length=CID_BYTES,
        idle_timeout=IDLE_TIMEOUT_S,
        is_client=is_client,
        max_stream_data=STREAM_BYTES,
        supported_versions=list(_VERSIONS),
    )


class _Library(library.QuicConnection):
    """aioquic's connection with windows held by consumption and tighter bounds."""

    def __init__(self, windows: ReceiveWindows, *, configuration: QuicConfiguration, **options: Any) -> None:
        configuration.max_data = windows.connection_limit
        super().__init__(configuration=configuration, **options)
        self.windows = windows
        self._local_max_streams_bidi.value = self._local_max_streams_bidi.sent = windows.max_streams
        self._local_max_streams_uni.value = self._local_max_streams_uni.sent = 0

    def _write_connection_limits(self, builder: QuicPacketBuilder, space: QuicPacketSpace) -> None:
        streams, data = self._local_max_streams_bidi, self._local_max_data
        if streams.sent - streams.used < streams.value - streams.sent:  # worth a frame: as many again as are left
            self._announce(builder, streams.frame_type, self._on_connection_limit_delivery, streams, streams.value)
            streams.sent = streams.value
        if data.value != data.sent:
            self._announce(builder, data.frame_type, self._on_connection_limit_delivery, data, data.value)
            data.sent = data.value

    def _write_stream_limits(self, builder: QuicPacketBuilder, space: QuicPacketSpace, stream: LibraryStream) -> None:
        limit = stream.max_stream_data_local
        if limit == stream.max_stream_data_local_sent or stream.is_blocked:
            return  # one that is blocked does not exist yet for the other side
        kind, delivered = QuicFrameType.MAX_STREAM_DATA, self._on_max_stream_data_delivery
        self._announce(builder, kind, delivered, stream, stream.stream_id or 0, limit)
        stream.max_stream_data_local_sent = limit

    def _announce(
        self, builder: QuicPacketBuilder, frame_type: int, delivered: Callable[..., None], limit: object, *numbers: int
    ) -> None:
        """Write a frame of numbers; `delivered` hears of `limit` whether it has arrived."""
        frame = builder.start_frame(
            frame_type, capacity=library.MAX_STREAM_DATA_FRAME_CAPACITY, handler=delivered, handler_args=(limit,)
        )
        for number in numbers:
            frame.push_uint_var(number)

    def _handle_stream_frame(self, context: library.QuicReceiveContext, frame_type: int, buf: Buffer) -> None:
        start = buf.tell()
        super()._handle_stream_frame(context, frame_type, buf)
        buf_end = buf.tell()
        buf.seek(start)
        stream = self._streams.get(buf.pull_uint_var())
        buf.seek(buf_end)
        if stream is not None and len(stream.receiver._ranges) > MAX_FRAGMENTS:
            raise library.QuicConnectionError(
                error_code=QuicErrorCode.INTERNAL_ERROR,
                frame_type=frame_type,
                reason_phrase="too many gaps in a stream",
            )

    def _handle_crypto_frame(self, context: library.QuicReceiveContext, frame_type: int, buf: Buffer) -> None:
        start = buf.tell()
        end = buf.pull_uint_var() + buf.pull_uint_var()
        buf.seek(start)
        if end > MAX_CRYPTO_BYTES:
            raise library.QuicConnectionError(
                error_code=QuicErrorCode.CRYPTO_BUFFER_EXCEEDED,
                frame_type=frame_type,
                reason_phrase="too many handshake bytes",
            )
        super()._handle_crypto_frame(context, frame_type, buf)
