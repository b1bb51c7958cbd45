"""Operations with one of every type that annotations can say, for what is made of schemas."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from decimal import Decimal
from enum import Enum, IntEnum
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import BaseModel, Field
from typing_extensions import TypedDict

from alknet import Bytes, OperationError, operation

__all__ = ["find", "grow", "look", "pay", "pick", "plain", "reserve", "restock", "shapes", "stock", "times", "watch"]


class Colour(Enum):
    RED = "red"
    GREEN = "green"


class Level(IntEnum):
    LOW = 1
    HIGH = 2


@dataclass
class Stock:
    """What is left of an item."""

    item: str
    left: int
    note: str | None = None


class Tree(BaseModel):
    """Refers to itself."""

    name: str
    children: list["Tree"] = []


class Cat(BaseModel):
    kind: Literal["cat"]
    lives: int = 9


class Dog(BaseModel):
    kind: Literal["dog"]
    good: bool = True


class Point(TypedDict):
    x: float
    y: float


class OutOfStock(OperationError):
    """There are fewer left than were asked for."""

    code = "OUT_OF_STOCK"
    http_status = 409
    details: Stock


class NoSuchItem(OperationError):
    """Nobody sells this."""

    code = "NO_SUCH_ITEM"
    http_status = 404
    details: dict[str, str]


class Closed(OperationError):
    """The shop is closed."""

    code = "CLOSED"
    http_status = 409


class Broken(OperationError):
    """Something is broken."""

    code = "BROKEN"


class Payment(BaseModel):
    amount: Decimal
    pets: list[Annotated[Cat | Dog, Field(discriminator="kind")]] = []
    colour: Colour = Colour.RED


@operation("shop/stock", kind="query", errors=[NoSuchItem], examples=[{"input": {"item": "a"}}])
async def stock(item: Annotated[str, Field(description="Which one.", max_length=100)]) -> Stock:
    """What is left of an item.

    The description has **several** lines,
    and <b>markup</b>.
    """
    if item == "none":
        raise NoSuchItem("nobody sells it", details={"item": item})
    return Stock(item, 3)


@operation("shop/reserve", kind="mutation", errors=[OutOfStock, Closed, NoSuchItem, Broken])
async def reserve(item: str, count: Annotated[int, Field(ge=1, le=10)] = 1) -> Stock:
    """Set something aside."""
    if count > 3:
        raise OutOfStock(details=Stock(item, 3))
    return Stock(item, 3 - count)


@operation("shop/restock", kind="mutation", destructive=True, errors=[Closed])
async def restock(stocks: list[Stock], tree: Tree | None = None) -> dict[str, Stock]:
    """Fill the shelves."""
    return {one.item: one for one in stocks}


@operation("shop/pay", kind="mutation", secret_inputs=["card"])
async def pay(payment: Payment, card: str) -> Payment:
    """Pay."""
    return payment


@operation("shop/watch")
async def watch(item: str) -> AsyncIterator[Stock]:
    """What is left, as it changes."""
    for left in range(3):
        yield Stock(item, left)


@operation("types/grow", kind="query")
async def grow(tree: Tree) -> Tree:
    """A tree."""
    return tree


@operation("types/find", kind="query", public=True)
async def find(
    text: str | None = None,
    colour: Colour | None = None,
    level: Level = Level.LOW,
    sizes: list[int] | None = None,
    words: list[str] = [],  # noqa: B006
    exact: bool = False,
    ratio: float = 0.5,
    either: int | str = 1,
    fixed: Literal[7] = 7,
    data: Bytes = b"ab",
) -> dict[str, Any]:
    """Everything that fits into a URL."""
    return {
        "text": text, "colour": colour, "level": level, "sizes": sizes, "words": words, "exact": exact, "ratio": ratio,
        "either": either, "fixed": fixed, "data": data,
    }  # fmt: skip


@operation("types/times", kind="query")
async def times(
    day: date, when: datetime, span: timedelta, who: UUID, price: Decimal = Decimal("1.5")
) -> tuple[date, datetime, timedelta, UUID]:
    """Text that is more than text."""
    return day, when, span, who


@operation("types/shapes", kind="query")
async def shapes(points: dict[str, Point], pair: tuple[int, str], several: set[Colour]) -> list[Point]:
    """Structures of the standard library."""
    return list(points.values())


@operation("types/pick", kind="query")
async def pick(pet: Annotated[Cat | Dog, Field(discriminator="kind")], other: Cat | int) -> Cat | Dog:
    """One of two."""
    return pet


@operation("types/plain", kind="query")
async def plain(value: Any = None) -> Any:
    """Whatever it is given."""
    return value


@operation("types/look", kind="query")
async def look() -> Bytes:
    """Bytes."""
    return b"\x00\xff"
