"""What can happen to a stream or a connection."""

from alknet.errors import BrokenError, ClosedError, LocalError

__all__ = ["ConnectionClosed", "StreamBroken", "StreamClosed", "StreamsExhausted"]


class ConnectionClosed(ClosedError):
    """The connection is over: no further stream will come."""


class StreamsExhausted(LocalError):
    """The carrier has one stream, and it has been handed out."""


class StreamClosed(ClosedError):
    """This side closed or reset the stream, or handed it to a protocol, before it was used again."""


class StreamBroken(BrokenError):
    """The other side reset the stream, or the network lost it."""
