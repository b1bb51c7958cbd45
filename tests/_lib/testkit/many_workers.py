"""Workers by the hundred in one process: sessions that bring operations to a hub, and come back when they have ended.

Run as a program: ``python -m testkit.many_workers HOME KEYS OPERATIONS``. HOME knows the hub as its peer ``hub``; each
private key in the directory KEYS is a worker. They wait between tries as a node's ``[[dial]]`` does.
"""

import asyncio
import random
import sys
from contextvars import ContextVar
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

import alknet
from alknet.backoff import Backoff
from alknet.call.operations import Operation, operations_of
from alknet.errors import AlknetError
from alknet.keys import write_key_pair

__all__ = ["make_keys"]

worker: ContextVar[str] = ContextVar("worker")
"""Whose session this is."""


def make_keys(directory: Path, count: int) -> dict[str, str]:
    """So many workers' keys, made there; the public lines by name."""
    directory.mkdir()
    names = [f"w{number:03}" for number in range(count)]
    for name in names:
        write_key_pair(directory / name, name)
    return {name: (directory / f"{name}.pub").read_text().strip() for name in names}


def operations(count: int) -> tuple[Operation, ...]:
    """So many operations, the same ones for every worker; each answers whose it was that was called."""

    def make(number: int) -> Any:
        @alknet.operation(f"many/op{number:02}", kind="query")
        async def answer(
            text: Annotated[str, Field(description="What to say besides.", max_length=100)] = "",
            times: Annotated[int, Field(ge=0, le=10)] = 1,
        ) -> dict[str, str | int]:
            """Who answers, and to what."""
            return {"worker": worker.get(), "operation": number, "text": text * times}

        return answer

    return operations_of(make(number) for number in range(count))


async def work(home: Path, key: Path, offered: tuple[Operation, ...]) -> None:
    """Be one worker for ever."""
    worker.set(key.name)
    backoff = Backoff(rng=random.Random())
    while True:
        try:
            async with alknet.connect("hub", home=home, identity=key, carrier="tls", operations=offered) as hub:
                backoff.reset()
                await hub.wait_closed()
        except AlknetError:
            pass
        await asyncio.sleep(backoff.next_s())


async def main(home: Path, keys: list[Path], count: int) -> None:
    offered = operations(count)
    async with asyncio.TaskGroup() as group:
        for key in keys:
            group.create_task(work(home, key, offered))


if __name__ == "__main__":
    found = sorted(path.with_suffix("") for path in Path(sys.argv[2]).glob("*.pub"))
    asyncio.run(main(Path(sys.argv[1]), found, int(sys.argv[3])))
