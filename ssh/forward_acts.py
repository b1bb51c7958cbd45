"""One forward as an act: what was allowed, what it has open, and how the client hears that it is not made."""

import errno
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import asyncssh

from alknet.errors import AlknetError
from alknet.gate import Act
from alknet.ssh.pump import Pump

__all__ = ["Forward", "NotForwarded", "reported"]


class NotForwarded(Exception):
    """A forward that is not made, in words for the client."""

    def __init__(self, words: str, *, code: int = asyncssh.OPEN_ADMINISTRATIVELY_PROHIBITED) -> None:
        super().__init__(words)
        self.code = code


class Forward:
    """One act that goes on: a connection from here, or a listener with the connections that it brought."""

    def __init__(self, act: Act, action: str, resource: str | None) -> None:
        self.act = act
        self.action = action
        self.resource = resource
        self.pumps: set[Pump] = set()
        self.stop_listening: Callable[[], None] = lambda: None
        self.path = ""
        """Of a socket that the client had made here."""

    def end(self, outcome: str, **facts: str | None) -> None:
        self.stop_listening()
        for pump in tuple(self.pumps):
            pump.close()
        self.act.done(outcome, **facts)


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
    except BaseException:
        for forward in forwards:
            forward.act.done("hung up")
        raise
