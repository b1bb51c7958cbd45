"""How a failed call is told: its code, whether to try again, and what a command then exits with."""

import pytest

from alknet.call.errors import PROTOCOL_CODES, CallError, FrameError, HelloError
from alknet.errors import AlknetError, RemoteError


@pytest.mark.parametrize("code", PROTOCOL_CODES)
def test_a_protocol_code_says_whether_to_try_again_and_what_a_command_exits_with(code: str) -> None:
    error = CallError(code, "no")
    assert (error.retryable, error.exit_code) == PROTOCOL_CODES[code]
    assert error.exit_code != 0
    assert str(error) == "no"
    assert isinstance(error, AlknetError)


def test_what_may_pass_is_worth_another_try_and_nothing_else_is() -> None:
    retryable = {code for code in PROTOCOL_CODES if CallError(code, "").retryable}
    assert retryable == {"TIMEOUT", "UNAVAILABLE", "RESOURCE_EXHAUSTED"}


def test_a_domain_code_is_final_unless_it_says_otherwise() -> None:
    assert (CallError("OUT_OF_STOCK", "none").retryable, CallError("OUT_OF_STOCK", "none").exit_code) == (False, 1)
    assert CallError("OUT_OF_STOCK", "none", retryable=True).retryable
    assert not CallError("UNAVAILABLE", "for good", retryable=False).retryable


def test_an_error_carries_its_details_and_the_denial_it_is_about() -> None:
    error = CallError("FORBIDDEN", "no", details=[{"path": "a"}], denial_id="d1", hint="ask")
    assert (error.details, error.denial_id, error.hint) == ([{"path": "a"}], "d1", "ask")


@pytest.mark.parametrize("kind", [FrameError, HelloError])
def test_what_is_wrong_with_the_other_side_is_told_apart_from_a_failed_call(kind: type[RemoteError]) -> None:
    assert issubclass(kind, RemoteError)
    assert not issubclass(kind, CallError)
