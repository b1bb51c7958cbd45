"""Which node key a caller accepts, asked after the node has proven to have it and before anything is sent to it.

The first source that knows the node decides: the key that is expected of it, then ``known_nodes``, then its
certificate, if an authority that this machine trusts has issued it for the name that was dialled. A node that nobody
knows is refused, unless somebody who is asked says yes; one with another key than the known one is refused without
asking, and a certificate does not help it.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from alknet.errors import UnavailableError
from alknet.keys import PublicKey
from alknet.known_nodes import NODE_KEY, KnownNodes
from alknet.verification import CertificateError, verify_server

__all__ = ["NewNode", "NodeKeyError", "NodeTrust"]

MAYBE_ATTACK: Final = "nothing was sent; somebody may be in between. If you know that it was changed, "


class NodeKeyError(UnavailableError):
    """The node did not prove to be the one that was meant; nothing was sent to it."""


@dataclass(frozen=True, slots=True)
class NewNode:
    """What somebody who is asked about an unknown node is told."""

    host: str
    port: int
    key: PublicKey

    def __str__(self) -> str:
        return f"{self.host} port {self.port} is not known. Its node key is {self.key.fingerprint}."


@dataclass(frozen=True, slots=True)
class NodeTrust:
    """The sources that decide about one target."""

    pin: PublicKey | None = None
    """The only key accepted."""
    pin_source: str = "the peer's entry"
    """Where the pin stands, for messages."""
    known_nodes: KnownNodes | None = None
    accept_new: Callable[[NewNode], bool] | None = None
    """Asked about an unknown node; a yes is remembered in `known_nodes`."""
    authorities: bytes | None = None
    """PEM certificates that are trusted to issue others, instead of this machine's."""

    def check(self, host: str, port: int, key: PublicKey, certificates: Sequence[bytes]) -> None:
        """Return if `key` is the node's, which showed `certificates` (DER, its own first); raise `NodeKeyError`, or
        `ConfigError` for a file that cannot be used."""
        where = f"{host} port {port}"
        if self.pin is not None:
            if self.pin.blob != key.blob:
                raise NodeKeyError(
                    f"{where} did not prove to be itself: expected the node key {self.pin.fingerprint} from"
                    f" {self.pin_source}, got {key.fingerprint}",
                    hint=f"{MAYBE_ATTACK}correct {self.pin_source}",
                )
            return
        known = None if self.known_nodes is None else self.known_nodes.lookup(host, port, NODE_KEY)
        if known is not None:
            assert self.known_nodes is not None
            if known.key.blob != key.blob:
                path = self.known_nodes.path
                raise NodeKeyError(
                    f"the node key of {where} has CHANGED: {path}:{known.line} has {known.key.fingerprint},"
                    f" got {key.fingerprint}",
                    hint=f"{MAYBE_ATTACK}remove line {known.line} of {path}",
                )
            return
        try:
            verify_server(certificates, host, now=time.time(), authorities=self.authorities)
        except CertificateError as exc:
            self._ask(where, NewNode(host, port, key), exc)

    def _ask(self, where: str, new: NewNode, why_not: CertificateError) -> None:
        if self.accept_new is None:
            raise NodeKeyError(
                f"{where} is not known: its node key {new.key.fingerprint} stands nowhere, and its certificate does"
                f" not vouch for it: {why_not}",
                hint="nothing was sent; if that is its key: --accept-new remembers it, or put it into the peer's"
                " node_key",
            )
        if not self.accept_new(new):
            raise NodeKeyError(f"{where} is not known, and its node key {new.key.fingerprint} was not accepted")
        if self.known_nodes is not None:
            self.known_nodes.add(new.host, new.port, NODE_KEY, new.key)
