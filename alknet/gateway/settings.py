"""What the gateway is told by the configuration, and the bounds that it keeps in any case."""

from dataclasses import dataclass
from typing import Final

__all__ = [
    "KEEP_ALIVE_S",
    "LINGER_S",
    "MAX_FRAGMENTS",
    "MAX_HEADERS",
    "MAX_HEADER_BYTES",
    "MAX_URL_BYTES",
    "REQUEST_OVERHEAD_BYTES",
    "STALLED_WRITE_S",
    "WEBSOCKET_CLOSE_S",
    "GatewaySettings",
]

MAX_URL_BYTES: Final = 8 * 1024
"""Of a request's target."""
MAX_HEADER_BYTES: Final = 32 * 1024
"""Of a request's line and headers together."""
MAX_HEADERS: Final = 100
REQUEST_OVERHEAD_BYTES: Final = 64 * 1024
"""What a request's body may take on the wire beyond its content: sizes of chunks, and trailers."""
KEEP_ALIVE_S: Final = 75
"""How long a connection may stay open between two requests."""
STALLED_WRITE_S: Final = 60.0
"""A client that reads nothing of an answer for so long is cut off."""
LINGER_S: Final = 2.0
"""How long what a refused client still sends is taken, so that it gets to read why."""
MAX_FRAGMENTS: Final = 4096
"""Of one message on a WebSocket."""
WEBSOCKET_CLOSE_S: Final = 2.0
"""How long the other side of a WebSocket may take to say goodbye as well."""


@dataclass(frozen=True, slots=True)
class GatewaySettings:
    """See `config.model` for the meaning. Durations are in seconds, sizes in bytes."""

    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    docs: bool = True
    plaintext_loopback: bool = True
    https_host: str = ""
    max_body: int = 1024 * 1024
    header_timeout: float = 10.0
    body_timeout: float = 60.0
    max_in_flight: int = 1024
    max_message: int = 1024 * 1024
    """Of one message on a WebSocket; `call.max_frame`."""
    auth_attempts: int = 10
    mcp: bool = True
    """Whether /mcp is served; looked at once."""
    max_tools: int = 100
    names: frozenset[str] = frozenset()
    """DNS names and addresses of the certificate and of what is listened on: known without being listed."""
