"""Operations for generated requests: inputs and outputs that a tool of others can make and check by their schemas."""

from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import BaseModel, Field

from alknet import Bytes, OperationError, operation

__all__ = ["Booking", "Full", "Room", "book", "length", "moments", "nothing", "rooms"]


class Full(OperationError):
    """The room is taken."""

    code = "FULL"
    http_status = 423
    details: dict[str, date]


class Room(BaseModel):
    """A room to book."""

    name: Annotated[str, Field(min_length=1, max_length=20, pattern="^[a-z]+$")]
    seats: Annotated[int, Field(ge=1, le=400)]
    equipment: list[Literal["screen", "board"]] = []


class Booking(BaseModel):
    """Who has which room when."""

    room: Room
    day: date
    guests: Annotated[int, Field(ge=1)] | None = None
    notes: dict[str, str] = {}


@operation("more/moments", kind="query")
async def moments(
    day: date, when: datetime | None = None, span: timedelta = timedelta(1), who: UUID | None = None
) -> dict[str, Any]:
    """Text that is more than text."""
    return {"day": day, "when": when, "span": span, "who": who}


@operation("more/length", kind="query")
async def length(data: Bytes) -> Annotated[int, Field(ge=0)]:
    """How many bytes these are."""
    return len(data)


@operation("more/rooms", kind="query")
async def rooms(
    seats: Annotated[int, Field(ge=1, le=500)] = 1,
    equipment: list[Literal["screen", "board"]] = [],  # noqa: B006
    price: Decimal = Decimal(10),
) -> list[Room]:
    """Rooms with so many seats."""
    return [Room(name="blue", seats=min(seats, 400), equipment=equipment)]


@operation("more/book", kind="mutation", idempotent=True, errors=[Full])
async def book(booking: Booking) -> Booking:
    """Book a room, unless somebody else has it."""
    if booking.room.seats > 100:
        raise Full("it is taken", details={"until": booking.day})
    return booking


@operation("more/nothing", kind="mutation")
async def nothing() -> None:
    """Take nothing, answer nothing."""
