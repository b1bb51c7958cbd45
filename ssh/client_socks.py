"""SOCKS for ``-D``: what a program asks for before its connection is carried.

SOCKS 4, 4a and 5 (RFC 1928), CONNECT without a login, as OpenSSH's ``-D`` has it. Names are passed on as they are and
resolved at the far side. Nothing is read beyond the request: what follows belongs to the connection. The answer comes
when the far side has connected, and says otherwise why not.
"""

import ipaddress
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from alknet.errors import InvalidInputError
from alknet.ssh.forward_specs import Port

__all__ = ["SocksRequest", "read_request"]

ReadExactly = Callable[[int], Awaitable[bytes]]
"""So many bytes; raises where the connection ends before."""

_CONNECT: Final = 1
_IPV4, _NAME, _IPV6 = 1, 3, 4
_NO_LOGIN: Final = 0
_NOTHING_ACCEPTABLE: Final = 0xFF
_MAX_TEXT_BYTES: Final = 255
"""For the user and the name of SOCKS 4, which end with a zero."""

_REFUSED_5: Final = {
    # SSH's reason for not opening a channel (RFC 4254 section 5.1): the reply of RFC 1928 section 6
    1: 2,  # administratively prohibited: not allowed by the rules
    2: 5,  # connect failed: refused
}
_GENERAL_FAILURE: Final = 1
_COMMAND_NOT_SUPPORTED: Final = 7
_TYPE_NOT_SUPPORTED: Final = 8


@dataclass(frozen=True, slots=True)
class SocksRequest:
    """Where a program wants to go, and what it is to be told."""

    version: int
    to: Port

    def answer(self, ssh_reason: int | None) -> bytes:
        """The reply: `ssh_reason` is why the channel was not opened, None when it was."""
        if self.version == 4:
            return bytes((0, 0x5A if ssh_reason is None else 0x5B)) + bytes(6)
        return _reply_5(0 if ssh_reason is None else _REFUSED_5.get(ssh_reason, _GENERAL_FAILURE))


async def read_request(read: ReadExactly, write: Callable[[bytes], Awaitable[None]]) -> SocksRequest:
    """Read a request; `write` sends what is said on the way. `InvalidInputError` for what is none, or is not served."""
    (version,) = await read(1)
    if version == 4:
        return await _request_4(read, write)
    if version == 5:
        return await _request_5(read, write)
    raise InvalidInputError(f"first byte {version:#04x}: that is not SOCKS 4 or 5")


async def _request_4(read: ReadExactly, write: Callable[[bytes], Awaitable[None]]) -> SocksRequest:
    command, *port, a, b, c, d = await read(7)
    await _read_text(read)  # the user, whom nobody asks
    has_name = (a, b, c) == (0, 0, 0) and d != 0  # SOCKS 4a
    host = _name(await _read_text(read)) if has_name else f"{a}.{b}.{c}.{d}"
    request = SocksRequest(4, Port(host, int.from_bytes(port, "big")))
    if command != _CONNECT:
        await write(request.answer(_GENERAL_FAILURE))
        raise InvalidInputError(f"SOCKS command {command} is not served, only CONNECT")
    return request


async def _request_5(read: ReadExactly, write: Callable[[bytes], Awaitable[None]]) -> SocksRequest:
    (count,) = await read(1)
    if _NO_LOGIN not in await read(count):
        await write(bytes((5, _NOTHING_ACCEPTABLE)))
        raise InvalidInputError("the program insists on a SOCKS login, and there is none here")
    await write(bytes((5, _NO_LOGIN)))
    version, command, _, kind = await read(4)
    if version != 5:
        raise InvalidInputError(f"version {version} in the middle of SOCKS 5")
    if command != _CONNECT:
        await write(_reply_5(_COMMAND_NOT_SUPPORTED))
        raise InvalidInputError(f"SOCKS command {command} is not served, only CONNECT")
    if kind == _IPV4:
        host = str(ipaddress.IPv4Address(await read(4)))
    elif kind == _IPV6:
        host = str(ipaddress.IPv6Address(await read(16)))
    elif kind == _NAME:
        (length,) = await read(1)
        host = _name(await read(length))
    else:
        await write(_reply_5(_TYPE_NOT_SUPPORTED))
        raise InvalidInputError(f"SOCKS address type {kind} is unknown")
    return SocksRequest(5, Port(host, int.from_bytes(await read(2), "big")))


def _reply_5(code: int) -> bytes:
    return bytes((5, code, 0, _IPV4)) + bytes(6)


async def _read_text(read: ReadExactly) -> bytes:
    text = b""
    while (byte := await read(1)) != b"\0":
        text += byte
        if len(text) > _MAX_TEXT_BYTES:
            raise InvalidInputError("a text of the SOCKS request does not end")
    return text


def _name(data: bytes) -> str:
    try:
        name = data.decode("ascii")
    except UnicodeDecodeError:
        raise InvalidInputError("the name in the SOCKS request is not ASCII") from None
    if not name or not name.isprintable():
        raise InvalidInputError("the name in the SOCKS request is none")
    return name
