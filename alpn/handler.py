"""The contract of a door: what serves the connections of an ALPN.

The smallest one, complete::

    class Echo:
        alpns = ("example/echo",)

        async def handle(self, connection: Connection) -> None:
            stream = await connection.accept_stream()
            while data := await stream.read():
                await stream.write(data)
            await stream.aclose()

        def recheck(self) -> None:
            pass  # holds nothing that a right could be taken from

        async def shutdown(self, deadline: float) -> None:
            pass  # ends with its peers; what is left at the deadline is cut
"""

from typing import Protocol

from alknet.alpn.streams import Connection

__all__ = ["Handler"]


class Handler(Protocol):
    """Serves one or more ALPNs."""

    @property
    def alpns(self) -> tuple[str, ...]:
        """The ALPNs that it serves; the same for its whole life."""

    async def handle(self, connection: Connection) -> None:
        """Serve `connection` until it ends. An exception ends this connection only."""

    def recheck(self) -> None:
        """The policy was replaced, or someone's time ran out: end every live thing that is now forbidden.

        Must not wait: whatever takes time goes on in the background.
        """

    async def shutdown(self, deadline: float) -> None:
        """Tell peers that the node stops, let running work finish until `deadline` (event-loop time), end it."""
