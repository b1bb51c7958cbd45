"""Receive windows held by consumption: how much the other side of a QUIC connection may send.

Pure arithmetic over RFC 9000 section 4. A limit rises only when a handler has read, so a stream that nobody reads
stops its sender, and three rules keep one stalled stream from starving the others:

- Every stream has `STREAM_BYTES` of its own. The connection's window covers that for every stream that may be open.
- What the connection's window has beyond that (`SPARE_BYTES`) is lent to streams that are being read, in equal shares.
- Bytes that nobody will read (of a stream that was reset or closed) are given back to the connection.

A connection of which nobody has logged in gets a fraction of it, so that a thousand strangers hold little.
"""

from dataclasses import dataclass, field
from typing import Final

__all__ = [
    "MAX_STREAMS",
    "MAX_STREAM_BYTES",
    "SPARE_BYTES",
    "STRANGER_STREAMS",
    "STREAM_BYTES",
    "ReceiveWindows",
]

STREAM_BYTES: Final = 32 * 1024
"""The window that every stream has."""
MAX_STREAM_BYTES: Final = 1024 * 1024
"""The largest window of one stream."""
SPARE_BYTES: Final = 4 * 1024 * 1024
"""Lent to the streams that are being read."""
MAX_STREAMS: Final = 128
"""Streams that each side may have open."""
STRANGER_STREAMS: Final = 4
"""Streams that the other side may have open before it has logged in."""


@dataclass(slots=True)
class _Stream:
    limit: int = STREAM_BYTES
    """The offset up to which the other side may send."""
    consumed: int = 0
    lent: int = 0


@dataclass(slots=True)
class ReceiveWindows:
    """The limits of one connection; `connection_limit` and what `consumed` returns go to the other side."""

    is_trusted: bool
    connection_limit: int = field(init=False)
    _window: int = field(init=False)
    _spare: int = field(init=False)
    _consumed: int = 0
    _lent: int = 0
    _streams: dict[int, _Stream] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._spare = SPARE_BYTES if self.is_trusted else 0
        self._window = self.connection_limit = (
            2 * MAX_STREAMS * STREAM_BYTES + SPARE_BYTES if self.is_trusted else STRANGER_STREAMS * STREAM_BYTES
        )

    @property
    def max_streams(self) -> int:
        """Streams that the other side may have open."""
        return MAX_STREAMS if self.is_trusted else STRANGER_STREAMS

    def trust(self) -> None:
        """The other side has logged in: it gets the whole window."""
        if not self.is_trusted:
            self.is_trusted = True
            self._spare = SPARE_BYTES
            self._window = 2 * MAX_STREAMS * STREAM_BYTES + SPARE_BYTES
            self._raise_connection_limit()

    def opened(self, stream_id: int) -> None:
        self._streams[stream_id] = _Stream()

    def consumed(self, stream_id: int, count: int) -> int:
        """`count` bytes of the stream were read; returns the stream's limit."""
        stream = self._streams[stream_id]
        stream.consumed += count
        self._consumed += count
        # Grants are worth a packet when half the window is used up.
        if stream.limit - stream.consumed <= (STREAM_BYTES + stream.lent) // 2:
            self._grant(stream)
        self._raise_connection_limit()
        return stream.limit

    def settled(self, stream_id: int, final_size: int) -> None:
        """Nothing more will come of the stream, and nobody will read what it still had: `final_size` bytes in all."""
        stream = self._streams.pop(stream_id, None)
        if stream is not None:
            self._consumed += final_size - stream.consumed
            self._lent -= stream.lent
            self._raise_connection_limit()

    def _grant(self, stream: _Stream) -> None:
        fair = self._spare // len(self._streams)
        left = self._spare - (self._lent - stream.lent)
        wanted = STREAM_BYTES + max(0, min(fair, left, MAX_STREAM_BYTES - STREAM_BYTES))
        window = max(wanted, stream.limit - stream.consumed)  # what was granted is not taken back
        self._lent += window - STREAM_BYTES - stream.lent
        stream.lent = window - STREAM_BYTES
        stream.limit = stream.consumed + window

    def _raise_connection_limit(self) -> None:
        # In steps of half a stream's window: whoever waits for the connection must not wait for more than that.
        if self._consumed + self._window - self.connection_limit >= STREAM_BYTES // 2:
            self.connection_limit = self._consumed + self._window
