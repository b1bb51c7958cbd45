"""Whether the machine at the other end of a TCP connection still answers, as the kernel knows it.

The kernel gives up by itself in two ways, and neither does for a connection whose loss somebody waits for. Its
keepalive asks only while nothing is unsent or unacknowledged, and otherwise it sends again for a quarter of an hour.
`TCP_USER_TIMEOUT` would bound that, but ends a connection, too, whose other side is there and has not read for so long
(a probe of a closed window does not count as answered while it stays closed). So this looks at what the kernel counts:
what was sent again or asked, and not answered, and when the last acknowledgement came.
"""

import asyncio
import socket
import sys
from collections.abc import Callable
from typing import Final

__all__ = ["QUESTIONS", "TcpWatch"]

QUESTIONS: Final = 3
"""So often in a row something was unanswered, each time a step of the patience later, before a machine is given up."""

LEAST_PATIENCE_S: Final = 2.0
"""Linux answers probes of its closed window at most twice a second, so that one of them may seem lost."""

# struct tcp_info of Linux: bytes, then numbers of 32 bits.
INFO_BYTES: Final = 60
RETRANSMITS_AT: Final = 2
"""Timeouts since the last acknowledgement."""
PROBES_AT: Final = 3
"""Keepalives and probes of a closed window since the last acknowledgement."""
LAST_ACK_AT: Final = 56
"""Milliseconds since the last acknowledgement."""


class TcpWatch:
    """Calls `lost` once, when the other machine has acknowledged nothing for `patience_s` though it was asked to.

    On a connection that is idle it needs the kernel's keepalive to do the asking. A patience below `LEAST_PATIENCE_S`
    is taken as that. Ends by itself when `sock` is closed.
    """

    def __init__(self, sock: socket.socket, patience_s: float, lost: Callable[[], None]) -> None:
        self._sock = sock
        self._patience_s = max(patience_s, LEAST_PATIENCE_S)
        self._lost = lost
        self._unanswered = 0
        self._loop = asyncio.get_running_loop()
        self._timer = self._look_later()

    def stop(self) -> None:
        """Idempotent."""
        self._timer.cancel()

    def _look_later(self) -> asyncio.TimerHandle:
        return self._loop.call_later(self._patience_s / (QUESTIONS + 1), self._look)

    def _look(self) -> None:
        try:
            info = self._sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, INFO_BYTES)
        except OSError:
            return
        quiet_s = int.from_bytes(info[LAST_ACK_AT:INFO_BYTES], sys.byteorder) / 1000
        self._unanswered = self._unanswered + 1 if info[RETRANSMITS_AT] or info[PROBES_AT] else 0
        if self._unanswered >= QUESTIONS and quiet_s >= self._patience_s:
            self._lost()
        else:
            self._timer = self._look_later()
