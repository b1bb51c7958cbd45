"""How operations on files fail, in words for callers: never with a path of the machine in them."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from alknet.call.operations import OperationError
from alknet.errors import InvalidInputError, NotFoundError, UnavailableError

__all__ = ["Conflict", "Found", "NotPermitted", "NotStored", "TooLarge", "WrongKind", "in_words"]


@dataclass(frozen=True, slots=True)
class Found:
    """What is there instead: the digest of the file, or how much of an unfinished upload has arrived."""

    digest: str | None = None
    offset: int | None = None


class Conflict(OperationError):
    """What is there is not what the caller said it would be: it exists, has changed, or is not empty."""

    code = "CONFLICT"
    http_status = 409
    details: Found


class WrongKind(OperationError):
    """It is of another kind: a directory where a file is needed, a symbolic link, a device."""

    code = "WRONG_KIND"
    http_status = 422


class TooLarge(OperationError):
    """It is more than one call deals with."""

    code = "TOO_LARGE"
    http_status = 413


class NotPermitted(OperationError):
    """The operating system does not let the node's user do that."""

    code = "NOT_PERMITTED"
    http_status = 403


class NotStored(OperationError):
    """It could not be stored: the disk is full, or a quota is used up. What was there before is unchanged."""

    code = "NOT_STORED"
    http_status = 507


_NOT_PERMITTED: Final = {errno.EACCES, errno.EPERM, errno.EROFS, errno.EBUSY, errno.ETXTBSY}
_NOT_STORED: Final = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EMLINK}
_WRONG_KIND: Final = {errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENXIO}
_WRONG_NAME: Final = {errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ}
_SCARCE: Final = {errno.EAGAIN, errno.EMFILE, errno.ENFILE, errno.ENOMEM}  # EAGAIN: somebody holds a lease on it


@contextmanager
def in_words(path: str) -> Iterator[None]:
    """Errors of the operating system as what callers are told about `path`, as they named it."""
    try:
        yield
    except FileNotFoundError:
        raise NotFoundError(f"there is no {path!r}") from None
    except FileExistsError:
        raise Conflict(f"{path!r} exists already") from None
    except OSError as exc:
        why = f"{path!r}: {(exc.strerror or 'failed').lower()}"
        if exc.errno in _NOT_PERMITTED:
            raise NotPermitted(why) from None
        if exc.errno in _NOT_STORED:
            raise NotStored(why) from None
        if exc.errno in _WRONG_KIND:
            raise WrongKind(why) from None
        if exc.errno in _WRONG_NAME:
            raise InvalidInputError(f"path: {why}") from None
        if exc.errno == errno.ENOTEMPTY:
            raise Conflict(why) from None
        if exc.errno in _SCARCE:
            raise UnavailableError(why) from None
        raise
