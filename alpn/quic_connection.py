"""QUIC as a carrier: a `Connection` of many streams, driven by datagrams and a timer.

`QuicConnection` pumps an `Engine`: it is given datagrams (`receive`, then `progressed` once for all of them), sends
what the engine wants sent through its `Link`, and keeps the engine's time. Streams wait on it with futures; nothing
here starts a task.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any, Final, Protocol

from alknet.access import Identity
from alknet.alpn.errors import ConnectionClosed, StreamsExhausted
from alknet.alpn.quic import Datagrams, Engine
from alknet.alpn.quic_stream import QuicStream
from alknet.alpn.streams import Address, BaseConnection, ChannelBinding
from alknet.logs import event

__all__ = ["KEEPALIVE_S", "Link", "QuicConnection"]

log = logging.getLogger("alknet.alpn")

KEEPALIVE_S: Final = 20.0
"""A connection that has heard nothing for so long asks whether the other side is there; NATs forget after 30 s."""
QUESTIONS: Final = 3
"""So often a connection that is watched asks, in equal steps of its patience, before it gives the other side up."""
LAST_LOOK_S: Final = 0.01
"""Before that it looks once more for what has arrived: after this process was held up, a timer may come first."""

CLOSE_LINGER_S: Final = 3.0
"""How long a closed connection is kept, so that the other side hears of it; QUIC's own measure is the other side's to
stretch."""
MOVE_LOG_INTERVAL_S: Final = 10.0
"""A connection that moves all the time is logged once in this."""


class Link(Protocol):
    """Where a connection's datagrams go."""

    def send(self, datagrams: Datagrams, connection: "QuicConnection") -> None:
        """Send, or drop; never waits."""

    @property
    def is_blocked(self) -> bool:
        """The system takes no more now; `send` again when `QuicConnection.flush` is called."""

    def cid_issued(self, cid: bytes, connection: "QuicConnection") -> None:
        """Datagrams to `cid` are for `connection`."""

    def cid_retired(self, cid: bytes) -> None: ...
    def over(self, connection: "QuicConnection") -> None:
        """The connection needs no datagrams any more."""


