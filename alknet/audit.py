"""The audit log: JSON lines, each holding the hash of the line before it.

A line says what was attempted, by whom, and what was decided; an allowed act has an *intent* line before it
and an *outcome* line after it. Because each line carries the BLAKE3 hash of the one before (`prev`), a line that
is changed, removed, inserted or moved breaks the chain; the sequence number and hash of the last line are also
kept in the node's state, so that a cut-off tail shows. What it cannot show, and `verify` says so: a daemon user
that rewrites the whole log and the state together.

A line is in the kernel's hands when `write` returns, or before the event loop's next round when it was to be written
soon: it survives a killed process, not a power cut.
"""

import asyncio
import contextlib
import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Protocol

from blake3 import blake3

from alknet.clock import Clock
from alknet.errors import AuditError
from alknet.state import AuditHead, StateStore

__all__ = [
    "GENESIS",
    "NOTHING",
    "RESUMED",
    "STOPPED",
    "UNRECORDED",
    "AuditFile",
    "AuditSink",
    "Facts",
    "MemoryAudit",
    "audit_files",
    "line_hash",
    "links_of",
]

log = logging.getLogger("alknet.audit")

GENESIS: Final = "0" * 64
"""`prev` of the first line."""
RESUMED: Final = b'"action":"audit/resume"'
UNRECORDED: Final = b'"action":"audit/unrecorded"'
STOPPED: Final = b'"action":"node/stop"'
MAX_LINE_BYTES: Final = 16 * 1024
MAX_VALUE_BYTES: Final = 1024
"""A text in a line is cut so that it takes about so many bytes there; the cut is marked."""
MAX_FILE_BYTES: Final = 64 * 1024 * 1024
"""A file that reaches this is set aside under the number of its last line, and a new one begun."""
SHORT_CHARS: Final = MAX_VALUE_BYTES // 12
"""A text of so many characters takes no more than `MAX_VALUE_BYTES`, whatever they are."""
HEAD_DELAY_S: Final = 0.05
"""The newest line reaches the state store at most this much later, so that a burst costs one write."""

_ENCODER: Final = json.JSONEncoder(separators=(",", ":"))
_quoted: Final = json.encoder.encode_basestring_ascii

Record = Mapping[str, Any]


class Facts(dict[str, Any]):
    """What many lines have in common. Nothing in it changes: a log keeps in `text` how it writes them."""

    text: str | None = None


NOTHING: Final[Record] = MappingProxyType({})


class AuditSink(Protocol):
    """Where audit records go."""

    def write(self, record: Record, *, more: Record = NOTHING, soon: bool = False) -> None:
        """Append one record, and `more`, which has other keys; raises `AuditError` and leaves the log as it was when
        that fails.

        With `soon` it may be kept for the rest of this round of the event loop and be written with others; whatever is
        begun in a later round comes after it all the same. A failure is then found, and logged, only there.
        """

    def close(self) -> None:
        """Record the end and give the files back; idempotent."""


class MemoryAudit:
    """Keeps the records in a list; for tests and for embedding. Set `failing` to refuse them."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.failing = False

    def write(self, record: Record, *, more: Record = NOTHING, soon: bool = False) -> None:
        if self.failing:
            raise AuditError("this audit sink was told to fail")
        self.records.append({**record, **more})

    def close(self) -> None:
        pass


def line_hash(line: bytes) -> str:
    """The hash that the next line carries; `line` without its newline."""
    return blake3(line).hexdigest()


def audit_files(directory: Path) -> list[Path]:
    """The log's files, oldest first."""
    aside = sorted(directory.glob("audit-*.jsonl"))
    current = directory / "audit.jsonl"
    return [*aside, current] if current.exists() else aside


