"""The process that serves files, and a node for it that answers as a test says.

`FileChild` is the whole process over pipes, `Requests` what answers in it; `Answers` stands in for the node. Run as a
program with a root, this file is a server for ``sftp -D``.
"""

import json
import os
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from alknet.errors import BrokenError, DeniedError
from alknet.guard import Barred
from alknet.ssh.files.confined import Confined
from alknet.ssh.files.extensions import EXTENSIONS
from alknet.ssh.files.scp import serve_scp
from alknet.ssh.files.server import Server

__all__ = ["Answers", "FileChild", "Requests", "ScpRun", "field", "fields_of", "packet"]

END_S = 20.0
Decide = Callable[[str, str], bool]
"""Whether an action (read, write) on a path is allowed."""


def _everything(action: str, path: str) -> bool:
    return True


class Answers:
    """What :class:`alknet.ssh.files.questions.Questions` is to the parts of the process; it notes what it is asked."""

    def __init__(self, decide: Decide = _everything) -> None:
        self.decide = decide
        self.asked: list[tuple[str, str]] = []
        self.ended: dict[int, tuple[str, int]] = {}
        self.barred_at: list[tuple[str, str, str]] = []
        """Rule, action and path."""
        self.denials = 0

    def ask(self, action: str, path: bytes) -> int:
        text = path.decode("utf-8", "surrogateescape")
        self.asked.append((action, text))
        if not self.decide(action, text):
            self.denials += 1
            raise DeniedError(f"{action} is not for you (den_1)")
        return len(self.asked)

    def done(self, number: int, outcome: str = "ok", count: int = 0) -> None:
        assert number not in self.ended
        self.ended[number] = outcome, count

    def barred(self, reason: Barred, action: str, path: bytes) -> DeniedError:
        self.denials += 1
        self.barred_at.append((reason.rule, action, path.decode("utf-8", "surrogateescape")))
        return DeniedError(f"{reason.reason} (den_2)")


class Requests:
    """The requests of a client, answered in this process."""

    def __init__(self, root: Path | str, *, protected: tuple[str, ...] = (), decide: Decide = _everything) -> None:
        self.answers = Answers(decide)
        self.notes: list[str] = []
        self._sent = bytearray()
        self._room = bytearray(1 << 19)
        self.files = Confined(str(root), protected=protected)
        questions: Any = self.answers
        self.server = Server(self.files, questions, self, extensions=EXTENSIONS, note=self.notes.append)
        self.server.answer(memoryview(packet(1, struct.pack(">I", 3)))[4:])
        self.take()

    def send(self, data: bytes) -> None:
        self._sent += data

    def space(self, size: int) -> memoryview:
        return memoryview(self._room)[:size]

    def added(self, count: int) -> None:
        self._sent += self._room[:count]

    def take(self) -> list[bytes]:
        """The packets that were answered since the last time, without their lengths."""
        found, data = [], bytes(self._sent)
        self._sent.clear()
        while data:
            (length,) = struct.unpack_from(">I", data)
            found.append(data[4 : 4 + length])
            assert len(found[-1]) == length
            data = data[4 + length :]
        return found

    def __call__(self, kind: int, body: bytes, number: int = 1) -> tuple[int, bytes]:
        """Type of the answer, and what follows the request's number."""
        self.server.answer(memoryview(packet(kind, struct.pack(">I", number) + body))[4:])
        (answer,) = self.take()
        assert struct.unpack(">I", answer[1:5]) == (number,)
        return answer[0], answer[5:]

    def status(self, kind: int, body: bytes) -> tuple[int, str]:
        """The code and the words of an answer that has to be a status."""
        answered, data = self(kind, body)
        assert answered == 101
        return struct.unpack_from(">I", data)[0], fields_of(data[4:])[0].decode()

    def extended(self, name: str, body: bytes) -> tuple[int, bytes]:
        return self(200, field(name) + body)

    def open(self, path: str, flags: int = 1, attributes: bytes = bytes(4)) -> bytes:
        """The handle, with its length in front as requests have it."""
        kind, data = self(3, field(path) + struct.pack(">I", flags) + attributes)
        assert kind == 102
        return data

    def close(self) -> None:
        self.server.close()
        self.files.close()


class ScpRun:
    """One run of the far side of scp for a client that says `sent`; `said` is what it gets."""

    def __init__(
        self, root: Path, command: str, sent: bytes, *, protected: tuple[str, ...] = (), decide: Decide = _everything
    ) -> None:
        self.answers = Answers(decide)
        self.notes: list[str] = []
        self.failures: int | None = None
        """None if the client had gone before the end."""
        files = Confined(str(root), protected=protected)
        stdin, client_out = os.pipe()
        client_in, stdout = os.pipe()
        said = bytearray()
        threads = [
            threading.Thread(target=_write_all, args=(client_out, sent)),
            threading.Thread(target=_read_all, args=(client_in, said)),
        ]
        for thread in threads:
            thread.start()
        questions: Any = self.answers
        try:
            with suppress(BrokenError):
                self.failures = serve_scp(command, files, questions, self.notes.append, stdin=stdin, stdout=stdout)
        finally:
            for fd in (stdin, stdout):
                os.close(fd)
            files.close()
            for thread in threads:
                thread.join()
        self.said = bytes(said)
        assert len(self.answers.ended) + self.answers.denials >= len(self.answers.asked), "what was asked has ended"


