"""What a client may forward: each question of one connection to the gate, and how a refusal comes out of it."""

import asyncio
import logging
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Final

import asyncssh

from alknet.access import Decision
from alknet.errors import AlknetError
from alknet.gate import Act
from alknet.logs import event
from alknet.resolver import resolve
from alknet.runas import RunAs, run_as
from alknet.ssh.forward_acts import Forward, NotForwarded
from alknet.ssh.listeners import free_ports
from alknet.targets import UNRESOLVED, Target, allowed_ports, normalise_host

if TYPE_CHECKING:
    from alknet.ssh.connection import SshConnection

__all__ = ["AGENT", "EVERY_ADDRESS", "LOCAL", "REMOTE", "ForwardRights"]

log = logging.getLogger("alknet.ssh")

LOCAL: Final = "forward/local"
REMOTE: Final = "forward/remote"
AGENT: Final = "ssh/agent"
DENIAL_COST: Final = 0.1
"""Of a refused session: a browser behind -D asks for much that no rule allows."""
EVERY_ADDRESS: Final = ("", "*")
"""What a client says that wants to listen on all of this machine's."""
MAX_LOOKUPS: Final = 4
"""Names that are looked up for one peer at the same time: all peers share the threads that do it."""


class ForwardRights:
    """The rights of the peer of one connection."""

    def __init__(self, connection: "SshConnection") -> None:
        self._connection = connection
        self._gate = connection.handler.gate

    def still(self, live: Forward) -> Decision:
        """Whether all of it is allowed now."""
        decisions = [self._gate.still(self._connection.identity, live.action, one) for one in live.resources]
        return next((decision for decision in decisions if not decision), decisions[0])

    def free_ports(self, targets: list[Target]) -> Iterable[int]:
        """Where the client leaves the choice to the node."""
        rules = self._gate.policy.forward_rules.get(self._connection.identity.id, ())
        ranges = allowed_ports(rules, targets)
        if not ranges:
            raise NotForwarded("refused: no port is allowed on all addresses of that host; name one address")
        return free_ports(ranges)

    def bound(self, target: Target, port: int) -> Target:
        """`target` with the port that the node has got for it, which may be one that it listens on elsewhere."""
        is_self = self._connection.handler.is_own(target.address or target.host, port, any_address=True)
        return replace(target, port=port, is_self=is_self)

    def user(self) -> RunAs:
        peer = self._gate.policy.peers.get(self._connection.identity.id)
        return run_as(None if peer is None else peer.ssh.user)

    async def resolved(self, action: str, host: str, port: int) -> tuple[Target, ...]:
        """What the client named, looked up only if the rules leave open whether its addresses are allowed."""
        try:
            if action == LOCAL or host not in EVERY_ADDRESS:
                target = Target(normalise_host(host), port)
                if target.address is None:
                    decision = self._gate.still(self._connection.identity, action, str(target))
                    if not decision and decision.rule != UNRESOLVED:
                        self.ask(action, str(target))
            own = partial(self._connection.handler.is_own, any_address=action == REMOTE)
            lookups = self._connection.handler.lookups
            slots = lookups.setdefault(self._connection.identity.id, asyncio.Semaphore(MAX_LOOKUPS))
            return await resolve(host, port, own=own, listening=action == REMOTE, slots=slots)
        except (AlknetError, ValueError) as exc:
            raise NotForwarded(str(exc), code=asyncssh.OPEN_CONNECT_FAILED) from exc

    def check_scope(self, action: str, resource: str) -> None:
        if not self._gate.still(self._connection.identity, action):
            self.ask(action, resource)

    def allows(self, action: str, target: Target) -> bool:
        return bool(self._gate.peek(self._connection.identity, action, str(target)))

    def ask(self, action: str, resource: str | None) -> Act:
        connection = self._connection
        act = self._gate.ask(connection.identity, action, resource, **connection.facts())
        if not act.decision:
            log.info(
                event(
                    "forward refused",
                    peer=connection.identity.id,
                    connection=connection.connection.id,
                    action=action,
                    rule=act.decision.rule,
                    denial_id=act.decision.denial_id,
                )
            )
            connection.session_denied(DENIAL_COST)
            raise NotForwarded(f"refused: {act.decision}")
        return act
