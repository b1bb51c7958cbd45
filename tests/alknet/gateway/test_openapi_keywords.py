"""Which keywords hold schemas, what the others may hold, and where references lead."""

from typing import Any

import pytest

from alknet.gateway.openapi_keywords import FORMS, NAMED, ONE, SEVERAL, is_endless, references, resolve

ITEM = {"type": "object", "title": "Item"}


def test_a_pointer_is_decoded() -> None:
    root = {"$defs": {"a/b~c d": ITEM}, "list": [ITEM]}
    assert resolve("#/$defs/a~1b~0c%20d", root) == ("/$defs/a~1b~0c d", ITEM)
    assert resolve("#/list/0", root) == ("/list/0", ITEM)
    assert resolve("#/list/1", root) is None
    assert resolve("#/list/٠", root) is None


@pytest.mark.parametrize("reference", ["", "item.json", "https://example.com/#/$defs/a", "#a", None, 1, "#/text"])
def test_what_is_no_pointer_to_a_schema_leads_nowhere(reference: Any) -> None:
    assert resolve(reference, {"$defs": {"a": ITEM}, "text": "x"}) is None


def test_every_reference_is_found_and_nothing_that_looks_like_one() -> None:
    schema = {
        "properties": {"$ref": {"$ref": "#/a"}, "b": {"anyOf": [{"$ref": "#/b"}, {"items": {"$ref": "#/c"}}]}},
        "discriminator": {"propertyName": "x", "mapping": {"y": "#/d"}},
        "default": {"$ref": "#/no"},
        "const": {"$ref": "#/no"},
        "$defs": {"e": {"$ref": "#/unreached"}},
    }
    assert sorted(references(schema)) == ["#/a", "#/b", "#/c", "#/d"]


@pytest.mark.parametrize(
    ("schema", "endless"),
    [
        ({"$ref": "#"}, True),
        ({"anyOf": [{"type": "null"}, {"allOf": [{"$ref": "#"}]}]}, True),
        ({"not": {"$ref": "#"}}, True),
        ({"dependentSchemas": {"a": {"$ref": "#"}}}, True),
        ({"items": {"$ref": "#"}}, False),
        ({"properties": {"next": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}}}, False),
        ({"anyOf": [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/a"}], "$defs": {"a": ITEM}}, False),
        ({"$ref": "#/$defs/missing"}, False),
        ({"anyOf": "nonsense", "dependentSchemas": 5, "not": True}, False),
    ],
)
def test_what_comes_back_to_the_same_value_has_no_end(schema: dict[str, Any], endless: bool) -> None:
    assert is_endless(schema, schema) is endless


def test_no_keyword_is_of_two_kinds() -> None:
    kinds = [ONE, SEVERAL, NAMED, frozenset(FORMS)]
    assert sum(map(len, kinds)) == len(frozenset().union(*kinds))


@pytest.mark.parametrize(
    ("keyword", "right", "wrong"),
    [
        ("type", ["string", "null"], ["string", "text"]),
        ("enum", [1], []),
        ("minimum", -1.5, float("inf")),
        ("multipleOf", 0.1, -1),
        ("maxLength", 0, -1),
        ("pattern", "^a+$", "a{2,1}"),
        ("required", ["a"], ["a", 1]),
        ("dependentRequired", {"a": ["b"]}, {"a": "b"}),
        ("uniqueItems", True, 1),
        ("examples", [], {}),
        ("description", "", None),
    ],
)
def test_a_value_has_the_form_that_its_keyword_asks_for(keyword: str, right: Any, wrong: Any) -> None:
    assert FORMS[keyword](right)
    assert not FORMS[keyword](wrong)
