"""A door for operation calls in this process and sessions to it, over any carrier that is in memory or on loopback."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from alknet.access import Peer, Policy
from alknet.alpn.memory import memory_pair
from alknet.alpn.router import Router
from alknet.alpn.streams import Address
from alknet.audit import MemoryAudit
from alknet.call.client import Link, over_connection
from alknet.call.discovery import Discovery
from alknet.call.dispatch import Dispatcher
from alknet.call.doorkeeper import Doorkeeper
from alknet.call.handler import CallHandler, CallSettings
from alknet.call.hello import Challenge
from alknet.call.operations import operations_of
from alknet.call.registry import Registry
from alknet.clock import SystemClock
from alknet.config.policy import daemon_user
from alknet.gate import Gate
from alknet.keys import write_key_pair
from alknet.sshsig import KeySigner

__all__ = ["CallDoor", "signer"]


def signer(directory: Path, name: str) -> KeySigner:
    """A new key."""
    write_key_pair(directory / name, name)
    return KeySigner.from_file(directory / name)


class CallDoor:
    """A `CallHandler` with operations of a test. The peer ``alice`` holds `key`, and has `scopes`."""

    def __init__(
        self,
        directory: Path,
        operations: Iterable[Any] = (),
        *,
        scopes: Iterable[str] = ("*",),
        settings: CallSettings | None = None,
    ) -> None:
        self.key = signer(directory, "alice")
        self.node_key = signer(directory, "node")
        self.audit = MemoryAudit()
        self.failed: list[str] = []
        self.gate = Gate(self.policy(*scopes), self.audit, SystemClock())
        self.dispatcher = Dispatcher(Registry(), self.gate, call_peer=self._call_peer)
        self.dispatcher.registry = Registry((*operations_of(Discovery(self.dispatcher)), *operations_of(operations)))
        self.doors = Doorkeeper(self.gate, on_login_failed=self.failed.append)
        self.handler = CallHandler(
            self.gate,
            self.dispatcher,
            self.doors,
            settings or CallSettings(),
            name="test-node",
            key=self.node_key,
        )
        self.router = Router([self.handler])

    def policy(self, *scopes: str, **changes: Any) -> Policy:
        """A policy in which alice has these scopes."""
        alice = Peer("alice", dict.fromkeys(scopes, "own"), (self.key.public_key.fingerprint,))
        facts = {"peers": {"alice": alice}, "revision": "r1", "denial_key": b"k" * 32, "daemon": daemon_user()}
        return Policy(**(facts | changes))  # type: ignore[arg-type]

    @asynccontextmanager
    async def session(
        self, *, key: KeySigner | None = None, anonymous: bool = False, **how: Any
    ) -> AsyncIterator[Link]:
        """A session of alice's over the in-memory carrier."""
        dialer, listener = memory_pair(alpn="alknet/call", remote=Address("192.0.2.1", 4000))
        self.router.dispatch(listener)

        def check(challenge: Challenge) -> None:
            assert challenge.key is not None
            assert challenge.key.blob == self.node_key.public_key.blob

        try:
            link = await over_connection(dialer, check=check, key=None if anonymous else key or self.key, **how)
            try:
                yield link
            finally:
                await link.session.aclose()
        finally:
            dialer.close()

    async def aclose(self) -> None:
        """End every session."""
        await self.router.shutdown(asyncio.get_running_loop().time())
        await self.dispatcher.aclose()

    async def _call_peer(
        self,
        peer: str,
        name: str,
        value: Any,
        *,
        timeout_s: float | None,
        forwarded_for: str | None,
        traceparent: str | None,
    ) -> Any:
        session = self.handler.sessions_of(peer)[0]
        return await session.call(
            name, value, timeout_s=timeout_s, forwarded_for=forwarded_for, traceparent=traceparent
        )
