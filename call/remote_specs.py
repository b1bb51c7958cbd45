"""What another node says of its operations, read with mistrust.

A description that is accepted can be shown to everybody: it has the size, the types and the references that every
surface relies on. One that is not accepted is left out and breaks nothing.
"""

import json
import re
from collections.abc import Mapping
from typing import Any, Final

from alknet.access import Access
from alknet.call.codecs import JSON, MSGPACK
from alknet.call.import_errors import SchemaParse
from alknet.call.specs import ErrorSpec, Kind, OperationSpec, is_name
from alknet.errors import UsageError

__all__ = ["MAX_DESCRIPTION_BYTES", "MAX_HOPS", "read_spec"]

MAX_DESCRIPTION_BYTES: Final = 128 * 1024
"""Of one operation, all in all, as JSON."""
MAX_DEPTH: Final = 40
"""Of a schema; the frames that bring it allow no more than 64."""
MAX_DEFINITIONS: Final = 200
"""Of one schema: they may refer to each other in a row, and whoever compares schemas follows it from each of them."""
MAX_TEXT_CHARS: Final = 10_000
MAX_ITEMS: Final = 100
"""Errors, tags, examples or scopes of one operation."""
MAX_REASON_CHARS: Final = 500
MAX_HOPS: Final = 4
"""Nodes between this one and the one that runs an operation. Two nodes that import from each other, and expose what
they have imported, would otherwise hand their operations back and forth without end."""
_SCOPE: Final = re.compile(r"[A-Za-z0-9_.*:/-]{1,256}\Z")
_DIALECTS: Final = (None, "https://json-schema.org/draft/2020-12/schema")
_FOREIGN: Final = frozenset({"$id", "$anchor", "$dynamicRef", "$dynamicAnchor", "$vocabulary", "$recursiveRef"})
"""Words that make one place of a schema mean another; what alknet itself writes has none of them."""


def read_spec(name: str, description: Any) -> OperationSpec:
    """The specification of `name`, as the other side tells it; `SchemaParse` says what makes no sense."""
    if not is_name(name):
        raise SchemaParse(f"{name[:200]!r} is no name of an operation")
    said = _Said(name, description)
    if said.text("name") != name:
        raise SchemaParse(f"{name}: describes itself as {said.text('name')[:200]!r}")
    if said.text("visibility", "external") != "external":
        raise SchemaParse(f"{name}: is for the other node itself")
    access = _Said(f"{name}: access", said.get("access", {}))
    any_of = None if access.get("required_scopes_any") is None else access.scopes("required_scopes_any")
    hops = said.get("hops", 0)
    if type(hops) is not int or not 0 <= hops < MAX_HOPS:
        raise SchemaParse(f"{name}: is {hops!r} nodes further on; up to {MAX_HOPS - 1} are followed")
    try:
        spec = OperationSpec(
            name=name,
            kind=Kind(said.text("kind")),
            access=Access(
                public=access.switch("public"),
                required_scopes=access.scopes("required_scopes"),
                required_scopes_any=any_of,
                resource_type=access.optional("resource_type"),
                resource_action=access.optional("resource_action"),
            ),
            version=said.text("version", "1"),
            input_schema=said.schema("input_schema"),
            output_schema=said.schema("output_schema"),
            errors=tuple(_error(name, error) for error in said.items("errors")),
            resource_id_path=said.optional("resource_id_path"),
            summary=said.text("summary", ""),
            description=said.text("description", ""),
            tags=said.texts("tags"),
            idempotent=said.switch("idempotent"),
            destructive=said.switch("destructive"),
            examples=tuple(one for one in said.items("examples") if isinstance(one, dict) and "input" in one),
            secret_inputs=said.texts("secret_inputs"),
            hops=hops + 1,
        )
        described = spec.describe()
        for codec in (JSON, MSGPACK):
            codec.encode(
                described
            )  # an infinity, or a very large number, would fail for whoever asks for a list of all
    except (ValueError, UsageError) as exc:
        raise SchemaParse(f"{name}: {str(exc)[:MAX_REASON_CHARS]}") from exc
    if spec.resource_is_secret:
        raise SchemaParse(f"{name}: its resource is a secret input, and resources are written to audit logs")
    return spec


