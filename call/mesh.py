"""The peers of a node that bring operations: what each offers is found out, kept up to date, and served.

One :class:`Mesh` belongs to a node. Sessions are attached by whoever has opened them, dialled or accepted; from then on
the operations of the other side are imported, again whenever it says that they have changed, until the session ends.
They are reached as `Dispatcher.prepare` says: by naming the peer, by composition, or, where the peer's entry exposes
them, as operations of this node.
"""

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final

from alknet.backoff import Backoff
from alknet.call.errors import CallError
from alknet.call.exposed import NO_TERMS, Exposed, MeshSettings, Terms, agree, forwarded
from alknet.call.forwarding import PeerForward, RoutedForward, not_there
from alknet.call.from_call import EMPTY, Catalog, from_call
from alknet.call.hello import SERVE
from alknet.call.import_errors import ImportFailed
from alknet.call.operations import Operation
from alknet.call.overlays import Attachment, Overlays
from alknet.call.registry import Registry
from alknet.call.routing import Routes
from alknet.call.session import Session
from alknet.call.specs import OperationSpec
from alknet.logs import event
from alknet.tasks import Tasks

__all__ = ["Mesh"]

log = logging.getLogger("alknet.mesh")

PATIENCE_S: Final = 4.5
"""A peer that was not heard for so long is gone."""
PUBLISH_DELAY_S: Final = 0.05
"""Peers that come and go within this are one change of the node's operations."""
PUBLISH_SHARE: Final = 10
"""After a change nothing is published for that many times as long as it took to publish it."""
MOST_PUBLISH_PAUSE_S: Final = 1.0
PAUSE_S: Final = 0.5
"""Between two imports from one peer, however often it says that it has changed."""
MAX_ATTACHED: Final = 16
"""Connections of one peer that bring operations, each a catalog: with one more the oldest brings none any more."""
MAX_REMEMBERED: Final = 256
"""Peers that are gone and of which it is kept what they had."""
RETRY_S: Final = 1.0
MOST_RETRY_S: Final = 60.0
"""Between two imports of which the first one failed: from the one, doubling, to the other."""


class _Import:
    """What goes on for one attachment."""

    def __init__(self) -> None:
        self.task: asyncio.Task[None] | None = None
        self.is_due = asyncio.Event()
        self.told: int | None = None
        """The last revision that the other side has told."""
        self.offers: tuple[str, ...] | None = ()
        """What was asked for; None when some of what was found has been taken away since."""
        self.problem = ""
        """Why the last import failed, or what it left out."""


