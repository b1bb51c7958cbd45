"""What another node says of its operations: anything may come, and only what can be shown everywhere is taken."""

import copy
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alknet.access import Access
from alknet.call.codecs import JSON
from alknet.call.discovery import _summary
from alknet.call.import_errors import SchemaParse
from alknet.call.operations import operations_of
from alknet.call.remote_specs import MAX_DEPTH, MAX_DESCRIPTION_BYTES, MAX_HOPS, MAX_ITEMS, MAX_TEXT_CHARS, read_spec
from alknet.call.specs import Kind, OperationSpec
from alknet.gateway.mcp.tools import Revision, Tool
from alknet.gateway.openapi import document, encode
from alknet.gateway.openapi_query import query_parameters
from testkit import services, typed_services

SPECS = [
    one.spec for one in (*operations_of(services), *operations_of(typed_services)) if one.spec.visibility == "external"
]
PLAIN: dict[str, Any] = OperationSpec(name="lab/one", kind=Kind.QUERY, access=Access()).describe()


def said(**changes: Any) -> dict[str, Any]:
    return {**copy.deepcopy(PLAIN), **changes}


def why_not(description: Any, name: str = "lab/one") -> str:
    with pytest.raises(SchemaParse) as caught:
        read_spec(name, description)
    return str(caught.value)


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {}
    for _ in range(depth):
        schema = {"not": schema}
    return schema


def show_everywhere(spec: OperationSpec) -> None:
    """As everybody gets to see it who may; one that breaks this breaks it for all other operations, too."""
    described = spec.describe()
    JSON.encode(described)
    JSON.encode(_summary(spec))
    query_parameters(described)
    encode(document([described]))
    for revision in Revision:
        Tool(spec.name.replace("/", "."), described).json(revision)


# --- what is taken ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_what_a_node_says_of_its_operations_is_what_is_understood(spec: OperationSpec) -> None:
    found = read_spec(spec.name, json.loads(json.dumps(spec.describe())))
    assert found.describe() == {**json.loads(json.dumps(spec.describe())), "hops": spec.hops + 1}
    show_everywhere(found)


def test_what_is_not_said_has_the_value_that_promises_least() -> None:
    spec = read_spec("lab/one", {"name": "lab/one", "kind": "query", "input_schema": {}, "output_schema": {}})
    assert spec == OperationSpec(name="lab/one", kind=Kind.QUERY, access=Access(), hops=1)


def test_what_is_not_known_is_left_out() -> None:
    assert read_spec("lab/one", said(future={"a": 1})).describe() == {**PLAIN, "hops": 1}


@pytest.mark.parametrize("hops", range(MAX_HOPS))
def test_each_node_counts_itself(hops: int) -> None:
    assert read_spec("lab/one", said(hops=hops)).hops == hops + 1


def test_definitions_of_its_own_may_be_referred_to() -> None:
    schema = {"$defs": {"A": {"type": "string"}}, "properties": {"a": {"$ref": "#/$defs/A"}}}
    show_everywhere(read_spec("lab/one", said(input_schema=schema)))


def test_a_pattern_that_nobody_can_match_hurts_nobody_else() -> None:
    fields = {"type": "object", "properties": {"a": {"type": "string", "pattern": "("}}}
    show_everywhere(read_spec("lab/one", said(input_schema=fields, output_schema=fields)))


def test_a_definition_may_refer_to_itself() -> None:
    tree = {"$defs": {"T": {"type": "array", "items": {"$ref": "#/$defs/T"}}}, "$ref": "#/$defs/T"}
    show_everywhere(read_spec("lab/one", said(output_schema=tree)))


def test_a_reference_that_leads_to_itself_can_be_shown() -> None:
    circle = {"$defs": {"A": {"$ref": "#/$defs/B"}, "B": {"$ref": "#/$defs/A"}}, "$ref": "#/$defs/A"}
    try:
        spec = read_spec("lab/one", said(input_schema=circle, output_schema=circle))
    except SchemaParse:
        return
    show_everywhere(spec)


