"""OpenSSH certificates for tests, by asyncssh, and some that nobody's tool would make."""

from typing import Any

import asyncssh
from asyncssh.packet import String, UInt32, UInt64

from alknet.keys import fingerprint

__all__ = ["CA", "CA_KEY", "NOW", "USER_KEY", "odd_certificate", "option", "user_certificate"]

NOW = 1_700_000_000.0
"""What a new `ManualClock` says."""
CA_KEY = asyncssh.generate_private_key("ssh-ed25519")
USER_KEY = asyncssh.generate_private_key("ssh-ed25519")
CA = fingerprint(CA_KEY.public_data)


def user_certificate(
    *principals: str, ca: asyncssh.SSHKey = CA_KEY, key: asyncssh.SSHKey = USER_KEY, **options: Any
) -> asyncssh.SSHCertificate:
    """A certificate for an hour around `NOW`; `options` are asyncssh's."""
    times = {"valid_after": int(NOW) - 60, "valid_before": int(NOW) + 3600}
    return ca.generate_user_certificate(key, "the id", serial=7, principals=list(principals), **(times | options))


def odd_certificate(
    *,
    ca: asyncssh.SSHKey = CA_KEY,
    key: asyncssh.SSHKey = USER_KEY,
    kind: int = 1,
    principals: tuple[bytes, ...] = (b"alice",),
    critical: bytes = b"",
    extensions: bytes = b"",
    valid_before: int = int(NOW) + 3600,
    signer: bytes | None = None,
    tail: bytes = b"",
) -> bytes:
    """One in wire form, signed whatever it says. Options are pairs of strings, see `option`."""
    body = b"".join(
        (
            String("ssh-ed25519-cert-v01@openssh.com"),
            String(b"n" * 32),
            key.encode_ssh_public(),
            UInt64(7),
            UInt32(kind),
            String("the id"),
            String(b"".join(String(name) for name in principals)),
            UInt64(0),
            UInt64(valid_before),
            String(critical),
            String(extensions),
            String(""),
            String(ca.public_data if signer is None else signer),
        )
    )
    return body + String(ca.sign(body, ca.algorithm)) + tail


def option(name: str, data: bytes = b"") -> bytes:
    """A critical option or extension."""
    return String(name) + String(data)
