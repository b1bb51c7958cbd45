"""How requests fail, as a status of the protocol and in words: never with a path of the machine in them."""

import errno
from typing import Final

from alknet.errors import DeniedError, InvalidInputError
from alknet.ssh.files import packets as wire

__all__ = ["FAILURES", "code_of", "words_of"]

FAILURES: Final = (OSError, DeniedError, InvalidInputError)
"""Beside :class:`~alknet.guard.Barred`, which the node hears of first."""

_CODES: Final = {
    errno.ENOENT: wire.NO_SUCH_FILE,
    errno.ENOTDIR: wire.NO_SUCH_FILE,
    errno.ELOOP: wire.NO_SUCH_FILE,
    errno.EACCES: wire.PERMISSION_DENIED,
    errno.EPERM: wire.PERMISSION_DENIED,
    errno.EROFS: wire.PERMISSION_DENIED,
    errno.ENOSYS: wire.OP_UNSUPPORTED,
    errno.EOPNOTSUPP: wire.OP_UNSUPPORTED,
}


def code_of(exc: BaseException) -> int:
    """The status."""
    if isinstance(exc, EOFError):
        return wire.EOF
    if isinstance(exc, DeniedError):
        return wire.PERMISSION_DENIED
    if isinstance(exc, InvalidInputError):
        return wire.BAD_MESSAGE
    return _CODES.get(exc.errno or 0, wire.FAILURE) if isinstance(exc, OSError) else wire.FAILURE


def words_of(exc: BaseException) -> str:
    """What went wrong."""
    if isinstance(exc, OSError):
        return (exc.strerror or "failed").lower()
    return "end of file" if isinstance(exc, EOFError) else str(exc) or "failed"
