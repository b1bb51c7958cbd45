"""OpenSSH certificates as bytes (OpenSSH's PROTOCOL.certkeys): parsed, and nothing more.

Pure. Whoever parses one knows what it says; that it is true needs :mod:`alknet.ssh.certificates`.
"""

import base64
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from alknet.errors import InvalidInputError
from alknet.keys import PublicKey

__all__ = ["SUFFIX", "ParsedCertificate", "key_type", "parse_certificate", "strings"]

SUFFIX: Final = "-cert-v01@openssh.com"
KEY_FIELDS: Final = {
    # type of the certificate: type of its key, how many strings follow the type there
    "ssh-ed25519-cert-v01@openssh.com": ("ssh-ed25519", 1),
    "ssh-rsa-cert-v01@openssh.com": ("ssh-rsa", 2),
    "ecdsa-sha2-nistp256-cert-v01@openssh.com": ("ecdsa-sha2-nistp256", 2),
    "ecdsa-sha2-nistp384-cert-v01@openssh.com": ("ecdsa-sha2-nistp384", 2),
    "ecdsa-sha2-nistp521-cert-v01@openssh.com": ("ecdsa-sha2-nistp521", 2),
    "sk-ssh-ed25519-cert-v01@openssh.com": ("sk-ssh-ed25519@openssh.com", 2),
    "sk-ecdsa-sha2-nistp256-cert-v01@openssh.com": ("sk-ecdsa-sha2-nistp256@openssh.com", 3),
}
TYPES: Final = {1: "user", 2: "host"}
FOREVER: Final = 2**64 - 1
MAX_BYTES: Final = 32 * 1024
"""An RSA-4096 certificate has about 2 KiB; what a client sends to log in is bounded too."""
MAX_PRINCIPALS: Final = 256
"""OpenSSH's own bound."""
MAX_OPTIONS: Final = 64


@dataclass(frozen=True, slots=True)
class ParsedCertificate:
    """What a certificate says. `signed` is the part that `signature` is to be of, by the key `authority`."""

    key: PublicKey
    kind: str
    """``user`` or ``host``."""
    serial: int
    key_id: str
    principals: tuple[str, ...]
    valid_after: int
    """Seconds since 1970, as `valid_before`, which is the first second that it is not valid in."""
    valid_before: int | None
    """None for no end."""
    critical: Mapping[str, bytes]
    extensions: Mapping[str, bytes]
    authority: PublicKey
    signed: bytes = field(repr=False)
    signature: bytes = field(repr=False)

    @property
    def signature_algorithm(self) -> str:
        return next(strings(self.signature)).decode("ascii", "replace")


def key_type(blob: bytes) -> str:
    """The type in front of a key or a certificate in wire form; empty for what is neither."""
    try:
        return next(strings(blob)).decode("ascii")
    except (InvalidInputError, StopIteration, UnicodeDecodeError):
        return ""


def strings(data: bytes) -> Iterator[bytes]:
    """The strings, each after its length, that `data` consists of; `InvalidInputError` where it is cut short."""
    reader = _Reader(data)
    while reader.at < len(data):
        yield reader.string()


def parse_certificate(blob: bytes) -> ParsedCertificate:
    """Read a certificate in wire form; raises `InvalidInputError` that says what is wrong with it."""
    if len(blob) > MAX_BYTES:
        raise InvalidInputError(f"is longer than {MAX_BYTES} bytes")
    reader = _Reader(blob)
    kind = _text(reader.string(), "type")
    if kind not in KEY_FIELDS:
        raise InvalidInputError(f"is no certificate of a known kind: {kind[:64]!r}")
    plain, count = KEY_FIELDS[kind]
    reader.string()  # random, so that nobody can choose what is signed
    key = _public_key(plain, _string(plain.encode()) + b"".join(_string(reader.string()) for _ in range(count)))
    serial, type_number = reader.number(8), reader.number(4)
    if type_number not in TYPES:
        raise InvalidInputError(f"is neither of a user nor of a host, but of type {type_number}")
    key_id = _text(reader.string(), "key id")
    principals = tuple(_text(name, "principal") for name in strings(reader.string()))
    if len(principals) > MAX_PRINCIPALS or "" in principals:
        raise InvalidInputError(f"has an empty principal, or more than {MAX_PRINCIPALS}")
    valid_after, valid_before = reader.number(8), reader.number(8)
    critical = _options(reader.string(), "critical option")
    extensions = _options(reader.string(), "extension")
    reader.string()  # reserved
    signer = reader.string()
    authority = _public_key(key_type(signer), signer)  # whose kind is none of a certificate: those certify nobody
    signed = blob[: reader.at]
    signature = reader.string()
    if reader.at != len(blob) or key_type(signature) == "":
        raise InvalidInputError("is damaged: its signature is")
    return ParsedCertificate(
        key=key,
        kind=TYPES[type_number],
        serial=serial,
        key_id=key_id,
        principals=principals,
        valid_after=valid_after,
        valid_before=None if valid_before == FOREVER else valid_before,
        critical=critical,
        extensions=extensions,
        authority=authority,
        signed=signed,
        signature=signature,
    )


def _options(data: bytes, what: str) -> dict[str, bytes]:
    """Name -> data. OpenSSH sorts them, and none stands there twice."""
    fields = list(strings(data))
    names = [_text(name, what) for name in fields[::2]]
    if len(fields) % 2 or len(names) > MAX_OPTIONS or len(set(names)) < len(names):
        raise InvalidInputError(f"has an {what} twice, cut short, or more than {MAX_OPTIONS}")
    return dict(zip(names, fields[1::2], strict=True))


def _public_key(kind: str, blob: bytes) -> PublicKey:
    try:
        return PublicKey.parse(f"{kind} {base64.b64encode(blob).decode('ascii')}")
    except InvalidInputError as exc:
        raise InvalidInputError(f"holds a key that is not accepted: it {exc}") from None


def _string(data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + data


def _text(data: bytes, what: str) -> str:
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        raise InvalidInputError(f"has a {what} that is no UTF-8 text") from None
    if "\0" in text:
        raise InvalidInputError(f"has a {what} with a NUL in it")
    return text


class _Reader:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self.at = 0

    def take(self, count: int) -> bytes:
        taken = self._data[self.at : self.at + count]
        if len(taken) < count:
            raise InvalidInputError("is cut short")
        self.at += count
        return taken

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "big")

    def string(self) -> bytes:
        return self.take(self.number(4))
