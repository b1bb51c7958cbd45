"""``call``: an operation of a peer, called from the command line."""

import asyncio
import signal
import sys
from typing import IO, TYPE_CHECKING, Any

import click

from alknet.cli.app import Invocation, pass_invocation
from alknet.cli.client import accept_new_option, accepter, call_options, open_peer, run_async
from alknet.cli.ops import hint_for
from alknet.cli.values import from_json, to_json, typed
from alknet.errors import InvalidInputError, UsageError
from alknet.logs import printable

if TYPE_CHECKING:
    from alknet.call.errors import CallError
    from alknet.client import Peer

__all__ = ["call"]


@click.command()
@call_options
@accept_new_option
@click.option("--stream", is_flag=True, help="Subscribe: print each item as it comes.")
@click.option("--timeout", metavar="TIME", help="How long it may take, such as 5s.")
@click.option("-o", "--output", type=click.File("wb", lazy=True), help="Write the output to a file; - is stdout.")
@click.argument("peer")
@click.argument("name")
@click.argument("values", nargs=-1)
@pass_invocation
def call(
    invocation: Invocation,
    carrier: str,
    token: str | None,
    verbose: bool,
    accept_new: bool,
    stream: bool,
    timeout: str | None,
    output: IO[bytes] | None,
    peer: str,
    name: str,
    values: tuple[str, ...],
) -> None:
    """Call the operation NAME of PEER. The input is JSON, or key=value pairs, which the operation's schema types; a
    list is its key several times, and bytes are @FILE. 'alknet ops PEER NAME' shows what it takes.

    \b
    alknet call . node/status
    alknet call hub fs/read path=project/notes.txt offset=10
    alknet call hub fs/read '{"path": "project/notes.txt"}'
    alknet call --stream hub logs/follow unit=web
    alknet call hub photos/get name=sea.jpg -o sea.jpg

    Ctrl-C stops it there, too. The output is shown as JSON, a text as it is; --json prints one line of JSON for each
    output. Bytes go to a file or a pipe as they are, and with --json as base64.
    """
    timeout_s = _seconds(timeout)
    show = _Output(as_json=invocation.json, file=output)

    from alknet.call.errors import CallError

    stopped_by: list[int] = []

    async def main() -> None:
        _cancel_when_told(stopped_by)
        async with open_peer(
            invocation, peer, carrier=carrier, token=token, verbose=verbose, accept_new=accepter(yes=accept_new)
        ) as opened:
            try:
                await run(opened)
            except CallError as exc:
                exc.hint = exc.hint or await hint_for(opened, peer, name, exc)
                raise

    async def run(opened: "Peer") -> None:
        value = await _input(opened, name, values)
        if not stream:
            show(await opened.call(name, value, timeout=timeout_s))
            return
        async with opened.subscribe(name, value, timeout=timeout_s) as items:
            async for item in items:
                show(item)

    try:
        run_async(main)
    except asyncio.CancelledError:
        if not stopped_by:
            raise
        click.get_current_context().exit(128 + stopped_by[0])
    except CallError as exc:
        if exc.code == "INVALID_OPERATION_TYPE" and not exc.hint:
            exc.hint = "leave out --stream" if stream else "--stream subscribes to it"
        elif exc.code == "INVALID_INPUT" and not exc.hint:
            exc.hint = f"'alknet ops {peer} {name}' shows what it takes"
        raise _in_full(exc) from exc


def _cancel_when_told(stopped_by: list[int]) -> None:
    """Have SIGTERM and SIGHUP end this task as Ctrl-C does, so that the far side hears of it at once."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None

    def stop(number: int) -> None:
        stopped_by.append(number)
        task.cancel()

    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup means it
            loop.add_signal_handler(number, stop, number)


def _in_full(error: "CallError") -> "CallError":
    """The error with what is in its details, in the lines of its message."""
    from alknet.call.errors import PROTOCOL_CODES, CallError
    from alknet.call.words import mistakes, one_line

    lines = mistakes(error)
    if lines:
        lines.insert(0, "the input is wrong:")
    else:
        lines.append(one_line(str(error) if error.code in PROTOCOL_CODES else f"{error.code}: {error}"))
    if error.code != "INVALID_INPUT" and error.details is not None:
        lines.append(one_line(to_json(error.details)))
    return CallError(
        error.code, "\n".join(lines), details=error.details, denial_id=error.denial_id, hint=one_line(error.hint)
    )


class _Output:
    """Where outputs go, and in what form."""

    def __init__(self, *, as_json: bool, file: IO[bytes] | None) -> None:
        self._as_json = as_json
        self._file = file

    def __call__(self, value: Any) -> None:
        out = self._file or sys.stdout.buffer
        on_terminal = out.isatty()  # which what others send must not steer
        if isinstance(value, bytes) and not self._as_json:
            if on_terminal and self._file is None:
                raise UsageError(
                    f"the output is {len(value)} bytes", hint="-o FILE writes them to a file, --json shows them"
                )
            data = value
        elif isinstance(value, str) and not self._as_json:
            if on_terminal:
                value = "\n".join("\t".join(map(printable, line.split("\t"))) for line in value.split("\n"))
            data = value.encode("utf-8", "replace") + b"\n"
        else:
            pretty = on_terminal and not self._as_json and self._file is None
            data = to_json(value, indent=2 if pretty else None, escaped=on_terminal).encode("utf-8", "replace") + b"\n"
        out.write(data)
        out.flush()


async def _input(peer: "Peer", name: str, values: tuple[str, ...]) -> Any:
    """The input from the command line: JSON as one word that is an object, else pairs."""
    if not values:
        return {}
    if len(values) == 1 and values[0].lstrip().startswith("{"):
        try:
            return from_json(values[0])
        except ValueError as exc:
            raise InvalidInputError(f"the input is not JSON: {exc}", hint="quote it for the shell: '{…}'") from None
    from alknet.call.errors import CallError

    try:
        answer = await peer.call("services/schema", name=name)
        schema = answer.get("input_schema") if isinstance(answer, dict) else {}
    except CallError as exc:
        if exc.code != "NOT_FOUND":
            raise
        schema = {}  # nobody may see it who may not call it: the call itself says which it is
    return typed(values, schema if isinstance(schema, dict) else {})


def _seconds(text: str | None) -> float | None:
    if text is None:
        return None
    from alknet.config.fields import parse_duration

    try:
        seconds = parse_duration(text)
    except ValueError as exc:
        raise UsageError(f"--timeout {exc}") from None
    if seconds <= 0:
        raise UsageError("--timeout must be more than nothing")
    return seconds
