"""The door for operation calls: serves the ALPN ``alknet/call`` on every carrier, and the subsystem ``alknet-call``."""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from alknet.access import Identity
from alknet.alpn.errors import ConnectionClosed
from alknet.alpn.streams import Connection, Stream
from alknet.call.anonymous import ANONYMOUS_LIMITS, IDLE_S, LIFETIME_S
from alknet.call.carried import ALPN, ChannelConnection
from alknet.call.channel import Channel
from alknet.call.channel_door import ChannelDoor
from alknet.call.client import Link
from alknet.call.codecs import CODECS
from alknet.call.context import Caller
from alknet.call.dispatch import Dispatcher
from alknet.call.doorkeeper import Doorkeeper, host_of
from alknet.call.envelopes import ChannelRequested, Requested
from alknet.call.errors import CallError, FrameError, HelloError
from alknet.call.frames import DEFAULT_MAX_FRAME, HELLO_MAX_FRAME
from alknet.call.hello import LISTENER_NAMESPACE, Challenge, ListenerHello, Proof
from alknet.call.machine import Limits
from alknet.call.mesh import Mesh
from alknet.call.prepared import Prepared
from alknet.call.serving import ByteService, Server
from alknet.call.session import Session, Sizes
from alknet.gate import Gate
from alknet.logs import event
from alknet.sshsig import Signer, sign
from alknet.tasks import Tasks

__all__ = ["CallHandler", "CallSettings", "Dialled"]

log = logging.getLogger("alknet.call")

HELLO_TIMEOUT_S: Final = 10.0
MAX_DENIALS: Final = 1000
"""Calls that one connection may be refused within `DENIALS_S` before it is ended; each costs an audit line."""
DENIALS_S: Final = 600.0
PROVEN_BY_KEY: Final = ("key:", "dial:")
"""Who holds no more than a token of a peer is not the one that the peer's operations are called on."""
DRAIN_CHECK_S: Final = 0.02
SHUTTING_DOWN: Final = "the node is shutting down"


@dataclass(frozen=True, slots=True)
class CallSettings:
    """What the configuration says about calls; see `config.model` for the meaning."""

    max_frame: int = DEFAULT_MAX_FRAME
    max_in_flight: int = 1024


