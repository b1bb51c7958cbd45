"""A channel of an SSH connection, or a WebSocket, as a carrier of operation calls."""

from typing import Final

from alknet.alpn.errors import StreamsExhausted
from alknet.alpn.streams import BaseConnection, Connection, Stream

__all__ = ["ALPN", "SUBSYSTEM", "ChannelConnection"]

ALPN: Final = "alknet/call"
SUBSYSTEM: Final = "alknet-call"


class ChannelConnection(BaseConnection):
    """The connection that `stream` is all of; it keeps the id of what it travels on."""

    def __init__(self, carrier: Connection, stream: Stream, *, transport: str) -> None:
        super().__init__(alpn=ALPN, transport=transport, remote=carrier.remote, local=carrier.local)
        self.id = carrier.id
        self.identity = carrier.identity
        self._stream = stream

    async def open_stream(self) -> Stream:
        raise StreamsExhausted("a channel has one stream")

    async def accept_stream(self) -> Stream:
        raise StreamsExhausted("a channel has one stream, which its session has")

    def end(self, reason: str) -> None:
        """End it in the way of what runs on it."""
        if self.polite_close is not None:
            self.polite_close(reason)
        else:
            self.close(0, reason)

    def close(self, code: int = 0, reason: str = "") -> None:
        self._stream.reset()
        self._closed.set()
