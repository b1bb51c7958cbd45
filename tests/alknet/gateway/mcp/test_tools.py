"""How operations show themselves as tools."""

from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alknet import operation
from alknet.call.operations import operations_of
from alknet.call.specs import MAX_NAME_CHARS, is_name
from alknet.gateway.mcp.tools import MAX_TOOL_NAME_CHARS, Revision, Tool, operation_named, tool_names
from testkit import services

OBJECT = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
NODE = {
    "$ref": "#/$defs/Node",
    "$defs": {
        "Node": {
            "type": "object",
            "properties": {"next": {"anyOf": [{"$ref": "#/$defs/Node"}, {"type": "null"}]}},
            "required": ["next"],
        }
    },
}
NAMES = st.lists(st.text("aB0_-", min_size=1, max_size=45), min_size=2, max_size=3).map("/".join).filter(is_name)


def tool(output: Any = OBJECT, **spec: Any) -> Tool:
    return Tool("a.b", {"name": "a/b", "kind": "query", "input_schema": {}, "output_schema": output, **spec})


def shown(output: Any, revision: Revision, **spec: Any) -> Any:
    return tool(output, **spec).describe(revision)["outputSchema"]


# --- names -------------------------------------------------------------------------------------------------------


@given(st.lists(NAMES, unique=True))
def test_each_operation_has_a_name_of_its_own_that_clients_take(names: list[str]) -> None:
    found = tool_names(names)
    assert found.keys() == set(names)
    assert len(set(found.values())) == len(names)
    for operation_name, name in found.items():
        assert 1 <= len(name) <= MAX_TOOL_NAME_CHARS
        assert not set(name) - set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-")
        assert "." in name  # so that none is one of the general tools
        if len(operation_name) <= MAX_TOOL_NAME_CHARS:
            assert name == operation_name.replace("/", ".")
            assert operation_named(name) == operation_name
        else:
            assert operation_named(name) not in names
    assert tool_names(reversed(names)) == found


@pytest.mark.parametrize("name", ["a/b", "a.b/c", "a." * 33, "a." * 1000, "a", ""])
def test_what_names_no_tool_names_no_operation(name: str) -> None:
    assert not is_name(operation_named(name))
    assert len(operation_named(name)) <= MAX_NAME_CHARS


def test_a_cut_name_gives_way_to_an_operation_that_is_named_so() -> None:
    long = "a/" + "b" * (MAX_NAME_CHARS - 2)
    cut = tool_names([long])[long]
    squatter = cut.replace(".", "/")
    found = tool_names([long, squatter])
    assert found[squatter] == cut
    assert found[long] != cut
    assert len(found[long]) == MAX_TOOL_NAME_CHARS
    assert found[long] != tool_names([long[:-1] + "c"])[long[:-1] + "c"]


# --- outputs -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("output", "value", "wraps"),
    [
        # (schema, a value of it, whether it is wrapped in the old and in the new revision)
        (OBJECT, {"a": 1}, (False, False)),
        (NODE, {"next": {"next": None}}, (False, False)),
        ({"type": "string"}, "x", (True, False)),
        ({"type": "array", "items": {"$ref": "#/$defs/I"}, "$defs": {"I": {"type": "integer"}}}, [1], (True, False)),
        ({"anyOf": [OBJECT, {"type": "array"}]}, [1], (True, False)),
        ({"enum": ["a", 1]}, 1, (True, False)),
        ({"const": 3}, 3, (True, False)),
        ({"type": "null"}, None, (True, True)),
        ({"type": ["object", "null"]}, None, (True, True)),
        ({"anyOf": [OBJECT, {"type": "null"}]}, None, (True, True)),
        ({"oneOf": [{"$ref": "#/$defs/N"}], "$defs": {"N": {"type": "null"}}}, None, (True, True)),
        ({"enum": ["a", None]}, None, (True, True)),
        ({"const": None}, None, (True, True)),
        ({}, None, (True, True)),
        ({"not": {"type": "string"}}, None, (True, True)),
    ],
)
def test_an_output_fits_the_schema_that_is_shown(output: Any, value: Any, wraps: tuple[bool, bool]) -> None:
    made = tool(output)
    for revision, is_wrapped in zip((Revision.OLD, Revision.NEW), wraps, strict=True):
        assert made.wraps(revision) is is_wrapped
        schema = shown(output, revision)
        jsonschema.Draft202012Validator.check_schema(schema)
        jsonschema.validate({"result": value} if is_wrapped else value, schema)
        if revision is Revision.OLD:
            assert schema["type"] == "object"
            assert all(isinstance(one, dict | bool) for one in schema.get("properties", {}).values())
        if is_wrapped:
            with pytest.raises(jsonschema.ValidationError):
                jsonschema.validate({}, schema)


