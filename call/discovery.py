"""``services/*``: which operations there are, for whoever asks, and how each is called.

Strangers ask, too. So a page is bounded in bytes, a question in words, and how long an answer takes does not depend on
what the caller may not see: first what it may see is found, then what it asked for among that.
"""

import asyncio
from bisect import bisect_right
from collections.abc import AsyncIterator, Mapping
from typing import Any, Final

from blake3 import blake3

from alknet.call.codecs import JSON
from alknet.call.context import OperationContext
from alknet.call.dispatch import Dispatcher
from alknet.call.operations import MAX_NAME_CHARS, operation
from alknet.call.slices import Slices
from alknet.call.specs import OperationSpec
from alknet.errors import InvalidInputError, NotFoundError, UnavailableError

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
DIGEST_BYTES: Final = 12
MAX_ENTRIES: Final = 20_000
"""Operations of which it is kept what a list says of them."""
CHANGES_PAUSE_S: Final = 0.2
"""Changes that come within this are told as one."""


class Discovery:
    """The operations about operations. They show what the caller may call, and of the rest not even the names."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher
        self._entries: dict[int, _Entry] = {}
        """By the id of the specification."""

    @operation("services/list", kind="query", public=True)
    async def list(
        self,
        query: str = "",
        namespace: str = "",
        kind: str = "",
        cursor: str = "",
        limit: int = DEFAULT_PAGE,
        peer: str = "",
        *,
        ctx: OperationContext,
    ) -> dict[str, Any]:
        """The operations that you may call, by name.

        `query` is looked for in names, summaries and tags: up to 8 words, 200 characters. `cursor` is the `next_cursor`
        of the page before. A page has up to `limit` entries, 1000 at most, and fewer when they are long. With `peer`
        they are those that a connected peer of this node offers. An operation whose `digest` is the same is the same;
        `revision` is a number that `services/changed` tells, too.
        """
        words = _words(query)
        for name, text in (("namespace", namespace), ("kind", kind), ("cursor", cursor), ("peer", peer)):
            _check_length(name, text, MAX_NAME_CHARS)
        size = max(1, min(limit, MAX_PAGE))
        found: list[dict[str, Any]] = []
        total = 0
        revision = self._dispatcher.changes.number
        if peer:
            specs = tuple(self._of_peer(ctx, peer).values())
        else:
            specs = tuple(one.spec for one in await self._dispatcher.permitted.of(ctx.identity))
        slices = Slices()
        for spec in specs[bisect_right(specs, cursor, key=lambda spec: spec.name) :]:
            if (namespace and spec.namespace != namespace) or (kind and spec.kind != kind):
                continue
            await slices.breathe()
            entry = self._entry(spec)
            if not all(word in entry.text for word in words):
                continue
            total += entry.bytes
            if len(found) == size or (found and total > MAX_PAGE_BYTES):
                return {"operations": found, "next_cursor": found[-1]["name"], "revision": revision}
            found.append(entry.summary)
        return {"operations": found, "next_cursor": None, "revision": revision}

    @operation("services/schema", kind="query", public=True)
    async def schema(self, name: str, peer: str = "", *, ctx: OperationContext) -> dict[str, Any]:
        """How an operation is called: its schemas, errors and what it asks of its caller.

        With `peer` it is one that a connected peer of this node offers.
        """
        _check_length("name", name, MAX_NAME_CHARS + 1)
        _check_length("peer", peer, MAX_NAME_CHARS)
        name = name.removeprefix("/")
        if peer:
            spec = self._of_peer(ctx, peer).get(name)
        else:
            found = self._dispatcher.registry.get(name)
            spec = None if found is None or not self._dispatcher.may(ctx.identity, found) else found.spec
        if spec is None:
            raise NotFoundError(f"there is no operation {name!r} that you may call")
        return spec.describe()

    @operation("services/list-peers", kind="query", public=True)
    async def list_peers(self, cursor: str = "", limit: int = DEFAULT_PAGE, *, ctx: OperationContext) -> dict[str, Any]:
        """The connected peers of this node whose operations you may call, with the names of these.

        `cursor` is the `next_cursor` of the page before. A page has up to `limit` peers, 1000 at most, and fewer when
        they have many operations.
        """
        _check_length("cursor", cursor, MAX_NAME_CHARS)
        size = max(1, min(limit, MAX_PAGE))
        found: list[dict[str, Any]] = []
        total = 0
        for peer in sorted(self._dispatcher.peers.connected()):
            if peer <= cursor or not self._dispatcher.may_reach(ctx.identity, peer):
                continue
            entry = {"peer": peer, "operations": [*self._dispatcher.peers.operations_of(peer)]}
            total += len(JSON.encode(entry)) + 1
            if len(found) == size or (found and total > MAX_PAGE_BYTES):
                return {"peers": found, "next_cursor": found[-1]["peer"]}
            found.append(entry)
        return {"peers": found, "next_cursor": None}

    @operation("services/changed", any_peer=True)
    async def changed(self) -> AsyncIterator[dict[str, int]]:
        """Tells whenever the operations that may be called here could have changed.

        Each item has a number: at once the one of now, then the new one after each change.
        """
        changes = self._dispatcher.changes
        number = changes.number
        while True:
            yield {"revision": number}
            number = await changes.wait_beyond(number)
            if changes.is_over:
                return
            await asyncio.sleep(CHANGES_PAUSE_S)  # one that has changed will often change again
            number = changes.number

    @operation("services/stats", kind="query", scopes=["node:read"])
    async def stats(self) -> dict[str, Any]:
        """How often each operation was called, how often it failed, and how long it took."""
        return {
            name: {"calls": s.calls, "errors": s.errors, "seconds": round(s.seconds, 6)}
            for name, s in sorted(self._dispatcher.stats.items())
        }

    def _of_peer(self, ctx: OperationContext, peer: str) -> Mapping[str, OperationSpec]:
        """What a connected peer offers, for somebody who may call it."""
        is_here = peer in self._dispatcher.peers.connected()
        is_known = is_here or peer in self._dispatcher.gate.policy.peers
        if not is_known or not self._dispatcher.may_reach(ctx.identity, peer):
            raise NotFoundError(f"there is no peer {peer!r} whose operations you may call")
        if not is_here:
            raise UnavailableError(f"peer {peer!r} is not connected")
        return self._dispatcher.peers.operations_of(peer)

    def _entry(self, spec: OperationSpec) -> "_Entry":
        known = self._entries.get(id(spec))
        if known is None:
            if len(self._entries) >= MAX_ENTRIES:
                self._entries.clear()
            known = self._entries[id(spec)] = _Entry(spec)
        return known


class _Entry:
    """An operation, and what a list needs to know of it each time."""

    __slots__ = ("bytes", "spec", "summary", "text")

    def __init__(self, spec: OperationSpec) -> None:
        self.spec = spec  # held, so that its id is nobody else's
        self.summary = _summary(spec)
        self.text = " ".join((spec.name, spec.summary, *spec.tags)).lower()
        """What queries are looked for in."""
        self.bytes = len(JSON.encode(self.summary)) + 1
        """Of its entry in a list, as JSON, which is longer than msgpack."""


def _summary(spec: OperationSpec) -> dict[str, Any]:
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
        "digest": blake3(JSON.encode(spec.describe())).hexdigest(DIGEST_BYTES),
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
