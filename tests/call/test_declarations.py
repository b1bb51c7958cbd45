"""What the decorator makes of what it is told, and what it refuses at once."""

import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from alknet.access import Access, Authority
from alknet.call.declarations import DECLARED, Declaration, operation, where_defined
from alknet.call.specs import ErrorSpec, Kind, OperationError, Visibility
from alknet.errors import UsageError


class Odd(OperationError):
    """It is odd."""

    code = "ODD"


async def read(path: str) -> str:
    """Read a file.

    All of it,
    at once.
    """
    return path


async def watch(path: str) -> AsyncIterator[str]:
    yield path


def poll() -> Iterator[int]:
    yield 1


def declared(function: Callable[..., Any] = read, name: str = "fs/read", **options: Any) -> Declaration:
    """What is noted with a copy of the function."""
    copy = type(read)(function.__code__, globals(), function.__name__)
    copy.__doc__ = function.__doc__
    assert operation(name, **options)(copy) is copy
    found = getattr(copy, DECLARED)
    assert isinstance(found, Declaration)
    return found


# --- what is said and what is not ---------------------------------------------------------------------------------


def test_the_function_stays_what_it_was() -> None:
    @operation("fs/size", kind="query")
    def size(path: str) -> int:
        return len(path)

    assert size("abc") == 3


def test_what_is_not_said_is_careful() -> None:
    found = declared()
    assert (found.name, found.kind, found.visibility, found.version) == (
        "fs/read",
        Kind.QUERY,
        Visibility.EXTERNAL,
        "1",
    )
    assert found.access == Access(required_scopes=("fs:read",))
    assert (found.summary, found.description) == ("Read a file.", "All of it,\nat once.")
    assert (found.calls, found.authority) == ((), Authority("fs/read"))
    assert (found.errors, found.tags, found.examples, found.secret_inputs) == ((), (), (), ())


def test_a_deeper_name_is_a_deeper_scope() -> None:
    assert declared(name="git/repo/read").access.required_scopes == ("git:repo:read",)


@pytest.mark.parametrize(
    ("function", "kind", "expected", "idempotent", "destructive"),
    [
        (read, None, Kind.QUERY, True, False),
        (read, "query", Kind.QUERY, True, False),
        (read, Kind.MUTATION, Kind.MUTATION, False, True),
        (watch, None, Kind.SUBSCRIPTION, False, False),
        (poll, "subscription", Kind.SUBSCRIPTION, False, False),
    ],
)
def test_the_hints_follow_from_the_kind(
    function: Callable[..., Any], kind: str | None, expected: Kind, idempotent: bool, destructive: bool
) -> None:
    found = declared(function, kind=kind)
    assert (found.kind, found.idempotent, found.destructive) == (expected, idempotent, destructive)


def test_all_of_it_can_be_said() -> None:
    busy = ErrorSpec("BUSY")
    found = declared(
        kind="mutation",
        scopes=["a:b"],
        any_scopes=("c", "d"),
        visibility="internal",
        version="2",
        resource="repo",
        resource_action="read",
        resource_id="$.path",
        errors=[Odd, busy],
        summary="S",
        description="D",
        tags=["t"],
        idempotent=True,
        destructive=False,
        examples=[{"input": {"path": "a"}}],
        secret_inputs=["path"],
        calls=["fs/*", "hub:fs/*"],
        authority=["fs:*", "*"],
    )
    assert found.access == Access(
        required_scopes=("a:b",), required_scopes_any=("c", "d"), resource_type="repo", resource_action="read"
    )
    assert (found.visibility, found.version, found.resource_id_path) == (Visibility.INTERNAL, "2", "$.path")
    assert (found.errors, found.summary, found.description, found.tags) == ((Odd, busy), "S", "D", ("t",))
    assert (found.idempotent, found.destructive, found.secret_inputs) == (True, False, ("path",))
    assert found.examples == ({"input": {"path": "a"}},)
    assert (found.calls, found.authority) == (
        ("fs/*", "hub:fs/*"),
        Authority("fs/read", frozenset({"fs:*", "*"})),
    )


def test_one_of_several_scopes_takes_the_place_of_the_default() -> None:
    assert declared(any_scopes=["a", "b"]).access == Access(required_scopes_any=("a", "b"))


def test_public_is_said_and_never_inferred() -> None:
    assert declared(public=True).access == Access(public=True)


@pytest.mark.parametrize("path", ["$.path", "$.a.b", "/a", "/a/b-c", "$/a/b"])
def test_a_resource_is_named_by_a_path(path: str) -> None:
    assert declared(resource="repo", resource_id=path).resource_id_path == path


