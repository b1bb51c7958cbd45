"""What can be set: the frozen settings model. ``alknet config schema`` prints it as JSON Schema.

Every field says in its schema whether a change of it is *live* or needs a *restart*. A field exists only when
something reads it.
"""

import contextlib
import ipaddress
import re
import shlex
from datetime import UTC, datetime
from typing import Annotated, Any, Final, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    Strict,
    model_validator,
)

from alknet.config.addresses import ListenAddress, split_host_port
from alknet.errors import InvalidInputError
from alknet.keys import PublicKey

__all__ = [
    "Audit",
    "Limits",
    "Model",
    "Node",
    "PeerEntry",
    "PeerSsh",
    "Role",
    "Settings",
    "Ssh",
    "Tls",
    "parse_duration",
]

PEER_ID: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,62}\Z")
DEFAULT_PORT: Final = 7022
DNS_NAME: Final = re.compile(
    r"(?=.{1,253}\Z)(?!(.*\.)?\d+\Z)(\*\.)?(?!-)[a-zA-Z0-9_-]{1,63}(?<!-)(\.(?!-)[a-zA-Z0-9_-]{1,63}(?<!-))*\Z"
)
SCOPE: Final = re.compile(r"(\*|[a-z0-9_.-]+)(:(\*|[a-zA-Z0-9_.-]+))*\Z")
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
    if not value.startswith("/"):
        raise ValueError("must be an absolute path")
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
Listen = Annotated[
    ListenAddress,
    PlainValidator(_listen, json_schema_input_type=str),
    PlainSerializer(str, return_type=str),
]
AbsolutePath = Annotated[str, AfterValidator(_absolute)]

LIVE: Final[dict[str, Any]] = {"reload": "live"}
RESTART: Final[dict[str, Any]] = {"reload": "restart"}