# --- what is not --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": "lab/two"}, "describes itself as 'lab/two'"),
        ({"name": None}, "name is not a text"),
        ({"visibility": "internal"}, "is for the other node itself"),
        ({"visibility": 7}, "visibility is not a text"),
        ({"kind": "nonsense"}, "nonsense"),
        ({"kind": None}, "kind is not a text"),
        ({"input_schema": None}, "input_schema is not a JSON Schema"),
        ({"input_schema": True}, "input_schema is not a JSON Schema"),
        ({"input_schema": {"type": 7}}, "input_schema is not a JSON Schema"),
        ({"input_schema": {"$schema": "http://json-schema.org/draft-07/schema#"}}, "input_schema is not a JSON Schema"),
        ({"output_schema": {"$ref": "#/$defs/None"}}, "refers to '#/$defs/None', which is not in its own $defs"),
        ({"output_schema": {"$ref": "https://evil.example/s"}}, "refers to 'https://evil.example/s'"),
        ({"output_schema": {"$defs": {"A": {}}, "$ref": "#/$defs/A/x"}}, "refers to '#/$defs/A/x'"),
        ({"output_schema": {"$ref": "#"}}, "refers to '#'"),
        ({"output_schema": {"$defs": [], "$ref": "#/$defs/0"}}, "refers to '#/$defs/0'"),
        ({"output_schema": {"items": {"$id": "x"}}}, "has $id, which is not followed"),
        ({"output_schema": {"$anchor": "x"}}, "has $anchor, which is not followed"),
        ({"output_schema": {"$dynamicRef": "#x"}}, "has $dynamicRef, which is not followed"),
        ({"output_schema": {"default": float("nan")}}, "has values that JSON has not"),
        ({"input_schema": nested(MAX_DEPTH + 1)}, f"is nested deeper than {MAX_DEPTH}"),
        ({"input_schema": {"description": "x" * MAX_DESCRIPTION_BYTES}}, "has more than"),
        ({"summary": "x" * (MAX_TEXT_CHARS + 1)}, "summary is not a text of at most"),
        ({"tags": ["x"] * (MAX_ITEMS + 1)}, "tags is not a list of at most"),
        ({"tags": [1]}, "tags is not a list of texts"),
        ({"tags": "ab"}, "tags is not a list of at most"),
        ({"access": []}, "access: is no object"),
        ({"access": {"required_scopes": "*"}}, "required_scopes is not a list"),
        ({"access": {"resource_type": {}}}, "resource_type is not a text"),
        ({"errors": [{}]}, "code is not a text"),
        ({"errors": [{"code": "no code"}]}, "code"),
        ({"errors": [7]}, "errors: is no object"),
        ({"errors": [{"code": "A", "schema": {"$ref": "#/x"}}]}, "refers to '#/x'"),
        ({"examples": [{"input": float("inf")}]}, "inf cannot be written as JSON"),
        ({"examples": [{"input": [2**70]}]}, "an integer of 71 bits is too large"),
        ({"input_schema": {"default": 2**70}}, "an integer of 71 bits is too large"),
        ({"hops": MAX_HOPS}, f"up to {MAX_HOPS - 1} are followed"),
        ({"hops": -1}, "is -1 nodes further on"),
        ({"hops": True}, "is True nodes further on"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_makes_no_sense_is_refused_with_what_is_wrong(changes: dict[str, Any], words: str) -> None:
    reason = why_not(said(**changes))
    assert words in reason
    assert reason.startswith("lab/one")
    assert len(reason) < 700


@pytest.mark.parametrize("name", ["", "x", "../etc", "a/b/", "a//b", "a/\x1b[31m", "a/" + "b" * 200, "a b/c"])
def test_a_name_that_is_none_is_refused(name: str) -> None:
    assert "is no name of an operation" in why_not(said(name=name), name)


@pytest.mark.parametrize("description", [None, [], "text", 7, True, {}])
def test_what_is_no_description_is_refused(description: Any) -> None:
    why_not(description)


def test_the_limits_themselves_are_allowed() -> None:
    spec = read_spec(
        "lab/one",
        said(summary="x" * MAX_TEXT_CHARS, tags=["x"] * MAX_ITEMS, input_schema=nested(MAX_DEPTH)),
    )
    show_everywhere(spec)


# --- anything at all ----------------------------------------------------------------------------------------------

WORDS = st.sampled_from(
    ["$ref", "$defs", "$id", "type", "properties", "items", "anyOf", "allOf", "required", "enum", "const", "pattern",
     "default", "additionalProperties", "prefixItems", "object", "array", "string", "null", "#/$defs/A", "A", "title",
     "discriminator", "x-mcp-header", "format", "minimum", "result", "description", "patternProperties", "not", "if"]
)  # fmt: skip
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers() | st.sampled_from([2**64, -(2**70)]),
    st.floats() | st.sampled_from([float("inf"), float("nan")]),
    st.binary(max_size=3),
    st.text(max_size=5),
    WORDS,
)
"""What the frames of either codec can bring."""
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS | st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)
ANY_SCHEMA = st.recursive(
    st.sampled_from([{}, {"type": "string"}, {"type": ["null", "integer"]}, {"$ref": "#/$defs/A"}, True, False]),
    lambda inner: st.one_of(
        st.fixed_dictionaries({"type": st.just("object"), "properties": st.dictionaries(WORDS, inner, max_size=3)}),
        st.fixed_dictionaries({"type": st.just("array"), "items": inner}),
        st.fixed_dictionaries({"anyOf": st.lists(inner, min_size=1, max_size=3)}),
        st.fixed_dictionaries({"$defs": st.dictionaries(WORDS, inner, max_size=2), "$ref": st.just("#/$defs/A")}),
        st.fixed_dictionaries({"allOf": st.lists(inner, min_size=1, max_size=2), "default": VALUES}),
        st.fixed_dictionaries({"additionalProperties": inner, "required": st.lists(WORDS, max_size=2, unique=True)}),
        st.dictionaries(WORDS, inner, max_size=3),
    ),
    max_leaves=8,
)


@settings(max_examples=200)
@given(st.dictionaries(st.sampled_from(sorted(PLAIN)), VALUES, max_size=4) | VALUES)
def test_anything_is_either_understood_and_shown_or_refused(changes: Any) -> None:
    description = said(**changes) if isinstance(changes, dict) and changes.keys() <= PLAIN.keys() else changes
    try:
        spec = read_spec("lab/one", description)
    except SchemaParse:
        return
    show_everywhere(spec)


@settings(max_examples=300)
@given(ANY_SCHEMA, ANY_SCHEMA, st.sampled_from(list(Kind)), VALUES)
def test_any_schema_is_either_shown_or_refused(inputs: Any, outputs: Any, kind: Kind, example: Any) -> None:
    description = said(
        kind=kind.value,
        input_schema=inputs,
        output_schema=outputs,
        errors=[{"code": "BROKEN", "schema": outputs, "http_status": 409}],
        examples=[{"input": example}, example],
    )
    try:
        spec = read_spec("lab/one", description)
    except SchemaParse:
        return
    show_everywhere(spec)
