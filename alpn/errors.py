"""What can happen to a stream or a connection."""

from alknet.errors import BrokenError, ClosedError, LocalError, UnavailableError

__all__ = ["AlpnRefused", "ConnectionClosed", "HandshakeFailed", "StreamBroken", "StreamClosed", "StreamsExhausted"]


class ConnectionClosed(ClosedError):
    """The connection is over: no further stream will come."""


class StreamsExhausted(LocalError):
    """The carrier has one stream, and it has been handed out."""


class StreamClosed(ClosedError):
    """This side closed or reset the stream, or handed it to a protocol, before it was used again."""


class StreamBroken(BrokenError):
    """The other side reset the stream, or the network lost it."""


class HandshakeFailed(UnavailableError):
    """There is no session: the other side did not answer, gave up, or spoke something else."""


class AlpnRefused(HandshakeFailed):
    """The other side is there and does not serve what was asked for."""
