"""[forwarding] and a peer's forward: who may reach what through the node, and listen where on it."""

from collections.abc import Iterable, Mapping
from typing import Annotated, Final, Literal

from pydantic import AfterValidator, Field, model_validator

from alknet.config.base import Model
from alknet.config.fields import LIVE, PEER_ID
from alknet.target_patterns import MAX_PATTERN_CHARS, parse_pattern
from alknet.targets import MAX_RULES, Rule

__all__ = ["ForwardRule", "ForwardRules", "Forwarding", "NodeForwardRule", "forward_rules"]

MAX_PEER_RULES: Final = 256


def _target(value: str) -> str:
    parse_pattern(value)
    return value


def _rule_peer(value: str) -> str:
    if not PEER_ID.match(value) and not (value.startswith("@") and len(value) > 1):
        raise ValueError('must be the id of a peer, or a role with @ before it, as in "@staff"')
    return value


class ForwardRule(Model):
    """One rule: an entry of forward of a peer."""

    action: Literal["allow", "deny"] = Field(description="What the rule says of what it matches.")
    direction: Literal["local", "remote", "udp", "unix"] = Field(
        description="local: connections that the node makes (-L, -D); remote: listeners on it (-R), and then target is"
        " where they listen; udp: datagrams from it; unix: sockets by their path, both ways."
    )
    target: Annotated[str, AfterValidator(_target)] = Field(
        max_length=MAX_PATTERN_CHARS,
        description='"db.corp:5432", "*.corp:80,443", "10.0.0.0/8:8000-8100", "[fd00::/8]:*", "localhost:3000", "self",'
        ' "/run/*.sock", "/run/**". A name lets through ordinary global addresses alone, whatever it leads to; every'
        " other address needs a rule with a network, and the node's own ports need self.",
    )

    @model_validator(mode="after")
    def _fits_together(self) -> "ForwardRule":
        self.rule("")
        return self

    def rule(self, name: str) -> Rule:
        """The rule as it is judged by, for the peers that it is given to."""
        return Rule(self.action == "allow", self.direction, parse_pattern(self.target), name=name)


class NodeForwardRule(ForwardRule):
    """[[forwarding.rules]]: a rule for all peers, or for some."""

    peers: tuple[Annotated[str, AfterValidator(_rule_peer)], ...] | None = Field(
        None,
        min_length=1,
        max_length=1000,
        description="Ids of peers, and roles as @NAME, that the rule is for; without it, all.",
    )


ForwardRules = Annotated[tuple[ForwardRule, ...], Field(max_length=MAX_PEER_RULES)]
"""forward of a peer."""


class Forwarding(Model):
    """[forwarding]: what peers reach through the node, and where they may have it listen."""

    rules: tuple[NodeForwardRule, ...] = Field(
        (),
        max_length=MAX_RULES,
        description="[[forwarding.rules]] tables, read after the peer's own; the first that matches decides, and what"
        " no rule matches is denied.",
        json_schema_extra=LIVE,
    )


def forward_rules(
    rules: Iterable[NodeForwardRule], peers: Mapping[str, tuple[tuple[str, ...], tuple[ForwardRule, ...]]]
) -> dict[str, tuple[Rule, ...]]:
    """For each peer that any rule is about, given its roles and its own rules: those, then the node's, in order."""
    shared = [(rule.peers, rule.rule(f"forwarding.rules[{index}]")) for index, rule in enumerate(rules)]
    named = {name for who, _ in shared for name in who or ()}
    known: dict[frozenset[str], tuple[Rule, ...]] = {}
    found = {}
    for peer, (roles, own) in peers.items():
        names = named & {peer, *(f"@{role}" for role in roles)}  # peers that no rule tells apart have the same list
        if frozenset(names) not in known:
            known[frozenset(names)] = tuple(rule for who, rule in shared if who is None or not names.isdisjoint(who))
        mine = tuple(rule.rule(f"peer {peer} forward[{index}]") for index, rule in enumerate(own))
        if together := mine + known[frozenset(names)]:
            found[peer] = together
    return found
