"""Every error that alknet raises on purpose, sorted by whose fault it was.

::

    AlknetError
    ├── LocalError            this side: a mistake in a call, a file, the machine's state
    │   ├── UsageError        the command line or a function call is wrong
    │   ├── ConfigError       a configuration file is wrong; names file, line and key
    │   ├── StartupError      the node cannot start: port taken, home not writable
    │   └── AuditError        the audit log cannot be written
    ├── RemoteError           the other side broke the protocol
    │   └── InvalidInputError what it sent has the wrong form
    ├── ClosedError           this side closed it; using it further is a mistake
    ├── BrokenError           the other side or the network ended it
    ├── DeniedError           the access decision said no
    ├── NotFoundError         there is no such thing
    └── UnavailableError      not now: unreachable, draining, timed out

`code` is what goes over a wire, `exit_code` what a command exits with. An error of a foreign library is
translated once, at the edge to that library, with the cause kept (``raise … from``).
"""

__all__ = [
    "AlknetError",
    "AuditError",
    "BrokenError",
    "ClosedError",
    "ConfigError",
    "DeniedError",
    "InvalidInputError",
    "LocalError",
    "NotFoundError",
    "RemoteError",
    "StartupError",
    "UnavailableError",
    "UsageError",
]


class AlknetError(Exception):
    """The root. `hint` says what to do next, in one line; it may be empty."""

    code = "INTERNAL"
    exit_code = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class LocalError(AlknetError):
    """This side made the mistake, or its machine is not in the state that was needed."""


class UsageError(LocalError):
    """The command line, or a call of the Python API, makes no sense."""

    code = "INVALID_INPUT"
    exit_code = 2


class ConfigError(LocalError):
    """A configuration file is wrong. The message names the file, and the line and key where known."""

    exit_code = 7


class StartupError(LocalError):
    """The node cannot start or a home cannot be made."""

    exit_code = 7


class AuditError(LocalError):
    """The audit log could not be written or read."""


class RemoteError(AlknetError):
    """The other side broke the protocol."""


class InvalidInputError(RemoteError):
    """What the other side sent is well framed but has the wrong form."""

    code = "INVALID_INPUT"
    exit_code = 6


class ClosedError(AlknetError):
    """This side closed the resource before it was used again."""

    code = "UNAVAILABLE"
    exit_code = 5


class BrokenError(AlknetError):
    """The other side, or the network, ended the connection or stream."""

    code = "UNAVAILABLE"
    exit_code = 5


class DeniedError(AlknetError):
    """The access decision said no. `denial_id` finds the decision in the audit log; `rule` is what decided."""

    code = "FORBIDDEN"
    exit_code = 3

    def __init__(self, message: str, *, denial_id: str | None = None, rule: str | None = None, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.denial_id = denial_id
        self.rule = rule


class NotFoundError(AlknetError):
    """There is no such peer, session, operation or file."""

    code = "NOT_FOUND"
    exit_code = 4


class UnavailableError(AlknetError):
    """Not now: the node is not running, cannot be reached, is draining or did not answer in time."""

    code = "UNAVAILABLE"
    exit_code = 5
