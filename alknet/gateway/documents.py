"""``/openapi.json``: the operations that this caller may call, kept while nothing changes."""

from collections import OrderedDict
from typing import Final

from blake3 import blake3

from alknet.access import Access, Identity
from alknet.call.dispatch import Dispatcher
from alknet.call.errors import CallError
from alknet.gateway.exchange import Exchange
from alknet.gateway.openapi import document, encode

__all__ = ["ACTION", "Documents"]

ACTION: Final = "http/openapi"
"""What the audit log calls a look at the document."""
PUBLIC: Final = Access(public=True)
MAX_KEPT: Final = 16
"""Documents of different callers; one of a thousand operations has about a megabyte."""


class Documents:
    """Callers who may call the same get the same document, but for the name in it."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher
        self._kept: OrderedDict[tuple[str | None, tuple[str, ...]], tuple[bytes, bytes]] = OrderedDict()
        self._made_for: object = None

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
        body, tag = self._document(exchange.identity)
        headers = [(b"etag", tag), (b"vary", b"Authorization")]
        is_known = exchange.headers.get(b"if-none-match") == tag
        act.done("ok")
        if is_known:
            await exchange.reply(304, headers=headers)
        else:
            await exchange.reply(200, body, headers=headers)

    def _document(self, identity: Identity | None) -> tuple[bytes, bytes]:
        """(the document, its entity tag)."""
        registry = self._dispatcher.registry
        if self._made_for is not registry:
            self._made_for = registry
            self._kept.clear()
        permitted = [one for one in registry.operations.values() if self._dispatcher.may(identity, one)]
        key = None if identity is None else identity.id, tuple(one.spec.name for one in permitted)
        found = self._kept.get(key)
        if found is None:
            made = document([one.spec.describe() for one in permitted], caller=key[0])
            body = encode(made)
            found = self._kept[key] = body, b'"%b"' % blake3(body).hexdigest()[:32].encode("ascii")
            if len(self._kept) > MAX_KEPT:
                self._kept.popitem(last=False)
        else:
            self._kept.move_to_end(key)
        return found
