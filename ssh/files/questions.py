"""How the node is asked, and hears what became of it: JSON over a socket, one message each.

The node answers each question before the next one is asked: who is served by this process waits for it. A path is the
one that the client means, below the root, with the bytes that are no UTF-8 as lone surrogates.
"""

import json
import os
from typing import Any, Final

from alknet.errors import BrokenError, DeniedError
from alknet.guard import Barred

__all__ = ["MAX_ENDED", "MAX_MESSAGE_BYTES", "READ", "WRITE", "Questions"]

MAX_MESSAGE_BYTES: Final = 256 * 1024
MAX_ENDED: Final = 64
"""What has ended and was not said yet."""
READ: Final = "read"
WRITE: Final = "write"


class Questions:
    """This end of the socket, a descriptor of the kind ``SOCK_SEQPACKET``. `denials` counts refusals."""

    def __init__(self, fd: int) -> None:
        os.set_blocking(fd, True)
        self._fd = fd
        self._number = 0
        self._ended: list[dict[str, Any]] = []
        self._arrived = bytearray(MAX_MESSAGE_BYTES)
        """Room for a message. To ask the system for it each time takes longer than to read one."""
        self.denials = 0

    def receive(self) -> dict[str, Any]:
        """The next message; raises `BrokenError` when the node has gone, or says what makes no sense."""
        try:
            count = os.readv(self._fd, [self._arrived])
        except OSError as exc:
            raise BrokenError("the node has gone") from exc
        if not count:
            raise BrokenError("the node has gone")
        try:
            message = json.loads(self._arrived[:count])
        except ValueError as exc:
            raise BrokenError("the node sent no JSON") from exc
        if not isinstance(message, dict):
            raise BrokenError("the node sent no object")
        return message

    def ask(self, action: str, path: bytes) -> int:
        """Ask whether `action` on `path` is allowed; returns the number under which it is to be closed by `done`.

        Raises `DeniedError` with the node's words, and `BrokenError`.
        """
        self._number += 1
        self._send({"ask": self._number, "action": action, "path": path.decode("utf-8", "surrogateescape")})
        self._receive_answer()
        return self._number

    def done(self, number: int, outcome: str = "ok", count: int = 0) -> None:
        """Say how what was allowed ended, and how many bytes were carried: with `flush` or the next question."""
        self._ended.append({"done": number, "outcome": outcome, "bytes": count})
        if len(self._ended) >= MAX_ENDED:
            self.flush()

    def flush(self) -> None:
        """Say what ended. The client has its answers before: it need not wait until the node has written that down."""
        ended, self._ended = self._ended, []
        for message in ended:
            self._write(message)

    def barred(self, reason: Barred, action: str, path: bytes) -> DeniedError:
        """Tell the node what was reached for, and what for; the error that its client is to get."""
        self._number += 1
        what = {"action": action, "path": path.decode("utf-8", "surrogateescape")}
        self._send({"barred": self._number, "rule": reason.rule, "reason": reason.reason, **what})
        try:
            self._receive_answer()
        except DeniedError as exc:
            return exc
        return DeniedError(reason.reason)

    def _receive_answer(self) -> None:
        while (message := self.receive()).get("answer") != self._number:
            pass  # an answer to what is no longer asked
        if message.get("allowed") is not True:
            self.denials += 1
            raise DeniedError(str(message.get("words") or "the node does not allow it"))

    def _send(self, message: dict[str, Any]) -> None:
        self.flush()
        self._write(message)

    def _write(self, message: dict[str, Any]) -> None:
        try:
            os.write(self._fd, json.dumps(message).encode())
        except OSError as exc:
            raise BrokenError("the node has gone") from exc
