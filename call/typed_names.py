"""What the types of a typed client are called, in what order they stand, and how they are written.

Two types are one when nothing tells them apart: not their titles, their fields, nor the types of these, however often
they refer to each other.
"""

from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from graphlib import CycleError, TopologicalSorter
from itertools import chain, count
from typing import Final

from alknet.call.typed_source import MAX_IDENTIFIER_CHARS, literal
from alknet.call.typed_types import (
    ANY,
    Alias,
    Choice,
    Declared,
    Generic,
    Named,
    Plain,
    Record,
    Type,
    Union,
    parts_of,
    without,
)

__all__ = ["Names", "allocate"]

MAX_LOOKS: Final = 5_000_000
"""At types, to tell them apart, each round one reference further; where that is too few, none are put together."""
MIN_ROUNDS: Final = 8
IMPORTS: Final = frozenset({"Any", "Literal", "NotRequired", "builtins"})
"""What annotations of fields name besides types and built-ins."""


class Names:
    """The named types that are left when equal ones are one and aliases that say nothing are gone."""

    def __init__(self, declared: Sequence[Declared], roots: Iterable[Type]) -> None:
        """`roots` are the types that are written besides the named ones, which are those that they lead to."""
        self._declared = declared
        self._meant = _trivial(declared)
        kept = [key for key in range(len(declared)) if Named(key) not in self._meant]
        self.bodies: dict[int, Record | Alias] = {key: self._settled(declared[key].body) for key in kept}
        same = _equal({key: declared[key].base for key in kept}, self.bodies)
        self._meant |= {Named(key): Named(one) for key, one in same.items() if key != one}
        self._meant = {old: self._meant.get(new, new) for old, new in self._meant.items()}
        bodies = {key: self._settled(self.bodies[key]) for key in kept if same[key] == key}
        reached = _reached((self.settled(type_) for type_ in roots), bodies)
        self.bodies = {key: body for key, body in bodies.items() if key in reached}
        self.names: dict[int, str] = {}
        self.used: set[str] = set()
        """What was written that has to be imported."""
        self._written: set[int] = set()
        self._meaningful = IMPORTS

    def give(self, taken: set[str]) -> None:
        """Give every type a name that is none of `taken`, and add it to these."""
        wanted = [_forms(self._declared[key]) for key in self.bodies]
        self.names = dict(zip(self.bodies, allocate(wanted, taken), strict=True))
        self._meaningful = IMPORTS.union(self.names.values())

    def means(self, name: str) -> bool:
        """Whether an annotation may name this, besides built-in names."""
        return name in self._meaningful

    def settled(self, type_: Type) -> Type:
        """The type by the names that are left."""
        return without(type_, self._meant)

    def order(self) -> list[int]:
        """The named types, each after those that it refers to, as far as they do not refer to it; else by name."""
        found: dict[int, None] = {}
        begun: set[int] = set()
        waiting = sorted(self.bodies, key=self.names.__getitem__, reverse=True)
        while waiting:
            key = waiting[-1]
            if key in begun:
                found[waiting.pop()] = None
                continue
            begun.add(key)
            needed = {part.key for type_ in _types_of(self.bodies[key]) for part in _named(type_)}
            waiting += sorted(needed - begun, key=self.names.__getitem__, reverse=True)
        return list(found)

    def written(self, key: int, *, is_text: bool = False) -> None:
        """Note that a type stands in the source from here on; not as one that can be evaluated, if it is a text."""
        if not is_text:
            self._written.add(key)

    def text(self, type_: Type, shadowed: Collection[str] = ()) -> str:
        """The type in source. Built-in names of `shadowed` mean something else where it stands."""
        if isinstance(type_, Plain):
            return self._plain(type_.text, shadowed)
        if isinstance(type_, Choice):
            self.used.add("Literal")
            return f"Literal[{', '.join(type_.values)}]"
        if isinstance(type_, Generic):
            parts = ", ".join(self.text(part, shadowed) for part in type_.parts)
            return f"{self._plain(type_.head, shadowed)}[{parts}]"
        if isinstance(type_, Union):
            return " | ".join(self.text(part, shadowed) for part in type_.parts)
        return self.names[type_.key]

    def annotation(self, type_: Type, shadowed: Collection[str] = ()) -> str:
        """The type as it can stand for an annotation here: as text, if it is not all written yet."""
        text = self.text(type_, shadowed)
        return text if self.is_written(type_) else literal(text)

    def is_written(self, type_: Type) -> bool:
        return all(part.key in self._written for part in _named(type_))

    def _plain(self, name: str, shadowed: Collection[str]) -> str:
        if name in shadowed:
            self.used.add("builtins")
            return f"builtins.{name}"
        return name

    def _settled(self, body: Record | Alias) -> Record | Alias:
        if isinstance(body, Alias):
            return Alias(self.settled(body.type))
        return Record(tuple(field.with_type(self.settled(field.type)) for field in body.fields), body.note)


