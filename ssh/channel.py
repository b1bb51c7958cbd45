"""The session channel: asyncssh's, with bounds on what a client may set before it is decided."""

from typing import TYPE_CHECKING, Any

import asyncssh
from asyncssh.constants import MSG_CHANNEL_CLOSE

from alknet.ssh.packets import MIN_PACKET_BYTES, FastChannel

if TYPE_CHECKING:
    from alknet.ssh.connection import SshConnection
    from alknet.ssh.session import Session

__all__ = ["SessionChannel"]


class SessionChannel(FastChannel):
    """A session channel that carries bytes and has no line editor."""

    _conn: "SshConnection"
    _recv_buf: list[tuple[Any, int | None]]

    def __init__(self, connection: "SshConnection", session: "Session", window: int, packet_size: int) -> None:
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
            window=window,
            max_pktsize=packet_size,
        )
        self._requested_by = session

    def process_open(self, send_chan: int, send_window: int, send_pktsize: int, session: Any) -> None:
        if send_pktsize < MIN_PACKET_BYTES:
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

    def _process_close(self, pkttype: int, pktid: int, packet: Any) -> None:
        """A channel that the client closes is over, although the session may have paused input: asyncssh would wait
        until that is read, and a process that never reads would outlive its channel."""
        self._recv_buf.clear()
        super()._process_close(pkttype, pktid, packet)

    _packet_handlers = asyncssh.SSHServerChannel._packet_handlers | {MSG_CHANNEL_CLOSE: _process_close}
