"""Python types from the JSON Schemas of many operations, for `alknet.call.typed_client`.

`Types` reads schemas and gathers what deserves a name: an object's fields become a TypedDict, a definition that is
something else an alias. Schemas may come from a stranger: what makes no sense, or is beyond a bound, is ``Any``.
"""

from typing import Any, Final

from alknet.call.typed_source import MAX_IDENTIFIER_CHARS, class_name, literal, shortened
from alknet.call.typed_types import (
    ANY,
    MAX_OPTIONS,
    NONE,
    Alias,
    Choice,
    Declared,
    Field,
    Generic,
    Inputs,
    Named,
    Plain,
    Record,
    Type,
    parts_of,
    union,
)

__all__ = ["Types"]

MAX_DEPTH: Final = 24
"""Of schemas within schemas, where nothing between has a name of its own."""
MAX_PARTS: Final = 5000
"""Schemas that are read of one input, output or error."""
MAX_ALL_PARTS: Final = 500_000
"""Schemas that are read in all."""
MAX_FIELDS: Final = 500
"""Of one object; one that has more is a dictionary."""
MAX_VALUES: Final = 200
"""Of an enumeration; of one that has more, only the type is told."""
MAX_VALUE_CHARS: Final = 100
MAX_INLINE_CHARS: Final = 60
"""Of an enumeration; a longer one has a name."""
MAX_INTEGER: Final = 2**64
MAX_REFERENCES: Final = 20
"""That one ``$ref`` may lead to another."""
MAX_NOTE_CHARS: Final = 500
"""Of what is said of one field."""
_SCALARS: Final = {"string": "str", "integer": "int", "number": "float", "boolean": "bool", "null": "None"}
_KINDS: Final = (*_SCALARS, "array", "object")


class Types:
    """The named types of all the schemas that were read."""

    def __init__(self) -> None:
        self.declared: list[Declared] = []
        self.left = MAX_ALL_PARTS

    def output(self, schema: Any, operation: str, role: str) -> Type:
        """The type of a whole schema; `operation` and `role` are parts of names, such as FsRead and Output."""
        return _Schema(self, schema, operation, role).whole()

    def inputs(self, schema: Any, operation: str) -> Inputs:
        """What the schema of an input wants."""
        return _Schema(self, schema, operation, "Input").inputs()

    def declare(self, base: str, operation: str, role: str) -> Named:
        self.declared.append(Declared(base[:MAX_IDENTIFIER_CHARS], operation, role))
        return Named(len(self.declared) - 1)


