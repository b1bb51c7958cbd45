"""``forward`` keeps ports and sockets forwarded, over one connection after the other; ``ssh`` shares some of it."""

import asyncio
import random
import signal
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from alknet.backoff import Backoff
from alknet.cli.app import Invocation, pass_invocation
from alknet.cli.client import accept_new_option, accepter, bulk_first, carrier_options, find_target, reporter, run_async
from alknet.errors import AlknetError, UnavailableError, UsageError
from alknet.logs import printable
from alknet.nofile import raise_limit

if TYPE_CHECKING:
    from alknet.ssh.client import Link, Target
    from alknet.ssh.client_forwards import Forwards
    from alknet.ssh.forward_specs import Forward

__all__ = ["Keeper", "forward", "forward_options", "say", "until_stopped", "why_lost"]

T = TypeVar("T")
MOST_S: Final = 30.0
"""The longest step between two tries."""
WATCH_S: Final = 15.0
"""A node that is not heard for so long is given up, where the carrier can tell."""
STEADY_S: Final = 30.0
"""A connection that lasted so long was a good one: what follows it begins with the shortest wait again."""


def forward_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """-L, -R and -D, as often as wanted; the command gets `forwards`, which are `Forward` values."""

    def parsed(context: click.Context, parameter: click.Parameter, texts: tuple[str, ...]) -> tuple["Forward", ...]:
        from alknet.ssh.forward_specs import parse_forward

        return tuple(parse_forward(parameter.opts[0], text) for text in texts)  # type: ignore[arg-type]

    for name, destination, metavar, text in (
        ("-D", "dynamic", "[BIND:]PORT", "SOCKS proxy on PORT here; names and addresses are those of the far side."),
        ("-R", "remote", "[BIND:]PORT:HOST:HOSTPORT", "What arrives at PORT there goes to HOST:HOSTPORT here."),
        ("-L", "local", "[BIND:]PORT:HOST:HOSTPORT", "What arrives at PORT here goes to HOST:HOSTPORT there."),
    ):
        command = click.option(name, destination, metavar=metavar, multiple=True, callback=parsed, help=text)(command)
    return command


@click.command()
@carrier_options
@accept_new_option
@forward_options
@click.option("--once", is_flag=True, help="End with the connection instead of connecting again.")
@click.argument("peer")
@pass_invocation
def forward(
    invocation: Invocation,
    carriers: tuple[str, ...],
    verbose: bool,
    accept_new: bool,
    once: bool,
    peer: str,
    local: tuple["Forward", ...],
    remote: tuple["Forward", ...],
    dynamic: tuple["Forward", ...],
) -> int:
    """Keep forwards to PEER up until it is stopped: the connection is made again whenever it is lost.

    \b
    alknet forward web -L 5432:db:5432       # db's port, as web reaches it, on 127.0.0.1 and ::1 here
    alknet forward web -R 8080:localhost:80  # this machine's port 80 on web's port 8080
    alknet forward web -D 1080               # a SOCKS proxy that leaves at web

    A path in the place of a port, or of host and port, is a Unix socket. What listens here stays open while there is no
    connection; who arrives meanwhile waits for up to 10 s. Denied logins end it (exit code 3), Ctrl-C and SIGTERM do
    (exit code 0).
    """
    forwards = (*local, *remote, *dynamic)
    if not forwards:
        raise UsageError("there is nothing to forward", hint="give at least one of -L, -R and -D")
    target = find_target(invocation, peer, accept_new=accepter(yes=accept_new))
    raise_limit()
    keeper = Keeper(target, forwards, carriers=bulk_first(carriers), report=reporter(verbose), once=once)
    run_async(lambda: until_stopped(keeper.run))
    return 0


class Keeper:
    """Connects, and connects again."""

    def __init__(
        self,
        target: "Target",
        forwards: tuple["Forward", ...],
        *,
        carriers: tuple[str, ...],
        report: Callable[[str], None],
        once: bool,
    ) -> None:
        self._target = target
        self._wanted = forwards
        self._carriers = carriers
        self._report = report
        self._once = once
        self._was_up = False

    async def run(self) -> None:
        """Until it is cancelled, or there is no use in trying on; raises why not."""
        from alknet.call.trust import NodeKeyError
        from alknet.ssh.client_forwards import Forwards
        from alknet.ssh.trust import HostKeyError

        forwards = Forwards(self._wanted, say)
        backoff = Backoff(rng=random.Random(), most_s=MOST_S)
        loop = asyncio.get_running_loop()
        try:
            for error in await forwards.listen():
                raise error
            while True:
                began = loop.time()
                try:
                    await self._serve(forwards)
                except AlknetError as exc:
                    is_wrong = isinstance(exc, HostKeyError | NodeKeyError)
                    if self._once or is_wrong or exc.exit_code != UnavailableError.exit_code:
                        raise
                    lost = str(exc)
                if loop.time() - began >= STEADY_S:
                    backoff.reset()
                wait_s = backoff.next_s()
                say(f"{lost}; trying again in {wait_s:.1f} s")
                await asyncio.sleep(wait_s)
        finally:
            await forwards.aclose()

    async def _serve(self, forwards: "Forwards") -> None:
        """Forward over one connection until that is lost, which is raised."""
        from alknet.ssh.client import connect

        async with connect(self._target, carriers=self._carriers, report=self._report, notice=say) as link:
            link.carrier.watch(WATCH_S)
            try:
                errors = await forwards.attach(link)
                if errors and not self._was_up:
                    raise errors[0]
                for error in errors:
                    say(str(error))
                say(
                    f"forwarding {'again ' if self._was_up else ''}over {link.carrier.transport} to {self._target.name}"
                )
                self._was_up = True
                if errors:
                    await self._ask_again(forwards, link)
                await link.ssh.wait_closed()
                raise UnavailableError(f"the connection to {self._target.name} was lost{why_lost(link)}")
            finally:
                forwards.detach()

    async def _ask_again(self, forwards: "Forwards", link: "Link") -> None:
        """Ask until the node listens everywhere: it may still hold a port for the connection that was lost."""
        backoff = Backoff(rng=random.Random(), most_s=MOST_S)
        while not link.ssh.is_closed():
            try:
                async with asyncio.timeout(backoff.next_s()):
                    await link.ssh.wait_closed()
            except TimeoutError:
                if not await forwards.ask_again():
                    say("the node listens on all that was asked for")
                    return


async def until_stopped(main: Callable[[], Awaitable[T]]) -> T | None:
    """What `main` returns, or None if it was ended by Ctrl-C, SIGTERM or SIGHUP."""
    task, loop = asyncio.current_task(), asyncio.get_running_loop()
    assert task is not None
    was_stopped = False

    def stop() -> None:
        nonlocal was_stopped
        was_stopped = True
        task.cancel()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, stop)
    try:
        return await main()
    except asyncio.CancelledError:
        if not was_stopped:
            raise
        task.uncancel()
        return None


def say(line: str) -> None:
    """A line on stderr."""
    click.echo(f"alknet: {printable(line)}", err=True)


def why_lost(link: "Link") -> str:
    """What ended the connection, to follow a sentence that says that it has ended; empty where nothing said so."""
    _, why = link.carrier.close_reason or (0, "")
    why = " ".join(link.parting) or why
    return f": {why}" if why else ""