def _error(name: str, description: Any) -> ErrorSpec:
    said = _Said(f"{name}: errors", description)
    schema = None if said.get("schema") is None else said.schema("schema")
    status = said.get("http_status")
    return ErrorSpec(said.text("code"), said.text("description", ""), schema, status if type(status) is int else None)


class _Said:
    """A JSON object of the other side's, read field by field."""

    def __init__(self, where: str, value: Any) -> None:
        if not isinstance(value, dict):
            raise SchemaParse(f"{where}: is no object")
        self._where = where
        self._value: Mapping[str, Any] = value
        self.get = value.get

    def text(self, key: str, default: str | None = None) -> str:
        value = self._value.get(key, default)
        if not isinstance(value, str) or len(value) > MAX_TEXT_CHARS:
            raise SchemaParse(f"{self._where}: {key} is not a text of at most {MAX_TEXT_CHARS} characters")
        return value

    def optional(self, key: str) -> str | None:
        return None if self._value.get(key) is None else self.text(key)

    def switch(self, key: str) -> bool:
        return self._value.get(key) is True

    def items(self, key: str) -> list[Any]:
        value = self._value.get(key, [])
        if not isinstance(value, list) or len(value) > MAX_ITEMS:
            raise SchemaParse(f"{self._where}: {key} is not a list of at most {MAX_ITEMS}")
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        values = self.items(key)
        if not all(isinstance(value, str) and len(value) <= MAX_TEXT_CHARS for value in values):
            raise SchemaParse(f"{self._where}: {key} is not a list of texts")
        return tuple(values)

    def scopes(self, key: str) -> tuple[str, ...]:
        found = self.texts(key)
        if not all(_SCOPE.match(scope) for scope in found):
            raise SchemaParse(f"{self._where}: {key} has something that is no scope")
        return found

    def schema(self, key: str) -> dict[str, Any]:
        value = self._value.get(key)
        where = f"{self._where}: {key}"
        if not isinstance(value, dict) or value.get("$schema") not in _DIALECTS:
            raise SchemaParse(f"{where} is not a JSON Schema 2020-12")
        _check_schema(where, value)
        return value


def _check_schema(where: str, schema: dict[str, Any]) -> None:
    """That it is a schema, no larger than it may be, and refers to nothing but definitions of its own."""
    import jsonschema_rs  # only nodes that import need it

    try:
        size = len(json.dumps(schema, allow_nan=False))
    except (ValueError, TypeError, RecursionError):
        raise SchemaParse(f"{where} has values that JSON has not") from None
    if size > MAX_DESCRIPTION_BYTES:
        raise SchemaParse(f"{where} has more than {MAX_DESCRIPTION_BYTES} bytes")
    definitions = schema.get("$defs", {})
    known = {f"#/$defs/{name}" for name in definitions} if isinstance(definitions, dict) else set()
    if len(known) > MAX_DEFINITIONS:
        raise SchemaParse(f"{where} has more than {MAX_DEFINITIONS} definitions")
    _check_references(where, schema, known, 0)
    try:
        is_valid = jsonschema_rs.meta.is_valid({**schema, "$schema": _DIALECTS[1]})
    except ValueError as exc:
        raise SchemaParse(f"{where} is not a JSON Schema: {str(exc)[:200]}") from exc
    if not is_valid:
        raise SchemaParse(f"{where} is not a JSON Schema 2020-12")


def _check_references(where: str, value: Any, known: set[str], depth: int) -> None:
    if depth > MAX_DEPTH:
        raise SchemaParse(f"{where} is nested deeper than {MAX_DEPTH}")
    if isinstance(value, dict):
        if found := _FOREIGN & value.keys():
            raise SchemaParse(f"{where} has {min(found)}, which is not followed")
        reference = value.get("$ref")
        if reference is not None and isinstance(reference, str) and reference not in known:
            raise SchemaParse(f"{where} refers to {reference[:200]!r}, which is not in its own $defs")
        value = value.values()
    elif not isinstance(value, list):
        return
    for part in value:
        _check_references(where, part, known, depth + 1)
