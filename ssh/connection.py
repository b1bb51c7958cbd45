"""One SSH connection: its limits, its sessions, its end; how it begins is in :mod:`alknet.ssh.login`.

A subclass of asyncssh's server connection, the same for every carrier. The methods that begin with an underscore and
override asyncssh's are the reason why its minor version is pinned; each says what for.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Final, TypeVar

import asyncssh
from asyncssh.packet import UInt32

from alknet.alpn.streams import Connection
from alknet.logs import event
from alknet.ssh.channel import BoundedChannel, SessionChannel
from alknet.ssh.forward_acts import NotForwarded
from alknet.ssh.forwarding import Forwarding
from alknet.ssh.login import SURFACE, Login
from alknet.ssh.session import Session

if TYPE_CHECKING:
    from alknet.ssh.handler import SshHandler

__all__ = ["SshConnection"]

log = logging.getLogger("alknet.ssh")

T = TypeVar("T")

MAX_UNREAD_BYTES: Final = 1024 * 1024
"""Sessions pause long before this, so only replies to requests that nobody reads can pile up so far."""
MAX_LOGIN_BYTES: Final = 128 * 1024
"""What a client sends to log in: a few kilobytes, or ten times a large RSA key and its signature."""
MAX_DENIALS: Final = 100
"""Sessions that one connection may be refused at once before it is ended; each costs a line in the audit log …"""
DENIALS_PER_S: Final = 1.0
"""… and how many more are forgiven in a second."""
MAX_DEFERRED_PACKETS: Final = 1024
"""Replies that wait for a change of keys; a client that changes keys must not ask for any (RFC 4253 section 7.1)."""
MAX_WAITING_REQUESTS: Final = 1024
"""Requests for listeners that wait for the ones before them."""
LAST_WORDS_S: Final = 0.2
"""What a client gets to read how its sessions ended before it is disconnected."""


class SshConnection(Login):
    """The server side of one SSH connection, on whatever carried it here."""

    def __init__(
        self,
        handler: "SshHandler",
        connection: Connection,
        options: asyncssh.SSHServerConnectionOptions,
        *,
        login_until: float,
    ) -> None:
        """`login_until` (event-loop time) is when a stranger has to have logged in."""
        super().__init__(handler, connection, options, login_until=login_until)
        self.sessions: set[Session] = set()
        self._is_full = False
        self.is_ending = False
        self.is_draining = False
        self._gone = asyncio.Event()
        self.idle = asyncio.Event()
        """Set while no session runs."""
        self.idle.set()
        self._protocol_factory = lambda: _Owner(self)
        self._denials = 0.0
        self._denied_at = self._began
        self.forwarding = Forwarding(self)

    # --- bounds -----------------------------------------------------------------------------------------------

    @property
    def is_write_paused(self) -> bool:
        """Whether sessions must not send: the client does not read, or keys are being changed, during which asyncssh
        keeps what it is given, up to the client's window, however long the client takes."""
        return self._is_full or (self._auth_complete and not self._kex_complete)

    @property
    def is_lost(self) -> bool:
        """Whether nothing can be sent any more."""
        return self._transport is None

    def pause_writing(self) -> None:
        """The client does not read: stop what feeds its sessions (asyncssh would go on)."""
        self._is_full = True
        self._room_changed()

    def resume_writing(self) -> None:
        self._is_full = False
        self._room_changed()

    def _send_kexinit(self) -> None:
        super()._send_kexinit()
        self._room_changed()

    def _send_deferred_packets(self) -> None:
        super()._send_deferred_packets()
        self._room_changed()

    def _room_changed(self) -> None:
        for channel in tuple(self._channels.values()):
            if isinstance(channel, BoundedChannel) and not self.is_write_paused:
                channel.room_is_back()
        for session in tuple(self.sessions):
            if self.is_write_paused:
                session.connection_paused()
            else:
                session.connection_resumed()
        if self.is_write_paused:
            self.forwarding.paused()
        else:
            self.forwarding.resumed()

    def data_received(self, data: bytes, datatype: Any = None) -> None:
        """Close on a client that makes the node keep more than any honest one does."""
        if not self._auth_complete:
            self._login_bytes += len(data)
            if self._login_bytes > MAX_LOGIN_BYTES:
                log.warning(event("connection closed", remote_addr=self.remote_host, login_bytes=self._login_bytes))
                self._force_close(None)
                return
        unread = 0 if self._transport is None else self._transport.get_write_buffer_size()
        if (
            unread > MAX_UNREAD_BYTES
            or len(self._deferred_packets) > MAX_DEFERRED_PACKETS
            or len(self._global_request_queue) > MAX_WAITING_REQUESTS
        ):
            log.warning(event("connection closed", remote_addr=self.remote_host, unread=unread))
            self._force_close(None)
            return
        super().data_received(data, datatype)

    def new_session(self) -> tuple[SessionChannel, Session]:
        """A session channel that the client asked for; raises `ChannelOpenError` where there is no room."""
        if self.is_draining or self.is_ending:
            raise asyncssh.ChannelOpenError(asyncssh.OPEN_CONNECT_FAILED, "this connection is being ended")
        limit = self.handler.settings.channels_per_connection
        if sum(isinstance(channel, SessionChannel) for channel in self._channels.values()) >= limit:
            raise asyncssh.ChannelOpenError(
                asyncssh.OPEN_RESOURCE_SHORTAGE,
                f"this connection has {limit} channels, the most that limits.channels_per_connection allows",
            )
        session = Session(self)
        return SessionChannel(self, session), session

    def session_denied(self, cost: float = 1.0) -> None:
        """Another request was refused."""
        now = self._loop.time()
        self._denials = max(0.0, self._denials - (now - self._denied_at) * DENIALS_PER_S) + cost
        self._denied_at = now
        if self._denials > MAX_DENIALS:
            self.end("too many refused requests")

    def facts(self) -> dict[str, Any]:
        """What the audit log is told of every act of this connection."""
        return {"surface": SURFACE, "connection": self.connection.id, "remote": self.remote_host}

    def session_began(self, session: Session) -> None:
        self.sessions.add(session)
        self.idle.clear()

    def session_ended(self, session: Session) -> None:
        self.sessions.discard(session)
        self.forwards_changed()

    def forwards_changed(self) -> None:
        """Something that goes on has begun or ended."""
        if self.sessions or self.forwarding.is_busy:
            self.idle.clear()
        else:
            self.idle.set()

    # --- forwards: what asyncssh would do without asking ------------------------------------------------------

    def _process_tcpip_forward_global_request(self, packet: Any) -> None:
        host, port = _listen_address(packet)
        self._answer(self.forwarding.listen_tcp(host, port), lambda bound: UInt32(bound) if port == 0 else True)

    def _process_cancel_tcpip_forward_global_request(self, packet: Any) -> None:
        self._report_global_response(self.forwarding.cancel(_listen_address(packet)))

    def _process_streamlocal_forward_at_openssh_dot_com_global_request(self, packet: Any) -> None:
        self._answer(self.forwarding.listen_unix(_listen_path(packet)), lambda _: True)

    def _process_cancel_streamlocal_forward_at_openssh_dot_com_global_request(self, packet: Any) -> None:
        self._report_global_response(self.forwarding.cancel(_listen_path(packet)))

    def _answer(self, listening: Coroutine[Any, Any, T], result: Callable[[T], bool | bytes]) -> None:
        """Answer a request for a listener. A refusal has no room for words; a client that is asked to be talkative
        shows them."""

        async def answer() -> None:
            reply: bool | bytes = False
            try:
                reply = result(await listening)
            except NotForwarded as exc:
                self.remark(str(exc))
            finally:  # the client's next request waits for it
                if self._transport is not None:
                    self._report_global_response(reply)

        self.handler.tasks.start(answer(), name="listen")

    def remark(self, words: str, *, for_people: bool = False) -> None:
        """Say what SSH has no other room for, in a debug message: ssh shows it with ``-v``, and alknet's own client
        always if it is `for_people`."""
        if self._transport is not None:
            text = words.encode("utf-8", "backslashreplace").decode()  # a path may be no text
            self.send_debug(f"alknet: {text}", always_display=for_people)

    # --- the end ----------------------------------------------------------------------------------------------

    def recheck(self) -> None:
        """End what the current policy forbids: the connection, or single sessions of it."""
        if self._login is None or self._proven is None:
            return
        gate = self.handler.gate
        decision = gate.still(self._proven, "ssh/login", self._username)
        if not decision:
            for session in tuple(self.sessions):
                session.revoke(decision, login=True)
            self.end(f"access was taken away: {decision}", "revoked")
            return
        self._proven = gate.policy.renew(self._proven) or self._proven
        for session in tuple(self.sessions):
            session.recheck()
        self.forwarding.recheck()

    def end(self, reason: str, outcome: str = "closed") -> None:
        """Disconnect, saying why; sessions that still run are told too and hung up. Idempotent."""
        if self.is_ending:
            return
        self.is_ending = True
        if self._login is not None:
            self._login.done(outcome)
        for session in tuple(self.sessions):
            session.end(reason)
        is_busy = bool(self.sessions) or self.forwarding.is_busy
        self.forwarding.end()
        # A client that is disconnected forgets what it was still to print, so let its sessions end first. What it still
        # sends when the socket is closed resets that, and the client forgets the reason, so let its channels end, too.
        self._loop.call_later(LAST_WORDS_S if is_busy else 0.0, self._disconnect, reason)

    def _force_close(self, exc: Exception | None) -> None:
        """Let what is written get out first, above all the message that says why; asyncssh would throw it away."""
        transport, self._transport = self._transport, None
        if transport is None:
            return
        transport.close()
        self._loop.call_later(LAST_WORDS_S, transport.abort)
        self._loop.call_soon(self._cleanup, exc)

    def connection_lost(self, exc: Exception | None = None) -> None:
        """Called by the transport when it has ended, and by asyncssh to end it."""
        if self._transport is None or self._transport.is_closing():
            self._gone.set()
        super().connection_lost(exc)

    async def wait_gone(self) -> None:
        """Wait until the transport itself has ended."""
        await self._gone.wait()

    def _disconnect(self, reason: str) -> None:
        if self._transport is not None:
            self.disconnect(asyncssh.DISC_BY_APPLICATION, reason)

    def ended(self, exc: Exception | None) -> None:
        """The connection is gone, whoever ended it."""
        self._grace.cancel()
        self.forwarding.end()
        if self._login is not None:
            self._login.done("closed" if exc is None else f"lost: {exc}")
        else:
            if self._last_key:
                self._stranger_left()
            if self._last_key or self._was_refused:
                self.handler.login_failed(self.remote_host)
        log.info(
            event(
                "connection closed",
                remote_addr=self.remote_host,
                connection=self.connection.id,
                duration_s=round(self._loop.time() - self._began, 3),
            )
        )


class _Owner(asyncssh.SSHServer):
    """asyncssh tells an owner what happens on a connection; this one passes it to the connection itself."""

    def __init__(self, connection: SshConnection) -> None:
        self._connection = connection

    def auth_completed(self) -> None:
        self._connection.logged_in()

    def session_requested(self) -> Any:
        return self._connection.new_session()

    def connection_requested(self, dest_host: str, dest_port: int, orig_host: str, orig_port: int) -> Any:
        return self._connection.forwarding.open_tcp(dest_host, dest_port)

    def unix_connection_requested(self, dest_path: str) -> Any:
        return self._connection.forwarding.open_unix(dest_path)

    def connection_lost(self, exc: Exception | None) -> None:
        self._connection.ended(exc)


def _listen_address(packet: Any) -> tuple[str, int]:
    host, port = packet.get_string(), packet.get_uint32()
    packet.check_end()
    return _text(host), port


def _listen_path(packet: Any) -> str:
    path = packet.get_string()
    packet.check_end()
    return _text(path)


def _text(data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise asyncssh.ProtocolError("a forward request is not UTF-8 text") from None
