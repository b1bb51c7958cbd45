"""``up``, ``init``, ``serve`` and ``id``: a home and the node that runs on it."""

import asyncio
import gc
import os
import shlex
import signal
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, Final

import click

from alknet.cli.app import Invocation, pass_invocation
from alknet.cli.output import print_json
from alknet.errors import UsageError

if TYPE_CHECKING:
    from alknet.config.addresses import ListenAddress
    from alknet.config.home import Home
    from alknet.node import Node

__all__ = ["identity", "init", "serve", "up"]

GC_THRESHOLDS: Final = (10_000, 10, 10)
"""Python's own (700, 10, 10) cost a busy node a tenth of its time."""
STUCK_S: Final = 0.5
"""What threads, and tasks that were cancelled, may take to end once the node has stopped."""
LOOP_THREADS: Final = "32"
"""Of libuv, which has four otherwise."""

listen_option = click.option(
    "--listen",
    multiple=True,
    metavar="ADDR",
    help="Listen here, as in 127.0.0.1:7022; may be repeated.",
)
own_keys_option = click.option("--no-user-keys", is_flag=True, help="Do not let your own SSH keys in as peer 'owner'.")


@click.command()
@listen_option
@own_keys_option
@pass_invocation
def up(invocation: Invocation, listen: tuple[str, ...], no_user_keys: bool) -> int:
    """Make a home if there is none, run the node, print what to paste next. Ctrl-C stops it.

    With a home that exists, --listen holds for this run only.
    """
    home, addresses = invocation.home, _addresses(listen)
    if not home.exists:
        _make(home, addresses, no_user_keys)
    return _run(home, addresses, invocation, greet=True)


@click.command()
@listen_option
@own_keys_option
@pass_invocation
def init(invocation: Invocation, listen: tuple[str, ...], no_user_keys: bool) -> None:
    """Make a home: keys, configuration, and the peer 'owner' with every right."""
    home = invocation.home
    if home.exists:
        click.echo(f"{home.path} is a home already; what it lacks is made, nothing is changed.", err=True)
    _make(home, _addresses(listen), no_user_keys)
    if invocation.json:
        print_json({"home": str(home.path)})


@click.command()
@listen_option
@pass_invocation
def serve(invocation: Invocation, listen: tuple[str, ...]) -> int:
    """Run the node in the foreground, for a service manager (systemd: Type=notify-reload)."""
    return _run(invocation.home, _addresses(listen), invocation, greet=False)


@click.command("id")
@pass_invocation
def identity(invocation: Invocation) -> None:
    """This node's keys and addresses, ready to paste into another node."""
    from alknet.cli.client import reachable_addresses
    from alknet.config.load import load
    from alknet.keys import PublicKey

    home = invocation.home
    settings = load(home)
    keys = {}
    for name, path in (("node_key", home.node_key), ("host_key", home.host_key)):
        line = path.with_name(path.name + ".pub").read_text(encoding="ascii")
        keys[name] = PublicKey.parse(line)
    addresses = [f"[{h}]:{p}" if ":" in h else f"{h}:{p}" for h, p in reachable_addresses(home, settings)]
    if invocation.json:
        print_json({name: str(key) for name, key in keys.items()} | {"addresses": addresses})
        return
    click.echo(f"node key   {keys['node_key']}")
    click.echo(f"host key   {keys['host_key']}")
    click.echo(f"           {keys['host_key'].fingerprint}")
    click.echo(f"addresses  {', '.join(addresses)}")
    bare = {name: f"{key.kind} {str(key).split()[1]}" for name, key in keys.items()}
    where = [word for address in addresses for word in ("--address", address)]
    words = ["alknet", "peer", "add", "NAME", "--node-key", bare["node_key"], "--host-key", bare["host_key"]]
    click.echo(
        "\nOn a node that is to reach this one (--dial keeps up a connection; --scope: what this one may do there):\n"
    )
    click.echo("  " + shlex.join([*words, *where]))
    words[4] = "--key"
    click.echo("\nOn a node that this one dials, which gets its operations and reaches it over that connection:\n")
    click.echo("  " + shlex.join([*words, "--offers", "*"]))


def _addresses(listen: tuple[str, ...]) -> "tuple[ListenAddress, ...]":
    from alknet.config.addresses import ListenAddress

    try:
        return tuple(ListenAddress.parse(text) for text in listen)
    except ValueError as exc:
        raise UsageError(f"--listen: {exc}") from None


