"""Operations that a program offers to the node that it has dialled, for as long as the connection lasts."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from alknet.access import Identity, Peer, Policy
from alknet.alpn.streams import Connection
from alknet.audit import NOTHING
from alknet.call.context import Caller
from alknet.call.discovery import Discovery
from alknet.call.dispatch import Dispatcher
from alknet.call.envelopes import ChannelRequested, Requested
from alknet.call.errors import CallError
from alknet.call.hello import Challenge
from alknet.call.operations import Operation, operations_of
from alknet.call.prepared import Prepared
from alknet.call.registry import Registry
from alknet.call.serving import ByteService, Server
from alknet.clock import SystemClock
from alknet.config.policy import daemon_user
from alknet.gate import Gate

__all__ = ["Offer"]


class Offer:
    """Whoever is dialled may call every one of `operations`, and nobody else may: offering them is the grant."""

    def __init__(self, operations: Iterable[Any]) -> None:
        self._operations = operations_of(operations)
        Registry(self._operations)  # no two are named alike
        self._servers: list[_Server] = []

    def server_of(self, challenge: Challenge, connection: Connection) -> Server:
        """The server for the node that has proven itself with `challenge`."""
        server = _Server(self._operations, challenge)
        self._servers.append(server)
        return server

    async def aclose(self) -> None:
        """End what was left to run when its connection ended."""
        for server in self._servers:
            await server.dispatcher.aclose()


class _Server:
    def __init__(self, operations: tuple[Operation, ...], challenge: Challenge) -> None:
        key = "" if challenge.key is None else challenge.key.fingerprint
        kinds = {one.spec.access.resource_type for one in operations}
        peer = Peer(
            challenge.node,
            {"*": "the operations were offered to it"},
            (key,),
            resources={kind: ("*",) for kind in kinds if kind is not None},
        )
        policy = Policy({peer.id: peer}, revision="offer", denial_key=bytes(32), daemon=daemon_user())
        self.dispatcher = Dispatcher(Registry(), Gate(policy, _Unrecorded(), SystemClock()))
        discovery = operations_of(Discovery(self.dispatcher))  # so that the node finds out what is offered
        self.dispatcher.registry = Registry((*discovery, *operations))
        self._caller = Caller(Identity(peer.id, frozenset({"*"}), f"key:{key}"), "offer")

    def prepare(self, request: Requested) -> Prepared:
        return self.dispatcher.prepare(
            request.name,
            request.input,
            replace(self._caller, forwarded_for=request.forwarded_for),
            peer=request.peer,
            streaming=None if request.credit is None else True,
            timeout_s=request.timeout_s,
            traceparent=request.traceparent,
        )

    async def accept_channel(self, request: ChannelRequested) -> ByteService:
        raise CallError("NOT_FOUND", f"no byte channel leads to {request.service} here")


class _Unrecorded:
    """A program that is no node has no audit log; the node that calls it has."""

    def write(self, record: Mapping[str, Any], *, more: Mapping[str, Any] = NOTHING, soon: bool = False) -> None:
        pass

    def close(self) -> None:
        pass
