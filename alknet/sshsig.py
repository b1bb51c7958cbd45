"""Signatures in OpenSSH's SSHSIG form, as ``ssh-keygen -Y sign`` makes them: Ed25519 with SHA-512, and nothing else.

PROTOCOL.sshsig of OpenSSH has the form; here it is without its armor::

    "SSHSIG"  u32 version = 1  string key  string namespace  string reserved  string hash  string signature

What the key signs is ``"SSHSIG"``, namespace, reserved, hash and the message's digest: a signature for one namespace
counts in no other, and none can be passed off as an SSH login.
"""

import binascii
import hashlib
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

from alknet.errors import ConfigError, InvalidInputError, NotFoundError, RemoteError, UsageError
from alknet.keys import PublicKey, check_private

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

__all__ = ["KeySigner", "SignatureError", "Signer", "sign", "verify"]

MAGIC: Final = b"SSHSIG"
VERSION: Final = 1
HASH: Final = b"sha512"
ED25519: Final = b"ssh-ed25519"
ED25519_KEY_BYTES: Final = 32
ED25519_SIGNATURE_BYTES: Final = 64
MAX_BLOB_BYTES: Final = 8 * 1024
"""One of Ed25519 has about 200 bytes; the largest of RSA fits as well, so that it is refused for what it is."""
MAX_KEY_FILE_BYTES: Final = 64 * 1024
KEY_FILE_BEGIN: Final = b"-----BEGIN OPENSSH PRIVATE KEY-----"
KEY_FILE_END: Final = b"-----END OPENSSH PRIVATE KEY-----"
KEY_FILE_MAGIC: Final = b"openssh-key-v1\0"
MAX_SHOWN_BYTES: Final = 64
"""In messages; what is shown is anybody's text."""
NEW_KEY: Final = "'ssh-keygen -t ed25519' makes one"


class SignatureError(RemoteError):
    """What was given as a signature is none that counts; the message says why."""


class Signer(Protocol):
    """Holds a private Ed25519 key, or knows who does."""

    @property
    def public_key(self) -> PublicKey:
        """The other half, of kind ``ssh-ed25519``."""

    async def sign(self, data: bytes) -> bytes:
        """The signature of `data` in wire form (RFC 8709 section 6): string algorithm, string signature."""


class KeySigner:
    """Signs with a private key in memory."""

    def __init__(self, key: "Ed25519PrivateKey") -> None:
        self._key = key
        self._public_key = PublicKey("ssh-ed25519", _string(ED25519) + _string(key.public_key().public_bytes_raw()))

    @classmethod
    def from_file(cls, path: Path) -> "KeySigner":
        """Read a file that ``ssh-keygen -t ed25519`` has made.

        Raises `NotFoundError` if there is none, `ConfigError` if it cannot be read or others can read it, and
        `InvalidInputError` if something else is in it.
        """
        data = _read(path)
        if _is_public(data):
            raise InvalidInputError(
                f"{path}: is a public key, which cannot sign", hint="name the private half, the file without .pub"
            )
        check_private(path)
        return cls(_parse_private(path, data))

    @property
    def public_key(self) -> PublicKey:
        return self._public_key

    async def sign(self, data: bytes) -> bytes:
        return _string(ED25519) + _string(self._key.sign(data))

    def __repr__(self) -> str:
        return f"KeySigner({self._public_key.fingerprint})"


async def sign(signer: Signer, message: bytes, *, namespace: str) -> bytes:
    """A signature of `message` that counts in `namespace` only.

    Raises `SignatureError` if what `signer` gives is not its signature, and whatever it raises itself.
    """
    name = _namespace(namespace)
    signature = await signer.sign(_signed(name, b"", message))
    blob = MAGIC + VERSION.to_bytes(4, "big")
    blob += b"".join(map(_string, (signer.public_key.blob, name, b"", HASH, signature)))
    try:
        verify(blob, message, namespace=namespace)
    except SignatureError as exc:
        raise SignatureError(f"what was to be signed by {signer.public_key.fingerprint} is not: {exc}") from exc
    return blob


def verify(blob: bytes, message: bytes, *, namespace: str) -> PublicKey:
    """The key that signed `message`, whosever it is; raises `SignatureError` for anything but a whole signature.

    `blob` comes from anybody. What it has as reserved is not looked at, but must have been signed with the rest.
    """
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    name = _namespace(namespace)
    if len(blob) > MAX_BLOB_BYTES:
        raise SignatureError(f"the signature is longer than {MAX_BLOB_BYTES} bytes")
    if not blob.startswith(MAGIC):
        raise SignatureError(f"the signature does not start with {MAGIC.decode()}, as one without armor does")
    whole = _Fields(blob, "the signature", len(MAGIC))
    version = whole.number("version")
    if version != VERSION:
        raise SignatureError(f"the signature has version {version}; only {VERSION} is known")
    key, claimed, reserved, digest, signature = map(
        whole.string, ("key", "namespace", "reserved", "hash", "signature itself")
    )
    whole.end()
    raw_key = _ed25519(key, "the key", ED25519_KEY_BYTES)
    if claimed != name:
        raise SignatureError(f"the signature is for the namespace {_shown(claimed)}, not for {_shown(name)}")
    if digest != HASH:
        raise SignatureError(f"the signature is of a digest by {_shown(digest)}; only {HASH.decode()} is taken")
    raw_signature = _ed25519(signature, "the signature itself", ED25519_SIGNATURE_BYTES)
    try:
        Ed25519PublicKey.from_public_bytes(raw_key).verify(raw_signature, _signed(name, reserved, message))
    except (InvalidSignature, ValueError):
        raise SignatureError("the signature does not fit: it, the key or the message was changed") from None
    return PublicKey("ssh-ed25519", key)