def allocate(wanted: Sequence[Sequence[str]], taken: set[str]) -> list[str]:
    """A name for each, each another one and none of `taken`, to which they are added.

    Each wants one of several, the first one most. All that would like the same one get the same form of name: if one
    had the short one, it would depend on the others which that is.
    """
    groups: dict[str, list[int]] = {}
    for index, forms in enumerate(wanted):
        groups.setdefault(forms[0], []).append(index)
    found = [""] * len(wanted)
    for base, group in sorted(groups.items()):
        for index, name in zip(group, _free([wanted[index] for index in group], taken), strict=True):
            found[index] = name
            taken.add(name)
        taken.add(base)
    return found


def _free(group: Sequence[Sequence[str]], taken: Collection[str]) -> Iterable[str]:
    forms = list(zip(*group, strict=True))
    for names in forms:
        if len(set(names)) == len(names) and not any(name in taken for name in names):
            return names
    used = set(taken)
    numbers: dict[str, Iterator[str]] = {}
    found = []
    for name in forms[-1]:
        candidates = numbers.setdefault(name, chain([name], map(f"{name}{{}}".format, count(2))))
        found.append(next(one for one in candidates if one not in used))
        used.add(found[-1])
    return found


def _forms(one: Declared) -> tuple[str, ...]:
    forms = (one.base, one.base + one.role, one.operation + one.base, one.operation + one.base + one.role)
    return tuple(form[:MAX_IDENTIFIER_CHARS] for form in forms)


def _named(type_: Type) -> Iterator[Named]:
    return (part for part in parts_of(type_) if isinstance(part, Named))


def _reached(roots: Iterable[Type], bodies: Mapping[int, Record | Alias]) -> set[int]:
    """The named types that these lead to."""
    waiting = [part.key for type_ in roots for part in _named(type_)]
    found: set[int] = set()
    while waiting:
        key = waiting.pop()
        if key not in found:
            found.add(key)
            waiting += (part.key for type_ in _types_of(bodies[key]) for part in _named(type_))
    return found


def _types_of(body: Record | Alias) -> Iterator[Type]:
    return iter([body.type]) if isinstance(body, Alias) else (field.type for field in body.fields)


# --- what needs no name -------------------------------------------------------------------------------------------


def _trivial(declared: Sequence[Declared]) -> dict[Type, Type]:
    """What is meant by the aliases of a single type, and by those that mean themselves, which is nothing."""
    aliases = {key: one.body.type for key, one in enumerate(declared) if isinstance(one.body, Alias)}
    direct = {key: [part.key for part in _outermost(type_) if part.key in aliases] for key, type_ in aliases.items()}
    meant: dict[Type, Type] = {Named(key): ANY for key in aliases}
    sorter = TopologicalSorter(direct)
    with suppress(CycleError):  # then it gives what is in none
        sorter.prepare()
    while ready := sorter.get_ready():
        for key in ready:
            type_ = without(aliases[key], meant)
            if isinstance(type_, Plain | Named):
                meant[Named(key)] = type_
            else:
                del meant[Named(key)]
        sorter.done(*ready)
    return meant


def _outermost(type_: Type) -> Iterator[Named]:
    """The names that the type is made of, outside of lists and dictionaries."""
    return (part for part in (type_.parts if isinstance(type_, Union) else (type_,)) if isinstance(part, Named))


# --- what is equal ------------------------------------------------------------------------------------------------


def _equal(bases: dict[int, str], bodies: dict[int, Record | Alias]) -> dict[int, int]:
    """For each type the first one that it is equal to."""
    group = dict.fromkeys(bodies, 0)
    for _ in range(max(MIN_ROUNDS, MAX_LOOKS // max(1, len(bodies)))):
        numbers: dict[Hashable, int] = {}
        finer = {}
        for key, body in bodies.items():
            shape = tuple((_seen(type_, group)) for type_ in _types_of(body))
            rest = [(f.name, f.is_required, f.note) for f in body.fields] if isinstance(body, Record) else ()
            note = body.note if isinstance(body, Record) else None
            looks = (group[key], bases[key], shape, tuple(rest), note)
            finer[key] = numbers.setdefault(looks, len(numbers))
        is_stable = len(numbers) == len(set(group.values()))
        group = finer
        if is_stable:
            first: dict[int, int] = {}
            return {key: first.setdefault(number, key) for key, number in group.items()}
    return {key: key for key in bodies}


def _seen(type_: Type, group: dict[int, int]) -> Hashable:
    """The type with groups in the place of names."""
    return tuple((type(part), group[part.key] if isinstance(part, Named) else _own(part)) for part in parts_of(type_))


def _own(type_: Type) -> Hashable:
    if isinstance(type_, Generic):
        return type_.head, len(type_.parts)
    return len(type_.parts) if isinstance(type_, Union) else type_
