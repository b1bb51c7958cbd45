"""The tree of errors: what each one is, says on the wire, and exits with."""

import pytest

from alknet import errors
from alknet.errors import (
    AlknetError,
    AuditError,
    BrokenError,
    ClosedError,
    ConfigError,
    DeniedError,
    InvalidInputError,
    LocalError,
    NotFoundError,
    RemoteError,
    StartupError,
    UnavailableError,
    UsageError,
)

TREE: list[tuple[type[AlknetError], type[Exception], str, int]] = [
    (AlknetError, Exception, "INTERNAL", 1),
    (LocalError, AlknetError, "INTERNAL", 1),
    (UsageError, LocalError, "INVALID_INPUT", 2),
    (ConfigError, LocalError, "INTERNAL", 7),
    (StartupError, LocalError, "INTERNAL", 7),
    (AuditError, LocalError, "INTERNAL", 1),
    (RemoteError, AlknetError, "INTERNAL", 1),
    (InvalidInputError, RemoteError, "INVALID_INPUT", 6),
    (ClosedError, AlknetError, "UNAVAILABLE", 5),
    (BrokenError, AlknetError, "UNAVAILABLE", 5),
    (DeniedError, AlknetError, "FORBIDDEN", 3),
    (NotFoundError, AlknetError, "NOT_FOUND", 4),
    (UnavailableError, AlknetError, "UNAVAILABLE", 5),
]


@pytest.mark.parametrize(("error", "base", "code", "exit_code"), TREE)
def test_every_error_has_its_place_code_and_exit_code(
    error: type[AlknetError], base: type[Exception], code: str, exit_code: int
) -> None:
    assert error.__bases__ == (base,)
    assert (error.code, error.exit_code) == (code, exit_code)


def test_the_module_exports_the_whole_tree_and_draws_it() -> None:
    names = [error.__name__ for error, *_ in TREE]
    assert sorted(errors.__all__) == sorted(names)
    assert errors.__doc__ is not None
    assert [name for name in names if name not in errors.__doc__] == []


def test_an_error_carries_its_message_and_a_hint() -> None:
    error = ConfigError("what is wrong", hint="what to do")
    assert (str(error), error.hint) == ("what is wrong", "what to do")
    assert AlknetError("x").hint == ""


def test_a_denial_carries_its_id() -> None:
    error = DeniedError("no", denial_id="den_1", hint="ask")
    assert (str(error), error.denial_id, error.hint) == ("no", "den_1", "ask")
    assert DeniedError("no").denial_id is None
