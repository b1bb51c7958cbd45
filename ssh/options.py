"""What the SSH server offers: algorithms, host key, and everything else that is the same for all connections.

asyncssh's options are costly to build, so they are built once and shared.
"""

from functools import cache
from pathlib import Path
from typing import Final

import asyncssh
from asyncssh.kex import get_kex_algs

from alknet.errors import ConfigError, InvalidInputError
from alknet.ssh.certificate_format import parse_certificate

__all__ = ["NEEDING_STRICT", "SIGNATURES", "HostKey", "load_host_key", "server_options"]

SERVER_VERSION: Final = "alknet"
KEEPALIVE_INTERVAL_S: Final = 60
"""A client that is silent for so long is asked whether it is there …"""
KEEPALIVE_COUNT: Final = 5
"""… and is given up after so many unanswered questions."""

NEEDING_STRICT: Final = frozenset(
    {b"chacha20-poly1305@openssh.com", b"hmac-sha2-256-etm@openssh.com", b"hmac-sha2-512-etm@openssh.com"}
)
"""Safe only with the strict key exchange (Terrapin, CVE-2023-48795): ChaCha20-Poly1305 and encrypt-then-MAC."""

# No larger Diffie-Hellman group: what a stranger asks for is the node's work (group18 takes 30 times group14's).
_KEX: Final = (
    "mlkem768x25519-sha256",
    "sntrup761x25519-sha512@openssh.com",
    "curve25519-sha256",
    "curve25519-sha256@libssh.org",
    "ecdh-sha2-nistp256",
    "ecdh-sha2-nistp384",
    "ecdh-sha2-nistp521",
    "diffie-hellman-group14-sha256",
)
_AES: Final = (
    "aes128-gcm@openssh.com",
    "aes256-gcm@openssh.com",
    "aes128-ctr",
    "aes192-ctr",
    "aes256-ctr",
)
_MACS: Final = (
    "hmac-sha2-256-etm@openssh.com",
    "hmac-sha2-512-etm@openssh.com",
    "hmac-sha2-256",
    "hmac-sha2-512",
)
SIGNATURES: Final = (
    "ssh-ed25519",
    "sk-ssh-ed25519@openssh.com",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "sk-ecdsa-sha2-nistp256@openssh.com",
    "rsa-sha2-256",
    "rsa-sha2-512",
)
"""No ssh-rsa: that is SHA-1."""


HostKey = asyncssh.SSHKey | tuple[asyncssh.SSHKey, asyncssh.SSHCertificate]
"""What the server proves itself with; one with a certificate is offered without it too."""


def load_host_key(path: Path, certificate: Path | None = None) -> HostKey:
    """The host's private key, with its host certificate where there is one; `ConfigError` that says what is wrong with
    either file, never what is in it.

    A certificate that has expired is taken: that only its key is believed then is each client's own matter.
    """
    try:
        key = asyncssh.read_private_key(path)
    except (OSError, asyncssh.KeyImportError, asyncssh.KeyEncryptionError) as exc:
        raise ConfigError(
            f"{path}: is not a usable SSH host key: {exc}",
            hint="put the right key back, without a passphrase; a new key means that every client has to learn it",
        ) from exc
    if certificate is None:
        return key
    try:
        read = asyncssh.read_certificate(certificate)
        parsed = parse_certificate(read.public_data)
    except (OSError, asyncssh.KeyImportError, InvalidInputError) as exc:
        raise ConfigError(
            f"{certificate}: is not a usable SSH host certificate: {exc}", hint="'alknet ca sign-host' makes one"
        ) from exc
    if parsed.kind != "host" or not parsed.principals:
        what = "it is of a user" if parsed.kind != "host" else "it names no host"
        raise ConfigError(f"{certificate}: is not a usable SSH host certificate: {what}")
    if parsed.key.blob != key.public_data:
        raise ConfigError(
            f"{certificate}: belongs to another key than {path}", hint="sign the node's own: alknet ca sign-host"
        )
    return key, read


def server_options(host_key: HostKey) -> asyncssh.SSHServerConnectionOptions:
    """The options of every server connection."""
    return asyncssh.SSHServerConnectionOptions(
        server_host_keys=[host_key],
        server_version=SERVER_VERSION,
        kex_algs=_supported_kex(),
        encryption_algs=list(_AES) if _has_aes() else ["chacha20-poly1305@openssh.com", *_AES],
        mac_algs=list(_MACS),
        signature_algs=list(SIGNATURES),
        compression_algs=["none"],
        host_based_auth=False,
        public_key_auth=True,
        kbdint_auth=False,
        password_auth=False,
        gss_host=None,
        gss_kex=False,
        gss_auth=False,
        agent_forwarding=False,
        x11_forwarding=False,
        line_editor=False,
        encoding=None,
        login_timeout=0,  # the connection keeps its own deadline, which a reload can change
        keepalive_interval=KEEPALIVE_INTERVAL_S,
        keepalive_count_max=KEEPALIVE_COUNT,
    )


@cache
def _has_aes() -> bool:
    """Whether the processor has AES instructions. Without them AES is slow, and ChaCha20 is offered first."""
    try:
        words = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").split()
    except OSError:
        return True
    return "aes" in words


def _supported_kex() -> list[str]:
    """Those of our list that this build of asyncssh has (sntrup needs an extra library)."""
    known = {name.decode() for name in get_kex_algs()}
    return [name for name in _KEX if name in known]
