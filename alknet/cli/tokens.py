"""``token``: bearer tokens, for programs that bring no key."""

import contextlib
import math
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import click

from alknet.cli.app import Invocation, pass_invocation
from alknet.cli.client import ask_node, node_is_running
from alknet.cli.output import print_json, print_table
from alknet.errors import AlknetError, ConfigError, InvalidInputError, NotFoundError, UnavailableError

if TYPE_CHECKING:
    from alknet.access import Token
    from alknet.config.home import Home
    from alknet.config.model import Settings
    from alknet.config.peers import PeerEntry
    from alknet.state import SqliteState

__all__ = ["token"]

MAX_TTL_DAYS: Final = 3650
"""Longer than that is a mistake, or is meant to be never."""


@click.group()
def token() -> None:
    """Bearer tokens: what a program shows instead of a key, for one peer and some of its scopes."""


@token.command()
@click.option("--peer", metavar="NAME", default="owner", show_default=True, help="Peer that the token stands for.")
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    required=True,
    metavar="S",
    help="Scope that the token has, such as fs:read; may be given several times. The peer must have it too.",
)
@click.option(
    "--ttl", metavar="T", default="30d", show_default=True, help="How long it is good for: 15m, 12h, 30d, or never."
)
@click.option("--description", metavar="TEXT", default="", help="What it is for; shown by 'alknet token list'.")
@pass_invocation
def create(invocation: Invocation, peer: str, scopes: tuple[str, ...], ttl: str, description: str) -> None:
    """Make a token and print it, this once: only a digest of it is kept.

    The token alone goes to stdout, so that TOKEN=$(alknet token create …) works. It may do what both its own scopes
    and those of the peer allow.
    """
    from alknet.clock import SystemClock
    from alknet.config.load import load
    from alknet.tokens import create_token

    home, now = invocation.home, SystemClock().wall()
    settings = load(home)
    entry = next((p for p in settings.peers if p.id == peer), None)
    if entry is None:
        raise NotFoundError(f"there is no peer {peer!r}", hint="'alknet peer list' shows the peers")
    _check_scopes(scopes)
    seconds = _ttl(ttl)
    expires_at = None if seconds is None else now + seconds
    running = node_is_running(home)
    if running:
        ask_node(invocation, "node/can", {"peer": "owner", "action": "node/reload"})  # connect first, then write
    with _state(home) as state:
        text, made = create_token(state, peer, scopes, now=now, expires_at=expires_at, description=description)
        if running:
            try:
                ask_node(invocation, "node/reload")
            except BaseException:
                state.remove(made.prefix)  # nobody will see its text
                raise
    _print_created(invocation, text, made, entry, settings)


@token.command("list")
@pass_invocation
def list_tokens(invocation: Invocation) -> None:
    """All tokens, by their public prefix."""
    from alknet.clock import SystemClock

    now = SystemClock().wall()
    with _state(invocation.home) as state:
        tokens = state.all()
    if invocation.json:
        print_json([_describe(t) | {"expired": _is_expired(t, now)} for t in tokens])
        return
    print_table(
        ("PREFIX", "PEER", "SCOPES", "EXPIRES", "DESCRIPTION"),
        [
            (
                t.prefix,
                t.peer,
                " ".join(sorted(t.scopes)),
                "expired" if _is_expired(t, now) else _time(t.expires_at) or "never",
                t.description,
            )
            for t in tokens
        ],
        empty="no tokens",
    )


@token.command()
@click.argument("prefix")
@pass_invocation
def revoke(invocation: Invocation, prefix: str) -> None:
    """Refuse the token with this PREFIX from now on, live connections included."""
    name = _prefix(prefix)
    with _state(invocation.home) as state:
        removed = state.remove(name)
    if removed is None:
        raise NotFoundError(f"there is no token {name!r}", hint="'alknet token list' shows the tokens")
    running = node_is_running(invocation.home)
    if running:
        try:
            ask_node(invocation, "node/reload")
        except AlknetError as exc:
            # It stays removed: whoever revokes a token wants it gone, if need be with the node's next start.
            raise UnavailableError(
                f"the token {name!r} is removed, but the running node goes on taking it: {exc}",
                hint="mend that and run 'alknet config reload', or restart the node",
            ) from exc
    if invocation.json:
        print_json({"prefix": name, "peer": removed.peer, "done": "revoked", "live": running})
    else:
        click.echo(f"{name} revoked" + (", in force now" if running else ""))


@contextlib.contextmanager
def _state(home: "Home") -> Iterator["SqliteState"]:
    from alknet.state import SqliteState

    if not home.exists:
        raise ConfigError(
            f"{home.path}: there is no node here (no alknet.toml)", hint="'alknet init' makes one; --home names another"
        )
    with contextlib.closing(SqliteState(home.state)) as state:
        yield state


def _check_scopes(scopes: tuple[str, ...]) -> None:
    from alknet.config.fields import SCOPE

    for scope in scopes:
        if not SCOPE.match(scope):
            raise InvalidInputError(f'{scope!r} is no scope: it must be one such as "ssh:exec", "ssh:*" or "*"')


def _ttl(text: str) -> float | None:
    """Seconds, or None for never."""
    from alknet.config.fields import parse_duration

    if text == "never":
        return None
    try:
        seconds = parse_duration(text)
    except ValueError:
        seconds = math.nan
    if not 1 <= seconds <= MAX_TTL_DAYS * 86400:
        raise InvalidInputError(
            f'--ttl {text!r} must be "never", or 1s to {MAX_TTL_DAYS}d, such as "15m", "12h" or "30d"'
        )
    return seconds


def _prefix(text: str) -> str:
    """The prefix in what was typed, which may be a whole token. What may hold a secret is not repeated."""
    from alknet.access import TOKEN_PREFIX_CHARS
    from alknet.tokens import ALPHABET

    name = text.removeprefix("alk_").partition("_")[0]
    if len(name) != TOKEN_PREFIX_CHARS or not set(name) <= set(ALPHABET):
        raise InvalidInputError(
            f"that is no prefix of a token: the {TOKEN_PREFIX_CHARS} letters and digits after alk_",
            hint="'alknet token list' shows them",
        )
    return name


def _print_created(invocation: Invocation, text: str, made: "Token", entry: "PeerEntry", settings: "Settings") -> None:
    from alknet.access import scope_grants

    own = {*entry.scopes, *(scope for role in entry.roles for scope in settings.roles[role].scopes)}
    for scope in sorted(made.scopes):
        if not any(scope_grants(has, scope) for has in own):
            click.echo(f"warning: peer {entry.id!r} itself lacks the scope {scope}, so the token lacks it", err=True)
    if not entry.enabled:
        click.echo(f"warning: peer {entry.id!r} is disabled, and so is the token", err=True)
    if invocation.json:
        print_json({"token": text, "prefix": made.prefix, "expires_at": _time(made.expires_at)})
        return
    ends = "for ever" if made.expires_at is None else f"until {_time(made.expires_at)}"
    click.echo(f"token {made.prefix} of peer {entry.id!r}, {ends}; it is shown only now:", err=True)
    click.echo(text)


def _describe(t: "Token") -> dict[str, Any]:
    return {
        "prefix": t.prefix,
        "peer": t.peer,
        "scopes": sorted(t.scopes),
        "expires_at": _time(t.expires_at),
        "description": t.description,
    }


def _is_expired(t: "Token", now: float) -> bool:
    return t.expires_at is not None and now >= t.expires_at


def _time(seconds: float | None) -> str | None:
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
