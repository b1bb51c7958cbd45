"""Values on the command line: ``key=value`` pairs made what an operation's schema wants, and outputs made JSON."""

import base64
import json
import math
import shlex
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from typing import Any, Final, NoReturn

from alknet.errors import InvalidInputError, NotFoundError

__all__ = ["alternatives", "from_json", "pairs", "properties_of", "resolve", "to_json", "typed"]

_KINDS: Final = {type(None): "null", bool: "boolean", int: "integer", float: "number", str: "string", list: "array"}
_WORDS: Final = {"boolean": "true or false", "integer": "an integer", "array": "a list", "object": "a JSON object"}
_JSON_TYPES: Final = frozenset({*_KINDS.values(), "object"})
MAX_REFERENCES: Final = 10
"""That one ``$ref`` may lead to another, in schemas that somebody else wrote."""
MAX_ALTERNATIVES: Final = 100
"""Schemas that are looked at to find those of which one must fit."""
MAX_KEYS_SHOWN: Final = 50
MAX_KEY_CHARS: Final = 128
"""Of an input that a mistyped one may be meant by: to compare takes quadratic time."""
MAX_PROPERTIES: Final = 1000
"""Inputs of one operation that are looked at."""


def typed(words: Sequence[str], schema: Mapping[str, Any]) -> dict[str, Any]:
    """The input that ``key=value`` pairs mean under a JSON Schema; raises `InvalidInputError`.

    A key that is given several times, and is a list in the schema, gets them all. ``@FILE`` for bytes is the file.
    """
    properties = properties_of(schema)
    found: dict[str, Any] = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or not key:
            hint = f"write {word}=VALUE" if word in properties else 'as in name=value, or one \'{"name": "value"}\''
            raise InvalidInputError(f"{word!r} is neither key=value nor a JSON object", hint=hint)
        if key not in properties and isinstance(schema, dict) and schema.get("additionalProperties") is False:
            raise _unknown(key, list(properties))
        wanted = alternatives(properties.get(key), schema)
        items = _items(wanted)
        if items is not None and not text.lstrip().startswith("["):
            found.setdefault(key, []).append(_value(key, text, alternatives(items, schema)))
        elif key in found:
            raise InvalidInputError(f"{key} is given twice")
        else:
            found[key] = _value(key, text, wanted)
    return found


def pairs(value: Mapping[str, Any], schema: Mapping[str, Any]) -> str | None:
    """The input as ``key=value`` words for a shell; None if they would not mean the same. Reads no file."""
    items = [
        (key, item if isinstance(item, str) else to_json(item))
        for key, several in value.items()
        for item in (several if isinstance(several, list) else [several])
    ]
    if any(text.startswith("@") for _, text in items):
        return None
    words = [f"{key}={text}" for key, text in items]
    try:
        same = typed(words, schema) == value
    except (InvalidInputError, NotFoundError):
        return None
    return shlex.join(words) if same else None


def from_json(text: str) -> Any:
    """A JSON text as a value; `ValueError` for what is none, also for NaN and infinities, which JSON has not."""
    try:
        return json.loads(text, parse_constant=_no_constant)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def to_json(value: Any, *, indent: int | None = None, escaped: bool = False) -> str:
    """An output as JSON, bytes as base64, and null for the numbers that JSON has not.

    With `escaped` it is for a terminal: whatever could move its cursor, colour it or turn its direction is escaped,
    and means the same.
    """
    separators = (",", ":") if indent is None else None
    text = json.dumps(_plain(value), indent=indent, separators=separators, ensure_ascii=False)
    return "".join(c if c.isprintable() or c == "\n" else _escaped(c) for c in text) if escaped else text


def properties_of(schema: Any) -> dict[str, Any]:
    """The schemas of an object's fields by name; none where they are not said, or make no sense."""
    found = schema.get("properties") if isinstance(schema, dict) else None
    return dict(islice(found.items(), MAX_PROPERTIES)) if isinstance(found, dict) else {}