class _Schema:
    """One schema, whose references lead into itself."""

    def __init__(self, types: Types, root: Any, operation: str, role: str) -> None:
        self._types = types
        self._root = root
        self._operation = operation
        self._role = role
        self._left = MAX_PARTS
        self._known: dict[str, Named] = {}
        self._waiting: list[tuple[Named, dict[str, Any], str]] = []

    def whole(self) -> Type:
        found = self._read(self._root, self._operation + self._role, 0)
        self._finish()
        return found

    def inputs(self) -> Inputs:
        schema = self._bare(self._root)
        if not schema:
            return Inputs(whole=ANY)
        if "anyOf" in schema or "oneOf" in schema or schema.get("type", "object") != "object":
            return Inputs(whole=self.whole())
        base = self._operation + self._role
        fields = self._fields(schema, base, 0)
        if fields is None:
            return Inputs(whole=self.whole())
        more = schema.get("additionalProperties", "properties" not in schema)
        others = None if more is False else self._read(more, f"{base}Other", 1)
        self._finish()
        return Inputs(fields, others)

    # --- reading ----------------------------------------------------------------------------------------------------

    def _finish(self) -> None:
        """Give the definitions that were referred to their bodies; these may refer to further ones."""
        while self._waiting:
            named, schema, base = self._waiting.pop()
            declared = self._types.declared[named.key]
            declared.body = self._record(schema, base, 0) or Alias(self._read(schema, base, 0))

    def _read(self, schema: Any, base: str, depth: int) -> Type:
        self._left -= 1
        self._types.left -= 1
        if self._left < 0 or self._types.left < 0 or depth > MAX_DEPTH or not isinstance(schema, dict):
            return ANY
        found = self._said(schema, base, depth)
        return union([found, NONE]) if schema.get("nullable") is True else found

    def _said(self, schema: dict[str, Any], base: str, depth: int) -> Type:
        if isinstance(reference := schema.get("$ref"), str):
            return self._refer(reference, base)
        if (chosen := _choice(schema)) is not None:
            return self._named(chosen, schema, base) if _is_long(chosen) else chosen
        kinds = schema.get("type")
        if isinstance(several := schema.get("allOf"), list) and several:
            if len(several) == 1 and isinstance(several[0], dict) and "properties" not in schema:
                return self._read(several[0], base, depth + 1)
            return self._read(self._bare(schema), base, depth + 1)
        if isinstance(kinds, list):
            known = [kind for kind in _KINDS if kind in kinds]
            return union([self._read({**schema, "type": kind}, base, depth + 1) for kind in known])
        if record := self._record(schema, base, depth):
            return self._named(record, schema, base)
        for key in ("anyOf", "oneOf"):
            options = schema.get(key)
            if isinstance(options, list) and 0 < len(options) <= MAX_OPTIONS:
                found = union([self._read(one, base, depth + 1) for one in options])
                if found != ANY:
                    return found
        return self._of_kind(kinds, schema, base, depth)

    def _named(self, body: Record | Type, schema: dict[str, Any], base: str) -> Named:
        named = self._types.declare(_title(schema) or base, self._operation, self._role)
        self._types.declared[named.key].body = body if isinstance(body, Record) else Alias(body)
        return named

    def _of_kind(self, kind: Any, schema: dict[str, Any], base: str, depth: int) -> Type:
        if kind == "string" and schema.get("contentEncoding") == "base64":
            return Plain("bytes")
        if isinstance(kind, str) and kind in _SCALARS:
            return Plain(_SCALARS[kind])
        if kind == "array":
            return self._array(schema, base, depth)
        return self._mapping(schema, base, depth) if kind == "object" else ANY

    def _array(self, schema: dict[str, Any], base: str, depth: int) -> Type:
        first, rest = schema.get("prefixItems"), schema.get("items", True)
        if isinstance(first, list) and 0 < len(first) <= MAX_OPTIONS:
            parts = [self._read(one, f"{base}Item", depth + 1) for one in first]
            is_closed = rest is False or schema.get("maxItems") == len(first)
            if is_closed and schema.get("minItems", len(first)) == len(first):
                return Generic("tuple", tuple(parts))
            return Generic("list", (union([*parts, ANY if rest is True else self._read(rest, base, depth + 1)]),))
        return Generic("list", (self._read(rest, f"{base}Item", depth + 1),))

    def _mapping(self, schema: dict[str, Any], base: str, depth: int) -> Type:
        more, patterns = schema.get("additionalProperties"), schema.get("patternProperties")
        values = list(patterns.values())[:MAX_OPTIONS] if isinstance(patterns, dict) else []
        if isinstance(more, dict) or (more is None and not values):
            values.append(more)
        value = union([self._read(one, f"{base}Value", depth + 1) for one in values])
        return Generic("dict", (Plain("str"), value))

    def _record(self, schema: dict[str, Any], base: str, depth: int) -> Record | None:
        """The object's fields, if they are told."""
        properties = schema.get("properties")
        if not isinstance(properties, dict) or not properties or schema.get("type", "object") != "object":
            return None
        fields = self._fields(schema, _title(schema) or base, depth)
        note = schema.get("description")
        return Record(fields, note if isinstance(note, str) else "") if fields else None

    def _fields(self, schema: dict[str, Any], base: str, depth: int) -> tuple[Field, ...] | None:
        """The fields of an object in their order; None if they are too many."""
        said, wanted = schema.get("properties"), schema.get("required")
        properties = {k: v for k, v in said.items() if isinstance(k, str)} if isinstance(said, dict) else {}
        required = dict.fromkeys(one for one in wanted if isinstance(one, str)) if isinstance(wanted, list) else {}
        names = list(dict.fromkeys((*properties, *required)))
        if len(names) > MAX_FIELDS:
            return None
        return tuple(
            Field(
                name,
                self._read(properties.get(name, True), base + class_name(name), depth + 1),
                name in required,
                _note(properties.get(name), is_given=name in required),
            )
            for name in names
        )

    def _refer(self, reference: str, base: str) -> Type:
        """The name of a definition; it is read later, so that it may refer to itself."""
        if reference not in self._known:
            found = self._resolve(reference)
            if found is None or len(self._known) >= MAX_FIELDS:
                return ANY
            base = _title(found) or class_name(reference.rpartition("/")[2]) or base
            self._known[reference] = self._types.declare(base, self._operation, self._role)
            self._waiting.append((self._known[reference], found, base))
        return self._known[reference]

    def _resolve(self, reference: str) -> dict[str, Any] | None:
        """What a JSON Pointer into this schema means (RFC 6901); None if it means no schema."""
        if reference != "#" and not reference.startswith("#/"):
            return None
        found = self._root
        for part in reference.split("/")[1:]:
            key = part.replace("~1", "/").replace("~0", "~")
            if isinstance(found, dict):
                found = found.get(key)
            elif isinstance(found, list) and key.isdecimal() and len(key) < MAX_REFERENCES:
                found = found[int(key)] if int(key) < len(found) else None
            else:
                return None
        return found if isinstance(found, dict) else None

    def _bare(self, schema: Any) -> dict[str, Any]:
        """A schema without the references and the ``allOf`` around what it says."""
        merged: dict[str, Any] = {}
        waiting = [schema]
        for _ in range(MAX_REFERENCES):
            if not waiting:
                break
            one = waiting.pop(0)
            if not isinstance(one, dict):
                continue
            if isinstance(one.get("$ref"), str):
                waiting.append(self._resolve(one["$ref"]))
            if isinstance(one.get("allOf"), list):
                waiting += one["allOf"][:MAX_REFERENCES]
            for key, value in one.items():
                if key == "properties" and isinstance(value, dict):
                    merged[key] = {**(known := merged.get(key, {})), **value, **known}
                elif key == "required" and isinstance(value, list):
                    merged[key] = [*merged.get(key, []), *value]
                elif key not in ("$ref", "allOf", "$defs", "properties", "required"):
                    merged.setdefault(key, value)
        return merged


