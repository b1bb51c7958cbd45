"""What can be set: the frozen settings model. ``alknet config schema`` prints it as JSON Schema.

Every field says in its schema whether a change of it is *live* or needs a *restart*. A field exists only when
something reads it.
"""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from alknet.config.addresses import ListenAddress
from alknet.config.base import Model
from alknet.config.fields import (
    DEFAULT_PORT,
    LIVE,
    RESTART,
    AbsolutePath,
    Count,
    Duration,
    FilePath,
    HostName,
    Listen,
    Modules,
    RevokedKey,
    RootName,
    Scope,
    SftpRoot,
    Switch,
)
from alknet.config.forwarding import Forwarding
from alknet.config.gateway import Gateway, Mcp
from alknet.config.peers import Dial, PeerEntry, UserCa

__all__ = [
    "Audit",
    "Call",
    "Exec",
    "Fs",
    "FsRoot",
    "Limits",
    "Model",
    "Node",
    "Role",
    "Services",
    "Settings",
    "Ssh",
    "Tls",
]


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
    cert: FilePath = Field(
        "",
        description="PEM file with the certificate and then its issuers, for mode files.",
        json_schema_extra=LIVE,
    )
    key: FilePath = Field(
        "",
        description="PEM file with the certificate's private key, not encrypted and closed to others, for mode files.",
        json_schema_extra=LIVE,
    )
    names: tuple[HostName, ...] = Field(
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
    sftp_root: SftpRoot = Field(
        "",
        description="The directory that SFTP and scp show as / to peers that have no sftp_root of their own; empty"
        " means that those are refused. %h is the home of the user that they run as, %u its name.",
        json_schema_extra=LIVE,
    )
    env_allow: tuple[str, ...] = Field(
        ("LANG", "LC_*"),
        max_length=64,
        description="Names of environment variables that a client may set; * and ? are globs.",
        json_schema_extra=LIVE,
    )
    user_ca: tuple[UserCa, ...] = Field(
        (),
        max_length=64,
        description="Keys whose user certificates let peers in: [[ssh.user_ca]] tables.",
        json_schema_extra=LIVE,
    )
    revoked_keys: tuple[RevokedKey, ...] = Field(
        (),
        max_length=10_000,
        description="Keys that let nobody in and certify nobody: fingerprints or public-key lines.",
        json_schema_extra=LIVE,
    )
    host_cert: FilePath = Field(
        "",
        description="OpenSSH host certificate of the node's host key, which clients that know its authority need not"
        " know themselves; 'alknet ca sign-host' makes one.",
        json_schema_extra=RESTART,
    )


class Call(Model):
    """[call]: operation calls, whatever carries them."""

    max_frame: Count = Field(
        1024 * 1024,
        ge=64 * 1024,
        le=64 * 1024 * 1024,
        description="Bytes of the largest message that is taken from a caller who has said who it is; what is larger"
        " travels in pieces, as a subscription.",
        json_schema_extra=LIVE,
    )
    max_in_flight: Count = Field(
        1024,
        ge=1,
        le=65536,
        description="Requests of one connection that run at the same time; further ones are refused.",
        json_schema_extra=LIVE,
    )
    routing: Literal["first", "round-robin", "least-latency"] = Field(
        "round-robin",
        description="Which of several peers that expose the same operation gets a call: the one that came first, each"
        " in turn, or of two drawn at random the one that should answer sooner.",
        json_schema_extra=LIVE,
    )
    default_timeout: Duration = Field(
        30.0,
        gt=0,
        le=86400,
        description="How long a call may take whose caller says nothing about it; subscriptions have no such end.",
        json_schema_extra=LIVE,
    )


class Services(Model):
    """[services]: what the node serves to callers of operations."""

    modules: Modules = Field(
        (),
        max_length=64,
        description="Python modules whose operations the node serves; a change of the list is live, a change of a"
        " module's code needs a restart.",
        json_schema_extra=LIVE,
    )


class FsRoot(Model):
    """[fs] roots: one directory that is served, with all that is below it."""

    path: AbsolutePath = Field(max_length=4096, description="The directory.")
    write: Switch = Field(True, description="Whether peers with fs:write may change what is in it.")


def _root(value: object) -> object:
    return {"path": value} if isinstance(value, str) else value


Root = Annotated[FsRoot, BeforeValidator(_root, json_schema_input_type=str | FsRoot)]


class Fs(Model):
    """[fs]: the operations fs/*, which read and write files."""

    roots: dict[RootName, Root] = Field(
        {},
        max_length=64,
        description="Directories that peers with fs:read and fs:write reach, and nothing outside of them: NAME ="
        ' "/dir", or NAME = { path = "/dir", write = false }; without any, the node serves no fs/* operations.',
        json_schema_extra=LIVE,
    )


class Exec(Model):
    """[exec]: the operation exec/run, which runs commands."""

    enabled: Switch = Field(
        False,
        description="Whether peers with exec:run may run commands, each as the user that its ssh table says and within"
        " its commands or force_command; env_allow of [ssh] holds for them too.",
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
        description="Open SSH sessions of one connection.",
        json_schema_extra=LIVE,
    )
    forwards_per_connection: Count = Field(
        256,
        ge=0,
        le=4096,
        description="Forwarded connections and listeners of one SSH connection that are open at the same time.",
        json_schema_extra=LIVE,
    )
    byte_channels_per_peer: Count = Field(
        256,
        ge=0,
        le=4096,
        description="Byte channels of one peer that are open at the same time, over all of its connections.",
        json_schema_extra=LIVE,
    )


class Audit(Model):
    """[audit]: the record of decisions."""

    required: Switch = Field(False, description="Refuse an act whose intent cannot be written.", json_schema_extra=LIVE)
    targets: Switch = Field(
        False,
        description="Record where peers forward to and listen; without it, only that they do, and by which rule.",
        json_schema_extra=LIVE,
    )


class Role(Model):
    """[roles.NAME]: a named set of scopes."""

    scopes: tuple[Scope, ...] = Field((), max_length=256, description="Scopes that the role grants.")


class Settings(Model):
    """The whole configuration of a node."""

    node: Node = Node()
    tls: Tls = Tls()
    ssh: Ssh = Ssh()
    forwarding: Forwarding = Forwarding()
    call: Call = Call()
    gateway: Gateway = Gateway()
    mcp: Mcp = Mcp()
    services: Services = Services()
    fs: Fs = Fs()
    exec: Exec = Exec()
    limits: Limits = Limits()
    audit: Audit = Audit()
    dial: tuple[Dial, ...] = Field(
        (),
        max_length=256,
        description="Connections to peers that the node keeps up: [[dial]] tables.",
        json_schema_extra=LIVE,
    )
    roles: dict[str, Role] = Field({}, description="Named sets of scopes.", json_schema_extra=LIVE)
    peers: tuple[PeerEntry, ...] = Field(
        (),
        max_length=10_000,
        description="Known peers, from peers.d and [[peers]].",
        json_schema_extra=LIVE,
    )
