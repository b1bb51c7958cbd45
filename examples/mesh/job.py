"""What the workers of the mesh do; run.sh starts them and a hub that they dial out to.

    examples/mesh/run.sh

The service knows nothing of hubs: it is one like any other, and what a hub may call of it is what the hub's entry on
the worker has scopes for.
"""

import asyncio
import os
from collections.abc import AsyncIterator

import alknet


# A query is idempotent: when the worker that was chosen is lost, the hub asks the other one.
@alknet.operation("job/who")
async def who() -> str:
    """Which worker this is."""
    return os.environ["WORKER"]


@alknet.operation("job/steps")
async def steps(count: int = 1000, pause_s: float = 1.0) -> AsyncIterator[str]:
    """Work that takes a while, step by step."""
    for number in range(1, count + 1):
        yield f"{os.environ['WORKER']}: step {number}"
        await asyncio.sleep(pause_s)