class CallHandler:
    """Serves operation calls to whom `doors` lets in. `settings` may be replaced while it runs."""

    alpns = (ALPN,)

    def __init__(
        self,
        gate: Gate,
        dispatcher: Dispatcher,
        doors: Doorkeeper,
        settings: CallSettings,
        *,
        name: str,
        key: Signer,
        mesh: Mesh | None = None,
        channels: ChannelDoor | None = None,
    ) -> None:
        """What peers bring goes to `mesh`, the byte channels that they open to `channels`."""
        self.channels = channels
        self._mesh = mesh
        self.gate = gate
        self.dispatcher = dispatcher
        self.doors = doors
        self.settings = settings
        self._name = name
        self._key = key
        self._tasks = Tasks("call-handler")
        self._sessions: dict[Session, Identity | None] = {}
        self._saying_hello: set[Connection] = set()

    async def handle(self, connection: Connection) -> None:
        self._saying_hello.add(connection)
        try:
            async with asyncio.timeout(HELLO_TIMEOUT_S):
                channel = await Channel.on(await connection.accept_stream())
                admitted = await self._say_hello(connection, channel)
        except TimeoutError:
            log.info(event("hello timed out", remote_addr=host_of(connection)))
            return
        except ConnectionClosed:
            return
        finally:
            self._saying_hello.discard(connection)
        if admitted is not None:
            await self._serve(connection, channel, *admitted)

    async def serve_subsystem(self, stream: Stream, identity: Identity, connection: Connection) -> int:
        """Serve calls to somebody whom SSH has let in already; the exit status for its channel."""
        return await self.serve_stream(stream, identity, ChannelConnection(connection, stream, transport="ssh"))

    async def serve_stream(self, stream: Stream, identity: Identity | None, carried: ChannelConnection) -> int:
        """Serve calls to somebody whom another door has let in already, or lets be nobody: the hello only agrees on
        codec and limits. What a program that is told of a refusal exits with; 0 after a session."""
        has_agreed = False
        try:
            channel = await Channel.on(stream)
            async with asyncio.timeout(HELLO_TIMEOUT_S):
                hello = ListenerHello(alpn=ALPN, binding=None)
                start = hello.started(await channel.next_body())
                hello.to_sign(node=self._name, key=self._key.public_key, limits=self._limits())
                channel.send(hello.challenge(None))
                channel.send(hello.accepted(None if identity is None else identity.id))
            has_agreed = True
        except (TimeoutError, HelloError, FrameError) as exc:
            await self._reject(channel, CallError("INVALID_INPUT", str(exc) or "the hello took too long"))
            return CallError("INVALID_INPUT", "").exit_code
        finally:
            if identity is None and not has_agreed:
                self.doors.leave(carried)
        await self._serve(carried, channel, identity, start.codec, start.features)
        return 0

    def recheck(self) -> None:
        for session, identity in tuple(self._sessions.items()):
            session.serving.recheck()
            if identity is not None and not (decision := self.gate.still(identity, "call/connect")):
                self._end(session, f"access was taken away: {decision}")

    async def shutdown(self, deadline: float) -> None:
        for connection in tuple(self._saying_hello):
            connection.close(0, SHUTTING_DOWN)
        if self._mesh is not None:
            await self._mesh.aclose()
        await asyncio.gather(*(self._drain(session, deadline) for session in tuple(self._sessions)))
        await self._tasks.aclose()

    async def _drain(self, session: Session, deadline: float) -> None:
        session.go_away(max(0.0, deadline - asyncio.get_running_loop().time()), SHUTTING_DOWN)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(deadline):
                await session.serving.is_idle.wait()
                # For somebody else, who is to have the answer.
                while session.is_calling:  # noqa: ASYNC110 - only while the node stops
                    await asyncio.sleep(DRAIN_CHECK_S)
        await session.aclose()

    # --- the hello --------------------------------------------------------------------------------------------------

    async def _say_hello(
        self, connection: Connection, channel: Channel
    ) -> tuple[Identity | None, str, tuple[str, ...]] | None:
        """(who it is, codec, features), or None for somebody who was turned away."""
        hello = ListenerHello(alpn=connection.alpn, binding=connection.channel_binding)
        try:
            if connection.channel_binding is None:
                raise HelloError("this carrier does not bind the hello to its connection")
            start = hello.started(await channel.next_body())
            message = hello.to_sign(node=self._name, key=self._key.public_key, limits=self._limits())
            signature = await sign(self._key, message, namespace=LISTENER_NAMESPACE)
            channel.send(hello.challenge(signature))
            proof = hello.proven(await channel.next_body())
            identity = self._admit(connection, proof)
        except (HelloError, FrameError) as exc:
            if isinstance(exc, HelloError):
                self.doors.login_failed(connection, reason="not-proven", detail=exc)
            await self._reject(channel, CallError("INVALID_INPUT", str(exc)))
            return None
        except CallError as exc:
            await self._reject(channel, exc)
            return None
        channel.send(hello.accepted(None if identity is None else identity.id))
        return identity, start.codec, start.features

    def _admit(self, connection: Connection, proof: Proof) -> Identity | None:
        """Who it is; raises `CallError` for a credential that was shown and does not let anybody in."""
        identity = None
        if proof.key is not None:
            identity = self.gate.policy.lookup_key(proof.key.fingerprint)
            if identity is None:
                key = proof.key.fingerprint
                self.doors.stranger(
                    connection, f"key:{key}", surface=connection.transport, reason="unknown-key", key=key
                )
                raise CallError("FORBIDDEN", f"no peer of this node has the key {key}")  # another one may do
        if proof.token is not None:
            identity = self.doors.bearer(connection, proof.token, identity, surface=connection.transport)
        self.doors.enter(connection, identity, surface=connection.transport)
        return identity

    async def _reject(self, channel: Channel, error: CallError) -> None:
        channel.send(ListenerHello.rejected(error))
        channel.close()
        await channel.wait_closed()

    def _limits(self) -> dict[str, int]:
        return {
            "max_frame": self.settings.max_frame,
            "max_in_flight": self.settings.max_in_flight,
            "default_timeout_ms": round(self.dispatcher.default_timeout_s * 1000),
        }

    # --- the session ------------------------------------------------------------------------------------------------

    async def _serve(
        self,
        connection: Connection,
        channel: Channel,
        identity: Identity | None,
        codec: str,
        features: tuple[str, ...],
    ) -> None:
        if identity is None:
            size, limits = HELLO_MAX_FRAME, ANONYMOUS_LIMITS
        else:
            size, limits = self.settings.max_frame, Limits(in_flight=self.settings.max_in_flight)
        door = _Door(self, connection, identity)
        session = Session(
            connection,
            channel,
            CODECS[codec],
            sizes=Sizes(size, size),
            features=features,
            limits=limits,
            server=door,
        )
        await self._run(session, door, identity, start=session.start)

    async def _run(
        self, session: Session, door: "_Door", identity: Identity | None, *, start: Callable[[], None] = lambda: None
    ) -> None:
        connection = session.connection
        door.end = lambda reason: self._end(session, reason)
        door.belongs_to(session)
        self._sessions[session] = identity
        connection.polite_close = door.end
        attachment = None
        try:
            start()
            if identity is None:
                await self._watch_idle(session, door)
            elif self._mesh is not None and identity.via.startswith(PROVEN_BY_KEY):
                attachment = self._mesh.attach(identity.id, session)
            await session.wait_ended()
        finally:
            if self._mesh is not None:
                self._mesh.detach(attachment)
            del self._sessions[session]
            if identity is None:
                self.doors.leave(connection)
        await session.aclose()

    async def _watch_idle(self, session: Session, door: "_Door") -> None:
        until = asyncio.get_running_loop().time() + LIFETIME_S
        while session.is_open:
            seen = door.requests
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(IDLE_S):
                    await session.wait_ended()
            if door.requests == seen and session.serving.is_idle.is_set():
                await session.aclose("no call for a minute from nobody in particular")
            elif asyncio.get_running_loop().time() >= until:
                await session.aclose("nobody in particular has been here for long enough")

    def _end(self, session: Session, reason: str) -> None:
        self._tasks.start(session.aclose(reason), name="end")


