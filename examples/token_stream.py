"""A language model's answer as a subscription: tokens as they are made, and nothing made that nobody reads.

Make a home, name this module in it, and run the node:

    alknet init --listen 127.0.0.1:7022
    sed -i 's/^modules = .*/modules = ["token_stream"]/' ~/.config/alknet/alknet.toml
    PYTHONPATH=examples alknet up

In another terminal, from the command line and with the client below; Ctrl-C stops the model, too:

    alknet call --stream . model/complete prompt="What is a node?" max_tokens=5
    python examples/token_stream.py "What is a node?"
    python examples/token_stream.py --tokens 3 "What is a node?"
"""

import argparse
import asyncio
from collections.abc import AsyncIterator
from typing import Annotated

from pydantic import BaseModel, Field

import alknet

# --- the service -----------------------------------------------------------------------------------------------------


class Token(BaseModel):
    """One piece of the answer."""

    text: str
    index: int


class PromptTooLong(alknet.OperationError):
    """The prompt is longer than the model takes."""

    code = "PROMPT_TOO_LONG"
    http_status = 413


# A generator is a subscription: each `yield` is one item. It is paced by its reader: when nobody takes the items, the
# generator waits at `yield`. When the reader goes away it is closed there, so that the `finally` runs at once.
@alknet.operation("model/complete", scopes=["model:use"], errors=[PromptTooLong])
async def complete(
    prompt: str,
    max_tokens: Annotated[int, Field(ge=1, le=1000)] = 100,
) -> AsyncIterator[Token]:
    """Answer a prompt, token by token."""
    if len(prompt) > 4000:
        raise PromptTooLong(f"{len(prompt)} characters are more than 4000")
    model = load_model(prompt)
    try:
        for index, text in enumerate(model):
            if index == max_tokens:
                break
            await asyncio.sleep(0.02)  # the time that a model takes for one
            yield Token(text=text, index=index)
    finally:
        print(f"the model is free again after {prompt!r}", flush=True)  # here a GPU would be given back


def load_model(prompt: str) -> list[str]:
    """A stand-in: put the generator of your model here."""
    return f"You asked: {prompt} A node is one port, one identity and one policy.".replace(" ", " \0").split("\0")


# --- a client --------------------------------------------------------------------------------------------------------


async def main() -> None:
    parser = argparse.ArgumentParser(description="Print what a model answers, as it is made.")
    parser.add_argument("prompt")
    parser.add_argument("--peer", default=".", help="a configured peer, host:port, or . for the node of this home")
    parser.add_argument("--tokens", type=int, help="stop after so many")
    options = parser.parse_args()

    # The end of this block, however it comes, ends the subscription at the other side.
    async with (
        alknet.connect(options.peer) as peer,
        peer.subscribe("model/complete", prompt=options.prompt) as tokens,
    ):
        async for token in tokens:
            print(token["text"], end="", flush=True)
            if token["index"] + 1 == options.tokens:
                break
    print()


if __name__ == "__main__":
    asyncio.run(main())
