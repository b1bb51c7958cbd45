"""Schemas become components: once when equal, apart when not, and valid whatever they were."""

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alknet.gateway.openapi_schemas import COMPONENT, Schemas

ITEM = {"type": "object", "title": "Item", "properties": {"name": {"type": "string"}}, "required": ["name"]}
OTHER = {"type": "object", "title": "Item", "properties": {"name": {"type": "integer"}}}
TREE = {
    "$ref": "#/$defs/Tree",
    "$defs": {
        "Tree": {
            "type": "object",
            "title": "Tree",
            "properties": {"children": {"type": "array", "items": {"$ref": "#/$defs/Tree"}}},
        }
    },
}


def holding(definition: dict[str, Any], name: str = "Item") -> dict[str, Any]:
    """A list of what `definition` says, which stands in definitions of its own."""
    pointer = name.replace("~", "~0").replace("/", "~1")
    return {"type": "array", "items": {"$ref": f"#/$defs/{pointer}"}, "$defs": {name: definition}}


def made(*added: tuple[Any, str, str]) -> tuple[list[dict[str, Any]], dict[str, dict[str, Any]]]:
    """(what stands for each schema, all components)."""
    schemas = Schemas({"Problem": {"type": "object", "properties": {"code": {"type": "string"}}}})
    found = [schemas.add(*one) for one in added]
    components = schemas.components()
    del components["Problem"]
    return found, components


def reference(name: str) -> dict[str, str]:
    return {"$ref": COMPONENT + name}


# --- names ----------------------------------------------------------------------------------------------------------


def test_equal_schemas_are_one_component_wherever_they_stand() -> None:
    found, components = made((ITEM, "a.b", "Output"), (holding(ITEM), "c.d", "Input"))
    assert found == [reference("Item"), {"type": "array", "items": reference("Item")}]
    assert components == {"Item": {key: value for key, value in ITEM.items() if key != "title"}}


def test_the_order_of_keys_makes_no_difference() -> None:
    turned = dict(reversed(ITEM.items()))
    assert set(made((ITEM, "a.b", "Output"), (turned, "c.d", "Output"))[1]) == {"Item"}


def test_a_name_that_two_want_goes_to_neither() -> None:
    _, components = made((ITEM, "a.b", "Input"), (OTHER, "c.d", "Output"))
    assert list(components) == ["Item.Input", "Item.Output"]
    _, components = made((ITEM, "a.b", "Output"), (OTHER, "c.d", "Output"))
    assert list(components) == ["a.b.Item", "c.d.Item"]


def test_one_operation_can_have_two_of_one_name_on_one_side() -> None:
    both = {"type": "array", "prefixItems": [holding(ITEM), holding(OTHER)]}
    _, components = made((holding(ITEM), "a.b", "Output"), (holding(OTHER), "a.b", "Output"))
    assert list(components) == ["a.b.Item.Output", "a.b.Item.Output.2"]
    assert made((both, "a.b", "Output"))[0]


def test_names_that_generators_take_for_the_same_are_told_apart() -> None:
    schemas = [
        ({**ITEM, "title": title}, f"a.{index}", "Output") for index, title in enumerate(("Big_Item", "bigItem"))
    ]
    different = [schemas[0], ({**OTHER, "title": "bigItem"}, "a.1", "Output")]
    assert list(made(*different)[1]) == ["a.0.Big_Item", "a.1.bigItem"]
    assert list(made(*schemas)[1]) == ["a.0.Big_Item", "a.1.bigItem"]


def test_a_component_of_the_document_keeps_its_name() -> None:
    found, components = made(({**ITEM, "title": "Problem"}, "a.b", "Output"))
    assert found == [reference("Problem.Output")]
    assert list(components) == ["Problem.Output"]


