"""One SSH connection: login, its limits, and its sessions.

A subclass of asyncssh's server connection, the same for every carrier. The methods that begin with an underscore and
override asyncssh's are the reason why its minor version is pinned; each says what for.
"""

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Final

import asyncssh

from alknet.access import Identity
from alknet.alpn.streams import Connection
from alknet.gate import Act
from alknet.keys import fingerprint
from alknet.logs import event
from alknet.ssh.channel import SessionChannel
from alknet.ssh.options import NEEDING_STRICT, SIGNATURES
from alknet.ssh.packets import FastConnection
from alknet.ssh.session import Session

if TYPE_CHECKING:
    from alknet.ssh.handler import SshHandler

__all__ = ["SshConnection"]

log = logging.getLogger("alknet.ssh")

SURFACE: Final = "ssh"
WINDOW_BYTES: Final = 2 * 1024 * 1024
"""What a client may send on a channel before its data is consumed."""
PACKET_BYTES: Final = 32 * 1024
MAX_UNREAD_BYTES: Final = 1024 * 1024
"""Sessions pause long before this, so only replies to requests that nobody reads can pile up so far."""
MAX_LOGIN_BYTES: Final = 128 * 1024
"""What a client sends to log in: a few kilobytes, or ten times a large RSA key and its signature."""
MAX_DENIALS: Final = 100
"""Sessions that one connection may be refused before it is ended; each costs a line in the audit log."""
MAX_DEFERRED_PACKETS: Final = 1024
"""Replies that wait for a change of keys; a client that changes keys must not ask for any (RFC 4253 section 7.1)."""
LAST_WORDS_S: Final = 0.2
"""What a client gets to read how its sessions ended before it is disconnected."""


