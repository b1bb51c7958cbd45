"""A question about a forward, answered as the forward would be: its name is resolved, and each address is judged."""

from collections.abc import Callable
from typing import Any, Final

from alknet.access import Decision
from alknet.resolver import Own, resolve
from alknet.target_patterns import parse_port
from alknet.targets import UNRESOLVED, Target, parse_target

__all__ = ["ask_forward"]

LISTENING: Final = {"forward/local": False, "forward/remote": True, "forward/udp": False}
"""The actions that are about a target, and whether that is where somebody listens."""


async def ask_forward(
    ask: Callable[[str | None], Decision], action: str, resource: str | None, own: Own
) -> tuple[Decision, list[dict[str, Any]]]:
    """What `ask` says of `resource`, or of the first address of it that is allowed; with what it says of each address.

    A name is looked up where its addresses make a difference, as for a forward. `own` tells the node's own listeners.
    Raises what `alknet.resolver.resolve` does. Of another action, or without a host, nothing is looked up.
    """
    decision = ask(resource)
    if action not in LISTENING or resource is None or resource.startswith("/"):
        return decision, []
    host, _, port = resource.rpartition(":")
    if LISTENING[action] and host in ("", "*"):
        targets = await resolve(host, parse_port(port) if port.isdigit() else -1, own=own, listening=True)
    else:
        try:
            target = parse_target(resource)
        except ValueError:
            return decision, []
        assert isinstance(target, Target)
        if "@" in resource or (target.address is None and decision.rule != UNRESOLVED):
            return decision, []
        targets = await resolve(target.host, target.port, own=own, listening=LISTENING[action])
    decisions = [(target, ask(str(target))) for target in targets]
    first = next((one for _, one in decisions if one.allowed), decisions[0][1])
    return first, [
        {"address": target.address, "allowed": one.allowed, "rule": one.rule, "reason": one.reason}
        for target, one in decisions
    ]
