"""Every field of an envelope from outside: what it may be, and the words for what it may not be."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alknet.call.envelopes import (
    MAX_CREDIT,
    MAX_ID_CHARS,
    MAX_REASON_CHARS,
    MAX_TIMEOUT_MS,
    BadField,
    Requested,
    aborted,
    error_payload,
    read_error,
    read_request,
    refusal,
)
from alknet.call.errors import PROTOCOL_CODES, CallError
from alknet.call.operations import MAX_NAME_CHARS

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.binary(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
FIELDS = (
    "operationId",
    "input",
    "peer",
    "auth_token",
    "forwarded_for",
    "timeout_ms",
    "credit",
    "traceparent",
)


def request(**fields: Any) -> Requested:
    return read_request("r1", 3, {"operationId": "/fs/read", "input": {}, **fields})


# --- requests ---------------------------------------------------------------------------------------------------------


def test_a_request_is_an_operation_and_an_input() -> None:
    assert request() == Requested("r1", 3, "fs/read", {})
    assert read_request("r1", 3, {"operationId": "fs/read"}) == Requested("r1", 3, "fs/read", None)


def test_a_request_may_say_more() -> None:
    got = request(peer="bob", auth_token="t", forwarded_for="carol", timeout_ms=1500, credit=7, traceparent=TRACE)
    assert got == Requested("r1", 3, "fs/read", {}, "bob", "t", "carol", 1.5, 7, TRACE)


@pytest.mark.parametrize("field", ["peer", "auth_token", "forwarded_for", "timeout_ms", "credit", "traceparent"])
def test_a_field_that_is_null_is_a_field_that_is_not_there(field: str) -> None:
    assert request(**{field: None}) == request()


def test_what_a_request_says_counts_also_without_an_input() -> None:
    assert read_request("r1", 3, {"operationId": "/logs/follow", "credit": 5}).credit == 5
    assert read_request("r1", 3, {"operationId": "/fs/read", "auth_token": "t"}).auth_token == "t"
    with pytest.raises(BadField, match="timeout_ms"):
        read_request("r1", 3, {"operationId": "/fs/read", "timeout_ms": "soon"})


def test_one_slash_in_front_is_the_wires_and_no_part_of_the_name() -> None:
    assert read_request("r1", 0, {"operationId": "//fs/read"}).name == "/fs/read"
    assert read_request("r1", 0, {"operationId": "/" + "n" * MAX_NAME_CHARS}).name == "n" * MAX_NAME_CHARS


@pytest.mark.parametrize("name", [None, "", 7, b"fs/read", ["fs/read"], "/" + "n" * (MAX_NAME_CHARS + 1)])
def test_a_name_that_is_none_is_refused(name: Any) -> None:
    with pytest.raises(BadField, match="operationId is not a text"):
        read_request("r1", 0, {"operationId": name, "input": {}})


@pytest.mark.parametrize("field", ["peer", "auth_token", "forwarded_for"])
@pytest.mark.parametrize("value", ["", "x" * 257, 7, b"bob", ["bob"], True])
def test_a_text_that_is_none_is_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(BadField, match=f"{field} is not a text of 1 to 256"):
        request(**{field: value})


@pytest.mark.parametrize(
    "value", [0, -1, 0.0, float("nan"), float("inf"), MAX_TIMEOUT_MS + 1, 1 << 80, "100", True, [1]]
)
def test_a_timeout_is_a_number_above_0_that_somebody_may_live_to_see(value: Any) -> None:
    with pytest.raises(BadField, match="timeout_ms"):
        request(timeout_ms=value)


@pytest.mark.parametrize(("value", "seconds"), [(1, 0.001), (0.5, 0.0005), (MAX_TIMEOUT_MS, MAX_TIMEOUT_MS / 1000)])
def test_a_timeout_is_read_in_seconds(value: float, seconds: float) -> None:
    assert request(timeout_ms=value).timeout_s == seconds


@pytest.mark.parametrize("value", [0, -1, 1.0, MAX_CREDIT + 1, "5", True, [5]])
def test_credit_is_a_whole_number_within_its_bound(value: Any) -> None:
    with pytest.raises(BadField, match=f"1 to {MAX_CREDIT}"):
        request(credit=value)


def test_credit_may_be_all_there_is() -> None:
    assert (request(credit=1).credit, request(credit=MAX_CREDIT).credit) == (1, MAX_CREDIT)


@pytest.mark.parametrize("value", ["", TRACE.upper(), TRACE + "0", TRACE + "\n", "00-0-0-0", 7, None, [TRACE]])
def test_a_wrong_trace_is_left_out_and_fails_nothing(value: Any) -> None:
    assert request(traceparent=value).traceparent is None


def test_a_token_is_not_in_what_is_printed_of_a_request() -> None:
    assert "s3cret" not in repr(request(auth_token="s3cret"))


@given(payload=st.dictionaries(st.sampled_from(FIELDS) | st.text(max_size=5), values, max_size=8))
def test_whatever_a_request_says_it_is_read_or_refused(payload: dict[str, Any]) -> None:
    try:
        got = read_request("r1", 1, payload)
    except BadField:
        return
    assert type(got.name) is str
    assert len(got.name) <= MAX_NAME_CHARS + 1
    assert got.credit is None or 0 < got.credit <= MAX_CREDIT
    assert got.timeout_s is None or 0 < got.timeout_s <= MAX_TIMEOUT_MS / 1000
    assert all(text is None or type(text) is str for text in (got.peer, got.auth_token, got.forwarded_for))


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["", "A B", "BELL\x07", "NEW\nLINE", "X" * 65, 7, None])
def test_a_code_or_a_denial_that_could_steer_a_terminal_is_not_passed_on(text: Any) -> None:
    got = read_error({"code": text, "message": "no", "denial_id": text})
    assert (got.code, got.denial_id) == ("INTERNAL", None)


def test_an_error_says_what_it_has_and_nothing_else() -> None:
    assert error_payload(CallError("NOT_FOUND", "no such thing")) == {
        "code": "NOT_FOUND",
        "message": "no such thing",
        "retryable": False,
    }
    full = error_payload(CallError("FORBIDDEN", "no", details={"a": 1}, retryable=True, denial_id="d1"))
    assert full == {"code": "FORBIDDEN", "message": "no", "retryable": True, "details": {"a": 1}, "denial_id": "d1"}


@given(
    code=st.sampled_from(sorted(PROTOCOL_CODES)) | st.from_regex(r"[A-Z][A-Z0-9_]{0,63}", fullmatch=True),
    message=st.text(max_size=MAX_REASON_CHARS),
    details=values,
    retryable=st.booleans(),
    denial_id=st.none() | st.from_regex(r"den_[0-9a-f]{16}", fullmatch=True),
)
def test_an_error_arrives_as_it_was_sent(
    code: str, message: str, details: Any, retryable: bool, denial_id: str | None
) -> None:
    sent = error_payload(CallError(code, message, details=details, retryable=retryable, denial_id=denial_id))
    assert repr(error_payload(read_error(sent))) == repr(sent)  # NaN is not equal to itself


@given(
    payload=st.dictionaries(
        st.sampled_from(("code", "message", "retryable", "details", "denial_id")) | st.text(max_size=5), values
    )
)
def test_whatever_an_error_says_it_is_an_error(payload: dict[str, Any]) -> None:
    error = read_error(payload)
    assert type(error.code) is str
    assert 0 < len(error.code) <= MAX_ID_CHARS
    assert type(error.retryable) is bool
    assert error.denial_id is None or len(error.denial_id) <= MAX_ID_CHARS


def test_an_error_without_words_gets_some_and_one_with_many_is_cut() -> None:
    error = read_error({})
    assert (error.code, str(error), error.details) == ("INTERNAL", "the other side gave no reason", None)
    assert len(str(read_error({"message": "x" * 10_000}))) == MAX_REASON_CHARS
    assert read_error({"code": "C" * (MAX_ID_CHARS + 1)}).code == "INTERNAL"
    assert read_error({"code": "TIMEOUT", "retryable": "no"}).retryable


# --- what this side says ----------------------------------------------------------------------------------------------


def test_a_refusal_is_an_error_that_goes_straight_back() -> None:
    assert refusal("r1", "UNAVAILABLE", "not now").envelope == {
        "type": "call.error",
        "id": "r1",
        "payload": {"code": "UNAVAILABLE", "message": "not now", "retryable": True},
    }


def test_an_abort_says_why_if_there_is_a_why() -> None:
    assert aborted("r1", "") == {"type": "call.aborted", "id": "r1", "payload": {}}
    assert aborted("r1", "deadline")["payload"] == {"reason": "deadline"}
