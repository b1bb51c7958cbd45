"""Signing certificates: the other side of :mod:`alknet.ssh.certificates`, for ``alknet ca``."""

import secrets
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, Final

import asyncssh

from alknet.errors import ConfigError, InvalidInputError, NotFoundError
from alknet.keys import PublicKey, check_private
from alknet.ssh.certificate_format import ParsedCertificate, parse_certificate

__all__ = ["PERMITS", "read_authority", "sign_host", "sign_user"]

PERMITS: Final = ("X11-forwarding", "agent-forwarding", "port-forwarding", "pty", "user-rc")
"""What a user certificate can permit; ssh-keygen permits them all, too."""
SERIAL_BITS: Final = 63
"""Serial numbers are drawn, so that nobody has to count; all of them fit an integer of TOML and JSON."""


def read_authority(path: Path) -> asyncssh.SSHKey:
    """The private key that signs.

    Raises `NotFoundError`, or `ConfigError` for one that others can read or that is none, never with what is in it.
    """
    if not path.exists():
        raise NotFoundError(f"{path}: there is no such key", hint="'alknet ca init' makes the authorities of a home")
    check_private(path)
    try:
        return asyncssh.read_private_key(path)
    except (OSError, asyncssh.KeyImportError, asyncssh.KeyEncryptionError) as exc:
        raise ConfigError(
            f"{path}: is no private key that can be used: {exc}", hint="one with a passphrase signs with ssh-keygen -s"
        ) from exc


def sign_user(
    authority: asyncssh.SSHKey,
    key: PublicKey,
    *,
    key_id: str,
    principals: Sequence[str],
    valid_after: float,
    valid_before: float,
    permits: Collection[str] = PERMITS,
    force_command: str | None = None,
    source_addresses: Sequence[str] = (),
) -> tuple[str, ParsedCertificate]:
    """A user certificate as the line of a ``-cert.pub`` file, and what it says. Times are in seconds since 1970.

    Raises `InvalidInputError` for addresses that are no networks.
    """
    options: dict[str, Any] = {
        f"permit_{name.lower().replace('-', '_')}": name in permits for name in PERMITS
    }  # fmt: skip
    try:
        made = authority.generate_user_certificate(
            asyncssh.import_public_key(str(key)),
            key_id,
            serial=secrets.randbits(SERIAL_BITS),
            principals=list(principals),
            valid_after=int(valid_after),
            valid_before=int(valid_before),
            force_command=force_command,
            source_address=list(source_addresses) or None,
            sig_alg=_algorithm(authority),
            comment=key.comment or key_id,
            **options,
        )
    except ValueError as exc:
        raise InvalidInputError(f"no certificate can be made of that: {exc}") from exc
    return _written(made)


def sign_host(
    authority: asyncssh.SSHKey,
    key: PublicKey,
    *,
    key_id: str,
    principals: Sequence[str],
    valid_after: float,
    valid_before: float,
) -> tuple[str, ParsedCertificate]:
    """A host certificate for the host names and addresses `principals`; else as `sign_user`."""
    try:
        made = authority.generate_host_certificate(
            asyncssh.import_public_key(str(key)),
            key_id,
            serial=secrets.randbits(SERIAL_BITS),
            principals=list(principals),
            valid_after=int(valid_after),
            valid_before=int(valid_before),
            sig_alg=_algorithm(authority),
            comment=key.comment or key_id,
        )
    except ValueError as exc:
        raise InvalidInputError(f"no certificate can be made of that: {exc}") from exc
    return _written(made)


def _algorithm(authority: asyncssh.SSHKey) -> str:
    kind: str = authority.get_algorithm()
    return "rsa-sha2-512" if kind == "ssh-rsa" else kind


def _written(made: asyncssh.SSHCertificate) -> tuple[str, ParsedCertificate]:
    return made.export_certificate().decode("utf-8"), parse_certificate(made.public_data)
