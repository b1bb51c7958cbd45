"""What a tool answers."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alknet.call.errors import CallError
from alknet.gateway.mcp.results import MAX_ITEMS, MAX_ITEMS_BYTES, MAX_RESULT_BYTES, Items, failed, succeeded

VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(VALUES, st.booleans())
def test_both_ways_of_writing_it_mean_the_same(value: Any, wraps: bool) -> None:
    result = succeeded(value, wraps=wraps)
    wire = result.wire()
    assert json.loads(b"{%b}" % result.json()) == wire
    assert json.loads(b"{%b}" % result.json(b'"a":1')) == wire | {"_meta": {"a": 1}}
    assert wire["structuredContent"] == ({"result": value} if wraps else value)
    assert json.loads(wire["content"][0]["text"]) == wire["structuredContent"]
    assert wire["isError"] is False


def test_bytes_are_base64_as_everywhere_in_json() -> None:
    assert succeeded({"data": b"\xff\x00"}, wraps=False).wire()["structuredContent"] == {"data": "/wA="}


def test_an_output_that_cannot_be_sent_is_an_error() -> None:
    for output, code in (
        ("x" * MAX_RESULT_BYTES, "RESOURCE_EXHAUSTED"),
        (float("nan"), "INTERNAL"),
        ([[0]] * 100_000, "INTERNAL"),
    ):
        with pytest.raises(CallError) as error:
            succeeded(output, wraps=True)
        assert error.value.code == code
        assert not error.value.retryable


def said(error: CallError, *facts: Any) -> Any:
    """The error that an answer has, the same in each way of writing it."""
    result = failed(error, *facts)
    wire = result.wire()
    assert wire["isError"] is True
    assert wire["_meta"].keys() == {"alknet/error"}
    assert "structuredContent" not in wire  # it would have to fit the tool's output schema
    assert json.loads(b"{%b}" % result.json()) == wire
    more = json.loads(b"{%b}" % result.json(b'"a":1'))
    assert more == wire | {"_meta": wire["_meta"] | {"a": 1}}
    assert json.loads(wire["content"][0]["text"]) == wire["_meta"]["alknet/error"]
    return wire["_meta"]["alknet/error"]


def test_an_error_says_all_that_is_known_of_it() -> None:
    error = CallError("FORBIDDEN", "no", denial_id="den_1")
    assert said(error, "req_1") == {
        "code": "FORBIDDEN", "message": "no", "retryable": False, "denial_id": "den_1", "request_id": "req_1",
    }  # fmt: skip
    error.request_id = "req_2"
    assert said(error)["request_id"] == "req_2"


def test_details_that_cannot_be_sent_are_left_out() -> None:
    made = said(CallError("SOLD_OUT", "none left", details={"left": float("inf")}))
    assert made == {"code": "SOLD_OUT", "message": "none left", "retryable": False}


def test_items_are_kept_until_there_are_too_many() -> None:
    items = Items()
    for number in range(MAX_ITEMS):
        assert items.add(number) == str(number).encode()
    assert not items.is_truncated
    assert items.add("more") is None
    assert items.result().wire()["structuredContent"] == {"items": list(range(MAX_ITEMS)), "truncated": True}


def test_items_are_kept_until_they_are_too_long() -> None:
    items = Items()
    text = "x" * (MAX_ITEMS_BYTES // 4)
    assert [items.add(text) is None for _ in range(5)] == [False, False, False, True, True]
    assert items.count == 3
    assert items.result().wire()["structuredContent"]["truncated"]


def test_what_came_before_an_error_is_told_with_it() -> None:
    items = Items()
    assert "items" not in said(CallError("TIMEOUT", "late"), None, items)
    items.add({"line": 1})
    assert said(CallError("TIMEOUT", "late"), None, items)["items"] == [{"line": 1}]
