"""The OpenAPI 3.1 document of some operations: those that one caller may call.

It is made of what operations say of themselves (`OperationSpec.describe`, which ``services/schema`` answers), so that
a node makes it for its callers and a command line for a node. Each operation is ``POST /ops/{name}``, and a query whose
input fits into a URL is also ``GET``. Pure: values in, a JSON value out, in the same order for the same operations.
"""

import json
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from alknet.call.specs import Kind, Visibility, check_code, is_name
from alknet.errors import UsageError
from alknet.gateway import openapi_errors
from alknet.gateway.openapi_query import QueryParameter, query_parameters
from alknet.gateway.openapi_schemas import Schemas, plain

__all__ = ["CONTRACT_VERSION", "document", "encode", "encoding", "making", "operation_id"]

CONTRACT_VERSION: Final = "1.0.0"
"""Of what operations have in common: how they are called, how they answer and fail. Its first number changes when
clients that were made for it no longer work."""
OPENAPI_VERSION: Final = "3.1.0"
JSON_TYPE: Final = "application/json"
MAX_KEY_CHARS: Final = 255

_DESCRIPTION: Final = """\
The operations that the caller may call, and no others. Send `Authorization: Bearer TOKEN`; without it only what is \
public can be called, and is shown.

Failures are problem documents (`application/problem+json`, RFC 9457) with the call's own `code`, whether it is \
`retryable`, and a `denial_id` when access was refused.

A subscription answers `text/event-stream`. Each item is an event whose `data` is the item as JSON (its schema is \
`x-alknet-item` of that response) and whose `id` is its number. How it ends is an event as well: `completed`, or \
`error` with a problem document as `data`. A stream that ends without either was lost.\
"""


def document(
    operations: Iterable[Mapping[str, Any]],
    *,
    title: str = "alknet",
    version: str = CONTRACT_VERSION,
    servers: Sequence[str] = ("/",),
    caller: str | None = None,
) -> dict[str, Any]:
    """The document of `operations`, each as `OperationSpec.describe` has it. `caller` is the peer that it is made for,
    None for anybody. What is no operation that can be called is left out."""
    steps = making(operations, title=title, version=version, servers=servers, caller=caller)
    while True:
        try:
            next(steps)
        except StopIteration as done:
            made: dict[str, Any] = done.value
            return made


def making(
    operations: Iterable[Mapping[str, Any]],
    *,
    title: str = "alknet",
    version: str = CONTRACT_VERSION,
    servers: Sequence[str] = ("/",),
    caller: str | None = None,
) -> Generator[None, None, dict[str, Any]]:
    """`document` in small steps, for whoever has other things to do meanwhile: it returns the document."""
    schemas = Schemas({"Problem": openapi_errors.PROBLEM_SCHEMA})
    paths: dict[str, Any] = {}
    namespaces: dict[str, None] = {}
    chosen = []
    for one in operations:
        if _is_operation(one):
            chosen.append(one)
        yield
    for operation in sorted(chosen, key=lambda one: str(one["name"])):
        name: str = operation["name"]
        namespaces[name.partition("/")[0]] = None
        paths[f"/ops/{name}"] = _path_item(operation, schemas)
        yield
    yield from schemas.naming()
    return {
        "openapi": OPENAPI_VERSION,
        "jsonSchemaDialect": "https://json-schema.org/draft/2020-12/schema",
        "info": {"title": title, "version": version, "description": _DESCRIPTION},
        "servers": [{"url": url} for url in servers],
        "tags": [{"name": name} for name in namespaces],
        "paths": paths,
        "components": {
            "schemas": schemas.components(),
            **openapi_errors.components(),
            "parameters": _PARAMETERS,
            "securitySchemes": {
                "bearer": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "A token that 'alknet token create' has printed.",
                }
            },
        },
        "x-alknet": {"caller": caller},
    }


def encode(made: Mapping[str, Any]) -> bytes:
    """A document as JSON. It may have more values than one call may carry, hence not by the codec of calls."""
    components = {**made["components"], "schemas": dict(made["components"]["schemas"])}
    return b"".join(encoding({**made, "paths": dict(made["paths"]), "components": components}))


