"""A channel of an SSH connection as a carrier of operation calls, at either end."""

from typing import Final

from alknet.alpn.errors import StreamsExhausted
from alknet.alpn.streams import BaseConnection, Connection, Stream

__all__ = ["ALPN", "SUBSYSTEM", "ChannelConnection"]

ALPN: Final = "alknet/call"
SUBSYSTEM: Final = "alknet-call"


class ChannelConnection(BaseConnection):
    """The connection that `stream`, a channel of the subsystem, is all of; it keeps the id of what it travels on."""

    def __init__(self, carrier: Connection, stream: Stream) -> None:
        super().__init__(alpn=ALPN, transport="ssh", remote=carrier.remote, local=carrier.local)
        self.id = carrier.id
        self.identity = carrier.identity
        self._stream = stream

    async def open_stream(self) -> Stream:
        raise StreamsExhausted("a channel has one stream")

    async def accept_stream(self) -> Stream:
        raise StreamsExhausted("a channel has one stream, which its session has")

    def close(self, code: int = 0, reason: str = "") -> None:
        self._stream.reset()
        self._closed.set()
