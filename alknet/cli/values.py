"""Values on the command line: ``key=value`` pairs made what an operation's schema wants, and outputs made JSON."""

import base64
import json
from collections.abc import Sequence
from typing import Any

from alknet.errors import InvalidInputError

__all__ = ["to_json", "typed"]


def typed(pairs: Sequence[str], schema: dict[str, Any]) -> dict[str, Any]:
    """The input that ``key=value`` pairs mean under a JSON Schema; raises `InvalidInputError`.

    A key that is given several times, and is a list in the schema, gets them all.
    """
    properties = schema.get("properties", {})
    found: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key:
            raise InvalidInputError(f"{pair!r} is neither key=value nor a JSON object")
        wanted = properties.get(key)
        if wanted is None and schema.get("additionalProperties") is False:
            known = ", ".join(properties) or "nothing"
            raise InvalidInputError(f"there is no input {key!r}; it takes {known}")
        if _is_list(wanted, schema) and not text.lstrip().startswith("["):
            items = (_resolve(wanted, schema) or {}).get("items")
            found.setdefault(key, []).append(_value(key, text, items, schema))
        elif key in found:
            raise InvalidInputError(f"{key} is given twice")
        else:
            found[key] = _value(key, text, wanted, schema)
    return found


def to_json(value: Any, *, indent: int | None = None) -> str:
    """An output as JSON, bytes as base64."""
    separators = (",", ":") if indent is None else None
    return json.dumps(value, indent=indent, separators=separators, ensure_ascii=False, default=_as_text)


def _as_text(value: Any) -> str:
    if isinstance(value, bytes):
        return base64.b64encode(value).decode("ascii")
    return str(value)


def _value(key: str, text: str, wanted: Any, schema: dict[str, Any]) -> Any:
    kinds = _kinds(wanted, schema)
    if kinds == {"string"}:
        return text
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        if "string" in kinds or not kinds:
            return text
        raise InvalidInputError(f"{key}: {text!r} is no {' or '.join(sorted(kinds))}") from None
    # "12" for what may be a number or a text is a number; for what may be any, JSON.
    return text if kinds and isinstance(value, dict | list) and not kinds & {"object", "array"} else value


def _kinds(wanted: Any, schema: dict[str, Any]) -> set[str]:
    """The JSON types that a schema admits; empty when it says nothing of them."""
    wanted = _resolve(wanted, schema)
    if wanted is None:
        return set()
    for several in ("anyOf", "oneOf"):
        if several in wanted:
            return {kind for one in wanted[several] for kind in _kinds(one, schema)}
    if "enum" in wanted:
        return {"string"} if all(isinstance(value, str) for value in wanted["enum"]) else set()
    kind = wanted.get("type")
    return {kind} if isinstance(kind, str) else set(kind or ())


def _is_list(wanted: Any, schema: dict[str, Any]) -> bool:
    return _kinds(wanted, schema) - {"null"} == {"array"}


def _resolve(wanted: Any, schema: dict[str, Any]) -> dict[str, Any] | None:
    """`wanted` itself, or what its ``$ref`` to the schema's own definitions means."""
    for _ in range(10):
        if not isinstance(wanted, dict):
            return None
        reference = wanted.get("$ref")
        if not isinstance(reference, str):
            return wanted
        wanted = schema.get("$defs", {}).get(reference.removeprefix("#/$defs/"))
    return None
