"""``ping``: reach a peer, and say over what, how fast, and who it is."""

import statistics
import time
from typing import Any, Final

import click

from alknet.cli.app import Invocation, pass_invocation
from alknet.cli.client import accept_new_option, accepter, call_options, open_peer, run_async
from alknet.cli.output import print_json
from alknet.logs import printable

__all__ = ["ping"]

MAX_COUNT: Final = 1000


@click.command()
@call_options
@accept_new_option
@click.option("-c", "--count", type=click.IntRange(1, MAX_COUNT), default=4, help="Round trips to measure.")
@click.argument("peer")
@pass_invocation
def ping(
    invocation: Invocation,
    carrier: str,
    token: str | None,
    verbose: bool,
    accept_new: bool,
    count: int,
    peer: str,
) -> None:
    """Say hello to PEER and measure round trips.

    Says which carrier was found, how long that and the hello took, the round trips of a call, and the node key that the
    peer proved to have (over SSH it proves its host key instead). Through another node these are that node's, but for
    the round trips, which go all the way. Exits with 5 when it cannot be reached or is not the
    right one, with 3 when it does not let you in.
    """

    async def measure() -> dict[str, Any]:
        began = time.monotonic()
        async with open_peer(
            invocation, peer, carrier=carrier, token=token, verbose=verbose, accept_new=accepter(yes=accept_new)
        ) as opened:
            login = time.monotonic() - began
            trips = []
            for _ in range(count):
                trips.append(await opened.round_trip())
            return {
                "peer": peer,
                "transport": opened.transport,
                "address": opened.address,
                "node": opened.node,
                "through": opened.behind is not None,
                "node_key": None if opened.node_key is None else opened.node_key.fingerprint,
                "login_ms": round(login * 1000, 3),
                "round_trip_ms": [round(trip * 1000, 3) for trip in trips],
            }

    answer = run_async(measure)
    if invocation.json:
        print_json(answer)
        return
    trips = answer["round_trip_ms"]
    through = f"{printable(peer)} through " if answer["through"] else ""
    click.echo(f"{through}{printable(answer['node'])} at {answer['address']} over {answer['transport']}")
    click.echo(f"node key    {answer['node_key'] or '(not proven over SSH, which has proven the host key)'}")
    click.echo(f"login       {answer['login_ms']:.1f} ms")
    click.echo(
        f"round trip  {statistics.median(trips):.2f} ms (median of {len(trips)}; {min(trips):.2f} to {max(trips):.2f})"
    )
