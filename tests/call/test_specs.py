"""The values that describe an operation, and the errors that it declares."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alknet.access import Access
from alknet.call.errors import PROTOCOL_CODES, CallError
from alknet.call.specs import MAX_NAME_CHARS, ErrorSpec, Kind, OperationError, OperationSpec, Visibility, is_name
from alknet.errors import UsageError


class OutOfStock(OperationError):
    """There are fewer left than were asked for.

    This is for whoever reads the code.
    """

    code = "OUT_OF_STOCK"
    http_status = 409
    details: dict[str, int]


class Busy(OperationError):
    code = "BUSY"
    retryable = True


# --- names --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["fs/read", "a/b/c", "A-1/b_2", "a/" + "b" * (MAX_NAME_CHARS - 2)])
def test_a_name_has_two_segments_or_more(name: str) -> None:
    assert is_name(name)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "fs",
        "/fs/read",
        "fs/",
        "fs//read",
        "fs/re ad",
        "fs/read\n",
        "fs/réad",
        "fs.read",
        "a/" + "b" * MAX_NAME_CHARS,
    ],
)
def test_what_is_no_name(name: str) -> None:
    assert not is_name(name)


@given(st.text())
def test_a_name_holds_nothing_that_means_something_elsewhere(text: str) -> None:
    if is_name(text):
        assert not set(text) & set(":.*?[] \\\n")


# --- errors -------------------------------------------------------------------------------------------------------


def test_a_declared_error_is_a_call_error_with_its_code() -> None:
    error = OutOfStock("only 3 are left", details={"left": 3}, hint="ask for less")
    assert isinstance(error, CallError)
    assert (error.code, str(error), error.details, error.hint) == (
        "OUT_OF_STOCK",
        "only 3 are left",
        {"left": 3},
        "ask for less",
    )
    assert (error.retryable, error.denial_id, error.exit_code) == (False, None, 1)


def test_what_is_not_said_comes_from_the_class() -> None:
    assert str(OutOfStock()) == OutOfStock.summary() == "There are fewer left than were asked for."
    assert OutOfStock.details_type() == dict[str, int]
    assert Busy("later").retryable
    assert not Busy("never", retryable=False).retryable
    assert Busy.details_type() is None


def test_the_type_of_details_must_be_known() -> None:
    class Odd(OperationError):
        code = "ODD"
        details: "Missing"  # type: ignore[name-defined] # noqa: F821

    with pytest.raises(UsageError, match=r"Odd\.details cannot be resolved: name 'Missing'"):
        Odd.details_type()


@pytest.mark.parametrize("code", ["", "lower", "1ST", "A-B", "A" * 65, "A\n", 5, *PROTOCOL_CODES])
def test_a_code_that_cannot_be_declared(code: Any) -> None:
    with pytest.raises(UsageError, match="error code"):
        ErrorSpec(code)
    with pytest.raises(UsageError, match=r"test_specs\..*Wrong: the error code"):
        type("Wrong", (OperationError,), {"code": code, "__module__": "test_specs"})


@pytest.mark.parametrize("status", [200, 399, 600, "409", True])
def test_a_status_that_is_none_of_an_error(status: Any) -> None:
    with pytest.raises(UsageError, match="HTTP status"):
        ErrorSpec("BUSY", http_status=status)
    assert ErrorSpec("BUSY", http_status=409).http_status == 409


# --- specifications -----------------------------------------------------------------------------------------------


def test_a_specification_is_described_as_a_json_value() -> None:
    spec = OperationSpec(
        name="shop/order/new",
        kind=Kind.MUTATION,
        visibility=Visibility.INTERNAL,
        access=Access(
            required_scopes=("shop:order",), required_scopes_any=("a", "b"), resource_type="shop", resource_action="use"
        ),
        input_schema={"type": "object"},
        output_schema={"type": "string"},
        errors=(ErrorSpec("BUSY", "later", {"type": "null"}, 409, render=lambda details: details),),
        resource_id_path="$.shop",
        summary="Order it.",
        description="More.",
        tags=("shop",),
        idempotent=True,
        destructive=True,
        examples=({"input": {}},),
        secret_inputs=("card",),
    )
    assert json.loads(json.dumps(spec.describe())) == {
        "name": "shop/order/new",
        "namespace": "shop",
        "kind": "mutation",
        "version": "1",
        "visibility": "internal",
        "input_schema": {"type": "object"},
        "output_schema": {"type": "string"},
        "errors": [{"code": "BUSY", "description": "later", "schema": {"type": "null"}, "http_status": 409}],
        "access": {
            "public": False,
            "required_scopes": ["shop:order"],
            "required_scopes_any": ["a", "b"],
            "resource_type": "shop",
            "resource_action": "use",
        },
        "resource_id_path": "$.shop",
        "summary": "Order it.",
        "description": "More.",
        "tags": ["shop"],
        "idempotent": True,
        "destructive": True,
        "examples": [{"input": {}}],
        "secret_inputs": ["card"],
        "hops": 0,
    }


def test_every_field_of_a_specification_is_described() -> None:
    spec = OperationSpec(name="a/b", kind=Kind.QUERY, access=Access(public=True))
    assert set(spec.describe()) == set(OperationSpec.__dataclass_fields__) | {"namespace"}
    assert spec.describe()["access"]["required_scopes_any"] is None


def test_an_error_is_found_by_its_code() -> None:
    busy = ErrorSpec("BUSY")
    spec = OperationSpec(name="a/b", kind=Kind.QUERY, access=Access(), errors=(ErrorSpec("OTHER"), busy))
    assert spec.error("BUSY") is busy
    assert spec.error("UNKNOWN") is None
