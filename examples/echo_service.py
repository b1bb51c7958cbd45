"""A first service: Python functions that a node serves as operations.

Make a home, name this module in it, and run the node:

    alknet init --listen 127.0.0.1:7022
    sed -i 's/^modules = .*/modules = ["echo_service"]/' ~/.config/alknet/alknet.toml
    PYTHONPATH=examples alknet up

In another terminal:

    alknet ops --query echo
    alknet ops . echo/say
    alknet call . echo/say text=hello times=2
    alknet call . echo/say '{"text": "hello"}'
    alknet call . echo/whoami
    alknet call . echo/say times=many || echo "exit code $?"

The same from a program is in token_stream.py; with stock ssh it is ssh HOST op echo/say '{"text": "hello"}'.
"""

import asyncio
from typing import Annotated

from pydantic import Field

import alknet


# The parameters are the input and the return type is the output: callers see both as JSON Schema, and a wrong input
# never gets as far as the function. The first line of the docstring is what `alknet ops` shows.
#
# Whoever calls it needs the scope echo:say, its name with a colon. `scopes=["…"]` asks for others, and `public=True`
# lets everybody in, strangers too.
@alknet.operation("echo/say", examples=[{"input": {"text": "hello", "times": 3}, "output": "hello hello hello"}])
async def say(
    text: Annotated[str, Field(description="What to say.", max_length=1000)],
    times: Annotated[int, Field(description="How many times.", ge=1, le=10)] = 1,
    pause_s: Annotated[float, Field(description="How long to wait first, in seconds.", ge=0, le=20)] = 0,
) -> str:
    """Say something, several times if need be."""
    # While it waits other calls are served; when its caller goes away, or the time is over, it is cancelled here.
    await asyncio.sleep(pause_s)
    return " ".join([text] * times)


# A plain function runs in a thread, so that it may block. One that wants to know who calls asks for the context.
@alknet.operation("echo/whoami")
def whoami(*, ctx: alknet.OperationContext) -> dict[str, str | None]:
    """Who is calling, and through which door."""
    return {"peer": None if ctx.identity is None else ctx.identity.id, "door": ctx.surface}
