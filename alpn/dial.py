"""Reaching a node: QUIC and TLS raced against each other, the first completed handshake wins.

QUIC gets `HEAD_START_S`; where UDP is blocked, TLS is there soon after. With several addresses each gets its turn,
`HEAD_START_S` after the one before it or as soon as that has failed (RFC 8305, "Happy Eyeballs").

A handshake proves nothing about who answered: whoever dials must have that proven by what it carries (the SSH host key,
the hello) before it sends anything of its own.
"""

import asyncio
import ipaddress
import os
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from alknet.alpn.errors import AlpnRefused, HandshakeFailed, StreamsExhausted
from alknet.alpn.streams import Address, Connection, Stream
from alknet.alpn.tcp import keep_alive
from alknet.alpn.tls import HANDSHAKE_TIMEOUT_S, dial_tls
from alknet.errors import AlknetError, UnavailableError
from alknet.tasks import Tasks

__all__ = ["CARRIERS", "HEAD_START_S", "Dialed", "dial", "first_stream"]

HEAD_START_S: Final = 0.25
"""What an attempt gets before the next one begins beside it."""
MAX_ADDRESSES: Final = 8
"""Addresses that are tried, of all that the names resolve to."""
CARRIERS: Final = ("quic", "tls")

Report = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Dialed:
    """A connection, and which of the addresses that were given it leads to."""

    connection: Connection
    host: str
    port: int


@dataclass(frozen=True, slots=True)
class _Attempt:
    carrier: str
    host: str
    """As it was given: a name or an address."""
    port: int
    family: int
    address: Any

    def __str__(self) -> str:
        return f"{self.carrier} to {Address.of(self.address)}"


async def dial(
    addresses: Sequence[tuple[str, int]],
    *,
    alpn: str,
    carriers: Sequence[str] = CARRIERS,
    report: Report = lambda line: None,
) -> Dialed:
    """A connection for `alpn` to the first of `addresses` (host, port) that answers; its `transport` says over what.

    `report` gets a line for each attempt that fails and for the one that is taken. Raises `AlpnRefused` when nodes
    answer and none serves `alpn`, `UnavailableError` when none answers; each says what every attempt came to.
    """
    if carriers[0] == "quic":
        import alknet.alpn.quic_dial  # noqa: F401 - a fifth of a second that must not count as QUIC's head start
    attempts, failures = await _resolve(addresses, carriers)
    for line in failures:
        report(line)
    race = _Race(alpn, attempts, report)
    winner = await race.run()
    failures += race.failures
    if winner is not None:
        return winner
    refused = bool(race.refused) and len(race.refused) == len(race.failures)
    error = AlpnRefused if refused else UnavailableError
    raise error("; ".join(failures) or "it has no address")


async def first_stream(connection: Connection) -> Stream:
    """The stream that a dialer uses first: the one there is, or a new one."""
    try:
        return await connection.open_stream()
    except StreamsExhausted:
        return await connection.accept_stream()


async def _resolve(addresses: Sequence[tuple[str, int]], carriers: Sequence[str]) -> tuple[list[_Attempt], list[str]]:
    loop = asyncio.get_running_loop()
    attempts, failures = [], []
    for host, port in addresses:
        try:
            async with asyncio.timeout(HANDSHAKE_TIMEOUT_S):
                found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except TimeoutError:
            failures.append(f"{host}: its name was not resolved within {HANDSHAKE_TIMEOUT_S:g} s")
            continue
        except OSError as exc:
            failures.append(f"{host}: {exc.strerror or exc}")
            continue
        except UnicodeError:  # what Python says of a label that is empty or too long
            failures.append(f"{host}: is not a name")
            continue
        for family, _, _, _, address in dict.fromkeys(found):
            attempts += [_Attempt(carrier, host, port, family, address) for carrier in carriers]
    return list(dict.fromkeys(attempts))[: MAX_ADDRESSES * len(carriers)], failures


class _Race:
    def __init__(self, alpn: str, attempts: list[_Attempt], report: Report) -> None:
        self._alpn = alpn
        self._attempts = attempts
        self._report = report
        self._winner: Dialed | None = None
        self._changed = asyncio.Event()
        self._failed: set[_Attempt] = set()
        self.failures: list[str] = []
        self.refused: list[_Attempt] = []

    async def run(self) -> Dialed | None:
        """The first connection, with the other attempts ended; None when all have failed."""
        running = Tasks("dial")
        try:
            try:
                for attempt in self._attempts:
                    running.start(self._try(attempt), name=str(attempt))
                    await self._wait([attempt], HEAD_START_S)
                    if self._winner is not None:
                        break
                await self._wait(self._attempts, None)
            finally:
                await running.aclose()
        except BaseException:
            if self._winner is not None:  # nobody will get it
                self._winner.connection.close()
            raise
        return self._winner

    async def _wait(self, attempts: list[_Attempt], timeout_s: float | None) -> None:
        """Until there is a winner, or these attempts have failed, or the time is up."""
        try:
            async with asyncio.timeout(timeout_s):
                while self._winner is None and not self._failed.issuperset(attempts):
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            pass

    async def _try(self, attempt: _Attempt) -> None:
        started = time.monotonic()
        try:
            connection = await _open(attempt, self._alpn)
        except (AlknetError, OSError) as exc:
            if isinstance(exc, AlpnRefused):
                self.refused.append(attempt)
            # The event loop puts words of its own for the system's.
            self._fail(attempt, os.strerror(exc.errno) if isinstance(exc, OSError) and exc.errno else str(exc))
        except Exception as exc:  # a mistake of ours: the race goes on, and the task's owner logs it
            self._fail(attempt, repr(exc))
            raise
        else:
            if self._winner is None:
                self._winner = Dialed(connection, attempt.host, attempt.port)
                self._report(f"{attempt}: connected in {(time.monotonic() - started) * 1000:.0f} ms")
            else:
                connection.close(0, "another carrier was faster")
        finally:
            self._changed.set()

    def _fail(self, attempt: _Attempt, why: str) -> None:
        self._failed.add(attempt)
        self.failures.append(f"{attempt}: {why}")
        self._report(self.failures[-1])


def _is_numeric(host: str) -> bool:
    """Whether it is an address, which is not sent as a name (RFC 6066 section 3)."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


async def _open(attempt: _Attempt, alpn: str) -> Connection:
    server_name = None if _is_numeric(attempt.host) else attempt.host
    if attempt.carrier == "quic":
        from alknet.alpn.quic_dial import dial_quic

        return await dial_quic(attempt.family, attempt.address, alpn=alpn, server_name=server_name)
    loop = asyncio.get_running_loop()
    sock = socket.socket(attempt.family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        keep_alive(sock)
        async with asyncio.timeout(HANDSHAKE_TIMEOUT_S):
            await loop.sock_connect(sock, attempt.address)
    except TimeoutError:
        sock.close()
        raise HandshakeFailed(f"no answer within {HANDSHAKE_TIMEOUT_S:g} s") from None
    except BaseException:
        sock.close()
        raise
    return await dial_tls(sock, alpn=alpn, server_name=server_name, remote=Address.of(attempt.address))
