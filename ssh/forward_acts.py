"""One forward as an act: what was allowed, what it has open, and how the client hears that it is not made."""

import errno
import os
import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import asyncssh

from alknet.errors import AlknetError
from alknet.gate import Act
from alknet.nofile import is_scarce
from alknet.ssh.pump import Pump

__all__ = ["Forward", "NotForwarded", "check_descriptors", "reported"]


class NotForwarded(Exception):
    """A forward that is not made, in words for the client."""

    def __init__(self, words: str, *, code: int = asyncssh.OPEN_ADMINISTRATIVELY_PROHIBITED) -> None:
        super().__init__(words.encode("utf-8", "backslashreplace").decode())  # a path may be no text
        self.code = code


class Forward:
    """One act that goes on: a connection from here, or a listener with the connections that it brought."""

    def __init__(self, act: Act, action: str, *resources: str | None) -> None:
        self.act = act
        self.action = action
        self.resources = resources
        """Where it goes to, or listens: all of it has to stay allowed."""
        self.pumps: set[Pump] = set()
        self.stop_listening: Callable[[], None] = lambda: None
        self.path = ""
        """Of a socket that the client had made here."""

    def narrow(self, *resources: str) -> None:
        """It turned out to be this."""
        if resources:
            self.resources = resources
            self.act.narrow(resources[0])

    def end(self, outcome: str, **facts: str | None) -> None:
        self.act.done(outcome, **facts)  # before what its connections would say of it
        self.stop_listening()
        for pump in tuple(self.pumps):
            pump.close()


def check_descriptors(sock: socket.socket) -> None:
    """Raises `OSError` where `sock`, just made for a client, took one of the descriptors that the node keeps."""
    if is_scarce(sock.fileno()):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


@contextmanager
def reported(forwards: Iterable[Forward]) -> Iterator[None]:
    """Tell the audit log when what was allowed could not be done, and the client why: what fails raises
    `NotForwarded`. `forwards` may be filled meanwhile."""
    try:
        yield
    except (AlknetError, OSError) as exc:
        number = exc.errno if isinstance(exc, OSError) else None
        outcome = errno.errorcode.get(number or 0, type(exc).__name__)  # says nothing of the target
        for forward in forwards:
            forward.act.done(f"failed: {outcome}")
        words = os.strerror(number) if number else str(exc) or outcome
        raise NotForwarded(words, code=asyncssh.OPEN_CONNECT_FAILED) from exc
    except BaseException as exc:
        for forward in forwards:
            forward.act.done("refused" if isinstance(exc, NotForwarded) else "hung up")
        raise
