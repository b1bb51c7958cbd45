"""How a client gets in: the keys that it offers, what it signs, and everything before that.

The first half of a connection; the second, its sessions, is :mod:`alknet.ssh.connection`. The methods that override
asyncssh's are the reason why its minor version is pinned.
"""

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Final

import asyncssh

from alknet.access import Certificate, Identity
from alknet.actions import Verdict
from alknet.alpn.streams import Connection
from alknet.errors import InvalidInputError
from alknet.gate import Act
from alknet.keys import fingerprint
from alknet.logs import event
from alknet.ssh.certificate_format import SUFFIX, ParsedCertificate, key_type, parse_certificate
from alknet.ssh.certificates import is_signed, user_certificate, user_certificate_fault
from alknet.ssh.options import NEEDING_STRICT, SIGNATURES
from alknet.ssh.packets import FastConnection

if TYPE_CHECKING:
    from alknet.ssh.handler import SshHandler

__all__ = ["SURFACE", "Login"]

log = logging.getLogger("alknet.ssh")

SURFACE: Final = "ssh"
KEX_GUESS: Final = b"kexguess2@matt.ucc.asn.au"
"""Says that a method which was guessed right is one that both know and the client likes best, as asyncssh has it. By
the standard's rule it would have to be the server's favourite too: Dropbear, which guesses, would begin again."""


