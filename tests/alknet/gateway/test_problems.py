"""Problem documents (RFC 9457)."""

import json
from typing import Any

import pytest

from alknet.call.errors import CallError
from alknet.call.specs import ErrorSpec, OperationSpec
from alknet.gateway.problems import STATUS, HttpError, error_fields, problem_of, status_of
from testkit.bench import Bench
from testkit.services import order


def _spec() -> OperationSpec:
    (found,) = [
        one.spec for one in Bench(order).dispatcher.registry.operations.values() if one.spec.name == "test/order"
    ]
    return found


def test_every_code_has_its_status() -> None:
    for code, status in STATUS.items():
        assert status_of(CallError(code, "x"), None, is_anonymous=False) == status
    assert status_of(CallError("FORBIDDEN", "x"), None, is_anonymous=True) == 401
    assert status_of(HttpError(415, "INVALID_INPUT", "x"), None, is_anonymous=True) == 415


async def test_a_declared_code_has_the_one_that_it_declares() -> None:
    spec = _spec()
    assert isinstance(spec.error("SOLD_OUT"), ErrorSpec)
    assert status_of(CallError("SOLD_OUT", "x"), spec, is_anonymous=False) == 409
    assert status_of(CallError("OTHER", "x"), spec, is_anonymous=False) == 500
    assert status_of(CallError("SOLD_OUT", "x"), None, is_anonymous=False) == 500


def test_a_document_has_what_the_protocol_has() -> None:
    error = CallError("FORBIDDEN", "no", denial_id="den_1", details={"x": 1})
    body, headers, document = problem_of(error, 403, "req_1")
    assert json.loads(body) == document == {
        "type": "about:blank", "title": "Forbidden", "status": 403, "detail": "no", "code": "FORBIDDEN",
        "message": "no", "retryable": False, "details": {"x": 1}, "denial_id": "den_1", "request_id": "req_1",
    }  # fmt: skip
    assert headers == []


def test_what_details_cannot_be_sent_is_left_out() -> None:
    body, _, _ = problem_of(CallError("X", "x", details={"x": float("nan")}), 500, None)
    assert "details" not in json.loads(body)
    assert "request_id" not in json.loads(body)


@pytest.mark.parametrize(
    ("status", "details", "told"),
    [(429, None, b"1"), (503, {"retry_after": 9}, b"9"), (503, {"retry_after": 1e12}, b"86400"), (504, None, None),
     (429, {"retry_after": float("nan")}, b"1"), (503, {"retry_after": True}, b"1"), (503, {"retry_after": "9"}, b"1"),
     (503, {"retry_after": float("inf")}, b"86400"), (503, [9], b"1")],
)  # fmt: skip
def test_retry_after_is_whole_seconds(status: int, details: Any, told: bytes | None) -> None:
    error = CallError("UNAVAILABLE", "x", details=details, retryable=True)
    assert dict(problem_of(error, status, None)[1]).get(b"retry-after") == told


def test_an_unknown_status_has_a_title() -> None:
    assert json.loads(problem_of(CallError("X", "x"), 599, None)[0])["title"] == "Error"


def test_the_fields_of_an_error_take_its_own_request_id() -> None:
    error = CallError("X", "x")
    error.request_id = "req_2"
    assert error_fields(error, None)["request_id"] == "req_2"
    assert error_fields(error, "req_1")["request_id"] == "req_1"
