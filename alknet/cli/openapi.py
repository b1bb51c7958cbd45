"""``openapi``: the OpenAPI document of what a caller may call, made from what the node says of its operations."""

from typing import IO, Any

import click

from alknet.cli.app import Invocation, pass_invocation
from alknet.cli.client import accept_new_option, accepter, call_options, open_peer, run_async
from alknet.cli.ops import describe_operations
from alknet.cli.values import to_json
from alknet.errors import UnavailableError

__all__ = ["openapi"]


@click.command()
@call_options
@accept_new_option
@click.option("-o", "--output", type=click.File("w", encoding="utf-8", lazy=True), help="Write it to a file.")
@click.argument("peer", default=".")
@pass_invocation
def openapi(
    invocation: Invocation,
    carrier: str,
    token: str | None,
    verbose: bool,
    accept_new: bool,
    output: IO[str] | None,
    peer: str,
) -> None:
    """The OpenAPI document of the operations that I may call on PEER (the local node if none is given).

    It is what GET /openapi.json of that node answers to me, and what code generators take. --json prints one line.

    \b
    alknet openapi
    alknet openapi hub -o hub.json
    """
    from alknet.gateway.openapi import document

    async def main() -> dict[str, Any]:
        async with open_peer(
            invocation, peer, carrier=carrier, token=token, verbose=verbose, accept_new=accepter(yes=accept_new)
        ) as opened:
            if opened.behind is not None:
                raise UnavailableError(
                    f"{opened.behind!r} is behind {opened.node!r}, which serves its operations over HTTP only where it"
                    " exposes them",
                    hint=f"'alknet call -J HUB {opened.behind} …' calls them; expose of its peer entry exposes them",
                )
            url = _url(opened.address, is_local=peer == ".")
            return document(await describe_operations(opened), servers=[url], caller=opened.identity)

    click.echo(to_json(run_async(main), indent=None if invocation.json else 2, escaped=True), file=output)


def _url(address: str, *, is_local: bool) -> str:
    """Where the node answers to HTTP: on the same port, for this machine in plaintext too."""
    return f"{'http' if is_local else 'https'}://{address}"
