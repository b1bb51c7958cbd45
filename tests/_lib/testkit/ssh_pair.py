"""An SSH door in this process and an asyncssh client to it, over the in-memory carrier: no socket, no process."""

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import asyncssh

from alknet.access import Peer, Policy, SshRights
from alknet.alpn.memory import memory_pair
from alknet.alpn.router import Router
from alknet.alpn.streams import Address
from alknet.audit import MemoryAudit
from alknet.clock import ManualClock
from alknet.config.policy import daemon_user
from alknet.gate import Gate
from alknet.keys import fingerprint
from alknet.ssh.handler import ALPN, Command, SshHandler, SshSettings, Subsystem
from alknet.target_patterns import parse_pattern
from alknet.targets import Direction, Rule

__all__ = ["Door", "policy_with"]

CLIENT_KEY = asyncssh.generate_private_key("ssh-ed25519")
HOST_KEY = asyncssh.generate_private_key("ssh-ed25519")


def policy_with(
    *scopes: str,
    revision: str = "r1",
    peer_id: str = "bob",
    forward: Iterable[str] = (),
    record_targets: bool = False,
    **rights: Any,
) -> Policy:
    """A policy with one peer that holds `CLIENT_KEY` and runs things as this process's own user.

    Each of `forward` is a rule, such as "local 10.0.0.0/8:80", or "not remote localhost:*" for one that denies.
    """
    daemon = daemon_user()
    rights = {"user": daemon.name, "as_daemon": True} | rights
    peer = Peer(
        peer_id,
        dict.fromkeys(scopes, "own"),
        keys=(fingerprint(CLIENT_KEY.public_data),),
        ssh=SshRights(**rights),
    )
    rules = {peer_id: tuple(_rule(number, line) for number, line in enumerate(forward))}
    return Policy({peer_id: peer}, revision, b"k" * 32, daemon, forward_rules=rules, record_targets=record_targets)


def _rule(number: int, line: str) -> Rule:
    direction, target = line.removeprefix("not ").split()
    return Rule(line[:4] != "not ", cast("Direction", direction), parse_pattern(target), f"rules[{number}]")


@dataclass
class Door:
    """A handler with its gate; `connect` logs a client in."""

    policy: Policy = field(default_factory=lambda: policy_with("ssh:*"))
    settings: SshSettings = field(default_factory=SshSettings)
    subsystems: Mapping[str, Subsystem] = field(default_factory=dict)
    commands: Mapping[str, Command] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.audit = MemoryAudit()
        self.gate = Gate(self.policy, self.audit, ManualClock())
        self.failed_hosts: list[str] = []
        self.handler = SshHandler(
            self.gate,
            HOST_KEY,
            self.settings,
            subsystems=self.subsystems,
            commands=self.commands,
            on_login_failed=self.failed_hosts.append,
        )
        self.router = Router([self.handler])

    def replace_policy(self, policy: Policy) -> None:
        """What a reload does."""
        self.gate.policy = policy
        self.router.recheck()

    async def attach(self, client: asyncssh.SSHClientConnection) -> None:
        """Carry `client`'s bytes to the door."""
        dialer, listener = memory_pair(alpn=ALPN, remote=Address("192.0.2.1", 4000))
        stream = await dialer.open_stream()
        self.router.dispatch(listener)
        await stream.attach(client)

    @asynccontextmanager
    async def connect(
        self, kind: type[asyncssh.SSHClientConnection] = asyncssh.SSHClientConnection, **options: Any
    ) -> AsyncIterator[asyncssh.SSHClientConnection]:
        """A logged-in client connection; raises what asyncssh raises when the login is refused."""
        options = {
            "host": "in-memory",
            "port": 7022,
            "username": "bob",
            "client_keys": [CLIENT_KEY],
            "known_hosts": ([HOST_KEY.convert_to_public()], [], []),
            "config": None,
            "agent_path": None,
        } | options
        prepared = await asyncssh.SSHClientConnectionOptions.construct(**options)
        prepared.waiter = asyncio.get_running_loop().create_future()
        client = kind(asyncio.get_running_loop(), prepared, wait="auth")
        await self.attach(client)
        await prepared.waiter
        try:
            yield client
        finally:
            client.close()
            await client.wait_closed()

    async def wait_empty(self) -> None:
        """Wait until nobody is connected."""
        async with asyncio.timeout(5):
            while self.router.connections:
                await asyncio.sleep(0)

    def unfinished(self) -> set[str]:
        """The actions in the audit log that have begun and not ended."""
        ended = {r["request_id"] for r in self.audit.records if r["phase"] == "outcome"}
        return {r["action"] for r in self.audit.records if r["request_id"] not in ended}

    def outcomes(self, action: str) -> list[str]:
        """The outcomes in the audit log for `action`."""
        return [r["outcome"] for r in self.audit.records if r["action"] == action and "outcome" in r]

    async def aclose(self) -> None:
        """Stop the door without waiting for anybody."""
        await self.router.shutdown(asyncio.get_running_loop().time())
