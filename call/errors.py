"""How calls fail, and what goes over the wire then.

A call ends with its output or with one :class:`CallError`, wherever it failed: at the access decision, in the handler,
on the way. `code` is one of `PROTOCOL_CODES` or a domain code that the operation declares.
"""

from typing import Any, Final

from alknet.errors import AlknetError, RemoteError

__all__ = ["PROTOCOL_CODES", "CallError", "FrameError", "HelloError", "never_sent", "unknown_operation"]

PROTOCOL_CODES: Final = {
    # code: (whether another try may help, what a command exits with)
    "NOT_FOUND": (False, 4),
    "FORBIDDEN": (False, 3),
    "INVALID_INPUT": (False, 6),
    "INVALID_OPERATION_TYPE": (False, 6),
    "INTERNAL": (False, 1),
    "TIMEOUT": (True, 5),
    "UNAVAILABLE": (True, 5),
    "RESOURCE_EXHAUSTED": (True, 5),
}
"""What the protocol itself answers; every other code is a domain code, declared by its operation."""


class CallError(AlknetError):
    """A call failed: the protocol's own codes, and the domain codes that handlers raise with it.

    `details` is a JSON value: for INVALID_INPUT a list of ``{"path", "message"}``, for a domain code what the operation
    declared. `retryable` says that the same call may succeed later.
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        details: Any = None,
        retryable: bool | None = None,
        denial_id: str | None = None,
        hint: str = "",
    ) -> None:
        super().__init__(message, hint=hint)
        by_default, self.exit_code = PROTOCOL_CODES.get(code, (False, 1))
        self.code = code
        self.details = details
        self.retryable = by_default if retryable is None else retryable
        self.denial_id = denial_id
        self.request_id: str | None = None
        """Under which the audit log has it, where it does: for doors that tell their callers."""
        self.was_sent = True
        """Whether the other side can have got the call at all."""


def never_sent(message: str) -> CallError:
    """The call did not leave this side, and so nothing of it can have run."""
    error = CallError("UNAVAILABLE", message)
    error.was_sent = False
    return error


def unknown_operation(name: str) -> CallError:
    """There is no such operation. The details tell it from what a handler did not find: no handler can say this."""
    return CallError("NOT_FOUND", f"operation not found: {name}", details={"operation": name})


class FrameError(RemoteError):
    """The other side sent what is no frame, or one above a cap: its stream is of no further use."""


class HelloError(RemoteError):
    """The other side did not prove who it is, or does not speak this protocol; nothing was sent to it."""

    exit_code = 5
