"""``ca``: authorities that sign user and host certificates."""

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from alknet.cli.app import Invocation, pass_invocation
from alknet.cli.output import print_json
from alknet.errors import InvalidInputError, NotFoundError, UsageError

if TYPE_CHECKING:
    from alknet.config.home import Home
    from alknet.keys import PublicKey
    from alknet.ssh.certificate_format import ParsedCertificate

__all__ = ["ca"]

USER_CA: Final = "user_ca"
HOST_CA: Final = "host_ca"
EARLIER_S: Final = 300
"""A certificate is valid from so long ago: the other side's clock may be behind."""
DAY_S: Final = 86400
MAX_USER_DAYS: Final = 366
MAX_HOST_DAYS: Final = 3660
MIN_TTL_S: Final = 1


@click.group()
def ca() -> None:
    """Certificates: one key vouches for many users or hosts, for a while."""


@ca.command()
@click.option(
    "--principal",
    "principals",
    multiple=True,
    metavar="GLOB",
    default=("*",),
    show_default=True,
    help="Principals that the user authority may sign for.",
)
@click.option(
    "--hosts", metavar="PATTERN", default="*", show_default=True, help="Hosts that the host authority is for."
)
@pass_invocation
def init(invocation: Invocation, principals: tuple[str, ...], hosts: str) -> None:
    """Make the authorities keys/user_ca and keys/host_ca, and print what to paste where they are to count.

    Those that are there are kept. Whoever can read one of these files can sign: keep them on a machine of their own
    where you can.
    """
    from alknet.keys import PublicKey, write_key_pair

    home = invocation.home
    for directory in (home.path, home.keys):
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    keys = {}
    for name in (USER_CA, HOST_CA):
        path = home.keys / name
        if path.exists():
            keys[name] = PublicKey.parse(_public(path).read_text(encoding="utf-8"))
        else:
            keys[name] = write_key_pair(path, name)
            click.echo(f"made {path}", err=True)
    user, host = keys[USER_CA], keys[HOST_CA]
    table = f'[[ssh.user_ca]]\nkey = "{user}"\nprincipals = [{", ".join(_toml(one) for one in principals)}]'
    line = f"@cert-authority {hosts} {host}"
    if invocation.json:
        print_json(
            {
                "user_ca": {"path": str(home.keys / USER_CA), "key": str(user), "fingerprint": user.fingerprint},
                "host_ca": {"path": str(home.keys / HOST_CA), "key": str(host), "fingerprint": host.fingerprint},
                "alknet_toml": table,
                "known_hosts": line,
            }
        )
        return
    click.echo(f"# alknet.toml of each node that users get into; its peers say principals = [...]\n{table}\n")
    click.echo(f"# known_hosts of each client, or host_ca in its entry of a peer\n{line}")


@ca.command("sign-user")
@click.argument("key")
@click.option(
    "--principal",
    "principals",
    multiple=True,
    required=True,
    metavar="P",
    help="Whom the certificate is for, as principals of a peer; may be given several times.",
)
@click.option("--ttl", metavar="T", default="1h", show_default=True, help="How long it is valid: 15m, 8h, 30d.")
@click.option("--id", "key_id", metavar="TEXT", help="What logs call it; by default the first principal.")
@click.option("--force-command", metavar="C", help="Runs instead of whatever is asked for.")
@click.option(
    "--source-address",
    "addresses",
    multiple=True,
    metavar="CIDR",
    help="Where it may be used from: an address or a network; may be given several times.",
)
@click.option("--no-pty", is_flag=True, help="It gives no terminal.")
@click.option("--no-port-forwarding", is_flag=True, help="It forwards no ports and sockets.")
@click.option("--no-agent-forwarding", is_flag=True, help="It forwards no agent.")
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="FILE", help="Instead of KEY-cert.pub.")
@click.option("--force", is_flag=True, help="Replace the file if there is one.")
@pass_invocation
def sign_user(
    invocation: Invocation,
    key: str,
    principals: tuple[str, ...],
    ttl: str,
    key_id: str | None,
    force_command: str | None,
    addresses: tuple[str, ...],
    no_pty: bool,
    no_port_forwarding: bool,
    no_agent_forwarding: bool,
    output: Path | None,
    force: bool,
) -> None:
    """Sign the public key KEY, a .pub file or its line, for a user.

    \b
    alknet ca sign-user ~/.ssh/id_ed25519.pub --principal alice --ttl 8h

    ssh and alknet offer the certificate by themselves when it lies beside the private key as NAME-cert.pub.
    """
    from alknet.config.fields import PRINCIPAL
    from alknet.ssh.certificate_signing import PERMITS, read_authority
    from alknet.ssh.certificate_signing import sign_user as sign

    for principal in principals:
        if not PRINCIPAL.match(principal) or not principal.isprintable():
            raise InvalidInputError(f"{principal!r} is no principal: no spaces, commas, * and ? are in one")
    if force_command is not None and not force_command.strip():
        raise InvalidInputError("--force-command is empty")
    public, beside = _key(key)
    withheld = {"X11-forwarding"} | {
        name
        for name, is_withheld in (
            ("pty", no_pty),
            ("port-forwarding", no_port_forwarding),
            ("agent-forwarding", no_agent_forwarding),
        )
        if is_withheld
    }
    path = _output(output, beside, force=force)
    now, seconds = _now(), _ttl(ttl, MAX_USER_DAYS)
    line, certificate = sign(
        read_authority(invocation.home.keys / USER_CA),
        public,
        key_id=key_id or principals[0],
        principals=principals,
        valid_after=now - EARLIER_S,
        valid_before=now + seconds,
        permits=frozenset(PERMITS) - withheld,
        force_command=force_command,
        source_addresses=addresses,
    )
    _put(path, line)
    _report(invocation, path, certificate)


