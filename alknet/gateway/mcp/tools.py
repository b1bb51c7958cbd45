"""How an operation shows itself as an MCP tool: its name, its schemas, its hints. Values only.

A tool is made of what ``services/schema`` answers, so that the node and the bridge, which knows no more than that of a
remote node, show the same tool.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import Enum
from typing import Any, Final

from blake3 import blake3

from alknet.call.codecs import JSON
from alknet.call.specs import MAX_NAME_CHARS

__all__ = ["MAX_TOOL_NAME_CHARS", "Revision", "Tool", "operation_named", "tool_names", "wrapped"]

MAX_TOOL_NAME_CHARS: Final = 64
"""Many clients fail beyond, though the protocol admits 128."""
CUT_DIGITS: Final = 10
"""Of the hash that a name gets which had to be cut."""
MAX_REFERENCES: Final = 16
"""That lead from one schema to the next until one says what it is."""
RESULT: Final = "result"
"""The field of an output that is no object, where only objects are allowed."""
X_MCP_HEADER: Final = "x-mcp-header"

Schema = Mapping[str, Any]


class Revision(Enum):
    """The two ways that the protocol's revisions work."""

    OLD = "2025-11-25"
    """And older: a handshake begins a session; structured content is an object."""
    NEW = "2026-07-28"
    """Each request stands alone; structured content is any JSON value."""

    @classmethod
    def of(cls, version: str) -> "Revision":
        return cls.NEW if version == cls.NEW.value else cls.OLD


def tool_names(operations: Iterable[str], *, is_taken: Callable[[str], bool] = lambda name: False) -> dict[str, str]:
    """The name of each operation's tool.

    ``/`` becomes ``.``, which no operation's name has, so no two are equal. A name that is too long is cut and gets a
    hash of the whole; should another tool have just that name, or be it `is_taken` elsewhere, a longer hash.
    """
    names = sorted(operations)
    found = {name: name.replace("/", ".") for name in names if len(name) <= MAX_TOOL_NAME_CHARS}
    taken = set(found.values())
    for name in names:
        if name not in found:
            plain, digest = name.replace("/", "."), blake3(name.encode()).hexdigest()
            cuts = (
                f"{plain[: MAX_TOOL_NAME_CHARS - 1 - size]}-{digest[:size]}"
                for size in range(CUT_DIGITS, MAX_TOOL_NAME_CHARS)
            )
            found[name] = next(cut for cut in cuts if cut not in taken and not is_taken(cut))
            taken.add(found[name])
    return found


def operation_named(tool: str) -> str:
    """The operation whose tool has this name, if its name was not cut. Of what names no tool, what names no operation:
    it has no slash."""
    is_name = len(tool) <= MAX_TOOL_NAME_CHARS and "/" not in tool
    return tool.replace(".", "/") if is_name else tool[:MAX_NAME_CHARS].replace("/", ".")


class Tool:
    """One operation as a tool. `spec` is what ``services/schema`` answers; nothing in it is changed."""

    __slots__ = ("_json", "_spec", "_wraps", "is_stream", "name", "operation")

    def __init__(self, name: str, spec: Mapping[str, Any]) -> None:
        self.name = name
        self.operation: str = spec["name"]
        self.is_stream = spec["kind"] == "subscription"
        self._spec = spec
        self._json: dict[Revision, bytes] = {}
        output = _schema(spec.get("output_schema"))
        # The SDK drops a structured content of null, so what may be null is put into an object in both revisions.
        self._wraps = {Revision.OLD: not _is_object(output), Revision.NEW: _may_be_null(output)}

    def wraps(self, revision: Revision) -> bool:
        """Whether an output is put into an object, as its field ``result``."""
        return self._wraps[revision]

    def describe(self, revision: Revision) -> dict[str, Any]:
        """The tool as ``tools/list`` has it."""
        spec = self._spec
        return {
            "name": self.name,
            "title": self.operation,
            "description": _description(spec),
            "inputSchema": {"type": "object", **_without_headers(_schema(spec.get("input_schema")))},
            "outputSchema": self._output_schema(revision),
            "annotations": _hints(spec),
        }

    def json(self, revision: Revision) -> bytes:
        """`describe` as JSON; made once."""
        known = self._json.get(revision)
        if known is None:
            known = self._json[revision] = JSON.encode(self.describe(revision))
        return known

    def _output_schema(self, revision: Revision) -> dict[str, Any]:
        output = _schema(self._spec.get("output_schema"))
        if self.is_stream:
            return _wrapped_items(output)
        if self._wraps[revision]:
            return wrapped(output)
        return {"type": "object", **output} if revision is Revision.OLD else dict(output)


