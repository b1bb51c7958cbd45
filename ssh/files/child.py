"""The process of one session: ``python -I -m alknet.ssh.files.child CONTROL IDS``.

The client's bytes are on stdin and stdout; the descriptor CONTROL leads to the node, which says first what is served,
and then answers questions (:mod:`alknet.ssh.files.questions`). Everything is loaded before the process becomes the
user that IDS say (:mod:`alknet.become`), and nothing is read from outside before that.

It ends with 0, with 3 if the node refused what scp came for, and else with 1 and a line on stderr.
"""

import os
import select
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final

from alknet.become import become
from alknet.errors import AlknetError, BrokenError
from alknet.guard import Barred
from alknet.ssh.files.confined import Confined
from alknet.ssh.files.extensions import EXTENSIONS
from alknet.ssh.files.failures import words_of
from alknet.ssh.files.packets import Input
from alknet.ssh.files.questions import Questions
from alknet.ssh.files.scp import serve_scp
from alknet.ssh.files.server import Server

__all__ = ["OUTPUT_BYTES", "Notes", "PipeOutput", "main"]

OUTPUT_BYTES: Final = 512 * 1024
"""Answers that are put together before they are written."""
UMASK: Final = 0o022
MAX_NOTES: Final = 20
"""Lines that a session gets on stderr: some clients never read it."""
MAX_NOTE_BYTES: Final = 500
EXIT_FAILED: Final = 1
EXIT_DENIED: Final = 3


class PipeOutput:
    """Answers on their way to a descriptor: several are written at once, into one piece of memory."""

    def __init__(self, fd: int, size: int = OUTPUT_BYTES) -> None:
        self._fd = fd
        self._view = memoryview(bytearray(size))
        self._end = 0

    def send(self, packet: bytes) -> None:
        """Larger ones than there is room for go by themselves."""
        if len(packet) > len(self._view):
            self.flush()
            self._write(memoryview(packet))
            return
        self.space(len(packet))[:] = packet
        self._end += len(packet)

    def space(self, size: int) -> memoryview:
        if self._end + size > len(self._view):
            self.flush()
        return self._view[self._end : self._end + size]

    def added(self, count: int) -> None:
        self._end += count

    def flush(self) -> None:
        """Wait until everything is written; raises `BrokenError`."""
        end, self._end = self._end, 0
        self._write(self._view[:end])

    def _write(self, data: memoryview) -> None:
        try:
            while data:
                data = data[os.write(self._fd, data) :]
        except OSError as exc:
            raise BrokenError("the client has gone") from exc


class Notes:
    """Lines for whoever sits at the client. They get lost rather than be waited for."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._left = MAX_NOTES

    def __call__(self, words: str) -> None:
        line = "".join(c if c.isprintable() else "?" for c in words).encode("utf-8", "replace")[:MAX_NOTE_BYTES]
        if self._left and select.select([], [self._fd], [], 0)[1]:
            self._left -= 1
            try:
                os.write(self._fd, b"alknet: " + line + b"\n")
            except OSError:
                self._left = 0


def main(arguments: Sequence[str], *, stdin: int = 0, stdout: int = 1, stderr: int = 2) -> int:
    """Serve one session; `arguments` as in the command line. The exit code."""
    note = Notes(stderr)
    try:
        become(arguments[1:])
        os.umask(UMASK)
        questions = Questions(int(arguments[0]))
        return _serve(questions, note, stdin, stdout)
    except BrokenError:  # there is nobody left to hear of it
        return EXIT_FAILED
    except (OSError, AlknetError, Barred) as exc:
        note(words_of(exc))
        return EXIT_FAILED
    except Exception as exc:  # a mistake of ours; a traceback would tell the client of the machine's directories
        note(f"internal error: {_where(exc)}")
        return EXIT_FAILED


def _where(exc: BaseException) -> str:
    """Where it was raised."""
    at = exc.__traceback__
    while at is not None and at.tb_next is not None:
        at = at.tb_next
    place = "" if at is None else f" in {os.path.basename(at.tb_frame.f_code.co_filename)}, line {at.tb_lineno}"
    return type(exc).__name__ + place


def _serve(questions: Questions, note: Notes, stdin: int, stdout: int) -> int:
    orders = questions.receive()
    files = _files(orders)
    if orders.get("mode") == "scp":
        try:
            failures = serve_scp(str(orders["command"]), files, questions, note, stdin=stdin, stdout=stdout)
        finally:
            questions.flush()
        return EXIT_DENIED if questions.denials else EXIT_FAILED if failures else 0
    _serve_sftp(files, questions, note, stdin, stdout)
    return 0


def _files(orders: dict[str, Any]) -> Confined:
    try:
        return Confined(orders["root"], orders.get("start") or "/", orders.get("protected") or ())
    except OSError as exc:
        hint = str(orders.get("hint") or "")
        words = f"the directory that is served cannot be opened: {words_of(exc)}"
        raise OSError(exc.errno, f"{words}; {hint}" if hint else words) from exc


def _serve_sftp(files: Confined, questions: Questions, note: Notes, stdin: int, stdout: int) -> None:
    """Until stdin ends. Requests are answered as long as there are whole ones, and what was answered is written before
    more is read: who does not take answers is not read from."""
    arrived, output = Input(), PipeOutput(stdout)
    server = Server(files, questions, output, extensions=EXTENSIONS, note=note)
    try:
        while count := os.readv(stdin, [arrived.space()]):
            arrived.added(count)
            while (packet := arrived.next_packet()) is not None:
                server.answer(packet)
            output.flush()
            questions.flush()
    finally:
        server.close()
        with suppress(BrokenError):
            questions.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
