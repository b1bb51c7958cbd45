"""The kinds of values that settings have: what each looks like in a file, what is refused, and in what words.

A validator's `ValueError` is the part of an error that says what is allowed; `alknet.config.load` puts file, line, key
and what was found in front of it.
"""

import contextlib
import ipaddress
import keyword
import re
import shlex
from datetime import UTC, datetime
from typing import Annotated, Any, Final

from pydantic import AfterValidator, BeforeValidator, PlainSerializer, PlainValidator, Strict

from alknet.config.addresses import ListenAddress, split_host_port
from alknet.errors import InvalidInputError
from alknet.keys import PublicKey

__all__ = [
    "DEFAULT_PORT",
    "DNS_NAME",
    "LIVE",
    "PEER_ID",
    "RESTART",
    "AbsolutePath",
    "Address",
    "Command",
    "Count",
    "Duration",
    "Expiry",
    "FilePath",
    "HostName",
    "HostPattern",
    "Key",
    "Listen",
    "Modules",
    "NameGlob",
    "NodeKey",
    "Origin",
    "PeerId",
    "Principal",
    "PrincipalGlob",
    "RedirectHost",
    "ResourceEntry",
    "ResourceType",
    "RevokedKey",
    "RootName",
    "Scope",
    "Segment",
    "SftpRoot",
    "Switch",
    "parse_duration",
]

PEER_ID: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,62}\Z")
DEFAULT_PORT: Final = 7022
DNS_NAME: Final = re.compile(
    r"(?=.{1,253}\Z)(?!(.*\.)?\d+\Z)(\*\.)?(?!-)[a-zA-Z0-9_-]{1,63}(?<!-)(\.(?!-)[a-zA-Z0-9_-]{1,63}(?<!-))*\Z"
)
SCOPE: Final = re.compile(r"(\*|[a-zA-Z0-9_.-]+)(:(\*|[a-zA-Z0-9_.-]+))*\Z")
RESOURCE_TYPE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}\Z")
ROOT_NAME: Final = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,62}\Z")
RESOURCE_ENTRY: Final = re.compile(r"(\*|[A-Za-z0-9_.-]+)(:.+)?\Z")
NAME_GLOB: Final = re.compile(r"[A-Za-z0-9_*?-]+(/[A-Za-z0-9_*?-]+)*\Z")
PRINCIPAL: Final = re.compile(r"[^\s,*?]{1,255}\Z")
PRINCIPAL_GLOB: Final = re.compile(r"[^\s,]{1,255}\Z")
FINGERPRINT: Final = re.compile(r"SHA256:[A-Za-z0-9+/]{43}\Z")
SEGMENT: Final = re.compile(r"[A-Za-z0-9_-]{1,63}\Z")
MAX_ENTRY_CHARS: Final = 512
ORIGIN: Final = re.compile(r"[a-z][a-z0-9+.-]{0,30}://([a-z0-9._-]{1,253}|\[[0-9a-f:.]{2,45}\])(:[1-9][0-9]{0,4})?\Z")
MAX_PORT: Final = 65535
MAX_MODULE_CHARS: Final = 256
_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)\Z")
_SECONDS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def parse_duration(value: object) -> float:
    """Seconds from ``"2s"``, ``"250ms"``, ``"15m"``, ``"1h"``, ``"30d"`` or a bare number of seconds."""
    if isinstance(value, int | float) and not isinstance(value, bool) and value >= 0:
        return float(value)
    match = _DURATION.match(value) if isinstance(value, str) else None
    if match is None:
        raise ValueError('must be a duration such as "250ms", "2s", "15m", "1h" or "30d"')
    return float(match[1]) * _SECONDS[match[2]]


def _scope(value: str) -> str:
    if not SCOPE.match(value):
        raise ValueError('must be a scope such as "ssh:exec", "ssh:*" or "*"')
    return value


def _peer_id(value: str) -> str:
    if not PEER_ID.match(value):
        raise ValueError("must be 1 to 63 of a-z, 0-9 and -, and must not start with -")
    return value


def _public_key(value: object) -> PublicKey:
    if isinstance(value, PublicKey):
        return value
    if not isinstance(value, str):
        raise ValueError("must be an OpenSSH public-key line in quotes")
    try:
        return PublicKey.parse(value)
    except InvalidInputError as exc:
        raise ValueError(str(exc)) from None


