"""Reading the audit log: does it hang together, from its first line to the recorded head?"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from alknet.audit import GENESIS, MAX_LINE_BYTES, RESUMED, STOPPED, UNRECORDED, audit_files, line_hash, links_of
from alknet.state import AuditHead

__all__ = ["Report", "read_lines", "verify"]

_COUNT: Final = re.compile(rb'"count":(\d{1,9})')


@dataclass(frozen=True, slots=True)
class Report:
    """What `verify` found. `problems` is empty when every line is in its place."""

    lines: int
    problems: tuple[str, ...]
    unrecorded: int = 0
    """Lines behind the recorded head: written in the last moment of a run that was killed, or just now."""


def read_lines(directory: Path) -> Iterator[tuple[Path, int, bytes]]:
    """(file, line number in it, line without newline) of the whole log, oldest first, bounded in memory."""
    for path in audit_files(directory):
        with path.open("rb") as file:
            number = 0
            while line := file.readline(MAX_LINE_BYTES + 1):
                number += 1
                yield path, number, line


def verify(directory: Path, head: AuditHead | None, *, max_problems: int = 20) -> Report:
    """Follow the chain from the first line to the recorded head and name what does not fit."""
    problems: list[str] = []
    seq, prev, count, at_head, ended = 0, GENESIS, 0, None, False
    unrecorded = 0
    for path, number, raw in read_lines(directory):
        count += 1
        where = f"{path.name} line {number}"
        line = raw.removesuffix(b"\n")
        if line is raw:
            problems.append(f"{where}: is cut short or too long")
        links = links_of(line)
        if links is None:
            problems.append(f"{where}: is not an audit line")
        line_seq, line_prev = links or (seq + 1, "")
        if line_seq != seq + 1:
            gap = "lines are missing" if line_seq > seq + 1 else "it is out of order or doubled"
            problems.append(f"{where}: has number {line_seq} where {seq + 1} was expected: {gap}")
        elif links and line_prev != prev:
            problems.append(f"{where}: does not fit the line before it: one of the two was changed")
        seq, prev = line_seq, line_hash(line)
        if UNRECORDED in line and (found := _COUNT.search(line)):
            unrecorded += int(found[1])
        if RESUMED in line:
            problems.append(f"{where}: the node's state had been removed or replaced before this line was written")
        if head is not None and seq == head[0]:
            at_head, ended = prev, STOPPED in line
        if len(problems) >= max_problems:
            problems.append("(more may follow)")
            break
    if head is not None and len(problems) < max_problems:
        if at_head is None:
            problems.append(f"the log ends at line {seq}, but {head[0]} were written: its end was cut off")
        elif at_head != head[1]:
            problems.append(f"line {head[0]} is not the one that was recorded: it was changed")
        elif ended and seq > head[0]:
            problems.append(f"{seq - head[0]} lines stand behind the end of the last run: no node wrote them")
    elif head is None and count:
        problems.append("the node's state knows of no audit line: state.db was removed or replaced")
    if head is not None:
        unrecorded += max(0, seq - head[0])
    return Report(count, tuple(problems), unrecorded)