def test_what_has_no_name_is_named_after_its_operation_and_what_needs_none_has_none() -> None:
    nameless = {key: value for key, value in ITEM.items() if key != "title"}
    found, components = made(
        (nameless, "a.b", "Input"),
        (nameless, "c.d", "Input"),
        ({"type": "integer"}, "a.b", "Output"),
        (True, "x.y", "Output"),
    )
    assert found == [reference("a.b.Input"), reference("c.d.Input"), {"type": "integer"}, {}]
    assert list(components) == ["a.b.Input", "c.d.Input"]


def test_names_have_no_characters_that_a_component_may_not_have() -> None:
    _, components = made(
        (holding(ITEM, "List[Größe] x/y~z"), "a.b", "Output"), ({**OTHER, "title": "…"}, "a.b", "Item")
    )
    assert all(re.fullmatch(r"[a-zA-Z0-9._-]+", name) for name in components)
    assert len(components) == 1 + 1


# --- references -----------------------------------------------------------------------------------------------------


def test_what_refers_to_itself_does_so_still() -> None:
    found, components = made((TREE, "a.b", "Output"))
    assert found == [reference("Tree")]
    assert components["Tree"]["properties"]["children"]["items"] == reference("Tree")


def test_a_reference_to_the_whole_is_one_too() -> None:
    linked = {"type": "object", "properties": {"next": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}}}
    _, components = made((linked, "a.b", "Input"))
    assert components.keys() == {"a.b.Input"}
    assert components["a.b.Input"]["properties"]["next"]["anyOf"][0] == reference("a.b.Input")


def test_a_name_for_another_name_is_followed_unless_it_has_no_end() -> None:
    schema = {"type": "array", "items": {"$ref": "#/$defs/A"}, "$defs": {"A": {"$ref": "#/$defs/B"}, "B": ITEM}}
    found, components = made((schema, "a.b", "Output"))
    assert (found[0]["items"], components["A"]) == (reference("A"), reference("B"))
    endless = {**schema, "$defs": {"A": {"$ref": "#/$defs/B"}, "B": {"$ref": "#/$defs/A"}}}
    assert made((endless, "a.b", "Output")) == ([{"type": "array", "items": {}}], {})


def test_a_discriminator_maps_to_components() -> None:
    cat = {"type": "object", "title": "Cat", "properties": {"kind": {"const": "cat"}}}
    union = {
        "oneOf": [{"$ref": "#/$defs/Cat"}],
        "discriminator": {"propertyName": "kind", "mapping": {"cat": "#/$defs/Cat", "cow": "#/$defs/Cow"}},
        "$defs": {"Cat": cat},
    }
    ((found,), components) = made((union, "a.b", "Input"))
    assert found["discriminator"] == {"propertyName": "kind", "mapping": {"cat": COMPONENT + "Cat"}}
    assert list(components) == ["Cat"]


@pytest.mark.parametrize(
    "lost",
    ["#/$defs/Nothing", "https://example.com/item.json", "item.json#/x", "#anchor", 5, None, "#/$defs/Item/type"],
)
def test_a_reference_that_leads_nowhere_admits_everything(lost: Any) -> None:
    schema = {"type": "array", "items": {"$ref": lost}, "$defs": {"Item": ITEM}}
    assert made((schema, "a.b", "Output"))[0] == [{"type": "array", "items": {}}]


@pytest.mark.parametrize("keyword", ["allOf", "anyOf", "oneOf"])
def test_what_asks_the_same_of_a_value_for_ever_asks_nothing(keyword: str) -> None:
    schema = {"title": "Odd", "properties": {"a": {}}, keyword: [{"$ref": "#"}, {"type": "object"}]}
    _, components = made((schema, "a.b", "Output"))
    assert components == {"Odd": {"properties": {"a": {}}, keyword: [{}, {"type": "object"}]}}