def alternatives(wanted: Any, schema: Any) -> list[dict[str, Any]]:
    """The schemas of which one must fit: `wanted` itself, or those that it (or one of them, in turn) is a union of.

    Each reference is followed once, so that what refers to itself has an end.
    """
    found, waiting, seen = [], [wanted], set()
    for _ in range(MAX_ALTERNATIVES):
        if not waiting:
            break
        one = waiting.pop()
        reference = one.get("$ref") if isinstance(one, dict) else None
        if isinstance(reference, str):
            if reference in seen:
                continue
            seen.add(reference)
        one = resolve(one, schema)
        several = one.get("anyOf") or one.get("oneOf")
        if isinstance(several, list):
            waiting += reversed(several[:MAX_ALTERNATIVES])
        else:
            found.append(one)
    return found or [{}]


def resolve(wanted: Any, schema: Any) -> dict[str, Any]:
    """`wanted` itself, or what its ``$ref`` to the schema's own definitions means; empty when it says nothing."""
    for _ in range(MAX_REFERENCES):
        if not isinstance(wanted, dict):
            return {}
        reference = wanted.get("$ref")
        if not isinstance(reference, str):
            return wanted
        definitions = schema.get("$defs") if isinstance(schema, dict) else None
        wanted = definitions.get(reference.removeprefix("#/$defs/")) if isinstance(definitions, dict) else None
    return {}


def _escaped(character: str) -> str:
    return json.dumps(character)[1:-1] if character != "\x7f" else "\\u007f"  # the one that JSON leaves as it is


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, bytes):
        return base64.b64encode(value).decode("ascii")
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def _unknown(key: str, known: list[str]) -> InvalidInputError:
    near = get_close_matches(key, [one for one in known if len(one) <= MAX_KEY_CHARS], n=1)
    hint = f"did you mean {near[0]!r}? It takes" if near else "it takes"
    shown = [*known[:MAX_KEYS_SHOWN], *["…"][: len(known) > MAX_KEYS_SHOWN]]
    return InvalidInputError(f"there is no input {key!r}", hint=f"{hint} {', '.join(shown) or 'nothing'}")


def _value(key: str, text: str, wanted: list[dict[str, Any]]) -> Any:
    if text.startswith("@") and any(option.get("contentEncoding") == "base64" for option in wanted):
        return _read(key, text[1:])
    kinds = {kind for option in wanted for kind in _kinds(option)}
    if kinds == {"string"}:
        return text
    try:
        value = from_json(text)
    except ValueError:
        if "string" in kinds or not kinds:
            return text
    else:
        kind = _KINDS.get(type(value), "object")
        is_number = kind in ("integer", "number") and kinds & {"integer", "number"}
        # "12" for what may be a number or a text is a number; for what may be anything, JSON.
        if not kinds or kind in kinds or is_number:
            return value
        if "string" in kinds:
            return text
    words = [_WORDS.get(kind, f"a {kind}") for kind in sorted(kinds - {"null"})]
    raise InvalidInputError(f"{key} takes {' or '.join(words) or 'null'}, not {text!r}")


def _read(key: str, name: str) -> bytes:
    try:
        return Path(name).read_bytes()
    except FileNotFoundError:
        raise NotFoundError(f"{key}: there is no file {name!r}") from None
    except OSError as exc:
        raise InvalidInputError(f"{key}: {name}: {exc.strerror}") from None


def _items(wanted: list[dict[str, Any]]) -> Any:
    """The schema of an item, where nothing but a list (or null) is wanted; else None."""
    lists = [option for option in wanted if _kinds(option) == {"array"}]
    others = {kind for option in wanted if option not in lists for kind in _kinds(option) or {"any"}}
    return lists[0].get("items", {}) if lists and others <= {"null"} else None


def _kinds(option: Mapping[str, Any]) -> set[str]:
    """The JSON types that a schema admits; empty when it says nothing of them."""
    values = [option["const"]] if "const" in option else option.get("enum")
    if isinstance(values, list):
        return {_KINDS.get(type(value), "object") for value in values}
    kind = option.get("type")
    return {one for one in (kind if isinstance(kind, list) else [kind]) if isinstance(one, str)} & _JSON_TYPES
