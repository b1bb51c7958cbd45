"""From a host that somebody asked for to a connected socket, with the decision in between.

A name is resolved once (:func:`resolve`), every address of it is judged, and :func:`dial` connects to those that passed
by number: no name is looked up a second time, so a name server that changes its mind gets nowhere. No error says which
host or address it is about; the client knows, and logs must not.
"""

import asyncio
import contextlib
import errno
import ipaddress
import os
import socket
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

from alknet.errors import InvalidInputError, NotFoundError, UnavailableError
from alknet.hosts import IPAddress, address_of, embedded_addresses, normalise_host
from alknet.targets import Target

__all__ = ["MAX_ADDRESSES", "Own", "dial", "is_own", "resolve"]

MAX_ADDRESSES: Final = 16
"""Addresses of one name that are judged; a name with more has the others left out."""
STAGGER_S: Final = 0.25
"""After so long without an answer the next address is tried too (RFC 8305)."""
NOT_IN_DNS: Final = (".alk", ".invalid", ".onion")
"""Names of peers and names that are never in DNS, and which nobody's name server should hear of."""
_NO_SUCH_NAME: Final = frozenset(
    getattr(socket, name) for name in ("EAI_NONAME", "EAI_NODATA", "EAI_ADDRFAMILY") if hasattr(socket, name)
)

Own = Callable[[str, int], bool]
"""Whether a listener of this node is at an address and port."""


async def resolve(
    host: str,
    port: int,
    *,
    own: Own,
    timeout_s: float = 5.0,
    listening: bool = False,
    slots: asyncio.Semaphore | None = None,
) -> tuple[Target, ...]:
    """The targets that `host` and `port` come to, one for each address and in the resolver's order; at least one.

    ``localhost`` and addresses need no lookup. With `listening` the host is where a remote forward listens: an empty
    one, or ``*``, stands for every address of this machine, and port 0 for any port (RFC 4254, section 7.1).

    A lookup takes one of `slots` until it really ends, however short a time it was waited for: nothing can stop it, and
    all share the threads that do it.

    Raises `InvalidInputError` for what is no host, `NotFoundError` for a name without an address, and
    `UnavailableError` when nobody can tell or `timeout_s` is over.
    """
    if not (0 if listening else 1) <= port <= 65535:
        raise InvalidInputError("there is no such port")
    if listening and host in ("", "*"):
        return _targets("0.0.0.0", port, ("0.0.0.0", "::"), own)
    try:
        name = normalise_host(host)
    except ValueError as exc:
        raise InvalidInputError(f"the host cannot be used: {exc}") from None
    if address_of(name) is not None:
        return _targets(name, port, (name,), own)
    if name == "localhost" or name.endswith(".localhost"):  # RFC 6761: never asked for
        return _targets(name, port, ("127.0.0.1", "::1"), own)
    if name.endswith(NOT_IN_DNS):
        raise NotFoundError("the host has a name that is not in DNS")
    slots = slots or asyncio.Semaphore()
    try:
        async with asyncio.timeout(timeout_s):
            await slots.acquire()
            found = await asyncio.shield(_look_up(name, port, slots))
        if isinstance(found, Exception):
            raise found
    except TimeoutError:
        raise UnavailableError(f"the host's name could not be resolved within {timeout_s:g} s") from None
    except socket.gaierror as exc:
        if exc.errno in _NO_SUCH_NAME:
            raise NotFoundError("the host's name has no address") from None
        raise UnavailableError("the host's name cannot be resolved now") from None
    except (OSError, UnicodeError):
        raise UnavailableError("the host's name cannot be resolved now") from None
    # An address with a zone is of one link of this machine, and is left out.
    addresses = [str(sockaddr[0]) for family, *_, sockaddr in found if family in (socket.AF_INET, socket.AF_INET6)]
    numeric = [str(ip) for ip in map(address_of, addresses) if ip is not None and "%" not in str(ip)]
    if not numeric:
        raise NotFoundError("the host's name has no address that can be used")
    return _targets(name, port, tuple(dict.fromkeys(numeric))[:MAX_ADDRESSES], own)