class Mesh:
    """`publish` gets the node's operations whenever they change: its own, and what its peers expose through it."""

    def __init__(self, publish: Callable[[Registry], None], *, rng: random.Random | None = None) -> None:
        self.overlays = Overlays()
        self.settings = MeshSettings()
        self._publish = publish
        self._rng = rng or random.Random()
        self._own = Registry()
        self._routes = Routes(self.settings.routing, rng=self._rng)
        self._imports: dict[Attachment, _Import] = {}
        self._lost: dict[str, tuple[float, str]] = {}
        """When and why peers were lost last."""
        self._remembered: dict[str, Catalog] = {}
        """What peers had that are gone: of the same digest, it is not asked for again when they come back."""
        self._exposed = Exposed(self.overlays, self._routes)
        self._hidden: frozenset[str] = frozenset()
        self._publishing: asyncio.TimerHandle | None = None
        self._publish_took_s = self._published_at = 0.0
        self._tasks = Tasks("mesh")

    # --- what changes -----------------------------------------------------------------------------------------------

    def apply(self, settings: MeshSettings, own: Registry) -> None:
        """Replace the settings and the node's own operations. What peers may not bring any more is gone at once; what
        they may bring now is asked for."""
        before, self.settings, self._own = self.settings, settings, own
        self._routes.policy = settings.routing
        for attachment in self.overlays:
            terms = self._terms(attachment)
            if terms.offers != before.terms.get(attachment.peer, NO_TERMS).offers:
                self.overlays.fill(attachment, attachment.catalog.only(terms.wants))
                self._imports[attachment].offers = None
                self._imports[attachment].is_due.set()
        self._publish_now(is_new=True)

    def attach(self, peer: str, session: Session) -> Attachment | None:
        """Import what the other side of `session`, which is `peer`, brings; None when it brings nothing."""
        if SERVE not in session.features:
            return None
        session.watch(PATIENCE_S)
        attachment = self.overlays.attach(peer, session)
        importing = self._imports[attachment] = _Import()
        importing.task = self._tasks.start(self._keep(attachment, importing), name=f"import {peer}")
        for oldest in self.overlays.of(peer)[MAX_ATTACHED:]:
            self.detach(oldest)
        log.info(event("peer attached", peer=peer, generation=attachment.generation, connection=session.connection.id))
        return attachment

    def detach(self, attachment: Attachment | None) -> None:
        """The session has ended; its operations are gone with it. Idempotent."""
        if attachment is None or not self.overlays.detach(attachment):
            return
        importing = self._imports.pop(attachment)
        if importing.task is not None:
            importing.task.cancel()
        peer = attachment.peer
        self._remember(peer, attachment.catalog)
        if not self.overlays.of(peer):
            self._routes.forget(peer)
            self._exposed.withdraw(peer)
        reason = attachment.session.end_reason or "the connection ended"
        self._lost[peer] = time.time(), reason
        log.info(event("peer detached", peer=peer, generation=attachment.generation, reason=reason))
        self._publish_soon()

    async def aclose(self) -> None:
        """Import nothing any more."""
        if self._publishing is not None:
            self._publishing.cancel()
        await self._tasks.aclose()

    # --- what is served ---------------------------------------------------------------------------------------------

    def operation(self, peer: str, name: str) -> Operation:
        """What that peer offers under this name; raises `CallError`."""
        attachment = self.overlays.find(peer, name)
        if attachment is None:
            raise not_there(self.overlays, peer, name, is_known=peer in self.settings.terms)
        operation = attachment.forwarding.get(name)
        if operation is None:
            operation = forwarded(attachment.catalog.specs[name], PeerForward(self.overlays, peer, name))
            attachment.forwarding[name] = operation
        return operation

    def anywhere(self, name: str, may: Callable[[str], bool]) -> tuple[Operation, tuple[str, ...]] | None:
        """What some of the peers that `may` says yes to offer under this name, and which; None when nobody does."""
        peers = tuple(peer for peer in self.overlays.offering(name) if may(peer))
        if not peers:
            return None
        spec = self._spec(peers[0], name)
        peers = tuple(peer for peer in peers if agree(self._spec(peer, name), spec))

        def candidates() -> tuple[str, ...]:
            return tuple(peer for peer in peers if self.overlays.find(peer, name) is not None)

        route = partial(self._routes.of, f"*:{name}")
        return forwarded(spec, RoutedForward(self.overlays, name, candidates, route)), peers

    def operations_of(self, peer: str) -> Mapping[str, OperationSpec]:
        """What a peer offers now, by name."""
        return self.overlays.operations(peer)

    def connected(self) -> list[str]:
        """Who is here and brings operations."""
        return self.overlays.peers

    def describe(self) -> dict[str, Any]:
        """For `node/status`: who brings what, and how the calls are spread."""
        now = asyncio.get_running_loop().time()
        return {
            "attached": [
                {
                    "peer": one.peer,
                    "connection": one.session.connection.id,
                    "generation": one.generation,
                    "operations": len(one.catalog.specs),
                    "problem": self._problem(one),
                }
                for one in self.overlays
            ],
            "away": [self._away(peer) for peer, terms in self.settings.terms.items() if self._is_missed(peer, terms)],
            "exposed": len(self._exposed.operations),
            "is_settled": self._publishing is None,
            "routing": str(self.settings.routing),
            "routes": self._routes.counters(now),
        }

    def _problem(self, attachment: Attachment) -> str | None:
        said = [self._imports[attachment].problem]
        if names := self._exposed.left_out.get(attachment.peer, ()):
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            said.append(
                f"it says otherwise than other peers what {', '.join(names[:3])}{more} is, and gets no calls of it"
            )
        return "; ".join(filter(None, said)) or None

    def _is_missed(self, peer: str, terms: Terms) -> bool:
        return bool(terms.offers) and not self.overlays.of(peer)

    def _away(self, peer: str) -> dict[str, Any]:
        at, reason = self._lost.get(peer, (None, None))
        since = None if at is None else datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds")
        return {"peer": peer, "since": None if since is None else since.replace("+00:00", "Z"), "reason": reason}

    def _terms(self, attachment: Attachment) -> Terms:
        return self.settings.terms.get(attachment.peer, NO_TERMS)

    def _spec(self, peer: str, name: str) -> OperationSpec:
        attachment = self.overlays.find(peer, name)
        assert attachment is not None
        return attachment.catalog.specs[name]

    # --- importing --------------------------------------------------------------------------------------------------

    async def _keep(self, attachment: Attachment, importing: _Import) -> None:
        """Import now and whenever there is reason to, until the session ends."""
        session: Session = attachment.session
        watching: asyncio.Task[None] | None = None
        backoff = Backoff(rng=self._rng, first_s=RETRY_S, most_s=MOST_RETRY_S)
        try:
            while self.overlays.is_attached(attachment) and session.is_open:
                importing.is_due.clear()
                retry_s = None
                if (watching is None or watching.done()) and self._terms(attachment).offers:
                    watching = self._tasks.start(self._watch(attachment, importing), name=f"watch {attachment.peer}")
                try:
                    await self._import(attachment, importing)
                    backoff.reset()
                except ImportFailed as exc:
                    if not session.is_open:
                        return
                    retry_s = backoff.next_s()
                    self._note(attachment, importing, str(exc))
                except Exception as exc:  # a mistake of ours about what a peer may say must not end the import
                    log.exception(event("import failed", peer=attachment.peer))
                    retry_s = backoff.next_s()
                    importing.problem = f"{type(exc).__name__}, see the node's log"
                await asyncio.sleep(PAUSE_S)
                if self.overlays.is_attached(attachment) and not self._is_stale(attachment, importing):
                    importing.is_due.clear()  # what was told is known already
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(retry_s):
                        await importing.is_due.wait()
        finally:
            if watching is not None:
                watching.cancel()

    async def _import(self, attachment: Attachment, importing: _Import) -> None:
        terms = self._terms(attachment)
        importing.offers = terms.offers
        if terms.offers:
            known = attachment.catalog if attachment.is_filled else self._remembered.get(attachment.peer, EMPTY)
            catalog = await from_call(attachment.session, terms.wants, known=known)
            # Meanwhile the terms may have changed.
            catalog = catalog.only(self._terms(attachment).wants)
        else:
            catalog = EMPTY
        if not self.overlays.fill(attachment, catalog):
            return
        self._note(attachment, importing, "; ".join(catalog.skipped) or _nothing(importing.offers, catalog))
        self._publish_soon()

    def _remember(self, peer: str, catalog: Catalog) -> None:
        if catalog.specs:
            self._remembered.pop(peer, None)
            self._remembered[peer] = catalog
            if len(self._remembered) > MAX_REMEMBERED:
                del self._remembered[next(iter(self._remembered))]

    def _is_stale(self, attachment: Attachment, importing: _Import) -> bool:
        """Whether another import would find something else."""
        terms = self._terms(attachment)
        return importing.offers != terms.offers or (
            bool(terms.offers) and importing.told is not None and importing.told != attachment.catalog.revision
        )

    def _note(self, attachment: Attachment, importing: _Import, problem: str) -> None:
        if problem and problem != importing.problem:
            log.warning(event("import", peer=attachment.peer, reason=problem))
        importing.problem = problem

    async def _watch(self, attachment: Attachment, importing: _Import) -> None:
        """Import again whenever the other side says that its operations have changed, if it says so at all."""
        try:
            async with attachment.session.subscribe("services/changed", {}) as changes:
                async for item in changes:
                    told = item.get("revision") if isinstance(item, dict) else None
                    importing.told = told if isinstance(told, int) else None
                    if self._is_stale(attachment, importing):
                        importing.is_due.set()
        except CallError as exc:
            log.debug(event("no word of changes", peer=attachment.peer, reason=exc))

    # --- exposing ---------------------------------------------------------------------------------------------------

    def _publish_soon(self) -> None:
        if self._publishing is None:
            # With many peers it takes longer, and calls are to be served meanwhile.
            pause_s = min(PUBLISH_SHARE * self._publish_took_s, MOST_PUBLISH_PAUSE_S)
            delay_s = max(PUBLISH_DELAY_S, self._published_at + pause_s - time.monotonic())
            self._publishing = asyncio.get_running_loop().call_later(delay_s, self._publish_now)

    def _publish_now(self, *, is_new: bool = False) -> None:
        if self._publishing is not None:
            self._publishing.cancel()
            self._publishing = None
        began = time.monotonic()
        if self._exposed.rebuild(self.settings.terms) or is_new:
            self._announce()
        self._published_at = time.monotonic()
        self._publish_took_s = self._published_at - began

    def _announce(self) -> None:
        exposed = self._exposed.operations
        hidden = frozenset(exposed.keys() & self._own.operations.keys())
        if hidden - self._hidden:
            names = ",".join(sorted(hidden - self._hidden)[:10])
            log.warning(event("operations of peers are hidden by this node's own", names=names))
        self._hidden = hidden
        self._publish(self._own.beside(exposed) if exposed else self._own)


def _nothing(offers: tuple[str, ...] | None, catalog: Catalog) -> str:
    """Why a peer that may bring operations brings none."""
    if not offers or catalog.specs:
        return ""
    if not catalog.listed:
        return "it lets this node call nothing: the entry that it has of this node grants no scope for its operations"
    return f"none of its {catalog.listed} operations matches what its entry here offers: {', '.join(offers[:5])}"
