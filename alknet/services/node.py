"""``node/*``: the running node as its operator sees and steers it."""

from collections.abc import Mapping
from typing import Any, Final, Protocol

from alknet.access import Access, Decision, Identity, Policy
from alknet.actions import ACTIONS
from alknet.call.context import OperationContext
from alknet.call.dispatch import Stats, peer_access
from alknet.call.operations import OperationError, Visibility, operation
from alknet.call.registry import Registry
from alknet.config.addresses import split_host_port
from alknet.errors import ConfigError, NotFoundError
from alknet.gate import Gate
from alknet.resolver import is_own
from alknet.services.reach import ask_forward

__all__ = ["PEER_ACTIONS", "ConfigInvalid", "NodeService", "NodeView", "access_of", "can"]


PEER_ACTIONS: Final = ("peer/call", "peer/channel")
"""Actions on another node: the scope that they need is in the resource."""


MAX_ROUTED: Final = 1000
"""Peers of all routes in a status, which has to fit in a message; metrics have the others."""


class ConfigInvalid(OperationError):
    """The configuration on disk is wrong; the old one stays in force."""

    code = "CONFIG_INVALID"
    http_status = 409


class NodeView(Protocol):
    """What the operations need of the node."""

    gate: Gate

    @property
    def registry(self) -> Registry:
        """The operations that it serves."""

    @property
    def addresses(self) -> tuple[str, ...]:
        """Where it listens, each host:port."""

    @property
    def stats(self) -> Mapping[str, Stats]:
        """What each operation has done."""

    def status(self, *, leave_out: str | None) -> dict[str, Any]:
        """What it does; without the connection that asks."""

    async def reload_settings(self, cause: str) -> dict[str, Any]:
        """Read the configuration again; raises `ConfigError`."""

    def end_connection(self, id: str) -> dict[str, Any]:
        """End one connection; raises `NotFoundError`."""


class NodeService:
    """The operations of one node."""

    def __init__(self, node: NodeView) -> None:
        self._node = node

    @operation("node/status", kind="query", scopes=["node:read"])
    async def status(self, *, ctx: OperationContext) -> dict[str, Any]:
        """The running node: what it listens on, who is connected, which peers it knows."""
        status = self._node.status(leave_out=ctx.connection)
        status["mesh"] |= _busiest(status["mesh"]["routes"])
        return status

    @operation("node/sessions", kind="query", scopes=["node:read"])
    async def sessions(self, *, ctx: OperationContext) -> list[dict[str, Any]]:
        """Live connections, oldest first; without the one that asks."""
        connections: list[dict[str, Any]] = self._node.status(leave_out=ctx.connection)["connections"]
        return connections

    @operation("node/metrics", kind="query", scopes=["node:read"])
    async def metrics(self, *, ctx: OperationContext) -> str:
        """What the node counts, in the text format of Prometheus; GET /metrics answers the same."""
        from alknet.services.metrics import exposition  # its library is heavy, and commands import this module

        return exposition(self._node.status(leave_out=ctx.connection), self._node.stats)

    @operation("node/can", kind="query", scopes=["node:read"])
    async def can(self, peer: str, action: str, resource: str | None = None) -> dict[str, Any]:
        """May a peer do that? And which rule says so.

        `action` is an action such as ssh/exec, or the name of an operation. For peer/call and peer/channel the resource
        is whose and what: w1:fs/read. For forward/local, forward/remote and forward/udp it is host:port or the path of
        a socket; a name is resolved, and the answer is that for the first address that is allowed.
        """
        policy = self._node.gate.policy
        if peer not in policy.peers:
            raise NotFoundError(f"there is no peer {peer!r}")
        identity = Identity(peer, frozenset(policy.peers[peer].scopes), "question")
        access = access_of(self._node.registry, action, resource)
        own = is_own(split_host_port(address) for address in self._node.addresses)
        decision, addresses = await ask_forward(
            lambda what: self._node.gate.peek(identity, action, what, access=access), action, resource, own
        )
        return can(decision, policy, peer, action) | {"addresses": addresses}

    @operation("node/reload", kind="mutation", scopes=["node:admin"], destructive=False, errors=[ConfigInvalid])
    async def reload(self, *, ctx: OperationContext) -> dict[str, Any]:
        """Read the configuration again. What is wrong changes nothing; what is forbidden now ends after the answer."""
        caller = "?" if ctx.identity is None else ctx.identity.id
        try:
            return await self._node.reload_settings(f"peer {caller}")
        except ConfigError as exc:
            raise ConfigInvalid(str(exc), details={"hint": exc.hint} if exc.hint else None) from exc

    @operation("node/kill", kind="mutation", scopes=["node:admin"])
    async def kill(self, id: str) -> dict[str, Any]:
        """End a connection; what runs on it is hung up."""
        return self._node.end_connection(id)


def _busiest(routes: dict[str, Any]) -> dict[str, Any]:
    """The routes with the most calls, `MAX_ROUTED` peers of them at most, and how many more there are."""

    def calls(name: str) -> int:
        return sum(int(peer["calls"]) for peer in routes[name]["peers"].values())

    kept: dict[str, Any] = {}
    pairs = 0
    for name in sorted(routes, key=calls, reverse=True):
        pairs += len(routes[name]["peers"])
        if pairs > MAX_ROUTED:
            break
        kept[name] = routes[name]
    return {"routes": kept, "routes_left_out": len(routes) - len(kept)}


def access_of(registry: Registry, action: str, resource: str | None = None) -> Access | None:
    """What an operation asks for; None for an action that is none, or none that a peer can attempt."""
    if action in PEER_ACTIONS:
        return peer_access((resource or "").partition(":")[0] or "*")
    found = registry.get(action) if action not in ACTIONS else None
    return None if found is None or found.spec.visibility is Visibility.INTERNAL else found.spec.access


def can(decision: Decision, policy: Policy, peer_id: str, action: str) -> dict[str, Any]:
    """A decision as `alknet can --json` prints it. `note` says what a yes comes to where that is not obvious."""
    rights, note = policy.peers[peer_id].ssh, None
    if decision and action in ("ssh/exec", "exec/run") and rights.force_command is not None:
        note = f"whatever is asked for, this runs: {rights.force_command}"
    elif (
        decision and action in ("ssh/exec", "ssh/shell", "exec/run") and rights.as_daemon and not policy.daemon.is_root
    ):
        note = f"equal to owner: it runs as {policy.daemon.name!r}, the user that the node runs as (as_daemon)"
    return {
        "allowed": decision.allowed,
        "rule": decision.rule,
        "reason": decision.reason,
        "denial_id": decision.denial_id,
        "note": note,
    }