# --- the form ---------------------------------------------------------------------------------------------------


def _string(raw: bytes) -> bytes:
    return len(raw).to_bytes(4, "big") + raw


def _namespace(text: str) -> bytes:
    if not text:
        raise UsageError("a signature needs a namespace")
    return text.encode("utf-8")


def _signed(namespace: bytes, reserved: bytes, message: bytes) -> bytes:
    return MAGIC + b"".join(map(_string, (namespace, reserved, HASH, hashlib.sha512(message).digest())))


class _Fields:
    """Reads the fields of `raw`, called `what` in messages, one after the other."""

    def __init__(self, raw: bytes, what: str, at: int = 0) -> None:
        self._raw, self._what, self._at = raw, what, at

    def number(self, name: str) -> int:
        return int.from_bytes(self._take(4, name), "big")

    def string(self, name: str) -> bytes:
        return self._take(self.number(name), name)

    def end(self) -> None:
        rest = len(self._raw) - self._at
        if rest:
            raise SignatureError(f"{self._what} goes on for {rest} bytes behind its end")

    def _take(self, count: int, name: str) -> bytes:
        if count > len(self._raw) - self._at:
            raise SignatureError(f"{self._what} is cut short in its {name}")
        self._at += count
        return self._raw[self._at - count : self._at]


def _ed25519(raw: bytes, what: str, size: int) -> bytes:
    """The second of the two strings that a key and a signature consist of: the bytes of Ed25519."""
    fields = _Fields(raw, what)
    kind = fields.string("type")
    if kind != ED25519:
        raise SignatureError(f"{what} is of type {_shown(kind)}; only {ED25519.decode()} is taken")
    value = fields.string("value")
    fields.end()
    if len(value) != size:
        raise SignatureError(f"{what} has {len(value)} bytes instead of {size}")
    return value


def _shown(raw: bytes) -> str:
    return repr(raw[:MAX_SHOWN_BYTES])[1:] + ("…" if len(raw) > MAX_SHOWN_BYTES else "")


# --- key files --------------------------------------------------------------------------------------------------


def _read(path: Path) -> bytes:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with os.fdopen(fd, "rb") as file:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise ConfigError(f"{path}: is not a regular file")
            data = file.read(MAX_KEY_FILE_BYTES + 1)
    except FileNotFoundError:
        raise NotFoundError(f"{path}: there is no such key file") from None
    except OSError as exc:
        raise ConfigError(f"{path}: cannot be read: {exc.strerror}") from exc
    if len(data) > MAX_KEY_FILE_BYTES:
        raise InvalidInputError(f"{path}: is larger than {MAX_KEY_FILE_BYTES} bytes, so it is no key file")
    return data


def _is_public(data: bytes) -> bool:
    try:
        PublicKey.parse(data.decode("ascii"))
    except (InvalidInputError, UnicodeDecodeError):
        return False
    return True


def _parse_private(path: Path, data: bytes) -> "Ed25519PrivateKey":
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_ssh_private_key

    try:
        kind, cipher = _head(data)
        if kind != ED25519:
            raise InvalidInputError(f"{path}: is a key of type {_shown(kind)}; it must be ssh-ed25519", hint=NEW_KEY)
        if cipher != b"none":
            raise InvalidInputError(
                f"{path}: is locked with a passphrase, which nobody is asked for",
                hint=f"'ssh-add {path}' gives the key to ssh-agent",
            )
        key = load_ssh_private_key(data, None)
    except (SignatureError, ValueError, UnsupportedAlgorithm) as exc:
        raise InvalidInputError(f"{path}: is no whole OpenSSH private-key file: {exc}", hint=NEW_KEY) from exc
    assert isinstance(key, Ed25519PrivateKey)
    return key


def _head(data: bytes) -> tuple[bytes, bytes]:
    """(type of the key, cipher), which stand in front of the secret part (PROTOCOL.key of OpenSSH)."""
    _, begin, rest = data.partition(KEY_FILE_BEGIN)
    text, end, _ = rest.partition(KEY_FILE_END)
    raw = binascii.a2b_base64(text)
    if not begin or not end or not raw.startswith(KEY_FILE_MAGIC):
        raise ValueError(f"it is not framed by {KEY_FILE_BEGIN.decode()} and its end")
    fields = _Fields(raw, "the file", len(KEY_FILE_MAGIC))
    cipher, _, _ = map(fields.string, ("cipher", "way from passphrase to key", "options of that"))
    fields.number("number of keys")
    return _Fields(fields.string("public key"), "its public key").string("type"), cipher
