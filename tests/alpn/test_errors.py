"""Whose fault the errors of streams and connections are."""

import pytest

from alknet.alpn import errors
from alknet.errors import AlknetError, BrokenError, ClosedError, LocalError, UnavailableError


@pytest.mark.parametrize(
    ("error", "fault"),
    [
        (errors.ConnectionClosed, ClosedError),
        (errors.StreamClosed, ClosedError),
        (errors.StreamBroken, BrokenError),
        (errors.StreamsExhausted, LocalError),
        (errors.HandshakeFailed, UnavailableError),
        (errors.AlpnRefused, UnavailableError),
    ],
)
def test_an_error_says_whose_fault_it_was(error: type[AlknetError], fault: type[AlknetError]) -> None:
    faults = [base for base in (ClosedError, BrokenError, LocalError, UnavailableError) if issubclass(error, base)]
    assert faults == [fault]
    assert error("why", hint="what now").hint == "what now"


def test_every_error_is_exported() -> None:
    defined = {name for name, value in vars(errors).items() if getattr(value, "__module__", "") == errors.__name__}
    assert defined == set(errors.__all__)