def encoding(made: Mapping[str, Any]) -> Iterator[bytes]:
    """`encode` in small pieces. It takes the document apart: to let go of a large one takes long, too."""
    yield b"{"
    for number, (key, value) in enumerate(made.items()):
        if number:
            yield b","
        if key == "paths":
            yield b"%b:" % _json(key)
            yield from _members(value)
        elif key == "components":
            yield b"%b:" % _json(key)
            yield b'{"schemas":'
            yield from _members(value["schemas"])
            rest = {name: part for name, part in value.items() if name != "schemas"}
            yield b"," + _json(rest)[1:]
        else:
            yield b"%b:%b" % (_json(key), _json(value))
    yield b"}"


def _members(value: dict[str, Any]) -> Iterator[bytes]:
    left = list(value.items())
    value.clear()
    left.reverse()
    comma = b""
    yield b"{"
    while left:
        key, part = left.pop()
        yield b"%b%b:%b" % (comma, _json(key), _json(part))
        comma = b","
    yield b"}"


def _json(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode("ascii")


def operation_id(name: str) -> str:
    """An operation's name as an operationId; the GET form's ends in ``:get``."""
    return name.replace("/", ".")


_PARAMETERS: Final[dict[str, Any]] = {
    "IdempotencyKey": {
        "name": "Idempotency-Key",
        "in": "header",
        "description": "Makes it safe to send the same call again: the node answers as it did the first time, for 24"
        " hours. The same key with another input is refused, and so is a key of nobody in particular.",
        "schema": {"type": "string", "minLength": 1, "maxLength": MAX_KEY_CHARS, "pattern": "^[ -~]+$"},
    },
    "LastEventId": {
        "name": "Last-Event-ID",
        "in": "header",
        "description": "The id of the last event that the caller has seen; numbers go on after it.",
        "schema": {"type": "string", "maxLength": MAX_KEY_CHARS, "pattern": "^[ -~]*$"},
    },
}


def _is_operation(one: Any) -> bool:
    return (
        isinstance(one, Mapping)
        and isinstance(one.get("name"), str)
        and is_name(one["name"])
        and one.get("kind") in tuple(Kind)
        and one.get("visibility") != Visibility.INTERNAL
    )


def _path_item(operation: Mapping[str, Any], schemas: Schemas) -> dict[str, Any]:
    common = _common(operation)
    name, kind = operation["name"], operation["kind"]
    identifier = operation_id(name)
    answer = _answer(operation, schemas)
    declared = _declared(operation, schemas)
    item: dict[str, Any] = {}
    parameters = query_parameters(operation)
    if parameters is not None:
        item["get"] = {
            "operationId": f"{identifier}:get",
            **common,
            "parameters": [_query(one, operation, schemas) for one in parameters],
            "responses": {"200": answer, **openapi_errors.responses_of(declared, has_body=False, has_key=False)},
        }
        if not parameters:
            del item["get"]["parameters"]
    is_mutation = kind == Kind.MUTATION
    header = {Kind.MUTATION: "IdempotencyKey", Kind.SUBSCRIPTION: "LastEventId"}.get(kind)
    item["post"] = {
        "operationId": identifier,
        **common,
        **({"parameters": [{"$ref": f"#/components/parameters/{header}"}]} if header else {}),
        "requestBody": _body(operation, schemas),
        "responses": {"200": answer, **openapi_errors.responses_of(declared, has_body=True, has_key=is_mutation)},
    }
    return item


def _common(operation: Mapping[str, Any]) -> dict[str, Any]:
    """What is the same for both methods."""
    access = _object(operation, "access")
    name: str = operation["name"]
    description = _text(operation, "description")
    return {
        "tags": [name.partition("/")[0]],
        "summary": _text(operation, "summary") or name,
        **({"description": description} if description else {}),
        "security": _security(access),
        "x-alknet": {
            "name": name,
            "kind": operation["kind"],
            "version": _text(operation, "version"),
            "idempotent": operation.get("idempotent") is True,
            "destructive": operation.get("destructive") is True,
            "access": {
                "public": access.get("public") is True,
                "required_scopes": _texts(access, "required_scopes"),
                "required_scopes_any": _texts(access, "required_scopes_any") or None,
                "resource_type": _text(access, "resource_type") or None,
                "resource_action": _text(access, "resource_action") or None,
            },
            "resource_id_path": _text(operation, "resource_id_path") or None,
            "tags": _texts(operation, "tags"),
            "secret_inputs": _texts(operation, "secret_inputs"),
        },
    }


def _security(access: Mapping[str, Any]) -> list[dict[str, list[str]]]:
    """Alternatives of which one must hold; since 3.1 they name what the bearer must be allowed."""
    scopes = _texts(access, "required_scopes")
    if access.get("public") is True:
        return [{}, {"bearer": []}]
    return [{"bearer": [*scopes, one]} for one in _texts(access, "required_scopes_any")] or [{"bearer": scopes}]


def _body(operation: Mapping[str, Any], schemas: Schemas) -> dict[str, Any]:
    schema = operation.get("input_schema")
    media: dict[str, Any] = {"schema": schemas.add(schema, operation_id(operation["name"]), "Input")}
    if examples := _examples(operation, "input"):
        media["examples"] = examples
    required = schema.get("required") if isinstance(schema, dict) else None
    return {"required": bool(required), "content": {JSON_TYPE: media}}


def _answer(operation: Mapping[str, Any], schemas: Schemas) -> dict[str, Any]:
    names = ["Alknet-Request-Id", *(["Idempotent-Replayed"] if operation["kind"] == Kind.MUTATION else [])]
    headers = openapi_errors.headers_of(names)
    schema, identifier = operation.get("output_schema"), operation_id(operation["name"])
    if operation["kind"] == Kind.SUBSCRIPTION:
        stream = {
            # 3.1 has no words for the items of a stream: some tools hold this against all of its text, some against
            # each event.
            "schema": {},
            "x-alknet-item": schemas.add(schema, identifier, "Item"),
        }
        return {"description": "The items, as they come.", **headers, "content": {"text/event-stream": stream}}
    media: dict[str, Any] = {"schema": schemas.add(schema, identifier, "Output")}
    if examples := _examples(operation, "output"):
        media["examples"] = examples
    return {"description": "What it answers.", **headers, "content": {JSON_TYPE: media}}


def _declared(operation: Mapping[str, Any], schemas: Schemas) -> dict[int, list[tuple[str, dict[str, Any]]]]:
    """The operation's own errors by status."""
    found: dict[int, list[tuple[str, dict[str, Any]]]] = {}
    seen = set()
    for error in operation.get("errors") or ():
        if not isinstance(error, Mapping):
            continue
        code, status = _text(error, "code"), error.get("http_status")
        status = openapi_errors.DOMAIN_STATUS if status is None else status
        try:
            check_code(code, status)
        except UsageError:
            continue
        if code in seen:
            continue
        seen.add(code)
        words = _text(error, "description")
        schema = schemas.problem(code, words, error.get("schema"), operation_id(operation["name"]))
        found.setdefault(status, []).append((f"{code}: {words}" if words else code, schema))
    return found


def _query(one: QueryParameter, operation: Mapping[str, Any], schemas: Schemas) -> dict[str, Any]:
    schema = dict(one.schema)
    description = schema.pop("description", None)
    parameter: dict[str, Any] = {"name": one.name, "in": "query", "required": one.required}
    if isinstance(description, str):
        parameter["description"] = description
    parameter["schema"] = schemas.part(schema, operation["input_schema"], operation_id(operation["name"]), "Input")
    if one.is_list:
        parameter |= {"style": "form", "explode": True}
    return parameter


def _examples(operation: Mapping[str, Any], side: str) -> dict[str, Any]:
    found = [one for one in operation.get("examples") or () if isinstance(one, Mapping) and side in one]
    return {f"example{number}": {"value": plain(one[side])} for number, one in enumerate(found, 1)}


# --- what may come from another node ------------------------------------------------------------------------------


def _object(value: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = value.get(key)
    return found if isinstance(found, Mapping) else {}


def _text(value: Mapping[str, Any], key: str) -> str:
    found = value.get(key)
    return found if isinstance(found, str) else ""


def _texts(value: Mapping[str, Any], key: str) -> list[str]:
    found = value.get(key)
    return [one for one in found if isinstance(one, str)] if isinstance(found, list | tuple) else []
