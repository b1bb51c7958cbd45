"""One side of scp's older protocol: lines, lengths and acknowledgements, and what both directions do about errors."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, TypeVar

from alknet.errors import BrokenError, DeniedError, InvalidInputError
from alknet.guard import Barred
from alknet.ssh.files.confined import Confined
from alknet.ssh.files.failures import FAILURES, words_of
from alknet.ssh.files.questions import READ, Questions

__all__ = ["MAX_DEPTH", "PIECE_BYTES", "Exchange", "Fatal"]

MAX_LINE_BYTES: Final = 8 * 1024
MAX_DEPTH: Final = 128
"""Directories within each other."""
PIECE_BYTES: Final = 256 * 1024
OK: Final = b"\0"
WARNING: Final = b"\1"
FATAL: Final = b"\2"

Result = TypeVar("Result")


class Fatal(InvalidInputError):
    """The other side broke the protocol, or has given up: nothing that follows makes sense."""


class Exchange:
    """Bytes from and to the client, and the files that they are about. `failures` counts what went wrong."""

    def __init__(
        self, files: Confined, questions: Questions, note: Callable[[str], None], *, stdin: int, stdout: int
    ) -> None:
        self.files = files
        self.questions = questions
        self.failures = 0
        self._note = note
        self._stdin = stdin
        self._stdout = stdout
        self._buffer = bytearray(PIECE_BYTES)
        self._view = memoryview(self._buffer)
        self._start = 0
        self._end = 0

    # --- bytes --------------------------------------------------------------------------------------------------------

    def receive(self, most: int) -> memoryview:
        """Between one and `most` bytes, valid until the next call; none when the client has ended its side."""
        if self._start == self._end:
            self._start, self._end = 0, os.readv(self._stdin, [self._view])
        begin = self._start
        self._start = min(self._end, begin + most)
        return self._view[begin : self._start]

    def receive_line(self, first: bytes = b"") -> bytes:
        """Up to a newline, which is left out; raises `Fatal`."""
        line = bytearray(first)
        while True:
            data = self.receive(1)
            if not data:
                raise Fatal("the line is not complete")
            if data[0] == 10:
                return bytes(line)
            line += data
            if len(line) > MAX_LINE_BYTES:
                raise Fatal(f"a line has more than {MAX_LINE_BYTES} bytes")

    def send(self, data: bytes | memoryview) -> None:
        """Wait until everything is written; raises `BrokenError`."""
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[os.write(self._stdout, rest) :]
        except OSError as exc:
            raise BrokenError("the client has gone") from exc

    def acknowledge(self) -> None:
        self.send(OK)

    def complain(self, words: str, *, fatal: bool = False) -> None:
        """Say that something went wrong, and go on."""
        self.failures += 1
        line = "".join(c if c.isprintable() else "?" for c in words).encode("utf-8", "replace")
        self.send((FATAL if fatal else WARNING) + b"scp: " + line[:MAX_LINE_BYTES] + b"\n")

    def was_acknowledged(self) -> bool:
        """What the client says to what it was sent; raises `Fatal` if it gives up, `BrokenError` if it has gone."""
        data = bytes(self.receive(1))
        if not data:
            raise BrokenError("the client has gone")
        if data == OK:
            return True
        self.failures += 1
        self.receive_line()
        if data != WARNING:
            raise Fatal("the client has given up")
        return False

    # --- files --------------------------------------------------------------------------------------------------------

    def reach(self, path: bytes, act: Callable[[], Result]) -> Result:
        """Do something that needs no question; raises `DeniedError` and what else `act` raises."""
        try:
            return act()
        except Barred as exc:
            raise self.questions.barred(exc, READ, self.files.absolute(path)) from None

    @contextmanager
    def allowed(self, action: str, path: bytes) -> Iterator[list[int]]:
        """Ask the node, and tell it how the block that follows ended. What is put into the list counts as bytes."""
        number = self.questions.ask(action, self.files.absolute(path))
        carried: list[int] = []
        try:
            yield carried
        except Barred as exc:
            self.questions.done(number, exc.reason, sum(carried))
            raise self.questions.barred(exc, action, self.files.absolute(path)) from None
        except (*FAILURES, BrokenError) as exc:
            self.questions.done(number, words_of(exc), sum(carried))
            raise
        self.questions.done(number, count=sum(carried))

    @contextmanager
    def complaining(self, path: bytes) -> Iterator[None]:
        """What fails in the block is told to the client, and no more happens about it; but for `Fatal`."""
        try:
            yield
        except Fatal:
            raise
        except FAILURES as exc:
            if isinstance(exc, DeniedError):
                self._note(str(exc))
            self.complain(f"{path.decode('utf-8', 'replace')}: {words_of(exc)}")

    @contextmanager
    def regretting(self, path: bytes) -> Iterator[None]:
        """The same where the client does not wait for an answer: it is told on the side."""
        try:
            yield
        except FAILURES as exc:
            self.failures += 1
            self._note(f"{path.decode('utf-8', 'replace')}: {words_of(exc)}")
