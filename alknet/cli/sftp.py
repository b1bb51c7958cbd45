"""``sftp``: a peer's files at a prompt, or by a file of commands."""

import asyncio
import contextlib
import sys
import threading
from collections.abc import Coroutine, Iterator
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from alknet.cli.app import Invocation, pass_invocation
from alknet.cli.client import accept_new_option, accepter, carrier_options, find_target
from alknet.cli.cp import explained, open_remote, print_failure, split_peer
from alknet.errors import AlknetError, LocalError, NotFoundError
from alknet.logs import printable

if TYPE_CHECKING:
    from alknet.cli.sftp_shell import Shell

__all__ = ["sftp"]

T = TypeVar("T")
PROMPT: Final = "sftp> "
COMPLETION_TIMEOUT_S: Final = 3.0
CANCEL_TIMEOUT_S: Final = 3.0
"""What a command may take to end that was given up."""


@click.command()
@carrier_options
@accept_new_option
@click.option("-b", "batch", metavar="FILE", help="Do the commands in FILE (- for stdin), up to the first that fails.")
@click.option("-q", "--quiet", is_flag=True, help="Show no progress, and no commands of -b.")
@click.argument("peer")
@pass_invocation
def sftp(
    invocation: Invocation,
    /,
    peer: str,
    carriers: tuple[str, ...],
    verbose: bool,
    accept_new: bool,
    batch: str | None,
    quiet: bool,
) -> int:
    """List, copy and change the files of PEER (or PEER:DIRECTORY; with a port, HOST:PORT: or HOST:PORT:DIRECTORY).

    At the prompt, help lists the commands. Without a terminal, commands are read from stdin. A line that begins with
    '-' may fail; any other that fails ends a session that nobody types in, with its exit code.
    """
    name, path = split_peer(peer)
    name, path = (peer, "") if name is None else (name, path)
    target = find_target(invocation, name, accept_new=accepter(yes=accept_new))
    is_typed = batch is None and sys.stdin.isatty()
    with contextlib.ExitStack() as stack:
        lines = _TypedLines() if is_typed else _read_lines(batch, stack)
        thread = stack.enter_context(_LoopThread())
        connection = contextlib.AsyncExitStack()
        stack.callback(lambda: thread.run(connection.aclose()))

        async def begin() -> "Shell":
            from alknet.cli.sftp_shell import Shell

            files = await connection.enter_async_context(open_remote(target, carriers, verbose, name=name))
            shell = Shell(files, is_quiet=quiet)
            await shell.begin(path)
            return shell

        with explained(name, path):
            shell = thread.run(begin())
        if is_typed:
            _complete_by(thread, shell)
        return _run(thread, shell, lines, is_typed=is_typed, echo=batch is not None and not quiet)


class _LoopThread:
    """An event loop in a thread of its own, so that the connection lives while nobody types."""

    def __enter__(self) -> "_LoopThread":
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="connection", daemon=True)
        self._thread.start()
        return self

    def run(self, main: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine there and wait for it; Ctrl-C cancels it, and is raised when it has ended."""
        ended = threading.Event()

        async def run() -> T:
            try:
                return await main
            finally:
                ended.set()

        future = asyncio.run_coroutine_threadsafe(run(), self._loop)
        try:
            return future.result()
        except KeyboardInterrupt:
            future.cancel()
            ended.wait(CANCEL_TIMEOUT_S)
            raise

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(CANCEL_TIMEOUT_S)
        if not self._thread.is_alive():
            self._loop.close()


def _run(thread: "_LoopThread", shell: "Shell", lines: Iterator[str], *, is_typed: bool, echo: bool) -> int:
    while not shell.is_done:
        try:
            line = next(lines, None)
            if line is None:
                break
            if echo and not line.startswith(("@", "-@")):
                click.echo(f"{PROMPT}{printable(line)}")
            may_fail, line = line.startswith("-"), line.removeprefix("-")
            try:
                thread.run(shell.run(line.removeprefix("@")))
            except AlknetError as exc:
                if not (is_typed or may_fail) or shell.files.is_lost:
                    raise
                print_failure(exc)
                if exc.hint and is_typed:
                    click.echo(f"  hint: {printable(exc.hint)}", err=True)
        except KeyboardInterrupt:
            if not is_typed:
                raise
            click.echo(err=True)
    return 0


class _TypedLines:
    """What is typed at the prompt; no generator, which Ctrl-C would end."""

    def __iter__(self) -> "_TypedLines":
        return self

    def __next__(self) -> str:
        try:
            return input(PROMPT)
        except EOFError:
            click.echo()
            raise StopIteration from None


def _read_lines(batch: str | None, stack: contextlib.ExitStack) -> Iterator[str]:
    if batch in (None, "-"):
        return (line.rstrip("\n") for line in sys.stdin)
    assert batch is not None
    try:
        file = stack.enter_context(open(batch, encoding="utf-8", errors="surrogateescape"))  # noqa: SIM115
    except FileNotFoundError:
        raise NotFoundError(f"{batch}: there is no such file") from None
    except OSError as exc:
        raise LocalError(f"{batch}: {exc.strerror}") from exc
    return (line.rstrip("\n") for line in file)


def _complete_by(thread: _LoopThread, shell: "Shell") -> None:
    """Complete commands and files by the tab key, where this Python has readline."""
    try:
        import readline
    except ImportError:
        return
    found: list[str] = []

    def complete(text: str, state: int) -> str | None:
        if state == 0:
            line = readline.get_line_buffer()
            with contextlib.suppress(AlknetError, TimeoutError):
                found[:] = thread.run(asyncio.wait_for(shell.completions(line, text), COMPLETION_TIMEOUT_S))
        return found[state] if state < len(found) else None

    readline.set_completer(complete)
    readline.set_completer_delims(" \t\n")
    libedit = "libedit" in (readline.__doc__ or "")
    readline.parse_and_bind("bind ^I rl_complete" if libedit else "tab: complete")
