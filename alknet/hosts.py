"""Hosts: the one way in which each is written, and what an IP address is for. Pure.

An address is an ordinary global one, or *special*: one that a rule must name before anything is sent there. A name in
DNS can be made to lead anywhere, so a rule about names admits global addresses alone; loopback, private networks, cloud
metadata services, and every IPv6 form that carries an IPv4 address inside are special. The tables follow the IANA
registries of special-purpose addresses (RFC 6890); what is not known to be global is not.
"""

import ipaddress
import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Final, TypeAlias

__all__ = [
    "GLOBAL",
    "IPAddress",
    "IPNetwork",
    "address_of",
    "embedded_addresses",
    "form_of",
    "kind_of_address",
    "normalise_host",
]

IPAddress: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
IPNetwork: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network

MAX_HOST_CHARS: Final = 255
MAX_NAME_CHARS: Final = 253
_LABEL: Final = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)\Z")
_NUMBER: Final = re.compile(r"(0x[0-9a-f]*|[0-9]+)\Z")

GLOBAL: Final = "global"
METADATA: Final = frozenset(
    ipaddress.ip_address(text)
    for text in (
        "169.254.169.254",  # nearly every cloud
        "169.254.170.2",  # AWS, credentials of containers
        "169.254.170.23",  # AWS, credentials of pods
        "168.63.129.16",  # Azure; in the middle of global addresses
        "100.100.100.200",  # Alibaba
        "192.0.0.192",  # Oracle
        "fd00:ec2::254",  # AWS
        "fd00:ec2::23",
        "fd20:ce::254",  # Google
        "fd00:c1::a9fe:a9fe",  # Oracle
    )
)
"""Services of clouds that hand credentials to whoever reaches them from a machine."""

_IPV4: Final = tuple(
    (ipaddress.IPv4Network(text), kind)
    for text, kind in (
        ("0.0.0.0/32", "unspecified"),  # which Linux connects to loopback
        ("0.0.0.0/8", "reserved"),
        ("10.0.0.0/8", "private"),
        ("100.64.0.0/10", "cgnat"),
        ("127.0.0.0/8", "loopback"),
        ("169.254.0.0/16", "link-local"),
        ("172.16.0.0/12", "private"),
        ("192.0.0.0/24", "reserved"),
        ("192.0.2.0/24", "reserved"),
        ("192.88.99.0/24", "reserved"),  # relays of 6to4, once
        ("192.168.0.0/16", "private"),
        ("198.18.0.0/15", "reserved"),
        ("198.51.100.0/24", "reserved"),
        ("203.0.113.0/24", "reserved"),
        ("224.0.0.0/4", "multicast"),
        ("255.255.255.255/32", "broadcast"),
        ("240.0.0.0/4", "reserved"),
    )
)
_IPV6: Final = tuple(
    (ipaddress.IPv6Network(text), kind)
    for text, kind in (
        ("::/128", "unspecified"),
        ("::1/128", "loopback"),
        ("::ffff:0:0/96", "mapped"),
        ("::ffff:0:0:0/96", "translated"),  # RFC 2765
        ("::/96", "compatible"),
        ("64:ff9b::/96", "nat64"),
        ("64:ff9b:1::/48", "nat64"),
        ("2001::/32", "teredo"),
        ("2001::/23", "reserved"),
        ("2001:db8::/32", "reserved"),
        ("2002::/16", "6to4"),
        ("3fff::/20", "reserved"),
        ("2000::/3", GLOBAL),
        ("fc00::/7", "ula"),
        ("fe80::/10", "link-local"),
        ("fec0::/10", "site-local"),
        ("ff00::/8", "multicast"),
    )
)
_FORMS: Final = tuple(
    network
    for network, kind in _IPV6
    if kind in ("mapped", "translated", "compatible", "nat64", "teredo", "6to4")
)  # fmt: skip


