"""The document of some operations: valid, complete, typed, and the same for the same operations."""

import inspect
import json
import random
from dataclasses import make_dataclass
from datetime import date, datetime
from decimal import Decimal
from enum import Enum
from typing import Any, Literal, Optional, Union
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openapi_spec_validator import OpenAPIV31SpecValidator
from pydantic import create_model

from alknet import Bytes
from alknet.call.discovery import Discovery
from alknet.call.operations import ErrorSpec, operation, operations_of
from alknet.call.schema import build_input, build_output
from alknet.gateway.openapi import CONTRACT_VERSION, document, encode, operation_id
from alknet.gateway.openapi_keywords import resolve
from alknet.gateway.openapi_schemas import COMPONENT
from testkit import services, typed_services

from .test_openapi_schemas import JSON_VALUES, SCHEMAS

NOBODY: Any = None  # what discovery needs of a node, which nobody asks here
SPECS = [one.spec.describe() for one in operations_of((services, typed_services, Discovery(NOBODY)))]
DOCUMENT = document(SPECS)


def check(made: dict[str, Any]) -> None:
    OpenAPIV31SpecValidator(made).validate()  # type: ignore[arg-type]
    assert json.loads(encode(made)) == made


def describe(name: str = "a/b", **facts: Any) -> dict[str, Any]:
    """An operation's own description, as another node may send it."""
    found = {"name": name, "kind": "query", "input_schema": {}, "output_schema": {}, "access": {"public": False}}
    return {**found, **facts}


def post(name: str, made: dict[str, Any] = DOCUMENT) -> dict[str, Any]:
    found: dict[str, Any] = made["paths"][f"/ops/{name}"]["post"]
    return found


def body_schema(name: str, made: dict[str, Any] = DOCUMENT) -> Any:
    schema = post(name, made)["requestBody"]["content"]["application/json"]["schema"]
    return component(schema["$ref"], made) if "$ref" in schema else schema


def component(reference: str, made: dict[str, Any] = DOCUMENT) -> Any:
    return made["components"]["schemas"][reference.removeprefix(COMPONENT)]


# --- the whole ------------------------------------------------------------------------------------------------------


def test_the_document_of_every_operation_of_the_tests_is_valid() -> None:
    check(DOCUMENT)
    external = {spec["name"] for spec in SPECS if spec["visibility"] == "external"}
    assert set(DOCUMENT["paths"]) == {f"/ops/{name}" for name in external}
    assert DOCUMENT["info"]["version"] == CONTRACT_VERSION


def test_without_operations_it_is_valid_too() -> None:
    check(document([]))


def test_it_is_the_same_whatever_order_the_operations_come_in() -> None:
    mixed = list(SPECS)
    random.Random(5).shuffle(mixed)
    assert encode(document(mixed)) == encode(DOCUMENT)


def test_it_says_where_and_for_whom_it_is() -> None:
    made = document([], title="hub", version="3", servers=["https://hub:7022"], caller="alice")
    assert made["servers"] == [{"url": "https://hub:7022"}]
    assert (made["info"]["title"], made["info"]["version"]) == ("hub", "3")
    assert made["x-alknet"] == {"caller": "alice"}
    assert DOCUMENT["x-alknet"] == {"caller": None}


def test_operation_ids_are_names_with_dots_and_each_is_there_once() -> None:
    ids = [method["operationId"] for item in DOCUMENT["paths"].values() for method in item.values()]
    assert len(set(ids)) == len(ids)
    assert operation_id("fs/deep/read") == "fs.deep.read"
    assert DOCUMENT["paths"]["/ops/shop/stock"]["get"]["operationId"] == "shop.stock:get"
    assert post("shop/stock")["operationId"] == "shop.stock"


def test_a_thousand_operations_are_one_document() -> None:
    many = [{**spec, "name": f"{spec['name']}{number}"} for spec in SPECS for number in range(30)]
    made = document(many)
    assert len(made["paths"]) >= 1000
    assert json.loads(encode(made))["paths"].keys() == made["paths"].keys()


# --- one operation --------------------------------------------------------------------------------------------------


def test_an_operation_is_described_as_it_describes_itself() -> None:
    found = post("shop/stock")
    assert found["tags"] == ["shop"]
    assert found["summary"] == "What is left of an item."
    assert found["description"] == "The description has **several** lines,\nand <b>markup</b>."
    assert found["security"] == [{"bearer": ["shop:stock"]}]
    assert found["x-alknet"]["kind"] == "query"
    assert found["requestBody"]["required"]
    assert found["requestBody"]["content"]["application/json"]["examples"] == {"example1": {"value": {"item": "a"}}}
    answer = found["responses"]["200"]["content"]["application/json"]["schema"]
    assert component(answer["$ref"])["required"] == ["item", "left"]