class AuditFile:
    """The log in a directory; one node at a time writes it.

    `loop` is the event loop that it belongs to; without one every line is written, and the state store told, at once.
    """

    def __init__(
        self,
        directory: Path,
        state: StateStore,
        clock: Clock,
        *,
        loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self._state = state
        self._clock = clock
        self._loop = loop
        self._head_due = False
        self._soon: list[bytes] = []
        self._clock_shows = (-1, "")
        self._path = directory / "audit.jsonl"
        self._fd = -1
        try:
            directory.mkdir(mode=0o700, exist_ok=True)
            self._open()
            self._seq, self._prev = self._written = self._resume(directory)
        except OSError as exc:
            raise AuditError(f"{self._path}: the audit log cannot be opened: {exc.strerror}") from exc
        # The next line moves the recorded head on, so only a line can tell for good what was found now.
        head = state.audit_head()
        if self._seq and head is None:
            log.error("the node's state knows of no audit line: state.db was removed or replaced")
            self.write({"surface": "audit", "action": "audit/resume", "outcome": "the state knew of no line"})
        elif head is not None and self._seq > head[0]:
            count = self._seq - head[0]
            self.write({"surface": "audit", "action": "audit/unrecorded", "outcome": "found", "count": count})

    def write(self, record: Record, *, more: Record = NOTHING, soon: bool = False) -> None:
        if self._fd < 0:
            raise AuditError("the audit log is closed")
        if not soon:
            self._write_soon()  # if that fails, it takes the chain back
        seq = self._seq + 1
        if type(record) is Facts:
            if record.text is None:
                record.text = _pairs(record)
            text = record.text + _pairs(more)
        else:
            text = _pairs(record) + _pairs(more)
        line = f'{{"seq":{seq},"time":"{self._time()}"{text},"prev":"{self._prev}"}}'.encode("ascii")
        if len(line) > MAX_LINE_BYTES:
            raise AuditError(f"an audit line of {len(line)} bytes is over the limit of {MAX_LINE_BYTES}")
        if soon and self._loop is not None:
            if not self._soon:
                self._loop.call_soon(self._write_soon)
            self._soon.append(line)
            self._seq, self._prev = seq, line_hash(line)
            return
        self._append(line + b"\n")
        self._seq, self._prev = self._written = seq, line_hash(line)
        self._record_head()

    def _write_soon(self) -> None:
        """Write what was kept; if that fails it is lost, and the chain goes on where it was."""
        lines, self._soon = self._soon, []
        if not lines or self._fd < 0:
            return
        try:
            self._append(b"\n".join(lines) + b"\n")
        except AuditError as exc:
            self._seq, self._prev = self._written
            log.error("%d audit lines lost: %s", len(lines), exc)
            return
        self._written = self._seq, self._prev
        self._record_head()

    def _time(self) -> str:
        """Now, to the millisecond; many lines are written in the same one."""
        now_ms = int(self._clock.wall() * 1000)
        if self._clock_shows[0] != now_ms:
            second = datetime.fromtimestamp(now_ms // 1000, UTC).isoformat().removesuffix("+00:00")
            self._clock_shows = now_ms, f"{second}.{now_ms % 1000:03d}Z"
        return self._clock_shows[1]

    def close(self) -> None:
        if self._fd >= 0:
            self._write_soon()
            self._flush_head()
            os.close(self._fd)
            self._fd = -1

    def _open(self) -> None:
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        self._fd = os.open(self._path, flags, 0o600)
        self._size = os.fstat(self._fd).st_size

    def _append(self, data: bytes) -> None:
        if self._size >= MAX_FILE_BYTES:
            self._rotate()
        try:
            written = os.write(self._fd, data)
            if written != len(data):
                raise OSError(f"only {written} of {len(data)} bytes were taken: is the disk full?")
        except OSError as exc:
            # Take back what may have got there, or the next line would be glued to half a line.
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, self._size)
            raise AuditError(f"{self._path}: cannot be written: {exc.strerror or exc}") from exc
        self._size += len(data)

    def _rotate(self) -> None:
        full = self._fd
        try:
            # Absent when the try before this one got no further; `_fd` still is the full file then.
            with contextlib.suppress(FileNotFoundError):
                self._path.rename(self._path.with_name(f"audit-{self._written[0]:012d}.jsonl"))
            self._open()
        except OSError as exc:
            raise AuditError(f"{self._path}: cannot be set aside: {exc.strerror}") from exc
        os.close(full)

    def _resume(self, directory: Path) -> AuditHead:
        """Where the chain goes on: after the last whole line, or after the recorded head if that is further.

        Half a line (the machine lost power) is cut off. A log that is shorter than the recorded head, or that
        ends in another line than the recorded one, stays visibly so: the next line continues behind the head, and
        that it does not fit is there for `verify` to find.
        """
        found: AuditHead = (0, GENESIS)
        torn = 0
        for path in reversed(audit_files(directory)):
            tail = _last_line(path)
            if path == self._path and tail.torn > MAX_LINE_BYTES:
                log.error("%s: ends in something that is no audit line; see 'alknet audit verify'", path)
                self._size += os.write(self._fd, b"\n")  # kept, but not glued to the next line
            elif path == self._path and tail.torn:
                torn = tail.torn
                os.ftruncate(self._fd, self._size - torn)
                self._size -= torn
            if tail.line:
                links = links_of(tail.line)
                if links is None:
                    log.error("%s: the last line is damaged; see 'alknet audit verify'", path)
                    continue
                found = (links[0], line_hash(tail.line))
                break
        head = self._state.audit_head()
        if head is not None and head[0] > found[0]:
            log.error(
                "the audit log ends at line %d but %d were written; see 'alknet audit verify'",
                found[0],
                head[0],
            )
            found = head
        elif head is not None and head[0] == found[0] and head != found:
            log.error("line %d of the audit log is not the one that was written; see 'alknet audit verify'", head[0])
            found = head
        if torn:
            log.warning("the audit log ended in half a line of %d bytes, which was cut off", torn)
        return found

    def _record_head(self) -> None:
        if self._loop is None:
            self._flush_head()
        elif not self._head_due:
            self._head_due = True
            self._loop.call_later(HEAD_DELAY_S, self._flush_head)

    def _flush_head(self) -> None:
        self._head_due = False
        if self._fd >= 0 and self._written[0]:
            try:
                self._state.set_audit_head(self._written)
            except Exception as exc:  # any database's error: the line itself is written, so go on
                log.error("the head of the audit log could not be recorded: %s", exc)


@dataclass(frozen=True, slots=True)
class _Tail:
    line: bytes
    torn: int


def _last_line(path: Path) -> _Tail:
    """The last whole line of a file, and how many bytes of half a line follow it."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 2 * MAX_LINE_BYTES))
        data = file.read()
    whole, newline, rest = data.rpartition(b"\n")
    return _Tail(whole.rpartition(b"\n")[2], len(rest)) if newline else _Tail(b"", len(rest))


def links_of(line: bytes) -> tuple[int, str] | None:
    """`seq` and `prev` of a line; None for what is no audit line, whatever else it is."""
    try:
        body = json.loads(line)
        return int(body["seq"]), str(body["prev"])
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None


def _pairs(record: Record) -> str:
    """``,"key":value`` for each value that there is: a part of a line."""
    parts = []
    for key, value in record.items():
        kind = type(value)
        if kind is str:
            parts.append(f',"{key}":{_quoted(value if len(value) <= SHORT_CHARS else _clip(value))}')
        elif kind is int or kind is float:
            parts.append(f',"{key}":{value!r}')
        elif value is not None:
            parts.append(f',"{key}":{_ENCODER.encode(value)}')
    return "".join(parts)


def _clip(value: str) -> str:
    if (size := _encoded_size(value)) <= MAX_VALUE_BYTES:
        return value
    kept = value
    while size > MAX_VALUE_BYTES:
        kept = kept[: max(len(kept) * MAX_VALUE_BYTES // size, 1)] if len(kept) > 1 else ""
        size = _encoded_size(kept)
    return f"{kept}… ({len(value)} characters)"


def _encoded_size(text: str) -> int:
    """The bytes that `text` takes in a line, without its quotes."""
    return len(json.dumps(text)) - 2
