"""The types of a typed client, as values: what `alknet.call.typed_schemas` makes of JSON Schemas."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

__all__ = [
    "ANY",
    "MAX_OPTIONS",
    "NONE",
    "Alias",
    "Choice",
    "Declared",
    "Field",
    "Generic",
    "Inputs",
    "Named",
    "Plain",
    "Record",
    "Type",
    "Union",
    "parts_of",
    "union",
    "without",
]

MAX_OPTIONS: Final = 100
"""Of a union, or places of a tuple; a larger union is ``Any``."""


@dataclass(frozen=True, slots=True)
class Plain:
    """A type that Python has: ``int``, ``Any``, ``None``."""

    text: str


@dataclass(frozen=True, slots=True)
class Choice:
    """One of these values, each as it stands in source."""

    values: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Generic:
    """A ``list``, ``dict`` or ``tuple`` of these."""

    head: str
    parts: "tuple[Type, ...]"


@dataclass(frozen=True, slots=True)
class Union:
    """One of these types."""

    parts: "tuple[Type, ...]"


@dataclass(frozen=True, slots=True)
class Named:
    """The type that `typed_schemas.Types.declared` has at this place."""

    key: int


Type = Plain | Choice | Generic | Union | Named
ANY: Final = Plain("Any")
NONE: Final = Plain("None")


@dataclass(frozen=True, slots=True)
class Field:
    """One key of an object. `note` is what is to be known of it besides its type."""

    name: str
    type: Type
    is_required: bool
    note: str = ""

    def with_type(self, type_: Type) -> "Field":
        return replace(self, type=type_)


@dataclass(frozen=True, slots=True)
class Record:
    """The body of a TypedDict."""

    fields: tuple[Field, ...]
    note: str = ""


@dataclass(frozen=True, slots=True)
class Alias:
    """Another name for a type."""

    type: Type


@dataclass(slots=True)
class Declared:
    """A type that gets a name: `base`, if nothing else would like it; `operation` and `role` tell it from others."""

    base: str
    operation: str
    role: str
    body: Record | Alias = Alias(ANY)


@dataclass(frozen=True, slots=True)
class Inputs:
    """What an operation takes: named inputs, and `others` if it takes further ones of that type; or, with `whole`, a
    single value of it."""

    fields: tuple[Field, ...] = ()
    others: Type | None = None
    whole: Type | None = None


def parts_of(type_: Type) -> Iterator[Type]:
    """The type and every type in it, down to names."""
    yield type_
    if isinstance(type_, Generic | Union):
        for part in type_.parts:
            yield from parts_of(part)


def without(type_: Type, others: dict[Type, Type]) -> Type:
    """The type with some types in it replaced."""
    if type_ in others:
        return others[type_]
    if isinstance(type_, Generic):
        return replace(type_, parts=tuple(without(part, others) for part in type_.parts))
    return union([without(part, others) for part in type_.parts]) if isinstance(type_, Union) else type_


def union(parts: Sequence[Type]) -> Type:
    """One of these, flat, each once, None last; ``Any`` if one of them is."""
    flat = dict.fromkeys(one for part in parts for one in (part.parts if isinstance(part, Union) else (part,)))
    if ANY in flat or not flat or len(flat) > MAX_OPTIONS:
        return ANY
    if NONE in flat:
        del flat[NONE]
        flat[NONE] = None
    choices = [value for one in flat if isinstance(one, Choice) for value in one.values]
    if choices:
        first = next(one for one in flat if isinstance(one, Choice))
        merged = Choice(tuple(dict.fromkeys(choices)))
        flat = dict.fromkeys(
            merged if one == first else one for one in flat if one == first or not isinstance(one, Choice)
        )
    return next(iter(flat)) if len(flat) == 1 else Union(tuple(flat))