class Login(FastConnection):
    """A connection until its client is in, and who that is."""

    def __init__(
        self,
        handler: "SshHandler",
        connection: Connection,
        options: asyncssh.SSHServerConnectionOptions,
        *,
        login_until: float,
    ) -> None:
        """`login_until` (event-loop time) is when a stranger has to have logged in."""
        super().__init__(asyncio.get_running_loop(), options)
        self.handler = handler
        self.connection = connection
        self._began = self._loop.time()
        self._proven: Identity | None = None
        self._login: Act | None = None
        self._refusals = 0
        self._probes = 0
        self._login_bytes = 0
        self._was_refused = False
        self._unsafe = ""
        """The algorithm that was agreed on and is not safe with this client."""
        self._last_key = ""
        self._fault = ""
        """Why that did not let anybody in, as long as nothing has been decided about it."""
        self._grace = self._loop.call_at(login_until, self._grace_is_over)

    @property
    def remote_host(self) -> str | None:
        remote = self.connection.remote
        return None if remote is None else remote.host

    @property
    def identity(self) -> Identity:
        """Who logged in; under the current policy, as far as `recheck` has renewed it."""
        assert self._proven is not None
        return self._proven

    async def reload_config(self) -> None:
        """asyncssh is about to hear a login; it would read OpenSSH's configuration for the name, and here there is
        none."""
        self._check_safe()

    def _check_safe(self) -> None:
        if self._unsafe:
            raise asyncssh.KeyExchangeFailed(
                f"{self._unsafe} needs the strict key exchange (CVE-2023-48795), which this client does not know;"
                " update it, or choose aes128-gcm@openssh.com, or hmac-sha2-256 with aes128-ctr"
            )

    def public_key_auth_supported(self) -> bool:
        return True

    async def validate_public_key(self, username: str, key_data: bytes, msg: bytes, signature: bytes) -> bool:
        """Whether the offered key or certificate may be used (`msg` empty), or has signed and lets its peer in.

        A known key is accepted for use whatever its peer's state, and so is what a known authority has certified,
        whatever it says; only who has *signed* is told that the peer is disabled, the certificate expired or the login
        name wrong. The identity is set by a verified signature and nothing else.
        """
        self._check_safe()  # keys may have been exchanged once more meanwhile
        gate = self.handler.gate
        certificate = None
        if key_type(key_data).endswith(SUFFIX):
            certificate = self._certificate(key_data)
            if certificate is None:
                return False
            key_data = certificate.key.blob
        else:
            self._last_key, self._fault = fingerprint(key_data), "unknown-key"
            if gate.policy.lookup_key(self._last_key) is None:
                return False
        self._fault = "not-signed"
        if not msg:
            self._probes += 1
            return self._probes <= self.handler.settings.auth_attempts
        if not self._signature_is_good(key_data, msg, signature):
            return False
        barred: Verdict | None = None
        if certificate is None:
            identity = gate.policy.lookup_key(self._last_key)
        else:
            identity, barred = self._named_by(certificate)
        act = gate.ask(
            identity,
            "ssh/login",
            username,
            surface=SURFACE,
            barred=barred,
            via=f"key:{self._last_key}" if certificate is None else f"cert:{self._last_key}",
            connection=self.connection.id,
            remote=self.remote_host,
            **({} if certificate is None else _facts(user_certificate(certificate))),
        )
        if not act.decision:
            self._refuse_login(username, identity, act.decision.rule, str(act.decision), act.decision.denial_id)
            self._was_refused = True
            return False
        assert identity is not None  # nobody is allowed anything here
        if self.handler.connections_of(identity.id) >= self.handler.settings.connections_per_peer:
            act.done("limits.connections_per_peer")
            self._refuse_login(
                username,
                identity,
                "limits.connections_per_peer",
                "limits.connections_per_peer allows no more connections of this peer",
            )
            return False
        if self._login is not None:
            self._login.done("superseded")  # a client may ask again before it hears that it is in
        self._login = act
        self._proven = identity
        return True

    def logged_in(self) -> None:
        """The client has been told that it is in."""
        self._grace.cancel()
        self.connection.logged_in(self.identity)
        log.info(
            event(
                "auth",
                remote_addr=self.remote_host,
                result="accept",
                peer=self.identity.id,
                key=self._last_key,
                user=self.get_extra_info("username"),
                connection=self.connection.id,
                **({} if self.identity.certificate is None else _facts(self.identity.certificate)),
            )
        )

    def send_userauth_failure(self, partial_success: bool) -> None:
        """Count a refused attempt; the client's first question, which methods there are, is one of them."""
        self._refusals += 1
        if self._refusals > self.handler.settings.auth_attempts:
            raise asyncssh.DisconnectError(
                asyncssh.DISC_NO_MORE_AUTH_METHODS_AVAILABLE, "Too many authentication failures"
            )
        super().send_userauth_failure(partial_success)

    def _certificate(self, key_data: bytes) -> ParsedCertificate | None:
        """The certificate in `key_data` if an authority of this node has signed it, whatever it says."""
        self._last_key, self._fault = fingerprint(key_data), "bad-certificate"
        try:
            certificate = parse_certificate(key_data)
        except InvalidInputError:
            return None
        self._last_key, self._fault = certificate.key.fingerprint, "unknown-authority"
        if certificate.authority.fingerprint not in self.handler.gate.policy.user_authorities:
            return None
        self._fault = "bad-certificate"
        return certificate if is_signed(certificate) else None

    def _named_by(self, certificate: ParsedCertificate) -> tuple[Identity | None, Verdict | None]:
        """The peer that it names, and what is wrong with it."""
        gate = self.handler.gate
        fault = user_certificate_fault(certificate, now=gate.clock.wall(), remote=self.remote_host)
        named = gate.policy.lookup_principal(user_certificate(certificate))
        if isinstance(named, Identity):
            return named, fault
        return None, fault or named

    def _signature_is_good(self, key_data: bytes, msg: bytes, signature: bytes) -> bool:
        length = int.from_bytes(signature[:4], "big")
        if signature[4 : 4 + length].decode("ascii", "replace") not in SIGNATURES:
            return False
        try:
            key = asyncssh.public_key.decode_ssh_public_key(key_data)
        except asyncssh.KeyImportError:
            return False
        key.set_touch_required(True)
        session_id = self._session_id
        return bool(key.verify(len(session_id).to_bytes(4, "big") + session_id + msg, signature))

    def _refuse_login(
        self, username: str, identity: Identity | None, rule: str, words: str, denial_id: str | None = None
    ) -> None:
        """Tell who has proven a key, and the log, why it does not let them in."""
        log.warning(
            event(
                "auth",
                remote_addr=self.remote_host,
                result="reject",
                reason=rule,
                denial_id=denial_id,
                peer=None if identity is None else identity.id,
                key=self._last_key,
                user=username,
            )
        )
        self._last_key = ""
        self.send_auth_banner(f"alknet: refused: {words}\n")

    def _grace_is_over(self) -> None:
        log.info(event("login timed out", remote_addr=self.remote_host))
        self._force_close(None)

    def _get_extra_kex_algs(self) -> list[bytes]:
        return [*super()._get_extra_kex_algs(), KEX_GUESS]

    def _choose_alg(self, alg_type: str, local_algs: Any, remote_algs: Any) -> bytes:
        """Remember a choice that is safe only with the strict key exchange, of a client that does not do that: before
        it logs in it is turned away. Who only asks for the node's key (ssh-keyscan) may have that."""
        chosen = super()._choose_alg(alg_type, local_algs, remote_algs)
        if chosen in NEEDING_STRICT and not self._strict_kex:
            self._unsafe = chosen.decode()
            if self._auth_complete:
                self._check_safe()
        return chosen

    def _stranger_left(self) -> None:
        """One line for the whole visit: an honest client offers several keys before the right one."""
        username = self._username
        self.handler.gate.ask(
            None,
            "ssh/login",
            username,
            surface=SURFACE,
            via=f"key:{self._last_key}",
            connection=self.connection.id,
            remote=self.remote_host,
        )
        log.warning(
            event(
                "auth",
                remote_addr=self.remote_host,
                result="reject",
                reason=self._fault,
                attempts=self._refusals,
                key=self._last_key,
                user=username,
            )
        )


def _facts(certificate: Certificate) -> dict[str, Any]:
    """What a record says of the certificate that somebody logged in with."""
    return {
        "certificate": certificate.key_id,
        "certificate_serial": certificate.serial,
        "certificate_authority": certificate.authority,
    }
