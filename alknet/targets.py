"""Where a forward goes to or listens, and the rules that say who may: design 02, "Forward targets". Pure.

A :class:`Target` is a host and a port as they were asked for, and the one address that the host was found to have. It
is that address which is dialled, so a target is judged as often as its name has addresses, and the answer for one says
nothing of another. The text of a target, ``str(target)``, is the *resource* of the actions ``forward/*``.
"""

import ipaddress
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Literal, get_args

from alknet.globs import path_glob
from alknet.hosts import (
    GLOBAL,
    IPAddress,
    address_of,
    embedded_addresses,
    form_of,
    kind_of_address,
    normalise_host,
)
from alknet.target_patterns import ALL_PORTS, MAX_PORT, Pattern, Ports, check_path, name_glob, parse_port

__all__ = [
    "DEFAULT",
    "MAX_RULES",
    "OWN_PORT",
    "UNRESOLVED",
    "Direction",
    "Rule",
    "Target",
    "UnixTarget",
    "allowed_ports",
    "judge",
    "kind_of_address",
    "normalise_host",
    "parse_target",
]

Direction = Literal["local", "remote", "udp", "unix"]
"""What a rule is about: connections from the node, listeners on it, datagrams, or unix sockets, both ways."""

MAX_PATH_BYTES: Final = 107
"""What fits in the address of a unix socket, with the zero after it."""
MAX_RULES: Final = 1000

DEFAULT: Final = "forwarding.default"
"""The rule's name where no rule matched."""
UNRESOLVED: Final = "forwarding.unresolved"
"""The rule's name for a host without an address that a rule might allow: resolve it, and ask for each address."""
OWN_PORT: Final = "forwarding.own_port"
"""The rule's name where a remote forward would take a port that the node listens on."""
EVERYTHING_BELOW: Final = "/**"
_SAYS: Final = {"local": "local forwards to", "remote": "remote forwards on", "udp": "datagrams to"}


