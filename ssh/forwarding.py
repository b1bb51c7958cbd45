"""What a client has forwarded through a connection: to addresses and sockets from here (``-L``, ``-D``, ``-J``), and
from listeners here to itself (``-R``, ``-A``).

Every connection and every listener is an act of its own. A name is resolved once, each address is decided, and only an
address that was allowed is dialled. What a reload forbids ends; what has to be refused is refused with its reason, on
the channel where there is one.
"""

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import asyncssh

from alknet.access import Decision
from alknet.hosts import address_of
from alknet.logs import event
from alknet.resolver import dial
from alknet.ssh.channel import AgentChannel, TcpChannel, UnixChannel
from alknet.ssh.forward_acts import Forward, NotForwarded, check_descriptors, reported
from alknet.ssh.forward_rights import AGENT, LOCAL, REMOTE, ForwardRights
from alknet.ssh.listeners import Listener, bind_all
from alknet.ssh.pump import Pump
from alknet.ssh.user_sockets import connect_to_unix, listen_for_agent, listen_on_unix

if TYPE_CHECKING:
    from alknet.ssh.connection import SshConnection

__all__ = ["Forwarding", "NotForwarded"]

log = logging.getLogger("alknet.ssh")

LIMIT: Final = "limits.forwards_per_connection"
MAX_WIDENED_BYTES: Final = 32 * 1024 * 1024
"""What the windows of all forwarded connections together may have beyond the first one of each."""
MAX_HELPERS: Final = 8
"""Processes that connect to sockets for one client at the same time."""
MAX_NAMED: Final = 32
"""Sockets with a name in the file system: each has a process of its own."""

ListenKey = tuple[str, int] | str
"""What a client calls a listener of its own: host and port, or a path."""
AGENT_KEY: Final = "agent:"
OpenChannel = Callable[[Pump, Any], Awaitable[Any]]
"""Asks the client to take a connection, which comes from an address and which the pump then serves."""


