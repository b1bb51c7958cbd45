"""``tools/call``: from a tool's name and its arguments to its answer, whatever the transport and the backend.

A tool is called by name whether it is listed or not: the access decision refuses it, with the same denial id as at
every other door, and not the list.
"""

from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import Any, Final

from alknet.call.errors import CallError
from alknet.gateway.mcp import general
from alknet.gateway.mcp.backend import Backend, Run
from alknet.gateway.mcp.results import Items, Result, failed, succeeded
from alknet.gateway.mcp.tools import Revision, operation_named

__all__ = ["MAX_PROGRESS_CHARS", "Progress", "call_tool"]

MAX_PROGRESS_CHARS: Final = 8 * 1024
"""Of an item that is sent along as progress; the final result has all of it."""

Progress = Callable[[int, str], Awaitable[None]]
"""Tells the client of an item: how many there were with it, and the item as JSON text."""


async def call_tool(
    backend: Backend, revision: Revision, name: str, arguments: dict[str, Any], progress: Progress | None = None
) -> Result:
    """The answer of a tool, be it one of an operation or one of `general.NAMES`; errors are answers, too."""
    if name == general.CALL or name in general.DIRECT:
        try:
            asked = general.call_of(name, arguments)
        except CallError as exc:
            return failed(exc)
        is_wrapped = name == general.CALL
        return await _run(backend, asked.operation, asked.input, peer=asked.peer, wraps=is_wrapped, progress=progress)
    if name == general.BATCH:
        return await general.batch(backend, arguments)
    try:
        tool = await backend.find(name)
    except CallError as exc:
        return failed(exc)
    if tool is None:  # whoever serves it says so, to strangers in the words of a denial
        return await _run(backend, operation_named(name), arguments, wraps=True, progress=progress)
    return await _run(backend, tool.operation, arguments, wraps=tool.wraps(revision), progress=progress)


async def _run(
    backend: Backend,
    operation: str,
    value: Any,
    *,
    peer: str | None = None,
    wraps: bool,
    progress: Progress | None,
) -> Result:
    request_id = None
    try:
        run = await backend.begin(operation, value, peer=peer)
        request_id = run.request_id
        if not run.is_stream:
            return succeeded(await run.call(), wraps=wraps)
    except CallError as exc:
        return failed(exc, request_id)
    return await _collected(run, progress)


async def _collected(run: Run, progress: Progress | None) -> Result:
    """All items of a subscription, or as many as there is room for; then it is ended."""
    items = Items()
    try:
        async with aclosing(run.stream()) as stream:  # type: ignore[type-var]
            async for item in stream:
                body = items.add(item)
                if body is None:
                    break
                if progress is not None:
                    await progress(items.count, _cut(body.decode()))
    except CallError as exc:
        return failed(exc, run.request_id, items)
    return items.result()


def _cut(text: str) -> str:
    return text if len(text) <= MAX_PROGRESS_CHARS else text[: MAX_PROGRESS_CHARS - 1] + "…"
