"""The certificate that a node shows on TLS and QUIC: made, read from PEM files, checked, written.

Whoever gets a `Certificate` can use it: its key is of a kind that clients take and belongs to its first certificate.
That somebody trusts it is not said; peers compare `spki_sha256`, browsers ask an authority.
"""

import hashlib
import ipaddress
import os
import stat
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from alknet.errors import ConfigError, InvalidInputError
from alknet.keys import MIN_RSA_BITS, check_private

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

    PrivateKey = EllipticCurvePrivateKey | Ed25519PrivateKey | RSAPrivateKey

__all__ = [
    "Certificate",
    "load_certificate",
    "make_certificate",
    "read_certificate",
    "spki_sha256",
    "write_certificate",
]

MAX_FILE_BYTES: Final = 256 * 1024
"""A chain of ten certificates has about 20 KiB."""
VALID_DAYS: Final = 3650
EARLIER_DAYS: Final = 1
"""A new certificate is valid from so long ago: the other side's clock may be behind."""
MAX_COMMON_NAME_CHARS: Final = 64
CURVES: Final = ("secp256r1", "secp384r1")


@dataclass(frozen=True, slots=True)
class Certificate:
    """A certificate with its issuers and its private key. Two are equal if they have the same bytes."""

    chain_pem: bytes = field(repr=False)
    """The leaf first."""
    key_pem: bytes = field(repr=False)
    """PKCS8, not encrypted."""
    leaf: "x509.Certificate" = field(compare=False)
    issuers: "tuple[x509.Certificate, ...]" = field(compare=False, repr=False)
    key: "PrivateKey" = field(compare=False, repr=False)

    @property
    def spki_sha256(self) -> bytes:
        """What a peer that knows this node compares: it outlives a renewal with the same key."""
        return hashlib.sha256(_spki(self.leaf.public_key())).digest()

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the leaf in hex, as ``openssl x509 -fingerprint -sha256`` has it, without the colons."""
        from cryptography.hazmat.primitives import hashes

        return self.leaf.fingerprint(hashes.SHA256()).hex()

    @property
    def names(self) -> tuple[str, ...]:
        """The DNS names and IP addresses that it is for, in lower case."""
        from cryptography import x509

        try:
            found = self.leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        except (x509.ExtensionNotFound, ValueError):
            return ()
        dns = found.get_values_for_type(x509.DNSName)
        return tuple(name.lower() for name in (*dns, *map(str, found.get_values_for_type(x509.IPAddress))))

    @property
    def not_before(self) -> datetime:
        return self.leaf.not_valid_before_utc

    @property
    def not_after(self) -> datetime:
        return self.leaf.not_valid_after_utc


def spki_sha256(der: bytes) -> bytes:
    """SHA-256 of the public key (SubjectPublicKeyInfo) of a certificate in DER, as the other side of TLS sent it."""
    from cryptography import x509
    from cryptography.exceptions import UnsupportedAlgorithm

    try:
        return hashlib.sha256(_spki(x509.load_der_x509_certificate(der).public_key())).digest()
    except (ValueError, UnsupportedAlgorithm, x509.InvalidVersion) as exc:
        raise InvalidInputError(f"is not a certificate with a known kind of key ({exc})") from exc


# --- made -------------------------------------------------------------------------------------------------------


def make_certificate(names: tuple[str, ...], *, now: float | None = None) -> Certificate:
    """A new key and a certificate that it signs itself, for DNS names and IP addresses; `now` as `time.time` has it."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID

    key = ec.generate_private_key(ec.SECP256R1())
    common_name = names[0] if names and len(names[0]) <= MAX_COMMON_NAME_CHARS else "alknet"
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, common_name)])
    today = datetime.fromtimestamp(time.time() if now is None else now, UTC)
    signing_only = x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=False,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )
    builder = (
        x509.CertificateBuilder(issuer_name=name, subject_name=name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(today - timedelta(days=EARLIER_DAYS))
        .not_valid_after(today + timedelta(days=VALID_DAYS))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(signing_only, critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
    )
    if names:
        alternatives = x509.SubjectAlternativeName([_general_name(each) for each in dict.fromkeys(names)])
        builder = builder.add_extension(alternatives, critical=False)
    return _certificate([builder.sign(key, hashes.SHA256())], key)


def _general_name(name: str) -> "x509.GeneralName":
    from cryptography import x509

    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _certificate(chain: "list[x509.Certificate]", key: "PrivateKey") -> Certificate:
    from cryptography.hazmat.primitives import serialization

    # Written anew: comments and the order of parts in the files make no difference.
    return Certificate(
        chain_pem=b"".join(each.public_bytes(serialization.Encoding.PEM) for each in chain),
        key_pem=key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ),
        leaf=chain[0],
        issuers=tuple(chain[1:]),
        key=key,
    )


def _spki(key: Any) -> bytes:
    from cryptography.hazmat.primitives import serialization

    form: bytes = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return form


# --- read -------------------------------------------------------------------------------------------------------


def load_certificate(
    certificate: Path, key: Path, *, now: float | None = None, in_use: Certificate | None = None
) -> Certificate:
    """Read both files and refuse, with `ConfigError`, what no client would take.

    What is `in_use` already is not refused for its dates: a reload must not fail for what it does not change.
    """
    loaded = read_certificate(certificate, key)
    today = datetime.fromtimestamp(time.time() if now is None else now, UTC)
    if loaded != in_use and loaded.not_after <= today:
        raise ConfigError(f"{certificate}: expired on {loaded.not_after:%Y-%m-%d %H:%M} UTC", hint="renew it")
    if loaded != in_use and today < loaded.not_before:
        raise ConfigError(
            f"{certificate}: is not valid before {loaded.not_before:%Y-%m-%d %H:%M} UTC",
            hint="check this machine's clock, or wait until then",
        )
    return loaded


def read_certificate(certificate: Path, key: Path) -> Certificate:
    """The certificate in two PEM files, checked but for its dates; raises `ConfigError` that says what to do."""
    chain = _parse_chain(certificate, _read(certificate, "certificate"))
    private = _parse_key(key, _read(key, "private key", secret=True))
    mine = _spki(private.public_key())
    place = next((at for at, each in enumerate(chain) if _public(certificate, each) == mine), None)
    if place is None:
        raise ConfigError(
            f"{key}: does not belong to the certificate in {certificate}",
            hint="the two files must be of one pair; if they are just being replaced, reload when both are there",
        )
    if place:
        raise ConfigError(
            f"{certificate}: the certificate that belongs to {key} is number {place + 1} in it",
            hint="put it first; its issuers follow",
        )
    return _certificate(chain, private)


def _read(path: Path, what: str, *, secret: bool = False) -> bytes:
    """The bytes of a regular file; a pipe or a device is refused, not waited for."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise ConfigError(f"{path}: is not a regular file")
            if secret:
                check_private(path)
            with os.fdopen(fd, "rb", closefd=False) as file:
                data = file.read(MAX_FILE_BYTES + 1)
        finally:
            os.close(fd)
    except OSError as exc:
        raise ConfigError(
            f"{path}: cannot be read: {exc.strerror}",
            hint=f"put the {what} there, as PEM, readable for the user that the node runs as",
        ) from exc
    if len(data) > MAX_FILE_BYTES:
        raise ConfigError(f"{path}: is larger than any {what}: at most {MAX_FILE_BYTES} bytes are read")
    return data


def _parse_chain(path: Path, data: bytes) -> "list[x509.Certificate]":
    from cryptography import x509

    if b"-----BEGIN " not in data:
        raise ConfigError(
            f"{path}: is not a PEM file",
            hint=f"if it is DER: openssl x509 -inform DER -in {path} -out NEW.pem",
        )
    if b"-----BEGIN CERTIFICATE-----" not in data:
        raise ConfigError(
            f"{path}: holds no certificate", hint="the node's own certificate stands first in it, its issuers follow"
        )
    try:
        return x509.load_pem_x509_certificates(data)
    except (ValueError, x509.InvalidVersion) as exc:
        raise ConfigError(f"{path}: holds a damaged certificate", hint=f"openssl x509 -text -in {path}") from exc


def _public(path: Path, certificate: "x509.Certificate") -> bytes:
    from cryptography.exceptions import UnsupportedAlgorithm

    try:
        return _spki(certificate.public_key())
    except (ValueError, UnsupportedAlgorithm) as exc:
        raise ConfigError(f"{path}: holds a certificate with an unknown kind of key ({exc})") from exc


def _parse_key(path: Path, data: bytes) -> "PrivateKey":
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    if b"-----BEGIN " not in data:
        raise ConfigError(
            f"{path}: is not a PEM file", hint=f"if it is DER: openssl pkey -inform DER -in {path} -out NEW.pem"
        )
    try:
        key = load_pem_private_key(data, password=None)
    except TypeError as exc:  # how the library says it
        raise ConfigError(
            f"{path}: is encrypted, and nobody is there to type its passphrase when the node starts",
            hint=f"openssl pkey -in {path} -out NEW.pem writes it without one; chmod 600 that",
        ) from exc
    except (ValueError, UnsupportedAlgorithm) as exc:
        # The library's text may quote what it read, which is a secret.
        raise ConfigError(
            f"{path}: holds no private key that can be read", hint=f"openssl pkey -noout -check -in {path}"
        ) from exc
    if isinstance(key, Ed25519PrivateKey):
        return key
    if isinstance(key, EllipticCurvePrivateKey):
        if key.curve.name in CURVES:
            return key
        kind = f"ECDSA on {key.curve.name}"
    elif isinstance(key, RSAPrivateKey):
        if key.key_size >= MIN_RSA_BITS:
            return key
        kind = f"RSA of {key.key_size} bits"
    else:
        kind = type(key).__name__.removesuffix("PrivateKey")
    raise ConfigError(
        f"{path}: is a key that clients do not take ({kind})",
        hint=f"use ECDSA on P-256 or P-384, RSA of at least {MIN_RSA_BITS} bits, or Ed25519 (which browsers refuse)",
    )


# --- written ----------------------------------------------------------------------------------------------------


def write_certificate(certificate: Certificate, cert_path: Path, key_path: Path) -> None:
    """Write both files, the key (0600) first; each appears whole or not at all."""
    _write_whole(key_path, certificate.key_pem, mode=0o600)
    _write_whole(cert_path, certificate.chain_pem, mode=0o644)


def _write_whole(path: Path, data: bytes, *, mode: int) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)  # of a crash: in a container the process id is the same each time
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
