"""The client's forwards: ``-L``, ``-R`` and ``-D`` of ``alknet ssh`` and ``alknet forward``.

What listens here outlives a connection: it stays open while the client connects again, and who arrives meanwhile waits
for a while. What the node listens on is asked for on every connection anew. A connection is carried by
:class:`~alknet.ssh.pump.Pump`, as at the node: each side reads as fast as the other takes, and each end is passed on
by itself.
"""

import asyncio
import socket
import struct
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import asyncssh

from alknet.errors import AlknetError, DeniedError, InvalidInputError, UnavailableError
from alknet.logs import printable
from alknet.ssh.client import REMARK_PREFIX, Link
from alknet.ssh.client_remote import listen_on_path, listen_on_port
from alknet.ssh.client_sockets import asked_by_socks, bound_path, bound_ports, connected, why
from alknet.ssh.client_socks import SocksRequest
from alknet.ssh.forward_specs import Forward, Port, SocketPath
from alknet.ssh.pump import Pump
from alknet.tasks import Tasks

__all__ = ["MAX_CONNECTIONS", "ForwardError", "Forwards"]

MAX_CONNECTIONS: Final = 256
"""What one forward carries at a time; further ones are closed as they arrive, which is said once until one ends."""
PATIENCE_S: Final = 10.0
"""What a connection waits that arrives while there is no connection to the node."""
ANSWER_TIMEOUT_S: Final = 30.0
"""What the node may take to say whether it listens."""
REFUSED: Final = "refused: "
"""With which a node of ours begins its own refusals."""
DENIAL: Final = "(den_"
BACKLOG: Final = 128
ACCEPT_PAUSE_S: Final = 0.2
"""How long a listener rests for which this process has no descriptor left."""


class ForwardError(AlknetError):
    """A forward could not be set up."""


class Forwards:
    """The forwards of one client. `report` gets a line on whatever the user has to know.

    Call :meth:`listen` once, :meth:`attach` with each connection to the node, :meth:`detach` when it is over, and
    :meth:`aclose`.
    """

    def __init__(
        self,
        forwards: Sequence[Forward],
        report: Callable[[str], None],
        *,
        patience_s: float = PATIENCE_S,
        max_connections: int = MAX_CONNECTIONS,
    ) -> None:
        self._report = report
        self._patience_s = patience_s
        self._tasks = Tasks("forwards")
        self._link: Link | None = None
        self._attached = asyncio.Event()
        self._is_idle = asyncio.Event()
        self._is_idle.set()
        self._carried = [_Carried(self, forward, max_connections) for forward in forwards]
        self._sockets: list[socket.socket] = []
        self._paths: list[Path] = []

    # --- this side's listeners --------------------------------------------------------------------------------

    async def listen(self) -> list[ForwardError]:
        """Open what listens here; returns why not, for those that could not be opened."""
        errors = []
        for carried in self._carried:
            listen = carried.forward.listen
            if carried.forward.is_remote:
                continue
            try:
                sockets = [bound_path(listen)] if isinstance(listen, SocketPath) else await bound_ports(listen)
            except OSError as exc:
                errors.append(ForwardError(f"{carried.forward}: cannot listen on {listen}: {why(exc)}"))
                continue
            if isinstance(listen, SocketPath):
                self._paths.append(Path(listen.path))
            for sock in sockets:
                sock.setblocking(False)
                sock.listen(BACKLOG)
                self._sockets.append(sock)
                self._tasks.start(self._accept(sock, carried), name=str(carried.forward))
        return errors

    async def _accept(self, sock: socket.socket, carried: "_Carried") -> None:
        loop = asyncio.get_running_loop()
        has_said = False
        while True:
            try:
                arrived, origin = await loop.sock_accept(sock)
            except OSError as exc:
                if not has_said:
                    self.say(f"{carried.forward}: {why(exc)}")
                has_said = True
                await asyncio.sleep(ACCEPT_PAUSE_S)
                continue
            has_said = False
            self._tasks.start(carried.arrived_here(arrived, origin), name="connection")

    # --- the connection to the node ---------------------------------------------------------------------------

    async def attach(self, link: Link) -> list[ForwardError]:
        """Use `link` from now on, and have the node listen; returns why not, for those where it does not.

        Raises `UnavailableError` if the connection is lost before the node has answered.
        """
        self._link = link
        link.room.on_change = self._room_changed
        self._attached.set()
        return [error for carried in self._carried if (error := await self._asked(carried, link)) is not None]

    async def ask_again(self) -> list[ForwardError]:
        """Ask for what the node does not listen on yet; returns why not, for those where it still does not."""
        if self._link is None:
            return []
        waiting = [carried for carried in self._carried if carried.forward.is_remote and not carried.is_registered]
        return [error for carried in waiting if (error := await self._asked(carried, self._link)) is not None]

    async def _asked(self, carried: "_Carried", link: Link) -> ForwardError | None:
        if not carried.forward.is_remote:
            return None
        link.remarks.clear()
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                await carried.register(link)
        except asyncssh.ChannelListenError:
            return _not_registered(carried.forward, link)
        except TimeoutError:
            raise UnavailableError(f"the node does not answer within {ANSWER_TIMEOUT_S:g} s") from None
        except (OSError, asyncssh.Error) as exc:
            raise UnavailableError(f"the connection was lost: {exc}") from exc
        return None

    def detach(self) -> None:
        """The connection is over, and with it all that it carried; listeners here stay open."""
        self._link = None
        self._attached.clear()
        for carried in self._carried:
            carried.link_lost()

    async def wait_attached(self) -> Link:
        """The connection to the node; raises `UnavailableError` when there is none for too long."""
        try:
            async with asyncio.timeout(self._patience_s):
                while self._link is None or self._link.ssh.is_closed():
                    self.detach()
                    await self._attached.wait()
        except TimeoutError:
            raise UnavailableError("there is no connection to the node") from None
        return self._link

    @property
    def is_full(self) -> bool:
        """Whether the connection to the node has no room."""
        return self._link is not None and self._link.room.is_full

    def _room_changed(self) -> None:
        for carried in self._carried:
            carried.room_changed(is_full=self.is_full)

    # ----------------------------------------------------------------------------------------------------------

    def lines(self) -> list[str]:
        """What is forwarded, and how many connections each carries now."""
        return [f"{carried.forward}: {len(carried)} connections" for carried in self._carried]

    async def wait_idle(self) -> None:
        """Wait until no connection is carried."""
        await self._is_idle.wait()

    def count_changed(self) -> None:
        if any(map(len, self._carried)):
            self._is_idle.clear()
        else:
            self._is_idle.set()

    def say(self, line: str) -> None:
        self._report(printable(line))

    async def aclose(self) -> None:
        """Stop listening here, and end what is carried. What the node listens on ends with the connection."""
        for path in self._paths:
            path.unlink(missing_ok=True)
        self._paths.clear()
        await self._tasks.aclose()
        for sock in self._sockets:
            sock.close()
        self._sockets.clear()
        self.detach()


