"""Which SSH host key a client accepts; `TrustingClient` asks it for asyncssh, before anything is sent.

The first source that knows the host decides: the key that is pinned for it, then ``known_nodes``, then OpenSSH's
``known_hosts``. A host that nobody knows is refused, unless somebody who is asked says yes; one with another key than
the known one is refused without asking. A key that ``known_hosts`` revokes is refused whoever else trusts it.

A host certificate counts before all of these but a pin, if it is by the authority of the peer's entry or by one that an
``@cert-authority`` line of ``known_hosts`` has for the host, and names the host. Where it does not count, the key in it
is judged as if it had come alone, as ssh does.
"""

import ipaddress
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import asyncssh

from alknet.errors import AlknetError, ConfigError, InvalidInputError, UnavailableError
from alknet.keys import PublicKey
from alknet.known_nodes import HOST_KEY, KnownNodes
from alknet.ssh.certificate_format import SUFFIX, ParsedCertificate, key_type, parse_certificate
from alknet.ssh.certificates import host_certificate_fault, is_signed

__all__ = ["HostKeyError", "HostTrust", "NewHost", "TrustingClient"]

SYSTEM_KNOWN_HOSTS: Final = Path("/etc/ssh/ssh_known_hosts")
MAX_FILE_BYTES: Final = 16 * 1024 * 1024
"""For known_hosts, which in large companies lists every machine."""
SSH_PORT: Final = 22
"""The port that known_hosts does not write down."""
ALGORITHMS: Final = {
    # kind of key: signature algorithms, best first
    "ssh-ed25519": ("ssh-ed25519",),
    "ecdsa-sha2-nistp256": ("ecdsa-sha2-nistp256",),
    "ecdsa-sha2-nistp384": ("ecdsa-sha2-nistp384",),
    "ecdsa-sha2-nistp521": ("ecdsa-sha2-nistp521",),
    "ssh-rsa": ("rsa-sha2-512", "rsa-sha2-256"),
}
CERTIFIED: Final = tuple(name + SUFFIX for names in ALGORITHMS.values() for name in names)
MAYBE_ATTACK: Final = "nothing was sent; somebody may be in between. If you know that it was changed, "


class HostKeyError(UnavailableError):
    """The host did not prove to be the one that was meant; nothing was sent to it."""


@dataclass(frozen=True, slots=True)
class NewHost:
    """What somebody who is asked about an unknown host is told."""

    host: str
    port: int
    key: PublicKey

    def __str__(self) -> str:
        return f"{self.host} port {self.port} is not known. Its {self.key.kind} key is {self.key.fingerprint}."


@dataclass(frozen=True, slots=True)
class _Line:
    """A line of known_hosts that speaks of the host."""

    path: Path
    number: int
    kind: str
    """``key``, ``revoked`` or ``authority``."""
    blob: bytes
    algorithm: str
    with_port: bool
    """Whether it names the port that is asked for, and not the host alone."""