def test_who_may_call_it_is_in_the_words_of_openapi() -> None:
    assert post("types/find")["security"] == [{}, {"bearer": []}]
    assert post("matrix/wide")["security"] == [{"bearer": ["matrix:one"]}, {"bearer": ["matrix:two"]}]
    both = describe(access={"required_scopes": ["a"], "required_scopes_any": ["b", "c"]})
    assert post("a/b", document([both]))["security"] == [{"bearer": ["a", "b"]}, {"bearer": ["a", "c"]}]


def test_a_body_is_required_when_a_field_is() -> None:
    assert not post("types/find")["requestBody"]["required"]
    assert not post("test/crash")["requestBody"]["required"]
    assert post("shop/reserve")["requestBody"]["required"]


def test_a_get_has_a_parameter_for_each_input() -> None:
    parameters = {one["name"]: one for one in DOCUMENT["paths"]["/ops/types/find"]["get"]["parameters"]}
    assert parameters.keys() == body_schema("types/find")["properties"].keys()
    assert parameters["sizes"]["schema"] == {"items": {"type": "integer"}, "type": "array"}
    assert (parameters["sizes"]["style"], parameters["sizes"]["explode"]) == ("form", True)
    assert component(parameters["colour"]["schema"]["$ref"])["enum"] == ["red", "green"]
    (item,) = DOCUMENT["paths"]["/ops/shop/stock"]["get"]["parameters"]
    assert item == {
        "name": "item", "in": "query", "required": True, "description": "Which one.",
        "schema": {"type": "string", "maxLength": 100},
    }  # fmt: skip
    assert "get" not in DOCUMENT["paths"]["/ops/shop/reserve"]
    assert "parameters" not in DOCUMENT["paths"]["/ops/test/crash"]["get"]


def test_a_mutation_takes_an_idempotency_key_and_a_subscription_the_last_event() -> None:
    names = {
        name: [one["$ref"].rpartition("/")[2] for one in post(name).get("parameters", [])]
        for name in ("shop/reserve", "shop/watch", "shop/stock")
    }
    assert names == {"shop/reserve": ["IdempotencyKey"], "shop/watch": ["LastEventId"], "shop/stock": []}
    assert "409" not in post("shop/stock")["responses"]


def test_each_declared_error_has_its_status_its_code_and_its_details() -> None:
    found = post("shop/reserve")["responses"]
    at_409 = found["409"]["content"]["application/problem+json"]["schema"]["anyOf"]
    codes = [component(one["$ref"])["properties"]["code"].get("const") for one in at_409]
    assert codes == ["OUT_OF_STOCK", "CLOSED", None]
    details = component(at_409[0]["$ref"])["properties"]["details"]
    assert component(details["$ref"])["properties"]["left"] == {"type": "integer"}
    assert found["409"]["description"].startswith("OUT_OF_STOCK: There are fewer left than were asked for.")
    assert "NO_SUCH_ITEM" in found["404"]["description"]
    assert "BROKEN" in found["500"]["description"]
    assert found["422"] == {"$ref": "#/components/responses/InvalidInput"}


def test_an_error_that_several_declare_is_one_component() -> None:
    closed = post("shop/restock")["responses"]["409"]["content"]["application/problem+json"]["schema"]["anyOf"][0]
    assert closed == {"$ref": COMPONENT + "Closed"}


def test_a_subscription_answers_a_stream_and_says_of_what() -> None:
    found = post("shop/watch")["responses"]["200"]["content"]
    assert set(found) == {"text/event-stream"}
    assert found["text/event-stream"]["schema"] == {}
    assert component(found["text/event-stream"]["x-alknet-item"]["$ref"])["required"] == ["item", "left"]


def test_what_answers_nothing_answers_null() -> None:
    schema = post("test/crash")["responses"]["200"]["content"]["application/json"]["schema"]
    assert schema == {"const": None}  # generators fail on the type null


def test_bytes_are_base64() -> None:
    assert post("types/look")["responses"]["200"]["content"]["application/json"]["schema"] == {
        "type": "string", "contentEncoding": "base64",
    }  # fmt: skip


def test_examples_are_as_json_has_them() -> None:
    examples = [{"input": {"data": b"\x00\xff", "ratio": float("nan"), "more": (1, {2})}, "output": b"a"}, "nonsense"]
    made = document([describe(examples=examples)])
    assert post("a/b", made)["requestBody"]["content"]["application/json"]["examples"] == {
        "example1": {"value": {"data": "AP8=", "ratio": None, "more": [1, [2]]}}
    }
    check(made)


# --- what comes from elsewhere --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "one",
    [
        None,
        {},
        describe(name="x"),
        describe(name="../etc/passwd"),
        describe(name=["a/b"]),
        describe(kind="event"),
        describe(kind=None),
        describe(visibility="internal"),
    ],
)
def test_what_is_no_operation_that_can_be_called_is_left_out(one: Any) -> None:
    assert document([one])["paths"] == {}