def normalise_host(text: str) -> str:
    """The one way in which a host is written: a name in ASCII and lower case, or an address; else `ValueError`.

    One trailing dot goes, brackets of an IPv6 address too, other alphabets become IDNA (2003, as the standard library
    has it). A name that a resolver would take for an address (``127.1``, ``0x7f.1``, ``2130706433``) is refused, as no
    rule would have seen that address; so are zones, which choose an interface of this machine.
    """
    if not 0 < len(text) <= MAX_HOST_CHARS:
        raise ValueError(f"a host has 1 to {MAX_HOST_CHARS} characters")
    if "%" in text:
        raise ValueError("a host has no zone (%)")
    host = text
    if text.startswith("[") and text.endswith("]"):
        host = text[1:-1]
        if ":" not in host:
            raise ValueError("only an IPv6 address stands in brackets")
    if ":" in host:
        try:
            return str(ipaddress.IPv6Address(host))
        except ValueError:
            raise ValueError("a host with ':' must be an IPv6 address") from None
    if not host.isascii():
        try:
            host = host.encode("idna").decode("ascii")
        except UnicodeError:
            raise ValueError("a name in another alphabet must be one that IDNA allows") from None
    host = host.lower().removesuffix(".")
    labels = host.split(".")
    if _NUMBER.match(labels[-1]):
        try:
            return str(ipaddress.IPv4Address(host))
        except ValueError:
            raise ValueError("an IPv4 address is written as four decimal numbers without leading zeros") from None
    if len(host) > MAX_NAME_CHARS or not all(_LABEL.match(label) for label in labels):
        raise ValueError("a name consists of labels of 1 to 63 letters, digits, '-' and '_', with dots between them")
    return host


@lru_cache(maxsize=1024)
def address_of(host: str) -> IPAddress | None:
    """The address that a normalised host is; None for a name."""
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def kind_of_address(address: str | IPAddress) -> str:
    """``"global"``, or what is special about it: ``loopback``, ``private``, ``metadata``, ``mapped`` and so on.

    The first line of the tables that it falls into decides, so that the narrow ones stand before the wide ones.
    Raises `ValueError` for what is no address.
    """
    ip = ipaddress.ip_address(address) if isinstance(address, str) else address
    if ip in METADATA:
        return "metadata"
    if isinstance(ip, ipaddress.IPv4Address):
        return next((kind for network, kind in _IPV4 if ip in network), GLOBAL)
    return next((kind for network, kind in _IPV6 if ip in network), "reserved")


def form_of(ip: IPAddress) -> ipaddress.IPv6Network | None:
    """The network of the IPv6 form with an IPv4 address inside that `ip` has; None for an address that is itself."""
    if isinstance(ip, ipaddress.IPv4Address) or ip.is_unspecified or ip.is_loopback:
        return None
    return next((network for network in _FORMS if ip in network), None)


def embedded_addresses(ip: IPAddress) -> tuple[ipaddress.IPv4Address, ...]:
    """Every IPv4 address that may be meant by `ip`: none but for the forms of `form_of`.

    Teredo has a server's and a client's, and with a /48 for NAT64 (RFC 6052) it is not known where in it the address
    stands.
    """
    form = form_of(ip)
    return () if form is None else tuple(ipaddress.IPv4Address(value) for value in _embedded(int(ip), form))


def _embedded(bits: int, form: ipaddress.IPv6Network) -> Iterator[int]:
    low = bits & 0xFFFFFFFF
    if form.prefixlen == 96:
        yield low
    elif form.prefixlen == 16:  # 6to4, RFC 3056
        yield bits >> 80 & 0xFFFFFFFF
    elif form.prefixlen == 32:  # Teredo, RFC 4380: the client's is written inverted
        yield bits >> 64 & 0xFFFFFFFF
        yield low ^ 0xFFFFFFFF
    else:  # NAT64 for local use, RFC 8215: as /48, /56, /64 or /96; bits 64 to 71 carry nothing
        first = bits >> 64 & 0xFFFFFFFFFFFFFFFF
        after = bits & 0x00FFFFFFFFFFFFFF
        yield (first & 0xFFFF) << 16 | after >> 40
        yield (first & 0xFF) << 24 | after >> 32
        yield after >> 24
        yield low