@dataclass(frozen=True, slots=True)
class HostTrust:
    """The sources that decide about one target."""

    pin: PublicKey | None = None
    """The only key accepted."""
    pin_source: str = "the peer's entry"
    """Where the pin stands, for messages."""
    known_nodes: KnownNodes | None = None
    use_known_hosts: bool = False
    """Whether ``~/.ssh/known_hosts`` and the system's are asked."""
    accept_new: Callable[[NewHost], bool] | None = None
    """Asked about an unknown host, in the middle of the handshake; a yes is remembered in `known_nodes`."""
    authority: PublicKey | None = None
    """Whose host certificates are believed, for the host's name or one of `names`, besides those of known_hosts."""
    names: tuple[str, ...] = ()
    now: Callable[[], float] = time.time

    def check(self, host: str, port: int, key: PublicKey) -> None:
        """Return if `key` is the host's; raise `HostKeyError`, or `ConfigError` for a file that cannot be used."""
        where = f"{host} port {port}"
        if self.pin is not None and self.pin.blob != key.blob:
            raise HostKeyError(
                f"{where} did not prove to be itself: expected {self.pin.kind} {self.pin.fingerprint} from"
                f" {self.pin_source}, got {key.kind} {key.fingerprint}",
                hint=f"{MAYBE_ATTACK}correct {self.pin_source}",
            )
        lines = list(_known_hosts(host, port)) if self.use_known_hosts else []
        for line in lines:
            if line.kind == "revoked" and line.blob == key.blob:
                raise HostKeyError(
                    f"the host key of {where}, {key.fingerprint}, is revoked ({line.path}:{line.number})",
                    hint="nothing was sent; whoever has this key may not be the host: ask who runs it for the new one",
                )
        if self.pin is not None or self._is_known(where, host, port, key) or _is_listed(where, lines, key):
            return
        self._ask(where, NewHost(host, port, key))

    def check_certificate(self, host: str, port: int, certificate: ParsedCertificate) -> None:
        """Return if `certificate`, or the key in it, is the host's; else raises as `check` does."""
        lines = list(_known_hosts(host, port)) if self.use_known_hosts else []
        for line in lines:
            if line.kind == "revoked" and line.blob == certificate.authority.blob:
                raise HostKeyError(
                    f"the authority of the host certificate of {host} port {port}, {certificate.authority.fingerprint},"
                    f" is revoked ({line.path}:{line.number})",
                    hint="nothing was sent; ask who runs it for the new one",
                )
        revoked = any(line.kind == "revoked" and line.blob == certificate.key.blob for line in lines)
        why = self._certificate_fault(host, certificate, lines)
        if why is None and not revoked:
            return
        try:
            self.check(host, port, certificate.key)
        except HostKeyError as exc:
            if why is None:
                raise
            raise HostKeyError(f"{exc}; its host certificate does not count: {why}", hint=exc.hint) from exc

    def _certificate_fault(self, host: str, certificate: ParsedCertificate, lines: list["_Line"]) -> str | None:
        blob = certificate.authority.blob
        if self.authority is not None and self.authority.blob == blob:
            names: tuple[str, ...] = (host, *self.names)
        elif self.pin is None and any(line.kind == "authority" and line.blob == blob for line in lines):
            names = (host,)
        else:
            return f"its authority {certificate.authority.fingerprint} is not known"
        if not is_signed(certificate):
            return "it is not signed by its authority"
        return host_certificate_fault(certificate, now=self.now(), names=[_canonical(name) for name in names])

    def algorithms(self, host: str, port: int) -> tuple[str, ...]:
        """asyncssh's ``server_host_key_algs``: the kinds of the known keys first, so that a host with several keys
        shows one that can be compared; before these certificates, where an authority is known for the host."""
        kinds: list[str] = []
        lines = sorted(_known_hosts(host, port), key=lambda line: not line.with_port) if self.use_known_hosts else []
        certified = self.authority is not None or (self.pin is None and any(line.kind == "authority" for line in lines))
        if self.pin is not None:
            kinds = [self.pin.kind]
        elif self.known_nodes is not None and (known := self.known_nodes.find(host, port, HOST_KEY)) is not None:
            kinds = [known.kind]
        else:
            kinds = [line.algorithm for line in lines if line.kind == "key"]
        ordered = dict.fromkeys([kind for kind in kinds if kind in ALGORITHMS] + list(ALGORITHMS))
        return (*(CERTIFIED if certified else ()), *(name for kind in ordered for name in ALGORITHMS[kind]))

    def _is_known(self, where: str, host: str, port: int, key: PublicKey) -> bool:
        known = self.known_nodes.lookup(host, port, HOST_KEY) if self.known_nodes is not None else None
        if known is None or known.key.blob == key.blob:
            return known is not None
        assert self.known_nodes is not None
        raise _changed(where, known.key, key, self.known_nodes.path, known.line)

    def _ask(self, where: str, new: NewHost) -> None:
        if self.accept_new is None:
            raise HostKeyError(
                f"{where} is not known: its {new.key.kind} key {new.key.fingerprint} stands nowhere",
                hint="nothing was sent; if that is its key: --accept-new remembers it, or put it into the peer's"
                " host_key or into known_hosts",
            )
        if not self.accept_new(new):
            raise HostKeyError(f"{where} is not known, and its key {new.key.fingerprint} was not accepted")
        if self.known_nodes is not None:
            self.known_nodes.add(new.host, new.port, HOST_KEY, new.key)


class TrustingClient(asyncssh.SSHClient):
    """asyncssh's questions about the host, answered by `trust`; `refusal` says afterwards why the answer was no.

    The connection needs ``known_hosts=([], [], [])``, so that nothing else is trusted, and
    ``server_host_key_algs=trust.algorithms(host, port)``. `address` is what is looked up, where that is not what
    asyncssh was told.
    """

    def __init__(self, trust: HostTrust, *, address: tuple[str, int] | None = None) -> None:
        self.refusal: AlknetError | None = None
        """To be raised instead of asyncssh's `HostKeyNotVerifiable`, which knows no reasons: a `HostKeyError`, or the
        `ConfigError` of a file."""
        self._trust = trust
        self._address = address
        self._accepted = b""

    def validate_host_public_key(self, host: str, addr: str, port: int, key: asyncssh.SSHKey) -> bool:
        if key.public_data == self._accepted:
            return True  # keys are exchanged again now and then: nobody is asked twice
        host, port = self._address or (host, port)
        try:
            self._trust.check(host, port, _public_key(f"{host} port {port}", key))
        except AlknetError as exc:
            self.refusal = exc
            return False
        self._accepted = key.public_data
        return True

    def connection_made(self, conn: asyncssh.SSHClientConnection) -> None:
        """Take over the question about certificates: asyncssh asks about the authority alone, and a certificate that
        names no host is good for every one to it."""
        by_key = conn.validate_server_host_key

        def validate(key_data: bytes) -> asyncssh.SSHKey:
            if not key_type(key_data).endswith(SUFFIX):
                return by_key(key_data)
            try:
                return self._certified_key(self._address or (conn._host, conn._port), key_data)
            except AlknetError as exc:
                self.refusal = exc
                raise asyncssh.HostKeyNotVerifiable(str(exc)) from exc

        conn.validate_server_host_key = validate  # type: ignore[method-assign]

    def _certified_key(self, address: tuple[str, int], key_data: bytes) -> asyncssh.SSHKey:
        host, port = address
        where = f"{host} port {port}"
        try:
            certificate = parse_certificate(key_data)
            key = asyncssh.public_key.decode_ssh_public_key(certificate.key.blob)
        except (InvalidInputError, asyncssh.KeyImportError) as exc:
            raise HostKeyError(f"the host certificate of {where} cannot be read: it {exc}") from exc
        if key_data != self._accepted:
            _public_key(where, key)
            self._trust.check_certificate(host, port, certificate)
        self._accepted = key_data
        return key

    def validate_host_ca_key(self, host: str, addr: str, port: int, key: asyncssh.SSHKey) -> bool:
        """Nobody asks: see `connection_made`."""
        return False


