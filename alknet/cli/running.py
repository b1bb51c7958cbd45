"""``status``, ``sessions`` and ``can``: questions to the running node."""

from collections.abc import Mapping
from typing import Any

import click

from alknet.cli.app import Invocation, pass_invocation
from alknet.cli.client import ask_node, node_is_running
from alknet.cli.output import print_json, print_table
from alknet.errors import NotFoundError, UnavailableError

__all__ = ["can", "sessions", "status"]

DENIED = 3


@click.command()
@pass_invocation
def status(invocation: Invocation) -> None:
    """The running node: what it listens on, who is connected, which peers it knows, dials and routes calls to."""
    answer = ask_node(invocation, "node/status")
    if invocation.json:
        print_json(answer)
        return
    node = answer["node"]
    click.echo(f"node       {node['name']} (alknet {node['version']}, process {node['pid']}, user {node['user']})")
    click.echo(f"home       {node['home']}")
    click.echo(f"revision   {node['revision']}")
    for listener in answer["listeners"]:
        click.echo(f"listening  {listener['address']} {listener['transport']} ({', '.join(listener['serves'])})")
    click.echo(f"strangers  {answer['strangers']} not logged in")
    counts = {"refused": answer["refused"], "unserved": answer["unserved"], "dropped": answer["quic"]["dropped"]}
    for what, count in counts.items():
        if count:
            click.echo(f"{what:<10} {', '.join(f'{k} {v}' for k, v in count.items())}")
    click.echo()
    _print_connections(answer["connections"])
    click.echo()
    print_table(
        ("PEER", "STATE", "CONNECTIONS"),
        [(p["id"], "enabled" if p["enabled"] else "disabled", p["connections"]) for p in answer["peers"]],
        empty="no peers",
    )
    _print_dials(answer)
    _print_mesh(answer["mesh"])


@click.group(invoke_without_command=True)
@click.pass_context
def sessions(context: click.Context) -> None:
    """Live connections; end one."""
    if context.invoked_subcommand is None:
        context.invoke(list_sessions)


@sessions.command("list")
@pass_invocation
def list_sessions(invocation: Invocation) -> None:
    """Live connections, oldest first; without the one that asks."""
    connections = ask_node(invocation, "node/sessions")
    if invocation.json:
        print_json(connections)
    else:
        _print_connections(connections)


@sessions.command("kill")
@click.argument("id")
@pass_invocation
def kill(invocation: Invocation, id: str) -> None:
    """End the connection ID; what runs on it is hung up."""
    ended = ask_node(invocation, "node/kill", {"id": id})
    if invocation.json:
        print_json(ended)
    else:
        click.echo(f"ended {ended['id']} of {ended['peer'] or 'a stranger'}")


@click.command()
@click.argument("peer")
@click.argument("action")
@click.argument("resource", required=False)
@pass_invocation
def can(invocation: Invocation, peer: str, action: str, resource: str | None) -> int:
    """May PEER do ACTION (on RESOURCE)? Exits 0 for yes and 3 for no.

    \b
    alknet can alice ssh/shell
    alknet can ci ssh/exec 'git-upload-pack /srv/project'
    alknet can alice forward/local db.corp:5432

    The running node answers; without one, the configuration on disk does. The name of a forward's target is resolved by
    whoever answers, and what is allowed of its addresses is said of each.
    """
    if node_is_running(invocation.home):
        values = {"peer": peer, "action": action, "resource": resource}
        answer = ask_node(invocation, "node/can", values)
    else:
        answer = _can_offline(invocation, peer, action, resource)
    if invocation.json:
        print_json(answer)
    else:
        click.echo(f"{'yes' if answer['allowed'] else 'no'}: {answer['reason']}")
        suffix = f"  ({answer['denial_id']})" if answer["denial_id"] else ""
        click.echo(f"rule: {answer['rule']}{suffix}")
        if answer["note"]:
            click.echo(f"note: {answer['note']}")
        for one in answer["addresses"] if len(answer["addresses"]) > 1 else ():
            click.echo(f"{one['address']}: {'yes' if one['allowed'] else 'no'}  [{one['rule']}]")
    return 0 if answer["allowed"] else DENIED


