"""``ssh-config``: Host blocks with which stock ssh, scp, rsync and git reach peers through ``alknet proxy``."""

import getpass
import os
import re
import shlex
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from alknet.cli.app import Invocation, pass_invocation
from alknet.cli.output import print_json
from alknet.destination import LOCAL
from alknet.errors import ConfigError, InvalidInputError, NotFoundError

if TYPE_CHECKING:
    from alknet.config.home import Home
    from alknet.config.model import Settings
    from alknet.config.peers import PeerEntry
    from alknet.keys import PublicKey

__all__ = ["ssh_config"]

LOCAL_HOSTS: Final = ("alknet", "alknet.local")
"""What the local node is called: the first that is no peer's name. The second can be none, for its dot."""
LOCAL_USER: Final = "owner"
KEY_ALIAS: Final = "alknet"
"""Host keys are known by this name for the local node, and by alknet-NAME for peers, so that no other host of that name
is meant."""
UNWRITABLE: Final = re.compile(r'[\x00-\x1f\x7f"\\]|\$\{')
"""In a path: what ssh's configuration has no spelling for that all its versions and keywords read alike."""


@dataclass(frozen=True, slots=True)
class _Block:
    """One Host block. `host_keys` empty means that nobody knows the key yet: ssh asks, under the alias."""

    peer: str
    host: str
    host_key_alias: str
    user: str
    port: int | None
    proxy_command: str
    identity_file: str | None
    known_hosts_file: str | None
    host_keys: tuple[str, ...]

    def text(self) -> str:
        lines = [
            f"Host {self.host}",
            f"HostName {self.host}",
            f"HostKeyAlias {self.host_key_alias}",
            f"User {_quoted(self.user)}",
            *([f"Port {self.port}"] if self.port else []),
            f"ProxyCommand {self.proxy_command}",
        ]
        if self.identity_file is not None:
            lines += [f"IdentityFile {_file(self.identity_file)}", "IdentitiesOnly yes"]
        if self.known_hosts_file is not None:
            # A known key is a known key: ssh need not ask, and writes nothing into a file that is made anew.
            lines += [f"UserKnownHostsFile {_file(self.known_hosts_file)}", "StrictHostKeyChecking yes"]
        return "\n    ".join(lines) + "\n"


@click.command("ssh-config")
@click.argument("peer", nargs=-1)
@pass_invocation
def ssh_config(invocation: Invocation, peer: tuple[str, ...]) -> None:
    """Print Host blocks for stock ssh: for each PEER, or for the local node ('.') and all peers that can be reached: by
    an address, through another peer (via), or through the local node because they are nodes that dial in (those that
    may bring operations).

    A peer's host has its name, the local node's is 'alknet'. ssh reaches them with 'alknet proxy' and knows their host
    keys from HOME/ssh_known_hosts, which this command writes.

    \b
    alknet ssh-config > ~/.ssh/alknet.conf    # and 'Include alknet.conf' at the top of ~/.ssh/config
    alknet ssh-config >> ~/.ssh/config        # does as well
    """
    from alknet.config.home import write_atomically
    from alknet.config.load import load

    home = invocation.home
    settings = load(home)
    entries = {entry.id: entry for entry in settings.peers}
    for name in peer:
        if name != LOCAL and name not in entries:
            raise NotFoundError(
                f"there is no peer {name!r}", hint="'alknet peer list' shows the peers, '.' is this node"
            )
    identity = _identity(invocation, home)
    known_hosts = home.path / "ssh_known_hosts"
    _refuse_unwritable(home.path, *([identity] if identity is not None else []))
    blocks = [_local_block(home, settings, identity, known_hosts)]
    blocks += [
        _peer_block(home, entry, identity, known_hosts)
        for entry in settings.peers
        if entry.addresses or entry.offers or entry.via or entry.id in peer
    ]
    # All hosts, whoever was asked for: blocks of an earlier run name the same file.
    lines = [f"{block.host_key_alias} {key}\n" for block in blocks for key in block.host_keys]
    write_atomically(known_hosts, "# Made by alknet ssh-config, which replaces it.\n" + "".join(lines))
    chosen = [block for block in blocks if not peer or block.peer in peer]
    if invocation.json:
        print_json([asdict(block) for block in chosen])
        return
    click.echo(_heading(home, blocks[0].host))
    click.echo("\n".join(block.text() for block in chosen), nl=False)


