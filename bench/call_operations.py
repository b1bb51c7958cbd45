"""What every contender of `call.py` serves: a text comes back, or comes many times."""

from collections.abc import AsyncIterator

from alknet import operation

__all__ = ["SCOPE", "count", "say"]

SCOPE = "echo:use"


@operation("echo/say", kind="query", scopes=[SCOPE])
async def say(data: str) -> str:
    """The text itself."""
    return data


@operation("echo/count", kind="subscription", scopes=[SCOPE])
async def count(data: str, items: int) -> AsyncIterator[str]:
    """The text, so many times."""
    for _ in range(items):
        yield data