def wrapped(output: Schema) -> dict[str, Any]:
    """The schema of an object whose ``result`` is an output."""
    return {
        "type": "object",
        "properties": {RESULT: _moved(output, f"#/properties/{RESULT}")},
        "required": [RESULT],
        **_definitions(output),
    }


def _wrapped_items(item: Schema) -> dict[str, Any]:
    """What a subscription answers in the end; see `results.Items`."""
    return {
        "type": "object",
        "properties": {
            "items": {"type": "array", "items": _moved(item, "#/properties/items/items")},
            "truncated": {"type": "boolean", "description": "Whether it was ended because there were too many items."},
        },
        "required": ["items", "truncated"],
        **_definitions(item),
    }


def _schema(value: Any) -> Schema:
    return value if isinstance(value, dict) else {}


def _definitions(schema: Schema) -> dict[str, Any]:
    """What stays at the root when a schema moves into another one, so that references to it go on meaning it."""
    return {key: schema[key] for key in ("$schema", "$defs", "definitions") if key in schema}


def _moved(schema: Schema, to: str) -> dict[str, Any]:
    """`schema` as it stands at `to`, without what stays at the root."""
    rest = {key: value for key, value in schema.items() if key not in ("$schema", "$defs", "definitions")}
    moved: dict[str, Any] = _with_references(rest, to)
    return moved


def _with_references(part: Any, to: str) -> Any:
    if isinstance(part, list):
        return [_with_references(one, to) for one in part]
    if not isinstance(part, dict):
        return part
    return {
        key: _reference(value, to) if key == "$ref" and isinstance(value, str) else _with_references(value, to)
        for key, value in part.items()
    }


def _reference(target: str, to: str) -> str:
    is_kept = not target.startswith("#") or target.startswith(("#/$defs/", "#/definitions/"))
    return target if is_kept or target[1:2] not in ("", "/") else to + target[1:]


def _without_headers(part: Any) -> Any:
    """Without what asks clients to repeat an argument in an HTTP header: nothing here reads such a header, and what an
    imported tool said of them was meant for its own server."""
    if isinstance(part, list):
        return [_without_headers(one) for one in part]
    if not isinstance(part, dict):
        return part
    # A property that happens to have this name is one whose schema is an object.
    return {
        key: _without_headers(value)
        for key, value in part.items()
        if key != X_MCP_HEADER or isinstance(value, dict | bool)
    }


# --- what a schema says of its values ------------------------------------------------------------------------------


def _root(schema: Schema) -> Schema:
    """What a chain of references from the root comes to; nothing where it does not come to an end."""
    found: Any = schema
    for _ in range(MAX_REFERENCES):
        target = found.get("$ref")
        if not isinstance(target, str):
            return found if isinstance(found, dict) else {}
        name = target.removeprefix("#/$defs/")
        found = _schema(_schema(schema.get("$defs")).get(name)) if name != target else {}
    return {}


def _is_object(schema: Schema) -> bool:
    return _root(schema).get("type") == "object"


def _may_be_null(schema: Schema, depth: int = MAX_REFERENCES) -> bool:
    """Whether null may fit; False only where it certainly does not."""
    root = _root(schema) if depth else {}
    kind = root.get("type")
    if isinstance(kind, str):
        return kind == "null"
    if isinstance(kind, list):
        return "null" in kind
    if isinstance(root.get("enum"), list):
        return None in root["enum"]
    if "const" in root:
        return root["const"] is None
    for key in ("anyOf", "oneOf"):
        branches = root.get(key)
        if isinstance(branches, list) and branches:
            defs = {"$defs": schema.get("$defs", {})}
            return any(
                _may_be_null({**defs, **_schema(branch)}, depth - 1) for branch in branches if branch is not False
            )
    return True


# --- what people and models read --------------------------------------------------------------------------------


def _description(spec: Mapping[str, Any]) -> str:
    parts = [_text(spec.get("summary")), _text(spec.get("description"))]
    if spec["kind"] == "subscription":
        parts.append("A subscription: its items come as progress, and all together when it has ended.")
    parts += _errors(spec.get("errors"))
    return "\n\n".join(part for part in parts if part)


def _errors(errors: Any) -> Sequence[str]:
    if not isinstance(errors, list | tuple):
        return ()
    lines = [f"- {_text(one.get('code'))}: {_text(one.get('description'))}" for one in map(_schema, errors)]
    return ("\n".join(["Errors:", *lines]),) if lines else ()


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _hints(spec: Mapping[str, Any]) -> dict[str, bool]:
    """A subscription is not called read-only, whatever it does: that is not said of operations that go on."""
    is_query = spec["kind"] == "query"
    return {
        "readOnlyHint": is_query,
        "destructiveHint": bool(spec.get("destructive")) and not is_query,
        "idempotentHint": is_query or bool(spec.get("idempotent")),
    }
