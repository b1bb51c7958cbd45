"""Peers in the configuration: who they are, what they may do, what they bring, and which of them are dialled."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, ConfigDict, Field, model_validator

from alknet.config.base import Model
from alknet.config.fields import (
    AbsolutePath,
    Address,
    Command,
    Count,
    Expiry,
    Key,
    NameGlob,
    NodeKey,
    PeerId,
    Principal,
    PrincipalGlob,
    ResourceEntry,
    ResourceType,
    Scope,
    Segment,
    SftpRoot,
    Switch,
)
from alknet.config.forwarding import ForwardRules

__all__ = ["Dial", "Expose", "PeerEntry", "PeerSsh", "UserCa"]


class UserCa(Model):
    """[[ssh.user_ca]]: a key whose user certificates let peers in."""

    key: Key = Field(description="Its OpenSSH public-key line.")
    principals: tuple[PrincipalGlob, ...] = Field(
        min_length=1,
        max_length=256,
        description="Principals that it may sign for; * and ? are globs. Which peer each is for, the peers say.",
    )
    revoked_serials: tuple[Annotated[Count, Field(ge=0, le=2**64 - 1)], ...] = Field(
        (), max_length=10_000, description="Serial numbers of certificates of this key that count no more."
    )


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
    commands: tuple[Command, ...] | None = Field(
        None,
        max_length=256,
        description="The only commands that may be run, without a shell; a word may hold * and ?, and a last"
        " word * stands for any further words.",
    )

    sftp_root: SftpRoot | None = Field(
        None,
        description="The directory that SFTP and scp show as /, instead of that of [ssh]; %h is the user's home, %u the"
        " user's name.",
    )

    @model_validator(mode="after")
    def _one_of(self) -> "PeerSsh":
        if self.force_command is not None and self.commands is not None:
            raise ValueError("force_command and commands exclude each other: remove one")
        if self.force_command is not None and self.force_command.split()[0] == "internal-sftp":
            raise ValueError("SFTP needs no force_command: grant sftp:read and sftp:write, not ssh:exec and ssh:shell")
        return self


class Expose(Model):
    """expose of a peer: its operations as operations of this node."""

    prefix: Segment = Field(description="What stands before their names here: PREFIX/fs/read.")
    scope: Scope | None = Field(
        None, description="The scope that callers here need; by default the operation's name here, with : for /."
    )


def _expose(value: object) -> object:
    return {"prefix": value} if isinstance(value, str) else value


class PeerEntry(Model):
    """One peer: an entry of ``peers.d/NAME.toml`` or of ``[[peers]]``."""

    id: PeerId = Field(description="Stable name; in peers.d it is the file's name and may be left out.")
    display_name: str = Field("", max_length=128, description="Name shown to people.")
    keys: tuple[Key, ...] = Field((), max_length=64, description="OpenSSH public-key lines.")
    principals: tuple[Principal, ...] = Field(
        (),
        max_length=64,
        description="Principals of user certificates that stand for the peer; see [[ssh.user_ca]].",
    )
    scopes: tuple[Scope, ...] = Field((), max_length=256, description="Scopes granted to the peer.")
    roles: tuple[str, ...] = Field((), max_length=64, description="Names of [roles] granted to the peer.")
    resources: dict[ResourceType, Annotated[tuple[ResourceEntry, ...], Field(max_length=256)]] = Field(
        {},
        max_length=64,
        description="Type of resource -> what may be done and with which, for operations that ask: read (with all),"
        " read:alpha (with that one), *:beta-* (everything, with those that match).",
    )
    enabled: Switch = Field(True, description="A disabled peer is refused everywhere.")
    expires_at: Expiry | None = Field(None, description="When the peer's access ends, live connections included.")
    addresses: tuple[Address, ...] = Field(
        (), max_length=16, description="Where the peer is reached, host:port, in order."
    )
    via: PeerId | None = Field(
        None, description="The peer that it is reached through, over the connection that those two have; as with -J."
    )
    node_key: NodeKey | None = Field(
        None, description="The node key that the peer must prove when operations are called on it."
    )
    host_key: Key | None = Field(None, description="The SSH host key that the peer must prove when it is dialled.")
    host_ca: Key | None = Field(
        None,
        description="The key that signs its SSH host certificate, which is for its address or its id.",
    )
    offers: tuple[NameGlob, ...] = Field(
        (),
        max_length=256,
        description="Operations that the peer may bring while it is connected: names, where * and ? are globs; without"
        " any it brings none.",
    )
    expose: Annotated[Expose, BeforeValidator(_expose, json_schema_input_type=str | Expose)] | None = Field(
        None,
        description='Make what the peer brings operations of this node: "PREFIX", or { prefix = "PREFIX", scope ='
        ' "S" }. Peers with the same prefix share the calls.',
    )
    ssh: PeerSsh = Field(PeerSsh(), description="SSH sessions of the peer.")
    forward: ForwardRules = Field(
        (), description="Forwards of the peer: rules that are read before those of [forwarding]."
    )


class Dial(Model):
    """[[dial]]: a connection to a peer that the node keeps up."""

    model_config = ConfigDict(serialize_by_alias=True)

    peer: PeerId = Field(description="The peer, which must have an entry; its node_key is what it must prove.")
    address: Address | None = Field(None, description="Where it is, host:port, instead of the entry's addresses.")
    imports: Switch = Field(
        True,
        alias="import",
        description="Whether this node takes the operations that the peer has for it, as far as the peer's entry offers"
        " them; the other direction is the peer's to say.",
    )
    carrier: Literal["auto", "quic", "tls"] = Field(
        "auto", description="What to reach it over; auto races QUIC and TLS, and takes TLS to this machine."
    )
