"""Work that takes a while: it says how far it is, and can be stopped halfway.

Make a home, name this module in it, and run the node:

    alknet init --listen 127.0.0.1:7022
    sed -i 's/^modules = .*/modules = ["progress"]/' ~/.config/alknet/alknet.toml
    PYTHONPATH=examples alknet up

In another terminal:

    alknet call --stream . job/run steps=3
    python examples/progress.py --steps 5
    python examples/progress.py --steps 500 --stop-after 2
    alknet call . job/log
"""

import argparse
import asyncio
from collections.abc import AsyncIterator
from typing import Annotated, Literal

from pydantic import BaseModel, Field

import alknet

# --- the service -----------------------------------------------------------------------------------------------------


class Working(BaseModel):
    """So far."""

    state: Literal["working"] = "working"
    done: int
    total: int


class Finished(BaseModel):
    """The last item: what the work has led to."""

    state: Literal["finished"] = "finished"
    result: int


log: list[str] = []


# Progress is a subscription, too: many items that say how far it is, and one with the result. It may run for hours, for
# a subscription has no deadline unless its caller sets one.
@alknet.operation("job/run", scopes=["job:run"])
async def run(steps: Annotated[int, Field(ge=1, le=1000)] = 10) -> AsyncIterator[Working | Finished]:
    """Add up the first numbers, slowly."""
    total = 0
    try:
        for step in range(steps):
            await asyncio.sleep(0.02)  # the work
            total += step
            yield Working(done=step + 1, total=steps)
        yield Finished(result=total)
        log.append(f"{steps} steps: finished")
    except (asyncio.CancelledError, GeneratorExit):
        # The caller has stopped it, or is gone: while it worked (the first) or while its item was sent (the second).
        # Tidy up, and pass it on.
        log.append(f"{steps} steps: stopped")
        raise


@alknet.operation("job/log", scopes=["job:run"])
async def show_log() -> list[str]:
    """How the jobs of this node have ended."""
    return log


# --- a client --------------------------------------------------------------------------------------------------------


async def main() -> None:
    parser = argparse.ArgumentParser(description="Run a job on a node and show how far it is.")
    parser.add_argument("--peer", default=".", help="a configured peer, host:port, or . for the node of this home")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--stop-after", type=int, metavar="N", help="stop it after N steps")
    options = parser.parse_args()

    async with alknet.connect(options.peer) as peer:
        job = peer.subscribe("job/run", steps=options.steps)
        async for item in job:
            if item["state"] == "finished":
                print(f"\nresult: {item['result']}")
                continue
            print(f"\r{item['done']} of {item['total']}", end="", flush=True)
            if item["done"] == options.stop_after:
                await job.aclose()  # the far side hears of it, and its `except` runs
                print("\nstopped")


if __name__ == "__main__":
    asyncio.run(main())