@pytest.mark.parametrize(
    "errors",
    [
        ["SOLD_OUT", {"code": 5}, {"code": "lower"}, {"code": "A", "http_status": 200}, {"code": "NOT_FOUND"}, None],
        [{"code": "A", "schema": {"$ref": "#/nothing"}}, {"code": "A", "http_status": 409}],
        [{"code": "A", "http_status": True, "description": {}}],
        None,
    ],
)
def test_errors_that_make_no_sense_are_left_out(errors: Any) -> None:
    check(document([describe(errors=errors)]))


@given(
    st.lists(st.dictionaries(st.sampled_from(sorted(describe())), JSON_VALUES), max_size=3), SCHEMAS, SCHEMAS, SCHEMAS
)
@settings(max_examples=40)
def test_whatever_another_node_says_the_document_is_valid(
    nonsense: list[dict[str, Any]], taken: Any, answered: Any, details: Any
) -> None:
    errors = [{"code": "ODD", "description": "x", "schema": details, "http_status": 409}]
    stated = describe("a/c", input_schema=taken, output_schema=answered, errors=errors)
    made = document([*({"name": "a/b", "kind": "query", **one} for one in nonsense), stated])
    check(made)


# --- whatever types there are ---------------------------------------------------------------------------------------

SCALARS: list[Any] = [str, int, float, bool, None, Bytes, date, datetime, UUID, Decimal, Any, Literal["a", 1]]
NAMES = st.sampled_from(("Item", "Item2", "Problem", "item"))
FIELDS = st.sampled_from(("a", "b", "$ref", "c-d"))


def types() -> st.SearchStrategy[Any]:
    def structured(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
        plain = st.dictionaries(st.sampled_from(("a", "b")), inner, min_size=1, max_size=2)
        return st.one_of(
            inner.map(lambda one: list[one]),
            inner.map(lambda one: dict[str, one]),
            inner.map(lambda one: Optional[one]),  # noqa: UP045
            st.tuples(inner, inner).map(lambda pair: Union[pair]),  # noqa: UP007
            st.tuples(inner, inner).map(lambda pair: tuple[pair]),
            st.builds(
                lambda name, fields: create_model(name, **{k: (v, ...) for k, v in fields.items()}), NAMES, plain
            ),
            st.builds(lambda name, fields: make_dataclass(name, fields.items()), NAMES, plain),
            st.builds(lambda name: Enum(name, {"A": "a", "B": "b"}), NAMES),
        )

    return st.recursive(st.sampled_from(SCALARS), structured, max_leaves=5)


@given(st.lists(st.tuples(st.lists(types(), max_size=3), types()), min_size=1, max_size=3))
@settings(max_examples=40)
def test_whatever_is_annotated_the_document_says_the_same_as_the_schemas(found: list[tuple[list[Any], Any]]) -> None:
    specs = []
    for index, (parameters, answer) in enumerate(found):
        shape = build_input(
            [
                inspect.Parameter(f"p{number}", inspect.Parameter.KEYWORD_ONLY, annotation=kind)
                for number, kind in enumerate(parameters)
            ]
        )
        specs.append(describe(f"a/o{index}", input_schema=shape.schema, output_schema=build_output(answer)[0]))
    made = document(specs)
    check(made)
    for spec in specs:
        stated = body_schema(spec["name"], made)
        assert bare(stated, made) == bare(spec["input_schema"], spec["input_schema"])
        answer = post(spec["name"], made)["responses"]["200"]["content"]["application/json"]["schema"]
        if spec["output_schema"] != {"type": "null"}:
            assert bare(answer, made) == bare(spec["output_schema"], spec["output_schema"])


def bare(schema: Any, root: Any, depth: int = 8) -> Any:
    """A schema with every reference replaced by what it means, without titles."""
    if isinstance(schema, list):
        return [bare(one, root, depth) for one in schema]
    if not isinstance(schema, dict) or not depth:
        return schema
    if isinstance(schema.get("$ref"), str):
        target = resolve(schema["$ref"], root)
        assert target is not None
        return bare({**target[1], **{key: value for key, value in schema.items() if key != "$ref"}}, root, depth - 1)
    return {
        key: {name: bare(one, root, depth) for name, one in value.items()}
        if key == "properties"
        else bare(value, root, depth)
        for key, value in schema.items()
        if key not in ("title", "$defs")
    }


def test_models_of_one_name_in_one_operation_do_not_mix() -> None:
    one, two = create_model("Item", a=(int, ...)), create_model("Item", b=(str, ...))

    @operation(
        "a/mix",
        kind="mutation",
        errors=[ErrorSpec("ODD", "", {"type": "object", "title": "Item", "properties": {"c": {}}})],
    )
    async def mix(first: one, second: list[two]) -> two:  # type: ignore[valid-type]
        return second[0]

    (found,) = operations_of(mix)
    made = document([found.spec.describe()])
    check(made)
    properties = body_schema("a/mix", made)["properties"]
    assert component(properties["first"]["$ref"], made)["properties"].keys() == {"a"}
    assert component(properties["second"]["items"]["$ref"], made)["properties"].keys() == {"b"}