class SshConnection(FastConnection):
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
        super().__init__(asyncio.get_running_loop(), options)
        self.handler = handler
        self.connection = connection
        self.sessions: set[Session] = set()
        self._is_full = False
        self.is_ending = False
        self.is_draining = False
        self._began = self._loop.time()
        self._gone = asyncio.Event()
        self.idle = asyncio.Event()
        """Set while no session runs."""
        self.idle.set()
        self._protocol_factory = lambda: _Owner(self)
        self._proven: Identity | None = None
        self._login: Act | None = None
        self._refusals = 0
        self._probes = 0
        self._login_bytes = 0
        self._denials = 0
        self._was_refused = False
        self._last_key = ""
        self._grace = self._loop.call_at(login_until, self._grace_is_over)

    @property
    def remote_host(self) -> str | None:
        remote = self.connection.remote
        return None if remote is None else remote.host

    @property
    def identity(self) -> Identity:
        """Who logged in; under the current policy, as far as `recheck` has renewed it."""
        assert self._proven is not None
        return self._proven

    # --- login ------------------------------------------------------------------------------------------------

    async def reload_config(self) -> None:
        """asyncssh re-reads OpenSSH's configuration for each login name; here there is none."""

    def public_key_auth_supported(self) -> bool:
        return True

    async def validate_public_key(self, username: str, key_data: bytes, msg: bytes, signature: bytes) -> bool:
        """Whether the offered key may be used (`msg` empty), or has signed and lets its peer in.

        A known key is accepted for use whatever its peer's state; only who has *signed* is told that the peer is
        disabled or the login name wrong. The identity is set by a verified signature and nothing else.
        """
        self._last_key = fingerprint(key_data)
        identity = self.handler.gate.policy.lookup_key(self._last_key)
        if identity is None:
            return False
        if not msg:
            self._probes += 1
            return self._probes <= self.handler.settings.auth_attempts
        if not self._signature_is_good(key_data, msg, signature):
            return False
        act = self.handler.gate.ask(
            identity,
            "ssh/login",
            username,
            surface=SURFACE,
            via=identity.via,
            connection=self.connection.id,
            remote=self.remote_host,
        )
        if not act.decision:
            self._refuse_login(username, identity, act.decision.rule, str(act.decision), act.decision.denial_id)
            self._was_refused = True
            return False
        if self.handler.connections_of(identity.id) >= self.handler.settings.connections_per_peer:
            act.done("limits.connections_per_peer")
            self._refuse_login(
                username,
                identity,
                "limits.connections_per_peer",
                "limits.connections_per_peer allows no more connections of this peer",
            )
            return False
        if self._login is not None:
            self._login.done("superseded")  # a client may ask again before it hears that it is in
        self._login = act
        self._proven = identity
        return True

    def logged_in(self) -> None:
        """The client has been told that it is in."""
        self._grace.cancel()
        self.connection.logged_in(self.identity)
        log.info(
            event(
                "auth",
                remote_addr=self.remote_host,
                result="accept",
                peer=self.identity.id,
                key=self._last_key,
                user=self.get_extra_info("username"),
                connection=self.connection.id,
            )
        )

    def send_userauth_failure(self, partial_success: bool) -> None:
        """Count a refused attempt; the client's first question, which methods there are, is one of them."""
        self._refusals += 1
        if self._refusals > self.handler.settings.auth_attempts:
            raise asyncssh.DisconnectError(
                asyncssh.DISC_NO_MORE_AUTH_METHODS_AVAILABLE, "Too many authentication failures"
            )
        super().send_userauth_failure(partial_success)

    def _signature_is_good(self, key_data: bytes, msg: bytes, signature: bytes) -> bool:
        length = int.from_bytes(signature[:4], "big")
        if signature[4 : 4 + length].decode("ascii", "replace") not in SIGNATURES:
            return False
        try:
            key = asyncssh.public_key.decode_ssh_public_key(key_data)
        except asyncssh.KeyImportError:
            return False
        key.set_touch_required(True)
        session_id = self._session_id
        return bool(key.verify(len(session_id).to_bytes(4, "big") + session_id + msg, signature))

    def _refuse_login(
        self, username: str, identity: Identity, rule: str, words: str, denial_id: str | None = None
    ) -> None:
        """Tell who has proven a key, and the log, why it does not let them in."""
        log.warning(
            event(
                "auth",
                remote_addr=self.remote_host,
                result="reject",
                reason=rule,
                denial_id=denial_id,
                peer=identity.id,
                key=self._last_key,
                user=username,
            )
        )
        self._last_key = ""
        self.send_auth_banner(f"alknet: refused: {words}\n")

    def _grace_is_over(self) -> None:
        log.info(event("login timed out", remote_addr=self.remote_host))
        self._force_close(None)

    def _choose_alg(self, alg_type: str, local_algs: Any, remote_algs: Any) -> bytes:
        """Turn away a client whose choice is safe only with the strict key exchange, and that does not do that."""
        chosen = super()._choose_alg(alg_type, local_algs, remote_algs)
        if chosen in NEEDING_STRICT and not self._strict_kex:
            raise asyncssh.KeyExchangeFailed(
                f"{chosen.decode()} needs the strict key exchange (CVE-2023-48795), which this client does not know;"
                " update it, or choose aes128-gcm@openssh.com, or hmac-sha2-256 with aes128-ctr"
            )
        return chosen

    # --- bounds -----------------------------------------------------------------------------------------------

    @property
    def is_write_paused(self) -> bool:
        """Whether sessions must not send: the client does not read, or keys are being changed, during which asyncssh
        keeps what it is given, up to the client's window, however long the client takes."""
        return self._is_full or (self._auth_complete and not self._kex_complete)

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
        for session in tuple(self.sessions):
            if self.is_write_paused:
                session.connection_paused()
            else:
                session.connection_resumed()

    def data_received(self, data: bytes, datatype: Any = None) -> None:
        """Close on a client that makes the node keep more than any honest one does."""
        if not self._auth_complete:
            self._login_bytes += len(data)
            if self._login_bytes > MAX_LOGIN_BYTES:
                log.warning(event("connection closed", remote_addr=self.remote_host, login_bytes=self._login_bytes))
                self._force_close(None)
                return
        unread = 0 if self._transport is None else self._transport.get_write_buffer_size()
        if unread > MAX_UNREAD_BYTES or len(self._deferred_packets) > MAX_DEFERRED_PACKETS:
            log.warning(event("connection closed", remote_addr=self.remote_host, unread=unread))
            self._force_close(None)
            return
        super().data_received(data, datatype)

    def new_session(self) -> tuple[SessionChannel, Session]:
        """A session channel that the client asked for; raises `ChannelOpenError` where there is no room."""
        if self.is_draining or self.is_ending:
            raise asyncssh.ChannelOpenError(asyncssh.OPEN_CONNECT_FAILED, "this connection is being ended")
        limit = self.handler.settings.channels_per_connection
        if len(self._channels) >= limit:
            raise asyncssh.ChannelOpenError(
                asyncssh.OPEN_RESOURCE_SHORTAGE,
                f"this connection has {limit} channels, the most that limits.channels_per_connection allows",
            )
        session = Session(self)
        self._update_recv_pktlen(PACKET_BYTES)
        return SessionChannel(self, session, WINDOW_BYTES, PACKET_BYTES), session

    def session_denied(self) -> None:
        """Another request was refused."""
        self._denials += 1
        if self._denials > MAX_DENIALS:
            self.end("too many refused requests")

    def session_began(self, session: Session) -> None:
        self.sessions.add(session)
        self.idle.clear()

    def session_ended(self, session: Session) -> None:
        self.sessions.discard(session)
        if not self.sessions:
            self.idle.set()

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

    def end(self, reason: str, outcome: str = "closed") -> None:
        """Disconnect, saying why; sessions that still run are told too and hung up. Idempotent."""
        if self.is_ending:
            return
        self.is_ending = True
        if self._login is not None:
            self._login.done(outcome)
        for session in tuple(self.sessions):
            session.end(reason)
        # A client that is disconnected forgets what it was still to print, so let its sessions end first.
        self._loop.call_later(LAST_WORDS_S if self.sessions else 0.0, self._disconnect, reason)

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

    def _stranger_left(self) -> None:
        """One line for the whole visit: an honest client offers several keys before the right one."""
        username = self._username
        self.handler.gate.ask(
            None,
            "ssh/login",
            username,
            surface=SURFACE,
            via=f"key:{self._last_key}",
            connection=self.connection.id,
            remote=self.remote_host,
        )
        log.warning(
            event(
                "auth",
                remote_addr=self.remote_host,
                result="reject",
                reason="not-signed" if self.handler.gate.policy.lookup_key(self._last_key) else "unknown-key",
                attempts=self._refusals,
                key=self._last_key,
                user=username,
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

    def connection_lost(self, exc: Exception | None) -> None:
        self._connection.ended(exc)