class Forwarding:
    """The forwards of one connection."""

    def __init__(self, connection: "SshConnection") -> None:
        self._connection = connection
        self._rights = ForwardRights(connection)
        self._outgoing: set[Forward] = set()
        self._listeners: dict[ListenKey, Forward] = {}
        self._waiting = 0
        """Connections that are being made, and those whose channel the client has not accepted yet."""
        self._helpers = asyncio.Semaphore(MAX_HELPERS)
        self._agent_lock = asyncio.Lock()
        self._window_left = MAX_WIDENED_BYTES
        self._is_over = False

    def widen(self, more: int) -> bool:
        """Take `more` bytes for the window of a channel, or give them back if less than none; whether there were so
        many."""
        is_there = more <= self._window_left
        if is_there:
            self._window_left -= more
        return is_there

    @property
    def count(self) -> int:
        """Connections and listeners, also those that are being made."""
        connections = sum(len(live.pumps) for live in self._lives())
        return self._waiting + connections + len(self._listeners)

    @property
    def is_busy(self) -> bool:
        return self._waiting > 0 or any(live.pumps for live in self._lives())

    def _lives(self) -> tuple[Forward, ...]:
        return (*self._outgoing, *self._listeners.values())

    # --- from here --------------------------------------------------------------------------------------------

    def open_tcp(self, host: str, port: int) -> tuple[TcpChannel, Coroutine[Any, Any, Pump]]:
        """The channel for a connection that the client asks for, and what makes that."""
        return TcpChannel(self._connection), self._opened(partial(self._dial, host, port))

    def open_unix(self, path: str) -> tuple[UnixChannel, Coroutine[Any, Any, Pump]]:
        return UnixChannel(self._connection), self._opened(partial(self._connect, path))

    async def _opened(self, reach: Callable[[], Coroutine[Any, Any, tuple[Forward, socket.socket]]]) -> Pump:
        try:
            self._check_room()
            self._waiting += 1
            try:
                live, sock = await reach()
            finally:
                self._waiting -= 1
            try:
                self._check_still(live)
                with reported([live]):
                    check_descriptors(sock)
            except NotForwarded:
                sock.close()
                raise
            self._outgoing.add(live)
            pump = self._pump(live, sock, partial(self._outgoing_ended, live))
            with reported([live]):
                await pump.start()
            return pump
        except NotForwarded as exc:
            self._connection.forwards_changed()
            raise asyncssh.ChannelOpenError(exc.code, str(exc)) from exc

    async def _dial(self, host: str, port: int) -> tuple[Forward, socket.socket]:
        targets = await self._rights.resolved(LOCAL, host, port)
        allowed = [target for target in targets if self._rights.allows(LOCAL, target)]
        resource = str((allowed or targets)[0])
        live = Forward(self._rights.ask(LOCAL, resource), LOCAL, resource)
        with reported([live]):
            if allowed[0].is_self:
                return live, await self._connection.handler.dial_self(allowed[0], self._connection.connection.remote)
            sock = await dial([target for target in allowed if not target.is_self])
            reached = address_of(sock.getpeername()[0])
            live.narrow(*(str(target) for target in allowed if address_of(target.address or "") == reached))
            return live, sock

    async def _connect(self, path: str) -> tuple[Forward, socket.socket]:
        self._rights.check_scope(LOCAL, path)
        lives: list[Forward] = []

        def decide(real: str) -> None:
            lives.append(Forward(self._rights.ask(LOCAL, real), LOCAL, real))

        with reported(lives):
            async with self._helpers:
                if self._is_over:
                    raise NotForwarded("this connection is being ended", code=asyncssh.OPEN_CONNECT_FAILED)
                sock = await connect_to_unix(path, self._rights.user(), decide)
        return lives[0], sock

    def _outgoing_ended(self, live: Forward) -> None:
        self._outgoing.discard(live)
        live.act.done("hung up" if self._connection.is_lost else "closed")

    # --- to the client ----------------------------------------------------------------------------------------

    async def listen_tcp(self, host: str, port: int) -> int:
        """Listen for the client; returns the port, which is chosen here if `port` is 0. Raises `NotForwarded`."""
        if port:
            self._check_new((host, port))
        self._check_room()
        targets = await self._rights.resolved(REMOTE, host, port)
        allowed = [target for target in targets if self._rights.allows(REMOTE, target)]
        resource = str((allowed or targets)[0])
        live = Forward(self._rights.ask(REMOTE, resource), REMOTE, *map(str, allowed))
        with reported([live]):
            ports = [port] if port else self._rights.free_ports(allowed)
            sockets = await bind_all([target.address or target.host for target in allowed], ports, self._rights.user())
        bound = int(sockets[0].getsockname()[1])
        live.narrow(*(str(self._rights.bound(target, bound)) for target in allowed))

        def open_channel(pump: Pump, address: Any) -> Awaitable[Any]:
            return TcpChannel(self._connection).accept(lambda: pump, host, bound, address[0], address[1])

        self._begin((host, bound), live, sockets, open_channel)
        return bound

    async def listen_unix(self, path: str) -> None:
        """Listen for the client on a socket at `path`. Raises `NotForwarded`."""
        self._check_new(path)
        self._check_room()
        if sum(isinstance(key, str) for key in self._listeners) >= MAX_NAMED:
            raise NotForwarded(f"this connection has {MAX_NAMED} sockets already", code=asyncssh.OPEN_RESOURCE_SHORTAGE)
        self._rights.check_scope(REMOTE, path)
        lives: list[Forward] = []

        def decide(real: str) -> None:
            lives.append(Forward(self._rights.ask(REMOTE, real), REMOTE, real))

        with reported(lives):
            listener = await listen_on_unix(path, self._rights.user(), decide)

        def open_channel(pump: Pump, address: Any) -> Awaitable[Any]:
            return UnixChannel(self._connection).accept(lambda: pump, path)

        self._begin(path, lives[0], [listener.socket], open_channel, also_close=listener.close)

    async def listen_for_agent(self) -> str:
        """Where programs of the session reach the agent at the client; made once. Raises `NotForwarded`."""
        async with self._agent_lock:
            known = self._listeners.get(AGENT_KEY)
            if known is not None:
                return known.path
            live = Forward(self._rights.ask(AGENT, None), AGENT, None)
            with reported([live]):
                listener = await listen_for_agent(self._rights.user())
            live.path = listener.path

            def open_channel(pump: Pump, address: Any) -> Awaitable[Any]:
                return AgentChannel(self._connection).open(lambda: pump)

            self._begin(AGENT_KEY, live, [listener.socket], open_channel, also_close=listener.close)
            return live.path

    def cancel(self, key: ListenKey) -> bool:
        """Stop listening because the client wants it; connections that are open stay. Whether there was one."""
        live = self._listeners.pop(key, None)
        if live is None:
            return False
        live.stop_listening()
        if live.pumps:
            self._outgoing.add(live)  # it ends with the last of them
        else:
            live.act.done("cancelled")
        return True

    def _begin(
        self,
        key: ListenKey,
        live: Forward,
        sockets: list[socket.socket],
        open_channel: OpenChannel,
        *,
        also_close: Callable[[], None] = lambda: None,
    ) -> None:
        def accepted(sock: socket.socket, address: Any) -> None:
            pump = self._pump(live, sock, lambda: self._incoming_ended(live))
            self._connection.handler.tasks.start(self._bring(pump, open_channel, address), name="forward")

        listener = Listener(sockets, accepted, has_room=self._has_room)

        def stop() -> None:
            listener.close()
            also_close()

        live.stop_listening = stop
        try:
            self._check_still(live)
        except NotForwarded:
            stop()
            raise
        self._listeners[key] = live

    async def _bring(self, pump: Pump, open_channel: OpenChannel, address: Any) -> None:
        """Take a connection that somebody made here to the client. It is not read before the client takes it."""
        try:
            if not pump.is_over:
                await open_channel(pump, address)
                await pump.start()
        except (asyncssh.ChannelOpenError, OSError) as exc:
            log.info(event("the client did not take a forwarded connection", reason=exc))
            pump.close()
        except BaseException:
            pump.close()
            raise

    def _incoming_ended(self, live: Forward) -> None:
        if live in self._outgoing and not live.pumps:
            self._outgoing.discard(live)
            live.act.done("cancelled")

    # --- both -------------------------------------------------------------------------------------------------

    def _pump(self, live: Forward, sock: socket.socket, on_end: Callable[[], None]) -> Pump:
        def ended(pump: Pump) -> None:
            live.pumps.discard(pump)
            on_end()
            self._connection.forwards_changed()

        pump = Pump(ended, connection_is_full=lambda: self._connection.is_write_paused, sock=sock)
        live.pumps.add(pump)
        self._connection.forwards_changed()
        return pump

    @property
    def _limit(self) -> int:
        return self._connection.handler.settings.forwards_per_connection

    def _has_room(self) -> bool:
        return self.count < self._limit and not self._connection.is_draining

    def _check_room(self) -> None:
        if self._is_over or self._connection.is_draining:
            raise NotForwarded("this connection is being ended", code=asyncssh.OPEN_CONNECT_FAILED)
        if self.count >= self._limit:
            raise NotForwarded(
                f"this connection has {self._limit} forwards, the most that {LIMIT} allows",
                code=asyncssh.OPEN_RESOURCE_SHORTAGE,
            )

    def _check_still(self, live: Forward) -> None:
        """What was allowed has taken its time to be made."""
        if self._is_over:
            live.act.done("hung up")
            raise NotForwarded("this connection is being ended", code=asyncssh.OPEN_CONNECT_FAILED)
        decision = self._rights.still(live)
        if not decision:
            live.act.done("revoked", rule=decision.rule, denial_id=decision.denial_id, decision="deny")
            raise NotForwarded(f"refused: {decision}")

    def _check_new(self, key: ListenKey) -> None:
        if key in self._listeners:
            raise NotForwarded("this connection has that forward already")

    # --- changes ----------------------------------------------------------------------------------------------

    def paused(self) -> None:
        """The connection has no room."""
        for live in self._lives():
            for pump in live.pumps:
                pump.connection_paused()

    def resumed(self) -> None:
        for live in self._lives():
            for pump in live.pumps:
                pump.connection_resumed()

    def recheck(self) -> None:
        """End what the current policy forbids, and nothing else. The client is told each reason once: to programs at
        either side it looks like an end."""
        reasons: dict[str, None] = {}
        for live in self._lives():
            if not (decision := self._rights.still(live)):
                self._revoke(live, decision)
                reasons[str(decision)] = None
        for reason in reasons:
            self._connection.remark(f"a forward was ended: {reason}", for_people=True)

    def _revoke(self, live: Forward, decision: Decision) -> None:
        log.info(
            event(
                "forward ended",
                peer=self._connection.identity.id,
                connection=self._connection.connection.id,
                action=live.action,
                rule=decision.rule,
                denial_id=decision.denial_id,
            )
        )
        self._listeners = {key: other for key, other in self._listeners.items() if other is not live}
        live.end("revoked", rule=decision.rule, denial_id=decision.denial_id, decision="deny")
        self._outgoing.discard(live)

    def end(self) -> None:
        """The connection is over; idempotent."""
        self._is_over = True
        for live in self._lives():
            live.end("hung up")
        self._listeners.clear()
        self._outgoing.clear()
