"""What types are made of which schemas."""

from typing import Any

import pytest

from alknet.call import typed_schemas
from alknet.call.typed_names import Names
from alknet.call.typed_schemas import MAX_DEPTH, MAX_FIELDS, MAX_PARTS, MAX_VALUES, Types
from alknet.call.typed_types import ANY, Alias, Field, Generic, Inputs, Named, Plain, Record


def text(schema: Any) -> str:
    """The type of a schema as it is written."""
    types = Types()
    found = types.output(schema, "FsRead", "Output")
    names = Names(types.declared, [found])
    names.give(set())
    return names.text(names.settled(found))


RECORD = {"type": "object", "properties": {"a": {"type": "integer"}}}


@pytest.mark.parametrize(
    ("schema", "wanted"),
    [
        ({"type": "string"}, "str"),
        ({"type": "string", "contentEncoding": "base64"}, "bytes"),
        ({"type": "string", "format": "date"}, "str"),
        ({"type": "number"}, "float"),
        ({"type": "boolean"}, "bool"),
        ({"type": "null"}, "None"),
        ({"type": ["null", "string"]}, "str | None"),
        ({"type": "string", "nullable": True}, "str | None"),
        ({"type": ["object", "null"], "properties": {"a": {}}}, "FsReadOutput | None"),
        ({"const": "a"}, 'Literal["a"]'),
        ({"enum": ["a", 1, True, None]}, 'Literal["a", 1, True] | None'),
        ({"enum": ["a" * 50, "b" * 50]}, "FsReadOutput"),
        ({"enum": ["a" * 50, "b" * 50], "title": "Long"}, "Long"),
        ({"enum": [1.5], "type": "number"}, "float"),
        ({"enum": list(range(MAX_VALUES + 1)), "type": "integer"}, "int"),
        ({"enum": [10**40], "type": "integer"}, "int"),
        ({"type": "array", "items": {"type": "string"}}, "list[str]"),
        ({"type": "array"}, "list[Any]"),
        (
            {"type": "array", "prefixItems": [{"type": "string"}, {"const": 1}], "items": False},
            "tuple[str, Literal[1]]",
        ),
        ({"type": "array", "prefixItems": [{"type": "string"}], "minItems": 1, "maxItems": 1}, "tuple[str]"),
        ({"type": "array", "prefixItems": [{"type": "string"}], "items": {"type": "null"}}, "list[str | None]"),
        ({"type": "array", "prefixItems": [{"type": "string"}]}, "list[Any]"),
        ({"type": "object"}, "dict[str, Any]"),
        ({"type": "object", "additionalProperties": {"type": "integer"}}, "dict[str, int]"),
        ({"type": "object", "patternProperties": {"^a": {"type": "integer"}}}, "dict[str, int]"),
        ({"anyOf": [{"type": "string"}, {"type": "null"}, {"type": "integer"}]}, "str | int | None"),
        ({"type": "object", "oneOf": [RECORD | {"title": "A"}, RECORD | {"title": "B"}]}, "A | B"),
        ({"type": "string", "anyOf": [{"minLength": 1}, {"pattern": "a"}]}, "str"),
        ({"allOf": [{"$ref": "#/$defs/A"}], "$defs": {"A": RECORD}}, "A"),
        ({"allOf": [RECORD, {"properties": {"b": {"type": "string"}}, "required": ["b"]}]}, "FsReadOutput"),
        ({"$ref": "#/$defs/A~1b", "$defs": {"A/b": {"type": "string"}}}, "str"),
        ({"$ref": "#/anyOf/1", "anyOf": [{}, {"type": "string"}]}, "str"),
        ({"$ref": "#/$defs/E", "$defs": {"E": {"enum": ["a"]}}}, "E"),
        (RECORD | {"title": "Stock of item"}, "StockOfItem"),
        (RECORD, "FsReadOutput"),
        ({}, "Any"),
        (True, "Any"),
        (False, "Any"),
        (None, "Any"),
        ([1], "Any"),
        ({"type": "colour"}, "Any"),
        ({"type": []}, "Any"),
        ({"type": {"a": 1}}, "Any"),
        ({"enum": []}, "Any"),
        ({"anyOf": []}, "Any"),
        ({"allOf": [None, 3]}, "Any"),
        ({"$ref": "#"}, "Any"),
        ({"$ref": "#/no"}, "Any"),
        ({"$ref": "https://example.org/a.json"}, "Any"),
        ({"$ref": "#/$defs/A", "$defs": {"A": {"$ref": "#/$defs/B"}, "B": {"$ref": "#/$defs/A"}}}, "Any"),
        ({"$ref": "#/$defs/A", "$defs": {"A": {"anyOf": [{"$ref": "#/$defs/A"}, {"type": "string"}]}}}, "Any"),
    ],
)
def test_a_schema_is_a_type(schema: Any, wanted: str) -> None:
    assert text(schema) == wanted