def test_a_union_of_a_scalar_and_lists_of_the_same_union_is_kept() -> None:
    nested = {"anyOf": [{"type": "integer"}, {"type": "array", "items": {"$ref": "#/$defs/Nested"}}]}
    found, components = made(({"$ref": "#/$defs/Nested", "$defs": {"Nested": nested}}, "a.b", "Output"))
    assert found == [reference("Nested")]
    assert components["Nested"]["anyOf"][1]["items"] == reference("Nested")


def test_what_only_looks_like_a_keyword_is_left_as_it_is() -> None:
    schema = {
        "type": "object",
        "properties": {"$ref": {"type": "string"}, "$defs": {"const": {"$ref": "#/nothing"}}},
        "default": {"$ref": "#/nothing", "$defs": 1},
        "examples": [{"$id": "x"}],
    }
    (_, components) = made((schema, "a.b", "Input"))
    assert components["a.b.Input"] == schema


def test_the_schema_that_is_given_is_not_changed() -> None:
    schema = holding(ITEM)
    before = json.dumps(schema)
    made((schema, "a.b", "Output"))
    assert json.dumps(schema) == before


# --- what makes no sense --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keyword", "value"),
    [
        ("type", "strng"), ("type", []), ("type", ["string", "string"]), ("required", "name"), ("required", ["a", "a"]),
        ("minimum", "5"), ("minLength", -1), ("maxItems", 1.5), ("minItems", True), ("exclusiveMinimum", True),
        ("multipleOf", 0), ("pattern", "("), ("enum", {}), ("anyOf", []), ("properties", []), ("items", [1]),
        ("description", 5), ("deprecated", "yes"), ("discriminator", "kind"), ("$id", "https://example.com/"),
        ("nullable", True), ("xml", 1), ("dependentRequired", {"a": "b"}),
    ],
)  # fmt: skip
def test_a_keyword_whose_value_is_none_of_it_is_left_out(keyword: str, value: Any) -> None:
    assert made(({keyword: value, "title": "kept"}, "a.b", "Output"))[0] == [{"title": "kept"}]


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
KEYWORDS = st.sampled_from(
    # Without default: the validator wants it to fit, which a stranger's need not.
    ("type", "properties", "items", "anyOf", "oneOf", "allOf", "not", "$ref", "$defs", "definitions", "enum", "const",
     "required", "title", "pattern", "minimum", "prefixItems", "additionalProperties", "discriminator", "description",
     "format", "examples", "$id", "if", "then")
)  # fmt: skip
POINTERS = st.sampled_from(("#", "#/$defs/a", "#/$defs/b", "#/properties/a", "#/items", "#/anyOf/0"))
LETTERS = st.sampled_from("ab")
SCHEMAS: st.SearchStrategy[Any] = st.recursive(
    st.sampled_from(({}, True, {"type": "string"}, {"type": "null"})) | st.builds(lambda r: {"$ref": r}, POINTERS),
    lambda inner: st.dictionaries(
        KEYWORDS,
        inner | POINTERS | JSON_VALUES | st.lists(inner, max_size=3) | st.dictionaries(LETTERS, inner, max_size=2),
        max_size=4,
    ),
    max_leaves=12,
)  # fmt: skip


@given(st.lists(SCHEMAS, max_size=4))
def test_whatever_is_given_every_reference_leads_to_a_component(schemas: list[Any]) -> None:
    found, components = made(*((one, f"a.{index}", "Output") for index, one in enumerate(schemas)))
    text = json.dumps([found, components])
    for target in references([found, components]):
        assert target.removeprefix(COMPONENT) in components, text
    assert all(re.fullmatch(r"[a-zA-Z0-9._-]+", name) for name in components)


def references(value: Any) -> list[str]:
    """Every ``$ref`` among schemas, but for what stands in data."""
    if isinstance(value, list):
        return [one for part in value for one in references(part)]
    if not isinstance(value, dict):
        return []
    own = [value["$ref"]] if isinstance(value.get("$ref"), str) else []
    parts = [part for key, part in value.items() if key not in ("const", "default", "enum", "examples", "$ref")]
    return own + references(parts)
