"""How calls fail, as a document says it: every failure that the gateway can answer, and nothing twice."""

import json
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from alknet.call.errors import PROTOCOL_CODES, CallError
from alknet.gateway.openapi_errors import PROBLEM_SCHEMA, components, problem_content, responses_of
from alknet.gateway.problems import STATUS, HttpError, problem_of

OWN = {"$ref": "#/components/schemas/SoldOut"}
OTHER = {"$ref": "#/components/schemas/Closed"}
GENERAL = {"$ref": "#/components/schemas/Problem"}


def responses(
    *, has_body: bool = True, has_key: bool = False, **own: list[tuple[str, dict[str, Any]]]
) -> dict[str, Any]:
    declared = {int(name.removeprefix("s")): errors for name, errors in own.items()}
    return responses_of(declared, has_body=has_body, has_key=has_key)


def schema_of(response: dict[str, Any]) -> Any:
    return response["content"]["application/problem+json"]["schema"]


@pytest.mark.parametrize("code", sorted(PROTOCOL_CODES))
def test_every_code_of_the_protocol_has_a_status_that_is_documented(code: str) -> None:
    assert str(STATUS[code]) in responses()
    assert "401" in responses()


def test_what_a_body_or_a_key_can_cause_is_only_where_there_is_one() -> None:
    assert set(responses()) - set(responses(has_body=False)) == {"408", "413", "415"}
    assert set(responses(has_key=True)) - set(responses()) == {"409"}


def test_what_is_the_same_everywhere_is_written_once() -> None:
    named = components()["responses"]
    for response in responses(has_key=True).values():
        assert response["$ref"].removeprefix("#/components/responses/") in named
    assert all(schema_of(response) == GENERAL for response in named.values())
    assert named["TooManyRequests"]["headers"].keys() == {"Retry-After"}


def test_a_declared_error_stands_alone_with_others_or_beside_the_protocols() -> None:
    found = responses(s410=[("SOLD_OUT: gone", OWN)], s411=[("A", OWN), ("B", OTHER)], s404=[("C", OWN)])
    assert schema_of(found["410"]) == OWN
    assert schema_of(found["411"]) == {"oneOf": [OWN, OTHER]}
    assert schema_of(found["404"]) == {"anyOf": [OWN, GENERAL]}
    assert found["411"]["description"] == "A\n\nB"
    assert list(found) == sorted(found, key=int)


def test_one_that_shares_a_status_keeps_its_headers() -> None:
    assert responses(s503=[("A", OWN)])["503"]["headers"].keys() == {"Retry-After"}


def test_one_schema_needs_no_union() -> None:
    assert problem_content([OWN]) == {"application/problem+json": {"schema": OWN}}


@pytest.mark.parametrize(
    "error",
    [
        CallError("NOT_FOUND", "it is gone"),
        CallError("INVALID_INPUT", "no", details=[{"path": ["a"], "message": "is missing"}]),
        CallError("FORBIDDEN", "no", denial_id="den_1"),
        HttpError(415, "INVALID_INPUT", "no JSON"),
    ],
)
def test_a_problem_document_is_as_its_schema_says(error: CallError) -> None:
    body, _, _ = problem_of(error, 400, "req_1")
    document = json.loads(body)
    Draft202012Validator(PROBLEM_SCHEMA).validate(document)
    assert document.keys() <= PROBLEM_SCHEMA["properties"].keys()
    assert set(PROBLEM_SCHEMA["required"]) <= document.keys()
