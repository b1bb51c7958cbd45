"""``openapi``: the OpenAPI document of what a caller may call, made from what the node says of its operations."""

from typing import IO, TYPE_CHECKING, Any, Final

import click

from alknet.cli.app import Invocation, pass_invocation
from alknet.cli.client import accept_new_option, accepter, call_options, open_peer, run_async
from alknet.cli.ops import list_operations
from alknet.cli.values import to_json
from alknet.errors import InvalidInputError

if TYPE_CHECKING:
    from alknet.client import Peer

__all__ = ["openapi"]

AT_ONCE: Final = 32
"""Schemas that are asked for at the same time."""
MAX_BYTES: Final = 64 * 1024 * 1024
"""Of all that a node says of its operations, as JSON."""


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
            url = _url(opened.address, is_local=peer == ".")
            return document(await _descriptions(opened), servers=[url], caller=opened.identity)

    click.echo(to_json(run_async(main), indent=None if invocation.json else 2, escaped=True), file=output)


async def _descriptions(peer: "Peer") -> list[dict[str, Any]]:
    """What the node says of each operation. One that is gone by the time it is asked for is left out."""
    from alknet.call.errors import CallError

    names = [one["name"] for one in await list_operations(peer)]
    found: list[dict[str, Any]] = []
    size = 0
    for start in range(0, len(names), AT_ONCE):
        calls = [("services/schema", {"name": name}) for name in names[start : start + AT_ONCE]]
        for answer in await peer.batch(calls):
            if isinstance(answer, CallError):
                if answer.code != "NOT_FOUND":
                    raise answer
                continue
            if not isinstance(answer, dict):
                raise InvalidInputError("what the peer says of an operation makes no sense")
            size += len(to_json(answer))
            if size > MAX_BYTES:
                raise InvalidInputError(f"the peer says more than {MAX_BYTES} bytes of its operations")
            found.append(answer)
    return found


def _url(address: str, *, is_local: bool) -> str:
    """Where the node answers to HTTP: on the same port, for this machine in plaintext too."""
    return f"{'http' if is_local else 'https'}://{address}"
