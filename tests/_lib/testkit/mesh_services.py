"""Operations of the workers of a mesh: who answers, what it knows of its caller, and what takes time.

The node's process is told by the environment which worker it is (``WORKER``) and how slow (``SLOW_S``).
"""

import asyncio
import os
from collections.abc import AsyncIterator
from typing import Any

from alknet import OperationContext, operation

__all__ = ["change", "facts", "late", "secret", "ticks", "who"]


@operation("mesh/who", kind="query")
async def who() -> str:
    """The worker that answers, after the time that it takes to."""
    if slow_s := float(os.environ.get("SLOW_S", "0")):
        await asyncio.sleep(slow_s)
    return os.environ.get("WORKER", "")


@operation("mesh/facts", kind="query")
async def facts(*, ctx: OperationContext) -> dict[str, Any]:
    """What the handler knows of the call."""
    return {
        "worker": os.environ.get("WORKER", ""),
        "peer": None if ctx.identity is None else ctx.identity.id,
        "forwarded_for": ctx.forwarded_for,
        "remaining_s": ctx.remaining_s(),
        "traceparent": ctx.traceparent,
    }


@operation("mesh/late", kind="query")
async def late(seconds: float) -> str:
    """The worker that answers, after so many seconds."""
    await asyncio.sleep(seconds)
    return os.environ.get("WORKER", "")


@operation("mesh/change", kind="mutation")
async def change(seconds: float) -> str:
    """As ``mesh/late``, but not to be repeated."""
    await asyncio.sleep(seconds)
    return os.environ.get("WORKER", "")


@operation("mesh/ticks")
async def ticks(every_s: float = 0.01) -> AsyncIterator[str]:
    """The worker that answers, again and again."""
    while True:
        yield os.environ.get("WORKER", "")
        await asyncio.sleep(every_s)


@operation("hidden/secret", kind="query")
async def secret() -> str:
    """Of no concern to the hub."""
    return "secret"