def _make(home: "Home", addresses: "tuple[ListenAddress, ...]", no_user_keys: bool) -> None:
    from alknet.config.create import make_home, user_keys
    from alknet.config.model import Node as NodeSettings

    os.umask(0o077)
    new_owner = not home.peer("owner").exists()
    usable, unusable = user_keys() if new_owner and not no_user_keys else ([], [])
    make_home(
        home,
        listen=addresses or NodeSettings().listen,
        own_keys=tuple(key for _, key in usable),
    )
    click.echo(f"home: {home.path}", err=True)
    for path, key in usable:
        click.echo(f"peer 'owner' may enter with {path} ({key.fingerprint})", err=True)
    for path, why in unusable:
        click.echo(f"left out {path}: it {why}", err=True)


def _run(home: "Home", addresses: "tuple[ListenAddress, ...]", invocation: Invocation, *, greet: bool) -> int:
    from alknet.keyring import leave_session_keyring
    from alknet.logs import set_up
    from alknet.nofile import raise_limit

    _reset_signals()
    raise_limit()
    leave_session_keyring()
    os.umask(0o077)
    set_up(debug=invocation.debug)

    async def main() -> int:
        from alknet.node import Node

        async with Node(home, listen=addresses) as node:
            # What is there now stays; of what comes, little is garbage that only this collector finds.
            gc.freeze()
            gc.set_threshold(*GC_THRESHOLDS)
            if greet:
                _greet(node, invocation)
            cut = await node.run()
        if cut:
            click.echo(f"alknet: {cut} connections were cut at the drain deadline", err=True)
        return 0

    import uvloop

    # Half of libuv's threads look names up, which may take half a minute where a name server does not answer.
    os.environ.setdefault("UV_THREADPOOL_SIZE", LOOP_THREADS)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        status = runner.run(main())
        _leave_stuck_tasks(runner, status)
    from alknet.call.dispatch import THREAD_NAME

    _leave_stuck_threads(THREAD_NAME, status)
    return status


def _leave_stuck_tasks(runner: asyncio.Runner, status: int) -> None:
    """A handler that does not hear that it is cancelled cannot be ended; asyncio would wait for it for ever."""
    tasks = asyncio.all_tasks(runner.get_loop())
    for task in tasks:
        task.cancel()
    if tasks and runner.run(asyncio.wait(tasks, timeout=STUCK_S))[1]:
        click.echo("alknet: an operation that was cancelled still runs; it is left behind", err=True)
        sys.stdout.flush()
        os._exit(status)


def _leave_stuck_threads(name: str, status: int) -> None:
    """A handler that is a plain function and does not return cannot be stopped; Python would wait for it for ever."""
    deadline = time.monotonic() + STUCK_S
    for thread in [thread for thread in threading.enumerate() if thread.name.startswith(name)]:
        thread.join(max(0.0, deadline - time.monotonic()))
        if thread.is_alive():
            click.echo("alknet: an operation that is a plain function still runs; it is left behind", err=True)
            sys.stdout.flush()
            os._exit(status)


def _greet(node: "Node", invocation: Invocation) -> None:
    home = node.home
    host, _, port = node.addresses[0].rpartition(":")
    host = host.strip("[]")
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    words = ["ssh", "-p", port, "-i", str(home.owner_key), "-o", "IdentitiesOnly=yes"]
    known_hosts = f'"{home.known_hosts}"' if " " in str(home.known_hosts) else home.known_hosts
    words += ["-o", f"UserKnownHostsFile={known_hosts}", f"owner@{host}"]
    line = shlex.join(words)
    if invocation.json:
        print_json({"name": node.name, "home": str(home.path), "addresses": node.addresses, "ssh": line})
        return
    click.echo(f"alknet node {node.name!r} is up on {', '.join(node.addresses)}")
    click.echo(f"home {home.path}\n\nEnter it with stock ssh:\n\n  {line}\n")
    if (entry := node.web_entry) is not None:
        scheme, path = entry
        url = f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}{path}"
        click.echo(f"Call its operations ('alknet token create --scope ...' makes a token):\n\n  {url}\n")
    click.echo("Ctrl-C stops it.")


def _reset_signals() -> None:
    """A signal that whoever started the node ignores would be ignored by every session's process, too."""
    keep: tuple[Any, ...] = (
        signal.SIGPIPE,
        signal.SIGXFSZ,
    )  # Python's own; reset for children anyway
    for number in signal.valid_signals():
        if number not in keep and signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
