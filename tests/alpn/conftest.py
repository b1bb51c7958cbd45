"""Every asynchronous test of the port runs on both event loops: asyncio's own, and uvloop, which a node runs on."""

import asyncio
from collections.abc import Callable, Mapping

import pytest
import uvloop

pytest.register_assert_rewrite("tests.alpn.conformance")


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
