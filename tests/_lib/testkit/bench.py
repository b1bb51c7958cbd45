"""Operations behind a dispatcher without any door: who calls is what the test says."""

import asyncio
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any

from alknet.access import Access, Identity, Peer, Policy
from alknet.audit import MemoryAudit
from alknet.call.context import Caller
from alknet.call.discovery import Discovery
from alknet.call.dispatch import DEFAULT_TIMEOUT_S, Dispatcher
from alknet.call.exposed import MeshSettings, Terms
from alknet.call.from_call import Catalog
from alknet.call.mesh import Mesh
from alknet.call.operations import served_by
from alknet.call.prepared import Prepared
from alknet.call.registry import Registry
from alknet.call.routing import Routing
from alknet.call.specs import Kind, OperationSpec
from alknet.clock import SystemClock
from alknet.config.policy import daemon_user
from alknet.gate import Gate

__all__ = ["Bench", "PeerCall"]

ALICE: Mapping[str, tuple[str, ...]] = {"alice": ("*",)}

ANYBODY = Access(public=True)
PeerCall = tuple[str, str, Any, float | None, str | None]
"""(peer, name, input, timeout_s, forwarded_for)."""


class Bench:
    """A dispatcher, its gate and its audit log. `peers` maps each to its scopes; who is None is nobody."""

    def __init__(
        self,
        *operations: Any,
        peers: Mapping[str, Iterable[str]] = ALICE,
        resources: Mapping[str, tuple[str, ...]] | None = None,
        default_timeout_s: float = DEFAULT_TIMEOUT_S,
    ) -> None:
        self.audit = MemoryAudit()
        self.gate = Gate(self.policy(peers, resources), self.audit, SystemClock())
        self.peer_calls: list[PeerCall] = []
        self.peer_answer: asyncio.Future[Any] | None = None
        """What a peer that is here answers, once it does; without one it answers at once, with the name."""
        self.mesh = Mesh(self._publish)
        self.dispatcher = Dispatcher(Registry(), self.gate, default_timeout_s=default_timeout_s, peers=self.mesh)
        self.serve(*operations)

    def policy(
        self, peers: Mapping[str, Iterable[str]], resources: Mapping[str, tuple[str, ...]] | None = None
    ) -> Policy:
        """A policy in which these peers have these scopes, and all of them these resources."""
        found = {
            name: Peer(name, dict.fromkeys(scopes, "own"), (f"SHA256:{name}",), resources=resources or {})
            for name, scopes in peers.items()
        }
        return Policy(found, revision="r1", denial_key=b"k" * 32, daemon=daemon_user())

    def serve(self, *operations: Any) -> None:
        """Swap the registry for one with these operations and `services/*`."""
        self._own = Registry(served_by((Discovery(self.dispatcher), operations)))
        self.mesh.apply(self.mesh.settings, self._own)

    def settle(self, routing: Routing = Routing.ROUND_ROBIN, **terms: Terms) -> None:
        """What the configuration says of peers that bring operations."""
        self.mesh.apply(MeshSettings(routing, terms), self._own)

    def connect(self, peer: str, *names: str) -> None:
        """A peer is here, and brings operations with these names; see `peer_calls` and `peer_answer`."""
        terms = {**self.mesh.settings.terms, peer: Terms(("*",))}
        self.mesh.settings = replace(self.mesh.settings, terms=terms)
        specs = {name: OperationSpec(name=name, kind=Kind.MUTATION, access=ANYBODY) for name in names}
        self.mesh.overlays.fill(self.mesh.overlays.attach(peer, _PeerSession(self, peer)), Catalog(specs))

    def caller(self, peer: str | None = "alice", **facts: Any) -> Caller:
        policy = self.gate.policy
        identity = (
            None
            if peer is None
            else Identity(
                peer, frozenset(policy.peers[peer].scopes if peer in policy.peers else ()), f"key:SHA256:{peer}"
            )
        )
        return Caller(identity, "memory", **facts)

    def prepare(self, name: str, value: Any = None, *, peer: str | None = "alice", **how: Any) -> Prepared:
        return self.dispatcher.prepare(name, value, self.caller(peer), **how)

    async def call(self, name: str, value: Any = None, *, peer: str | None = "alice", **how: Any) -> Any:
        return await self.prepare(name, value, peer=peer, **how).call()

    async def items(self, name: str, value: Any = None, **how: Any) -> list[Any]:
        """All items of a subscription."""
        async with aclosing(self.prepare(name, value, streaming=True, **how).stream()) as stream:
            return [item async for item in stream]

    def outcomes(self, action: str) -> list[str]:
        """How calls of this operation have ended, in order."""
        return [
            record["outcome"] for record in self.audit.records if record["action"] == action and "outcome" in record
        ]

    def outcome(self, action: str) -> str:
        """How the only call of this operation has ended."""
        (found,) = self.outcomes(action)
        return found

    def unmatched(self) -> dict[str, tuple[int, int]]:
        """Requests that have not exactly one outcome, and one intent if they were allowed: (intents, outcomes)."""
        intents = Counter(r["request_id"] for r in self.audit.records if r.get("phase") == "intent")
        outcomes = Counter(r["request_id"] for r in self.audit.records if r.get("phase") == "outcome")
        denied = {r["request_id"] for r in self.audit.records if r.get("outcome") == "denied"}
        return {
            request: (intents[request], outcomes[request])
            for request in intents.keys() | outcomes.keys()
            if (intents[request], outcomes[request]) != (request not in denied, 1)
        }

    async def aclose(self) -> None:
        await self.mesh.aclose()
        await self.dispatcher.aclose()

    async def __aenter__(self) -> "Bench":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def _publish(self, registry: Registry) -> None:
        self.dispatcher.registry = registry


@dataclass(frozen=True)
class _PeerSession:
    """With a peer that is not there: calls are noted, and answered as the bench says."""

    bench: Bench
    peer: str
    is_open: bool = True

    async def call(
        self,
        name: str,
        value: Any,
        *,
        timeout_s: float | None = None,
        forwarded_for: str | None = None,
        traceparent: str | None = None,
    ) -> Any:
        self.bench.peer_calls.append((self.peer, name, value, timeout_s, forwarded_for))
        answer = self.bench.peer_answer
        return f"{self.peer}:{name}" if answer is None else await answer
