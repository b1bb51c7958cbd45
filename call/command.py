"""``ssh node op NAME '{json}'``: an operation called by a stock SSH client.

The output is one line of JSON on stdout, of a subscription one line for each item; an error is a line or two on stderr,
and the exit status says which kind it was. When the client goes away the call is cancelled.
"""

import asyncio
from collections.abc import Callable
from typing import Final, Protocol

from alknet.access import Identity
from alknet.alpn.streams import Connection
from alknet.call.codecs import JSON, EncodeError
from alknet.call.context import Caller
from alknet.call.dispatch import Dispatcher
from alknet.call.errors import CallError, FrameError
from alknet.call.prepared import Prepared
from alknet.call.words import mistakes, one_line
from alknet.logs import printable

__all__ = ["Terminal", "serve_command"]

USAGE: Final = 2
MAX_INPUT_CHARS: Final = 1024 * 1024


class Terminal(Protocol):
    """Where output and errors go."""

    async def write(self, data: bytes) -> None:
        """To stdout; waits while the client does not keep up."""

    async def write_error(self, data: bytes) -> None:
        """To stderr."""

    def on_recheck(self, recheck: Callable[[], None]) -> None:
        """Have `recheck` called whenever what is allowed may have changed."""


async def serve_command(
    dispatcher: Dispatcher, terminal: Terminal, identity: Identity, connection: Connection, text: str
) -> int:
    """Run ``NAME [JSON]`` and return the exit status; all that follows the name is the JSON, untouched."""
    name, _, value = text.strip().partition(" ")
    if not name:
        await terminal.write_error(b'alknet: op needs the name of an operation: op NAME \'{"key": "value"}\'\n')
        return USAGE
    remote = None if connection.remote is None else connection.remote.host
    caller = Caller(identity, "ssh", connection.id, remote)
    try:
        prepared = dispatcher.prepare(name.removeprefix("/"), _input(value), caller, streaming=None)
        await _run(prepared, terminal)
    except CallError as exc:
        await terminal.write_error(_words(exc).encode("utf-8", "replace"))
        return exc.exit_code
    return 0


async def _run(prepared: Prepared, terminal: Terminal) -> None:
    """Until it has ended, or what allowed it was taken away, which raises the refusal."""
    running = asyncio.current_task()
    refusals: list[CallError] = []

    def recheck() -> None:
        refusal = prepared.revoked()
        if refusal is not None and running is not None:
            refusals.append(refusal)
            running.cancel()

    terminal.on_recheck(recheck)
    try:
        await _show(prepared, terminal)
    except asyncio.CancelledError:
        if refusals and running is not None and running.uncancel() == 0:
            raise refusals[0] from None
        raise


async def _show(prepared: Prepared, terminal: Terminal) -> None:
    if not prepared.is_stream:
        await terminal.write(_line(await prepared.call()))
        return
    items = prepared.stream()
    try:
        async for item in items:
            await terminal.write(_line(item))
    finally:
        await items.aclose()


def _input(text: str) -> object:
    if not text.strip():
        return {}
    if len(text) > MAX_INPUT_CHARS:
        raise CallError("INVALID_INPUT", f"the input has more than {MAX_INPUT_CHARS} characters")
    try:
        return JSON.decode(text.encode("utf-8", "surrogateescape"))
    except FrameError as exc:
        raise CallError(
            "INVALID_INPUT", f"the input {exc}", hint="all that follows the name is JSON: ssh HOST op NAME '{…}'"
        ) from exc


def _line(value: object) -> bytes:
    try:
        return JSON.encode(value) + b"\n"
    except EncodeError as exc:
        raise CallError("INTERNAL", f"the output cannot be shown as JSON: {exc}") from exc


def _words(error: CallError) -> str:
    denial = f" ({error.denial_id})" if error.denial_id else ""
    lines = [f"alknet: {error.code}: {one_line(str(error))}{denial}"]
    lines += [f"        {mistake}" for mistake in mistakes(error)]
    if error.hint:
        lines.append(f"  hint: {error.hint}")
    return "".join(f"{printable(line)}\n" for line in lines)
