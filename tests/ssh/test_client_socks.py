"""SOCKS requests, byte by byte."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alknet.errors import InvalidInputError
from alknet.ssh.client_socks import SocksRequest, read_request
from alknet.ssh.forward_specs import Port


async def asked(data: bytes) -> tuple[SocksRequest, bytes, bytes]:
    """What is asked, what was said on the way, and what was not read."""
    rest, said = bytearray(data), bytearray()

    async def read(count: int) -> bytes:
        if len(rest) < count:
            raise EOFError
        piece = bytes(rest[:count])
        del rest[:count]
        return piece

    async def write(data: bytes) -> None:
        said.extend(data)

    try:
        return await read_request(read, write), bytes(said), bytes(rest)
    except InvalidInputError as exc:
        exc.add_note(said.hex())
        raise


@pytest.mark.parametrize(
    ("data", "version", "to", "said"),
    [
        ("0401 0050 01020304 00", 4, Port("1.2.3.4", 80), ""),
        ("0401 0050 01020304 6d6500", 4, Port("1.2.3.4", 80), ""),
        ("0401 0050 00000000 00", 4, Port("0.0.0.0", 80), ""),
        ("0401 1538 00000001 6d6500 646200", 4, Port("db", 5432), ""),
        ("050100 05010001 01020304 0050", 5, Port("1.2.3.4", 80), "0500"),
        ("05020200 05010003 026462 1538", 5, Port("db", 5432), "0500"),
        ("050100 05010004 20010db8000000000000000000000001 0050", 5, Port("2001:db8::1", 80), "0500"),
    ],
)
async def test_a_request_is_read_and_nothing_behind_it(data: str, version: int, to: Port, said: str) -> None:
    early = b"GET / HTTP/1.0\r\n"
    assert await asked(bytes.fromhex(data) + early) == (SocksRequest(version, to), bytes.fromhex(said), early)


@pytest.mark.parametrize(
    ("data", "why", "said"),
    [
        ("474554", "that is not SOCKS", ""),
        ("0402 0050 01020304 00", "only CONNECT", "005b000000000000"),
        ("05010205", "insists on a SOCKS login", "05ff"),
        ("0500", "insists on a SOCKS login", "05ff"),
        ("050100 05020001 01020304 0050", "only CONNECT", "050005070001000000000000"),
        ("050100 05030001 01020304 0050", "only CONNECT", "050005070001000000000000"),
        ("050100 05010002 01020304 0050", "address type 2", "050005080001000000000000"),
        ("050100 04010001 01020304 0050", "version 4", "0500"),
        ("050100 05010003 00 0050", "is none", "0500"),
        ("050100 05010003 02c3bc 0050", "not ASCII", "0500"),
        ("050100 05010003 02610a 0050", "is none", "0500"),
        ("0401 0050 01020304" + "61" * 300, "does not end", ""),
    ],
)
async def test_what_is_not_served_is_refused(data: str, why: str, said: str) -> None:
    with pytest.raises(InvalidInputError, match=why) as caught:
        await asked(bytes.fromhex(data))
    assert caught.value.__notes__ == [said]


@pytest.mark.parametrize(
    ("reason", "socks4", "socks5"), [(None, 0x5A, 0), (1, 0x5B, 2), (2, 0x5B, 5), (3, 0x5B, 1), (4, 0x5B, 1)]
)
def test_the_answer_says_why_not(reason: int | None, socks4: int, socks5: int) -> None:
    to = Port("db", 1)
    assert SocksRequest(4, to).answer(reason) == bytes((0, socks4)) + bytes(6)
    assert SocksRequest(5, to).answer(reason) == bytes((5, socks5, 0, 1)) + bytes(6)


@given(st.binary(max_size=40) | st.binary(max_size=40).map(lambda data: b"\5\1\0\5\1\0" + data))
async def test_no_bytes_do_anything_else(data: bytes) -> None:
    try:
        request, _, rest = await asked(data)
    except (InvalidInputError, EOFError):
        return
    assert request.to.host
    assert data.endswith(rest)
