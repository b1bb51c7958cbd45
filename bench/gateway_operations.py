"""What every contender of `gateway.py` serves, and what it is asked: an order with five fields that have bounds."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Annotated

from pydantic import BaseModel, Field

from alknet import operation

__all__ = [
    "INPUT",
    "LISTED",
    "PLACE",
    "SCOPE",
    "Customer",
    "Item",
    "Note",
    "Number",
    "Placed",
    "Tags",
    "catalogue",
    "place",
    "wait",
]

SCOPE = "orders:use"
PLACE = "orders/place"
LISTED = 1000
"""Operations of a node, tools of a server, that are listed."""
INPUT = {"customer": "c-1029", "item": "a green bicycle", "count": 3, "tags": ["gift", "fragile"], "note": "ring twice"}

Customer = Annotated[str, Field(min_length=1, max_length=64)]
Item = Annotated[str, Field(min_length=1, max_length=200)]
Number = Annotated[int, Field(ge=1, le=100)]
Tags = Annotated[list[str], Field(max_length=10)]
Note = Annotated[str, Field(max_length=500)]


class Placed(BaseModel):
    """An order that was taken."""

    number: int
    customer: str
    items: list[str]
    tags: list[str]
    is_gift: bool


@operation(PLACE, kind="mutation", scopes=[SCOPE])
async def place(customer: Customer, item: Item, count: Number, tags: Tags, note: Note = "") -> Placed:
    """Place an order."""
    return Placed(number=1, customer=customer, items=[item] * count, tags=tags, is_gift="gift" in tags)


@operation("orders/wait", kind="subscription", scopes=[SCOPE])
async def wait() -> AsyncIterator[str]:
    """Orders as they come; none come."""
    await asyncio.Event().wait()
    yield ""


def catalogue() -> list[Callable[..., Awaitable[Placed]]]:
    """`LISTED` functions with the parameters of `place`, each an operation."""

    def make(number: int) -> Callable[..., Awaitable[Placed]]:
        async def find(customer: Customer, item: Item, count: Number, tags: Tags, note: Note = "") -> Placed:
            return Placed(number=number, customer=customer, items=[item] * count, tags=tags, is_gift=False)

        find.__name__ = f"find_{number:04d}"
        find.__doc__ = f"Place an order out of part {number} of the catalogue."
        return operation(f"catalogue/find-{number:04d}", kind="mutation", scopes=[SCOPE])(find)

    return [make(number) for number in range(LISTED)]