class Dialled:
    """A peer of this node that the node itself has dialled: both sides call each other over that connection."""

    def __init__(self, handler: CallHandler, peer: str) -> None:
        self._handler = handler
        self._peer = peer
        self._door: _Door | None = None

    def server_of(self, challenge: Challenge, connection: Connection) -> Server:
        """Let in whoever was dialled, as any other door would; raises `CallError`."""
        peer = self._handler.gate.policy.peers.get(self._peer)
        if peer is None:
            raise CallError("FORBIDDEN", f"there is no peer {self._peer!r} any more")
        identity = Identity(peer.id, frozenset(peer.scopes), f"dial:{peer.id}")
        self._handler.doors.enter(connection, identity, surface=connection.transport)
        self._door = _Door(self._handler, connection, identity)
        return self._door

    async def serve(self, link: Link) -> None:
        """Serve it until the session ends."""
        assert self._door is not None
        await self._handler._run(link.session, self._door, self._door.identity)


class _Door:
    """Serves the calls of one connection."""

    def __init__(self, handler: CallHandler, connection: Connection, identity: Identity | None) -> None:
        self.requests = 0
        self.end: Callable[[str], None] = lambda reason: None
        self._handler = handler
        self._connection = connection
        self.identity = identity
        self._has_credit = False
        self._caller = Caller(identity, connection.transport, connection.id, host_of(connection))
        self._loop = asyncio.get_running_loop()
        self._denials = 0
        self._denials_since = 0.0

    def belongs_to(self, session: Session) -> None:
        """What handlers may call of the caller's own goes through `session`."""
        self._caller = replace(self._caller, back=session)
        self._has_credit = "credit" in session.features

    def prepare(self, request: Requested) -> Prepared:
        self.requests += 1
        caller = self._caller
        if request.auth_token is not None:
            caller = replace(caller, identity=self._bearer(request.auth_token))
        if caller.identity is None:
            self._handler.doors.anonymous_called(host_of(self._connection))
        if request.forwarded_for is not None and caller.identity is not None:
            caller = caller.forwarding_for(request.forwarded_for)
        # Who never sends credit can take either; its subscriptions are paced by the stream.
        streaming = request.credit is not None if self._has_credit else None
        try:
            return self._handler.dispatcher.prepare(
                request.name,
                request.input,
                caller,
                peer=request.peer,
                streaming=streaming,
                timeout_s=request.timeout_s,
                traceparent=request.traceparent,
                soon=True,  # the handler runs in a task of its own
            )
        except CallError as exc:
            if exc.code == "FORBIDDEN":
                self._denied()
            raise

    async def accept_channel(self, request: ChannelRequested) -> ByteService:
        channels = self._handler.channels
        if channels is None:
            raise CallError("NOT_FOUND", f"no byte channel leads to {request.service} here")
        return await channels.accept(request, replace(self._caller, forwarded_for=request.forwarded_for))

    def _bearer(self, token: str) -> Identity:
        """A token of the connection's own peer, or on an anonymous connection of any, replaces the rights."""
        try:
            return self._handler.doors.bearer(
                self._connection, token, self.identity, surface=self._connection.transport
            )
        except CallError:
            self._denied()
            raise

    def _denied(self) -> None:
        now = self._loop.time()
        if now - self._denials_since > DENIALS_S:
            self._denials, self._denials_since = 0, now
        self._denials += 1
        if self._denials == MAX_DENIALS:
            self.end(f"{MAX_DENIALS} calls were refused")
