"""ALPN to handler: which door a connection goes to, and which connections are live."""

import asyncio
import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import MappingProxyType
from typing import Final

from alknet.alpn.handler import Handler
from alknet.alpn.streams import Connection
from alknet.errors import AlknetError, NotFoundError, StartupError
from alknet.logs import event
from alknet.tasks import Tasks

__all__ = ["Router"]

log = logging.getLogger("alknet.alpn")

ENDING_GRACE_S: Final = 2.0
"""What handlers may take after the drain deadline to end politely, and again once their connections are closed."""
LAST_MOMENT_S: Final = 0.02
"""A connection that lives until so shortly before the drain deadline was cut by it, whoever ends it then."""
STOPPING: Final = "the node is shutting down"


class Router:
    """Runs each connection's handler and knows all that are live.

    Two handlers for one ALPN are a mistake in the assembly: `StartupError`.
    """

    def __init__(self, handlers: Iterable[Handler]) -> None:
        by_alpn: dict[str, Handler] = {}
        self._handlers = tuple(handlers)
        for handler in self._handlers:
            for alpn in handler.alpns:
                if alpn in by_alpn:
                    raise StartupError(f"two handlers claim the ALPN {alpn!r}")
                by_alpn[alpn] = handler
        self._by_alpn = MappingProxyType(by_alpn)
        self._connections: dict[str, Connection] = {}
        self.unserved: Counter[str] = Counter()
        """Connections closed because nobody serves their ALPN, by ALPN."""
        self._tasks = Tasks("connection")
        self._is_stopping = False

    @property
    def alpns(self) -> tuple[str, ...]:
        return tuple(self._by_alpn)

    @property
    def connections(self) -> tuple[Connection, ...]:
        """Every live connection, oldest first."""
        return tuple(self._connections.values())

    def end(self, connection_id: str, reason: str) -> Connection:
        """End one connection, telling the other side why where its protocol can; `NotFoundError` if there is none."""
        connection = self._connections.get(connection_id)
        if connection is None:
            raise NotFoundError(f"there is no connection {connection_id!r}")
        if connection.polite_close is not None:
            connection.polite_close(reason)
        else:
            connection.close(0, reason)
        return connection

    def dispatch(self, connection: Connection) -> None:
        """Give `connection` to its handler. One that nobody serves is closed and logged; one that comes after
        `shutdown` began is closed."""
        handler = self._take(connection)
        if handler is not None:
            self._tasks.start(self._serve(handler, connection), name=connection.id)

    async def serve(self, connection: Connection) -> None:
        """As `dispatch`, for a connection inside of another one: in the task of whoever has that, until it ends."""
        handler = self._take(connection)
        if handler is not None:
            await self._serve(handler, connection)

    def _take(self, connection: Connection) -> Handler | None:
        if self._is_stopping:
            connection.close(0, STOPPING)
            return None
        handler = self._by_alpn.get(connection.alpn)
        if handler is None:
            self.unserved[connection.alpn] += 1
            log.info(
                event("connection closed", remote_addr=_host(connection), alpn=connection.alpn, reason="no handler")
            )
            connection.close(0, "no handler")
            return None
        self._connections[connection.id] = connection
        return handler

    @contextmanager
    def tracking(self, connection: Connection) -> Iterator[None]:
        """Count a connection among the live ones that somebody else serves: one that this node has dialled."""
        self._connections[connection.id] = connection
        try:
            yield
        finally:
            self._connections.pop(connection.id, None)

    def recheck(self) -> None:
        """Have every handler end what the current policy forbids."""
        for handler in self._handlers:
            try:
                handler.recheck()
            except Exception:  # the other doors must hear of it all the same
                log.exception(event("recheck failed", alpn=handler.alpns[0]))

    async def shutdown(self, deadline: float) -> int:
        """Have every handler end its work by `deadline` (event-loop time), then close what is left.

        Returns how many connections were cut: those that still lived at the deadline. A handler that fails, or takes
        longer than its grace, is logged and cannot hold up the rest. A second call does nothing and returns 0.
        """
        if self._is_stopping:
            return 0
        self._is_stopping = True
        loop = asyncio.get_running_loop()
        ending = Tasks("shutdown")
        for handler in self._handlers:
            ending.start(handler.shutdown(deadline), name=type(handler).__name__)
        cut = await self._tasks.wait(timeout_s=max(0.0, deadline - LAST_MOMENT_S - loop.time()))
        await ending.wait(timeout_s=max(0.0, deadline + ENDING_GRACE_S - loop.time()))
        for connection in self.connections:
            connection.close(0, STOPPING)
        if await ending.wait(timeout_s=ENDING_GRACE_S):
            log.error(event("handlers did not end in time", count=len(ending)))
        await ending.aclose()
        await self._tasks.aclose()
        return cut

    async def _serve(self, handler: Handler, connection: Connection) -> None:
        try:
            await handler.handle(connection)
        except AlknetError as exc:
            log.info(event("connection failed", remote_addr=_host(connection), reason=exc))
        except Exception:
            log.exception(event("handler failed", alpn=connection.alpn, remote_addr=_host(connection)))
        finally:
            del self._connections[connection.id]
            connection.close()


def _host(connection: Connection) -> str | None:
    return None if connection.remote is None else connection.remote.host
