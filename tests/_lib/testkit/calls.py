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
from alknet.call.exposed import MeshSettings, Terms
from alknet.call.handler import CallHandler, CallSettings
from alknet.call.hello import Challenge
from alknet.call.mesh import Mesh
from alknet.call.operations import operations_of
from alknet.call.overlays import Attachment
from alknet.call.registry import Registry
from alknet.call.session import Session
from alknet.clock import SystemClock
from alknet.config.policy import daemon_user
from alknet.gate import Gate
from alknet.keys import write_key_pair
from alknet.offer import Offer
from alknet.sshsig import KeySigner
from testkit.polling import eventually

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
        self.mesh = Mesh(self._publish)
        self.dispatcher = Dispatcher(Registry(), self.gate, peers=self.mesh)
        own = Registry((*operations_of(Discovery(self.dispatcher)), *operations_of(operations)))
        self.mesh.apply(MeshSettings(terms={"alice": Terms(("*",))}), own)
        self.doors = Doorkeeper(self.gate, on_login_failed=self.failed.append)
        self.handler = CallHandler(
            self.gate,
            self.dispatcher,
            self.doors,
            settings or CallSettings(),
            name="test-node",
            key=self.node_key,
            mesh=self.mesh,
        )
        self.router = Router([self.handler])

    def policy(self, *scopes: str, **changes: Any) -> Policy:
        """A policy in which alice has these scopes."""
        alice = Peer("alice", dict.fromkeys(scopes, "own"), (self.key.public_key.fingerprint,))
        facts = {"peers": {"alice": alice}, "revision": "r1", "denial_key": b"k" * 32, "daemon": daemon_user()}
        return Policy(**(facts | changes))  # type: ignore[arg-type]

    @asynccontextmanager
    async def session(
        self, *, key: KeySigner | None = None, anonymous: bool = False, offer: Offer | None = None, **how: Any
    ) -> AsyncIterator[Link]:
        """A session of alice's over the in-memory carrier. The node knows what she offers when this begins."""
        before = set(self.mesh.overlays)
        if offer is not None:
            how["server_of"] = offer.server_of
        dialer, listener = memory_pair(alpn="alknet/call", remote=Address("192.0.2.1", 4000))
        self.router.dispatch(listener)

        def check(challenge: Challenge) -> None:
            assert challenge.key is not None
            assert challenge.key.blob == self.node_key.public_key.blob

        try:
            link = await over_connection(dialer, check=check, key=None if anonymous else key or self.key, **how)
            try:
                if offer is not None and not anonymous:
                    await eventually(lambda: self._is_filled(set(self.mesh.overlays) - before), "alice's operations")
                yield link
            finally:
                await link.session.aclose()
        finally:
            dialer.close()

    def sessions_of(self, peer: str) -> list[Session]:
        """The live sessions of a peer at the door, newest first."""
        live = reversed(self.handler._sessions.items())
        return [session for session, identity in live if identity is not None and identity.id == peer]

    async def aclose(self) -> None:
        """End every session."""
        await self.router.shutdown(asyncio.get_running_loop().time())
        await self.mesh.aclose()
        await self.dispatcher.aclose()

    def _publish(self, registry: Registry) -> None:
        self.dispatcher.registry = registry

    @staticmethod
    def _is_filled(attachments: Iterable[Attachment]) -> bool:
        return any(attachment.is_filled for attachment in attachments)
