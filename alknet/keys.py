"""OpenSSH public-key lines and Ed25519 key files.

A public key is compared as its wire form (RFC 4253 section 6.6); people see its fingerprint, ``SHA256:`` and
unpadded base64, as ``ssh-keygen -l`` prints it.
"""

import base64
import binascii
import hashlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from alknet.errors import ConfigError, InvalidInputError

__all__ = ["PublicKey", "check_private", "fingerprint", "generate_private_key", "write_key_pair"]

KEY_TYPES = frozenset(
    {
        "ssh-ed25519",
        "ssh-rsa",
        "ecdsa-sha2-nistp256",
        "ecdsa-sha2-nistp384",
        "ecdsa-sha2-nistp521",
        "sk-ssh-ed25519@openssh.com",
        "sk-ecdsa-sha2-nistp256@openssh.com",
    }
)
MIN_RSA_BITS = 2048
MAX_LINE_CHARS = 16_384
"""A public-key line longer than this is not one (RSA-16384 has about 3,000 characters)."""


def fingerprint(blob: bytes) -> str:
    """``SHA256:…`` of a key in wire form."""
    digest = base64.b64encode(hashlib.sha256(blob).digest()).rstrip(b"=")
    return "SHA256:" + digest.decode("ascii")


@dataclass(frozen=True, slots=True)
class PublicKey:
    """One public key: its type, its wire form and the comment that stood behind it."""

    kind: str
    blob: bytes
    comment: str = ""

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.blob)

    def __str__(self) -> str:
        line = f"{self.kind} {base64.b64encode(self.blob).decode('ascii')}"
        return f"{line} {self.comment}" if self.comment else line

    @classmethod
    def parse(cls, line: str) -> "PublicKey":
        """Read ``type base64 [comment]``; raises `InvalidInputError` that says what is wrong with it."""
        if "PRIVATE KEY" in line:
            raise InvalidInputError("is a private key; the line from the .pub file belongs here")
        if len(line) > MAX_LINE_CHARS or "\n" in line.strip():
            raise InvalidInputError("is not one OpenSSH public-key line")
        words = line.strip().split(None, 2)
        if len(words) < 2 or words[0] not in KEY_TYPES:
            known = ", ".join(sorted(KEY_TYPES))
            raise InvalidInputError(
                f"is not an OpenSSH public-key line: it must start with one of {known}"
                " (options in front of the key are not read; use the peer's own settings)"
            )
        try:
            blob = base64.b64decode(words[1], validate=True)
            fields = _wire_strings(blob)
        except (binascii.Error, ValueError) as exc:
            raise InvalidInputError(f"has a damaged base64 part ({exc})") from None
        if not fields or fields[0] != words[0].encode("ascii"):
            raise InvalidInputError(f"says {words[0]} in front, but its base64 part holds another type")
        if words[0] == "ssh-rsa":
            bits = int.from_bytes(fields[2], "big").bit_length() if len(fields) == 3 else 0
            if bits < MIN_RSA_BITS:
                raise InvalidInputError(f"is an RSA key of {bits} bits; at least {MIN_RSA_BITS} are needed")
        if words[0] == "ssh-ed25519" and (len(fields) != 2 or len(fields[1]) != 32):
            raise InvalidInputError("is not a whole Ed25519 key")
        return cls(words[0], blob, words[2] if len(words) == 3 else "")


def _wire_strings(blob: bytes) -> list[bytes]:
    """The length-prefixed strings that `blob` consists of; ValueError unless they fill it exactly."""
    fields, at = [], 0
    while at < len(blob):
        end = at + 4 + int.from_bytes(blob[at : at + 4], "big")
        if len(blob) < at + 4 or end > len(blob):
            raise ValueError("cut short")
        fields.append(blob[at + 4 : end])
        at = end
    return fields


def generate_private_key(comment: str) -> tuple[bytes, PublicKey]:
    """A new Ed25519 key: the OpenSSH private-key file's bytes and the public half."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.OpenSSH,
        serialization.NoEncryption(),
    )
    line = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    return private, PublicKey.parse(f"{line.decode('ascii')} {comment}")


def write_key_pair(path: Path, comment: str) -> PublicKey:
    """Make `path` (0600) and ``path.pub``; the private half appears whole or not at all."""
    private, public = generate_private_key(comment)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(private)
            file.flush()
            os.fsync(file.fileno())
        path.with_name(path.name + ".pub").write_text(f"{public}\n", encoding="ascii")
        temporary.rename(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return public


def check_private(path: Path) -> None:
    """Refuse a file with secrets that others can read: raises `ConfigError` naming mode and remedy."""
    info = path.stat()
    mode = stat.S_IMODE(info.st_mode)
    if info.st_uid not in (0, os.geteuid()):
        raise ConfigError(
            f"{path}: holds a secret but belongs to user {info.st_uid}",
            hint=f"chown it to user {os.geteuid()}, which the node runs as",
        )
    if mode & 0o077:
        raise ConfigError(
            f"{path}: holds a secret but has mode {mode:04o}, so that others can open it",
            hint=f"chmod 600 {path}; if others could have read it, make a new key",
        )
