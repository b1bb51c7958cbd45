"""``ping``: reach a peer, and say over what, how fast, and who it is."""

import statistics
import time
from typing import Any

import click

from alknet.cli.app import Invocation, pass_invocation
from alknet.cli.client import accept_new_option, accepter, carrier_options, find_target, reporter, run_async
from alknet.cli.output import print_json

__all__ = ["ping"]

MAX_COUNT = 1000


@click.command()
@carrier_options
@accept_new_option
@click.option("-c", "--count", type=click.IntRange(1, MAX_COUNT), default=4, help="Round trips to measure.")
@click.argument("peer")
@pass_invocation
def ping(
    invocation: Invocation, carriers: tuple[str, ...], verbose: bool, accept_new: bool, count: int, peer: str
) -> None:
    """Log in to PEER and measure round trips.

    Says which carrier was found, how long that and the login took, the round trips, and the SSH host key that the peer
    proved to have. Exits with 5 when it cannot be reached or is not the right one, with 3 when it lets you not in.
    """
    target = find_target(invocation, peer, accept_new=accepter(yes=accept_new))
    answer = run_async(lambda: _measure(target, carriers, verbose, count))
    if invocation.json:
        print_json({"peer": peer} | answer)
        return
    trips = answer["round_trip_ms"]
    click.echo(f"{target.name} at {answer['address']} over {answer['transport']}")
    click.echo(f"host key    {answer['host_key']}")
    click.echo(f"login       {answer['login_ms']:.1f} ms")
    click.echo(
        f"round trip  {statistics.median(trips):.2f} ms (median of {len(trips)}; {min(trips):.2f} to {max(trips):.2f})"
    )


async def _measure(target: Any, carriers: tuple[str, ...], verbose: bool, count: int) -> dict[str, Any]:
    from alknet.ssh.client import connect, round_trip

    began = time.monotonic()
    async with connect(target, carriers=carriers, report=reporter(verbose)) as link:
        login = time.monotonic() - began
        trips = [await round_trip(link.ssh) for _ in range(count)]
        host_key = link.ssh.get_server_host_key()
        assert host_key is not None
        return {
            "transport": link.carrier.transport,
            "address": str(link.carrier.remote),
            "host_key": host_key.get_fingerprint(),
            "login_ms": round(login * 1000, 3),
            "round_trip_ms": [round(trip * 1000, 3) for trip in trips],
        }
