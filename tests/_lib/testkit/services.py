"""Operations that a node of a test serves: ``[services] modules = ["testkit.services"]``.

What runs for long notes when it began and how it ended under a `mark` of the test's; ``test/seen`` answers that. Times
are of the machine's monotonic clock, which every process here reads alike.
"""

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Iterator
from typing import Annotated, Any, Literal

from pydantic import Field

from alknet import Bytes, OperationContext, OperationError, operation

__all__ = [
    "SoldOut",
    "absent",
    "back",
    "blob",
    "compose",
    "count",
    "crash",
    "digest",
    "echo",
    "endless",
    "identity",
    "inside",
    "item",
    "numbers",
    "order",
    "paced",
    "read",
    "relay",
    "seen",
    "text",
    "thread",
    "typed",
    "wait",
    "wide",
]

seen_marks: dict[str, dict[str, Any]] = {}


class SoldOut(OperationError):
    """There are fewer left than were asked for."""

    code = "SOLD_OUT"
    http_status = 409
    details: dict[str, int]


# --- values ------------------------------------------------------------------------------------------------------


@operation("test/echo", kind="query")
async def echo(value: Any = None) -> Any:
    """Answer with what it is given."""
    return value


@operation("test/blob", kind="query")
async def blob(size: int) -> Bytes:
    """So many bytes."""
    return bytes(range(256)) * (size // 256) + bytes(size % 256)


@operation("test/text", kind="query")
async def text(size: int) -> str:
    """So many letters."""
    return "x" * size


@operation("test/digest", kind="query")
async def digest(data: Bytes) -> dict[str, Any]:
    """How many bytes these are, and their SHA-256."""
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


@operation(
    "test/typed",
    kind="query",
    tags=["values"],
    examples=[{"input": {"name": "a", "count": 2}}],
)
async def typed(
    name: Annotated[str, Field(description="What it is called.")],
    count: Annotated[int, Field(ge=0, description="How many.")] = 1,
    ratio: float = 0.5,
    flag: bool = False,
    mode: Literal["fast", "slow"] = "slow",
    tags: list[str] | None = None,
    sizes: tuple[int, ...] = (),
    limit: int | None = None,
    options: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Answer with its inputs, as they arrived.

    One of every type that people type at a shell.
    """
    return {
        "name": name, "count": count, "ratio": ratio, "flag": flag, "mode": mode, "tags": tags, "sizes": sizes,
        "limit": limit, "options": options,
    }  # fmt: skip


@operation("test/identity", kind="query", public=True)
async def identity(*, ctx: OperationContext) -> dict[str, Any]:
    """Who calls, through which door."""
    return {"peer": None if ctx.identity is None else ctx.identity.id, "surface": ctx.surface}


# --- what takes time ---------------------------------------------------------------------------------------------


@operation("test/wait", kind="query")
async def wait(mark: str, seconds: float = 60.0) -> str:
    """Answer after so many seconds."""
    with _Marked(mark):
        await asyncio.sleep(seconds)
    return "waited"


@operation("test/thread", kind="query")
def thread(value: int) -> int:
    """One more than it is given, worked out by a plain function."""
    return value + 1


@operation("test/seen", kind="query")
async def seen(mark: str) -> dict[str, Any] | None:
    """How what has this mark has gone: when it began, how it ended, and when. None before it began."""
    return seen_marks.get(mark)


@operation("test/count")
async def count(to: int, size: int = 0) -> AsyncIterator[dict[str, Any]]:
    """The numbers below `to`, each with so many letters."""
    for number in range(to):
        yield {"number": number, "text": "x" * size}


@operation("test/numbers")
def numbers(to: int) -> Iterator[int]:
    """The numbers below `to`, from a plain generator."""
    yield from range(to)


@operation("test/endless")
async def endless(mark: str) -> AsyncIterator[int]:
    """One number, and then nothing for ever."""
    with _Marked(mark):
        yield 0
        await asyncio.Event().wait()


@operation("test/paced")
async def paced(mark: str) -> AsyncIterator[int]:
    """Numbers, as fast as they are taken."""
    with _Marked(mark) as marked:
        number = 0
        while True:
            marked["items"] = number
            yield number
            number += 1
            await asyncio.sleep(0)


# --- calls that make calls -----------------------------------------------------------------------------------------


@operation("test/relay", kind="query", calls=["*:*"], authority=["peer:*"])
async def relay(peer: str, name: str, value: dict[str, Any], *, ctx: OperationContext) -> Any:
    """What the operation of a connected peer answers."""
    return await ctx.call_peer(peer, name, value)


@operation("test/back", kind="query", calls=["caller:test/*", "test/back"], authority=["test:*"])
async def back(name: str, value: dict[str, Any], through: bool = False, *, ctx: OperationContext) -> Any:
    """What an operation answers that the caller brings; with `through` it is asked for by a composed call."""
    if through:
        return await ctx.call("test/back", name=name, value=value)
    return await ctx.call_caller(name, value)


@operation("test/compose", kind="query", calls=["test/wait"], authority=["test:*"])
async def compose(mark: str, *, ctx: OperationContext) -> Any:
    """What ``test/wait`` of this node answers; both leave a mark."""
    with _Marked(f"{mark}-parent"):
        return await ctx.call("test/wait", mark=mark)


# --- what goes wrong -----------------------------------------------------------------------------------------------


@operation("test/order", kind="mutation", errors=[SoldOut])
async def order(item: str, amount: int) -> str:
    """Order something; only 3 are left."""
    if amount > 3:
        raise SoldOut(f"only 3 of {item} are left", details={"left": 3}, hint="order fewer")
    return f"{amount} of {item}"


@operation("test/crash", kind="query")
async def crash() -> None:
    """Fail as nobody expected."""
    raise RuntimeError("the handler's own secret")


@operation("test/absent", kind="query")
async def absent(mark: str) -> str:
    """Cancelled by itself, without having been asked."""
    with _Marked(mark):
        raise asyncio.CancelledError


# --- what the access matrix needs besides ----------------------------------------------------------------------------


@operation("matrix/wide", kind="query", any_scopes=["matrix:one", "matrix:two"])
async def wide() -> str:
    """For those with one of two scopes."""
    return "wide"


@operation("matrix/read", kind="query", scopes=["matrix:read"], resource="shelf", resource_action="read",
           resource_id="$.shelf")  # fmt: skip
async def read(shelf: str) -> str:
    """For those who may read this shelf."""
    return shelf


@operation("matrix/inside", kind="query", visibility="internal", public=True)
async def inside() -> str:
    """For other operations of the node only."""
    return "inside"


@operation("matrix/item")
async def item() -> AsyncIterator[str]:
    """One item."""
    yield "item"


class _Marked:
    """Notes what happens inside of it."""

    def __init__(self, mark: str) -> None:
        self._mark = seen_marks[mark] = {"began": time.monotonic(), "ended": None, "how": None}

    def __enter__(self) -> dict[str, Any]:
        return self._mark

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._mark |= {"ended": time.monotonic(), "how": "returned" if kind is None else kind.__name__}
