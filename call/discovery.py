"""``services/*``: which operations there are, for whoever asks, and how each is called."""

from typing import Any, Final

from alknet.call.context import OperationContext
from alknet.call.dispatch import Dispatcher
from alknet.call.operations import Operation, operation
from alknet.errors import NotFoundError

__all__ = ["Discovery"]

MAX_PAGE: Final = 1000
DEFAULT_PAGE: Final = 100


class Discovery:
    """The operations about operations. They show what the caller may call, and of the rest not even the names."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher

    @operation("services/list", kind="query", public=True)
    async def list(
        self,
        query: str = "",
        namespace: str = "",
        kind: str = "",
        cursor: str = "",
        limit: int = DEFAULT_PAGE,
        *,
        ctx: OperationContext,
    ) -> dict[str, Any]:
        """The operations that you may call, by name.

        `query` is looked for in names, summaries and tags; `cursor` is the `next_cursor` of the page before.
        """
        words = query.lower().split()
        size = max(1, min(limit, MAX_PAGE))
        found: list[dict[str, Any]] = []
        for one in self._dispatcher.registry.operations.values():
            spec = one.spec
            if spec.name <= cursor or (namespace and spec.namespace != namespace) or (kind and spec.kind != kind):
                continue
            if not all(word in _text(one) for word in words) or not self._dispatcher.may(ctx.identity, one):
                continue
            if len(found) == size:
                return {"operations": found, "next_cursor": found[-1]["name"]}
            found.append(
                {
                    "name": spec.name,
                    "namespace": spec.namespace,
                    "kind": str(spec.kind),
                    "version": spec.version,
                    "summary": spec.summary,
                    "tags": list(spec.tags),
                    "idempotent": spec.idempotent,
                    "destructive": spec.destructive,
                }
            )
        return {"operations": found, "next_cursor": None}

    @operation("services/schema", kind="query", public=True)
    async def schema(self, name: str, *, ctx: OperationContext) -> dict[str, Any]:
        """How an operation is called: its schemas, errors and what it asks of its caller."""
        found = self._dispatcher.registry.get(name.removeprefix("/"))
        if found is None or not self._dispatcher.may(ctx.identity, found):
            raise NotFoundError(f"there is no operation {name!r} that you may call")
        return found.spec.describe()

    @operation("services/stats", kind="query", scopes=["node:read"])
    async def stats(self) -> dict[str, Any]:
        """How often each operation was called, how often it failed, and how long it took."""
        return {
            name: {"calls": s.calls, "errors": s.errors, "seconds": round(s.seconds, 6)}
            for name, s in sorted(self._dispatcher.stats.items())
        }


def _text(found: Operation) -> str:
    spec = found.spec
    return " ".join((spec.name, spec.summary, *spec.tags)).lower()
