"""What a TCP connection speaks, told by its first byte alone.

One byte is enough for every protocol that shares the port, and waiting for a second peeked one would keep the
socket readable and spin the event loop.
"""

from enum import StrEnum

__all__ = ["Opening", "opening"]


class Opening(StrEnum):
    """How a connection begins."""

    SSH = "ssh"
    """``SSH-2.0-…``; also what a client means that waits for the banner."""
    TLS = "tls"
    """A TLS handshake record."""
    SOCKS = "socks"
    """SOCKS version 5."""
    HTTP = "http"
    """An HTTP method."""
    UNKNOWN = "unknown"


def opening(first: int) -> Opening:
    """The protocol that begins with the byte `first`."""
    match first:
        case 0x53:  # "S"
            return Opening.SSH
        case 0x16:
            return Opening.TLS
        case 0x05:
            return Opening.SOCKS
        case _ if 0x41 <= first <= 0x5A:  # "A" to "Z"
            return Opening.HTTP
        case _:
            return Opening.UNKNOWN
