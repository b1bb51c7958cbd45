"""The keywords of JSON Schema 2020-12: which hold schemas, what the others' values must be, where references lead."""

import math
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final
from urllib.parse import unquote

__all__ = ["FORMS", "NAMED", "ONE", "SEVERAL", "is_endless", "references", "resolve"]

ONE: Final = frozenset(
    ("items", "additionalProperties", "not", "if", "then", "else", "contains", "propertyNames", "unevaluatedItems",
     "unevaluatedProperties", "contentSchema")
)  # fmt: skip
SEVERAL: Final = frozenset(("allOf", "anyOf", "oneOf", "prefixItems"))
NAMED: Final = frozenset(("properties", "patternProperties", "dependentSchemas"))
_TYPES: Final = frozenset(("array", "boolean", "integer", "null", "number", "object", "string"))


def _is_anything(value: Any) -> bool:
    return True


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_pattern(value: Any) -> bool:
    try:
        return isinstance(value, str) and bool(re.compile(value))
    except (re.error, OverflowError, RecursionError):
        return False


def _is_type(value: Any) -> bool:
    several = value if isinstance(value, list) else [value]
    return bool(several) and all(isinstance(one, str) and one in _TYPES for one in several) and _are_different(several)


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value) and _are_different(value)


def _are_different(values: list[str]) -> bool:
    return len(set(values)) == len(values)


FORMS: Final[dict[str, Callable[[Any], bool]]] = {
    "type": _is_type,
    "required": _is_texts,
    "enum": lambda value: isinstance(value, list) and bool(value),
    "examples": lambda value: isinstance(value, list),
    "multipleOf": lambda value: _is_number(value) and value > 0,
    "dependentRequired": lambda value: isinstance(value, dict) and all(map(_is_texts, value.values())),
    "pattern": _is_pattern,
    **dict.fromkeys(("const", "default"), _is_anything),
    **dict.fromkeys(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"), _is_number),
    **dict.fromkeys(("title", "description", "format", "contentEncoding", "contentMediaType"), _is_text),
    **dict.fromkeys(("deprecated", "readOnly", "writeOnly", "uniqueItems"), _is_flag),
    **dict.fromkeys(
        (
            *("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"),
            *("minContains", "maxContains"),
        ),
        _is_count,
    ),
}
"""What the value of each keyword that holds no schema must be (JSON Schema 2020-12); what is not here is left out: it
moves what references are relative to (``$id``), is another dialect's, or means nothing."""


def resolve(reference: Any, root: Any) -> tuple[str, Any] | None:
    """(its JSON pointer, the schema there) for a ``$ref`` into `root` itself; None where it leads nowhere in it."""
    if not isinstance(reference, str) or not (reference == "#" or reference.startswith("#/")):
        return None
    pointer = unquote(reference[1:])
    found = root
    for token in pointer.split("/")[1:]:
        name = token.replace("~1", "/").replace("~0", "~")
        if isinstance(found, dict) and name in found:
            found = found[name]
        elif isinstance(found, list) and name.isascii() and name.isdigit() and int(name) < len(found):
            found = found[int(name)]
        else:
            return None
    return (pointer, found) if isinstance(found, dict) else None


def is_endless(schema: Any, root: Any) -> bool:
    """Whether what is asked of a value by `schema` is, in the end, asked of the same value once more.

    Validators and generators never come back from that. What refers to itself for a part of the value is fine.
    """
    done: set[int] = set()
    path: set[int] = set()
    waiting: list[tuple[Any, bool]] = [(schema, False)]
    while waiting:
        one, is_left = waiting.pop()
        if is_left:
            path.discard(id(one))
            done.add(id(one))
        elif id(one) in path:
            return True
        elif id(one) not in done:
            path.add(id(one))
            waiting.append((one, True))
            waiting += [(part, False) for part in _of_the_same_value(one, root)]
    return False


def _of_the_same_value(schema: Any, root: Any) -> Iterator[dict[str, Any]]:
    """The schemas that `schema` applies to the value itself, and not to a part of it."""
    parts = [found[1]] if (found := resolve(schema.get("$ref"), root)) is not None else []
    for key in ("not", "if", "then", "else"):
        parts.append(schema.get(key))
    for key in ("allOf", "anyOf", "oneOf"):
        parts += several if isinstance(several := schema.get(key), list) else []
    parts += dependent.values() if isinstance(dependent := schema.get("dependentSchemas"), dict) else []
    yield from (part for part in parts if isinstance(part, dict))


def references(schema: Any) -> Iterator[str]:
    """Every ``$ref`` in a schema, but for those in its definitions, which are reached when something refers to them."""
    waiting = [schema]
    while waiting:
        one = waiting.pop()
        if not isinstance(one, dict):
            continue
        for key, value in one.items():
            if key == "$ref" and isinstance(value, str):
                yield value
            elif key == "discriminator" and isinstance(value, dict) and isinstance(value.get("mapping"), dict):
                yield from (name for name in value["mapping"].values() if isinstance(name, str))
            elif key in ONE:
                waiting.append(value)
            elif key in SEVERAL and isinstance(value, Sequence):
                waiting += value
            elif key in NAMED and isinstance(value, dict):
                waiting += value.values()
