"""aioquic's connection as alknet needs it: windows held by consumption, and bounds on what a stranger may cause.

Only `alknet.alpn.quic` uses this. The methods that are overridden are private: the minor version of aioquic is pinned,
and tests hold that they exist and have their effect.

- `_write_connection_limits` and `_write_stream_limits` double the receive windows on bytes *received*; ours announce
  what `ReceiveWindows` grants on bytes *consumed*.
- `_replenish_connection_ids` gives random tokens for stateless resets; ours are those of `quic_reset`.
- The limit on streams rises when one is over on the network, even if nobody here has accepted it yet; see
  `StreamLimit`.
- `_handle_crypto_frame` and `_handle_stream_frame` take any number of gaps, each of which makes every later frame
  dearer, and up to 512 KiB of handshake before anybody is known; ours close the connection.
"""

import logging
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

from aioquic._buffer import Buffer
from aioquic.quic import connection as library
from aioquic.quic import events
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.congestion.base import QuicCongestionControl, register_congestion_control
from aioquic.quic.packet import QuicErrorCode, QuicFrameType, QuicProtocolVersion
from aioquic.quic.packet_builder import QuicPacketBuilder, QuicSentPacket
from aioquic.quic.recovery import QuicPacketSpace
from aioquic.quic.stream import QuicStream as LibraryStream

from alknet.alpn.congestion import PathModel
from alknet.alpn.quic_reset import TOKEN_BYTES
from alknet.alpn.windows import STREAM_BYTES, ReceiveWindows

__all__ = [
    "CID_BYTES",
    "IDLE_TIMEOUT_S",
    "MAX_CRYPTO_BYTES",
    "MAX_CRYPTO_FRAGMENTS",
    "MAX_FRAGMENTS",
    "VERSIONS",
    "Library",
    "StreamLimit",
    "configuration_of",
]

CID_BYTES: Final = 8
IDLE_TIMEOUT_S: Final = 180.0
"""A connection from which nothing is heard for so long is gone; long enough for a train's tunnel."""
MAX_CRYPTO_BYTES: Final = 64 * 1024
"""Handshake bytes that one side may send in one packet space; a long certificate chain has 10 KiB."""
MAX_CRYPTO_FRAGMENTS: Final = 64
"""Gaps in the handshake bytes of one packet space: browsers shuffle a ClientHello into about ten pieces."""
MAX_FRAGMENTS: Final = 512
"""Gaps in a stream's received bytes: a full window with every second packet lost has fewer."""
CONGESTION: Final = "alknet"
"""What aioquic calls our congestion control."""
VERSIONS: Final = (QuicProtocolVersion.VERSION_1, QuicProtocolVersion.VERSION_2)

# It warns of every packet that breaks a rule: strangers could fill the log.
library.logger.setLevel(logging.ERROR)


def configuration_of(alpns: Sequence[str], *, is_client: bool) -> QuicConfiguration:
    return QuicConfiguration(
        alpn_protocols=list(alpns),
        congestion_control_algorithm=CONGESTION,
        connection_id_length=CID_BYTES,
        idle_timeout=IDLE_TIMEOUT_S,
        is_client=is_client,
        max_stream_data=STREAM_BYTES,
        supported_versions=list(VERSIONS),
    )


class _Congestion(QuicCongestionControl):
    """`PathModel` as aioquic wants it."""

    def __init__(self, *, max_datagram_size: int) -> None:
        super().__init__(max_datagram_size=max_datagram_size)
        self._model = PathModel(max_datagram_size)

    def on_packet_sent(self, *, packet: QuicSentPacket) -> None:
        self._model.sent(packet.packet_number, packet.sent_bytes, packet.sent_time or 0.0)
        self._note()

    def on_packet_acked(self, *, now: float, packet: QuicSentPacket) -> None:
        self._model.acked(packet.packet_number, packet.sent_bytes, now)
        self._note()

    def on_packets_expired(self, *, packets: Iterable[QuicSentPacket]) -> None:
        for packet in packets:
            self._model.forgotten(packet.packet_number, packet.sent_bytes)
        self._note()

    def on_packets_lost(self, *, now: float, packets: Iterable[QuicSentPacket]) -> None:
        for packet in packets:
            self._model.lost(packet.packet_number, packet.sent_bytes)
        self._note()

    def on_persistent_congestion(self) -> None:
        self._model.collapsed()
        self._note()

    def on_rtt_measurement(self, *, now: float, rtt: float) -> None:
        self._model.round_trip(rtt, now)

    def _note(self) -> None:
        self.bytes_in_flight, self.congestion_window = self._model.in_flight, self._model.window


