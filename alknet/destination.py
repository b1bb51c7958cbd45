"""What PEER means: where it is, and which keys prove that it is the one that was meant."""

import getpass
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from alknet.errors import InvalidInputError, NotFoundError, UnavailableError
from alknet.keys import PublicKey, check_private
from alknet.known_nodes import KnownNodes

if TYPE_CHECKING:
    from alknet.call.client import CallTarget, Credentials
    from alknet.config.home import Home
    from alknet.ssh.client import Target

__all__ = [
    "LOCAL",
    "Destination",
    "Through",
    "call_target",
    "find_destination",
    "local_node",
    "private_key",
    "ssh_target",
]

LOCAL: Final = "."
_ANY_TO_LOOPBACK: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}


@dataclass(frozen=True, slots=True)
class Destination:
    """Where a peer is, as whom to log in there, and how it is known."""

    addresses: tuple[tuple[str, int], ...]
    user: str
    host_key: PublicKey | None
    """The only SSH host key that it may have."""
    node_key: PublicKey | None
    """The only node key that it may have."""
    source: str
    """Where the keys stand, for messages."""
    name: str
    """For messages."""
    is_local: bool = False
    through: "Through | None" = None
    """The node over which it is reached; its own addresses say nothing then."""
    host_ca: PublicKey | None = None
    """Who signs its SSH host certificate, which may be for `peer_id` as well as for its address."""
    peer_id: str | None = None
    """That of its entry, if it has one."""


@dataclass(frozen=True, slots=True)
class Through:
    """A peer of a node that it has a connection with, which it goes through."""

    hub: Destination
    peer: str
    """What the hub calls it."""


def find_destination(home: "Home", peer: str, *, jump: str | None = None) -> Destination:
    """What PEER means: ``.`` or nothing the local node, a configured peer, or ``[user@]host[:port]``.

    With `jump`, itself a PEER, it is a peer of that node, reached over the connection that the two have; so is a
    configured peer whose entry says `via`, and, through the local node, one that has no address.
    """
    user, _, rest = peer.rpartition("@")
    if jump is not None:
        return _behind(home, rest, user, find_destination(home, jump))
    if rest in ("", LOCAL):
        return local_node(home, user or "owner")
    from alknet.config.addresses import split_host_port
    from alknet.config.fields import DEFAULT_PORT, PEER_ID
    from alknet.config.load import load

    settings = load(home) if home.exists else None
    entry = next((p for p in settings.peers if p.id == rest), None) if settings else None
    # A single word could be either; where it is neither, that is what one has to know.
    other = f"{rest!r} (no peer of this home)" if PEER_ID.match(rest) else rest
    name, user = (f"peer {rest!r}" if entry else other), user or getpass.getuser()
    if entry is not None and entry.via is not None:
        return _behind(home, rest, user, find_destination(home, entry.via))
    if entry is not None and not entry.addresses:
        try:
            return _behind(home, rest, user, local_node(home))
        except UnavailableError as exc:
            raise UnavailableError(
                f"{name} has no address, and no node runs here that it could be connected to",
                hint=f'start it, add addresses = ["host:port"] to {home.peer(rest)}, or go through a node with -J',
            ) from exc
    try:
        texts = entry.addresses if entry is not None else (rest,)
        addresses = tuple(split_host_port(text, default_port=DEFAULT_PORT) for text in texts)
    except ValueError as exc:
        raise InvalidInputError(str(exc)) from None
    if not all(host for host, _ in addresses):
        raise NotFoundError(f"{peer!r} is neither a configured peer nor a host")
    host_key, node_key = (entry.host_key, entry.node_key) if entry else (None, None)
    made = Destination(addresses, user, host_key, node_key, str(home.peer(rest)), name)
    return made if entry is None else replace(made, host_ca=entry.host_ca, peer_id=entry.id)