def _can_offline(invocation: Invocation, peer: str, action: str, resource: str | None) -> dict[str, object]:
    import asyncio

    from alknet.access import Context, Identity, authorize
    from alknet.actions import ACTIONS
    from alknet.call.registry import Registry
    from alknet.clock import SystemClock
    from alknet.config.load import load
    from alknet.config.policy import build_policy, daemon_user
    from alknet.resolver import is_own
    from alknet.services.node import PEER_ACTIONS, access_of
    from alknet.services.node import can as describe
    from alknet.services.reach import ask_forward
    from alknet.state import SqliteState

    home = invocation.home
    settings = load(home)
    state = SqliteState(home.state)
    policy = build_policy(settings, denial_key=state.denial_key(), daemon=daemon_user())
    state.close()
    if peer not in policy.peers:
        raise NotFoundError(f"there is no peer {peer!r}")
    if action not in (*ACTIONS, *PEER_ACTIONS):
        raise UnavailableError(
            f"there is no action {action!r}, and operations are known to a running node only",
            hint="'alknet up' starts it; docs/explanation/access.md lists the actions",
        )
    identity = Identity(peer, frozenset(policy.peers[peer].scopes), "question")
    context = Context(policy, SystemClock().wall())
    access = access_of(Registry(), action, resource)
    listening = [(host, address.port) for address in settings.node.listen for host in address.hosts()]
    decision, addresses = asyncio.run(
        ask_forward(
            lambda what: authorize(identity, action, what, context, access=access), action, resource, is_own(listening)
        )
    )
    return describe(decision, policy, peer, action) | {"addresses": addresses}


def _print_dials(answer: Mapping[str, Any]) -> None:
    """Whom the node dials: since when it is connected, or when it is dialled next, and why it is not connected."""
    if not answer["dials"]:
        return
    since = {connection["id"]: connection["since"] for connection in answer["connections"]}
    rows = []
    for dial in answer["dials"]:
        when = f"since {since.get(dial['connection'], '?')}" if dial["connection"] else ""
        when = f"next at {dial['next_at']}" if dial["next_at"] else when
        rows.append((dial["peer"], dial["state"], dial["transport"], when, dial["problem"]))
    click.echo()
    print_table(("DIALS", "STATE", "TRANSPORT", "WHEN", "PROBLEM"), rows, empty="")


def _print_mesh(mesh: Mapping[str, Any]) -> None:
    """Who brings operations, and whom calls are not sent to at present."""
    bringing = [
        (one["peer"], one["connection"], one["operations"], one["problem"])
        for one in mesh["attached"]
        if one["operations"] or one["problem"]
    ]
    for one in mesh["away"]:
        lost = "not connected since this node was started" if one["since"] is None else f"lost at {one['since']}"
        bringing.append((one["peer"], "-", "-", f"{lost}: {one['reason']}" if one["reason"] else lost))
    if bringing:
        click.echo()
        print_table(("BRINGS OPERATIONS", "CONNECTION", "OPERATIONS", "PROBLEM"), bringing, empty="")
        click.echo(f"\n{mesh['exposed']} operations of peers are served here; routing is {mesh['routing']}")
    broken = [
        (name, peer, one["breaker"], one["failures"], one["opened"])
        for name, route in sorted(mesh["routes"].items())
        for peer, one in sorted(route["peers"].items())
        if one["breaker"] != "closed"
    ]
    if broken:
        click.echo()
        print_table(("OPERATION", "PEER", "BREAKER", "FAILURES", "OPENED"), broken, empty="")


def _print_connections(connections: list[dict[str, str]]) -> None:
    print_table(
        ("ID", "PEER", "TRANSPORT", "ALPN", "SINCE", "REMOTE"),
        [(c["id"], c["peer"], c["transport"], c["alpn"], c["since"], c["remote"]) for c in connections],
        empty="no connections",
    )
