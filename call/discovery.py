"""``services/*``: which operations there are, for whoever asks, and how each is called.

Strangers ask, too. So a page is bounded in bytes, a question in words, and how long an answer takes does not depend on
what the caller may not see: first what it may see is found, then what it asked for among that.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from alknet.access import Authority, Identity, Policy
from alknet.call.codecs import JSON
from alknet.call.context import OperationContext
from alknet.call.dispatch import Dispatcher
from alknet.call.operations import MAX_NAME_CHARS, Operation, operation
from alknet.call.registry import Registry
from alknet.errors import InvalidInputError, NotFoundError

__all__ = ["Discovery"]

MAX_PAGE: Final = 1000
DEFAULT_PAGE: Final = 100
MAX_PAGE_BYTES: Final = 40_000
"""Of JSON, but for a single entry that has more: a stranger's frames have 64 KiB."""
MAX_SUMMARY_CHARS: Final = 200
"""Of a summary in a list; `services/schema` has all of it."""
MAX_QUERY_CHARS: Final = 200
MAX_WORDS: Final = 8
"""Different words in a query."""


class Discovery:
    """The operations about operations. They show what the caller may call, and of the rest not even the names."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher
        self._catalog: _Catalog | None = None
        self._public: tuple[_Catalog, Policy, Sequence[_Entry]] | None = None

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

        `query` is looked for in names, summaries and tags: up to 8 words, 200 characters. `cursor` is the `next_cursor`
        of the page before. A page has up to `limit` entries, 1000 at most, and fewer when they are long.
        """
        words = _words(query)
        for name, text in (("namespace", namespace), ("kind", kind), ("cursor", cursor)):
            _check_length(name, text, MAX_NAME_CHARS)
        size = max(1, min(limit, MAX_PAGE))
        found: list[dict[str, Any]] = []
        total = 0
        for entry in self._visible(ctx.identity):
            spec = entry.operation.spec
            if spec.name <= cursor or (namespace and spec.namespace != namespace) or (kind and spec.kind != kind):
                continue
            if not all(word in entry.text for word in words):
                continue
            total += entry.bytes
            if len(found) == size or (found and total > MAX_PAGE_BYTES):
                return {"operations": found, "next_cursor": found[-1]["name"]}
            found.append(_summary(entry.operation))
        return {"operations": found, "next_cursor": None}

    @operation("services/schema", kind="query", public=True)
    async def schema(self, name: str, *, ctx: OperationContext) -> dict[str, Any]:
        """How an operation is called: its schemas, errors and what it asks of its caller."""
        _check_length("name", name, MAX_NAME_CHARS + 1)
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

    def _visible(self, identity: Identity | Authority | None) -> "Sequence[_Entry]":
        """What this caller may call, by name. It is the same for all strangers until something is changed."""
        registry, policy = self._dispatcher.registry, self._dispatcher.gate.policy
        catalog = self._catalog
        if catalog is None or catalog.registry is not registry:
            catalog = self._catalog = _Catalog(registry)
        if identity is not None:
            return [entry for entry in catalog.entries if self._dispatcher.may(identity, entry.operation)]
        if self._public is None or self._public[0] is not catalog or self._public[1] is not policy:
            public = [entry for entry in catalog.entries if self._dispatcher.may(None, entry.operation)]
            self._public = catalog, policy, public
        return self._public[2]


@dataclass(frozen=True, slots=True)
class _Entry:
    """An operation, and what a list needs to know of it each time."""

    operation: Operation
    text: str
    """What queries are looked for in."""
    bytes: int
    """Of its entry in a list, as JSON, which is longer than msgpack."""


class _Catalog:
    """The entries of a registry, in its order."""

    def __init__(self, registry: Registry) -> None:
        self.registry = registry
        self.entries = [
            _Entry(one, _text(one), len(JSON.encode(_summary(one))) + 1) for one in registry.operations.values()
        ]


def _text(one: Operation) -> str:
    spec = one.spec
    return " ".join((spec.name, spec.summary, *spec.tags)).lower()


def _summary(one: Operation) -> dict[str, Any]:
    spec = one.spec
    is_long = len(spec.summary) > MAX_SUMMARY_CHARS
    return {
        "name": spec.name,
        "namespace": spec.namespace,
        "kind": str(spec.kind),
        "version": spec.version,
        "summary": spec.summary[: MAX_SUMMARY_CHARS - 1] + "…" if is_long else spec.summary,
        "tags": list(spec.tags),
        "idempotent": spec.idempotent,
        "destructive": spec.destructive,
    }


def _words(query: str) -> list[str]:
    """The different words of a query, as they are looked for."""
    _check_length("query", query, MAX_QUERY_CHARS)
    words = list(dict.fromkeys(query.lower().split()))
    if len(words) > MAX_WORDS:
        raise InvalidInputError(f"input.query: should have at most {MAX_WORDS} different words")
    return words


def _check_length(field: str, text: str, most: int) -> None:
    if len(text) > most:
        raise InvalidInputError(f"input.{field}: should have at most {most} characters")
