"""What a QUIC connection tells whoever drives it: the other half of `alknet.alpn.quic.Engine`."""

from typing import Protocol

__all__ = ["QuicEvents"]


class QuicEvents(Protocol):
    """Who hears what happens on a connection; called from within `Engine.pump`."""

    def handshake_completed(self, alpn: str) -> None: ...
    def stream_opened(self, stream_id: int) -> None:
        """The other side opened a stream; they come in order."""

    def data_received(self, stream_id: int, data: bytes, is_last: bool) -> None: ...
    def stream_reset(self, stream_id: int) -> None:
        """The other side will send nothing more, and takes back what was not read."""

    def stream_stopped(self, stream_id: int) -> None:
        """The other side reads no more."""

    def cid_issued(self, cid: bytes) -> None:
        """Datagrams to `cid` are this connection's."""

    def cid_retired(self, cid: bytes) -> None: ...
    def closing(self, code: int, reason: str) -> None:
        """One of the two sides has closed the connection; what had to be said of it is still to be sent."""

    def terminated(self) -> None:
        """Nothing more is to be sent or received."""