@pytest.mark.parametrize(
    "output",
    [
        {"type": "array", "items": {"anyOf": [{"type": "integer"}, {"$ref": "#"}]}},
        {
            "type": "array",
            "prefixItems": [{"type": "integer"}],
            "items": {"anyOf": [{"$ref": "#/prefixItems/0"}, {"$ref": "#"}]},
        },
    ],
)
def test_references_to_the_root_mean_the_same_after_wrapping(output: Any) -> None:
    for schema, wrapped in (
        (shown(output, Revision.OLD), lambda value: {"result": value}),
        (shown(output, Revision.NEW, kind="subscription"), lambda value: {"items": [value], "truncated": False}),
    ):
        jsonschema.validate(wrapped([1, [2, [3]]]), schema)
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrapped([1, ["two"]]), schema)


def test_schemas_that_lead_nowhere_are_wrapped_and_end() -> None:
    for output in (
        {"$ref": "#/$defs/A", "$defs": {"A": {"$ref": "#/$defs/A"}}},
        {"$ref": "#/$defs/A", "$defs": {"A": {"anyOf": [{"$ref": "#/$defs/A"}, {"$ref": "#/$defs/A"}]}}},
        {"$ref": "elsewhere.json"},
        {"$ref": "#/$defs/Missing"},
        None,
        True,
    ):
        assert tool(output).wraps(Revision.OLD)
        assert tool(output).wraps(Revision.NEW)


def test_a_subscription_answers_with_its_items_in_both_revisions() -> None:
    for revision in Revision:
        schema = shown(NODE, revision, kind="subscription")
        jsonschema.validate({"items": [{"next": {"next": None}}], "truncated": True}, schema)
        for wrong in ({"items": [{}], "truncated": True}, {"items": []}, {"truncated": False}):
            with pytest.raises(jsonschema.ValidationError):
                jsonschema.validate(wrong, schema)


# --- the rest ----------------------------------------------------------------------------------------------------


def test_the_hints_are_those_of_the_operation() -> None:
    for kind, facts, expected in (
        ("query", {}, (True, False, True)),
        ("query", {"destructive": True}, (True, False, True)),
        ("mutation", {}, (False, False, False)),
        ("mutation", {"idempotent": True, "destructive": True}, (False, True, True)),
        ("subscription", {}, (False, False, False)),
        ("subscription", {"destructive": True}, (False, True, False)),
    ):
        hints = tool(kind=kind, **facts).describe(Revision.NEW)["annotations"]
        assert tuple(hints[key] for key in ("readOnlyHint", "destructiveHint", "idempotentHint")) == expected


def test_the_description_says_what_it_does_and_how_it_fails() -> None:
    one = next(one for one in operations_of(services) if one.spec.name == "test/order")
    text = Tool("test.order", one.spec.describe()).describe(Revision.NEW)["description"]
    assert text.startswith("Order something; only 3 are left.")
    assert text.endswith("Errors:\n- SOLD_OUT: There are fewer left than were asked for.")
    assert "progress" in tool(kind="subscription").describe(Revision.OLD)["description"]


def test_the_exact_name_of_the_operation_is_the_title() -> None:
    assert tool().describe(Revision.OLD)["title"] == "a/b"


def test_no_schema_asks_for_headers() -> None:
    asks = {
        "type": "object",
        "properties": {
            "region": {"type": "string", "x-mcp-header": "Region"},
            "x-mcp-header": {"type": "string"},
            "list": {"type": "array", "items": {"anyOf": [{"type": "string", "x-mcp-header": "L"}]}},
        },
    }
    assert tool(input_schema=asks).describe(Revision.NEW)["inputSchema"] == {
        "type": "object",
        "properties": {
            "region": {"type": "string"},
            "x-mcp-header": {"type": "string"},
            "list": {"type": "array", "items": {"anyOf": [{"type": "string"}]}},
        },
    }


def test_the_inputs_schema_is_an_object_even_where_nothing_is_said() -> None:
    assert tool(input_schema=None).describe(Revision.OLD)["inputSchema"] == {"type": "object"}


def test_every_operation_of_the_test_kit_is_a_tool() -> None:
    @operation("one/more", kind="mutation")
    async def more(many: dict[str, list[int | None]]) -> list[dict[str, int] | None]:
        return []

    for one in operations_of((services, more)):
        for revision in Revision:
            described = Tool("x.y", one.spec.describe()).describe(revision)
            jsonschema.Draft202012Validator.check_schema(described["inputSchema"])
            jsonschema.Draft202012Validator.check_schema(described["outputSchema"])
