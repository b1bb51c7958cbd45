"""W3C Trace Context."""

import pytest

from alknet.gateway.traces import continue_trace

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.mark.parametrize("flags", ["00", "01"])
def test_a_trace_goes_on_with_a_span_of_its_own(flags: str) -> None:
    version, trace, span, found = continue_trace(f"00-{TRACE}-{SPAN}-{flags}").split("-")
    assert (version, trace, found) == ("00", TRACE, flags)
    assert span != SPAN
    assert int(span, 16)


@pytest.mark.parametrize(
    "header",
    [
        None, "", "x", f"ff-{TRACE}-{SPAN}-01", f"00-{'0' * 32}-{SPAN}-01", f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE.upper()}-{SPAN}-01", f"00-{TRACE}-{SPAN}-01\n", f"00-{TRACE}-{SPAN}-01-x", f" 00-{TRACE}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}", "00-" + "é" * 32 + f"-{SPAN}-01", "x" * 10_000,
    ],
)  # fmt: skip
def test_a_wrong_header_counts_as_none(header: str | None) -> None:
    version, trace, span, flags = continue_trace(header).split("-")
    assert (version, len(trace), len(span), flags) == ("00", 32, 16, "00")
    assert trace != TRACE
