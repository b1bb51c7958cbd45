"""W3C Trace Context: which trace a request belongs to."""

import re
from random import getrandbits
from typing import Final

__all__ = ["continue_trace"]

_TRACEPARENT: Final = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}\Z")


def continue_trace(header: str | None) -> str:
    """A span of this node's in the trace that the header names, or in one that begins here: a wrong header is no reason
    to fail, it counts as missing."""
    if header is not None and _TRACEPARENT.match(header):
        return f"00-{header[3:35]}-{getrandbits(64):016x}-{header[53:55]}"
    return f"00-{getrandbits(128):032x}-{getrandbits(64):016x}-00"