register_congestion_control(CONGESTION, _Congestion)


class StreamLimit(library.Limit):
    """How many streams the other side may open in all.

    aioquic raises it for each one that is over on the network: somebody who opens, finishes and stops streams that
    nobody accepts could leave any number of them here. This one rises when a stream is over for its user.
    """

    def __init__(self, windows: ReceiveWindows) -> None:
        self.over = 0
        self._windows = windows
        super().__init__(QuicFrameType.MAX_STREAMS_BIDI, "max_streams_bidi", windows.max_streams)

    @property
    def value(self) -> int:
        return self._windows.max_streams + self.over

    @value.setter
    def value(self, value: int) -> None:
        pass  # aioquic's count


class Library(library.QuicConnection):
    """One connection; see the module."""

    def __init__(
        self,
        windows: ReceiveWindows,
        *,
        configuration: QuicConfiguration,
        reset_token: Callable[[bytes], bytes] = lambda cid: os.urandom(TOKEN_BYTES),
        **options: Any,
    ) -> None:
        configuration.max_data = windows.connection_limit
        super().__init__(configuration=configuration, **options)
        self.windows = windows
        self._reset_token = reset_token
        if not configuration.is_client:
            self._host_cids[0].stateless_reset_token = reset_token(self.host_cid)
        self._local_max_streams_bidi = self.stream_limit = StreamLimit(windows)
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

    def forget(self) -> None:
        """Break the cycles that would keep a dead connection's buffers until Python looks for cycles."""
        self._QuicConnection__frame_handlers: dict[int, Any] = {}
        self._crypto_buffers, self._crypto_streams, self._cryptos, self._cryptos_initial = {}, {}, {}, {}
        self._streams, self._streams_queue = {}, []
        self._close_event = self._close_event or events.ConnectionTerminated(QuicErrorCode.NO_ERROR, None, "")
        self._state = library.QuicConnectionState.TERMINATED
        self.__dict__.pop("tls", None)

    def _replenish_connection_ids(self) -> None:
        super()._replenish_connection_ids()
        for issued in self._host_cids:
            if not issued.was_sent:
                issued.stateless_reset_token = self._reset_token(issued.cid)

    def _handle_stream_frame(self, context: library.QuicReceiveContext, frame_type: int, buf: Buffer) -> None:
        start = buf.tell()
        super()._handle_stream_frame(context, frame_type, buf)
        buf_end = buf.tell()
        buf.seek(start)
        stream = self._streams.get(buf.pull_uint_var())
        buf.seek(buf_end)
        if stream is not None and len(stream.receiver._ranges) > MAX_FRAGMENTS:
            raise _violation(QuicErrorCode.INTERNAL_ERROR, frame_type, "too many gaps in a stream")

    def _handle_crypto_frame(self, context: library.QuicReceiveContext, frame_type: int, buf: Buffer) -> None:
        start = buf.tell()
        end = buf.pull_uint_var() + buf.pull_uint_var()
        buf.seek(start)
        if end > MAX_CRYPTO_BYTES:
            raise _violation(QuicErrorCode.CRYPTO_BUFFER_EXCEEDED, frame_type, "too many handshake bytes")
        super()._handle_crypto_frame(context, frame_type, buf)
        if len(self._crypto_streams[context.epoch].receiver._ranges) > MAX_CRYPTO_FRAGMENTS:
            raise _violation(QuicErrorCode.CRYPTO_BUFFER_EXCEEDED, frame_type, "too many gaps in the handshake")


def _violation(code: int, frame_type: int, reason: str) -> library.QuicConnectionError:
    return library.QuicConnectionError(error_code=code, frame_type=frame_type, reason_phrase=reason)
