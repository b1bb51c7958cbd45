"""Which requests a browser was tricked into: the Host and Origin of a request are checked before anything else.

A page of a foreign site can make a visitor's browser send requests here (cross-site requests), and can make its own
name resolve to this machine's address (DNS rebinding). The first kind is told by ``Origin`` and ``Sec-Fetch-Site``, the
second by a ``Host`` that is none of this node's names. Programs that are no browsers send no ``Origin``.
"""

import ipaddress
from collections.abc import Collection
from functools import lru_cache
from typing import Final

from alknet.gateway.problems import HttpError

__all__ = ["LOOPBACK_NAMES", "check_host", "check_origin", "split_host"]

LOOPBACK_NAMES: Final = frozenset({"localhost", "127.0.0.1", "::1"})
MAX_SHOWN_CHARS: Final = 100


@lru_cache(256)
def split_host(text: str) -> tuple[str, str] | None:
    """(name in lower case without a final dot or brackets, port or ""); None for what is no host."""
    if text.startswith("["):
        name, bracket, rest = text[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            return None
        port = rest[1:]
        try:
            name = str(ipaddress.IPv6Address(name))
        except ValueError:
            return None
    else:
        name, _, port = text.partition(":")
        name = name.lower().removesuffix(".")
        if not name or not all(c.isalnum() or c in "-._" for c in name) or not name.isascii():
            return None
    if port and not (port.isascii() and port.isdigit() and len(port) <= len("65535")):
        return None
    return name, port


def check_host(text: str | None, names: Collection[str], local: str | None, allowed: Collection[str]) -> None:
    """Raise 403 unless the Host names this node: one of `names`, a loopback name, the address `local` that the request
    reached, or what the operator lists (a name, name:port, or ``*``); ``*.example.org`` stands for one label more. A
    request without one is refused with 400."""
    if text is None:
        raise HttpError(400, "INVALID_INPUT", "the request has no Host header, or several")
    if "*" in allowed:
        return
    parts = split_host(text)
    if parts is None:
        raise HttpError(400, "INVALID_INPUT", f"the Host header is no host: {text[:MAX_SHOWN_CHARS]!r}")
    name, port = parts
    with_port = f"[{name}]:{port}" if ":" in name else f"{name}:{port}"
    if name in LOOPBACK_NAMES or name == (local or "").partition("%")[0] or with_port in allowed:
        return
    wild = "*." + name.partition(".")[2]  # one label, as in certificates (RFC 6125 section 6.4.3)
    if any(each in names or each in allowed for each in (name, wild)):
        return
    raise HttpError(
        403,
        "FORBIDDEN",
        f"this node does not answer to the host {name[:MAX_SHOWN_CHARS]!r}; its operator may list it in gateway.hosts",
    )


def check_origin(
    origin: str | None, fetch_site: str | None, *, scheme: str, host: str, allowed: Collection[str]
) -> bool:
    """Whether the request comes from a page of an origin that the operator lists (so that CORS headers are due).
    Raises 403 for one from a foreign page; a page of this very node, and no page at all, are fine."""
    if origin is not None:
        if origin == f"{scheme}://{host}".lower():
            return False
        if origin in allowed or ("*" in allowed and origin != "null"):
            return True
        raise HttpError(
            403,
            "FORBIDDEN",
            f"pages of the origin {origin[:MAX_SHOWN_CHARS]!r} may not use this node; its operator may list it in"
            " gateway.origins",
        )
    if fetch_site == "cross-site":
        raise HttpError(403, "FORBIDDEN", "a page of another site may not send its visitors here")
    return False
