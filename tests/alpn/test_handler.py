"""The smallest handler, as the documentation shows it."""

import asyncio
import textwrap
from typing import Any

from alknet.alpn import handler
from alknet.alpn.memory import memory_pair
from alknet.alpn.router import Router
from alknet.alpn.streams import Connection

from .conformance import read_all


async def test_the_documented_handler_works_as_it_stands() -> None:
    assert handler.__doc__ is not None
    code = textwrap.dedent(handler.__doc__.split("::\n", 1)[1])
    names: dict[str, Any] = {"Connection": Connection}
    exec(code, names)
    router = Router([names["Echo"]()])
    dialer, listener = memory_pair(alpn="example/echo")
    router.dispatch(listener)
    async with asyncio.timeout(10.0):
        stream = await dialer.open_stream()
        await stream.write(b"hello")
        await stream.write_eof()
        assert await read_all(stream) == b"hello"
        await listener.wait_closed()
    router.recheck()
    assert await router.shutdown(0.0) == 0
