"""An authority of the test's own, and certificates that it vouches for."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from alknet.certificates import Certificate, read_certificate

__all__ = ["Authority"]

PEM, DER = serialization.Encoding.PEM, serialization.Encoding.DER
SIGNS_CERTIFICATES = {"key_cert_sign", "crl_sign"}
USES = [
    "digital_signature",
    "content_commitment",
    "key_encipherment",
    "data_encipherment",
    "key_agreement",
    "key_cert_sign",
    "crl_sign",
    "encipher_only",
    "decipher_only",
]


@dataclass(frozen=True)
class Authority:
    """Whoever trusts `pem` trusts what `issue` makes."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey
    above: "Authority | None" = None

    @classmethod
    def make(
        cls, name: str = "Test Root", *, above: "Authority | None" = None, end: datetime | None = None
    ) -> "Authority":
        """A root, or with `above` an authority that this one vouches for."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        builder = _builder(subject, above.certificate.subject if above else subject, key.public_key(), end=end)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        builder = builder.add_extension(_usage(SIGNS_CERTIFICATES), critical=True)
        builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        signer = above.key if above else key
        identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key())
        builder = builder.add_extension(identifier, critical=False)
        return cls(builder.sign(signer, hashes.SHA256()), key, above)

    @cached_property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(PEM)

    @property
    def chain(self) -> list[x509.Certificate]:
        """What a server sends after its own certificate: this authority and those above it, without the root."""
        return [] if self.above is None else [self.certificate, *self.above.chain]

    def sign(
        self, *names: str, start: datetime | None = None, end: datetime | None = None, key: Any = None
    ) -> x509.Certificate:
        """A server's certificate for `names`, DNS names and IP addresses."""
        key = key or ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "server")])
        builder = _builder(subject, self.certificate.subject, key.public_key(), start=start, end=end)
        if names:
            alternatives = x509.SubjectAlternativeName([_general_name(name) for name in names])
            builder = builder.add_extension(alternatives, critical=False)
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        builder = builder.add_extension(_usage({"digital_signature"}), critical=True)
        builder = builder.add_extension(x509.ExtendedKeyUsage([x509.ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key())
        return builder.add_extension(identifier, critical=False).sign(self.key, hashes.SHA256())

    def show(self, *names: str, **dates: datetime) -> list[bytes]:
        """What a server with such a certificate shows: it and its issuers, in DER."""
        return [each.public_bytes(DER) for each in (self.sign(*names, **dates), *self.chain)]

    def issue(self, directory: Path, *names: str, **dates: datetime) -> Certificate:
        """Such a certificate as a node has it, made by way of files in `directory`."""
        key = ec.generate_private_key(ec.SECP256R1())
        chain, private = directory / "fullchain.pem", directory / "privkey.pem"
        chain.write_bytes(b"".join(c.public_bytes(PEM) for c in (self.sign(*names, key=key, **dates), *self.chain)))
        private.write_bytes(key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
        private.chmod(0o600)
        return read_certificate(chain, private)


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: Any,
    *,
    start: datetime | None = None,
    end: datetime | None = None,
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    start, end = start or now - timedelta(days=30), end or now + timedelta(days=30)
    return x509.CertificateBuilder(issuer, subject, key, x509.random_serial_number(), start, end)


def _usage(of: set[str]) -> x509.KeyUsage:
    return x509.KeyUsage(**{use: use in of for use in USES})


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(name))
    except ValueError:
        return x509.DNSName(name)
