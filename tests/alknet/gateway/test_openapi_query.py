"""Which queries can be called with GET, and what the text of a URL means to them."""

from typing import Any

import pytest

from alknet.call.operations import operation, operations_of
from alknet.gateway.openapi_query import query_input, query_parameters, takes_get
from testkit import services, typed_services

SPECS = {one.spec.name: one.spec.describe() for one in operations_of((services, typed_services))}


def spec_of(function: Any) -> dict[str, Any]:
    (one,) = operations_of(function)
    return one.spec.describe()


def spec(properties: Any, **more: Any) -> dict[str, Any]:
    return {"kind": "query", "input_schema": {"type": "object", "properties": properties}, **more}


@pytest.mark.parametrize(
    ("name", "takes"),
    [
        ("types/find", True),  # everything that fits
        ("test/crash", True),  # nothing at all
        ("types/times", True),  # dates are text
        ("types/look", True),
        ("test/digest", True),  # bytes are base64
        ("test/typed", False),  # one of its inputs is an object
        ("test/echo", False),  # anything
        ("types/grow", False),
        ("types/pick", False),
        ("types/shapes", False),
        ("test/order", False),  # it changes something
        ("test/numbers", False),  # it goes on answering
    ],
)
def test_a_query_whose_inputs_are_scalars_or_lists_of_them_takes_get(name: str, takes: bool) -> None:
    assert takes_get(SPECS[name]) is takes


def test_a_secret_is_never_part_of_a_url() -> None:
    @operation("a/login", kind="query", secret_inputs=["password"])
    async def login(name: str, password: str) -> str:
        return name

    assert not takes_get(spec_of(login))


@pytest.mark.parametrize(
    "schema",
    [
        {},
        {"type": "null"},
        {"type": "array"},
        {"type": "array", "items": {"type": "array", "items": {"type": "string"}}},
        {"type": "array", "prefixItems": [{"type": "string"}], "items": {"type": "string"}},
        {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]},
        {"anyOf": [{"type": "integer"}, {"type": "object"}]},
        {"anyOf": "x"},
        {"allOf": [{"type": "string"}]},
        {"enum": [{}]},
        {"$ref": "#/$defs/missing"},
        {"$ref": "#/properties/a"},
        True,
        None,
    ],
)
def test_what_a_url_cannot_say_takes_no_get(schema: Any) -> None:
    assert query_parameters(spec({"a": schema})) is None


def test_what_refers_to_itself_in_a_circle_of_unions_has_an_end() -> None:
    root = spec({"a": {"$ref": "#/$defs/loop"}})
    root["input_schema"]["$defs"] = {"loop": {"anyOf": [{"$ref": "#/$defs/loop"}, {"$ref": "#/$defs/loop"}]}}
    assert query_parameters(root) is None


@pytest.mark.parametrize(
    "root", [None, True, {}, {"type": "array"}, {"type": "object", "anyOf": []}, {"type": "object", "properties": []}]
)
def test_an_input_that_is_no_plain_object_takes_no_get(root: Any) -> None:
    assert query_parameters({"kind": "query", "input_schema": root}) is None


def test_a_parameter_is_its_field_without_null() -> None:
    found = {one.name: one for one in query_parameters(SPECS["types/find"]) or ()}
    assert found["text"].schema == {"type": "string"}
    assert found["sizes"].schema == {"items": {"type": "integer"}, "type": "array"}
    assert (found["sizes"].is_list, found["text"].is_list) == (True, False)
    assert found["level"].kinds == {"integer"}
    assert found["either"].kinds == {"integer", "string"}
    assert not any(one.required for one in found.values())
    assert found["exact"].schema["default"] is False
    (item,) = query_parameters(SPECS["shop/stock"]) or ()
    assert item.required


def test_null_among_values_and_types_is_left_out_too() -> None:
    (one, two) = query_parameters(spec({"a": {"enum": ["x", None]}, "b": {"type": ["integer", "null"]}})) or ()
    assert (one.schema, two.schema) == ({"enum": ["x"]}, {"type": "integer"})


# --- what the text means --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pairs", "value"),
    [
        ([], {}),
        ([("text", "5")], {"text": "5"}),
        ([("text", "")], {"text": ""}),
        ([("level", "2")], {"level": 2}),
        ([("level", "two")], {"level": "two"}),
        ([("level", "2.5")], {"level": "2.5"}),
        ([("exact", "true")], {"exact": True}),
        ([("exact", "null")], {"exact": "null"}),
        ([("ratio", "5")], {"ratio": 5}),
        ([("ratio", "1e3")], {"ratio": 1000.0}),
        ([("ratio", "NaN")], {"ratio": "NaN"}),
        ([("ratio", "9" * 5000)], {"ratio": "9" * 5000}),
        ([("ratio", "[" * 100_000)], {"ratio": "[" * 100_000}),
        ([("either", "5")], {"either": "5"}),
        ([("sizes", "1"), ("sizes", "2")], {"sizes": [1, 2]}),
        ([("sizes", "1")], {"sizes": [1]}),
        ([("words", "1")], {"words": ["1"]}),
        ([("text", "a"), ("text", "b"), ("text", "c")], {"text": ["a", "b", "c"]}),
        ([("nonsense", "1")], {"nonsense": "1"}),
    ],
)
def test_a_text_is_the_value_that_its_parameter_takes(pairs: list[tuple[str, str]], value: dict[str, Any]) -> None:
    parameters = query_parameters(SPECS["types/find"]) or ()
    assert query_input(parameters, pairs) == value


async def test_the_operation_takes_what_a_url_says() -> None:
    (one,) = operations_of(typed_services.find)
    pairs = [("level", "2"), ("fixed", "7"), ("colour", "green"), ("sizes", "3"), ("exact", "true"), ("data", "AP8=")]
    inputs = one.parse_input(query_input(query_parameters(one.spec.describe()) or (), pairs))
    assert (inputs["level"], inputs["fixed"], inputs["sizes"], inputs["data"]) == (2, 7, [3], b"\x00\xff")
