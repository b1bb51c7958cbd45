"""``/openapi.json``: the operations that this caller may call, kept while nothing changes."""

import asyncio
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from blake3 import blake3

from alknet.access import Access, Identity
from alknet.call.dispatch import Dispatcher
from alknet.call.errors import CallError
from alknet.call.operations import Operation
from alknet.call.permitted import Permitted
from alknet.call.slices import Slices
from alknet.gateway.exchange import Exchange
from alknet.gateway.openapi import encoding, making

__all__ = ["ACTION", "Documents"]

ACTION: Final = "http/openapi"
"""What the audit log calls a look at the document."""
PUBLIC: Final = Access(public=True)
MAX_KEPT: Final = 16
"""Documents of different callers; one of a thousand operations has two megabytes."""
MAX_KEPT_BYTES: Final = 64 * 1024 * 1024
"""Of all of them, but for the newest."""


class _Document(NamedTuple):
    operations: Sequence[Operation]
    """That it was made of; another document when any of them is another one."""
    body: bytes
    tag: bytes
    """The entity tag."""


class Documents:
    """Callers who may call the same get the same document, but for the name in it. One is made at a time, a little at a
    time: it takes seconds where peers bring thousands of operations."""

    def __init__(self, dispatcher: Dispatcher, permitted: Permitted) -> None:
        self._dispatcher = dispatcher
        self._permitted = permitted
        self._kept: OrderedDict[tuple[str | None, tuple[int, ...]], _Document] = OrderedDict()
        """By the caller's name and the operations' identities: while a document is kept, so are these."""
        self._turn = asyncio.Lock()

    async def serve(self, exchange: Exchange) -> None:
        """Answer with the document, or that it is the one that the client has already."""
        caller = exchange.caller()
        act = self._dispatcher.gate.ask(
            caller.identity,
            ACTION,
            surface=caller.surface,
            access=PUBLIC,
            connection=caller.connection,
            remote=caller.remote,
        )
        if not act.decision:  # it could not be recorded
            raise CallError("FORBIDDEN", act.decision.words, denial_id=act.decision.denial_id)
        outcome = "aborted"
        try:
            found = await self._document(exchange.identity)
            outcome = "ok"
        except Exception:
            outcome = "failed"
            raise
        finally:
            act.done(outcome)
        headers = [(b"etag", found.tag), (b"vary", b"Authorization")]
        if exchange.headers.get(b"if-none-match") == found.tag:
            await exchange.reply(304, headers=headers)
        else:
            await exchange.reply(200, found.body, headers=headers)

    async def _document(self, identity: Identity | None) -> _Document:
        permitted = await self._permitted.of(identity)
        name = None if identity is None else identity.id
        found = self._find(name, permitted)
        if found is None:
            async with self._turn:  # who asks for the same meanwhile finds it made
                found = self._find(name, permitted) or await self._made(name, permitted)
        return found

    def _find(self, name: str | None, operations: Sequence[Operation]) -> _Document | None:
        key = name, tuple(map(id, operations))
        found = self._kept.get(key)
        if found is not None:
            self._kept.move_to_end(key)
        return found

    async def _made(self, name: str | None, operations: Sequence[Operation]) -> _Document:
        slices = Slices()
        steps = making((one.spec.describe() for one in operations), caller=name)
        while True:
            try:
                next(steps)
            except StopIteration as done:
                made: dict[str, Any] = done.value
                break
            await slices.breathe()
        parts = []
        for part in encoding(made):
            parts.append(part)
            await slices.breathe()
        body = b"".join(parts)
        found = _Document(operations, body, b'"%b"' % blake3(body).hexdigest()[:32].encode("ascii"))
        self._kept[name, tuple(map(id, operations))] = found
        while len(self._kept) > MAX_KEPT or (len(self._kept) > 1 and self._bytes() > MAX_KEPT_BYTES):
            self._kept.popitem(last=False)
        return found

    def _bytes(self) -> int:
        return sum(len(one.body) for one in self._kept.values())
