"""Operations of the other side of a session, found out by asking it.

The list comes in pages; how each operation is called is asked for many at a time, and not again for what has not
changed since the last time (its ``digest`` in the list says so).
"""

import asyncio
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Final, Protocol

from alknet.call.errors import CallError
from alknet.call.import_errors import (
    DiscoveryFailed,
    ImportFailed,
    SamePeerCollision,
    SchemaParse,
    Transport,
    Unauthorized,
)
from alknet.call.remote_specs import MAX_DESCRIPTION_BYTES, read_spec
from alknet.call.slices import Slices
from alknet.call.specs import OperationSpec

__all__ = ["EMPTY", "OWN_NAMESPACE", "Catalog", "Session", "from_call"]

OWN_NAMESPACE: Final = "services/"
"""Operations about operations: every node has its own."""
PAGE: Final = 1000
MAX_PAGES: Final = 1000
MAX_LISTED: Final = 10_000
"""Operations in another side's list that are looked at."""
MAX_IMPORTED: Final = 2_000
"""Operations of one peer."""
MAX_CATALOG_BYTES: Final = 8 * 1024 * 1024
"""Of the descriptions of one peer's operations, as JSON."""
MAX_SKIPPED: Final = 20
"""Reasons that are kept of those for which operations were left out."""
SCHEMAS_AT_ONCE: Final = 64
ANSWER_TIMEOUT_S: Final = 30.0


class Session(Protocol):
    """What asks the other side."""

    async def call(self, name: str, value: Any = None, *, timeout_s: float | None = None, **extra: Any) -> Any:
        """Call one of its operations; raises `CallError`."""


@dataclass(frozen=True, slots=True)
class Catalog:
    """The operations of one peer that are wanted here, in the order of their names."""

    specs: Mapping[str, OperationSpec]
    digests: Mapping[str, str] = field(default_factory=dict, repr=False)
    """What the peer's list said of each; of the same digest, nothing is asked again."""
    bytes: Mapping[str, int] = field(default_factory=dict, repr=False)
    skipped: tuple[str, ...] = ()
    """Why operations were left out, `MAX_SKIPPED` at most."""
    revision: int | None = None
    """The peer's number for what it listed, as `services/changed` tells it."""
    listed: int = 0
    """Operations that the peer lets this side call, those about operations left out."""

    def only(self, is_wanted: Callable[[str], bool]) -> "Catalog":
        """Without what is not wanted any more."""
        specs = {name: spec for name, spec in self.specs.items() if is_wanted(name)}
        return replace(self, specs=MappingProxyType(specs))


EMPTY: Final = Catalog(MappingProxyType({}))


async def from_call(session: Session, is_wanted: Callable[[str], bool], *, known: Catalog = EMPTY) -> Catalog:
    """What the other side lets this one call, as far as it `is_wanted`. What is wrong with a single operation leaves
    that out; `ImportFailed` when the whole cannot be found out."""
    listed, revision = await _listed(session)
    wanted = {name: digest for name, digest in sorted(listed.items()) if is_wanted(name)}
    skipped = []
    if len(wanted) > MAX_IMPORTED:
        skipped.append(f"of {len(wanted)} operations only the first {MAX_IMPORTED} are taken")
        wanted = dict(list(wanted.items())[:MAX_IMPORTED])
    specs: dict[str, OperationSpec] = {}
    digests: dict[str, str] = {}
    sizes: dict[str, int] = {}
    for name, spec, digest, size in await _described(session, wanted, known):
        if isinstance(spec, str):
            skipped.append(spec)
        else:
            specs[name], digests[name], sizes[name] = spec, digest, size
    others = sum(not name.startswith(OWN_NAMESPACE) for name in listed)
    return Catalog(MappingProxyType(specs), digests, sizes, tuple(skipped[:MAX_SKIPPED]), revision, others)


async def _listed(session: Session) -> tuple[dict[str, str], int | None]:
    """(the names of its operations, each with its digest; the revision of the first page)."""
    found: dict[str, str] = {}
    revision = None
    cursor = ""
    for number in range(MAX_PAGES):
        page = await _ask(session, "services/list", {"limit": PAGE, "cursor": cursor})
        operations = page.get("operations") if isinstance(page, dict) else None
        if not isinstance(operations, list):
            raise DiscoveryFailed("services/list answered something that is no list of operations")
        if number == 0:
            revision = page.get("revision")
        for one in operations:
            name, digest = (one.get("name"), one.get("digest", "")) if isinstance(one, dict) else (None, "")
            if isinstance(name, str) and isinstance(digest, str) and len(found) < MAX_LISTED:
                if name in found:
                    raise SamePeerCollision(f"services/list has two operations named {name[:200]!r}")
                found[name] = digest
        after = page.get("next_cursor")
        if not isinstance(after, str) or after <= cursor or len(found) == MAX_LISTED:
            break
        cursor = after
    return found, revision if isinstance(revision, int) else None


async def _described(
    session: Session, wanted: Mapping[str, str], known: Catalog
) -> list[tuple[str, OperationSpec | str, str, int]]:
    """(name, its specification or why it is left out, digest, bytes) of each. What is left out is let go of at once:
    all descriptions together may be far more than a catalog holds."""
    turns = asyncio.Semaphore(SCHEMAS_AT_ONCE)
    same = {
        name for name, digest in wanted.items() if digest and known.digests.get(name) == digest
    } & known.specs.keys()
    total = sum(known.bytes[name] for name in same)
    full = f"the descriptions have more than {MAX_CATALOG_BYTES} bytes together"
    reading, slices = asyncio.Lock(), Slices()

    async def one(name: str, digest: str) -> tuple[str, OperationSpec | str, str, int] | None:
        nonlocal total
        if name in same:
            return name, known.specs[name], digest, known.bytes[name]
        async with turns:
            if total >= MAX_CATALOG_BYTES:
                return name, f"{name}: {full}", digest, 0
            try:
                description = await _ask(session, "services/schema", {"name": name})
                async with reading:  # many may have come at once, and calls are served meanwhile
                    await slices.breathe()
                size = len(json.dumps(description, default=str))
                if size > MAX_DESCRIPTION_BYTES:
                    raise SchemaParse(f"{name}: its description has {size} bytes, more than {MAX_DESCRIPTION_BYTES}")
                if total + size > MAX_CATALOG_BYTES:
                    return name, f"{name}: {full}", digest, 0
                spec = read_spec(name, description)
                total += size
                return name, spec, digest, size
            except SchemaParse as exc:
                return name, str(exc), digest, 0  # not the exception, whose traceback holds the description
            except RecursionError:
                return name, f"{name}: its description is nested too deeply", digest, 0
            except _Gone:
                return None  # it was there a moment ago

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(name, digest)) for name, digest in wanted.items()]
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from None
    return [answer for task in tasks if (answer := task.result()) is not None]


class _Gone(ImportFailed):
    """There is no such operation any more."""


async def _ask(session: Session, name: str, value: dict[str, Any]) -> Any:
    try:
        return await session.call(name, value, timeout_s=ANSWER_TIMEOUT_S)
    except CallError as exc:
        if exc.code == "FORBIDDEN":
            raise Unauthorized(f"{name} is not for this side: {exc}") from exc
        if exc.code == "NOT_FOUND":
            gone = name == "services/schema"
            raise (_Gone if gone else DiscoveryFailed)(f"{name}: {exc}") from exc
        if exc.retryable:
            raise Transport(f"{name}: {exc}") from exc
        raise DiscoveryFailed(f"{name}: {exc}") from exc
