"""Forwards over an SSH door in this process: what they lead to, who listens, and who visits."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import asyncssh
import psutil
from asyncssh.packet import String, UInt32

from alknet.access import Policy
from testkit.ssh_pair import policy_with

__all__ = [
    "ALL",
    "HERE",
    "Server",
    "allowing",
    "ask_globally",
    "helpers",
    "leave",
    "nobody_there",
    "reverse",
    "serving",
    "tell",
    "visit",
]

HERE = "127.0.0.1"
ALL = ("local 127.0.0.1:*", "local [::1]:*", "remote localhost:*")
"""Rules for all of loopback."""
Server = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Any]


def allowing(*forward: str, scopes: tuple[str, ...] = ("forward:*", "ssh:*"), **more: Any) -> Policy:
    """A policy with these rules; see `policy_with`."""
    return policy_with(*scopes, forward=forward, **more)


@asynccontextmanager
async def serving(handle: Server, host: str = HERE, path: str = "") -> AsyncIterator[int]:
    """A service on a free port, or at `path`."""
    async with asyncio.TaskGroup() as group:

        def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            group.create_task(handle(reader, writer))

        if path:
            server: asyncio.Server = await asyncio.start_unix_server(accepted, path)
        else:
            server = await asyncio.start_server(accepted, host, 0)
        async with server:
            yield 0 if path else server.sockets[0].getsockname()[1]


async def reverse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer with what came, backwards, once all of it has."""
    with suppress(ConnectionError):
        data = await reader.read()
        writer.write(data[::-1])
    writer.close()


def nobody_there() -> int:
    """A port on which nothing listens."""
    with socket.socket() as sock:
        sock.bind((HERE, 0))
        return int(sock.getsockname()[1])


async def tell(reader: Any, writer: Any, data: bytes) -> bytes:
    """Say `data` and no more, and hear the answer to its end."""
    writer.write(data)
    writer.write_eof()
    async with asyncio.timeout(10):
        answer: bytes = await reader.read()
    writer.close()
    return answer


async def visit(port: int, data: bytes = b"abc", host: str = HERE) -> bytes:
    """The same with who listens on a port here."""
    return await tell(*await asyncio.open_connection(host, port), data)


async def leave(client: asyncssh.SSHClientConnection) -> None:
    """End the connection without a word."""
    client.abort()
    await client.wait_closed()


def helpers() -> list[psutil.Process]:
    """The processes that work for a user; one that has ended and was not reaped has only its name left."""
    found = []
    for process in psutil.Process().children():
        with suppress(psutil.NoSuchProcess):
            words: list[str] = []
            with suppress(psutil.ZombieProcess):
                words = process.cmdline()
            if process.name().startswith("python") and (not words or "alknet.ssh." in " ".join(words)):
                found.append(process)
    return found


async def ask_globally(client: asyncssh.SSHClientConnection, request: bytes, host: str, port: int) -> bool:
    """Whether the node did what a request about a listener asks for."""
    kind, _ = await client._make_global_request(request, String(host), UInt32(port))
    return bool(kind == asyncssh.constants.MSG_REQUEST_SUCCESS)
