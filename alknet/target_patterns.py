"""The targets of forward rules: what stands in a configuration file, parsed. Pure.

A pattern says which hosts or sockets a rule is about, and which ports; :mod:`alknet.targets` says what comes of it.
"""

import fnmatch
import ipaddress
import re
from dataclasses import dataclass
from functools import cache
from typing import Final

from alknet.hosts import IPNetwork, address_of, normalise_host

__all__ = ["ALL_PORTS", "MAX_PORT", "Pattern", "Ports", "check_path", "name_glob", "parse_pattern", "parse_port"]

MAX_PORT: Final = 65535
MAX_PORT_RANGES: Final = 64
MAX_PATTERN_CHARS: Final = 1024
_DIGITS: Final = re.compile(r"[0-9]{1,5}\Z")
_LOOPBACK: Final[tuple[IPNetwork, ...]] = (ipaddress.ip_network("127.0.0.1/32"), ipaddress.ip_network("::1/128"))

Ports = tuple[tuple[int, int], ...]
"""Ranges, both ends included."""
ALL_PORTS: Final[Ports] = ((1, MAX_PORT),)


@dataclass(frozen=True, slots=True)
class Pattern:
    """The target of a rule, parsed: exactly one of `glob` (of a name), `networks`, `path` and `is_self` is set."""

    text: str
    ports: Ports = ALL_PORTS
    glob: str | None = None
    networks: tuple[IPNetwork, ...] = ()
    path: str | None = None
    is_self: bool = False

    def __str__(self) -> str:
        return self.text


def parse_pattern(text: str) -> Pattern:
    """The target of a rule: ``host-glob:ports``, ``CIDR:ports``, ``[v6]:ports``, ``self``, or a path with globs.

    `ports` is ``*``, a number, ``low-high``, or several of these with commas between them. In a name ``*`` stands for
    any characters, dots included; ``*`` alone stands for global addresses too. ``localhost`` means ``127.0.0.1`` and
    ``::1``. In a path a glob stays in its segment, but ``/**`` at the end means everything below. Raises `ValueError`
    that says what is wrong.
    """
    if len(text) > MAX_PATTERN_CHARS:
        raise ValueError(f"must have at most {MAX_PATTERN_CHARS} characters")
    if text.startswith("/"):
        check_path(text)
        return Pattern(text, path=text)
    if text == "self":
        return Pattern(text, is_self=True)
    host, colon, ports = text.rpartition(":")
    if not colon or not host or text.endswith("]"):
        raise ValueError('must say its ports too, as in "db.corp:5432", "10.0.0.0/8:80,443" or "[fd00::/8]:*"')
    ranges = _ports(ports)
    if host == "self":
        return Pattern(text, ranges, is_self=True)
    if host == "localhost":
        return Pattern(text, ranges, networks=_LOOPBACK)
    if "/" in host or ":" in host:
        return Pattern(text, ranges, networks=(_network(host),))
    if any(char in host for char in "*?"):
        return Pattern(text, ranges, glob=_checked_glob(host))
    name = normalise_host(host)
    ip = address_of(name)
    return (
        Pattern(text, ranges, glob=name) if ip is None else Pattern(text, ranges, networks=(ipaddress.ip_network(ip),))
    )


@cache
def name_glob(glob: str) -> re.Pattern[str]:
    """`glob` as a regular expression; matching takes time in proportion to the name, however many ``*`` there are."""
    return re.compile(fnmatch.translate(glob))  # has no "[", which is the one other thing that is special in it


def _checked_glob(host: str) -> str:
    glob = host.lower().removesuffix(".")
    if not re.fullmatch(r"[a-z0-9_.*?-]+", glob) or ".." in glob:
        raise ValueError("a name with a glob consists of letters, digits, '-', '_', '.', '*' and '?'")
    if re.fullmatch(r"[0-9.*?]*[0-9][0-9.*?]*", glob):
        raise ValueError('addresses are given as a network, as in "10.0.0.0/8:80", not with a glob')
    return glob


def _network(text: str) -> IPNetwork:
    """``10.0.0.0/8``, ``[fd00::/8]``, ``[fd00::]/8``, ``[::1]``."""
    host, slash, bits = text.partition("/")
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or (rest and "/" in host) or (rest and not rest.startswith("/")) or ":" not in host:
            raise ValueError('an IPv6 network stands in brackets, as in "[fd00::/8]:443"')
        host, slash, bits = (host + rest).partition("/")
    elif ":" in host:
        raise ValueError('an IPv6 address or network stands in brackets, as in "[fd00::/8]:443"')
    if "%" in host or (slash and not re.fullmatch(r"[0-9]{1,3}", bits)):
        raise ValueError('a network is an address and a number of bits, as in "10.0.0.0/8"')
    try:
        network = ipaddress.ip_network(f"{host}{slash}{bits}", strict=False)
    except ValueError:
        raise ValueError('must be an IP address or a network such as "10.0.0.0/8"') from None
    if network.network_address != ipaddress.ip_address(host):
        raise ValueError(f"has bits set behind the network's {bits}; the network is {network}")
    return network


def _ports(text: str) -> Ports:
    if text == "*":
        return ALL_PORTS
    ranges = []
    for part in text.split(",", MAX_PORT_RANGES)[:MAX_PORT_RANGES]:
        low, dash, high = part.partition("-")
        first, last = parse_port(low), parse_port(high if dash else low)
        if not 0 < first <= last:
            raise ValueError(f'ports are "*", or numbers from 1 to {MAX_PORT} such as "80,443,8000-8100"')
        ranges.append((first, last))
    if text.count(",") >= MAX_PORT_RANGES:
        raise ValueError(f"at most {MAX_PORT_RANGES} ports and ranges stand in one rule")
    return tuple(ranges)


def parse_port(text: str) -> int:
    """A port from 0 to 65535; `ValueError` for what is none."""
    if not _DIGITS.match(text) or int(text) > MAX_PORT:
        raise ValueError(f'ports are "*", or numbers from 1 to {MAX_PORT} such as "80,443,8000-8100"')
    return int(text)


def check_path(text: str) -> None:
    """Raises `ValueError` for what is no absolute path with nothing to resolve in it but links."""
    if not text.startswith("/") or "\0" in text:
        raise ValueError("a socket is given by its absolute path")
    if any(segment in ("", ".", "..") for segment in text[1:].split("/")):
        raise ValueError("the path of a socket has no '//', '.' or '..' in it, and does not end in '/'")