class QuicConnection(BaseConnection):
    """One QUIC connection; `on_established` hears when the handshake is completed, `alpn` is known then."""

    def __init__(
        self,
        engine: Engine,
        link: Link,
        *,
        remote: Address,
        local: Address | None,
        on_established: Callable[["QuicConnection"], None],
        on_login: Callable[[], None] | None = None,
        on_closed: Callable[[], None] | None = None,
    ) -> None:
        super().__init__(alpn="", transport="quic", remote=remote, local=local, on_login=on_login)
        self.engine = engine
        self.is_established = False
        self._address: Any = None
        """The socket address that `remote` is of."""
        self._link = link
        self._on_established = on_established
        self._on_closed = on_closed
        self._loop = asyncio.get_running_loop()
        self._streams: dict[int, QuicStream] = {}
        self._incoming: dict[int, QuicStream] = {}
        """Those of the other side that nobody has accepted, in their order."""
        self._arrived = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._flush_is_due = False
        self._is_over = False
        self._heard_at = time.monotonic()
        self._move_logged_at = -MOVE_LOG_INTERVAL_S
        self._linger: asyncio.TimerHandle | None = None
        self._keepalive: asyncio.TimerHandle | None = None
        self._patience_s: float | None = None
        """How long the other side may be silent; None for as long as QUIC itself allows."""
        self._asked = 0
        """Questions since the other side was heard."""

    # --- the contract -----------------------------------------------------------------------------------------

    def logged_in(self, identity: Identity) -> None:
        super().logged_in(identity)
        self.engine.trust()
        self.flush_soon()

    async def open_stream(self) -> QuicStream:
        self._check_open()
        stream_id = self.engine.open_stream()
        if stream_id is None:
            raise StreamsExhausted("as many streams as one side may have are open")
        self.flush_soon()
        return self._add(stream_id)

    async def accept_stream(self) -> QuicStream:
        while not self._incoming:
            self._check_open()
            self._arrived.clear()
            await self._arrived.wait()
        self._check_open()
        stream = self._incoming.pop(next(iter(self._incoming)))
        stream.check_over()
        return stream

    def close(self, code: int = 0, reason: str = "") -> None:
        if self._closed.is_set():
            return
        for stream in tuple(self._streams.values()):
            stream.cut()
        self.engine.close(code, reason)
        self.flush()
        self._ended(code, reason)

    def watch(self, patience_s: float) -> None:
        self._patience_s = patience_s
        if self.is_established and not self._closed.is_set():
            self._asked = 0
            self._look_in(self._step_s, self._keep_alive)

    # --- being driven -----------------------------------------------------------------------------------------

    def receive(self, data: bytes, address: Any, now: float) -> bool:
        """A datagram for this connection; `progressed` follows when there are no more. Says whether it was the other
        side's."""
        is_theirs = self.engine.receive(data, address, now)
        if is_theirs:
            self._heard_at = now
            self._asked = 0
        return is_theirs

    def progressed(self) -> None:
        """Deal with what was received, or what the timer has caused."""
        self.engine.pump(self)
        for stream in tuple(self._streams.values()):
            stream.maybe_wake_writer()
        self.flush()
        address = self.engine.peer_address
        if address is not None and address != self._address:
            self._moved(address)

    def _moved(self, address: Any) -> None:
        """The other side has another address, or has proven its first one."""
        remote, self._address = Address.of(address), address
        before, self.remote = self.remote, remote
        now = time.monotonic()
        if self.identity is None or before is None or remote.host == before.host:
            return
        if now - self._move_logged_at >= MOVE_LOG_INTERVAL_S:
            self._move_logged_at = now
            log.info(event("connection moved", connection=self.id, remote_addr=remote.host, before=before.host))

    def flush_soon(self) -> None:
        """Send what is to be sent when the code that runs now has ended."""
        if not self._flush_is_due:
            self._flush_is_due = True
            self._loop.call_soon(self.safely, self.flush)

    def flush(self) -> None:
        self._flush_is_due = False
        if self._is_over or self._link.is_blocked:
            return
        datagrams = self.engine.datagrams(time.monotonic())
        if datagrams:
            # Nobody answers to a close: whoever does not hear it waits for as long as a connection may be silent.
            self._link.send(2 * datagrams if self.engine.has_just_closed else datagrams, self)
        self._set_timer()
        if datagrams:
            self.engine.pump(self)  # a connection id counts as soon as the other side may have heard of it

    def abandon(self) -> None:
        """Forget the connection without a word to the other side."""
        self.terminated()

    def _set_timer(self) -> None:
        at = self.engine.timer()
        if at is None:
            return
        if self._timer is not None:
            if self._timer_at <= at:
                return  # it fires in time, and looks again
            self._timer.cancel()
        self._timer_at = at
        self._timer = self._loop.call_later(max(0.0, at - time.monotonic()), self._timer_fired)

    def safely(self, step: Callable[[], object]) -> None:
        """A mistake that `step` brings out, the library's or a handler's, ends this connection and no other."""
        try:
            step()
        except Exception:
            log.exception(event("connection failed", connection=self.id, remote_addr=self.remote))
            self.abandon()

    def _timer_fired(self) -> None:
        self._timer = None
        self.safely(self._look_at_time)

    def _look_at_time(self) -> None:
        now, at = time.monotonic(), self.engine.timer()
        if at is not None and at <= now:
            self.engine.handle_timer(now)
            self.progressed()
        else:
            self._set_timer()

    # --- whether the other side is there ----------------------------------------------------------------------

    @property
    def _step_s(self) -> float:
        """How long the other side is silent before it is asked."""
        return KEEPALIVE_S if self._patience_s is None else min(KEEPALIVE_S, self._patience_s / (QUESTIONS + 1))

    def _look_in(self, delay_s: float, look: Callable[[], None]) -> None:
        if self._keepalive is not None:
            self._keepalive.cancel()
        self._keepalive = self._loop.call_later(delay_s, self.safely, look)

    def _keep_alive(self) -> None:
        """Ask whether the other side is there when it was silent for a step.

        What gives it up is unanswered questions, each of which had a step of its own, and not the clock: a process that
        was held up for long has asked nobody and read nothing meanwhile.
        """
        step_s, patience_s = self._step_s, self._patience_s
        quiet_s = time.monotonic() - self._heard_at
        if quiet_s < step_s:
            self._look_in(step_s - quiet_s, self._keep_alive)
        elif patience_s is not None and (self._asked + 1) * step_s >= patience_s:
            self._look_in(LAST_LOOK_S, self._last_look)
        else:
            self._asked += 1
            self.engine.ping()
            self.flush_soon()
            self._look_in(step_s, self._keep_alive)

    def _last_look(self) -> None:
        if not self._asked:  # it was heard after all
            self._keep_alive()
            return
        reason = f"nothing was heard for {self._patience_s:g} s"
        self.engine.close(0, reason)  # for a path that works in the other direction only
        self.flush()
        self._ended(0, reason)

    # --- QuicEvents -------------------------------------------------------------------------------------------

    def handshake_completed(self, alpn: str) -> None:
        self.alpn = alpn
        self.is_established = True
        self.channel_binding = ChannelBinding("tls-spki", self.engine.spki)
        self.peer_certificates = self.engine.peer_certificates
        self._look_in(self._step_s, self._keep_alive)
        self._on_established(self)

    def stream_opened(self, stream_id: int) -> None:
        stream = self._add(stream_id)
        if self._closed.is_set():
            stream.reset()
            return
        self._incoming[stream_id] = stream
        self._arrived.set()

    def data_received(self, stream_id: int, data: bytes, is_last: bool) -> None:
        self._streams[stream_id].data_received(data, is_last)

    def stream_reset(self, stream_id: int) -> None:
        self._streams[stream_id].was_reset()

    def stream_stopped(self, stream_id: int) -> None:
        if stream_id in self._streams:
            self._streams[stream_id].was_stopped()

    def cid_issued(self, cid: bytes) -> None:
        self._link.cid_issued(cid, self)

    def cid_retired(self, cid: bytes) -> None:
        self._link.cid_retired(cid)

    def closing(self, code: int, reason: str) -> None:
        self._ended(code, reason)

    def terminated(self) -> None:
        self._is_over = True
        for timer in (self._timer, self._keepalive, self._linger):
            if timer is not None:
                timer.cancel()
        self._ended(0, "")
        self._link.over(self)
        self.engine.forget()

    # --- streams ----------------------------------------------------------------------------------------------

    def over(self, stream_id: int) -> None:
        """Both directions of a stream are over; the other side may open another one once this one was accepted."""
        if stream_id not in self._incoming and self.engine.over(stream_id):
            self.flush_soon()

    def forget(self, stream_id: int) -> None:
        """Its user is done with a stream that is over, and nothing is kept of it."""
        self._streams.pop(stream_id, None)

    def replace(self, stream_id: int, stream: QuicStream) -> None:
        """What happens to the stream is for this object from now on."""
        self._streams[stream_id] = stream

    @property
    def has_ended(self) -> bool:
        return self._closed.is_set()

    def _add(self, stream_id: int) -> QuicStream:
        stream = self._streams[stream_id] = QuicStream(self, stream_id)
        return stream

    def _ended(self, code: int, reason: str) -> None:
        if self._closed.is_set():
            return
        self.close_reason = (code, reason)
        if self._keepalive is not None:
            self._keepalive.cancel()
        self._closed.set()
        self._arrived.set()
        for stream in tuple(self._streams.values()):
            stream.connection_ended()
        self._incoming.clear()
        if not self._is_over:
            self._linger = self._loop.call_later(CLOSE_LINGER_S, self.terminated)
        if self._on_closed is not None:
            self._on_closed()

    def _check_open(self) -> None:
        if self._closed.is_set():
            raise ConnectionClosed("the connection has ended")