def _write_all(fd: int, data: bytes) -> None:
    with suppress(BrokenPipeError), open(fd, "wb") as pipe:
        pipe.write(data)


def _read_all(fd: int, into: bytearray) -> None:
    with open(fd, "rb") as pipe:
        into.extend(pipe.read())


class FileChild:
    """The process, serving `root`. Use as a context manager, at whose end it has ended by itself."""

    def __init__(
        self,
        root: Path | str,
        *,
        command: str | None = None,
        protected: tuple[str, ...] = (),
        start: str = "/",
        decide: Decide = _everything,
        ids: tuple[str, ...] = ("-",),
        inherits: bool = False,
    ) -> None:
        """`inherits`: it has the standard streams of this process, and is not to be talked to here."""
        self.answers = Answers(decide)
        self._node, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            argv = [sys.executable, "-I", "-m", "alknet.ssh.files.child", str(theirs.fileno()), *ids]
            self.process = subprocess.Popen(
                argv,
                stdin=None if inherits else subprocess.PIPE,
                stdout=None if inherits else subprocess.PIPE,
                stderr=None if inherits else subprocess.PIPE,
                pass_fds=[theirs.fileno()],
                env={},
                cwd="/",
            )
        self.order: Mapping[str, Any] = {
            "mode": "sftp" if command is None else "scp",
            "command": command,
            "root": str(root),
            "start": start,
            "protected": list(protected),
            "hint": "set sftp_root",
        }
        self._has_ended = False
        self._thread = threading.Thread(target=self._answer)
        self._thread.start()

    def _answer(self) -> None:
        with self._node:
            self._node.send(json.dumps(self.order).encode())
            while data := self._receive():
                message = json.loads(data)
                if "done" in message:
                    self.answers.done(message["done"], message["outcome"], message["bytes"])
                    continue
                path = message["path"].encode("utf-8", "surrogateescape")
                allowed, words = True, ""
                try:
                    if "ask" in message:
                        self.answers.ask(message["action"], path)
                    else:
                        raise self.answers.barred(Barred(message["rule"], message["reason"]), message["action"], path)
                except DeniedError as exc:
                    allowed, words = False, str(exc)
                number = message.get("ask", message.get("barred"))
                self._node.send(json.dumps({"answer": number, "allowed": allowed, "words": words}).encode())

    def _receive(self) -> bytes:
        try:
            return self._node.recv(1 << 18)
        except ConnectionResetError:
            return b""

    def send(self, data: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(data)
        self.process.stdin.flush()

    def request(self, kind: int, body: bytes, number: int = 1) -> tuple[int, bytes]:
        """Send a request of SFTP; type and body of the answer."""
        self.send(packet(kind, struct.pack(">I", number) + body))
        return self.answer()

    def answer(self) -> tuple[int, bytes]:
        """The next packet: its type, and what follows the request's number."""
        assert self.process.stdout is not None
        (length,) = struct.unpack(">I", self.process.stdout.read(4))
        data = self.process.stdout.read(length)
        return data[0], data[5:]

    def begin(self) -> bytes:
        """Say INIT; what the answer says after the version."""
        self.send(packet(1, struct.pack(">I", 3)))
        return self.answer()[1]

    def end(self) -> tuple[int, str]:
        """Close the client's side; the exit code and what was said on stderr."""
        self._has_ended = True
        try:
            _, errors = self.process.communicate(timeout=END_S)
        finally:
            self.process.kill()
            self._thread.join()
        return self.process.returncode, (errors or b"").decode()

    def __enter__(self) -> "FileChild":
        return self

    def __exit__(self, *_: object) -> None:
        if not self._has_ended:
            self.end()


def packet(kind: int, body: bytes) -> bytes:
    """With its length."""
    return struct.pack(">IB", 1 + len(body), kind) + body


def field(value: bytes | str) -> bytes:
    """A string as the protocol has it."""
    data = os.fsencode(value)
    return struct.pack(">I", len(data)) + data


def fields_of(data: bytes) -> list[bytes]:
    """The strings that `data` consists of."""
    found = []
    while data:
        (length,) = struct.unpack_from(">I", data)
        found.append(data[4 : 4 + length])
        data = data[4 + length :]
    return found


if __name__ == "__main__":
    FileChild(sys.argv[1], inherits=True).process.wait()