def _node_key(value: object) -> PublicKey:
    key = _public_key(value)
    if key.kind != "ssh-ed25519":
        raise ValueError(f"is of type {key.kind}; a node key is always ssh-ed25519 ('alknet id' prints it)")
    return key


def _principal(value: str) -> str:
    if not PRINCIPAL.match(value) or not value.isprintable():
        raise ValueError("must be one principal as it stands in certificates, without spaces, commas, * and ?")
    return value


def _principal_glob(value: str) -> str:
    if not PRINCIPAL_GLOB.match(value) or not value.isprintable():
        raise ValueError('must be one principal, where * and ? are globs, such as "alice", "*@example.org" or "*"')
    return value


def _revoked_key(value: str) -> str:
    """A key's fingerprint, of the key itself or as it is."""
    if FINGERPRINT.match(value):
        return value
    try:
        return PublicKey.parse(value).fingerprint
    except InvalidInputError:
        raise ValueError('must be a fingerprint, "SHA256:…" as ssh-keygen -l prints it, or a public-key line') from None


def _listen(value: object) -> ListenAddress:
    if isinstance(value, ListenAddress):
        return value
    if not isinstance(value, str):
        raise ValueError('must be an address such as "127.0.0.1:7022"')
    return ListenAddress.parse(value)


def _no_number(value: object) -> object:
    if isinstance(value, int | float):
        raise ValueError("must be a date and time, as in 2030-01-31T12:00:00Z")
    return value


def _utc(value: datetime) -> datetime:
    if value.tzinfo is None:
        raise ValueError("must say its time zone, as in 2030-01-31T12:00:00Z")
    return value.astimezone(UTC)


def _address(value: str) -> str:
    split_host_port(value, default_port=DEFAULT_PORT)
    return value


def _command(value: str) -> str:
    try:
        shlex.split(value)
    except ValueError as exc:
        raise ValueError(f"cannot be split into words as a shell would: {exc}") from None
    return value


def _absolute(value: str) -> str:
    if not value.startswith("/") or "\0" in value:
        raise ValueError("must be an absolute path")
    return value


def _sftp_root(value: str) -> str:
    plain = value.replace("%%", "").replace("%u", "").removeprefix("%h")
    if value and (not value.startswith(("/", "%h")) or "%" in plain or "\0" in value or ".." in value.split("/")):
        raise ValueError("must be an absolute path, which may begin with %h, the user's home, and hold %u, its name")
    return value


def _file(value: str) -> str:
    if value and (not value.startswith("/") or "\0" in value):
        raise ValueError("must be the absolute path of a file")
    return value


def _host_name(value: str) -> str:
    """A name or an address that a certificate can be made for."""
    with contextlib.suppress(ValueError):
        return str(ipaddress.IPv6Address(value) if ":" in value and "%" not in value else ipaddress.IPv4Address(value))
    if not DNS_NAME.match(value):
        raise ValueError("must be a DNS name (in its ASCII form) or an IP address, without a port")
    return value


def _host_pattern(value: str) -> str:
    """A name or an address, with a port or without one, or ``*``."""
    name, port = value, ""
    if value == "*":
        return value
    if value.startswith("[") or value.count(":") == 1:
        name, _, port = value.rpartition(":") if not value.endswith("]") else (value, "", "")
    try:
        host = _host_name(name.removeprefix("[").removesuffix("]").lower().removesuffix("."))
    except ValueError:
        raise ValueError('must be NAME or NAME:PORT, or "*", such as "node.example:7022"') from None
    if port and not (port.isascii() and port.isdigit() and 0 < int(port) <= MAX_PORT):
        raise ValueError(f'must be NAME or NAME:PORT, without "https://", and the port from 1 to {MAX_PORT}')
    shown = f"[{host}]" if ":" in host and port else host
    return f"{shown}:{port}" if port else shown


def _redirect_host(value: str) -> str:
    """One host as it stands in a URL; nothing for none."""
    host = _host_pattern(value) if value else ""
    if "*" in host:
        raise ValueError('must be one host, NAME or NAME:PORT, such as "node.example:7022"')
    return f"[{host}]" if host.count(":") > 1 and not host.startswith("[") else host