def _public_key(where: str, key: asyncssh.SSHKey) -> PublicKey:
    kind = key.algorithm.decode("ascii")
    if kind not in ALGORITHMS:
        raise HostKeyError(f"{where} shows a {kind} key, a kind that is not accepted")
    try:
        return PublicKey.parse(key.export_public_key("openssh").decode("ascii"))
    except InvalidInputError as exc:
        raise HostKeyError(f"the host key of {where} is not accepted: it {exc}") from exc


def _changed(where: str, known: PublicKey, key: PublicKey, path: Path, line: int) -> HostKeyError:
    return HostKeyError(
        f"the host key of {where} has CHANGED: {path}:{line} has {known.kind} {known.fingerprint},"
        f" got {key.kind} {key.fingerprint}",
        hint=f"{MAYBE_ATTACK}remove line {line} of {path}",
    )


# --- OpenSSH's known_hosts --------------------------------------------------------------------------------------


def _is_listed(where: str, lines: list[_Line], key: PublicKey) -> bool:
    """Whether known_hosts has this key for the host. Where it has only a key of another kind, nobody is asked either:
    that host is not new, and an attacker could choose the kind.

    As in ssh, a line without the port can prove a host on another port, but not disprove it: the machine's own sshd
    and a node on it have different keys.
    """
    keys = [line for line in lines if line.kind == "key"]
    if any(line.blob == key.blob for line in keys):
        return True
    named = sorted((line for line in keys if line.with_port), key=lambda line: line.algorithm != key.kind)
    if not named:
        return False
    path, number, known = named[0].path, named[0].number, PublicKey(named[0].algorithm, named[0].blob)
    if known.kind == key.kind:
        raise _changed(where, known, key, path, number)
    raise HostKeyError(
        f"{where} shows another kind of host key than the known one: {path}:{number} has {known.kind}"
        f" {known.fingerprint}, got {key.kind} {key.fingerprint}",
        hint=f"{MAYBE_ATTACK}or that it has both, add the new one to {path}",
    )


def _known_hosts(host: str, port: int) -> Iterator[_Line]:
    """What known_hosts says of a host. Each line is read for itself: one that makes no sense is passed over, as ssh
    does, and what is found has a number."""
    host = _canonical(host)
    named = host if port == SSH_PORT else f"[{host}]:{port}"
    for path in (Path.home() / ".ssh" / "known_hosts", SYSTEM_KNOWN_HOSTS):
        for number, text in enumerate(_read(path).split("\n"), 1):
            try:
                entry = asyncssh.import_known_hosts(_normal(text))
            except ValueError:
                continue
            # Without a port: asyncssh's own way from "[host]:port" to "host" does not tell the two apart.
            found = dict.fromkeys((named, host))
            for name in found:
                keys, authorities, revoked, *_ = entry.match(name, "", None)
                for kind, matched in (("key", keys), ("authority", authorities), ("revoked", revoked)):
                    for key in matched:
                        algorithm = key.algorithm.decode("ascii")
                        yield _Line(path, number, kind, key.public_data, algorithm, name == named)
                if keys or authorities or revoked:
                    break


def _canonical(host: str) -> str:
    host = host.lower()
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        return host


def _normal(line: str) -> str:
    """The line with its host names in lower case, as ssh compares them, and without empty ones ("a,,b"), which asyncssh
    would find for every host. A hashed name is what it is."""
    words = line.split(None, 2)
    at = 1 if words and words[0].startswith("@") else 0
    if len(words) <= at or words[0].startswith("#") or words[at].startswith("|"):
        return line
    words[at] = ",".join(name for name in words[at].lower().split(",") if name)
    return " ".join(words)


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        return ""
    except OSError as exc:
        # Not passed over: it may say that a key is revoked.
        raise ConfigError(f"{path}: cannot be read: {exc.strerror}") from exc
    if len(data) > MAX_FILE_BYTES:
        raise ConfigError(f"{path}: is larger than {MAX_FILE_BYTES} bytes")
    return data.decode("utf-8", "replace")
