"""The process that serves files, and a node for it that answers as a test says.

`FileChild` is the whole process over pipes; `Answers` stands in for the node where the parts of it are used directly.
"""

import json
import os
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from alknet.errors import DeniedError
from alknet.guard import Barred

__all__ = ["Answers", "FileChild", "fields_of", "field", "packet"]

END_S = 20.0
Decide = Callable[[str, str], bool]
"""Whether an action (read, write) on a path is allowed."""


class Answers:
    """What :class:`alknet.ssh.files.questions.Questions` is to the parts of the process; it notes what it is asked."""

    def __init__(self, decide: Decide = lambda action, path: True) -> None:
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


class FileChild:
    """The process, serving `root`. Use as a context manager, at whose end it has ended by itself."""

    def __init__(
        self,
        root: Path | str,
        *,
        command: str | None = None,
        protected: tuple[str, ...] = (),
        start: str = "/",
        decide: Decide = lambda action, path: True,
        ids: tuple[str, ...] = ("-",),
        limits: Callable[[], None] | None = None,
    ) -> None:
        self.answers = Answers(decide)
        self._node, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            argv = [sys.executable, "-I", "-m", "alknet.ssh.files.child", str(theirs.fileno()), *ids]
            self.process = subprocess.Popen(
                argv,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                pass_fds=[theirs.fileno()],
                preexec_fn=limits,
                env={},
                cwd="/",
            )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.stdin, self.stdout = self.process.stdin, self.process.stdout
        self.order: Mapping[str, Any] = {
            "mode": "sftp" if command is None else "scp",
            "command": command,
            "root": str(root),
            "start": start,
            "protected": list(protected),
            "hint": "set sftp_root",
        }
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
        self.stdin.write(data)
        self.stdin.flush()

    def request(self, kind: int, body: bytes, number: int = 1) -> tuple[int, bytes]:
        """Send a request of SFTP; type and body of the answer."""
        self.send(packet(kind, struct.pack(">I", number) + body))
        return self.answer()

    def answer(self) -> tuple[int, bytes]:
        """The next packet: its type, and what follows the request's number."""
        (length,) = struct.unpack(">I", self.stdout.read(4))
        data = self.stdout.read(length)
        return data[0], data[5:]

    def begin(self) -> bytes:
        """Say INIT; what the answer says after the version."""
        self.send(packet(1, struct.pack(">I", 3)))
        return self.answer()[1]

    def end(self) -> tuple[int, str]:
        """Close the client's side; the exit code and what was said on stderr."""
        try:
            _, errors = self.process.communicate(timeout=END_S)
        finally:
            self.process.kill()
            self._thread.join()
        return self.process.returncode, errors.decode()

    def __enter__(self) -> "FileChild":
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None or self._thread.is_alive():
            self.process.stdin and not self.process.stdin.closed and self.end()
        for stream in (self.stdin, self.stdout, self.process.stderr):
            assert stream is not None
            stream.close()


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