def _not_registered(forward: Forward, link: Link) -> ForwardError:
    """SSH's answer to that is a bare no; a node of ours remarks why, just before it."""
    what = f"{forward}: the node does not listen on {forward.listen}"
    remarks = [remark for remark in link.remarks if remark.startswith(REMARK_PREFIX)]
    if not remarks:
        return ForwardError(what, hint="it is taken there, or not allowed; the other side's log may say which")
    error = ForwardError(f"{what}: {printable(remarks[-1].removeprefix(REMARK_PREFIX))}")
    if DENIAL in remarks[-1]:
        error.exit_code = DeniedError.exit_code
    return error


class _Carried:
    """One forward and its connections."""

    def __init__(self, owner: Forwards, forward: Forward, max_connections: int) -> None:
        self.forward = forward
        self._owner = owner
        self._max = max_connections
        self._pumps: set[_ClientPump] = set()
        self._waiting = 0
        self._has_said_full = False
        self._port = 0
        self.is_registered = False

    def __len__(self) -> int:
        return len(self._pumps) + self._waiting

    def room_changed(self, *, is_full: bool) -> None:
        for pump in tuple(self._pumps):
            if is_full:
                pump.connection_paused()
            else:
                pump.connection_resumed()

    def link_lost(self) -> None:
        self.is_registered = False
        for pump in tuple(self._pumps):
            pump.close()

    # --- from here to the far side ----------------------------------------------------------------------------

    async def arrived_here(self, sock: socket.socket, origin: Any) -> None:
        """Carry a connection that was accepted here."""
        pump = self._new_pump()
        if pump is None:
            sock.close()
            return
        self._waiting += 1
        self._owner.count_changed()
        try:
            await self._carry(pump, sock, origin)
        except asyncio.CancelledError:
            pump.close()
            sock.close()
            raise
        finally:
            self._waiting -= 1
            self._owner.count_changed()

    async def _carry(self, pump: "_ClientPump", sock: socket.socket, origin: Any) -> None:
        request: SocksRequest | None = None
        to = self.forward.to
        try:
            if to is None:
                request = await asked_by_socks(sock)
                to = request.to
            await pump.take(sock)
        except InvalidInputError as exc:
            self._owner.say(f"{self.forward}: {exc}")
            sock.close()
            return
        except (OSError, EOFError, TimeoutError):
            sock.close()  # it went away before it said what it wants
            return
        try:
            while True:
                link = await self._owner.wait_attached()
                try:
                    await self._open(pump, link, to, request, origin)
                    return
                except (asyncssh.Error, OSError):
                    if not link.ssh.is_closed():
                        raise
                    # The connection was lost, and nobody has said anything on this one: the next one can have it.
        except asyncssh.ChannelOpenError as exc:
            where = f" ({to})" if request is not None else ""
            self._owner.say(f"{self.forward}{where}: {REFUSED}{exc.reason.removeprefix(REFUSED)}")
            pump.turn_away(request.answer(exc.code) if request is not None else b"")
        except (UnavailableError, OSError, asyncssh.Error) as exc:
            self._owner.say(f"{self.forward}: a connection was closed: {exc}")
            pump.turn_away(request.answer(asyncssh.OPEN_RESOURCE_SHORTAGE) if request is not None else b"")

    async def _open(
        self, pump: "_ClientPump", link: Link, to: Port | SocketPath, request: SocksRequest | None, origin: Any
    ) -> None:
        def opened() -> _ClientPump:
            self._pumps.add(pump)
            if request is not None:
                pump.data_received(request.answer(None), None)
            return pump

        if isinstance(to, SocketPath):
            await link.ssh.create_unix_connection(opened, to.path)
        else:
            host, port = origin[:2] if isinstance(origin, tuple) else ("", 0)
            await link.ssh.create_connection(opened, to.host, to.port, host, port)

    # --- from the far side to here ----------------------------------------------------------------------------

    async def register(self, link: Link) -> None:
        """Have the node listen. A port that it chose is asked for again, so that a new connection keeps it."""
        listen = self.forward.listen
        if isinstance(listen, SocketPath):
            await listen_on_path(link.ssh, self._arrived_there, listen.path)
        else:
            try:
                port = await listen_on_port(link.ssh, self._arrived_there, listen.host, listen.port or self._port)
            except asyncssh.ChannelListenError:
                if listen.port or not self._port:
                    raise
                port = await listen_on_port(link.ssh, self._arrived_there, listen.host, 0)
            if listen.port == 0 and port != self._port:
                self._port = port
                self._owner.say(f"Allocated port {port} for remote forward to {self.forward.to}")
        self.is_registered = True

    async def _arrived_there(self, *origin: object) -> "_ClientPump":
        """asyncssh's question for a session, when somebody has connected at the node."""
        pump = self._new_pump()
        if pump is None:
            raise asyncssh.ChannelOpenError(
                asyncssh.OPEN_RESOURCE_SHORTAGE, f"the client carries {self._max} connections of this forward"
            )
        self._waiting += 1
        try:
            assert self.forward.to is not None
            sock = await connected(self.forward.to)
            await pump.take(sock)
        except OSError as exc:
            self._owner.say(f"{self.forward}: {why(exc)}")
            raise asyncssh.ChannelOpenError(asyncssh.OPEN_CONNECT_FAILED, why(exc)) from exc
        finally:
            self._waiting -= 1
            self._owner.count_changed()
        self._pumps.add(pump)
        self._owner.count_changed()
        return pump

    # ----------------------------------------------------------------------------------------------------------

    def _new_pump(self) -> "_ClientPump | None":
        if len(self) >= self._max:
            if not self._has_said_full:
                self._has_said_full = True
                self._owner.say(f"{self.forward}: {self._max} connections are carried; further ones are closed")
            return None
        return _ClientPump(self._pump_over, connection_is_full=lambda: self._owner.is_full)

    def _pump_over(self, pump: Pump) -> None:
        assert isinstance(pump, _ClientPump)
        self._pumps.discard(pump)
        self._has_said_full = False
        self._owner.count_changed()


class _ClientPump(Pump):
    """A pump that says so to the program at its socket when the connection to the node was lost: by a reset, so that
    half a file does not look like a whole one."""

    def turn_away(self, last_words: bytes) -> None:
        """There is no channel for it: close the socket, once it has taken what is said."""
        self.data_received(last_words, None)
        self.connection_lost(None)

    def close(self) -> None:
        if self._socket is not None:
            sock = self._socket.get_extra_info("socket")
            with suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        super().close()
