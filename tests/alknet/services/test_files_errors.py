"""What callers are told of errors of the operating system."""

import errno
import os

import pytest

from alknet.call.operations import OperationError
from alknet.errors import AlknetError, InvalidInputError, NotFoundError, UnavailableError
from alknet.services.files_errors import Conflict, Found, NotPermitted, NotStored, TooLarge, WrongKind, in_words


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ENOENT, NotFoundError),
        (errno.EEXIST, Conflict),
        (errno.ENOTEMPTY, Conflict),
        (errno.EACCES, NotPermitted),
        (errno.EPERM, NotPermitted),
        (errno.EROFS, NotPermitted),
        (errno.EBUSY, NotPermitted),
        (errno.ENOSPC, NotStored),
        (errno.EDQUOT, NotStored),
        (errno.EFBIG, NotStored),
        (errno.ENOTDIR, WrongKind),
        (errno.EISDIR, WrongKind),
        (errno.ELOOP, WrongKind),
        (errno.ENAMETOOLONG, InvalidInputError),
        (errno.EMFILE, UnavailableError),
        (errno.EAGAIN, UnavailableError),
    ],
)
def test_every_error_is_told_under_the_callers_own_name_of_the_file(number: int, kind: type[AlknetError]) -> None:
    with pytest.raises(kind) as caught, in_words("root/file"):
        raise OSError(number, os.strerror(number), "/srv/secret/place/file")
    assert "'root/file'" in str(caught.value)
    assert "secret" not in str(caught.value)


def test_what_nobody_expects_is_no_error_of_the_caller() -> None:
    with pytest.raises(OSError, match="Bad file descriptor") as caught, in_words("root/file"):
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))
    assert not isinstance(caught.value, AlknetError)


def test_errors_in_words_already_pass_through() -> None:
    with pytest.raises(TooLarge, match="much"), in_words("root/file"):
        raise TooLarge("much")


@pytest.mark.parametrize("kind", [Conflict, WrongKind, TooLarge, NotPermitted, NotStored])
def test_every_error_has_a_status_for_http_and_says_what_it_means(kind: type[OperationError]) -> None:
    assert kind.http_status is not None
    assert kind.summary()
    assert str(kind()) == kind.summary()


def test_a_conflict_says_what_is_there_instead() -> None:
    assert Conflict(details=Found(digest="d")).details == Found("d", None)
