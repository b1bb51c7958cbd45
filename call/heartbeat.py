"""Whether the other side of a stream is still there, asked when it has been silent for a while.

A connection says so by itself where its machine or its network is gone. A process that hangs is another matter: over
TCP its kernel goes on answering for it.
"""

import asyncio
from typing import Final

from alknet.call.channel import Channel

__all__ = ["QUESTIONS", "wait_silent"]

PING: Final = {"type": "session.ping", "id": "session", "payload": {}}
QUESTIONS: Final = 3
"""That many stay without an answer, one after the other, before the other side is given up."""
LAST_LOOK_S: Final = 0.01
"""What came while this side was busy itself is heard before that."""


async def wait_silent(channel: Channel, *, patience_s: float) -> None:
    """Return when nothing has been heard on `channel` for `patience_s`, although it was asked for.

    Each question has a turn of its own, so that an event loop that was blocked for longer than that gives up nobody.
    """
    unanswered, heard = 0, channel.heard
    while True:
        await asyncio.sleep(patience_s / (QUESTIONS + 1))
        if channel.heard != heard:
            unanswered, heard = 0, channel.heard
            continue
        if unanswered == QUESTIONS:
            await asyncio.sleep(LAST_LOOK_S)
            if channel.heard == heard:
                return
            continue
        unanswered += 1
        channel.post(PING)
