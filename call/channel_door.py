"""What byte channels lead to: a door of this node, or, through it, one of a peer's.

Every channel is decided when it is opened, and again whenever that may have changed. A channel to a peer is only
carried: what runs in it is between its two ends, which prove themselves to each other.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Final

from alknet.access import Access, Identity
from alknet.alpn.streams import Connection, Stream
from alknet.call.carried import InnerConnection
from alknet.call.context import Caller
from alknet.call.dispatch import peer_access
from alknet.call.envelopes import ChannelRequested
from alknet.call.errors import CallError
from alknet.call.overlays import CHANNEL_PLACES, Attachment, Overlays
from alknet.call.serving import ByteService
from alknet.errors import AlknetError
from alknet.gate import Act, Gate

__all__ = ["ChannelDoor", "Serve", "inner", "splice"]

DEFAULT_PER_PEER: Final = 256
CHANNELS: Final = "channels"
"""What the hello of somebody has among its features who knows byte channels."""

Serve = Callable[[Stream, Caller], Awaitable[str]]
"""A door of this node that serves a stream as it would serve a connection; what it answers goes into the audit log."""


def inner(alpn: str, serve: Callable[[Connection], Awaitable[None]]) -> Serve:
    """A channel as a connection for `alpn`, served as if whoever is at its other end had connected by itself."""

    async def serve_channel(stream: Stream, caller: Caller) -> str:
        connection = InnerConnection(stream, alpn=alpn)
        try:
            await serve(connection)
        finally:
            connection.close()
        return connection.id

    return serve_channel


class ChannelDoor:
    """Opens channels to `services`, and to those of the peers in `overlays`. `per_peer`, how many one peer may have,
    may be replaced while it works."""

    def __init__(self, gate: Gate, overlays: Overlays, services: Mapping[str, Serve]) -> None:
        self.per_peer = DEFAULT_PER_PEER
        self._gate = gate
        self._overlays = overlays
        self._services = services
        self._open: Counter[str] = Counter()

    async def accept(self, request: ChannelRequested, caller: Caller) -> ByteService:
        """Where a channel leads that `caller` asks for; raises `CallError`."""
        identity = caller.identity
        if not isinstance(identity, Identity):
            raise CallError("FORBIDDEN", "authentication required")
        access: Access | None = None
        if request.peer is not None:
            action, resource, access = "peer/channel", f"{request.peer}:{request.service}", peer_access(request.peer)
        else:
            action, resource = "channel/open", request.service
        act = self._gate.ask(
            identity,
            action,
            resource,
            surface=caller.surface,
            access=access,
            connection=caller.connection,
            remote=caller.remote,
            forwarded_for=caller.forwarded_for,
            via=identity.via,
        )
        if not act.decision:
            raise CallError("FORBIDDEN", act.decision.words, denial_id=act.decision.denial_id)
        peer = identity.id
        if self._open[peer] >= self.per_peer:
            act.done("limits.byte_channels_per_peer")
            raise CallError("RESOURCE_EXHAUSTED", f"peer {peer!r} has {self.per_peer} byte channels open already")
        self._open[peer] += 1
        outcome = "aborted"
        try:
            if request.peer is None:
                serve = self._services.get(request.service)
                if serve is None:
                    raise CallError("NOT_FOUND", f"no byte channel leads to {request.service!r} here")
                service = _Served(self, act, caller, action, resource, access, serve)
            else:
                serve = await self._open_far(request, identity, caller)
                service = _Served(self, act, caller, action, resource, access, serve)
        except CallError as exc:
            outcome = f"error {exc.code}"
            raise
        else:
            outcome = ""
            return service
        finally:
            if outcome:
                self.closed(peer)
                act.done(outcome)

    async def _open_far(self, request: ChannelRequested, identity: Identity, caller: Caller) -> Serve:
        """Open the channel at the peer; what carries it."""
        peer = request.peer
        assert peer is not None
        if peer not in self._gate.policy.peers:
            raise CallError("NOT_FOUND", f"there is no peer {peer!r}")
        attachment = next((one for one in self._overlays.of(peer) if CHANNELS in one.session.features), None)
        if attachment is None:
            raise CallError("UNAVAILABLE", f"peer {peer!r} is not connected")
        who = attachment.take(identity.id, CHANNEL_PLACES)
        try:
            far = await attachment.session.open_channel(
                request.service, target=request.target, forwarded_for=caller.forwarded_for or identity.id
            )
        except BaseException as exc:
            attachment.leave(who, CHANNEL_PLACES)
            if not isinstance(exc, CallError):
                raise
            words = f"peer {peer!r}: {exc}"
            raise CallError(exc.code, words, details=exc.details, denial_id=exc.denial_id) from exc
        return partial(_carry, far, attachment, who)

    def closed(self, peer: str) -> None:
        """A channel of `peer` has ended."""
        self._open[peer] -= 1
        if not self._open[peer]:
            del self._open[peer]

    def still(self, caller: Caller, action: str, resource: str, access: Access | None) -> CallError | None:
        """The refusal, when the current policy forbids a channel that it allowed before."""
        decision = self._gate.still(caller.identity, action, resource, access=access)
        if decision:
            return None
        return CallError("FORBIDDEN", f"access was taken away: {decision.words}", denial_id=decision.denial_id)


class _Served:
    """One channel that was accepted."""

    def __init__(
        self,
        door: ChannelDoor,
        act: Act,
        caller: Caller,
        action: str,
        resource: str,
        access: Access | None,
        serve: Serve,
    ) -> None:
        self._door = door
        self._act = act
        self._caller = caller
        self._question = action, resource, access
        self._serve = serve
        self._is_revoked = False

    async def run(self, stream: Stream) -> None:
        outcome = "aborted"
        facts = {}
        try:
            if said := await self._serve(stream, self._caller):
                facts = {"inner": said}
            outcome = "ok"
        except AlknetError:
            outcome = "lost"
            raise
        finally:
            assert self._caller.identity is not None
            self._door.closed(self._caller.identity.id)
            self._act.done("revoked" if self._is_revoked else outcome, **facts)

    def revoked(self) -> CallError | None:
        denial = self._door.still(self._caller, *self._question)
        self._is_revoked = denial is not None
        return denial


async def _carry(far: Stream, attachment: Attachment, who: str, near: Stream, _: Caller) -> str:
    try:
        return await splice(near, far)
    except AlknetError as exc:
        raise CallError("UNAVAILABLE", f"the channel to peer {attachment.peer!r} broke off: {exc}") from exc
    finally:
        attachment.leave(who, CHANNEL_PLACES)


async def splice(near: Stream, far: Stream) -> str:
    """Carry bytes between two streams until both directions have ended, each with the backpressure of the other. Raises
    `AlknetError` when one of them breaks; the far one is reset then."""
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(_pump(near, far))
            group.create_task(_pump(far, near))
    except ExceptionGroup as broken:
        raise broken.exceptions[0] from None
    else:
        await far.aclose()
        return ""
    finally:
        far.reset()  # nothing, where it was closed in order


async def _pump(source: Stream, sink: Stream) -> None:
    while data := await source.read():
        await sink.write(data)
    await sink.write_eof()
