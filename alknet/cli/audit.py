"""``audit``: read and verify the audit log. Works on the files, with and without a running node."""

import json
import os
import time
from collections import deque
from pathlib import Path
from typing import Any, Final

import click

from alknet.cli.app import Invocation, pass_invocation
from alknet.cli.output import print_json
from alknet.errors import NotFoundError
from alknet.logs import printable, quote

__all__ = ["audit"]

SHOWN: Final = ("resource", "rule", "denial_id", "forwarded_for", "routed_to", "remote")
"""What a printed line has besides who did what and what came of it."""

FOLLOW_INTERVAL_S = 0.2


@click.group()
def audit() -> None:
    """The record of every decision."""


@audit.command()
@click.option(
    "-n", "--lines", type=click.IntRange(min=0), default=20, show_default=True, help="How many of the last lines."
)
@click.option("-f", "--follow", is_flag=True, help="Go on with new lines until Ctrl-C.")
@pass_invocation
def tail(invocation: Invocation, lines: int, follow: bool) -> None:
    """The last lines of the log."""
    from alknet.audit_reader import read_lines

    directory = _directory(invocation)
    last: deque[bytes] = deque(maxlen=lines)
    for _, _, line in read_lines(directory):
        last.append(line)
    for line in last:
        _print(line, invocation.json)
    if follow:
        _follow(directory / "audit.jsonl", invocation.json)


@audit.command()
@pass_invocation
def verify(invocation: Invocation) -> int:
    """Check that no line was changed, removed, moved or cut off."""
    from alknet.audit_reader import verify as check
    from alknet.state import SqliteState

    home = invocation.home
    directory = _directory(invocation)
    head = None
    if home.state.exists():
        state = SqliteState(home.state)
        head = state.audit_head()
        state.close()
    report = check(directory, head)
    if invocation.json:
        answer = {"ok": not report.problems, "lines": report.lines, "problems": report.problems}
        print_json(answer | {"unrecorded": report.unrecorded, "anchored": False})
        return 1 if report.problems else 0
    for problem in report.problems:
        click.echo(f"DAMAGED: {problem}")
    if not report.problems:
        click.echo(f"ok: {report.lines} lines, each in its place")
    if report.unrecorded:
        click.echo(
            f"note: {report.unrecorded} lines are, or once were, newer than the recorded head: a node runs, or was"
            " killed, or somebody appended them"
        )
    click.echo(
        "note: without an anchor outside this machine, a rewriting of the whole log by the node's own user"
        " cannot be detected"
    )
    return 1 if report.problems else 0


def _directory(invocation: Invocation) -> Path:
    directory: Path = invocation.home.audit
    if not directory.is_dir():
        raise NotFoundError(f"{directory}: there is no audit log; has a node run on this home?")
    return directory


def _print(line: bytes, as_json: bool) -> None:
    text = line.decode("utf-8", "replace").rstrip("\n")
    if as_json:
        click.echo(text)
        return
    try:
        body: dict[str, Any] = json.loads(text)
    except ValueError:
        click.echo(f"(damaged) {printable(text)}")
        return
    first = [str(body.get(key, "-")) for key in ("time", "surface", "peer", "action")]
    what = body.get("outcome") or body.get("phase") or ""
    rest = [f"{k}={quote(body[k])}" for k in SHOWN if body.get(k)]
    click.echo(printable("  ".join([*first, str(what), *rest])))


def _follow(path: Path, as_json: bool) -> None:
    """Print what is appended, across a file that is set aside, until interrupted."""
    while not path.exists():
        time.sleep(FOLLOW_INTERVAL_S)
    file = path.open("rb")
    file.seek(0, os.SEEK_END)
    while True:
        line = file.readline()
        if line.endswith(b"\n"):
            _print(line, as_json)
            continue
        file.seek(-len(line), os.SEEK_CUR)  # half a line: not yet
        if path.exists() and path.stat().st_ino != os.fstat(file.fileno()).st_ino:
            file.close()
            file = path.open("rb")
            continue
        time.sleep(FOLLOW_INTERVAL_S)
