"""Connections inside of connections: what carries calls that is no carrier itself (a channel of SSH, a WebSocket), and
what calls carry (a byte channel)."""

from typing import Final

from alknet.alpn.errors import ConnectionClosed, StreamsExhausted
from alknet.alpn.streams import BaseConnection, Connection, Stream

__all__ = ["ALPN", "SUBSYSTEM", "ChannelConnection", "InnerConnection"]

ALPN: Final = "alknet/call"
SUBSYSTEM: Final = "alknet-call"


class InnerConnection(BaseConnection):
    """A connection that somebody opens inside of another one: a byte channel that leads to a door of this node.

    It has no address: whoever is at its other end is not where the outer connection comes from, and must not have that
    one suffer for its mistakes.
    """

    def __init__(self, stream: Stream, *, alpn: str) -> None:
        super().__init__(alpn=alpn, transport="channel", remote=None)
        self._stream: Stream | None = stream
        self._whole = stream

    async def open_stream(self) -> Stream:
        raise StreamsExhausted("a channel has one stream")

    async def accept_stream(self) -> Stream:
        if self._stream is None:
            await self.wait_closed()
            raise ConnectionClosed("the channel has ended")
        stream, self._stream = self._stream, None
        return stream

    def close(self, code: int = 0, reason: str = "") -> None:
        if not self._closed.is_set():
            self._closed.set()
            self._whole.reset()


class ChannelConnection(BaseConnection):
    """The connection that `stream` is all of; it keeps the id of what it travels on."""

    def __init__(self, carrier: Connection, stream: Stream, *, transport: str) -> None:
        super().__init__(alpn=ALPN, transport=transport, remote=carrier.remote, local=carrier.local)
        self.id = carrier.id
        self.identity = carrier.identity
        self._carrier = carrier
        self._stream = stream

    async def open_stream(self) -> Stream:
        raise StreamsExhausted("a channel has one stream")

    async def accept_stream(self) -> Stream:
        raise StreamsExhausted("a channel has one stream, which its session has")

    def watch(self, patience_s: float) -> None:
        """What it travels on is lost as a whole."""
        self._carrier.watch(patience_s)

    def end(self, reason: str) -> None:
        """End it in the way of what runs on it."""
        if self.polite_close is not None:
            self.polite_close(reason)
        else:
            self.close(0, reason)

    def close(self, code: int = 0, reason: str = "") -> None:
        self._stream.reset()
        self._closed.set()