class Model(BaseModel):
    """Frozen, with unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, strict=False)


class Node(Model):
    """[node]: the daemon itself."""

    name: str = Field(
        "",
        max_length=64,
        description="Name shown to people; empty means the host's name.",
        json_schema_extra=RESTART,
    )
    listen: tuple[Listen, ...] = Field(
        (ListenAddress("127.0.0.1", DEFAULT_PORT),),
        min_length=1,
        max_length=64,
        description="Addresses to listen on, host:port; a loopback address takes 127.0.0.1 and ::1 together.",
        json_schema_extra=RESTART,
    )
    drain_timeout: Duration = Field(
        2.0,
        le=3600,
        description="How long a stopping node lets running work finish.",
        json_schema_extra=LIVE,
    )


class Tls(Model):
    """[tls]: the certificate that the node shows on TLS and QUIC."""

    mode: Literal["self-signed", "files"] = Field(
        "self-signed",
        description="self-signed: the node makes its certificate itself and keeps it in keys/; files: cert and key"
        " name it, and it is read again when they change.",
        json_schema_extra=LIVE,
    )
    cert: Annotated[str, AfterValidator(_file)] = Field(
        "",
        description="PEM file with the certificate and then its issuers, for mode files.",
        json_schema_extra=LIVE,
    )
    key: Annotated[str, AfterValidator(_file)] = Field(
        "",
        description="PEM file with the certificate's private key, not encrypted and closed to others, for mode files.",
        json_schema_extra=LIVE,
    )
    names: tuple[Annotated[str, AfterValidator(_host_name)], ...] = Field(
        (),
        max_length=64,
        description="DNS names and IP addresses that a self-signed certificate is made for, when one is made; empty"
        " means this machine's.",
        json_schema_extra=LIVE,
    )

    @model_validator(mode="after")
    def _files_belong_to_their_mode(self) -> "Tls":
        if self.mode == "files" and not (self.cert and self.key):
            missing = " and ".join(name for name in ("cert", "key") if not getattr(self, name))
            raise ValueError(f'mode = "files" needs {missing}, the absolute path of a PEM file')
        if self.mode == "self-signed" and (self.cert or self.key):
            raise ValueError('cert and key are for mode = "files": set that, or remove them')
        return self


class Ssh(Model):
    """[ssh]: sessions over SSH, for all peers."""

    shell: Switch = Field(
        True,
        description="Whether peers with ssh:shell get an interactive shell.",
        json_schema_extra=LIVE,
    )
    exec: Switch = Field(True, description="Whether peers with ssh:exec may run commands.", json_schema_extra=LIVE)
    env_allow: tuple[str, ...] = Field(
        ("LANG", "LC_*"),
        max_length=64,
        description="Names of environment variables that a client may set; * and ? are globs.",
        json_schema_extra=LIVE,
    )


class Limits(Model):
    """[limits]: bounds against strangers and mistakes."""

    connections: Count = Field(
        4096,
        ge=1,
        description="Open connections in all; further ones are closed at once.",
        json_schema_extra=LIVE,
    )
    connections_per_address: Count = Field(
        100,
        ge=1,
        description="Connections from one address (IPv6: one /64) before they have logged in.",
        json_schema_extra=LIVE,
    )
    half_open: Count = Field(
        1000,
        ge=1,
        description="Connections that have not logged in, from all addresses together.",
        json_schema_extra=LIVE,
    )
    login_grace: Duration = Field(
        30.0,
        gt=0,
        le=3600,
        description="How long a connection may take to log in.",
        json_schema_extra=LIVE,
    )
    auth_attempts: Count = Field(
        10,
        ge=1,
        le=100,
        description="Refused login attempts on one connection before it is closed (an agent may hold many keys).",
        json_schema_extra=LIVE,
    )
    failed_logins_per_address: Count = Field(
        30,
        ge=1,
        description="Connections from one address that failed to log in within a minute before the address"
        " has to wait a minute; loopback is exempt.",
        json_schema_extra=LIVE,
    )
    connections_per_peer: Count = Field(
        256,
        ge=1,
        description="Connections of one peer that are logged in at the same time.",
        json_schema_extra=LIVE,
    )
    channels_per_connection: Count = Field(
        64,
        ge=1,
        le=1024,
        description="Open SSH channels of one connection.",
        json_schema_extra=LIVE,
    )


class Audit(Model):
    """[audit]: the record of decisions."""

    required: Switch = Field(False, description="Refuse an act whose intent cannot be written.", json_schema_extra=LIVE)


class Role(Model):
    """[roles.NAME]: a named set of scopes."""

    scopes: tuple[Scope, ...] = Field((), max_length=256, description="Scopes that the role grants.")


class PeerSsh(Model):
    """The ssh table of a peer: who its sessions run as and what they may run."""

    user: str | None = Field(
        None,
        min_length=1,
        max_length=32,
        description="Operating-system user that sessions run as; needed when the node runs as root.",
    )
    as_daemon: Switch = Field(
        False,
        description="Whether sessions may run as the node's own user when that is not root; equal to owner.",
    )
    shell: AbsolutePath | None = Field(None, description="Login shell, instead of the user's own.")
    force_command: str | None = Field(
        None,
        min_length=1,
        max_length=4096,
        description="Runs instead of whatever is asked for; that is in SSH_ORIGINAL_COMMAND.",
    )
    commands: tuple[Annotated[str, AfterValidator(_command)], ...] | None = Field(
        None,
        max_length=256,
        description="The only commands that may be run, without a shell; a word may hold * and ?, and a last"
        " word * stands for any further words.",
    )

    @model_validator(mode="after")
    def _one_of(self) -> "PeerSsh":
        if self.force_command is not None and self.commands is not None:
            raise ValueError("force_command and commands exclude each other: remove one")
        return self


class PeerEntry(Model):
    """One peer: an entry of ``peers.d/NAME.toml`` or of ``[[peers]]``."""

    id: PeerId = Field(description="Stable name; in peers.d it is the file's name and may be left out.")
    display_name: str = Field("", max_length=128, description="Name shown to people.")
    keys: tuple[Key, ...] = Field((), max_length=64, description="OpenSSH public-key lines.")
    scopes: tuple[Scope, ...] = Field((), max_length=256, description="Scopes granted to the peer.")
    roles: tuple[str, ...] = Field((), max_length=64, description="Names of [roles] granted to the peer.")
    enabled: Switch = Field(True, description="A disabled peer is refused everywhere.")
    expires_at: Annotated[datetime, BeforeValidator(_no_number), AfterValidator(_utc)] | None = Field(
        None, description="When the peer's access ends, live connections included."
    )
    addresses: tuple[Annotated[str, AfterValidator(_address)], ...] = Field(
        (), max_length=16, description="Where `alknet ssh` reaches the peer, host:port, in order."
    )
    host_key: Key | None = Field(None, description="The SSH host key that the peer must prove when it is dialled.")
    ssh: PeerSsh = Field(PeerSsh(), description="SSH sessions of the peer.")


class Settings(Model):
    """The whole configuration of a node."""

    node: Node = Node()
    tls: Tls = Tls()
    ssh: Ssh = Ssh()
    limits: Limits = Limits()
    audit: Audit = Audit()
    roles: dict[str, Role] = Field({}, description="Named sets of scopes.", json_schema_extra=LIVE)
    peers: tuple[PeerEntry, ...] = Field(
        (),
        max_length=10_000,
        description="Known peers, from peers.d and [[peers]].",
        json_schema_extra=LIVE,
    )
