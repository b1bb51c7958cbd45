"""Inputs that fit into a URL: which queries can be called with GET, and what their parameters mean.

A query can when each of its inputs is text, a number, true or false, one of several such values, or a list of them,
which is a repeated parameter. None of them may be secret: URLs are written to logs and histories.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, NoReturn

from alknet.gateway.openapi_keywords import resolve

__all__ = ["QueryParameter", "query_input", "query_parameters", "takes_get"]

MAX_PARAMETERS: Final = 100
MAX_REFERENCES: Final = 10
"""That one ``$ref`` may lead to another, in schemas that somebody else wrote."""
_SCALARS: Final = frozenset(("string", "integer", "number", "boolean"))
_KINDS: Final = {bool: "boolean", int: "integer", float: "number", str: "string", type(None): "null"}
_UNKNOWN: Final = frozenset(
    # What an object must be besides the sum of its fields.
    ("$ref", "allOf", "anyOf", "oneOf", "not", "if", "then", "else", "patternProperties", "minProperties",
     "dependentRequired", "dependentSchemas")
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class QueryParameter:
    """One input as a parameter in a URL.

    `schema` is the input's own without null, which a URL cannot express: who means it leaves the parameter out. `kinds`
    are the JSON types of a value, or, when `is_list`, of each of them.
    """

    name: str
    schema: dict[str, Any]
    kinds: frozenset[str]
    is_list: bool = False
    required: bool = False


def takes_get(spec: Mapping[str, Any]) -> bool:
    """Whether an operation, as `OperationSpec.describe` has it, can be called with GET."""
    return query_parameters(spec) is not None


def query_parameters(spec: Mapping[str, Any]) -> tuple[QueryParameter, ...] | None:
    """The parameters of an operation's GET form, in the order of its inputs; None if it has no such form."""
    root = spec.get("input_schema")
    if spec.get("kind") != "query" or spec.get("secret_inputs") or not isinstance(root, dict):
        return None
    fields = root.get("properties", {})
    if root.get("type") != "object" or not isinstance(fields, dict) or len(fields) > MAX_PARAMETERS:
        return None
    if not _UNKNOWN.isdisjoint(root):
        return None
    listed = root.get("required")
    required = listed if isinstance(listed, list) else []
    found = [_parameter(name, schema, root, is_required=name in required) for name, schema in fields.items()]
    return tuple(one for one in found if one is not None) if None not in found else None


def query_input(parameters: Iterable[QueryParameter], pairs: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """The input that the decoded pairs of a URL's query mean.

    What is no value of its parameter, no parameter at all, or a list where one value is wanted, is passed on as it is:
    the operation's own check says what is wrong with it.
    """
    known = {parameter.name: parameter for parameter in parameters}
    found: dict[str, Any] = {}
    for name, text in pairs:
        parameter = known.get(name)
        value = text if parameter is None else _value(text, parameter.kinds)
        if parameter is not None and parameter.is_list:
            found.setdefault(name, []).append(value)
        elif name in found:
            found[name] = [*(found[name] if isinstance(found[name], list) else [found[name]]), value]
        else:
            found[name] = value
    return found


def _value(text: str, kinds: frozenset[str]) -> Any:
    if "string" in kinds:
        return text
    try:
        value = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return text
    kind = _KINDS.get(type(value))
    return value if kind in kinds or (kind == "integer" and "number" in kinds) else text


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


# --- schemas --------------------------------------------------------------------------------------------------------


def _parameter(name: Any, schema: Any, root: Any, *, is_required: bool) -> QueryParameter | None:
    if not isinstance(name, str) or not isinstance(schema, dict):
        return None
    shown = _without_null(schema, root)
    options = _options(shown, root)
    if options is None:
        return None
    kinds: set[str] = set()
    lists = 0
    for option in options:
        if option.get("type") == "array":
            items = None if "prefixItems" in option else _options(option.get("items"), root)
            if items is None:
                return None
            lists += 1
        else:
            items = [option]
        for item in items:
            if (found := _kinds(item)) is None:
                return None
            kinds |= found
    if (lists and len(options) > 1) or not kinds:
        return None  # one value could be meant as itself, or as a list of one
    return QueryParameter(name, shown, frozenset(kinds), is_list=bool(lists), required=is_required)


def _options(schema: Any, root: Any) -> list[dict[str, Any]] | None:
    """The schemas of which one must fit, references followed; None for what is more than that."""
    waiting: list[Any] = [schema]
    found: list[dict[str, Any]] = []
    for _ in range(MAX_PARAMETERS):
        if not waiting:
            return found
        one: Any = waiting.pop()
        for _ in range(MAX_REFERENCES):
            if not isinstance(one, dict) or "$ref" not in one:
                break
            target = resolve(one["$ref"], root)
            one = None if target is None else target[1]
        if not isinstance(one, dict) or "$ref" in one or "allOf" in one or "not" in one or "if" in one:
            return None
        several = one.get("anyOf", one.get("oneOf"))
        if several is None:
            found.append(one)
        elif isinstance(several, list) and "type" not in one:
            waiting += reversed(several)
        else:
            return None
    return None


def _kinds(option: Mapping[str, Any]) -> set[str] | None:
    """The JSON types that a scalar schema admits, null apart; None for what is no scalar."""
    values = [option["const"]] if "const" in option else option.get("enum")
    if isinstance(values, list):
        kinds = {_KINDS.get(type(value), "object") for value in values}
    else:
        kind = option.get("type")
        kinds = {str(one) for one in (kind if isinstance(kind, list) else [kind])}
    kinds.discard("null")
    return kinds if kinds <= _SCALARS else None


def _without_null(schema: dict[str, Any], root: Any) -> dict[str, Any]:
    """The same schema without the alternative null, and without null as the default."""
    copy = dict(schema)
    for key in ("anyOf", "oneOf"):
        several = copy.get(key)
        if not isinstance(several, list):
            continue
        left = [one for one in several if not _is_null(one)]
        if len(left) == 1 and isinstance(left[0], dict):
            del copy[key]
            copy = {**left[0], **copy}
        elif left:
            copy[key] = left
    kind, values = copy.get("type"), copy.get("enum")
    if isinstance(kind, list) and "null" in kind and len(kind) > 1:
        left = [one for one in kind if one != "null"]
        copy["type"] = left[0] if len(left) == 1 else left
    if isinstance(values, list) and any(one is not None for one in values):
        copy["enum"] = [one for one in values if one is not None]
    if "default" in copy and copy["default"] is None:
        del copy["default"]
    return copy


def _is_null(schema: Any) -> bool:
    return isinstance(schema, dict) and (schema.get("type") == "null" or schema.get("const", ...) is None)
