"""The connections that a node keeps up: dialled, proven, served in both directions, and dialled again when they end."""

import asyncio
import ipaddress
import logging
import random
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from alknet.alpn.dial import CARRIERS
from alknet.alpn.router import Router
from alknet.backoff import Backoff
from alknet.call.client import Credentials, connect
from alknet.call.handler import CallHandler, Dialled
from alknet.clock import Clock
from alknet.config.addresses import split_host_port
from alknet.config.fields import DEFAULT_PORT
from alknet.config.home import Home
from alknet.config.model import Settings
from alknet.destination import Destination, call_target
from alknet.errors import AlknetError
from alknet.keys import PublicKey
from alknet.logs import event
from alknet.sshsig import Signer
from alknet.tasks import Tasks

__all__ = ["Dialer"]

log = logging.getLogger("alknet.dial")

FIRST_WAIT_S: Final = 1.0
MOST_WAIT_S: Final = 60.0
SETTLED_S: Final = 10.0
"""A connection that has lasted so long was a good one: the next wait is the first one again."""


@dataclass(frozen=True, slots=True)
class _Plan:
    """What is to be dialled, and how it proves itself; another plan for the same peer is another connection."""

    peer: str
    addresses: tuple[tuple[str, int], ...]
    carriers: tuple[str, ...]
    node_key: PublicKey | None


class _Line:
    """One connection that is kept up, as `status` shows it."""

    def __init__(self, plan: _Plan, rng: random.Random) -> None:
        self.plan = plan
        self.backoff = Backoff(rng=rng, first_s=FIRST_WAIT_S, most_s=MOST_WAIT_S)
        self.task: asyncio.Task[None] | None = None
        self.connection: str | None = None
        self.transport: str | None = None
        self.attempts = 0
        self.connected = 0
        self.problem = ""
        self.next_at: float | None = None
        """Of the next attempt, in seconds since 1970; None while it is connected or being dialled."""

    def describe(self) -> dict[str, Any]:
        state = "connected" if self.connection else "waiting" if self.next_at is not None else "dialling"
        at = None if self.next_at is None else datetime.fromtimestamp(self.next_at, UTC).isoformat(timespec="seconds")
        return {
            "peer": self.plan.peer,
            "addresses": [
                f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in self.plan.addresses
            ],
            "state": state,
            "connection": self.connection,
            "transport": self.transport,
            "attempts": self.attempts,
            "connected": self.connected,
            "problem": self.problem or None,
            "next_at": None if at is None else at.replace("+00:00", "Z"),
        }


class Dialer:
    """Keeps up what the configuration's ``[[dial]]`` tables say; `key` proves this node to whoever is dialled."""

    def __init__(
        self,
        home: Home,
        calls: CallHandler,
        router: Router,
        key: Signer,
        clock: Clock,
        *,
        rng: random.Random | None = None,
    ) -> None:
        self._home = home
        self._calls = calls
        self._router = router
        self._credentials = Credentials((key,))
        self._clock = clock
        self._rng = rng or random.Random()
        self._lines: dict[str, _Line] = {}
        self._tasks = Tasks("dial")
        self._is_stopping = False

    def apply(self, settings: Settings) -> None:
        """Dial what is new, hang up what is gone, leave the rest alone."""
        plans = _plans(settings)
        for peer, line in tuple(self._lines.items()):
            if plans.get(peer) != line.plan:
                del self._lines[peer]
                if line.task is not None:
                    line.task.cancel()
        for peer, plan in plans.items():
            if peer not in self._lines and not self._is_stopping:
                line = self._lines[peer] = _Line(plan, self._rng)
                line.task = self._tasks.start(self._keep(line), name=peer)

    def describe(self) -> list[dict[str, Any]]:
        """For `node/status`: each connection, and what becomes of it."""
        return [line.describe() for _, line in sorted(self._lines.items())]

    def stop_dialling(self) -> None:
        """Dial nothing any more; what is connected stays until its sessions are drained."""
        self._is_stopping = True
        for line in self._lines.values():
            if line.connection is None and line.task is not None:
                line.task.cancel()

    async def aclose(self) -> None:
        """End everything."""
        self.stop_dialling()
        await self._tasks.aclose()

    async def _keep(self, line: _Line) -> None:
        loop = asyncio.get_running_loop()
        while not self._is_stopping:
            began = loop.time()
            line.attempts += 1
            try:
                reason = await self._once(line)
            except AlknetError as exc:
                reason = str(exc)
            except Exception as exc:
                log.exception(event("dialling failed", peer=line.plan.peer))
                reason = f"{type(exc).__name__}, see the node's log"
            finally:
                was_connected, line.connection, line.transport = line.connection is not None, None, None
            if self._is_stopping:
                return
            if was_connected and loop.time() - began >= SETTLED_S:
                line.backoff.reset()
            wait_s = line.backoff.next_s()
            if reason != line.problem or was_connected:
                log.warning(event("peer not connected", peer=line.plan.peer, next_in=f"{wait_s:.1f}s", reason=reason))
            line.problem = reason
            line.next_at = self._clock.wall() + wait_s
            await asyncio.sleep(wait_s)
            line.next_at = None

    async def _once(self, line: _Line) -> str:
        """Dial, and serve until the session ends; why it ended."""
        plan = line.plan
        to = Destination(
            plan.addresses,
            "",
            None,
            plan.node_key,
            str(self._home.peer(plan.peer)),
            f"peer {plan.peer!r}",
        )
        target = call_target(self._home, to, self._credentials)
        dialled = Dialled(self._calls, plan.peer)
        async with connect(target, carriers=plan.carriers, server_of=dialled.server_of) as link:
            line.connection, line.transport = link.carrier.id, link.carrier.transport
            line.connected += 1
            line.problem = ""
            log.info(event("peer connected", peer=plan.peer, connection=link.carrier.id, over=link.carrier.transport))
            with self._router.tracking(link.carrier):
                await dialled.serve(link)
            return link.session.end_reason or "the connection ended"


def _plans(settings: Settings) -> Mapping[str, _Plan]:
    peers = {peer.id: peer for peer in settings.peers}
    plans = {}
    for dial in settings.dial:
        peer = peers[dial.peer]
        if not peer.enabled:
            continue
        texts = (dial.address,) if dial.address is not None else peer.addresses
        addresses = tuple(split_host_port(text, default_port=DEFAULT_PORT) for text in texts)
        carriers = (dial.carrier,) if dial.carrier != "auto" else _carriers(addresses)
        plans[dial.peer] = _Plan(dial.peer, addresses, carriers, peer.node_key)
    return plans


def _carriers(addresses: tuple[tuple[str, int], ...]) -> tuple[str, ...]:
    """On loopback QUIC has nothing to offer."""
    return ("tls",) if all(_is_loopback(host) for host, _ in addresses) else CARRIERS


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
