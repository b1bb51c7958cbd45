"""``peer``: the files of ``peers.d``."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from alknet.cli.app import Invocation, pass_invocation
from alknet.cli.client import ask_node, node_is_running
from alknet.cli.output import print_json, print_table
from alknet.errors import AlknetError, ConfigError, InvalidInputError, NotFoundError, UnavailableError, UsageError

if TYPE_CHECKING:
    from alknet.config.home import Home
    from alknet.keys import PublicKey

__all__ = ["peer"]


@click.group()
def peer() -> None:
    """Known remote identities: who may enter, with which key, and what they may do."""


@peer.command()
@click.argument("name")
@click.option("--key", multiple=True, metavar="FILE|LINE", help="Public key: a .pub file or its line.")
@click.option("--principal", multiple=True, metavar="P", help="Principal of user certificates that stands for it.")
@click.option("--scope", multiple=True, metavar="S", help="Scope to grant, such as ssh:exec.")
@click.option("--role", multiple=True, metavar="R", help="Role to grant, from [roles].")
@click.option("--user", metavar="USER", help="Operating-system user that its sessions run as.")
@click.option("--as-daemon", is_flag=True, help="Let its sessions run as the node's own user.")
@click.option("--sftp-root", metavar="DIR", help="The directory that SFTP and scp show it as /.")
@click.option(
    "--forward",
    multiple=True,
    metavar="DIRECTION:TARGET",
    help="What it may forward, such as local:db.corp:5432, remote:localhost:8080 or unix:/run/app.sock.",
)
@click.option("--address", multiple=True, metavar="HOST:PORT", help="Where to reach it.")
@click.option(
    "--node-key",
    metavar="FILE|LINE",
    help="The node key that it must prove when operations are called on it; with --address, its only Ed25519 --key.",
)
@click.option("--host-key", metavar="FILE|LINE", help="The SSH host key that it must prove.")
@click.option("--offers", multiple=True, metavar="GLOB", help="Operations that it may bring, such as 'fs/*' or '*'.")
@click.option("--expose", metavar="PREFIX", help="Make what it brings operations of this node: PREFIX/fs/read.")
@click.option("--via", metavar="PEER", help="The peer that it is reached through, as with -J.")
@click.option("--dial", is_flag=True, help="Keep up a connection to it from now on: a [[dial]] table of alknet.toml.")
@pass_invocation
def add(
    invocation: Invocation,
    name: str,
    key: tuple[str, ...],
    principal: tuple[str, ...],
    scope: tuple[str, ...],
    role: tuple[str, ...],
    user: str | None,
    as_daemon: bool,
    sftp_root: str | None,
    forward: tuple[str, ...],
    address: tuple[str, ...],
    node_key: str | None,
    host_key: str | None,
    offers: tuple[str, ...],
    expose: str | None,
    via: str | None,
    dial: bool,
) -> None:
    """Add the peer NAME.

    \b
    alknet peer add ci --key ci.pub --scope 'ssh:exec' --user build
    alknet peer add alice --principal alice --scope 'ssh:*' --user alice    # with a certificate: see alknet ca
    alknet peer add ann --key ann.pub --user ann --scope 'sftp:*' --sftp-root /srv/ann    # files and nothing else
    alknet peer add worker --key 'ssh-ed25519 …' --offers '*' --expose w    # a node that dials this one
    alknet peer add hub --key 'ssh-ed25519 …' --address hub:7022 --dial     # a node that this one dials

    'alknet id' prints the line for a node's own keys.
    """
    from alknet.config.create import peer_text

    home = invocation.home
    _known_peers(home)  # a configuration that is wrong already is said before anything is written
    if home.peer(name).exists():
        raise UsageError(
            f"there is a peer {name!r} already",
            hint=f"edit {home.peer(name)}, or remove it with 'alknet peer remove {name}'",
        )
    values: dict[str, Any] = {}
    if key:
        values["keys"] = [_key_line(text) for text in key]
    if principal:
        values["principals"] = list(principal)
    if scope:
        values["scopes"] = list(scope)
    if role:
        values["roles"] = list(role)
    if address:
        values["addresses"] = list(address)
    if node_key is not None:
        values["node_key"] = _key_line(node_key)
    elif address and (own := _only_ed25519(values.get("keys", []))) is not None:
        values["node_key"] = str(own)
        click.echo(f"{name} must prove {own.fingerprint} when it is called; --node-key names another key", err=True)
    if host_key is not None:
        values["host_key"] = _key_line(host_key)
    if offers:
        if not key:
            raise UsageError(
                "--offers without --key: nobody can prove to be this peer when it dials in",
                hint="--key takes the node key that 'alknet id' prints there",
            )
        values["offers"] = list(offers)
    if expose is not None:
        if not offers:
            raise UsageError("--expose without --offers exposes nothing", hint="--offers '*' lets it bring everything")
        values["expose"] = {"prefix": expose}
    if via is not None:
        values["via"] = via
    if dial and not address:
        raise UsageError("--dial needs to know where the peer is", hint="--address HOST:PORT")
    if dial and "node_key" not in values:
        click.echo(
            f"nothing says which node key {name} must prove: known_nodes or a certificate has to, or --node-key",
            err=True,
        )
    ssh: dict[str, Any] = {"user": user} if user else {}
    if as_daemon:
        ssh["as_daemon"] = True
    if sftp_root is not None:
        ssh["sftp_root"] = sftp_root
    if forward:
        rules = [text.partition(":") for text in forward]
        values["forward"] = [
            {"action": "allow", "direction": direction, "target": target} for direction, _, target in rules
        ]
    if ssh:
        values["ssh"] = ssh
    _write(invocation, name, peer_text(values), dialled=True if dial else None)
    _report(invocation, name, "added")


@peer.command("list")
@pass_invocation
def list_peers(invocation: Invocation) -> None:
    """All peers of the configuration on disk."""
    peers = _known_peers(invocation.home)
    if invocation.json:
        print_json([p.model_dump(mode="json") for p in peers])
        return
    print_table(
        ("PEER", "NAME", "STATE", "KEYS", "SCOPES", "ROLES", "RUNS AS"),
        [
            (
                p.id,
                p.display_name,
                "enabled" if p.enabled else "disabled",
                len(p.keys),
                " ".join(p.scopes),
                " ".join(p.roles),
                p.ssh.user or ("the node's user" if p.ssh.as_daemon else ""),
            )
            for p in peers
        ],
        empty="no peers",
    )


@peer.command()
@click.argument("name")
@pass_invocation
def show(invocation: Invocation, name: str) -> None:
    """Everything about one peer."""
    found = next((p for p in _known_peers(invocation.home) if p.id == name), None)
    if found is None:
        raise NotFoundError(f"there is no peer {name!r}")
    body = found.model_dump(mode="json", exclude_none=True)
    body["fingerprints"] = [key.fingerprint for key in found.keys]
    if invocation.json:
        print_json(body)
    else:
        from alknet.config.create import peer_text

        click.echo(peer_text(body), nl=False)


@peer.command()
@click.argument("name")
@pass_invocation
def disable(invocation: Invocation, name: str) -> None:
    """Refuse the peer everywhere from now on, live connections included."""
    _set_enabled(invocation, name, False)


@peer.command()
@click.argument("name")
@pass_invocation
def enable(invocation: Invocation, name: str) -> None:
    """Let the peer in again."""
    _set_enabled(invocation, name, True)


@peer.command()
@click.argument("name")
@pass_invocation
def remove(invocation: Invocation, name: str) -> None:
    """Forget the peer; its connections end, and it is not dialled any more."""
    _write(invocation, name, None, dialled=False)
    _report(invocation, name, "removed")


def _known_peers(home: "Home") -> Any:
    from alknet.config.load import load

    return load(home).peers


def _set_enabled(invocation: Invocation, name: str, enabled: bool) -> None:
    import tomlkit

    _known_peers(invocation.home)  # says what is wrong with a file before it is edited
    document = tomlkit.parse(_peer_file(invocation, name).read_text(encoding="utf-8"))
    document["enabled"] = enabled
    _write(invocation, name, tomlkit.dumps(document))
    _report(invocation, name, "enabled" if enabled else "disabled")


def _peer_file(invocation: Invocation, name: str) -> Path:
    path: Path = invocation.home.peer(name)
    if not path.exists():
        where = "it stands in alknet.toml; edit that" if _is_inline(invocation, name) else ""
        raise NotFoundError(f"there is no {path}", hint=where or "'alknet peer list' shows the peers")
    return path


def _is_inline(invocation: Invocation, name: str) -> bool:
    return any(p.id == name for p in _known_peers(invocation.home))


def _write(invocation: Invocation, name: str, text: str | None, *, dialled: bool | None = None) -> None:
    """Replace (or remove, for None) a peer's file, and with `dialled` add or remove its ``[[dial]]`` table. If the
    whole configuration would then be wrong, or the running node refuses it, the old files come back."""
    from alknet.config.fields import PEER_ID
    from alknet.config.load import load

    if not PEER_ID.match(name):
        raise InvalidInputError(f"{name!r} is no peer id: 1 to 63 of a-z, 0-9 and -, not starting with -")
    home = invocation.home
    path = home.peer(name)
    if text is None:
        _peer_file(invocation, name)
    changes: dict[Path, str | None] = {path: text}
    if dialled is not None and (main := _main_text(home.config, name, is_dialled=dialled)) is not None:
        changes[home.config] = main
    before = {one: one.read_text(encoding="utf-8") if one.exists() else None for one in changes}
    running = node_is_running(home)
    if running:
        try:
            ask_node(invocation, "node/can", {"peer": "owner", "action": "node/reload"})  # connect first, then write
        except UnavailableError as exc:
            # An operator must be able to take a right away from a node that is too busy to answer: it watches the file.
            click.echo(f"the node does not answer ({exc}); it is left to notice the file", err=True)
            running = False
    home.peers.mkdir(mode=0o700, exist_ok=True)
    # What names the other file comes last, so that a node that watches them never sees one without the other.
    for one in sorted(changes, key=lambda one: (one is path) == (text is None)):
        _put(one, changes[one])
    try:
        load(home)
        if running:
            ask_node(invocation, "node/reload")
    except AlknetError as exc:
        for one, old in before.items():
            _put(one, old)
        if isinstance(exc, ConfigError):
            raise InvalidInputError(f"nothing was changed: {exc}") from None
        raise


def _put(path: Path, text: str | None) -> None:
    from alknet.config.home import write_atomically

    if text is None:
        path.unlink(missing_ok=True)
    else:
        write_atomically(path, text)


def _main_text(path: Path, peer: str, *, is_dialled: bool) -> str | None:
    """alknet.toml with the peer's ``[[dial]]`` table or without it; None if that changes nothing."""
    import tomlkit

    text = path.read_text(encoding="utf-8")
    document = tomlkit.parse(text)
    tables = document.get("dial", [])
    known = [index for index, one in enumerate(tables) if one.get("peer") == peer]
    if is_dialled == bool(known):
        return None
    if is_dialled:
        return f'{text.rstrip()}\n\n[[dial]]\npeer = "{peer}"\n'
    for index in reversed(known):
        del tables[index]
    if not tables:
        del document["dial"]
    return tomlkit.dumps(document)


def _key_line(text: str) -> str:
    """A public key given as a file's name or as the line itself."""
    from alknet.keys import PublicKey

    if " " not in text.strip():
        try:
            text = Path(text).expanduser().read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as exc:
            raise NotFoundError(f"{text}: cannot be read as a public key file: {exc}") from None
    try:
        return str(PublicKey.parse(text))
    except InvalidInputError as exc:
        raise InvalidInputError(f"the key {exc}") from None


def _only_ed25519(lines: list[str]) -> "PublicKey | None":
    """The key that can be meant for a node's own; None if there is none, or a choice."""
    from alknet.keys import PublicKey

    found = {key.blob: key for key in map(PublicKey.parse, lines) if key.kind == "ssh-ed25519"}
    return next(iter(found.values())) if len(found) == 1 else None


def _report(invocation: Invocation, name: str, what: str) -> None:
    running = node_is_running(invocation.home)
    if invocation.json:
        print_json({"peer": name, "done": what, "live": running})
    else:
        click.echo(f"{name} {what}" + (", in force now" if running else ""))