def _heading(home: "Home", example: str) -> str:
    command = f"alknet --home {shlex.quote(str(home.path))} ssh-config"
    return (
        f"# Made by: {command}\n"
        "# Make it again when peers, addresses or keys have changed.\n"
        f"# To use it: {command} > ~/.ssh/alknet.conf\n"
        '# and write "Include alknet.conf" at the top of ~/.ssh/config (or append this to that file).\n'
        f"# Then ssh, scp, rsync and git know the hosts below: ssh {example}\n"
    )


def _local_block(home: "Home", settings: "Settings", identity: Path | None, known_hosts: Path) -> _Block:
    """The node of this home, whether it runs now or not: `alknet proxy` finds where it listens."""
    from alknet.keys import PublicKey
    from alknet.lock import find_running

    key = PublicKey.parse(home.host_key.with_name(home.host_key.name + ".pub").read_text(encoding="ascii"))
    running = find_running(home.lock)
    port = running.addresses[0][1] if running is not None else settings.node.listen[0].port
    return _Block(
        peer=LOCAL,
        host=next(name for name in LOCAL_HOSTS if name not in {entry.id for entry in settings.peers}),
        host_key_alias=KEY_ALIAS,
        user=LOCAL_USER,
        port=port or None,
        proxy_command=_proxy_command(home, LOCAL),
        identity_file=str(identity) if identity is not None else None,
        known_hosts_file=str(known_hosts),
        host_keys=(_bare(key),),
    )


def _peer_block(home: "Home", entry: "PeerEntry", identity: Path | None, known_hosts: Path) -> _Block:
    from alknet.config.addresses import split_host_port
    from alknet.config.fields import DEFAULT_PORT
    from alknet.known_nodes import HOST_KEY, KnownNodes

    # Behind another node a peer goes by its name, as in `alknet.destination`.
    texts = (entry.id,) if entry.via else entry.addresses or (entry.id,)
    addresses = [split_host_port(text, default_port=DEFAULT_PORT) for text in texts]
    keys = [entry.host_key]
    if entry.host_key is None:
        known_nodes = KnownNodes(home.path / "known_nodes")
        try:
            keys = [known_nodes.find(host, port, HOST_KEY) for host, port in addresses]
        except InvalidInputError as exc:
            raise ConfigError(f"peer {entry.id!r} has an address that cannot be used: {exc}") from exc
    host_keys = tuple(dict.fromkeys(_bare(key) for key in keys if key is not None))
    return _Block(
        peer=entry.id,
        host=entry.id,
        host_key_alias=f"{KEY_ALIAS}-{entry.id}",
        user=getpass.getuser(),
        port=addresses[0][1] or None,
        proxy_command=_proxy_command(home, entry.id),
        identity_file=str(identity) if identity is not None else None,
        known_hosts_file=str(known_hosts) if host_keys else None,
        host_keys=host_keys,
    )


def _bare(key: "PublicKey") -> str:
    """The key without its comment."""
    return " ".join(str(key).split()[:2])


def _proxy_command(home: "Home", name: str) -> str:
    """Read by ssh, which replaces % signs, and then by the user's shell. The rest of the line, without quotes."""
    return shlex.join([*_program(), "--home", str(home.path), "proxy", name]).replace("%", "%%")


def _program() -> list[str]:
    """The command that runs now, by its absolute path: ssh may be started with another PATH."""
    program = os.path.abspath(sys.argv[0])
    if os.path.basename(program) == "alknet" and os.path.isfile(program) and os.access(program, os.X_OK):
        command = [program]
    else:  # started as "python -m alknet"
        command = [sys.executable, "-m", "alknet"]
    _refuse_unwritable(Path(command[0]))
    return command


def _identity(invocation: Invocation, home: "Home") -> Path | None:
    """--identity, else keys/owner; with neither, ssh finds keys as it always does."""
    if invocation.identity is not None:
        if not invocation.identity.exists():
            raise NotFoundError(f"{invocation.identity}: there is no such key file")
        return invocation.identity.absolute()
    return home.owner_key if home.owner_key.exists() else None


def _refuse_unwritable(*paths: Path) -> None:
    for path in paths:
        if UNWRITABLE.search(str(path)):
            raise ConfigError(
                f"{str(path)!r} cannot be named in ssh's configuration",
                hint='it has a line break, a quote ("), a backslash or ${ in it; use another place',
            )


def _file(path: str) -> str:
    """With % doubled: ssh replaces %h and the like also in the names of files."""
    return _quoted(path.replace("%", "%%"))


def _quoted(value: str) -> str:
    return f'"{value}"' if re.search(r"[\s#'=]", value) else value
