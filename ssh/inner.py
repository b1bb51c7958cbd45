"""A part of the node that speaks on a session's channel: a subsystem, or a command such as ``op``."""

import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from alknet.errors import AlknetError, DeniedError
from alknet.logs import event
from alknet.ssh.channel import SessionChannel
from alknet.ssh.channel_stream import ChannelStream

if TYPE_CHECKING:
    from alknet.ssh.connection import SshConnection

__all__ = ["Inner"]

log = logging.getLogger("alknet.ssh")


class Inner:
    """Runs one part of the node on a channel."""

    def __init__(self, connection: "SshConnection", channel: SessionChannel, on_end: Callable[[int], None]) -> None:
        self.stream = ChannelStream(channel)
        self._connection = connection
        self._on_end = on_end
        self._unwanted: Callable[[], object] = lambda: None
        self.has_last_word = False

    def start(self, name: str, serve: Callable[[ChannelStream], Awaitable[int]], *, is_command: bool) -> None:
        """Begin; `serve` returns the exit status. A subsystem reads, and learns from that when the channel is gone; a
        command, which has nothing to read, is cancelled then."""
        task = self._connection.handler.tasks.start(self._run(name, serve), name=name)
        if is_command:
            self._unwanted = task.cancel

    def speak_last(self) -> bool:
        """The peer may be here no longer: until the disconnect, this part says so in its own way."""
        self.has_last_word = True
        self.stream.recheck()
        return True

    def connection_lost(self) -> None:
        """The channel is gone."""
        self.stream.connection_lost()
        self._unwanted()

    async def _run(self, name: str, serve: Callable[[ChannelStream], Awaitable[int]]) -> None:
        try:
            status = await serve(self.stream)
        except AlknetError as exc:
            log.info(event("subsystem ended", name=name, reason=exc))
            status = exc.exit_code
        except Exception:
            log.exception(event("subsystem failed", name=name))
            status = 1
        self._on_end(status)
        if status == DeniedError.exit_code:
            self._connection.session_denied()