async def _look_up(name: str, port: int, slots: asyncio.Semaphore) -> list[Any] | Exception:
    """What is found, or raised: nobody may be there any more to take it."""
    try:
        return await asyncio.get_running_loop().getaddrinfo(name, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as exc:
        return exc
    finally:
        slots.release()


def _targets(host: str, port: int, addresses: Sequence[str], own: Own) -> tuple[Target, ...]:
    is_address = address_of(host) is not None
    return tuple(Target(address if is_address else host, port, address, own(address, port)) for address in addresses)


async def dial(targets: Sequence[Target], *, timeout_s: float = 10.0) -> socket.socket:
    """A socket connected to the first of `targets` that answers, non-blocking and without Nagle's delay.

    They are tried in order, the next one as soon as one fails or has been silent for a moment; `address` alone counts.
    Raises an `OSError` with the `errno` of the first one when all fail, and `TimeoutError` after `timeout_s`; neither
    has the address in it that event loops put there. The socket is the caller's.
    """
    waiting = [target for target in targets if target.address is not None]
    if not waiting:
        raise OSError(errno.EADDRNOTAVAIL, "there is no address to connect to")
    if len(waiting) == 1:  # the usual case needs no tasks, which take longer than the connection
        return await _dial_one(waiting[0], timeout_s)
    connected: list[socket.socket] = []
    failed: dict[int, int] = {}
    news = asyncio.Event()

    async def attempt(number: int) -> None:
        try:
            connected.append(await _connect(waiting[number]))
        except OSError as exc:
            failed[number] = exc.errno or errno.ECONNABORTED
        news.set()

    winner = None
    try:
        async with asyncio.timeout(timeout_s), asyncio.TaskGroup() as attempts:
            tasks = []
            for number in range(len(waiting)):
                tasks.append(attempts.create_task(attempt(number)))
                news.clear()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(news.wait(), STAGGER_S)
                if connected:
                    break
            while not connected and len(failed) < len(tasks):
                news.clear()
                await news.wait()
            for task in tasks:
                task.cancel()
        winner = connected.pop(0) if connected else None
    except TimeoutError:
        failed[0] = errno.ETIMEDOUT
    finally:
        for sock in connected:
            sock.close()
    if winner is None:
        raise OSError(failed[0], os.strerror(failed[0]))  # of the subclass that belongs to the number
    return winner


async def _dial_one(target: Target, timeout_s: float) -> socket.socket:
    try:
        async with asyncio.timeout(timeout_s):
            return await _connect(target)
    except TimeoutError:
        number = errno.ETIMEDOUT
    except OSError as exc:
        number = exc.errno or errno.ECONNABORTED
    raise OSError(number, os.strerror(number))


async def _connect(target: Target) -> socket.socket:
    assert target.address is not None
    family = socket.AF_INET6 if ":" in target.address else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await asyncio.get_running_loop().sock_connect(sock, (target.address, target.port))
    except BaseException:
        sock.close()
        raise
    return sock


def is_own(listening: Iterable[tuple[str, int]], *, any_address: bool = False) -> Own:
    """Tells whether an address and port lead to one of `listening`, the numeric addresses that the node listens on.

    It rather says yes too often. A listener on every address is at each address of this machine; one on loopback is at
    all of loopback; and the unspecified address connects to loopback. An IPv4 address inside of an IPv6 one counts as
    well. With `any_address` the port alone decides, as it does for who wants to listen there too.
    """
    by_port: dict[int, set[IPAddress]] = {}
    for host, port in listening:
        by_port.setdefault(port, set()).add(ipaddress.ip_address(host))

    def own(address: str, port: int) -> bool:
        hosts = by_port.get(port)
        if hosts is None:
            return False
        if any_address:
            return True
        ip = ipaddress.ip_address(address)
        return any(_reaches(each, hosts) for each in (ip, *embedded_addresses(ip)))

    return own


def _reaches(ip: IPAddress, hosts: set[IPAddress]) -> bool:
    if ip in hosts:
        return True
    if ip.is_loopback or ip.is_unspecified:
        return any(host.is_loopback or host.is_unspecified for host in hosts)
    return any(host.is_unspecified for host in hosts) and _is_of_this_machine(ip)


def _is_of_this_machine(ip: IPAddress) -> bool:
    """Whether the kernel takes packets to `ip` itself: only then can a socket be bound to it."""
    family = socket.AF_INET6 if ip.version == 6 else socket.AF_INET
    with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.bind((str(ip), 0))
        return True
    return False
