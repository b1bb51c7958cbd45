"""Channels: asyncssh's, with bounds on what a client may make the node keep."""

from typing import TYPE_CHECKING, Any, Final

import asyncssh
from asyncssh.channel import SSHAgentChannel, SSHChannel
from asyncssh.constants import MSG_CHANNEL_CLOSE

from alknet.ssh.packets import MIN_PACKET_BYTES, FastChannel

if TYPE_CHECKING:
    from alknet.ssh.connection import SshConnection
    from alknet.ssh.pump import Pump
    from alknet.ssh.session import Session

__all__ = ["AgentChannel", "BoundedChannel", "SessionChannel", "TcpChannel", "UnixChannel"]

WINDOW_BYTES: Final = 2 * 1024 * 1024
"""What a client may send on a channel before its data is consumed."""
FIRST_WINDOW_BYTES: Final = 256 * 1024
"""The same of a forwarded connection, of which there may be hundreds, before it has shown that it is read."""
PACKET_BYTES: Final = 32 * 1024


class BoundedChannel(FastChannel):
    """What all channels have in common."""

    _conn: "SshConnection"
    _recv_buf: list[tuple[Any, int | None]]

    def process_open(self, send_chan: int, send_window: int, send_pktsize: int, session: Any) -> None:
        if send_pktsize < MIN_PACKET_BYTES:
            if hasattr(session, "close"):
                session.close()  # a coroutine that will not run
            self._loop.call_soon(self._cleanup)
            raise asyncssh.ChannelOpenError(
                asyncssh.OPEN_RESOURCE_SHORTAGE, f"packets must have room for {MIN_PACKET_BYTES} bytes"
            )
        super().process_open(send_chan, send_window, send_pktsize, session)

    def _accept_data(self, data: bytes, datatype: int | None = None) -> None:
        """Keep paused input in one piece: asyncssh lists every packet, and the window counts bytes, not packets."""
        if not self._recv_paused or self._send_state in ("close_pending", "closed"):
            super()._accept_data(data, datatype)
        elif self._recv_buf and self._recv_buf[-1][1] == datatype:
            self._recv_window -= len(data)
            self._recv_buf[-1][0].extend(data)
        elif data:
            self._recv_window -= len(data)
            self._recv_buf.append((bytearray(data), datatype))

    def _flush_send_buf(self) -> None:
        """What waits for the channel's window waits for room on the connection, too."""
        if not self._conn.is_write_paused:
            super()._flush_send_buf()

    def room_is_back(self) -> None:
        """Send what has waited for room on the connection: the client may have no reason to widen the window again."""
        if self._send_buf or self._send_state in ("eof_pending", "close_pending"):
            self._flush_send_buf()

    def _process_close(self, pkttype: int, pktid: int, packet: Any) -> None:
        """A channel that the client closes is over, although the session may have paused input: asyncssh would wait
        until that is read."""
        self._take_rest()
        super()._process_close(pkttype, pktid, packet)

    def _take_rest(self) -> None:
        """The client has closed the channel: decide what becomes of the input that the session has no room for. A
        process that never reads it would outlive its channel."""
        self._recv_buf.clear()

    _packet_handlers = SSHChannel._packet_handlers | {MSG_CHANNEL_CLOSE: _process_close}


class _Forwarded(BoundedChannel):
    """What all forwarded connections have in common."""

    _session: "Pump | None"

    def __init__(self, connection: "SshConnection") -> None:
        connection._update_recv_pktlen(PACKET_BYTES)
        super().__init__(connection, connection._loop, None, "strict", FIRST_WINDOW_BYTES, PACKET_BYTES)

    def _deliver_data(self, data: bytes, datatype: int | None = None) -> None:
        """Widen the window of a connection whose far end takes what it gets, as long as there is something to widen
        it with; what stalls from the beginning is never kept more of than a little."""
        window = self._init_recv_window
        if self._recv_window < window / 2 and window < WINDOW_BYTES and self._conn.forwarding.widen(window):
            self._init_recv_window = 2 * window
        super()._deliver_data(data, datatype)

    def _cleanup(self, exc: Exception | None = None) -> None:
        if self._conn is not None:
            self._conn.forwarding.widen(FIRST_WINDOW_BYTES - self._init_recv_window)
        super()._cleanup(exc)

    def _take_rest(self) -> None:
        """What the client sent before it closed is still meant for the socket; the window bounds it."""
        rest, self._recv_buf = self._recv_buf, []
        for data, datatype in rest:
            if self._session is not None:
                self._session.data_received(data, datatype)


class SessionChannel(BoundedChannel, asyncssh.SSHServerChannel[bytes]):  # type: ignore[misc]
    """A session channel that carries bytes and has no line editor."""

    def __init__(self, connection: "SshConnection", session: "Session") -> None:
        connection._update_recv_pktlen(PACKET_BYTES)
        super().__init__(
            connection,
            connection._loop,
            allow_pty=True,
            line_editor=False,
            line_echo=False,
            line_history=0,
            max_line_length=0,
            encoding=None,
            errors="strict",
            window=WINDOW_BYTES,
            max_pktsize=PACKET_BYTES,
        )
        self._requested_by = session

    def _process_env_request(self, packet: Any) -> bool:
        """asyncssh keeps whatever it is sent; the session keeps what is allowed, up to a bound."""
        name, value = packet.get_string(), packet.get_string()
        packet.check_end()
        return self._requested_by.env.offer(name, value)

    def _process_exec_request(self, packet: Any) -> bool:
        """Commands are bytes; asyncssh fails one that is not UTF-8 without a word."""
        command = packet.get_string()
        packet.check_end()
        return self._start_session(command=command.decode("utf-8", "surrogateescape"))

    def _process_auth_agent_req_at_openssh_dot_com_request(self, packet: Any) -> None:
        """The socket of asyncssh's own listener would belong to the node."""
        packet.check_end()
        self._conn.handler.tasks.start(self._offer_agent(), name="agent")

    async def _offer_agent(self) -> None:
        answer = False
        try:
            answer = await self._requested_by.agent_requested()
        finally:  # the client's next request waits for it
            if self._request_queue and self._conn is not None:  # else the channel has been closed meanwhile
                self._report_response(answer)


class TcpChannel(_Forwarded, asyncssh.SSHTCPChannel[bytes]):
    """A forwarded TCP connection."""


class UnixChannel(_Forwarded, asyncssh.SSHUNIXChannel[bytes]):
    """A forwarded connection of a Unix socket."""


class AgentChannel(_Forwarded, SSHAgentChannel):
    """A connection to the agent at the client."""