def _choice(schema: dict[str, Any]) -> Type | None:
    """The values that an enumeration has, if they are of the kinds that a ``Literal`` can have, and not too many."""
    values = [schema["const"]] if "const" in schema else schema.get("enum")
    if not isinstance(values, list) or not 0 < len(values) <= MAX_VALUES or not all(map(_is_literal, values)):
        return None
    told = [literal(value) for value in values if value is not None]
    return union([*([Choice(tuple(dict.fromkeys(told)))] if told else []), *([NONE] if None in values else [])])


def _is_long(type_: Type) -> bool:
    """Whether an enumeration is too long to stand among other things."""
    values = [len(value) for part in parts_of(type_) if isinstance(part, Choice) for value in part.values]
    return sum(values) > MAX_INLINE_CHARS


def _is_literal(value: Any) -> bool:
    if isinstance(value, str):
        return len(value) <= MAX_VALUE_CHARS
    return value is None or (isinstance(value, int) and abs(value) <= MAX_INTEGER)


def _note(schema: Any, *, is_given: bool) -> str:
    """What is to be known of a field besides its type."""
    if not isinstance(schema, dict):
        return ""
    parts = [_text(schema, "description")]
    if form := _text(schema, "format"):
        parts.append(f"Format: {form}.")
    default = schema.get("default")
    is_text = "contentEncoding" not in schema  # else it is not the value itself
    if not is_given and is_text and default is not None and _is_literal(default):
        parts.append(f"Default: {literal(default)}.")
    return " ".join(part for part in parts if part)


def _title(schema: dict[str, Any]) -> str:
    return class_name(_text(schema, "title"))


def _text(schema: dict[str, Any], key: str) -> str:
    found = schema.get(key)
    return shortened(" ".join(found.split()), MAX_NOTE_CHARS) if isinstance(found, str) else ""
