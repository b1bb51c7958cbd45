"""Which opening each of the 256 first bytes is."""

import pytest

from alknet.alpn.first_byte import Opening, opening

KNOWN = {0x53: Opening.SSH, 0x16: Opening.TLS, 0x05: Opening.SOCKS}
METHODS = set(b"ABCDEFGHIJKLMNOPQRTUVWXYZ")  # all capitals but the S of SSH


@pytest.mark.parametrize("first", range(256))
def test_every_first_byte_is_exactly_one_opening(first: int) -> None:
    expected = KNOWN.get(first, Opening.HTTP if first in METHODS else Opening.UNKNOWN)
    assert opening(first) is expected


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"SSH-2.0-OpenSSH_9.9\r\n", Opening.SSH),
        (b"\x16\x03\x01\x02\x00\x01", Opening.TLS),
        (b"\x05\x01\x00", Opening.SOCKS),
        (b"\x04\x01\x00\x50", Opening.UNKNOWN),
        (b"GET / HTTP/1.1\r\n", Opening.HTTP),
        (b"PRI * HTTP/2.0\r\n", Opening.HTTP),
        (b"get / HTTP/1.1\r\n", Opening.UNKNOWN),
        (b"\x80\x2e\x01\x00\x02", Opening.UNKNOWN),
    ],
)
def test_what_real_programs_begin_with(data: bytes, expected: Opening) -> None:
    assert opening(data[0]) is expected