def _behind(home: "Home", peer: str, user: str, hub: Destination) -> Destination:
    """`peer` of the node `hub`, which proves its own keys through it."""
    from alknet.config.fields import DEFAULT_PORT, PEER_ID
    from alknet.config.load import load

    if hub.through is not None:
        behind = f"peer {hub.through.peer!r} is itself behind {hub.through.hub.name}"
        raise InvalidInputError(f"{behind}; there can be one node in between")
    if not PEER_ID.match(peer):
        raise InvalidInputError(
            f"{peer!r} is no peer's name", hint=f"'alknet call {hub.name} services/list-peers' shows those behind it"
        )
    settings = load(home) if home.exists else None
    entry = next((p for p in settings.peers if p.id == peer), None) if settings else None
    host_key, node_key = (entry.host_key, entry.node_key) if entry else (None, None)
    # Known hosts have it under its name, as ssh has a host behind -J.
    return Destination(
        ((peer, DEFAULT_PORT),),
        user or getpass.getuser(),
        host_key,
        node_key,
        str(home.peer(peer)),
        f"peer {peer!r} through {hub.name}",
        through=Through(hub, peer),
        host_ca=entry.host_ca if entry else None,
    )


def local_node(home: "Home", user: str = "owner") -> Destination:
    """The node that runs on `home`, known by the public keys there; `UnavailableError` when none runs."""
    from alknet.lock import find_running

    running = find_running(home.lock)
    if running is None:
        raise UnavailableError(f"no node runs on {home.path}", hint="'alknet up' starts one; --home names another home")
    addresses = tuple((_ANY_TO_LOOPBACK.get(host, host), port) for host, port in running.addresses)
    host_key, node_key = (_public_half(path) for path in (home.host_key, home.node_key))
    return Destination(addresses, user, host_key, node_key, str(home.keys), "the local node", is_local=True)


def private_key(home: "Home", identity: Path | None) -> Path | None:
    """The key file to prove oneself with: `identity`, else ``keys/owner``, else (None) the ssh-agent's keys."""
    if identity is not None:
        if not identity.exists():
            raise NotFoundError(f"{identity}: there is no such key file")
        return identity
    owner = Path(home.owner_key)
    if owner.exists():
        check_private(owner)
        return owner
    if "SSH_AUTH_SOCK" in os.environ:
        return None
    raise NotFoundError(
        f"there is no key to log in with: {owner} is missing and no ssh-agent runs",
        hint="--identity names a private key file",
    )


def ssh_target(
    home: "Home", to: Destination, key: Path | None, accept_new: Callable[[Any], bool] | None = None
) -> "Target":
    """`to`, as the SSH client wants it; `key` None means the ssh-agent's keys. They prove this side to the node that is
    gone through, too."""
    from alknet.ssh.client import Target

    reach = None
    if to.through is not None:
        from alknet.through import ssh_through

        reach = ssh_through(home, to.through, key, accept_new)
    from alknet.ssh.trust import HostTrust

    trust = HostTrust(
        pin=to.host_key,
        pin_source=to.source,
        known_nodes=KnownNodes(home.path / "known_nodes"),
        use_known_hosts=not to.is_local,
        accept_new=accept_new,
        authority=to.host_ca,
        names=() if to.peer_id is None else (to.peer_id,),
    )
    return Target(to.addresses, to.user, key, trust, to.name, reach=reach)


def call_target(
    home: "Home", to: Destination, credentials: "Credentials", accept_new: Callable[[Any], bool] | None = None
) -> "CallTarget":
    """`to`, as the client of operation calls wants it."""
    from alknet.call.client import CallTarget
    from alknet.call.trust import NodeTrust

    trust = NodeTrust(
        pin=to.node_key,
        pin_source=to.source,
        known_nodes=KnownNodes(home.path / "known_nodes"),
        accept_new=accept_new,
    )
    return CallTarget(to.addresses, credentials, trust, to.name)


def _public_half(path: Path) -> PublicKey:
    return PublicKey.parse(path.with_name(path.name + ".pub").read_text(encoding="ascii"))