# --- targets ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Target:
    """A host (normalised) and port, and the address that was found for the host and is going to be used.

    `address` is None for a name that has not been resolved; where the host is an address, it is that. `is_self` says
    that a listener of this node is there. Port 0 stands for any port, in a remote forward.
    """

    host: str
    port: int
    address: str | None = None
    is_self: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.port <= MAX_PORT:
            raise ValueError(f"a port is a number from 0 to {MAX_PORT}")
        if address_of(self.host) is not None:
            if self.address not in (None, self.host):
                raise ValueError("a host that is an address has no other address")
            object.__setattr__(self, "address", self.host)

    @classmethod
    def parse(cls, text: str) -> "Target":
        """The target of which `text` is the text: ``host:port``, then perhaps ``@address`` and ``@self``."""
        named, *marks = text.split("@")
        is_self = marks[-1:] == ["self"]
        addresses = [normalise_host(mark) for mark in (marks[:-1] if is_self else marks)]
        host, colon, port = named.rpartition(":")
        if not colon or len(addresses) > 1 or any(address_of(address) is None for address in addresses):
            raise ValueError('a target is host:port, as in "db.corp:5432" or "[2001:db8::1]:443"')
        if ":" in host and not host.startswith("["):
            raise ValueError("an IPv6 address in a target stands in brackets")
        return cls(normalise_host(host), parse_port(port), next(iter(addresses), None), is_self)

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        address = "" if self.address in (None, self.host) else f"@{self.address}"
        return f"{host}:{self.port}{address}{'@self' if self.is_self else ''}"

    @property
    def asked(self) -> str:
        """The part that the client gave."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class UnixTarget:
    """A unix socket by its absolute path, in which nothing is left to resolve but symbolic links."""

    path: str

    @classmethod
    def parse(cls, text: str) -> "UnixTarget":
        check_path(text)
        if len(text.encode("utf-8", "surrogateescape")) > MAX_PATH_BYTES:
            raise ValueError(f"the path of a socket has at most {MAX_PATH_BYTES} bytes")
        return cls(text)

    def __str__(self) -> str:
        return self.path

    @property
    def asked(self) -> str:
        return self.path


def parse_target(text: str) -> Target | UnixTarget:
    """A path where `text` begins with ``/``, else a host and a port; `ValueError` says what is wrong."""
    return UnixTarget.parse(text) if text.startswith("/") else Target.parse(text)


# --- rules ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Rule:
    """One line of a list of rules, for whoever the list is for.

    `name` tells an operator where it stands, and is no secret to whom it refuses.
    """

    allow: bool
    direction: Direction
    pattern: Pattern
    name: str = "rule"

    def __post_init__(self) -> None:
        if self.direction not in get_args(Direction):
            raise ValueError(f"a direction is one of {', '.join(get_args(Direction))}")
        if self.direction == "unix" and self.pattern.path is None:
            raise ValueError("a rule for unix sockets has an absolute path as its target")
        if self.direction == "udp" and self.pattern.path is not None:
            raise ValueError("datagrams go to a host and a port, not to a path")
        if self.direction == "remote" and self.pattern.is_self:
            raise ValueError("a remote forward never takes a port of the node itself")


# --- the decision -----------------------------------------------------------------------------------------------


def judge(rules: Sequence[Rule], direction: Direction, target: Target | UnixTarget) -> tuple[bool, str, str]:
    """(whether allowed, the name of the rule that says so or why there is none, the reason for people).

    The first rule that matches decides, and none means no; which peers a rule is for has been seen to. A name rule
    allows global addresses alone; everything else, forms with an IPv4 address inside above all, needs a rule with a
    network that covers it, and nothing but the rule ``self`` allows a listener of the node. A rule that denies needs no
    such care: by name it holds whatever the name leads to.
    """
    if isinstance(target, UnixTarget):
        return _judge_path(rules, direction, target)
    what = f"{_SAYS.get(direction, 'forwards to')} {target.asked}"
    if direction == "remote" and target.is_self:
        return False, OWN_PORT, "a remote forward never takes a port of the node itself"
    ip = None if target.address is None else address_of(target.address)
    if direction == "remote" and target.port == 0 and ip is not None:
        ranges = allowed_ports(rules, (target,))
        if ranges:
            return judge(rules, direction, Target(target.host, ranges[0].start, target.address))
        return False, DEFAULT, f"no rule allows {what}, which stands for any port"
    if direction != "remote" and target.port == 0:
        return False, DEFAULT, "port 0 is no port to connect to"
    missed = ""
    for rule in rules:
        if rule.direction != direction or not (_has_port(rule.pattern, target.port) or target.port == 0):
            continue
        if ip is None:
            if rule.allow and (rule.pattern.glob is None or _is_named(rule.pattern, target)):
                return False, UNRESOLVED, f"{what} depend on the address, which is not known"
            if not rule.allow and _is_named(rule.pattern, target):
                return False, rule.name, f"a rule denies {what}"
        elif not _matches(rule, target, ip):
            missed = missed or (rule.allow and _nearly_matches(rule, target, ip) and _special(target, ip)) or ""
        elif not rule.allow:
            return False, rule.name, f"a rule denies {what}"
        else:
            return _inside(rules, direction, target, ip) or (True, rule.name, f"a rule allows {what}")
    return False, DEFAULT, f"no rule allows {what}{missed}"


def allowed_ports(rules: Sequence[Rule], targets: Iterable[Target]) -> tuple[range, ...]:
    """The ports on which a remote forward may listen at every one of these addresses; their own ports do not count."""
    left = list(ALL_PORTS)
    for target in targets:
        undecided, allowed = left, []
        for rule in rules:
            ip = None if target.address is None else address_of(target.address)
            if rule.direction == "remote" and ip is not None and _matches(rule, target, ip):
                if rule.allow:
                    allowed += [part for one in undecided for part in _common(one, rule.pattern.ports)]
                undecided = [part for one in undecided for part in _without(one, rule.pattern.ports)]
        left = sorted(allowed)
    return tuple(range(low, high + 1) for low, high in left)


def _judge_path(rules: Sequence[Rule], direction: Direction, target: UnixTarget) -> tuple[bool, str, str]:
    what = f"{'listening on' if direction == 'remote' else 'connections to'} {target.path}"
    directions = () if direction == "udp" else ("unix", direction)
    for rule in rules:
        path = rule.pattern.path
        if path is not None and rule.direction in directions and _covers(path, target.path):
            return rule.allow, rule.name, f"a rule {'allows' if rule.allow else 'denies'} {what}"
    return False, DEFAULT, f"no rule allows {what}"


def _covers(pattern: str, path: str) -> bool:
    """Whether `path` is what `pattern` says; with ``/**`` at its end, whatever is below the rest of it."""
    if not pattern.endswith(EVERYTHING_BELOW):
        return path_glob(pattern).fullmatch(path) is not None
    above = pattern.removesuffix(EVERYTHING_BELOW).split("/")
    names = path.split("/")
    return len(names) > len(above) and path_glob("/".join(above)).fullmatch("/".join(names[: len(above)])) is not None


def _matches(rule: Rule, target: Target, ip: IPAddress) -> bool:
    """Whether a rule of the right direction and port is about this target."""
    pattern = rule.pattern
    if pattern.is_self:
        return target.is_self
    if rule.allow and target.is_self:
        return False
    if pattern.networks:
        covering = [network for network in pattern.networks if ip.version == network.version and ip in network]
        form = form_of(ip)
        if rule.allow and form is not None:  # [::/0] is about IPv6, and not about what hides in it
            return any(isinstance(n, ipaddress.IPv6Network) and n.subnet_of(form) for n in covering)
        return bool(covering)
    return _is_named(pattern, target) and not (rule.allow and kind_of_address(ip) != GLOBAL)


def _nearly_matches(rule: Rule, target: Target, ip: IPAddress) -> bool:
    """Whether a rule that does not match would, but for what kind of address it is: people are told."""
    networks = rule.pattern.networks if target.is_self else ()
    covers = any(ip.version == network.version and ip in network for network in networks)
    return covers or _is_named(rule.pattern, target)


def _is_named(pattern: Pattern, target: Target) -> bool:
    """Whether the host as it was asked for is in a name rule; an address has no name but ``*``."""
    if pattern.glob is None:
        return False
    if address_of(target.host) is not None:
        return pattern.glob == "*"
    return name_glob(pattern.glob).match(target.host) is not None


def _inside(rules: Sequence[Rule], direction: Direction, target: Target, ip: IPAddress) -> tuple[bool, str, str] | None:
    """What denies an allowed address because of the IPv4 address in it; for that alone the rules are read again."""
    for inner in embedded_addresses(ip):
        ours = Target(str(inner), target.port, is_self=target.is_self)
        for rule in rules:
            if rule.direction == direction and _has_port(rule.pattern, target.port) and _matches(rule, ours, inner):
                if not rule.allow:
                    what = f"{_SAYS.get(direction, 'forwards to')} {target.asked}"
                    return False, rule.name, f"a rule denies {what}, for the address that is in it"
                break
    return None


def _special(target: Target, ip: IPAddress) -> str:
    kind = "a port of the node itself" if target.is_self else f"of the kind {kind_of_address(ip)!r}"
    rule = '"self"' if target.is_self else "for addresses"
    return f"; the address is {kind}, which only a rule {rule} allows"


def _has_port(pattern: Pattern, port: int) -> bool:
    return any(low <= port <= high for low, high in pattern.ports)


def _common(one: tuple[int, int], ports: Ports) -> list[tuple[int, int]]:
    both = ((max(one[0], low), min(one[1], high)) for low, high in ports)
    return [(low, high) for low, high in both if low <= high]


def _without(one: tuple[int, int], ports: Ports) -> list[tuple[int, int]]:
    rest = [one]
    for low, high in ports:
        rest = [part for a, b in rest for part in ((a, min(b, low - 1)), (max(a, high + 1), b)) if part[0] <= part[1]]
    return rest
