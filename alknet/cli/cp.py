"""``cp``: files and directories from and to a peer, or between two."""

import re
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any, Final

import click

from alknet.cli.app import Invocation, pass_invocation
from alknet.cli.client import accept_new_option, accepter, bulk_first, carrier_options, find_target, reporter, run_async
from alknet.cli.output import print_json
from alknet.cli.progress import showing
from alknet.errors import AlknetError, UnavailableError, UsageError
from alknet.logs import printable

if TYPE_CHECKING:
    from alknet.ssh.client import Target
    from alknet.ssh.transfer import Progress
    from alknet.ssh.transfer_remote import RemoteFiles

__all__ = ["cp", "explained", "open_remote", "print_failure", "print_kept", "split_peer", "summary"]

MAX_PARALLEL: Final = 64
MAX_KEPT_SHOWN: Final = 5
_INSTEAD: Final = {True: "is read back and compared", False: "is compared in part"}
_PORT: Final = re.compile(r"[0-9]{1,5}(?=:)")


def split_peer(text: str) -> tuple[str | None, str]:
    """(PEER, path) of what stands on the command line; (None, path) for a file of this machine.

    As for scp, a colon before the first slash ends the host's name, and ``./a:b`` is a file here. A number between two
    colons is a port: ``host:7022:file``. IPv6 addresses stand in brackets.
    """
    behind = re.match(r"([^/:\[]*@)?\[[^\]/]*\]", text)
    colon = text.find(":", behind.end() if behind else 0)
    if colon <= 0 or "/" in text[:colon] or (behind is not None and colon != behind.end()):
        return None, text
    peer, path = text[:colon], text[colon + 1 :]
    port = _PORT.match(path)
    if port is not None:
        peer, path = f"{peer}:{port[0]}", path[port.end() + 1 :]
    return peer, path


@contextmanager
def explained(peer: str | None, path: str) -> Iterator[None]:
    """Tell who may have meant the port, where other commands have it, that it was taken for a path."""
    try:
        yield
    except UnavailableError as exc:
        if peer is not None and path.isdecimal():
            exc.hint = f"{path} is the path here; with the port {path} it is {peer}:{path}:"
        raise


def _options(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        carrier_options,
        accept_new_option,
        click.option(
            "-r", "-R", "recursive", is_flag=True, help="Copy directories with what is in them; follow links."
        ),
        click.option("-p", "preserve", is_flag=True, help="Keep permissions and times."),
        click.option(
            "--resume", is_flag=True, help="Go on with what is there; leave out files that are there already."
        ),
        click.option("--verify", is_flag=True, help="Compare each copy's BLAKE3 digest with the source's."),
        click.option("-q", "--quiet", is_flag=True, help="Show no progress."),
        click.option(
            "--parallel",
            type=click.IntRange(1, MAX_PARALLEL),
            default=8,
            show_default=True,
            help="How many files of a directory to copy at once.",
        ),
    ):
        command = option(command)
    return command


@click.command()
@_options
@click.argument("source", nargs=-1, required=True)
@click.argument("target")
@pass_invocation
def cp(
    invocation: Invocation,
    /,
    source: tuple[str, ...],
    target: str,
    carriers: tuple[str, ...],
    verbose: bool,
    accept_new: bool,
    recursive: bool,
    quiet: bool,
    **options: Any,
) -> int:
    """Copy SOURCE (several, with patterns) to TARGET; PEER:PATH is on a peer.

    \b
    alknet cp report.pdf web:                    # into the directory that sessions begin in
    alknet cp -r 'web:/var/log/app/*.log' logs/
    alknet cp --resume --verify web:disk.img .

    A file takes its target's place when it is whole; until then it is NAME.….part beside it, and --resume goes on with
    that.
    """
    from alknet.ssh.transfer import Options, Progress

    places = [split_peer(text) for text in (*source, target)]
    if all(peer is None for peer, _ in places):
        raise UsageError(
            "both sides are on this machine", hint="write PEER:PATH for a peer's file, '.:PATH' for the node's"
        )
    wanted, progress = Options(**options), Progress()
    is_tree = recursive or len(source) > 1
    codes: set[int] = set()

    def failed(error: AlknetError) -> None:
        codes.add(error.exit_code)
        print_failure(error)

    async def main() -> None:
        from alknet.ssh.transfer import Copier
        from alknet.ssh.transfer_local import LocalFiles
        from alknet.ssh.transfer_paths import Place, copy_all

        async with AsyncExitStack() as stack:
            remotes: dict[str, RemoteFiles] = {}
            for peer, path in places:
                if peer is None or peer in remotes:
                    continue
                to = find_target(invocation, peer, accept_new=accepter(yes=accept_new))
                with explained(peer, path):
                    remotes[peer] = await stack.enter_async_context(open_remote(to, carriers, verbose, name=peer))
                if (wanted.verify or wanted.resume) and not remotes[peer].has_digests and not quiet:
                    click.echo(
                        f"alknet: {printable(peer)} tells no digests: what is there {_INSTEAD[wanted.verify]}", err=True
                    )
            found = [Place(LocalFiles() if peer is None else remotes[peer], path) for peer, path in places]
            await stack.enter_async_context(showing(progress, is_tree=is_tree, is_quiet=quiet))
            copier = Copier(wanted, progress)
            await copy_all(copier, found[:-1], found[-1], recursive=recursive, on_failure=failed)

    began = time.monotonic()
    try:
        run_async(main)
    finally:
        print_kept(progress)
    if invocation.json:
        print_json(summary(progress) | {"seconds": round(time.monotonic() - began, 3)})
    return codes.pop() if len(codes) == 1 else int(bool(codes))


@asynccontextmanager
async def open_remote(
    target: "Target", carriers: tuple[str, ...], verbose: bool, *, name: str
) -> "AsyncIterator[RemoteFiles]":
    """The files of a peer, over a connection of their own; a copy that is broken off is resumed."""
    from alknet.ssh.client import connect
    from alknet.ssh.transfer_remote import open_files

    async with (
        connect(target, carriers=bulk_first(carriers), report=reporter(verbose)) as link,
        open_files(link.ssh, name) as files,
    ):
        yield files


def summary(progress: "Progress") -> dict[str, Any]:
    """The counters of a copy, for programs."""
    return {
        name: getattr(progress, name) for name in ("files", "bytes", "moved", "skipped", "failed", "verified", "kept")
    }


def print_failure(error: AlknetError) -> None:
    """One file of several was not copied."""
    for number, line in enumerate(str(error).splitlines()):
        click.echo(f"{'        ' if number else 'alknet: '}{printable(line)}", err=True)


def print_kept(progress: "Progress") -> None:
    """What is left of a copy that did not come to its end, and what to do with it."""
    for label in progress.kept[:MAX_KEPT_SHOWN]:
        click.echo(f"alknet: kept {printable(label)}: the same command with --resume goes on with it", err=True)
    if len(progress.kept) > MAX_KEPT_SHOWN:
        click.echo(f"alknet: and {len(progress.kept) - MAX_KEPT_SHOWN} more", err=True)