def test_a_path_alone_says_what_is_recorded_and_asks_for_nothing() -> None:
    found = declared(resource_id="$.path")
    assert (found.access, found.resource_id_path) == (Access(required_scopes=("fs:read",)), "$.path")


def test_the_rules_of_an_action_can_be_asked_for() -> None:
    assert declared(rules="exec/run").access == Access(required_scopes=("fs:read",), rules="exec/run")


# --- what is refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"name": "read"}, "the name 'read' cannot name an operation"),
        ({"name": "/fs/read"}, "the name '/fs/read'"),
        ({"name": None}, "the name None"),
        ({"kind": "procedure"}, "kind is 'procedure'"),
        ({"kind": "subscription"}, "a subscription and no generator"),
        ({"function": watch, "kind": "query"}, "a generator and says that it is a query"),
        ({"function": poll, "kind": "mutation"}, "a generator and says that it is a mutation"),
        ({"visibility": "secret"}, "visibility is 'secret'"),
        ({"version": 1}, "version is no text"),
        ({"version": ""}, "version is no text"),
        ({"public": True, "scopes": ["a"]}, "public and asks for scopes"),
        ({"public": True, "scopes": []}, "public and asks for scopes"),
        ({"public": True, "any_scopes": ["a"]}, "public and asks for scopes"),
        ({"public": True, "resource": "repo"}, "public and asks for scopes or a resource"),
        ({"scopes": []}, "scopes is empty"),
        ({"any_scopes": []}, "any_scopes is empty"),
        ({"scopes": "fs:read"}, "scopes is the text 'fs:read'"),
        ({"scopes": ["fs:*"]}, "scopes has 'fs:\\*' in it"),
        ({"scopes": ["fs read"]}, "scopes has 'fs read' in it"),
        ({"any_scopes": [5]}, "any_scopes has 5 in it"),
        ({"authority": ["fs:"]}, "authority has 'fs:' in it"),
        ({"tags": "one"}, "tags is the text 'one'"),
        ({"secret_inputs": [""]}, "secret_inputs has '' in it"),
        ({"calls": "fs/*"}, "calls is the text"),
        ({"resource_action": "read"}, "it has no resource"),
        ({"resource_id": "path"}, "resource_id is 'path'"),
        ({"rules": "fs/read"}, "rules is 'fs/read'"),
        ({"rules": "exec/run", "public": True}, "public and asks for scopes"),
        ({"resource": "a b"}, "resource is 'a b'"),
        ({"resource": "repo", "resource_action": ""}, "resource_action is ''"),
        ({"resource": "repo", "resource_id": "path"}, "resource_id is 'path'"),
        ({"resource": "repo", "resource_id": "$"}, "resource_id is"),
        ({"resource": "repo", "resource_id": "$.a/b"}, "resource_id is"),
        ({"errors": ["ODD"]}, "errors has 'ODD' in it"),
        ({"errors": [ValueError]}, "errors has <class 'ValueError'> in it"),
        ({"errors": [OperationError]}, "errors has"),
        ({"errors": [Odd, ErrorSpec("ODD")]}, "the error ODD twice"),
        ({"examples": [{"path": "a"}]}, "an example"),
        ({"examples": [{"input": {}, "note": "x"}]}, "an example"),
        ({"destructive": True}, "a query and destructive"),
    ],
)
def test_a_mistake_is_told_where_it_was_made(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(UsageError, match=problem) as caught:
        declared(**options)
    function = options.get("function", read)
    assert str(caught.value).startswith(
        f"{__name__}.{function.__qualname__} ({__file__}:{function.__code__.co_firstlineno}): "
    )
    assert caught.value.hint


def test_a_function_is_one_operation() -> None:
    with pytest.raises(UsageError, match="it is an operation already"):

        @operation("a/b")
        @operation("a/c")
        def function() -> None: ...


def test_only_functions_are_operations() -> None:
    with pytest.raises(UsageError, match=r"'a/b': @operation stands above a classmethod") as caught:

        class Service:
            @operation("a/b")
            @classmethod
            def method(cls) -> None: ...

    assert "below @staticmethod and @classmethod" in caught.value.hint
    with pytest.raises(UsageError, match="above a type"):
        operation("a/b")(int)


def test_a_place_is_told_of_whatever_can_be_called() -> None:
    assert where_defined(read).startswith(f"{__name__}.read ({__file__}:")
    assert where_defined(print) == "builtins.print"


def test_declaring_loads_neither_pydantic_nor_an_event_loop() -> None:
    code = (
        "import sys\nfrom alknet.call.operations import operation\n@operation('a/b')\ndef f(a: int) -> int: ...\n"
        "print(*(name for name in ('pydantic', 'pydantic_core', 'asyncio') if name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split() == []