def test_the_fields_of_an_object_have_types_and_notes() -> None:
    types = Types()
    schema = {
        "title": "Stock",
        "description": "What is left.",
        "type": "object",
        "properties": {
            "left": {"type": "integer", "description": "How\n many.", "default": 3},
            "day": {"type": "string", "format": "date"},
            "data": {"type": "string", "contentEncoding": "base64", "default": "YQ=="},
        },
        "required": ["day", "more", 3],
    }
    assert types.output(schema, "ShopStock", "Output") == Named(0)
    assert types.declared[0].body == Record(
        (
            Field("left", Plain("int"), False, "How many. Default: 3."),
            Field("day", Plain("str"), True, "Format: date."),
            Field("data", Plain("bytes"), False, ""),
            Field("more", ANY, True, ""),
        ),
        "What is left.",
    )


def test_all_that_is_asked_for_together_is_one_object() -> None:
    types = Types()
    types.output({"allOf": [RECORD, {"properties": {"b": {}}, "required": ["a", "b"]}]}, "FsRead", "Output")
    body = types.declared[0].body
    assert isinstance(body, Record)
    assert [(field.name, field.is_required) for field in body.fields] == [("a", True), ("b", True)]


def test_what_refers_to_itself_has_a_name() -> None:
    types = Types()
    tree = {"type": "object", "properties": {"children": {"type": "array", "items": {"$ref": "#/$defs/Tree"}}}}
    values = {"anyOf": [{"type": "array", "items": {"$ref": "#/$defs/Json"}}, {"type": "string"}]}
    assert types.output({"$ref": "#/$defs/Tree", "$defs": {"Tree": tree}}, "A", "Output") == Named(0)
    assert types.declared[0].body == Record((Field("children", Generic("list", (Named(0),)), False),))
    assert types.output({"$ref": "#/$defs/Json", "$defs": {"Json": values}}, "A", "Output") == Named(1)
    body = types.declared[1].body
    assert isinstance(body, Alias)
    assert types.output({"properties": {"a": {"$ref": "#"}}}, "A", "Output") == Named(3)


@pytest.mark.parametrize(
    ("schema", "wanted"),
    [
        ({"type": "object", "properties": {}, "additionalProperties": False}, Inputs()),
        ({"type": "object", "properties": {}}, Inputs()),
        ({"properties": {"a": {"type": "string"}}, "required": ["a"]}, Inputs((Field("a", Plain("str"), True),))),
        ({"$ref": "#/$defs/A", "$defs": {"A": RECORD}}, Inputs((Field("a", Plain("int"), False),))),
        (
            RECORD | {"additionalProperties": {"type": "string"}},
            Inputs((Field("a", Plain("int"), False),), Plain("str")),
        ),
        ({"type": "object"}, Inputs((), ANY)),
        ({"type": "array"}, Inputs(whole=Generic("list", (ANY,)))),
        ({"anyOf": [RECORD, {"type": "null"}]}, None),
        ({}, Inputs(whole=ANY)),
        ("nonsense", Inputs(whole=ANY)),
    ],
)
def test_an_input_is_made_of_its_fields_if_it_has_some(schema: Any, wanted: Inputs | None) -> None:
    found = Types().inputs(schema, "FsRead")
    assert found == wanted or (wanted is None and found.whole is not None)


# --- bounds -------------------------------------------------------------------------------------------------------


def test_too_many_fields_are_a_dictionary() -> None:
    many = {str(number): {"type": "string"} for number in range(MAX_FIELDS + 1)}
    assert text({"type": "object", "properties": many}) == "dict[str, Any]"
    assert Types().inputs({"type": "object", "properties": many}, "A").whole is not None


def test_schemas_are_read_to_a_depth() -> None:
    schema: Any = {"type": "string"}
    for _ in range(60):
        schema = {"type": "array", "items": schema}
    assert text(schema) == "list[" * (MAX_DEPTH + 1) + "Any" + "]" * (MAX_DEPTH + 1)


def test_a_small_schema_that_means_a_large_type_is_read_to_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    twice = {"allOf": [{"$ref": "#"}, {}]}
    types = Types()
    types.output({"type": "object", "properties": {"a": twice, "b": twice}}, "A", "Output")
    assert 100 < len(types.declared) < MAX_PARTS
    monkeypatch.setattr(typed_schemas, "MAX_ALL_PARTS", 10)
    types = Types()
    for _ in range(100):
        types.output({"type": "object", "properties": {"a": twice, "b": twice}}, "A", "Output")
    assert len(types.declared) <= 10