@ca.command("sign-host")
@click.argument("key", required=False)
@click.option(
    "--principal",
    "principals",
    multiple=True,
    required=True,
    metavar="NAME",
    help="Host name or address that clients dial, or a pattern of them; may be given several times.",
)
@click.option("--ttl", metavar="T", default="365d", show_default=True, help="How long it is valid.")
@click.option("--id", "key_id", metavar="TEXT", help="What logs call it; by default the first principal.")
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="FILE", help="Instead of KEY-cert.pub.")
@click.option("--force", is_flag=True, help="Replace the file if there is one.")
@pass_invocation
def sign_host(
    invocation: Invocation,
    key: str | None,
    principals: tuple[str, ...],
    ttl: str,
    key_id: str | None,
    output: Path | None,
    force: bool,
) -> None:
    """Sign the public key KEY, a .pub file or its line, for a host; without KEY, the host key of this home's node.

    \b
    alknet ca sign-host --principal node.example
    """
    from alknet.config.fields import PRINCIPAL_GLOB
    from alknet.ssh.certificate_signing import read_authority
    from alknet.ssh.certificate_signing import sign_host as sign

    for principal in principals:
        if not PRINCIPAL_GLOB.match(principal) or not principal.isprintable():
            raise InvalidInputError(f"{principal!r} is no host name or address")
    home = invocation.home
    public, beside = _key(str(_public(home.host_key)) if key is None else key)
    path = _output(output, beside, force=force)
    now, seconds = _now(), _ttl(ttl, MAX_HOST_DAYS)
    line, certificate = sign(
        read_authority(home.keys / HOST_CA),
        public,
        key_id=key_id or principals[0],
        principals=[principal.lower() for principal in principals],  # as ssh compares them
        valid_after=now - EARLIER_S,
        valid_before=now + seconds,
    )
    _put(path, line)
    _report(invocation, path, certificate)
    if not invocation.json and path is not None and _is_own(home, public):
        click.echo(f'# [ssh] of alknet.toml; it is shown from the next start on\nhost_cert = "{path.absolute()}"')


def _is_own(home: "Home", key: "PublicKey") -> bool:
    from alknet.keys import PublicKey

    path = _public(home.host_key)
    return path.exists() and PublicKey.parse(path.read_text(encoding="utf-8")).blob == key.blob


def _key(text: str) -> "tuple[PublicKey, Path | None]":
    """The public key and its file, None for a line."""
    from alknet.keys import PublicKey

    path = None
    if " " not in text.strip():
        path = Path(text).expanduser()
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as exc:
            why = exc.strerror if isinstance(exc, OSError) else exc
            raise NotFoundError(f"{path}: cannot be read as a public key file: {why}") from None
    try:
        return PublicKey.parse(text), path
    except InvalidInputError as exc:
        raise InvalidInputError(f"{path or 'the key'}: {exc}") from None


def _output(output: Path | None, key: Path | None, *, force: bool) -> Path | None:
    """Where the certificate goes; None for stdout."""
    if output is None and key is not None:
        output = key.with_name(key.name.removesuffix(".pub") + "-cert.pub")
    if output is not None and str(output) == "-":
        return None
    if output is not None and output.exists() and not force:
        raise UsageError(f"{output}: is there already", hint="--force replaces it, -o names another file")
    return output


def _put(path: Path | None, line: str) -> None:
    from alknet.config.home import write_atomically

    if path is not None:
        write_atomically(path, line, mode=0o644)
    else:
        click.echo(line, nl=False)


def _ttl(text: str, most_days: int) -> float:
    from alknet.config.fields import parse_duration

    try:
        seconds = parse_duration(text)
    except ValueError:
        seconds = 0.0
    if not MIN_TTL_S <= seconds <= most_days * DAY_S:
        raise InvalidInputError(f'--ttl {text!r} must be {MIN_TTL_S}s to {most_days}d, such as "15m", "8h" or "30d"')
    return seconds


def _now() -> float:
    from alknet.clock import SystemClock

    return SystemClock().wall()


def _report(invocation: Invocation, path: Path | None, certificate: "ParsedCertificate") -> None:
    assert certificate.valid_before is not None
    ends = datetime.fromtimestamp(certificate.valid_before, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    said: dict[str, Any] = {
        "certificate": None if path is None else str(path),
        "kind": certificate.kind,
        "key_id": certificate.key_id,
        "serial": certificate.serial,
        "principals": list(certificate.principals),
        "valid_before": ends,
        "authority": certificate.authority.fingerprint,
    }
    if invocation.json and path is not None:
        print_json(said)
        return
    names = ", ".join(certificate.principals)
    click.echo(f"{path or 'certificate'} for {names}, until {ends}, serial {certificate.serial}", err=True)


def _public(path: Path) -> Path:
    return path.with_name(path.name + ".pub")


def _toml(text: str) -> str:
    import json

    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
