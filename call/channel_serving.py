"""Serving the byte channels that the other side opens: who accepts them, and what runs on them then."""

import asyncio
import logging
from typing import TYPE_CHECKING, Final, Protocol

from alknet.alpn.errors import StreamBroken, StreamClosed
from alknet.alpn.streams import Stream
from alknet.call.channel import Channel
from alknet.call.envelopes import ChannelRequested
from alknet.call.errors import CallError
from alknet.logs import event

if TYPE_CHECKING:
    from alknet.call.byte_channel import ByteChannel
    from alknet.call.byte_channels import ByteChannels
    from alknet.call.serving import Server

__all__ = ["ByteService", "ServedChannel"]

log = logging.getLogger("alknet.call")

LINGER_S: Final = 10.0
"""What the other side may take to read the last bytes of a channel whose service has ended."""
FAILED: Final = "the service failed; see the node's log"


class ByteService(Protocol):
    """What an accepted channel leads to."""

    async def run(self, stream: Stream) -> None:
        """Serve the channel, called once for each that was accepted; on one that the other side has given up meanwhile
        every use raises `StreamBroken`. Its return closes the channel in order, what it raises resets it; the words of
        a `CallError` reach the other side. It is cancelled when the session ends (a little later if all that the other
        side sent is there), and when `revoked` says so."""

    def revoked(self) -> CallError | None:
        """What forbids it under the current policy; None while it may go on. Asked whenever that may have changed."""


class ServedChannel:
    """One channel of the other side's, from its request until nothing of it runs any more."""

    task: "asyncio.Task[None]"

    def __init__(self, server: "Server", channels: "ByteChannels", frames: Channel, request: ChannelRequested) -> None:
        self._server = server
        self._channels = channels
        self._frames = frames
        self._request = request
        self._service: ByteService | None = None
        self._stream: ByteChannel | None = None

    @property
    def name(self) -> str:
        return f"channel to {self._request.service}"

    async def run(self) -> None:
        try:
            self._service = await self._server.accept_channel(self._request)
            denial = self._service.revoked()
        except CallError as exc:
            self._channels.refuse(self._frames, self._request, exc)
            return
        except Exception:
            log.exception(event("a channel could not be accepted", service=self._request.service))
            self._channels.refuse(self._frames, self._request, CallError("INTERNAL", FAILED))
            return
        stream = self._stream = self._channels.accept(self._frames, self._request)
        if denial is not None:
            stream.reset(str(denial))
        try:
            await self._service.run(stream)
            async with asyncio.timeout(LINGER_S):
                await stream.aclose()
                await stream.wait_over()
        except CallError as exc:
            stream.reset(str(exc))
        except TimeoutError:
            stream.reset("what was sent last is not read")
        except (StreamBroken, StreamClosed):
            stream.reset()
        except asyncio.CancelledError:
            stream.reset("the node ends the channel")
            raise
        except Exception:
            log.exception(event("a channel failed", service=self._request.service))
            stream.reset(FAILED)

    def given_up(self) -> None:
        """The other side does not want it any more. What runs already hears that from its stream."""
        if self._stream is None:
            self.task.cancel()

    def end(self) -> None:
        """The session has ended. What has come whole may still be dealt with, as long as whoever ends it waits."""
        if not self.task.cancelling() and (self._stream is None or not self._stream.is_whole):
            self.task.cancel()

    def recheck(self) -> None:
        """End it if the current policy forbids it."""
        denial = None if self._service is None else self._service.revoked()
        if denial is not None and self._stream is not None:
            self._stream.reset(str(denial))
            self.task.cancel()
