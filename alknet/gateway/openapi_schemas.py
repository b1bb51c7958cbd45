"""The JSON Schemas of many operations as the components of one OpenAPI 3.1 document.

Each operation has schemas of its own, whose ``$ref``s point into themselves. In the document they stand under
``components/schemas``, where code generators make a type of each: once for all operations when they are equal, and
otherwise under names that tell them apart. Schemas may come from another node, so whatever would make the document
invalid is left out.
"""

import json
import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, count
from typing import Any, Final

from alknet.call.binary import to_base64
from alknet.gateway.openapi_keywords import FORMS, NAMED, ONE, SEVERAL, is_endless, references, resolve

__all__ = ["Schemas", "plain"]

MAX_NAME_CHARS: Final = 100
"""Of a component's name, before it is told apart from others."""
MAX_VALUE_DEPTH: Final = 64
"""Of an example or a default."""
COMPONENT: Final = "#/components/schemas/"


def plain(value: Any, depth: int = 0) -> Any:
    """A value as JSON has it: bytes as base64, and null for the numbers that it has not."""
    if depth > MAX_VALUE_DEPTH:
        return None
    if isinstance(value, Mapping):
        return {str(key): plain(item, depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item, depth + 1) for item in value]
    if isinstance(value, bytes):
        return to_base64(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


@dataclass(slots=True)
class _Target:
    """A schema that becomes a component. `slots` are the places that refer to it, filled in when it has a name."""

    base: str
    operation: str
    role: str
    is_fixed: bool = False
    body: dict[str, Any] = field(default_factory=dict)
    slots: list[tuple[dict[str, Any], str]] = field(default_factory=list)

    def names(self) -> tuple[str, ...]:
        """From the shortest one, which may be the same for several, to one that tells as much as is known."""
        if self.is_fixed:
            return (f"{self.operation}.{self.base}",)
        return (
            self.base,
            f"{self.base}.{self.role}",
            f"{self.operation}.{self.base}",
            f"{self.operation}.{self.base}.{self.role}",
        )


class Schemas:
    """Gathers the schemas of a document; what `add`, `part` and `problem` return is complete after `components`."""

    def __init__(self, reserved: Mapping[str, dict[str, Any]]) -> None:
        self._reserved = reserved
        """Components with names of their own."""
        self._named: dict[str, dict[str, Any]] | None = None
        """All components, once they have names."""
        self._targets: dict[str, _Target] = {}
        """By the text that is equal for equal schemas."""
        self._texts: dict[tuple[int, str], tuple[Any, str]] = {}
        """Those texts by place: (the root, which is kept so that no other one gets its number; the text, empty for what
        has no end)."""
        self._waiting: list[tuple[_Target, Callable[[], tuple[Any, Any]]]] = []
        """Components that have no body yet, and what theirs is a copy of."""
        self._is_filling = False

    def add(self, schema: Any, operation: str, role: str) -> dict[str, Any]:
        """What stands for a whole schema: a reference if it has a structure worth a name, else the schema itself."""
        if not isinstance(schema, dict):
            return {}
        if schema.get("type") == "null":
            return {"const": None}  # the same, which generators know what to do with
        title = _name(schema.get("title"))
        if "$ref" in schema or not (_has_fields(schema) or (title and FORMS["enum"](schema.get("enum")))):
            return self.part(schema, schema, operation, role)
        return self._refer({}, "$ref", *_whole(schema, operation, role), lambda: (schema, schema))

    def part(self, schema: Any, root: Any, operation: str, role: str) -> dict[str, Any]:
        """A copy of a schema in `root`, in which references point to components."""
        copy = self._copy(schema, root, operation, role)
        return copy if isinstance(copy, dict) else {} if copy else {"not": {}}

    def problem(self, code: str, description: str, details: Any, operation: str) -> dict[str, Any]:
        """A reference to the problem document of a declared error, whose details have the schema `details`."""
        text = json.dumps(["problem", code, description, _closure(details, details)])
        base = "".join(word.capitalize() for word in code.split("_")) or code
        found = self._targets.get(text)
        if found is None:
            found = self._targets[text] = _Target(base, operation, "Problem")
            shape = self._reserved["Problem"]
            said = {} if details is None else {"details": self.add(details, operation, f"{base}Details")}
            found.body = {
                **shape,
                "description": description,
                "properties": {**shape["properties"], "code": {"type": "string", "const": code}, **said},
            }
        return self._slot({}, found)

    def components(self) -> dict[str, dict[str, Any]]:
        """Give everything its name: all components, sorted by it."""
        if self._named is None:
            for _ in self.naming():
                pass
        assert self._named is not None
        return self._named

    def naming(self) -> Iterator[None]:
        """Most of what `components` does, in small steps."""
        named = dict(self._reserved)
        taken = {_fold(name) for name in named}
        groups: dict[str, list[_Target]] = {}
        for target in self._targets.values():
            groups.setdefault("" if target.is_fixed else _fold(target.base), []).append(target)
            yield
        for _, group in sorted(groups.items()):
            for target, name in zip(group, _names(group, taken), strict=True):
                taken.add(_fold(name))
                named[name] = target.body
                for holder, key in target.slots:
                    holder[key] = COMPONENT + name
                yield
        self._named = dict(sorted(named.items()))

    # --- copies ---------------------------------------------------------------------------------------------------

    def _copy(self, schema: Any, root: Any, operation: str, role: str) -> Any:
        if isinstance(schema, bool):
            return schema
        if not isinstance(schema, dict):
            return {}
        copy: dict[str, Any] = {}
        for key, value in schema.items():
            if key in ONE:
                if isinstance(value, dict | bool):
                    copy[key] = self._copy(value, root, operation, role)
            elif key in SEVERAL:
                if isinstance(value, list) and value:
                    copy[key] = [self._copy(one, root, operation, role) for one in value]
            elif key in NAMED:
                if isinstance(value, dict):
                    copy[key] = {str(name): self._copy(one, root, operation, role) for name, one in value.items()}
            elif key == "$ref":
                self._refer_to(copy, "$ref", value, root, operation, role)
            elif key == "discriminator":
                if (found := self._discriminator(value, root, operation, role)) is not None:
                    copy[key] = found
            elif key in FORMS and FORMS[key](value):
                copy[key] = plain(value)
        return copy

    def _discriminator(self, value: Any, root: Any, operation: str, role: str) -> dict[str, Any] | None:
        """OpenAPI's own keyword, which pydantic writes too, with references as the values of a map."""
        if not isinstance(value, dict) or not isinstance(value.get("propertyName"), str):
            return None
        found: dict[str, Any] = {"propertyName": value["propertyName"]}
        if isinstance(mapping := value.get("mapping"), dict):
            found["mapping"] = {}
            for name, reference in mapping.items():
                self._refer_to(found["mapping"], name, reference, root, operation, role)
        return found

    def _refer_to(self, holder: dict[str, Any], key: str, reference: Any, root: Any, operation: str, role: str) -> None:
        """Have ``holder[key]`` name the component of what `reference` means in `root`; nothing if it means nothing."""
        found = resolve(reference, root)
        if found is None:
            return
        pointer, schema = found
        place = id(root), pointer
        if place not in self._texts:
            self._texts[place] = root, "" if is_endless(schema, root) else _closure(schema, root)
        text = self._texts[place][1]
        if not text:
            return
        if pointer:
            known = text, _Target(_name(pointer.rpartition("/")[2]) or role, operation, role)
        else:
            known = _whole(schema, operation, role)
        self._refer(holder, key, *known, lambda: (schema, root))

    def _refer(
        self, holder: dict[str, Any], key: str, text: str, new: _Target, source: Callable[[], tuple[Any, Any]]
    ) -> dict[str, Any]:
        target = self._targets.get(text)
        if target is None:
            # Known before its body is made, which may refer to it.
            target = self._targets[text] = new
            self._waiting.append((target, source))
            if not self._is_filling:
                self._fill()
        return self._slot(holder, target, key)

    def _fill(self) -> None:
        """Make the bodies that wait for it, one after the other: definitions may refer to each other in a long row."""
        self._is_filling = True
        try:
            while self._waiting:
                target, source = self._waiting.pop()
                target.body = self._copy(*source(), target.operation, target.role)
                target.body.pop("title", None)  # some generators would take it for the type's name
        finally:
            self._is_filling = False

    @staticmethod
    def _slot(holder: dict[str, Any], target: _Target, key: str = "$ref") -> dict[str, Any]:
        holder[key] = ""
        target.slots.append((holder, key))
        return holder


def _whole(schema: dict[str, Any], operation: str, role: str) -> tuple[str, _Target]:
    """A schema that stands alone: one that has a title may be the same elsewhere, any other is its operation's."""
    title = _name(schema.get("title"))
    text = _closure(schema, schema) if title else f"{operation} {role}"
    return text, _Target(title or role, operation, role, is_fixed=not title)


def _has_fields(schema: dict[str, Any]) -> bool:
    return isinstance(schema.get("properties"), dict) and bool(schema["properties"])


def _name(text: Any) -> str:
    """A text as a component's name may be, ``^[a-zA-Z0-9._-]+$``; empty for what is none."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", text)[:MAX_NAME_CHARS].strip("_.-") if isinstance(text, str) else ""


def _fold(name: str) -> str:
    """Equal for names of which generators make the same class, or the same file where case means nothing."""
    return re.sub(r"[^a-z0-9]", "", name.lower()) or name


def _names(group: Sequence[_Target], taken: Collection[str]) -> list[str]:
    """A name for each of several targets that would like the same one, and none of `taken`.

    All of them get the same form of name: if one had the short one, it would depend on the others which that is.
    """
    forms = list(zip(*(target.names() for target in group), strict=True))
    for names in forms:
        folded = {_fold(name) for name in names}
        if len(folded) == len(names) and folded.isdisjoint(taken):
            return list(names)
    used = set(taken)
    found = []
    for name in forms[-1]:
        candidates = chain([name], (f"{name}.{number}" for number in count(2)))
        found.append(next(one for one in candidates if _fold(one) not in used))
        used.add(_fold(found[-1]))
    return found


# --- equality -----------------------------------------------------------------------------------------------------


def _closure(schema: Any, root: Any) -> str:
    """A text that is equal for schemas that are equal with everything that they refer to."""
    reached: dict[str, Any] = {}
    waiting = [schema]
    while waiting:
        for reference in references(waiting.pop()):
            found = resolve(reference, root)
            if found is not None and found[0] not in reached:
                reached[found[0]] = _bare(found[1])
                waiting.append(found[1])
    return json.dumps([_bare(schema), reached], sort_keys=True, default=str)


def _bare(schema: Any) -> Any:
    """Without what others in the same root are defined by."""
    if not isinstance(schema, dict):
        return schema
    return {key: value for key, value in schema.items() if key not in ("$defs", "definitions")}