def _origin(value: str) -> str:
    if value not in ("*", "null") and not ORIGIN.match(value):
        raise ValueError('must be a web origin in lower case, such as "https://app.example" or "http://localhost:3000"')
    if (value.startswith("https:") and value.endswith(":443")) or (value.startswith("http:") and value.endswith(":80")):
        raise ValueError("must leave out the usual port, as browsers do")
    return value


def _resource_type(value: str) -> str:
    if not RESOURCE_TYPE.match(value):
        raise ValueError("must be 1 to 63 of letters, digits, '_', '.' and '-', as in \"project\"")
    return value


def _resource_entry(value: str) -> str:
    if not RESOURCE_ENTRY.match(value) or len(value) > MAX_ENTRY_CHARS or not value.isprintable():
        raise ValueError('must be what may be done, and with which, such as "read", "read:alpha" or "*:beta-*"')
    return value


def _name_glob(value: str) -> str:
    if not NAME_GLOB.match(value) or len(value) > MAX_ENTRY_CHARS:
        raise ValueError('must be the name of an operation, where * and ? are globs, such as "fs/read", "fs/*" or "*"')
    return value


def _segment(value: str) -> str:
    if not SEGMENT.match(value):
        raise ValueError("must be 1 to 63 of letters, digits, '_' and '-', without '/'")
    return value


def _root_name(value: str) -> str:
    if not ROOT_NAME.match(value):
        raise ValueError("must be 1 to 63 of letters, digits, '_', '.' and '-', and must not start with '.'")
    return value


def _module(value: str) -> str:
    words = value.split(".")
    is_name = all(word.isidentifier() and not keyword.iskeyword(word) for word in words)
    if not is_name or len(value) > MAX_MODULE_CHARS:
        raise ValueError('must be the dotted name of a Python module, such as "package.module"')
    return value


def _distinct(values: tuple[str, ...]) -> tuple[str, ...]:
    twice = next((value for value in values if values.count(value) > 1), None)
    if twice is not None:
        raise ValueError(f"{twice!r} stands in it twice")
    return values


# TOML has its own booleans, numbers and times: "no", "100" and 2030 are mistakes, not spellings of them.
Switch = Annotated[bool, Strict()]
Count = Annotated[int, Strict()]
Duration = Annotated[
    float,
    BeforeValidator(parse_duration, json_schema_input_type=str | float),
]
Scope = Annotated[str, AfterValidator(_scope)]
PeerId = Annotated[str, AfterValidator(_peer_id)]
Key = Annotated[
    PublicKey,
    PlainValidator(_public_key, json_schema_input_type=str),
    PlainSerializer(str, return_type=str),
]
NodeKey = Annotated[
    PublicKey,
    PlainValidator(_node_key, json_schema_input_type=str),
    PlainSerializer(str, return_type=str),
]
Listen = Annotated[
    ListenAddress,
    PlainValidator(_listen, json_schema_input_type=str),
    PlainSerializer(str, return_type=str),
]
AbsolutePath = Annotated[str, AfterValidator(_absolute)]
SftpRoot = Annotated[str, AfterValidator(_sftp_root)]
RootName = Annotated[str, AfterValidator(_root_name)]
FilePath = Annotated[str, AfterValidator(_file)]
HostPattern = Annotated[str, AfterValidator(_host_pattern)]
Origin = Annotated[str, AfterValidator(_origin)]
RedirectHost = Annotated[str, AfterValidator(_redirect_host)]
HostName = Annotated[str, AfterValidator(_host_name)]
Address = Annotated[str, AfterValidator(_address)]
NameGlob = Annotated[str, AfterValidator(_name_glob)]
Principal = Annotated[str, AfterValidator(_principal)]
PrincipalGlob = Annotated[str, AfterValidator(_principal_glob)]
RevokedKey = Annotated[str, AfterValidator(_revoked_key)]
Segment = Annotated[str, AfterValidator(_segment)]
Command = Annotated[str, AfterValidator(_command)]
Expiry = Annotated[datetime, BeforeValidator(_no_number), AfterValidator(_utc)]
ResourceType = Annotated[str, AfterValidator(_resource_type)]
ResourceEntry = Annotated[str, AfterValidator(_resource_entry)]
Modules = Annotated[tuple[Annotated[str, AfterValidator(_module)], ...], AfterValidator(_distinct)]

LIVE: Final[dict[str, Any]] = {"reload": "live"}
RESTART: Final[dict[str, Any]] = {"reload": "restart"}
